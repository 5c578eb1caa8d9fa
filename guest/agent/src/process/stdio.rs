//! The standard streams of one process: pipes, or the two directions of a terminal.
//!
//! Owns: our ends of the streams and how many bytes went through each. Must never happen: a byte the process wrote before it
//! ended is lost, or the end of a stream waits for somebody else who inherited it.

pub mod piece;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, OFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;
use tokio::sync::watch as channel;
use tokio::time::{timeout, Instant};

use crate::error::{Context, Error, Result};
use crate::fd::watch;
use crate::reaper::Status;
use crate::sync::lock;
use piece::Piece;

/// A descriptor the runtime watches; both directions of a terminal share one.
pub type Watched = Arc<AsyncFd<OwnedFd>>;

/// The life of a process: `None` until it has ended.
pub type Life = channel::Receiver<Option<Status>>;

/// Bytes of one `ReadStdout` when the request does not say, and the most it may say: a reply must fit into a frame.
const DEFAULT_READ: usize = 256 * 1024;
const MAX_READ: usize = 1024 * 1024 - 4096;

/// After the process ended, silence this long ends its streams even if others still hold them...
const SILENCE: Duration = Duration::from_millis(500);
/// ...and so does this much time once all that was there at its end has been delivered.
const CHATTER: Duration = Duration::from_secs(2);

nix::ioctl_read_bad!(
    /// Bytes that can be read at once.
    fionread,
    libc::FIONREAD,
    libc::c_int
);

/// Makes a descriptor non-blocking and watches it.
pub fn watched(fd: OwnedFd) -> io::Result<Watched> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(Arc::new(watch(fd, Interest::READABLE | Interest::WRITABLE)?))
}

/// What one attempt to read found.
#[derive(Debug, PartialEq, Eq)]
enum Attempt {
    Bytes(Piece),
    Nothing,
    End,
}

/// What is known about the end of a stream.
#[derive(Default)]
struct Drain {
    /// The stream has ended, for good.
    ended: bool,
    /// Set when the process was first seen dead: bytes still owed, and when patience with others ends.
    owed: Option<(usize, Instant)>,
}

/// A stream out of a process.
pub struct Output {
    source: Mutex<Option<Watched>>,
    drain: tokio::sync::Mutex<Drain>,
    offset: AtomicU64,
}

impl Output {
    /// A stream out of this descriptor, or one that is empty until the process ends.
    pub fn new(source: Option<Watched>) -> Self {
        Self { source: Mutex::new(source), drain: tokio::sync::Mutex::default(), offset: AtomicU64::new(0) }
    }

    /// Bytes delivered so far.
    pub fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// Whether the end was delivered.
    pub fn ended(&self) -> bool {
        lock(&self.source).is_none()
    }

    /// Waits for at least one byte and returns up to `len`; empty means the end. One reader at a time, others wait. May be
    /// cancelled while it waits: bytes are taken only in the poll that returns them.
    pub async fn read(&self, len: u32, life: &Life) -> Result<Piece> {
        let mut drain = self.drain.lock().await;
        let source = lock(&self.source).clone();
        let (Some(source), false) = (source, drain.ended) else {
            wait_end(life).await;
            return Ok(Piece::end());
        };
        let bytes = next_bytes(&source, capacity(len), &mut drain, life).await.at("read", "stream")?;
        self.offset.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if bytes.is_empty() {
            drain.ended = true;
            lock(&self.source).take();
        }
        Ok(bytes)
    }
}

fn capacity(len: u32) -> usize {
    match len as usize {
        0 => DEFAULT_READ,
        len => len.min(MAX_READ),
    }
}

/// Returns when the process has ended.
async fn wait_end(life: &Life) {
    // An error means that the sender is gone, which only happens after the end.
    let _ = life.clone().wait_for(Option::is_some).await;
}

async fn next_bytes(source: &Watched, len: usize, drain: &mut Drain, life: &Life) -> io::Result<Piece> {
    loop {
        let dead = life.borrow().is_some();
        if dead && impatient(source, drain) {
            return Ok(Piece::end());
        }
        match attempt(source, len)? {
            Attempt::Bytes(bytes) => {
                drain.owed = drain.owed.map(|(owed, until)| (owed.saturating_sub(bytes.len()), until));
                return Ok(bytes);
            }
            Attempt::End => return Ok(Piece::end()),
            Attempt::Nothing if dead => match timeout(SILENCE, ready(source)).await {
                Ok(ready) => ready?,
                Err(_silence) => return Ok(Piece::end()),
            },
            Attempt::Nothing => tokio::select! {
                ready = ready(source) => ready?,
                () = wait_end(life) => {}
            },
        }
    }
}

