//! A connection to a port of the pod's loopback, as an exec of the pause: `/pause connect PORT`. Its standard streams are the connection.
//!
//! Owns: nothing but the connection. Must never happen: it can be used to reach the guest's own files. It is confined like the
//! pause, as soon as it is connected.

use std::fs::File;
use std::io::{self, stdin, stdout, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::thread;

use super::pause::confine;

/// The word that follows the pause's name.
pub const VERB: &str = "connect";
/// What the host is told the agent can do.
pub const FEATURE: &str = "kata-shimd.connect";

/// The port that such an exec names.
pub fn port(arguments: &[String]) -> Option<u16> {
    match arguments {
        [pause, verb, port] if pause == "/pause" && verb == VERB => port.parse().ok().filter(|port| *port > 0),
        _ => None,
    }
}

/// Connects and relays, until the other side ends the connection.
pub fn run(port: &str) -> ExitCode {
    match port.parse().map_err(|_| io::ErrorKind::InvalidInput.into()).and_then(connect).and_then(relay) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("connect to port {port}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Of the two loopbacks, the one that is listened at.
fn connect(port: u16) -> io::Result<TcpStream> {
    let to = |address: IpAddr| TcpStream::connect((address, port));
    to(Ipv4Addr::LOCALHOST.into()).or_else(|first| to(Ipv6Addr::LOCALHOST.into()).map_err(|_| first))
}

fn relay(stream: TcpStream) -> io::Result<()> {
    confine(c"connect")?;
    // Not the library's own: they keep what is no whole line.
    let mut input = File::from(stdin().as_fd().try_clone_to_owned()?);
    let mut output = File::from(stdout().as_fd().try_clone_to_owned()?);
    let mut up = stream.try_clone()?;
    thread::spawn(move || {
        let copied = copy(&mut input, &mut up);
        // If that fails, the other side is gone, and the copy below ends by itself.
        copied.and_then(|()| up.shutdown(Shutdown::Write))
    });
    copy(&mut &stream, &mut output)
}

/// Not the library's own: it splices, and a pipe that is spliced into is held for as long as the other side is silent.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Option<u16> {
        port(&words.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn ports() {
        assert_eq!(of(&["/pause", "connect", "80"]), Some(80));
        for words in [
            vec!["/pause"],
            vec!["/pause", "connect"],
            vec!["/pause", "connect", "0"],
            vec!["/pause", "connect", "65536"],
        ] {
            assert_eq!(of(&words), None, "{words:?}");
        }
        assert_eq!(of(&["connect", "connect", "80"]), None);
    }
}
