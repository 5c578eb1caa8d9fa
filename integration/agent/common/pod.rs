//! A client with words for what tests do.

use std::net::Shutdown;
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;
use std::time::Duration;

use kata_agent::protocol::agent::*;
use kata_agent::protocol::agent_ttrpc::AgentServiceClient;
use kata_agent::protocol::health_ttrpc::HealthClient;
use kata_agent::protocol::oci;
use tokio::net::UnixStream;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::{with_duration, Context};
use ttrpc::r#async::Client;
use ttrpc::Code;

use super::spec;

/// Longer than anything takes under emulation.
const PATIENCE: Duration = Duration::from_secs(60);
const CHUNK: usize = 1 << 20;

/// A connection to an agent.
#[derive(Clone)]
pub struct Pod {
    pub agent: AgentServiceClient,
    pub health: HealthClient,
    connection: Arc<StdStream>,
}

/// How a process ended and what it said.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub status: i32,
    pub out: String,
    pub err: String,
}

pub fn patience() -> Context {
    with_duration(PATIENCE)
}

/// The status code of a failure.
pub fn code<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> Code {
    match result.expect_err("it was refused") {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("no status: {other}"),
    }
}

/// The message of a failure.
pub fn message<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> String {
    match result.expect_err("it was refused") {
        ttrpc::Error::RpcStatus(status) => status.message,
        other => panic!("no status: {other}"),
    }
}

impl Pod {
    pub fn new(stream: UnixStream) -> Self {
        let stream = stream.into_std().unwrap();
        let connection = Arc::new(stream.try_clone().unwrap());
        let client = Client::new(Socket::from(UnixStream::from_std(stream).unwrap()));
        Self { agent: AgentServiceClient::new(client.clone()), health: HealthClient::new(client), connection }
    }

    /// Ends the connection, whatever is under way on it.
    pub fn cut(&self) {
        self.connection.shutdown(Shutdown::Both).unwrap();
    }

    /// Makes the sandbox and fills the shared directory with a root file system of busybox.
    pub async fn prepare(&self) {
        let request = CreateSandboxRequest {
            hostname: "pod-under-test".into(),
            sandbox_id: "sandbox".into(),
            dns: spec::strings(&["nameserver 192.0.2.1"]),
            storages: vec![
                spec::storage("local", "/run/kata-containers/shared/containers", &["mode=0755"]),
                spec::storage(
                    "ephemeral",
                    "/run/kata-containers/sandbox/shm",
                    &["noexec,nosuid,nodev", "mode=1777", "size=2097152"],
                ),
            ],
            ..Default::default()
        };
        self.agent.create_sandbox(patience(), &request).await.unwrap();
        let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
        self.copy("bin/busybox", 0o100_755, &busybox).await;
        for name in [
            "sh", "cat", "df", "echo", "env", "grep", "head", "hostname", "id", "ls", "nc", "ps", "pwd", "seq",
            "sleep", "stat", "stty", "test", "tr", "tty", "wc",
        ] {
            self.copy(&format!("bin/{name}"), 0o120_777, b"busybox").await;
        }
        self.copy("work", 0o040_755, b"").await;
    }

    /// Brings a file, a directory or a link into the root file system.
    async fn copy(&self, path: &str, mode: u32, data: &[u8]) {
        let mut request = CopyFileRequest {
            path: format!("{}/{path}", spec::ROOTFS),
            file_size: data.len() as i64,
            file_mode: mode,
            dir_mode: 0o755,
            ..Default::default()
        };
        for chunk in data.chunks(CHUNK).chain(data.is_empty().then_some(data)) {
            request.data = chunk.to_vec();
            self.agent.copy_file(patience(), &request).await.unwrap();
            request.offset += chunk.len() as i64;
        }
    }

    pub async fn create(&self, request: &CreateContainerRequest) -> ttrpc::Result<()> {
        self.agent.create_container(patience(), request).await.map(drop)
    }

    pub async fn start(&self, id: &str) -> ttrpc::Result<()> {
        let request = StartContainerRequest { container_id: id.into(), ..Default::default() };
        self.agent.start_container(patience(), &request).await.map(drop)
    }

    /// Makes and starts a container that runs a script.
    pub async fn launch(&self, id: &str, script: &str) {
        self.launch_with(&spec::container(id, spec::shell(script))).await;
    }

    pub async fn launch_with(&self, request: &CreateContainerRequest) {
        self.create(request).await.unwrap();
        self.start(&request.container_id).await.unwrap();
    }

