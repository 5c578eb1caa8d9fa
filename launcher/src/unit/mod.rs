//! A pod's daemon as a unit of systemd's: `kata-pod@HASH.service`.
//!
//! A node has units when its administrator has installed their template (`kata-shimd systemd install`). The template says how
//! long, how often and in which order; what is one pod's own is a drop-in below /run, which systemd reads when it loads the
//! instance. `start` has systemd begin the unit (`offer`), whose first process becomes the daemon or has the zygote fork it
//! (`birth`); after each death another program judges whether the pod is over (`end`). Must never happen: a unit that is not in the
//! ledger; a daemon that systemd starts and the ledger does not know.

mod birth;
mod end;
mod handover;
mod launch;
mod manager;
mod offer;

use std::env;
use std::path::{Path, PathBuf};

use crate::zygote::shares_namespaces;

pub use birth::run as birth;
pub use end::run as ended;
pub use manager::{is_up, stop, stop_soon};
pub use offer::begin;

const TEMPLATE: &str = "kata-pod@.service";
/// It is there when systemd is the host's first process (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// Where the template may lie.
const PLACES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
/// Overridden by an administrator's drop-ins with a higher number.
const DROP_IN: &str = "50-pod.conf";

/// Whether this node's pods are units.
pub fn wanted() -> bool {
    let forbidden = env::var_os("KATA_SHIMD_NO_UNIT").is_some_and(|value| !value.is_empty());
    let installed = || PLACES.iter().any(|place| Path::new(place).join(TEMPLATE).exists());
    // A unit lives where systemd does: of use to a containerd that lives there as well.
    !forbidden && Path::new(BOOTED).is_dir() && installed() && shares_namespaces(1)
}

/// The unit of the pod `hash`.
pub fn name(hash: &str) -> String {
    format!("kata-pod@{hash}.service")
}

/// Whether it can be the name of a pod's unit: it goes to systemctl.
pub fn is_name(name: &str) -> bool {
    let hash = name.strip_prefix("kata-pod@").and_then(|rest| rest.strip_suffix(".service"));
    hash.is_some_and(|hash| !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// What is this one pod's own.
fn drop_in_dir(name: &str) -> PathBuf {
    Path::new(BOOTED).join(format!("{name}.d"))
}
