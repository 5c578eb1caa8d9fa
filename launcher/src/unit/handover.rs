//! Between `start` and the first process of the unit it has begun: `POD/unit.sock`, SOCK_SEQPACKET, one connection.
//!
//! launcher → unit: one datagram with the daemon's fds. unit → launcher: the pid of the daemon, as text. launcher → unit: a byte,
//! once that pid is in the ledger; the end of the connection without one means that nothing is to be done.

use std::fs::Permissions;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::event::PollFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recv, recvmsg, send,
    sendmsg, socket_with,
};

use crate::deadline::Deadline;
use crate::failure::{During, Failure, Outcome};
use crate::spawn::Daemon;

/// stderr, listen, ready, bootstrap, launch.
const FDS: usize = 5;
const STEP: &str = "start unit";

pub fn path(pod: &Path) -> PathBuf {
    pod.join("unit.sock")
}

/// The launcher's end, before the unit is begun.
pub fn offer(pod: &Path) -> Outcome<OwnedFd> {
    let path = path(pod);
    let make = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // The directory lets nobody else in, so there is no moment at which another could connect.
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        listen(&socket, 1)?;
        Ok::<_, Errno>(socket)
    };
    let socket = make().during(STEP, path.display())?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).during(STEP, path.display())?;
    Ok(socket)
}

/// The unit's process, if it has come; it must be ours. Nobody may come after it.
pub fn accept(offered: &OwnedFd, pod: &Path) -> Outcome<OwnedFd> {
    let socket = accept_with(offered, SocketFlags::CLOEXEC).during(STEP, "accept")?;
    let peer = socket_peercred(&socket).during(STEP, "peer")?;
    if peer.uid != rustix::process::geteuid() {
        return Err(Failure::new(STEP, "peer", format!("it belongs to user {}", peer.uid.as_raw())));
    }
    std::fs::remove_file(path(pod)).during(STEP, path(pod).display())?;
    Ok(socket)
}

pub fn give(socket: &OwnedFd, daemon: &Daemon, launch: &OwnedFd) -> Outcome<()> {
    let fds = [&daemon.stderr, &daemon.listen, &daemon.ready, &daemon.bootstrap, launch].map(AsFd::as_fd);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Failure::new(STEP, "hand over fds", "no room"));
    }
    sendmsg(socket, &[IoSlice::new(b"!")], &mut control, SendFlags::NOSIGNAL).during(STEP, "hand over fds").map(|_| ())
}

/// The pid of the daemon, which waits.
pub fn hear_pid(socket: &OwnedFd, deadline: Deadline) -> Outcome<i32> {
    if !deadline.wait(socket.as_fd(), PollFlags::IN).during(STEP, "wait for its daemon")? {
        return Err(Failure::new(STEP, "wait for its daemon", "none in time"));
    }
    let mut text = [0; 32];
    let (got, _) = recv(socket, &mut text, RecvFlags::empty()).during(STEP, "wait for its daemon")?;
    let said = String::from_utf8_lossy(text.get(..got).unwrap_or_default()).into_owned();
    said.parse().map_err(|_| Failure::new(STEP, "wait for its daemon", "it ended before it had one"))
}

// --- the unit's end --------------------------------------------------------------------------------------------------

/// What the launcher gives; None when there is no launcher any more.
pub fn take(pod: &Path) -> Outcome<Option<(OwnedFd, [OwnedFd; FDS])>> {
    let dial = || {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(path(pod))?)?;
        Ok(socket)
    };
    let socket = match dial() {
        Ok(socket) => socket,
        Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
        Err(error) => return Err(error).during(STEP, path(pod).display()),
    };
    Ok(receive(&socket)?.map(|fds| (socket, fds)))
}

fn receive(socket: &OwnedFd) -> Outcome<Option<[OwnedFd; FDS]>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC);
    if got.during(STEP, "receive fds")?.bytes == 0 {
        return Ok(None);
    }
    let fds: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    fds.try_into().map(Some).map_err(|fds: Vec<_>| Failure::new(STEP, "receive fds", format!("{} of {FDS}", fds.len())))
}

/// Say who the daemon is, and wait until it is in the ledger. False: it is not wanted any more.
pub fn announce(socket: &OwnedFd, pid: i32) -> Outcome<bool> {
    send(socket, pid.to_string().as_bytes(), SendFlags::NOSIGNAL).during(STEP, "say pid")?;
    let got = rustix::io::retry_on_intr(|| recv(socket, &mut [0; 1], RecvFlags::empty()));
    Ok(matches!(got, Ok((1, _))))
}
