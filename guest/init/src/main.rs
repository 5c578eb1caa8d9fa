//! `/init` of the default guest's initrd: loads the drivers, mounts the root image, becomes the agent.
//!
//! It reads `root=`, `rootfstype=` and `rootflags=` of the kernel command line and nothing else. It must never wait
//! without an end, and never end without saying why.

use std::convert::Infallible;
use std::fs;

use guest_init::cmdline::Root;
use guest_init::device::Events;
use guest_init::failure::{During, Failure, die};
use guest_init::{kernel, modules, root};

const NAME: &str = "guest-init";

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
    let cmdline = fs::read_to_string("/proc/cmdline").during("read", "/proc/cmdline")?;
    root::mount_root(&Root::parse(&cmdline), &events)?;
    drop(events);
    root::switch_root()
}
