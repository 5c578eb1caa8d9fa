//! The master side of a container's terminal, as crun hands it over.
//!
//! Owns: the console socket while a launch is under way, and a slave descriptor that keeps the terminal from hanging up
//! while its process lives.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::errno::Errno;
use nix::sys::socket::{recvmsg, ControlMessageOwned, MsgFlags, UnixAddr};

use super::stdio::{watched, Watched};
use crate::error::{Context, Error, Result};
use crate::sync::lock;

nix::ioctl_write_ptr_bad!(
    /// Sets the size of a terminal.
    tiocswinsz,
    libc::TIOCSWINSZ,
    libc::winsize
);

/// A terminal that was received.
pub struct Terminal {
    /// Its master side.
    pub master: Watched,
    /// Held while the process lives: a terminal nobody has open hangs up, and the process may just be between two opens of it.
    slave: Mutex<Option<OwnedFd>>,
}

impl Terminal {
    fn new(master: OwnedFd) -> Result<Self> {
        let slave = peer(&master).at("open", "terminal's slave")?;
        Ok(Self { master: watched(master).at("watch", "terminal")?, slave: Mutex::new(Some(slave)) })
    }

    /// The process has ended: the terminal may hang up.
    pub fn release(&self) {
        lock(&self.slave).take();
    }

    /// Sets its size; what is too large for a terminal becomes the largest.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        let cell = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
        let size = libc::winsize { ws_row: cell(rows), ws_col: cell(columns), ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and the struct outlives the call.
        unsafe { tiocswinsz(self.master.as_raw_fd(), &raw const size) }.at("resize", "terminal")?;
        Ok(())
    }
}

/// Opens the slave side, whatever mount namespace its file lives in.
fn peer(master: &OwnedFd) -> nix::Result<OwnedFd> {
    // SAFETY: TIOCGPTPEER returns a new descriptor that nobody else owns.
    unsafe {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags)).map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

/// The socket crun sends the terminal to.
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens at a path that nobody else uses.
    pub fn bind(path: PathBuf) -> Result<Self> {
        let listener = UnixListener::bind(&path).at("listen", path.display())?;
        listener.set_nonblocking(true).at("listen", path.display())?;
        Ok(Self { listener, path })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal; crun has sent it before it exited.
    pub fn receive(self) -> Result<Terminal> {
        let (stream, _) = self.listener.accept().at("accept", self.path.display())?;
        let master = receive_fd(stream.as_raw_fd()).at("receive", self.path.display())?;
        Terminal::new(master.ok_or_else(|| Error::internal("receive: terminal: crun sent none"))?)
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // Best effort; the directory is the agent's own.
        let _ = fs::remove_file(&self.path);
    }
}

fn receive_fd(socket: RawFd) -> nix::Result<Option<OwnedFd>> {
    let mut name = [0; 256];
    let mut parts = [IoSliceMut::new(&mut name)];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<UnixAddr>(socket, &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let fds = message.cmsgs()?.filter_map(|item| match item {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).next())
}
