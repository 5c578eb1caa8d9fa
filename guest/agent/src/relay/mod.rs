//! Joins the virtio-serial port to the ttrpc server: one session of the host is one connection of the server.
//!
//! Owns: the port and the session. Must never happen: bytes of one session reach another, or the server waits for a host that
//! has gone.

pub mod port;
pub mod scanner;
mod wire;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use crate::serve::Connection;
use port::{Idle, Port};
use scanner::{Event, Scanner, Session, ACK};
use wire::{Way, Wire};

/// What a guest's `read` of the port returns at most.
const READ: usize = 4096;
/// Bytes handed to the server at once.
const HANDED: usize = 64 * 1024;
/// Bytes the server may leave unread. It takes every frame at once, so more than two frames of 4 MiB mean that it hangs.
const INCOMING: usize = 8 * 1024 * 1024;

/// Connections for the server's listener.
pub type Connections = mpsc::Sender<io::Result<Connection>>;

/// Tells the relay to take the next handshake's secret for the first; cheap to clone.
#[derive(Clone, Default)]
pub struct Renewal(Arc<AtomicBool>);

impl Renewal {
    /// From the next byte of the host's on.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Waits for the port, then relays until the server has ended and its last reply is out.
pub async fn run(connections: Connections, renewal: Renewal) -> crate::error::Result<()> {
    use crate::error::Context;
    let port = Port::find().await?;
    log::info!("port {} is open", port::NAME);
    Relay::new(port, connections, renewal).run().await.at("relay", port::NAME)
}

/// The open session.
struct Open {
    id: Session,
    server: DuplexStream,
    way: Arc<Way>,
}

/// What ended a wait.
enum Step {
    Changed,
    /// There is no server any more.
    End,
    /// The server has let go of the session.
    Closed,
    /// Bytes the server took; 0 is its end.
    Written(usize),
}

struct Relay {
    port: Arc<Port>,
    connections: Connections,
    renewal: Renewal,
    scanner: Scanner,
    session: Option<Open>,
    /// From the host, for the server.
    incoming: Vec<u8>,
}

impl Relay {
    fn new(port: Port, connections: Connections, renewal: Renewal) -> Self {
        let scanner = Scanner::default();
        Self { port: Arc::new(port), connections, renewal, scanner, session: None, incoming: Vec::new() }
    }

    async fn run(mut self) -> io::Result<()> {
        loop {
            self.receive().await?;
            if let Some(open) = &self.session {
                open.way.go_on()?;
            }
            match self.wait().await? {
                Step::Changed => {}
                Step::End => return Ok(()),
                Step::Closed | Step::Written(0) => self.hang_up("the server closed it"),
                Step::Written(count) => drop(self.incoming.drain(..count)),
            }
        }
    }

    /// Waits until the port changes or the session moves. Whichever loses has moved no byte.
    async fn wait(&mut self) -> io::Result<Step> {
        let Some(open) = &mut self.session else {
            return tokio::select! {
                changed = self.port.changed() => changed.map(|()| Step::Changed),
                () = self.connections.closed() => Ok(Step::End),
            };
        };
        let (mut reader, mut writer) = tokio::io::split(&mut open.server);
        tokio::select! {
            changed = self.port.changed() => changed.map(|()| Step::Changed),
            // It writes the port itself, so all that comes this way is its end.
            end = reader.read_u8() => end.map_or(Ok(Step::Closed), |_| Ok(Step::Changed)),
            written = writer.write(&self.incoming), if !self.incoming.is_empty() => Ok(Step::Written(written.unwrap_or(0))),
        }
    }

    /// Takes in everything the port has.
    async fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; READ];
        loop {
            match self.port.read(&mut buffer)? {
                Ok(count) => {
                    if self.renewal.take() {
                        self.scanner.forget();
                    }
                    for event in self.scanner.feed(&buffer[..count]) {
                        self.handle(event).await;
                    }
                }
                Err(Idle::Blocked) => return Ok(()),
                Err(Idle::HungUp) => {
                    self.hang_up("the host closed it");
                    return Ok(());
                }
            }
        }
    }

    async fn handle(&mut self, event: Event) {
        match event {
            Event::Data(bytes) if self.session.is_some() => {
                self.incoming.extend(bytes);
                if self.incoming.len() > INCOMING {
                    self.hang_up("the server does not read");
                }
            }
            Event::Data(_) => {}
            Event::Hello(id) => self.open(id).await,
        }
    }

    /// Begins a session. A repeated handshake of the session that is open is no new one: the host repeats it until the answer
    /// comes, and an answer after that would stand in the middle of its replies.
    async fn open(&mut self, id: Session) {
        if self.session.as_ref().is_some_and(|open| open.id == id) {
            return;
        }
        self.hang_up("the host began another");
        let (ours, server) = tokio::io::duplex(HANDED);
        let way = Way::new(self.port.clone(), [&ACK[..], &id].concat());
        if self.connections.send(Ok(Box::new(Wire::new(server, way.clone())))).await.is_err() {
            return log::error!("relay: the server has ended");
        }
        log::info!("session begins");
        self.session = Some(Open { id, server: ours, way });
    }

    /// Drops the session with all that was not delivered.
    fn hang_up(&mut self, why: &str) {
        if let Some(open) = self.session.take() {
            open.way.close();
            log::info!("session ends: {why}");
        }
        self.incoming.clear();
    }
}

#[cfg(test)]
mod tests;
