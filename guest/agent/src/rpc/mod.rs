//! The services of the protocol: one short method per RPC.
//!
//! Owns: which work survives its request. Must never happen: a connection that breaks leaves a container half made. What changes something
//! runs in a task of its own, which a lost caller does not stop; what only waits or reads ends with its caller.

mod guest;
mod health;
mod service;
pub mod streams;

use std::future::Future;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::relay::Renewal;
use crate::sandbox::Sandbox;

/// Answers all services.
pub struct Agent {
    sandbox: Arc<Sandbox>,
    renewal: Renewal,
}

impl Agent {
    /// An agent for this pod, reached through the relay that `renewal` speaks to.
    pub fn new(sandbox: Arc<Sandbox>, renewal: Renewal) -> Arc<Self> {
        Arc::new(Self { sandbox, renewal })
    }
}

/// Runs work to its end even if nobody waits for it any more.
async fn finish<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let ended = tokio::spawn(work).await;
    ended.unwrap_or_else(|error| Err(Error::internal(format!("request: {error}"))))
}

/// Logs the failure and makes it a reply.
fn reply<T, R: From<T>>(method: &str, result: Result<T>) -> ttrpc::Result<R> {
    match result {
        Ok(value) => Ok(value.into()),
        Err(error) => {
            log::info!("{method}: {:?}: {error}", error.code);
            Err(error.into())
        }
    }
}
