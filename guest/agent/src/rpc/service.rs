//! `grpc.AgentService`, but for what reads, which is in `streams`.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;

use super::{finish, reply, Agent};
use crate::cgroup::update;
use crate::error::{Code, Error, Result};
use crate::guest;
use crate::net;
use crate::protocol::agent::*;
use crate::protocol::agent_ttrpc::AgentService;
use crate::protocol::types::{Interface, Route};
use crate::protocol::wkt::Empty;
use crate::sandbox::Sandbox;

impl From<()> for Empty {
    fn from((): ()) -> Self {
        Self::default()
    }
}

impl Agent {
    /// Changes something: runs to its end even when the caller has gone.
    async fn change<T, R, W>(&self, method: &str, work: impl FnOnce(Arc<Sandbox>) -> W) -> ttrpc::Result<R>
    where
        T: Send + 'static,
        R: From<T>,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        reply(method, finish(work(self.sandbox.clone())).await)
    }
}

#[async_trait]
impl AgentService for Agent {
    async fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> ttrpc::Result<Empty> {
        self.change("CreateSandbox", |sandbox| async move { sandbox.create(request).await }).await
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: DestroySandboxRequest) -> ttrpc::Result<Empty> {
        self.change("DestroySandbox", |sandbox| async move {
            sandbox.destroy().await;
            Ok(())
        })
        .await
    }

    async fn create_container(&self, _: &TtrpcContext, request: CreateContainerRequest) -> ttrpc::Result<Empty> {
        self.change("CreateContainer", |sandbox| async move { sandbox.create_container(request).await }).await
    }

    async fn start_container(&self, _: &TtrpcContext, request: StartContainerRequest) -> ttrpc::Result<Empty> {
        self.change("StartContainer", |sandbox| async move { sandbox.container(&request.container_id)?.start().await })
            .await
    }

    async fn remove_container(&self, _: &TtrpcContext, request: RemoveContainerRequest) -> ttrpc::Result<Empty> {
        self.change(
            "RemoveContainer",
            |sandbox| async move { sandbox.remove(&request.container_id, request.timeout).await },
        )
        .await
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.change("ExecProcess", |sandbox| async move { sandbox.exec(request).await }).await
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        let signal = || {
            let number = i32::try_from(request.signal).map_err(|_| Error::invalid("signal: no such signal"))?;
            self.sandbox.container(&request.container_id)?.signal(&request.exec_id, number)
        };
        reply("SignalProcess", signal())
    }

