//! A daemon that the keeper begins: forked, it imports all it needs, and waits on its socket until it is told to serve.
//!
//! Until then it holds nothing and does nothing, and it ends with the keeper: its socket closes. So it is in the ledger only from the
//! moment it is let go.

use std::ffi::CString;
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::getpid;

use super::control::send_all;
use super::stderr_of;
use super::store::Store;
use crate::failure::{During, Failure, Outcome};
use crate::hurry;
use crate::posix::{self, Fork};
use crate::process::Identity;

pub struct Child {
    pub process: Identity,
    control: OwnedFd,
}

impl Child {
    pub fn begin(argv: &[CString], pod: &Path) -> Outcome<Self> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .during("start daemon", "control socket")?;
        let stderr = stderr_of(pod)?;
        let null =
            openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).during("open", "/dev/null")?;
        let nice = hurry::entry(); // of the keeper: the child may be let go before it has looked
        match posix::fork().during("start daemon", "fork")? {
            Fork::Child => {
                let Err(failure) = become_daemon(argv, [&null, &null, &stderr, &theirs], nice);
                eprintln!("{failure}");
                posix::exit_child(1)
            }
            Fork::Parent { child } => {
                let process = Identity::of(child).during("start daemon", child)?;
                let process = process.ok_or_else(|| Failure::new("start daemon", child, "ended at once"))?;
                Ok(Self { process, control: ours })
            }
        }
    }

    /// Whether it still waits.
    pub fn is_there(&self) -> bool {
        matches!(self.process.open(), Ok(Some(_)))
    }

    /// Give it everything there is: it is the daemon now. Its socket, and its end.
    pub fn let_go(self, store: &Store) -> Outcome<(OwnedFd, Option<OwnedFd>)> {
        let pidfd = self.process.open().during("start daemon", self.process.pid)?;
        hurry::begin(Some(self.process.pid));
        // One that dies meanwhile is seen to by its pidfd.
        let _ = send_all(&self.control, store);
        Ok((self.control, pidfd))
    }
}

fn become_daemon(argv: &[CString], fds: [&OwnedFd; 4], nice: Option<String>) -> Outcome<std::convert::Infallible> {
    posix::become_fds(&fds).during("start daemon", "hand over fds")?;
    rustix::process::setsid().during("start daemon", "setsid")?;
    posix::reset_signals_of_daemon();
    let pid = getpid().as_raw_pid();
    let own = [format!("LISTEN_PID={pid}"), "LISTEN_FDS=1".to_owned(), "LISTEN_FDNAMES=keeper".to_owned()];
    let own: Vec<String> = own.into_iter().chain(nice).collect();
    let environment = crate::spawn::environment_with(&own)?;
    let program = argv.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
    Err(Failure::new("start daemon", program, posix::exec(argv, Some(&environment))))
}