    pub async fn exec(&self, id: &str, exec: &str, process: oci::Process) -> ttrpc::Result<()> {
        let request = ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            process: Some(process).into(),
            ..Default::default()
        };
        self.agent.exec_process(patience(), &request).await.map(drop)
    }

    /// Runs a script in a container to its end.
    pub async fn exec_to_end(&self, id: &str, exec: &str, script: &str) -> Outcome {
        self.exec(id, exec, spec::shell(script)).await.unwrap();
        self.outcome(id, exec).await
    }

    /// Runs a script in a container of its own to its end.
    pub async fn run(&self, id: &str, script: &str) -> Outcome {
        self.launch(id, script).await;
        let outcome = self.outcome(id, id).await;
        self.remove(id).await.unwrap();
        outcome
    }

    /// Reads both streams to their ends, then waits.
    pub async fn outcome(&self, id: &str, exec: &str) -> Outcome {
        let (out, err) = tokio::join!(self.read_all(id, exec, false), self.read_all(id, exec, true));
        Outcome { status: self.wait(id, exec).await.unwrap(), out, err }
    }

    pub async fn read_all(&self, id: &str, exec: &str, error_stream: bool) -> String {
        let mut all = Vec::new();
        loop {
            match self.read(id, exec, error_stream, 0).await {
                bytes if bytes.is_empty() => return String::from_utf8(all).unwrap(),
                bytes => all.extend(bytes),
            }
        }
    }

    pub async fn read(&self, id: &str, exec: &str, error_stream: bool, len: u32) -> Vec<u8> {
        let request = ReadStreamRequest { container_id: id.into(), exec_id: exec.into(), len, ..Default::default() };
        let reply = match error_stream {
            true => self.agent.read_stderr(patience(), &request).await,
            false => self.agent.read_stdout(patience(), &request).await,
        };
        reply.unwrap().data
    }

    /// Reads standard output until it contains this.
    pub async fn read_until(&self, id: &str, exec: &str, wanted: &str) -> String {
        let mut all = String::new();
        while !all.contains(wanted) {
            let bytes = self.read(id, exec, false, 0).await;
            assert!(!bytes.is_empty(), "the end came before {wanted:?}: {all:?}");
            all.push_str(&String::from_utf8(bytes).unwrap());
        }
        all
    }

    pub async fn write(&self, id: &str, exec: &str, data: &[u8]) -> ttrpc::Result<u32> {
        let request = WriteStreamRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            data: data.to_vec(),
            ..Default::default()
        };
        self.agent.write_stdin(patience(), &request).await.map(|reply| reply.len)
    }

    pub async fn close_stdin(&self, id: &str, exec: &str) -> ttrpc::Result<()> {
        let request = CloseStdinRequest { container_id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.agent.close_stdin(patience(), &request).await.map(drop)
    }

    pub async fn resize(&self, id: &str, row: u32, column: u32) -> ttrpc::Result<()> {
        let request = TtyWinResizeRequest { container_id: id.into(), row, column, ..Default::default() };
        self.agent.tty_win_resize(patience(), &request).await.map(drop)
    }

    pub async fn wait(&self, id: &str, exec: &str) -> ttrpc::Result<i32> {
        self.ended(id, exec).await.map(|reply| reply.status)
    }

    /// What `wait` is told, and how long ago it was.
    pub async fn ended(&self, id: &str, exec: &str) -> ttrpc::Result<WaitProcessResponse> {
        let request = WaitProcessRequest { container_id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.agent.wait_process(patience(), &request).await
    }

    pub async fn signal(&self, id: &str, exec: &str, signal: i32) -> ttrpc::Result<()> {
        let signal = signal.unsigned_abs();
        let request =
            SignalProcessRequest { container_id: id.into(), exec_id: exec.into(), signal, ..Default::default() };
        self.agent.signal_process(patience(), &request).await.map(drop)
    }

    pub async fn remove(&self, id: &str) -> ttrpc::Result<()> {
        let request = RemoveContainerRequest { container_id: id.into(), ..Default::default() };
        self.agent.remove_container(patience(), &request).await.map(drop)
    }

    pub async fn stats(&self, id: &str) -> ttrpc::Result<StatsContainerResponse> {
        let request = StatsContainerRequest { container_id: id.into(), ..Default::default() };
        self.agent.stats_container(patience(), &request).await
    }
}
