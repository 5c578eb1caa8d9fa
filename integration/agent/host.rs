//! The agent as a process of this host, in namespaces of its own, without control groups. Needs root, crun and busybox-static.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/mod.rs"]
#[allow(dead_code)]
mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::pod::{code, patience, Pod};
use common::scenarios;
use common::spec::{container, shell};
use kata_agent::protocol::agent::*;
use tokio::net::UnixStream;
use ttrpc::Code;

/// The interface the host's agent finds.
const HARDWARE: &str = "02:00:00:00:00:31";

/// Inside the namespaces: a private /run, a control group file system crun is content with, a network interface.
const SETUP: &str = "set -e
mount -t tmpfs tmpfs /run
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
ip link set lo up
ip link add found address \"$2\" type veth peer name other
ip link set other up
exec \"$0\" --no-init --no-cgroups --log debug --server \"unix://$1\"";

/// A running agent; killed, with everything in its PID namespace, when dropped.
struct Host {
    process: Child,
    directory: PathBuf,
}

impl Host {
    fn start() -> Self {
        let directory =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("agent-{}-{}", std::process::id(), unique()));
        std::fs::create_dir_all(&directory).unwrap();
        let process = Command::new("unshare")
            .args(["--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
            .args(["sh", "-c", SETUP, env!("CARGO_BIN_EXE_kata-agent")])
            .arg(directory.join("agent.sock"))
            .arg(HARDWARE)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare runs: the test needs root");
        let mut host = Self { process, directory };
        host.wait_for_listener();
        host
    }

    /// Reads the log up to the line that says so; the rest goes on to a file.
    fn wait_for_listener(&mut self) {
        let mut lines = BufReader::new(self.process.stderr.take().unwrap());
        let mut log = std::fs::File::create(self.directory.join("log")).unwrap();
        let mut line = String::new();
        while !line.contains("listening at") {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the agent ended:\n{}", self.log());
            log.write_all(line.as_bytes()).unwrap();
        }
        std::thread::spawn(move || std::io::copy(&mut lines, &mut log));
    }

    async fn connect(&self) -> Pod {
        let stream = UnixStream::connect(self.directory.join("agent.sock")).await.unwrap();
        Pod::new(stream)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// One test per scenario, each with an agent of its own.
macro_rules! on_the_host {
    ($($scenario:ident)*) => {
        $(#[tokio::test]
        async fn $scenario() {
            let host = Host::start();
            let pod = host.connect().await;
            pod.prepare().await;
            scenarios::$scenario(pod).await;
        })*
    };
}

on_the_host! {
    health_and_details
    output_and_exit_code
    many_waiters_before_the_end
    how_long_ago_it_was
    no_byte_is_lost
    output_left_in_the_pipe_outlives_the_process
    standard_input
    a_full_pipe_holds_the_writer_back
    terminals
    execs
    an_exec_is_what_was_asked_for
    a_command_that_is_not_there
    twenty_execs_at_once
    a_child_left_behind_does_not_hold_the_end
    signals
    removing_kills
    pause_holds_the_pods_namespaces
    a_container_joins_anothers_processes
    connections_into_the_pod
    hooks
    storages
    requests_that_make_no_sense
}

#[tokio::test]
async fn network() {
    let host = Host::start();
    let pod = host.connect().await;
    pod.prepare().await;
    scenarios::network(pod, HARDWARE).await;
}

#[tokio::test]
async fn a_lost_caller_leaves_nothing_half_made() {
    let host = Host::start();
    let pod = host.connect().await;
    pod.prepare().await;
    let caller = host.connect().await;
    let request = container("orphaned", shell("sleep 1000"));
    let create = tokio::time::timeout(Duration::from_millis(1), caller.create(&request)).await;
    assert!(create.is_err(), "the caller has gone before the answer");
    caller.cut();
    while code_of_create(&pod).await != Code::ALREADY_EXISTS {}
    while pod.start("orphaned").await.is_err() {}
    pod.remove("orphaned").await.unwrap();
}

/// Asks again for what the lost caller asked for, without the means to make it.
async fn code_of_create(pod: &Pod) -> Code {
    code(pod.create(&container("orphaned", common::spec::process(&["/bin/none"]))).await)
}

#[tokio::test]
async fn the_end_of_the_sandbox_is_the_end_of_the_agent() {
    let mut host = Host::start();
    let pod = host.connect().await;
    pod.prepare().await;
    pod.launch("left", "sleep 1000").await;
    let oom_request = GetOOMEventRequest::default();
    let oom = pod.agent.get_oom_event(patience(), &oom_request);
    let destroy_request = DestroySandboxRequest::default();
    let destroy = pod.agent.destroy_sandbox(patience(), &destroy_request);
    let (waited, destroyed, oom) = tokio::join!(pod.wait("left", "left"), destroy, oom);
    destroyed.unwrap();
    assert_eq!(waited.unwrap(), 137);
    assert_eq!(code(oom), Code::CANCELLED);
    assert!(host.process.wait().unwrap().success());
}
