//! Waits for devices by the kernel's uevents instead of looking again and again.
//!
//! Owns: a netlink socket per waiter. Must never happen: an event between the check and the wait is missed, so the
//! socket is bound before the first check.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{bind, recv, socket, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;
use tokio::time::timeout;

use crate::error::{Context, Error, Result};
use crate::fd::watch;

/// Multicast group of the kernel itself; the other one is udev's.
const KERNEL: u32 = 1;

/// A subscription to the kernel's device events.
pub struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    /// Subscribes from now on.
    pub fn subscribe() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkKObjectUEvent)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
        Ok(Self(watch(fd, Interest::READABLE)?))
    }

    /// Returns after at least one event. What it was does not matter: waiters look at sysfs themselves, and an overrun
    /// (`ENOBUFS`) is an event like any other.
    pub async fn changed(&self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let mut guard = self.0.readable().await?;
            let received = guard.try_io(|fd| Ok(recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?));
            match received {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

/// Waits until `check` finds what it looks for; `what` names it in the error.
pub async fn wait_for<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    let events = Uevents::subscribe().at("uevents", what)?;
    let search = async {
        loop {
            if let Some(found) = check() {
                return Ok(found);
            }
            events.changed().await.at("uevents", what)?;
        }
    };
    timeout(limit, search)
        .await
        .unwrap_or_else(|_| Err(Error::timeout(format!("wait for device: {what}: not there after {limit:?}"))))
}
