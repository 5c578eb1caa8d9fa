//! `start`: answer with the address of the pod's daemon; find it, or make it.

use std::env;
use std::ffi::CString;
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, chmodat, memfd_create, openat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::json;

use crate::args::Args;
use crate::bundle::{Bundle, Role};
use crate::daemon;
use crate::deadline::Deadline;
use crate::dialect::Reply;
use crate::failure::{During, Failure, Outcome};
use crate::journal::refused;
use crate::ledger::{Append, Ledger, PodDir};
use crate::lock::Lock;
use crate::pod::{Pod, run_from_environment};
use crate::process::{Identity, has_ended};
use crate::spawn::{Daemon, Held, environment_with, own_path, python};
use crate::undo::{POD, Undo};
use crate::unit;
use crate::words::last_words;

/// The daemon says it serves within this, or it has failed.
const READY_BUDGET: Duration = Duration::from_secs(60);
/// Another start of the pod may be waiting for its daemon all that time.
const LOCK_BUDGET: Duration = Duration::from_secs(90);
/// For taking away what a daemon left.
const UNDO_BUDGET: Duration = Duration::from_secs(20);
/// A daemon that is tearing its pod down is given this to finish.
const STOPPING_BUDGET: Duration = Duration::from_secs(10);
/// What containerd may send on stdin.
const STDIN_MAX: u64 = 16 << 20;
/// One pod has many containers, each with a connection of its own.
const BACKLOG: i32 = 512;

/// Run `start` in the bundle that is the working directory.
pub fn run(args: &Args) -> Outcome<()> {
    args.check()?;
    let bundle = Bundle::at(env::current_dir().during("find bundle", "working directory")?);
    let stdin = read_stdin()?;
    let reply = Reply::choose(&stdin, &args.id, &args.namespace)?;
    let role = bundle.role();
    let sandbox = match &role {
        Ok(Role::Member(sandbox)) => sandbox.as_str(),
        Ok(Role::Sandbox) | Err(_) => &args.id,
    };
    let pod = Pod::new(run_from_environment(), &args.address, &args.namespace, sandbox);
    pod.prepare_run()?;
    let start = Start { args, bundle: &bundle, pod: &pod, sandbox, stdin: &stdin };
    let started = match &role {
        Ok(role) => start.locked(role, reply),
        Err(failure) => Err(failure.clone()),
    };
    started.inspect_err(|failure| refused(&pod, args, sandbox, failure))
}

/// A daemon that serves the pod.
struct Serving {
    pid: i32,
    /// Made by this launcher, so ours to undo if nobody hears of it.
    made_here: bool,
}

/// All that one `start` is about.
struct Start<'a> {
    args: &'a Args,
    bundle: &'a Bundle,
    pod: &'a Pod,
    sandbox: &'a str,
    stdin: &'a [u8],
}

