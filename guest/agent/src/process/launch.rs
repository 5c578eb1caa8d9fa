//! Running crun.
//!
//! Owns: crun's command line and the files one run needs. Must never happen: a lock held while crun runs, or the outcome guessed from
//! its words: the exit code decides, the words go to the user.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::sys::signal::{kill, Signal};
use nix::unistd::{pipe2, Pid};
use tokio::time::timeout;

use super::stdio::{watched, Watched};
use super::terminal::{ConsoleSocket, Terminal};
use crate::container::connect;
use crate::error::{Context, Error, Result};
use crate::paths::{CRUN_STATE, LAUNCH};
use crate::reaper::{Exit, Launch, Reaper};

/// A run that takes longer is killed. Far above what the slowest emulated guest needs.
const LIMIT: Duration = Duration::from_secs(120);
/// Bytes of crun's log that go into an error.
const WORDS: u64 = 2048;

/// Our ends of a process's streams.
#[derive(Default)]
pub struct Streams {
    /// Write end.
    pub stdin: Option<Watched>,
    /// Read end.
    pub stdout: Option<Watched>,
    /// Read end.
    pub stderr: Option<Watched>,
    /// Present when the streams are those of a terminal.
    pub terminal: Option<Terminal>,
}

/// A process crun has left to us.
pub struct Launched {
    /// Its pid.
    pub pid: Pid,
    /// Its end.
    pub exit: Exit,
    /// Its streams.
    pub streams: Streams,
}

/// How crun is run in this guest.
#[derive(Clone)]
pub struct Crun {
    reaper: Reaper,
    cgroups: bool,
    pipe_size: i32,
}

impl Crun {
    /// `pipe_size` 0 leaves the kernel's.
    pub fn new(reaper: Reaper, cgroups: bool, pipe_size: i32) -> Self {
        Self { reaper, cgroups, pipe_size }
    }

    /// `crun create`: the container's process exists and waits for `start`.
    pub async fn create(&self, id: &str, bundle: &Path, terminal: bool) -> Result<Launched> {
        let bundle = bundle.display().to_string();
        self.launch("create", &["--bundle", &bundle], id, terminal, 0).await
    }

    /// `crun exec` with the process given as the text of an OCI process. crun forgets its OOM score, so it inherits that.
    pub async fn exec(&self, id: &str, process: &str, terminal: bool, oom_score: i64) -> Result<Launched> {
        let file = Scratch::new("json");
        fs::write(&file.0, process).at("write", file.0.display())?;
        let path = file.0.display().to_string();
        self.launch("exec", &["--detach", "--process", &path], id, terminal, oom_score).await
    }

    /// Without crun: a child of the agent's own, whose streams are a connection to a port of the pod's loopback.
    pub fn connect(&self, port: u16) -> Result<Launched> {
        let (files, streams) = self.pipes()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("/pause").args([connect::VERB, &port.to_string()]).env_clear().current_dir("/");
        command.stdin(files.stdin).stdout(files.stdout).stderr(files.stderr);
        let (pid, exit) = self.reaper.spawn(&mut command).at("start", "connection")?;
        Ok(Launched { pid, exit, streams })
    }

    /// `crun start`. Without hooks to run after it, all it does is to write to the FIFO on which the container's process waits; the agent
    /// does that itself, for under emulation just loading crun costs more than the rest of a container's start.
    pub async fn start(&self, id: &str, hooks: bool) -> Result<()> {
        if !hooks {
            match release(&Path::new(CRUN_STATE).join(id).join("exec.fifo")) {
                Ok(()) => return Ok(()),
                Err(error) => log::info!("container {id}: {error}; leaving it to crun to start it"),
            }
        }
        self.run("start", &[], id, Files::null()?, 0).await
    }

    /// `crun delete --force`: also kills what still runs. A container crun does not know is success.
    pub async fn delete(&self, id: &str) -> Result<()> {
        self.run("delete", &["--force"], id, Files::null()?, 0).await
    }

    async fn launch(
        &self,
        verb: &str,
        arguments: &[&str],
        id: &str,
        terminal: bool,
        oom_score: i64,
    ) -> Result<Launched> {
        let pid_file = Scratch::new("pid");
        let pid_path = pid_file.0.display().to_string();
        let mut arguments = [arguments, &["--pid-file", &pid_path]].concat();
        let socket = terminal.then(|| ConsoleSocket::bind(Scratch::name("sock"))).transpose()?;
        let socket_path = socket.as_ref().map(|socket| socket.path().display().to_string());
        if let Some(path) = &socket_path {
            arguments.extend(["--console-socket", path]);
        }
        let (files, mut streams) = if terminal { (Files::null()?, Streams::default()) } else { self.pipes()? };
        let launch = self.reaper.launch();
        self.run(verb, &arguments, id, files, oom_score).await?;
        let (pid, exit) = adopt(&launch, &pid_file.0)?;
        if let Some(socket) = socket {
            streams = terminal_streams(socket.receive().inspect_err(|_| abandon(pid))?);
        }
        Ok(Launched { pid, exit, streams })
    }

