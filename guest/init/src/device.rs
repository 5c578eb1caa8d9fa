//! Waiting for devices: the kernel says when one appears, nothing here polls.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with};

use crate::failure::{During, Failure};

/// The kernel's device events. Open it **before** whatever makes the device appear.
///
/// The text of an event is not read: an event only says that it is worth looking again, so that lost ones (`ENOBUFS`)
/// and ones from before the socket existed make no difference.
pub struct Events(OwnedFd);

impl Events {
    /// # Errors
    /// The kernel has no device events.
    pub fn open() -> Result<Self, Failure> {
        const KERNEL_GROUP: u32 = 1;
        let step = "listen for device events";
        let kind = (AddressFamily::NETLINK, SocketType::DGRAM);
        let socket =
            socket_with(kind.0, kind.1, SocketFlags::CLOEXEC, Some(netlink::KOBJECT_UEVENT)).during(step, "netlink")?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, KERNEL_GROUP)).during(step, "netlink")?;
        Ok(Self(socket))
    }

    /// What `look` finds, looked for now and after every event, or nothing once `patience` is over.
    ///
    /// # Errors
    /// The event socket failed.
    pub fn wait_for<T>(&self, patience: Duration, mut look: impl FnMut() -> Option<T>) -> Result<Option<T>, Failure> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(found) = look() {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.next(left).during("wait for a device event", "netlink")?;
        }
    }

    fn next(&self, patience: Duration) -> Result<(), Errno> {
        let timeout = Timespec::try_from(patience).map_err(|_| Errno::INVAL)?;
        let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut ready, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
        let mut event = [0_u8; 8192];
        match recv(&self.0, &mut event[..], RecvFlags::DONTWAIT) {
            Ok(_) | Err(Errno::NOBUFS | Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// The device node of the virtio-serial port of that name, once the host has told its name.
#[must_use]
pub fn serial_port(sys: &Path, name: &str) -> Option<PathBuf> {
    let ports = fs::read_dir(sys.join("class/virtio-ports")).ok()?;
    let named =
        |port: &fs::DirEntry| fs::read_to_string(port.path().join("name")).is_ok_and(|it| it.trim_end() == name);
    let port = ports.filter_map(Result::ok).find(named)?;
    Some(Path::new("/dev").join(port.file_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_the_name_the_host_gave_it() {
        let sys = std::env::temp_dir().join(format!("guest-init-{}", std::process::id()));
        for (port, name) in [("vport1p1", "other\n"), ("vport2p1", "org.kata-shimd.agent.0\n")] {
            let directory = sys.join("class/virtio-ports").join(port);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("name"), name).unwrap();
        }
        fs::create_dir_all(sys.join("class/virtio-ports/vport3p1")).unwrap(); // named later: no file yet
        assert_eq!(serial_port(&sys, "org.kata-shimd.agent.0"), Some(PathBuf::from("/dev/vport2p1")));
        assert_eq!(serial_port(&sys, "nobody"), None);
        fs::remove_dir_all(&sys).unwrap();
    }

    #[test]
    fn waiting_ends_with_what_was_found_or_when_patience_is_over() {
        let events = Events::open().unwrap();
        assert_eq!(events.wait_for(Duration::from_secs(60), || Some(7)).unwrap(), Some(7));
        assert_eq!(events.wait_for(Duration::from_millis(5), || None::<u8>).unwrap(), None);
    }
}
