//! The server's end of a session: it reads what the relay hands on, and writes the port itself.
//!
//! Owns: the right of a session to write the port. Must never happen: a byte of a session that is over reaches the port, or one comes before the
//! answer to the session's handshake.
//!
//! A reply can be as long as a pipe is. So it goes from the server's buffer straight to the kernel: nobody between copies it, and while the
//! port takes bytes nobody waits.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::port::{Idle, Port};
use crate::sync::lock;

/// One session's way out, which the relay and the server share.
pub struct Way {
    port: Arc<Port>,
    state: Mutex<State>,
}

struct State {
    open: bool,
    /// What comes before anything of the server's.
    first: Vec<u8>,
    /// The server's writer, when the port was full.
    waiting: Option<Waker>,
}

impl Way {
    /// A way on which `first` goes out first.
    pub fn new(port: Arc<Port>, first: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { port, state: Mutex::new(State { open: true, first, waiting: None }) })
    }

    /// The port may have room now.
    pub fn go_on(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        if self.send_first(&mut state)? {
            state.waiting.take().into_iter().for_each(Waker::wake);
        }
        Ok(())
    }

    /// The session is over: from here on writes fail.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.open = false;
        state.waiting.take().into_iter().for_each(Waker::wake);
    }

    /// Whether nothing is left of what goes first.
    fn send_first(&self, state: &mut State) -> io::Result<bool> {
        while !state.first.is_empty() {
            match self.port.write(&state.first)? {
                Ok(count) => drop(state.first.drain(..count)),
                Err(Idle::Blocked | Idle::HungUp) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Gives the port what it takes.
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut sent = 0;
        while sent < bytes.len() {
            match self.port.write(&bytes[sent..])? {
                Ok(count) => sent += count,
                Err(Idle::Blocked | Idle::HungUp) => break,
            }
        }
        Ok(sent)
    }
}

/// The server's end.
pub struct Wire {
    incoming: DuplexStream,
    way: Arc<Way>,
}

impl Wire {
    /// Reads from `incoming`, writes along `way`.
    pub fn new(incoming: DuplexStream, way: Arc<Way>) -> Self {
        Self { incoming, way }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.incoming).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.way.state);
        if !state.open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let sent = if self.way.send_first(&mut state)? { self.way.send(bytes)? } else { 0 };
        if sent == 0 && !bytes.is_empty() {
            // Under the lock that `go_on` takes, so that room which comes now is not missed.
            state.waiting = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