/// Notes what a dead process left behind; true once that was delivered and others have had their time.
fn impatient(source: &Watched, drain: &mut Drain) -> bool {
    let (owed, until) = *drain.owed.get_or_insert_with(|| (pending(source), Instant::now() + CHATTER));
    owed == 0 && Instant::now() >= until
}

/// Bytes that can be read at once.
fn pending(source: &Watched) -> usize {
    let mut count = 0;
    // SAFETY: FIONREAD writes one int.
    unsafe { fionread(source.as_raw_fd(), &raw mut count) }.map_or(0, |_| usize::try_from(count).unwrap_or(0))
}

/// Waits until a read would find bytes or the end.
async fn ready(source: &Watched) -> io::Result<()> {
    let mut guard = source.readable().await?;
    let mut probe = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
    if nix::poll::poll(&mut probe, PollTimeout::ZERO)? == 0 {
        // The readiness was an old one: forget it, so that the next wait is for a new edge.
        guard.clear_ready();
    }
    Ok(())
}

fn attempt(source: &Watched, len: usize) -> io::Result<Attempt> {
    // At least one byte, so that the end can be told from nothing.
    match Piece::read(source.as_ref(), pending(source).clamp(1, len)) {
        // A terminal answers EIO when nobody has its other side open.
        Err(Errno::EIO) => Ok(Attempt::End),
        Ok(bytes) if bytes.is_empty() => Ok(Attempt::End),
        Ok(bytes) => Ok(Attempt::Bytes(bytes)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(Attempt::Nothing),
        Err(error) => Err(error.into()),
    }
}

/// The stream into a process.
pub struct Input {
    sink: Mutex<Option<Watched>>,
    /// A terminal has no end of its own to close.
    terminal: bool,
    closing: AtomicBool,
    turn: tokio::sync::Mutex<()>,
    offset: AtomicU64,
}

impl Input {
    /// A stream into this descriptor, or one that is closed.
    pub fn new(sink: Option<Watched>, terminal: bool) -> Self {
        let turn = tokio::sync::Mutex::new(());
        Self { sink: Mutex::new(sink), terminal, closing: AtomicBool::new(false), turn, offset: AtomicU64::new(0) }
    }

    /// Bytes the process' pipe or terminal has taken so far.
    pub fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// Writes all of `data`, waiting for space. Writers take turns.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` when the stream is closed, by us or because the process has ended or closed it.
    pub async fn write(&self, data: &[u8], life: &Life) -> Result<usize> {
        let _turn = self.turn.lock().await;
        let sink = lock(&self.sink).clone();
        let Some(sink) = sink.filter(|_| !self.closing.load(Ordering::Relaxed) && life.borrow().is_none()) else {
            return Err(closed());
        };
        let result = tokio::select! {
            result = self.write_all(&sink, data) => result,
            () = wait_end(life) => Err(closed()),
        };
        if self.closing.load(Ordering::Relaxed) || result.is_err() {
            self.release();
        }
        result
    }

    async fn write_all(&self, sink: &Watched, data: &[u8]) -> Result<usize> {
        let mut rest = data;
        while !rest.is_empty() {
            let mut guard = sink.writable().await.at("write", "stdin")?;
            match guard.try_io(|sink| Ok(nix::unistd::write(sink.get_ref(), rest)?)) {
                Ok(Ok(count)) => {
                    self.offset.fetch_add(count as u64, Ordering::Relaxed);
                    rest = &rest[count..];
                }
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EINTR) => {}
                Ok(Err(_)) => return Err(closed()),
                Err(_would_block) => {}
            }
        }
        Ok(data.len())
    }

    /// Ends the stream once the write under way, if any, is done. A terminal stays open: its end is the process's.
    pub fn close(&self) {
        if self.terminal {
            return;
        }
        self.closing.store(true, Ordering::Relaxed);
        if self.turn.try_lock().is_ok() {
            self.release();
        }
    }

    /// Lets go of the descriptor, for instance because the process has ended.
    pub fn release(&self) {
        lock(&self.sink).take();
    }
}

fn closed() -> Error {
    Error::precondition("write: stdin: closed; the process has ended or its standard input was closed")
}

#[cfg(test)]
mod tests;