impl Start<'_> {
    /// One at a time for each pod.
    fn locked(&self, role: &Role, reply: Reply) -> Outcome<()> {
        let lock = Lock::take(self.pod.lock(), Deadline::after(LOCK_BUDGET))?;
        let found = match role {
            Role::Sandbox => self.sandbox(),
            Role::Member(_) => self.member(),
        };
        found.and_then(|daemon| self.publish(reply, &daemon)).inspect_err(|_| {
            if matches!(self.pod.exists(), Ok(false)) {
                // The failure is what matters; an empty lock file is found again by its name.
                let _ = lock.remove();
            }
        })
    }

    /// A further container of a pod: its daemon must be there.
    fn member(&self) -> Outcome<Serving> {
        match self.find()? {
            Some((pid, false)) => Ok(Serving { pid, made_here: false }),
            Some((_, true)) => Err(self.no_pod("its pod is being stopped")),
            None => Err(self.no_pod("no daemon serves its pod")),
        }
    }

    fn no_pod(&self, cause: &str) -> Failure {
        Failure::new("find pod", format!("sandbox {}", self.sandbox), cause).hint("its sandbox must be started first")
    }

    /// The first container of a pod: what is left of an earlier daemon goes, and a new one comes.
    fn sandbox(&self) -> Outcome<Serving> {
        match self.find()? {
            Some((pid, false)) => return Ok(Serving { pid, made_here: false }),
            Some((pid, true)) => await_end(pid)?,
            None => {}
        }
        self.undo().during("undo remains of a dead pod", self.pod.dir().display())?;
        self.make().map(|pid| Serving { pid, made_here: true }).map_err(|failure| self.undone_after(failure))
    }

    /// The daemon that listens on the pod's socket: its pid and whether it is stopping.
    fn find(&self) -> Outcome<Option<(i32, bool)>> {
        let socket = self.pod.socket();
        if !daemon::listens(&socket).during("connect to daemon", socket.display())? {
            return Ok(None);
        }
        let path = self.pod.dir();
        let Some(dir) = PodDir::open(&path)? else { return Ok(None) };
        let ledger = Ledger::read(&dir)?.unwrap_or_default();
        let daemon = ledger.process("daemon").and_then(|daemon| daemon.identity);
        Ok(daemon.map(|daemon| (daemon.pid, ledger.is_stopping())))
    }

    /// Take away all there is of the pod; fails with what would not go.
    fn undo(&self) -> Outcome<()> {
        let dir = self.pod.dir();
        let deadline = Deadline::after(UNDO_BUDGET);
        let undo = Undo { pod: &dir, scope: POD, deadline, caller: None, in_unit: false };
        match undo.run()? {
            left if left.is_empty() => Ok(()),
            left => Err(Failure::new("undo", dir.display(), format!("{} things would not go", left.len())).quote(left)),
        }
    }

    /// A failure, after everything made so far was undone; with what would not go, if anything.
    fn undone_after(&self, failure: Failure) -> Failure {
        match self.undo() {
            Ok(()) => failure,
            Err(left) => failure.quote(left.to_string().lines().map(str::to_owned)),
        }
    }

    /// Make the pod's directory, ledger, socket and daemon; answer its pid once it serves.
    fn make(&self) -> Outcome<i32> {
        self.pod.make_dir()?;
        let path = self.pod.dir();
        let dir = PodDir::open(&path)?.ok_or_else(|| Failure::new("open pod directory", path.display(), "vanished"))?;
        let mut ledger = Append::create(&dir, self.pod, &self.args.address, &self.args.namespace, self.sandbox)?;
        ledger.plan(json!({"kind": "file", "path": self.pod.socket()}))?;
        let listen = listen_at(&self.pod.socket())?;
        let (ready, daemon) = self.daemon(listen)?;
        let n = ledger.plan(json!({"kind": "process", "what": "daemon"}))?;
        let held = if unit::wanted() {
            let what = format!("{}/{}", self.args.namespace, self.sandbox);
            unit::begin(&daemon, self.pod, &mut ledger, &what, self.bundle.slice().as_deref())?
        } else {
            daemon.begin(self.pod.run())?
        };
        ledger.made_process(n, held.process)?;
        self.await_ready(held, &ready)
    }

    /// All the daemon is given, and the end of the pipe on which it will say that it serves.
    fn daemon(&self, listen: OwnedFd) -> Outcome<(OwnedFd, Daemon)> {
        let (ready, ready_writer) = pipe_with(PipeFlags::CLOEXEC).during("start daemon", "pipe")?;
        let stderr = self.pod.stderr();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
        let daemon = Daemon {
            argv: self.argv()?,
            environ: environment_with(&[])?,
            in_unit: false,
            null: openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .during("open", "/dev/null")?,
            stderr: openat(CWD, &stderr, flags, Mode::from_raw_mode(0o600)).during("make", stderr.display())?,
            listen,
            ready: ready_writer,
            bootstrap: memfd(self.stdin).during("start daemon", "memfd")?,
        };
        Ok((ready, daemon))
    }

    fn argv(&self) -> Outcome<Vec<CString>> {
        let launcher = own_path()?;
        let named: [(&str, PathBuf); 7] = [
            ("--run-dir", self.pod.run().to_owned()),
            ("--pod-dir", self.pod.dir()),
            ("--namespace", self.args.namespace.clone().into()),
            ("--id", self.sandbox.into()),
            ("--address", self.args.address.clone().into()),
            ("--bundle", self.bundle.path().to_owned()),
            ("--launcher", launcher.clone()),
        ];
        let mut argv: Vec<PathBuf> = vec![python(&launcher)?];
        argv.extend(["-I", "-m", "kata_shimd.daemon"].map(PathBuf::from));
        argv.extend(named.into_iter().flat_map(|(name, value)| [name.into(), value]));
        argv.extend(self.args.debug.then(|| "--debug".into()));
        argv.into_iter().map(|word| CString::new(word.as_os_str().as_bytes()).during("start daemon", "argv")).collect()
    }

    /// Let the daemon go and wait for its byte; if it dies first, its last words are the failure.
    fn await_ready(&self, held: Held, ready: &OwnedFd) -> Outcome<i32> {
        let process = held.process;
        let pidfd = process.open().during("start daemon", self.sandbox)?;
        held.let_go()?;
        let deadline = Deadline::after(READY_BUDGET);
        let mut fds = vec![PollFd::from_borrowed_fd(ready.as_fd(), PollFlags::IN)];
        fds.extend(pidfd.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
        let woken = deadline.wait_any(&mut fds).during("start daemon", self.sandbox)?;
        if woken && said_ready(ready) {
            return Ok(process.pid);
        }
        let how = match (woken, pidfd) {
            (false, _) => format!("not ready within {} s", READY_BUDGET.as_secs()),
            (true, Some(pidfd)) => how_it_ended(process, &pidfd),
            (true, None) => "ended at once".to_owned(),
        };
        Err(last_words(&self.pod.stderr()).explain("start daemon", self.sandbox, &how))
    }

    /// Leave the address where containerd looks for it, and say it. If nobody can hear it, a daemon made for it goes.
    fn publish(&self, reply: Reply, daemon: &Serving) -> Outcome<()> {
        let address = self.pod.address();
        let say = || {
            self.bundle.publish(daemon.pid, &address)?;
            let mut stdout = std::io::stdout();
            stdout
                .write_all(&reply.encode(&address))
                .and_then(|()| stdout.flush())
                .during("answer containerd", "stdout")
        };
        say().map_err(|failure| if daemon.made_here { self.undone_after(failure) } else { failure })
    }
}

