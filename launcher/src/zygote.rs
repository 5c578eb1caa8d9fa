//! Asking the node's zygote for a daemon: a fork of a warm interpreter instead of a cold one (`kata_shimd/zygote.py`).
//!
//! A zygote is a gain and never a need: whatever is not right about it, up to the moment in which there is a child, is answered with
//! None, and the pod gets its daemon the other way. Must never happen: a child that lives in other namespaces than we do.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, recv, sendmsg, socket_with,
};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};

use crate::deadline::Deadline;
use crate::process::Identity;
use crate::spawn::{Daemon, Held};

const SOCKET: &str = "zygote.sock";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A fork takes milliseconds; a machine that is short of memory may need longer, and is then better off without.
const BUDGET: Duration = Duration::from_secs(2);
const ANSWER_MAX: usize = 4096;
const FDS: usize = 7;
/// What a daemon shares with its launcher, and so must share with its zygote.
const NAMESPACES: [&str; 7] = ["mnt", "net", "pid", "user", "ipc", "uts", "cgroup"];

/// A child of the zygote in `run` that waits to be let go and then becomes the daemon.
pub fn fork(run: &Path, daemon: &Daemon, environ: &OwnedFd) -> Option<Held> {
    let path = run.join(SOCKET);
    if !path.exists() {
        return None;
    }
    let deadline = Deadline::after(BUDGET);
    let socket = dial(&path).ok()?;
    let (wait, gate) = pipe_with(PipeFlags::CLOEXEC).ok()?;
    send(&socket, &request(daemon)?, &descriptors(daemon, &wait, environ)).ok()?;
    let child = answer(&socket, deadline)?;
    // Should it have ended already, the slow way is right too.
    let process = Identity::of(child).ok()??;
    Some(Held::new(process, gate))
}

/// Connect to a zygote of ours, in our namespaces.
fn dial(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let peer = socket_peercred(&socket)?;
    match peer.uid == rustix::process::geteuid() && shares_namespaces(peer.pid.as_raw_pid()) {
        true => Ok(socket),
        false => Err(Errno::PERM),
    }
}

pub fn shares_namespaces(pid: i32) -> bool {
    let of = |who: &str, name: &str| std::fs::read_link(format!("/proc/{who}/ns/{name}")).ok();
    NAMESPACES.iter().all(|name| {
        let ours = of("self", name);
        ours.is_some() && ours == of(&pid.to_string(), name)
    })
}

/// What `parse` of `kata_shimd/zygote.py` reads: the arguments are those behind `-m kata_shimd.daemon`.
fn request(daemon: &Daemon) -> Option<Vec<u8>> {
    let words = daemon.argv.iter().map(|word| word.to_str()).collect::<Result<Vec<_>, _>>().ok()?;
    let (python, argv) = (words.first()?, words.get(4..)?);
    let request = json!({"v": 1, "version": VERSION, "python": python, "argv": argv, "orphan": daemon.in_unit});
    Some(request.to_string().into_bytes())
}

fn descriptors<'a>(daemon: &'a Daemon, wait: &'a OwnedFd, environ: &'a OwnedFd) -> [BorrowedFd<'a>; FDS] {
    [&daemon.null, &daemon.stderr, &daemon.listen, &daemon.ready, &daemon.bootstrap, wait, environ].map(AsFd::as_fd)
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>; FDS]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::NOBUFS);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).map(|_| ())
}

/// The child's pid; None when the zygote refused, said nothing in time, or made no sense.
fn answer(socket: &OwnedFd, deadline: Deadline) -> Option<i32> {
    if !deadline.wait(socket.as_fd(), PollFlags::IN).ok()? {
        return None;
    }
    let mut bytes = [0; ANSWER_MAX];
    let (got, _) = recv(socket, &mut bytes, RecvFlags::empty()).ok()?;
    let said: Value = serde_json::from_slice(bytes.get(..got)?).ok()?;
    i32::try_from(said.get("pid")?.as_i64()?).ok().filter(|pid| *pid > 0)
}
