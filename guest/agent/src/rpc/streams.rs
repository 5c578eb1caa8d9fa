//! `ReadStdout` and `ReadStderr`. Not by the generated code, which would copy all output once more, into a message.

use std::sync::Arc;

use async_trait::async_trait;
use protobuf::Message;
use ttrpc::proto::ResponseInit;
use ttrpc::r#async::{MethodHandler, TtrpcContext};

use super::{reply, Agent};
use crate::error::Result;
use crate::process::stdio::piece::Piece;
use crate::protocol::agent::ReadStreamRequest;

/// A method by its name in the table of `grpc.AgentService`.
pub type Method = (String, Box<dyn MethodHandler + Send + Sync>);

/// The methods that read.
pub fn methods(agent: &Arc<Agent>) -> [Method; 2] {
    [("ReadStdout", false), ("ReadStderr", true)].map(|(name, error_stream)| {
        let method: Box<dyn MethodHandler + Send + Sync> = Box::new(Read { agent: agent.clone(), name, error_stream });
        (name.to_owned(), method)
    })
}

struct Read {
    agent: Arc<Agent>,
    name: &'static str,
    error_stream: bool,
}

#[async_trait]
impl MethodHandler for Read {
    async fn handler(&self, _: TtrpcContext, request: ttrpc::Request) -> ttrpc::Result<ttrpc::Response> {
        let request = ReadStreamRequest::parse_from_bytes(&request.payload)
            .map_err(|error| ttrpc::Error::Others(format!("{}: {error}", self.name)))?;
        let read: ttrpc::Result<Piece> = reply(self.name, self.agent.read(&request, self.error_stream).await);
        match read {
            Ok(piece) => {
                let mut response = ttrpc::Response::init_status(ttrpc::get_status(ttrpc::Code::OK, ""));
                response.set_payload(piece.into_message());
                Ok(response)
            }
            Err(ttrpc::Error::RpcStatus(status)) => Ok(ttrpc::Response::init_status(status)),
            Err(error) => Err(error),
        }
    }
}

impl Agent {
    async fn read(&self, request: &ReadStreamRequest, error_stream: bool) -> Result<Piece> {
        let container = self.sandbox.container(&request.container_id)?;
        let process = container.process(&request.exec_id)?;
        drop(container);
        let output = if error_stream { &process.stderr } else { &process.stdout };
        output.read(request.len, &process.life).await
    }
}