    async fn wait_process(&self, _: &TtrpcContext, request: WaitProcessRequest) -> ttrpc::Result<WaitProcessResponse> {
        let find = || self.sandbox.container(&request.container_id)?.process(&request.exec_id);
        let process: Arc<crate::process::Process> = reply("WaitProcess", find())?;
        let (status, ago) = process.tell().await;
        // 0 is what an agent says that does not tell.
        let ago = u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX).max(1);
        Ok(WaitProcessResponse { status, ago, ..Default::default() })
    }

    async fn pause_container(&self, _: &TtrpcContext, request: PauseContainerRequest) -> ttrpc::Result<Empty> {
        self.change("PauseContainer", |sandbox| async move { sandbox.container(&request.container_id)?.pause().await })
            .await
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ResumeContainerRequest) -> ttrpc::Result<Empty> {
        self.change(
            "ResumeContainer",
            |sandbox| async move { sandbox.container(&request.container_id)?.resume().await },
        )
        .await
    }

    async fn update_container(&self, _: &TtrpcContext, request: UpdateContainerRequest) -> ttrpc::Result<Empty> {
        let apply = || update::apply(self.sandbox.container(&request.container_id)?.group()?, &request.resources);
        reply("UpdateContainer", apply())
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: StatsContainerRequest,
    ) -> ttrpc::Result<StatsContainerResponse> {
        let stats = || self.sandbox.container(&request.container_id)?.stats();
        reply("StatsContainer", stats())
    }

    /// Empty data closes the stream.
    async fn write_stdin(&self, _: &TtrpcContext, request: WriteStreamRequest) -> ttrpc::Result<WriteStreamResponse> {
        let write = async {
            let process = self.sandbox.container(&request.container_id)?.process(&request.exec_id)?;
            if request.data.is_empty() {
                process.stdin.close();
                return Ok(0);
            }
            process.stdin.write(&request.data, &process.life).await
        };
        let written: usize = reply("WriteStdin", write.await)?;
        Ok(WriteStreamResponse { len: u32::try_from(written).unwrap_or(u32::MAX), ..Default::default() })
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> ttrpc::Result<Empty> {
        let process =
            self.sandbox.container(&request.container_id).and_then(|container| container.process(&request.exec_id));
        reply("CloseStdin", process.map(|process| process.stdin.close()))
    }

    async fn tty_win_resize(&self, _: &TtrpcContext, request: TtyWinResizeRequest) -> ttrpc::Result<Empty> {
        let find = || self.sandbox.container(&request.container_id)?.process(&request.exec_id);
        reply("TtyWinResize", find().and_then(|process| process.resize(request.row, request.column)))
    }

    async fn update_ephemeral_mounts(
        &self,
        _: &TtrpcContext,
        request: UpdateEphemeralMountsRequest,
    ) -> ttrpc::Result<Empty> {
        let work = |sandbox: Arc<Sandbox>| async move { sandbox.storages.update_ephemeral(&request.storages).await };
        self.change("UpdateEphemeralMounts", work).await
    }

    /// Nothing can be stale: a mount goes with its last holder.
    async fn remove_stale_virtiofs_share_mounts(
        &self,
        _: &TtrpcContext,
        _: RemoveStaleVirtiofsShareMountsRequest,
    ) -> ttrpc::Result<Empty> {
        Ok(Empty::default())
    }

    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        request: GuestDetailsRequest,
    ) -> ttrpc::Result<GuestDetailsResponse> {
        Ok(guest::details::details(&request, self.sandbox.tools.options.init))
    }

    async fn set_guest_date_time(&self, _: &TtrpcContext, request: SetGuestDateTimeRequest) -> ttrpc::Result<Empty> {
        reply("SetGuestDateTime", guest::clock::set(request.Sec, request.Usec))
    }

    async fn reseed_random_dev(&self, _: &TtrpcContext, request: ReseedRandomDevRequest) -> ttrpc::Result<Empty> {
        reply("ReseedRandomDev", guest::random::reseed(&request.data))
    }

    async fn online_cpu_mem(&self, _: &TtrpcContext, request: OnlineCPUMemRequest) -> ttrpc::Result<Empty> {
        self.change("OnlineCPUMem", |_| async move { guest::hotplug::online(&request).await }).await
    }

    async fn copy_file(&self, _: &TtrpcContext, request: CopyFileRequest) -> ttrpc::Result<Empty> {
        reply("CopyFile", guest::copy::copy(&request))
    }

    async fn get_metrics(&self, _: &TtrpcContext, _: GetMetricsRequest) -> ttrpc::Result<Metrics> {
        Ok(Metrics { metrics: guest::metrics::text(), ..Default::default() })
    }

    /// Blocks until there is an event; ends with the sandbox.
    async fn get_oom_event(&self, _: &TtrpcContext, _: GetOOMEventRequest) -> ttrpc::Result<OOMEvent> {
        tokio::select! {
            biased;
            container_id = self.sandbox.tools.oom.next() => Ok(OOMEvent { container_id, ..Default::default() }),
            () = self.sandbox.destroyed() => Err(Error::new(Code::CANCELLED, "GetOOMEvent: the sandbox was destroyed").into()),
        }
    }

    async fn update_interface(&self, _: &TtrpcContext, request: UpdateInterfaceRequest) -> ttrpc::Result<Interface> {
        let limit = self.sandbox.tools.options.hotplug_timeout;
        let interface = request.interface.unwrap_or_default();
        self.change("UpdateInterface", |_| async move { net::interface::update(interface, limit).await }).await
    }

    async fn update_routes(&self, _: &TtrpcContext, request: UpdateRoutesRequest) -> ttrpc::Result<Routes> {
        let routes = request.routes.unwrap_or_default().Routes;
        let updated: Vec<Route> =
            self.change("UpdateRoutes", |_| async move { net::route::update(routes).await }).await?;
        Ok(Routes { Routes: updated, ..Default::default() })
    }

    async fn list_interfaces(&self, _: &TtrpcContext, _: ListInterfacesRequest) -> ttrpc::Result<Interfaces> {
        let listed: Vec<Interface> = reply("ListInterfaces", net::interface::list().await)?;
        Ok(Interfaces { Interfaces: listed, ..Default::default() })
    }

    async fn list_routes(&self, _: &TtrpcContext, _: ListRoutesRequest) -> ttrpc::Result<Routes> {
        let listed: Vec<Route> = reply("ListRoutes", net::route::list().await)?;
        Ok(Routes { Routes: listed, ..Default::default() })
    }

    async fn add_arp_neighbors(&self, _: &TtrpcContext, request: AddARPNeighborsRequest) -> ttrpc::Result<Empty> {
        let neighbors = request.neighbors.unwrap_or_default().ARPNeighbors;
        self.change("AddARPNeighbors", |_| async move { net::neighbour::add(neighbors).await }).await
    }
}