    /// Runs crun to its end with these files as its standard streams, which a container inherits.
    async fn run(&self, verb: &str, arguments: &[&str], id: &str, files: Files, oom_score: i64) -> Result<()> {
        let log = Scratch::new("log");
        let mut command = Command::new("crun");
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/");
        command.arg("--root").arg(CRUN_STATE).arg("--log").arg(&log.0);
        command.args(["--cgroup-manager", if self.cgroups { "cgroupfs" } else { "disabled" }]);
        command.arg(verb).args(arguments).arg("--").arg(id);
        if oom_score != 0 {
            inherit_oom_score(&mut command, oom_score);
        }
        command.stdin(files.stdin).stdout(files.stdout).stderr(files.stderr);
        let (pid, exit) = self.reaper.spawn(&mut command).at("run", "crun")?;
        // Our copies of the container's ends must go, or its streams never end.
        drop(command);
        match timeout(LIMIT, exit).await {
            Ok(Ok(0)) => Ok(()),
            Ok(status) => Err(failure(verb, id, status.unwrap_or(255), &log.0)),
            Err(_) => {
                abandon(pid);
                Err(Error::timeout(format!("crun {verb}: {id}: killed, it did not end within {LIMIT:?}")))
            }
        }
    }

    fn pipes(&self) -> Result<(Files, Streams)> {
        let (child_in, stdin) = self.pipe()?;
        let (stdout, child_out) = self.pipe()?;
        let (stderr, child_err) = self.pipe()?;
        let watch = |fd: OwnedFd| watched(fd).at("watch", "pipe").map(Some);
        let streams = Streams { stdin: watch(stdin)?, stdout: watch(stdout)?, stderr: watch(stderr)?, terminal: None };
        Ok((Files { stdin: child_in.into(), stdout: child_out.into(), stderr: child_err.into() }, streams))
    }

    fn pipe(&self) -> Result<(OwnedFd, OwnedFd)> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).at("make", "pipe")?;
        if self.pipe_size > 0 {
            // A size the kernel refuses is no reason not to run the container.
            if let Err(error) = fcntl(&write, FcntlArg::F_SETPIPE_SZ(self.pipe_size)) {
                log::warn!("pipe of {} bytes: {error}", self.pipe_size);
            }
        }
        Ok((read, write))
    }
}

/// The child begins with this score, and what it starts has it too.
fn inherit_oom_score(command: &mut Command, score: i64) {
    let text = score.to_string();
    let write = move || {
        let path = c"/proc/self/oom_score_adj".as_ptr();
        // SAFETY: the path is terminated, the text outlives the call, and the file is closed by the exec that follows.
        let written = unsafe {
            let file = libc::open(path, libc::O_WRONLY | libc::O_CLOEXEC);
            libc::write(file, text.as_ptr().cast(), text.len())
        };
        if written < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec it only makes system calls; nothing is allocated or locked.
    unsafe { command.pre_exec(write) };
}

/// Lets the process behind a FIFO go, in the order crun does it: a FIFO that is gone is what tells crun that the container was started.
fn release(fifo: &Path) -> std::io::Result<()> {
    // Does not wait: the reader has had it open since it was made.
    let mut file = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(fifo)?;
    fs::remove_file(fifo)?;
    file.write_all(&[0])
}

/// A request the runtime cannot carry out is, but for broken guests, a request for something that does not exist.
fn failure(verb: &str, id: &str, status: i32, log: &Path) -> Error {
    let words = tail(log).unwrap_or_default();
    let words = if words.is_empty() { format!("exit code {status}") } else { words };
    Error::invalid(format!("crun {verb}: {id}: {words}"))
}

/// The end of crun's log on one line.
fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(WORDS)))?;
    let mut bytes = Vec::new();
    file.take(WORDS).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes)
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; "))
}

fn adopt(launch: &Launch, pid_file: &Path) -> Result<(Pid, Exit)> {
    let text = fs::read_to_string(pid_file).at("read", pid_file.display())?;
    let pid = text.trim().parse().ok().filter(|pid| *pid > 1);
    let pid = Pid::from_raw(pid.ok_or_else(|| Error::internal(format!("read: pid file: not a pid: {text:?}")))?);
    Ok((pid, launch.adopt(pid)))
}

/// Kills a process nobody will be told about; the reaper collects it.
fn abandon(pid: Pid) {
    let _ = kill(pid, Signal::SIGKILL);
}

fn terminal_streams(terminal: Terminal) -> Streams {
    let master = terminal.master.clone();
    Streams { stdin: Some(master.clone()), stdout: Some(master), stderr: None, terminal: Some(terminal) }
}

/// Standard streams of crun itself.
struct Files {
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
}

impl Files {
    fn null() -> Result<Self> {
        Ok(Self { stdin: Stdio::null(), stdout: Stdio::null(), stderr: Stdio::null() })
    }
}

/// A file of one run, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(kind: &str) -> Self {
        Self(Self::name(kind))
    }

    /// A path no other run has. The directory belongs to the agent alone.
    fn name(kind: &str) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Path::new(LAUNCH).join(format!("{number}.{kind}"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = fs::remove_file(&self.0);
    }
}
