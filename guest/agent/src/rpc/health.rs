//! `grpc.Health`.

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;

use super::Agent;
use crate::protocol::health::health_check_response::ServingStatus;
use crate::protocol::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use crate::protocol::health_ttrpc::Health;

/// The version of the agent's protocol.
const PROTOCOL: &str = "0.0.1";

#[async_trait]
impl Health for Agent {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..Default::default() })
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<VersionCheckResponse> {
        let (grpc_version, agent_version) = (PROTOCOL.to_owned(), crate::VERSION.to_owned());
        Ok(VersionCheckResponse { grpc_version, agent_version, ..Default::default() })
    }
}
