//! The socket between keeper and daemon: datagrams of lines in sd_notify's form, with fds.
//!
//! daemon → keeper: `FDSTORE=1` + `FDNAME=…` and one fd; `FDSTOREREMOVE=1` + `FDNAME=…`; `READY=1`; `NEXT=1` + `PATIENCE=…` and one fd, with
//! `BEGUN=1` for a daemon that is there; `SETTLED=1` + `LAUNCHER=…`.
//! keeper → daemon: `LISTEN_FDNAMES=a:b` and as many fds; `START=1` when a new daemon has all there is.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::store::Store;

/// Longest datagram, and most fds in one: far below the kernel's 253.
const SIZE_MAX: usize = 16 << 10;
const BATCH: usize = 64;
const START: &str = "START=1";

/// What a daemon says.
#[derive(Debug)]
pub enum Word {
    Store(String, OwnedFd),
    Remove(String),
    Ready,
    /// The command line of the daemon that is to come next, and how long it may take to settle.
    Next(OwnedFd, Duration),
    /// The same of the daemon that says it: its keeper has died, and it is on trial.
    OnTrial(OwnedFd, Duration),
    /// Machine and guest are there; the launcher that is the daemon's.
    Settled(String),
    /// Something a newer daemon may say.
    Nothing,
}

pub struct Control {
    socket: OwnedFd,
    /// False once the daemon has closed its end.
    open: bool,
    /// Fds, by name, that the daemon had no room for yet.
    unsent: VecDeque<String>,
}

impl Control {
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, open: true, unsent: VecDeque::new() }
    }

    /// The socket, as long as there is anything to hear on it.
    pub fn open(&self) -> Option<&OwnedFd> {
        self.open.then_some(&self.socket)
    }

    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// The next thing the daemon has said; None when there is nothing more now.
    pub fn receive(&mut self) -> Result<Option<Word>, Errno> {
        let mut text = [0; SIZE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut fds = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut text)], &mut fds, flags) {
            Ok(got) => got.bytes,
            // Short of memory, it is heard the next time.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOMEM | Errno::NOBUFS) => return Ok(None),
            // A daemon that died with our messages unread resets the connection; what it had said was read before.
            Err(Errno::CONNRESET | Errno::PIPE) => 0,
            Err(error) => return Err(error),
        };
        if got == 0 {
            self.open = false;
            return Ok(None);
        }
        let fd = fds.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok(Some(understand(&String::from_utf8_lossy(text.get(..got).unwrap_or_default()), fd)))
    }

    /// Give the daemon copies of these fds, at once or when it has room.
    pub fn give(&mut self, store: &Store, names: &[String]) {
        self.unsent.extend(names.iter().cloned());
        self.send_unsent(store);
    }

    /// Send what the daemon had no room for.
    pub fn flush(&mut self, store: &Store) {
        if self.has_unsent() {
            self.send_unsent(store);
        }
    }

    fn send_unsent(&mut self, store: &Store) {
        let names: Vec<String> = self.unsent.iter().take(BATCH).cloned().collect();
        if send(&self.socket, store, &names, SendFlags::DONTWAIT).is_ok() {
            self.unsent.drain(..names.len());
        }
    }
}

/// Everything, for a daemon that begins; `START` ends it.
pub fn send_all(socket: &OwnedFd, store: &Store) -> Result<(), Errno> {
    for batch in store.names().chunks(BATCH) {
        send(socket, store, batch, SendFlags::empty())?;
    }
    send_text(socket, START, SendFlags::empty())
}

fn send(socket: &OwnedFd, store: &Store, names: &[String], flags: SendFlags) -> Result<(), Errno> {
    let held: Vec<_> = names.iter().filter_map(|name| store.get(name).map(|fd| (name, fd.as_fd()))).collect();
    let listed: Vec<&str> = held.iter().map(|(name, _)| name.as_str()).collect();
    let fds: Vec<_> = held.iter().map(|(_, fd)| *fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !message.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::TOOBIG);
    }
    let text = format!("LISTEN_FDNAMES={}", listed.join(":"));
    sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut message, flags | SendFlags::NOSIGNAL).map(|_| ())
}

fn send_text(socket: &OwnedFd, text: &str, flags: SendFlags) -> Result<(), Errno> {
    rustix::net::send(socket, text.as_bytes(), flags | SendFlags::NOSIGNAL).map(|_| ())
}

fn understand(text: &str, fd: Option<OwnedFd>) -> Word {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
    let name = || value("FDNAME=");
    let patience = || value("PATIENCE=").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
    let says = |line: &str| text.lines().any(|said| said == line);
    match (name(), fd) {
        (Some(name), Some(fd)) if says("FDSTORE=1") => Word::Store(name, fd),
        (Some(name), None) if says("FDSTOREREMOVE=1") => Word::Remove(name),
        (Some(name), None) if says("FDSTORE=1") => {
            eprintln!("keep: {name}: came without its descriptor, for there was no room for one; it is not held");
            Word::Nothing
        }
        (None, None) if says("READY=1") => Word::Ready,
        (None, Some(argv)) if says("NEXT=1") => match patience() {
            Some(patience) if says("BEGUN=1") => Word::OnTrial(argv, patience),
            Some(patience) => Word::Next(argv, patience),
            None => Word::Nothing,
        },
        (None, None) if says("SETTLED=1") => value("LAUNCHER=").map_or(Word::Nothing, Word::Settled),
        _ => Word::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_daemon_says() {
        let fd = || super::super::store::journal().ok();
        assert!(matches!(understand("FDSTORE=1\nFDNAME=listen", fd()), Word::Store(name, _) if name == "listen"));
        assert!(matches!(understand("FDSTOREREMOVE=1\nFDNAME=c1", None), Word::Remove(name) if name == "c1"));
        assert!(matches!(understand("READY=1", None), Word::Ready));
        assert!(matches!(understand("NEXT=1\nPATIENCE=9", fd()), Word::Next(_, span) if span.as_secs() == 9));
        let begun = understand("NEXT=1\nPATIENCE=9\nBEGUN=1", fd());
        assert!(matches!(begun, Word::OnTrial(_, span) if span.as_secs() == 9));
        assert!(matches!(understand("SETTLED=1\nLAUNCHER=/l", None), Word::Settled(path) if path == "/l"));
    }

    #[test]
    fn what_is_not_understood_does_nothing() {
        for text in
            ["", "FDSTORE=1\nFDNAME=x", "FDNAME=x", "STATUS=fine", "FDSTORE=1", "NEXT=1\nPATIENCE=9", "SETTLED=1"]
        {
            assert!(matches!(understand(text, None), Word::Nothing), "{text:?}");
        }
    }
}
