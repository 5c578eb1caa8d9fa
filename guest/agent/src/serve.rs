//! The ttrpc server and the ways to reach it.
//!
//! Owns: the listeners. Must never happen: a process of a container talks to the agent. So vsock connections are taken from the
//! host's CID only, and the relay is joined to the server in memory, without a socket in the file system.

use std::io;
use std::path::Path;
use std::sync::Arc;

use futures::stream;
use nix::sys::stat::{umask, Mode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_vsock::{VsockAddr, VsockListener, VMADDR_CID_HOST};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::Server;

use crate::error::{Context, Result};
use crate::options::Address;
use crate::protocol::{agent_ttrpc, guest_ttrpc, health_ttrpc};
use crate::rpc::{streams, Agent};

/// RPCs of the protocol this agent does not have. They are taken out of the table, so that the server answers `UNIMPLEMENTED`; what is generated
/// for them would answer `NOT_FOUND`, which says something else.
const UNSUPPORTED: [&str; 11] = [
    "GetIPTables",
    "SetIPTables",
    "GetDiagnosticData",
    "MemAgentMemcgSet",
    "MemAgentCompactSet",
    "MemHotplugByProbe",
    "AddSwap",
    "AddSwapPath",
    "GetVolumeStats",
    "ResizeVolume",
    "SetPolicy",
];

/// What a connection must be able to do.
pub trait Bytes: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Bytes for T {}

/// A connection of any transport.
pub type Connection = Box<dyn Bytes>;

/// Starts the server. Whatever is sent into the channel becomes a connection of it. The server lives as long as the value.
pub async fn start(agent: Arc<Agent>) -> Result<(Server, mpsc::Sender<io::Result<Connection>>)> {
    let (sender, receiver) = mpsc::channel(1);
    let incoming = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|connection| (connection, receiver))
    });
    let mut services = agent_ttrpc::create_agent_service(agent.clone());
    for service in services.values_mut() {
        service.methods.retain(|method, _| !UNSUPPORTED.contains(&method.as_str()));
        service.methods.extend(streams::methods(&agent));
    }
    let mut server = Server::new()
        .add_listener(Listener::new(incoming))
        .register_service(services)
        .register_service(guest_ttrpc::create_guest(agent.clone()))
        .register_service(health_ttrpc::create_health(agent));
    server.start().await.at("start", "ttrpc server")?;
    Ok((server, sender))
}

/// Accepts connections at `address` until the server ends.
pub async fn listen(address: Address, connections: mpsc::Sender<io::Result<Connection>>) -> Result<()> {
    match &address {
        Address::Unix(path) => {
            let listener = bind_private(path).at("listen", &address)?;
            log::info!("listening at {address}");
            loop {
                let connection = listener.accept().await.map(|(stream, _)| Box::new(stream) as Connection);
                if connections.send(connection).await.is_err() {
                    return Ok(());
                }
            }
        }
        Address::Vsock { cid, port } => {
            let listener = VsockListener::bind(VsockAddr::new(*cid, *port)).at("listen", &address)?;
            log::info!("listening at {address}");
            loop {
                let (stream, peer) = listener.accept().await.at("accept", &address)?;
                if peer.cid() != VMADDR_CID_HOST {
                    log::warn!("refused a connection from CID {}, which is not the host", peer.cid());
                    continue;
                }
                if connections.send(Ok(Box::new(stream))).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Binds a socket that only root may connect to.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let old = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(old);
    listener
}
