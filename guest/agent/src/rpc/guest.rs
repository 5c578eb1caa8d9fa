//! `kata_shimd.v1.Guest`.

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;

use super::{reply, Agent};
use crate::error::{Error, Result};
use crate::guest::prepare;
use crate::protocol::guest::PrepareRequest;
use crate::protocol::guest_ttrpc::Guest;
use crate::protocol::wkt::Empty;

#[async_trait]
impl Guest for Agent {
    async fn prepare(&self, _: &TtrpcContext, _: PrepareRequest) -> ttrpc::Result<Empty> {
        reply("Prepare", self.prepare_to_be_copied().await)
    }
}

impl Agent {
    async fn prepare_to_be_copied(&self) -> Result<()> {
        if self.sandbox.is_created() {
            return Err(Error::precondition("prepare: the sandbox was created, so this guest is somebody's"));
        }
        prepare::prepare(&self.sandbox.tools.reaper).await?;
        self.renewal.ask();
        Ok(())
    }
}
