//! The standard streams of one process: pipes, or the two directions of a terminal.
//!
//! Owns: our ends of the streams and how many bytes went through each. Must never happen: a byte the process wrote before it
//! ended is lost, or the end of a stream waits for somebody else who inherited it; or the agent waits for a pipe.
//!
//! Whoever splices into a pipe or out of it holds it until the other side of the splice gives or takes, which may be never. Reads and
//! writes then wait, however non-blocking (`splice_file_to_pipe` in the kernel's fs/splice.c); only poll does not. So nothing but poll
//! is done in the agent's own thread.

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
use tokio::task::{spawn_blocking, JoinHandle};
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
/// ...and this long is waited for who holds the pipe of a process that has ended.
const HELD: Duration = Duration::from_secs(10);

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
    /// A read under way. Whoever waited for it may have gone: the next one gets it.
    reading: Option<JoinHandle<io::Result<Attempt>>>,
    /// What was read for somebody who wanted more.
    rest: Option<Piece>,
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
    /// cancelled while it waits: bytes that nobody took are the next one's.
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
        if dead && impatient(source, drain).await {
            return Ok(Piece::end());
        }
        let found = match (attempt(source, len, drain), dead) {
            (attempt, false) => attempt.await?,
            (attempt, true) => timeout(HELD, attempt).await.unwrap_or(Ok(Attempt::End))?,
        };
        match found {
            Attempt::Bytes(mut bytes) => {
                drain.rest = bytes.split(len);
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

/// Notes what a dead process left behind; true once that was delivered and others have had their time, or one who holds the pipe has.
async fn impatient(source: &Watched, drain: &mut Drain) -> bool {
    if drain.owed.is_none() && drain.reading.is_none() {
        let pipe = source.clone();
        let Ok(count) = timeout(HELD, spawn_blocking(move || pending(&pipe))).await else { return true };
        drain.owed = Some((count.unwrap_or(0), Instant::now() + CHATTER));
    }
    drain.owed.is_some_and(|(owed, until)| owed == 0 && drain.rest.is_none() && Instant::now() >= until)
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
    if !is(source, PollFlags::POLLIN)? {
        // The readiness was an old one: forget it, so that the next wait is for a new edge.
        guard.clear_ready();
    }
    Ok(())
}

/// Whether it is so now, or nobody has the other side open.
fn is(fd: &Watched, flag: PollFlags) -> io::Result<bool> {
    let mut probe = [PollFd::new(fd.as_fd(), flag)];
    Ok(nix::poll::poll(&mut probe, PollTimeout::ZERO)? != 0)
}

/// What there is to be read.
async fn attempt(source: &Watched, len: usize, drain: &mut Drain) -> io::Result<Attempt> {
    if let Some(rest) = drain.rest.take() {
        return Ok(Attempt::Bytes(rest));
    }
    if drain.reading.is_none() && !is(source, PollFlags::POLLIN)? {
        return Ok(Attempt::Nothing);
    }
    let pipe = source.clone();
    let reading = drain.reading.get_or_insert_with(|| spawn_blocking(move || attempt_here(&pipe, len)));
    let found = reading.await;
    drain.reading = None;
    found.map_err(io::Error::other)?
}

/// May wait for who holds the pipe.
fn attempt_here(source: &Watched, len: usize) -> io::Result<Attempt> {
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
    offset: Arc<AtomicU64>,
}

impl Input {
    /// A stream into this descriptor, or one that is closed.
    pub fn new(sink: Option<Watched>, terminal: bool) -> Self {
        let turn = tokio::sync::Mutex::new(());
        Self { sink: Mutex::new(sink), terminal, closing: AtomicBool::new(false), turn, offset: Arc::default() }
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
        let mut begin = 0;
        while begin < data.len() {
            let mut guard = sink.writable().await.at("write", "stdin")?;
            if !is(sink, PollFlags::POLLOUT).at("write", "stdin")? {
                guard.clear_ready();
                continue;
            }
            let (pipe, piece, offset) = (sink.clone(), data[begin..].to_vec(), self.offset.clone());
            let write = move || {
                let written = nix::unistd::write(&*pipe, &piece);
                offset.fetch_add(written.unwrap_or(0) as u64, Ordering::Relaxed);
                written
            };
            match spawn_blocking(write).await {
                Ok(Ok(count)) => begin += count,
                Ok(Err(Errno::EINTR)) => {}
                Ok(Err(Errno::EAGAIN)) => guard.clear_ready(),
                Ok(Err(_)) | Err(_) => return Err(closed()),
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