/// Wait for a daemon that is stopping; one that hangs is left to undo, which ends it.
fn await_end(pid: i32) -> Outcome<()> {
    let wait = || match Identity::of(pid)?.map(|daemon| daemon.open()).transpose()?.flatten() {
        Some(pidfd) => has_ended(&pidfd, Deadline::after(STOPPING_BUDGET)).map(|_| ()),
        None => Ok(()),
    };
    wait().during("wait for stopping daemon", pid)
}

/// Whatever came on stdin. A terminal has nothing to say: a person is trying the program out.
fn read_stdin() -> Outcome<Vec<u8>> {
    let stdin = std::io::stdin();
    let mut bytes = Vec::new();
    if !stdin.is_terminal() {
        stdin.lock().take(STDIN_MAX).read_to_end(&mut bytes).during("read", "stdin")?;
    }
    Ok(bytes)
}

/// A listening socket at `path`, open to us alone from the moment it can be seen.
fn listen_at(path: &Path) -> Outcome<OwnedFd> {
    let make = || {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // The directory lets nobody else in, so there is no moment at which another could connect.
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        chmodat(CWD, path, Mode::from_raw_mode(0o600), rustix::fs::AtFlags::empty())?;
        listen(&socket, BACKLOG)?;
        Ok::<_, rustix::io::Errno>(socket)
    };
    make().during("listen", path.display())
}

/// A file in memory that holds `bytes`, read position at its beginning.
fn memfd(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let file = File::from(memfd_create("bootstrap", MemfdFlags::CLOEXEC)?);
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0)?;
    Ok(file.into())
}

/// True for a byte; false for the end of the pipe, or when it has said nothing.
fn said_ready(ready: &OwnedFd) -> bool {
    let nothing = Deadline::after(Duration::ZERO);
    matches!(nothing.wait(ready.as_fd(), PollFlags::IN), Ok(true))
        && matches!(rustix::io::read(ready, &mut [0; 1]), Ok(1))
}

/// How our child ended; one that closed its pipe and lives is said to.
fn how_it_ended(process: Identity, pidfd: &OwnedFd) -> String {
    // A daemon closes the pipe in the moment it dies, a little before its end can be seen.
    let grace = Deadline::after(Duration::from_millis(500));
    if !matches!(has_ended(pidfd, grace), Ok(true)) {
        return "closed its ready pipe without a byte".to_owned();
    }
    match waitpid(Pid::from_raw(process.pid), WaitOptions::NOHANG) {
        Ok(Some((_, status))) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exited with {code} before it was ready"),
            (_, Some(signal)) => format!("killed by signal {signal} before it was ready"),
            _ => "ended before it was ready".to_owned(),
        },
        _ => "ended before it was ready".to_owned(),
    }
}
