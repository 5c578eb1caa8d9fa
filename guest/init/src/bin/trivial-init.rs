//! The least a guest can do: say "ready" to the host. How long that takes is what every other start is compared with.
//!
//! The line goes to the agent's virtio-serial port and to the kernel log; then it sleeps until the machine is ended.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use guest_init::device::{Events, serial_port};
use guest_init::failure::{During, Failure, die, say};
use guest_init::{kernel, modules};

const NAME: &str = "trivial-init";
const PORT: &str = "org.kata-shimd.agent.0";
const PORT_PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    match run() {
        Ok(never) => match never {},
        Err(failure) => die(NAME, &failure),
    }
}

fn run() -> Result<Infallible, Failure> {
    kernel::mount_filesystems()?;
    let events = Events::open()?;
    modules::load()?;
    let port = events.wait_for(PORT_PATIENCE, || serial_port(Path::new("/sys"), PORT))?;
    let port = port.ok_or_else(|| Failure::new("find the serial port", PORT, "the host did not offer it"))?;
    let mut channel = OpenOptions::new().write(true).open(&port).during("open", PORT)?;
    channel.write_all(b"ready\n").during("write", PORT)?;
    say(NAME, "ready");
    loop {
        std::thread::park();
    }
}
