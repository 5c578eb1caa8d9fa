//! The guest's end of a virtio-serial port as something that can be awaited.
//!
//! Owns: the open port. Must never happen: a busy loop while the host is away. After the host's end closed, `poll` says
//! `POLLIN|POLLHUP` for ever, `read` returns 0 and `write` fails with `EAGAIN`; tokio would keep the hang-up as a state
//! that never clears. An epoll of our own in edge-triggered mode reports each *change* once, and tokio only watches that.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{open, OFlag};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::stat::Mode;
use nix::unistd::{read, write};
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;

use crate::fd::watch;
use crate::uevent;

/// The name the host gives the port.
pub const NAME: &str = "org.kata-shimd.agent.0";

/// Longer than any life: the port is waited for until it comes.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Why an operation did not move a byte.
#[derive(Debug, PartialEq, Eq)]
pub enum Idle {
    /// Not now; await `changed`.
    Blocked,
    /// The host's end is closed; await `changed`.
    HungUp,
}

/// The epoll in the form tokio wants.
struct Edges(Epoll);

impl AsRawFd for Edges {
    fn as_raw_fd(&self) -> RawFd {
        self.0 .0.as_raw_fd()
    }
}

/// An open port.
pub struct Port {
    fd: OwnedFd,
    edges: AsyncFd<Edges>,
    /// Whether room to write is watched for: the kernel tells of each buffer that the host took, which is of use only to one who waits.
    full: AtomicBool,
}

impl Port {
    /// Waits for the port called `NAME` and opens it. Only one process may have it open.
    pub async fn find() -> crate::error::Result<Self> {
        use crate::error::Context;
        let path = uevent::wait_for(NAME, FOREVER, || device("/sys/class/virtio-ports", NAME)).await?;
        Self::open(&path).at("open port", path.display())
    }

    /// Opens a port by the path of its device.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::new(open(path, OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    /// Watches a descriptor that is open and non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(fd.as_fd(), events(false))?;
        Ok(Self { fd, edges: watch(Edges(epoll), Interest::READABLE)?, full: AtomicBool::new(false) })
    }

    /// Returns after anything about the port has changed since the last call, if only that a full one has room again. May be cancelled.
    pub async fn changed(&self) -> io::Result<()> {
        let mut guard = self.edges.readable().await?;
        let mut events = [EpollEvent::empty()];
        self.edges.get_ref().0.wait(&mut events, EpollTimeout::ZERO)?;
        guard.clear_ready();
        Ok(())
    }

    /// Reads what is there, at least one byte.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Result<usize, Idle>> {
        match read(&self.fd, buffer) {
            Ok(0) => Ok(Err(Idle::HungUp)),
            Ok(count) => Ok(Ok(count)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Err(Idle::Blocked)),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what the queue takes. `EAGAIN` means both "full" and "the host is away".
    pub fn write(&self, bytes: &[u8]) -> io::Result<Result<usize, Idle>> {
        match write(&self.fd, bytes) {
            Ok(0) | Err(Errno::EAGAIN | Errno::EINTR) => self.watch_room(true).map(|()| Err(Idle::Blocked)),
            Ok(count) => self.watch_room(false).map(|()| Ok(count)),
            Err(error) => Err(error.into()),
        }
    }

    /// The kernel looks at once whether there is room already, so none is missed that came before it was asked.
    fn watch_room(&self, full: bool) -> io::Result<()> {
        if self.full.swap(full, Ordering::Relaxed) != full {
            self.edges.get_ref().0.modify(&self.fd, &mut events(full))?;
        }
        Ok(())
    }
}

/// What is watched for: always a change of what can be read, and room where a write found none.
fn events(full: bool) -> EpollEvent {
    let room = if full { EpollFlags::EPOLLOUT } else { EpollFlags::empty() };
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET | room, 0)
}

/// The device node of the port with this name, when both the port and its node exist.
fn device(class: &str, name: &str) -> Option<PathBuf> {
    let entry = fs::read_dir(class)
        .ok()?
        .flatten()
        .find(|entry| fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim_end() == name))?;
    let node = Path::new("/dev").join(entry.file_name());
    node.exists().then_some(node)
}
