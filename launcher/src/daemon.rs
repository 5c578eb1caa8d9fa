//! Talking to a pod's daemon: is it there, and the one question `delete` asks it.

use std::path::Path;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{connect, recv, send, socket_with};

use crate::deadline::Deadline;
use crate::wire::{Encoder, Value, decode};

const SERVICE: &str = "kata_shimd.v1.Pod";
const METHOD: &str = "Abandon";
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const HEADER: usize = 10;
/// An answer to Abandon is a status at most.
const ANSWER_MAX: usize = 64 << 10;

/// Connect to a daemon's socket; None when nobody listens there.
pub fn dial(socket: &Path) -> Result<Option<OwnedFd>, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&fd, &SocketAddrUnix::new(socket)?) {
        Ok(()) => Ok(Some(fd)),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(None),
        // EAGAIN: it listens, and is too busy to accept.
        Err(error) => Err(error),
    }
}

/// Whether somebody listens on the socket.
pub fn listens(socket: &Path) -> Result<bool, Errno> {
    match dial(socket) {
        Ok(found) => Ok(found.is_some()),
        Err(Errno::AGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Tell the daemon that containerd wants no more of this container. It judges by itself whether that is so; the request
/// is read even by a daemon that answers too late for us.
pub fn abandon(socket: &Path, id: &str, budget: Duration) -> Result<(), String> {
    let deadline = Deadline::after(budget);
    let fd = match dial(socket) {
        Ok(Some(fd)) => fd,
        Ok(None) => return Err("nobody listens".to_owned()),
        Err(error) => return Err(format!("connect: {error}")),
    };
    send_all(&fd, &request(id, budget), deadline)?;
    let header = receive(&fd, HEADER, deadline)?;
    let (Some(size), Some(&kind)) = (header.first_chunk::<4>(), header.get(8)) else {
        return Err("short header".to_owned());
    };
    let size = u32::from_be_bytes(*size) as usize;
    if kind != RESPONSE || size > ANSWER_MAX {
        return Err("the answer is not a response".to_owned());
    }
    status(&receive(&fd, size, deadline)?)
}

/// A ttrpc request on stream 1: service, method, payload, timeout.
fn request(id: &str, budget: Duration) -> Vec<u8> {
    let payload = Encoder::default().text(1, id).finish();
    let timeout = u64::try_from(budget.as_nanos()).unwrap_or(0);
    let body = Encoder::default().text(1, SERVICE).text(2, METHOD).message(3, &payload).integer(4, timeout).finish();
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend([0, 0, 0, 1, REQUEST, 0]);
    frame.extend(body);
    frame
}

/// A response whose status is absent, or has code 0, is success.
fn status(response: &[u8]) -> Result<(), String> {
    let fields = decode(response).ok_or("the answer is not protobuf")?;
    let status = fields.iter().find_map(|(field, value)| match (field, value) {
        (1, Value::Bytes(bytes)) => decode(bytes),
        _ => None,
    });
    match status.as_deref().and_then(|status| status.iter().find(|(field, _)| *field == 1)) {
        Some((_, Value::Integer(code))) if *code != 0 => Err(format!("answered code {code}")),
        _ => Ok(()),
    }
}

fn send_all(fd: &OwnedFd, mut bytes: &[u8], deadline: Deadline) -> Result<(), String> {
    while !bytes.is_empty() {
        match send(fd, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(Errno::AGAIN) => ready(fd, PollFlags::OUT, deadline)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(format!("send: {error}")),
        }
    }
    Ok(())
}

fn receive(fd: &OwnedFd, size: usize, deadline: Deadline) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; size];
    let mut have = 0;
    while let Some(rest) = bytes.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match recv(fd, rest, RecvFlags::empty()) {
            Ok((0, _)) => return Err("hung up".to_owned()),
            Ok((got, _)) => have += got,
            Err(Errno::AGAIN) => ready(fd, PollFlags::IN, deadline)?,
            Err(Errno::INTR) => {}
            Err(error) => return Err(format!("receive: {error}")),
        }
    }
    Ok(bytes)
}

fn ready(fd: &OwnedFd, wanted: PollFlags, deadline: Deadline) -> Result<(), String> {
    match deadline.wait(fd.as_fd(), wanted) {
        Ok(true) => Ok(()),
        Ok(false) => Err("no answer in time".to_owned()),
        Err(error) => Err(format!("poll: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_a_ttrpc_frame() {
        let frame = request("c1", Duration::from_secs(1));
        assert_eq!(frame.get(..10), Some(&[0, 0, 0, 40, 0, 0, 0, 1, 1, 0][..]));
        let fields = decode(frame.get(10..).unwrap_or_default()).unwrap_or_default();
        assert_eq!(fields.first(), Some(&(1, Value::Bytes(b"kata_shimd.v1.Pod"))));
        assert_eq!(fields.get(2), Some(&(3, Value::Bytes(b"\x0a\x02c1"))));
        assert_eq!(fields.get(3), Some(&(4, Value::Integer(1_000_000_000))));
    }

    #[test]
    fn success_is_no_status() {
        assert_eq!(status(b""), Ok(()));
        assert_eq!(status(b"\x0a\x00"), Ok(()));
        assert_eq!(status(b"\x12\x00"), Ok(()));
        assert!(status(b"\x0a\x02\x08\x0c").is_err());
        assert!(status(b"\xff").is_err());
    }
}
