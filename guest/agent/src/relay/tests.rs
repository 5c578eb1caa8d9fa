//! The relay over a socket pair, which unlike a real port ends when its peer closes; hang-ups of real ports are
//! covered by the tests that boot a virtual machine.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;

use tokio::net::UnixStream;

use super::scanner::{HELLO, SECRET_LEN};
use super::*;

struct Host {
    renewal: Renewal,
    port: UnixStream,
    connections: mpsc::Receiver<io::Result<Connection>>,
}

fn start() -> Host {
    let (guest, host) = StdStream::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    host.set_nonblocking(true).unwrap();
    let (sender, connections) = mpsc::channel(1);
    let renewal = Renewal::default();
    let relay = Relay::new(Port::new(OwnedFd::from(guest)).unwrap(), sender, renewal.clone());
    tokio::spawn(relay.run());
    Host { renewal, port: UnixStream::from_std(host).unwrap(), connections }
}

impl Host {
    async fn hello(&mut self, session: u8) {
        self.hello_with(9, session).await;
    }

    async fn hello_with(&mut self, secret: u8, session: u8) {
        let bytes = [&HELLO[..], &[secret; SECRET_LEN], &[session; 16]].concat();
        self.port.write_all(&bytes).await.unwrap();
    }

    async fn expect(&mut self, expected: &[u8]) {
        let mut bytes = vec![0; expected.len()];
        self.port.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, expected);
    }

    async fn expect_ack(&mut self, session: u8) {
        self.expect(&[&ACK[..], &[session; 16]].concat()).await;
    }

    async fn connection(&mut self) -> Connection {
        self.connections.recv().await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn relays_both_ways() {
    let mut host = start();
    host.hello(1).await;
    let mut server = host.connection().await;
    host.expect_ack(1).await;
    host.port.write_all(b"request").await.unwrap();
    let mut request = [0; 7];
    server.read_exact(&mut request).await.unwrap();
    assert_eq!(&request, b"request");
    server.write_all(b"reply").await.unwrap();
    host.expect(b"reply").await;
}

#[tokio::test]
async fn more_than_the_buffers_hold_arrives_complete() {
    let mut host = start();
    host.hello(1).await;
    let mut server = host.connection().await;
    host.expect_ack(1).await;
    let big: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
    let reply = big.clone();
    let writer = tokio::spawn(async move {
        server.write_all(&reply).await.unwrap();
        server
    });
    host.expect(&big).await;
    let mut server = writer.await.unwrap();
    let request = big.clone();
    let sender = tokio::spawn(async move { host.port.write_all(&request).await.map(|()| host) });
    let mut received = vec![0; big.len()];
    server.read_exact(&mut received).await.unwrap();
    assert!(received == big);
    sender.await.unwrap().unwrap();
}

#[tokio::test]
async fn repeated_hello_is_answered_once() {
    let mut host = start();
    host.hello(1).await;
    host.hello(1).await;
    let mut server = host.connection().await;
    host.expect_ack(1).await;
    server.write_all(b"reply").await.unwrap();
    host.expect(b"reply").await;
}

#[tokio::test]
async fn new_session_ends_the_old_one() {
    let mut host = start();
    host.hello(1).await;
    let mut old = host.connection().await;
    host.expect_ack(1).await;
    host.port.write_all(b"cut fra").await.unwrap();
    host.hello(2).await;
    let mut new = host.connection().await;
    host.expect_ack(2).await;
    let mut rest = Vec::new();
    old.read_to_end(&mut rest).await.unwrap();
    assert!(!rest.windows(8).any(|window| window == &HELLO[..8]));
    host.port.write_all(b"whole").await.unwrap();
    let mut bytes = [0; 5];
    new.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"whole");
}

#[tokio::test]
async fn the_secret_is_renewed_once_when_asked() {
    let mut host = start();
    host.hello(1).await;
    host.expect_ack(1).await;
    let first = host.connection().await;
    host.renewal.ask();
    host.hello_with(5, 2).await;
    host.expect_ack(2).await;
    let second = host.connection().await;
    // The old secret is nobody's now: what follows is data, up to the answer to the new one.
    host.hello(3).await;
    host.hello_with(5, 4).await;
    host.expect_ack(4).await;
    drop((first, second));
}

/// As much as neither the port nor anybody between takes at once.
const MORE_THAN_A_PORT: usize = 8 << 20;

#[tokio::test]
async fn a_writer_that_waits_for_the_port_ends_with_its_session() {
    let mut host = start();
    host.hello(1).await;
    let mut old = host.connection().await;
    host.expect_ack(1).await;
    let writer = tokio::spawn(async move { old.write_all(&vec![1; MORE_THAN_A_PORT]).await });
    let mut first = [0];
    host.port.read_exact(&mut first).await.unwrap();
    host.hello(2).await;
    let mut new = host.connection().await;
    assert_eq!(writer.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    let last = tokio::spawn(async move { new.write_all(&[2]).await.map(|()| new) });
    let mut byte = [1];
    while byte == [1] {
        host.port.read_exact(&mut byte).await.unwrap();
    }
    assert_eq!(byte[0], ACK[0]);
    host.expect(&[&ACK[1..], &[2; 16], &[2]].concat()).await;
    last.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_session_that_is_over_writes_nothing() {
    let mut host = start();
    host.hello(1).await;
    let mut old = host.connection().await;
    host.expect_ack(1).await;
    host.hello(2).await;
    let mut new = host.connection().await;
    host.expect_ack(2).await;
    assert_eq!(old.write(b"late").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    new.write_all(b"reply").await.unwrap();
    host.expect(b"reply").await;
}

#[tokio::test]
async fn a_server_that_lets_go_ends_its_session() {
    let mut host = start();
    host.hello(1).await;
    let mut old = host.connection().await;
    host.expect_ack(1).await;
    old.write_all(b"last").await.unwrap();
    drop(old);
    host.expect(b"last").await;
    // The same name again: that is a new session only if the old one is known to be over.
    let _next = loop {
        host.hello(1).await;
        tokio::select! {
            biased;
            next = host.connections.recv() => break next.unwrap().unwrap(),
            () = tokio::task::yield_now() => {}
        }
    };
    host.expect_ack(1).await;
}
