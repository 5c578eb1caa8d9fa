//! Kernel settings that belong to the pod's namespaces.
//!
//! Owns: what of `linux.sysctl` the agent sets itself. crun refuses settings of namespaces that a container only joins or does not
//! name, here the network and the domain name, and the pause is made without crun. Must never happen: a setting that is the whole guest's is changed, or a name leads
//! out of `/proc/sys`.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use super::namespaces;
use crate::error::{Error, Result};

/// Settings as the specification has them, `net.core.somaxconn` to `222`.
pub type Sysctls = HashMap<String, String>;

const ROOT: &str = "/proc/sys";

/// Settings of the IPC and UTS namespace; a name that ends in `.` is a prefix.
const POD: [&str; 14] = [
    "fs.mqueue.",
    "kernel.auto_msgmni",
    "kernel.domainname",
    "kernel.hostname",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.msg_next_id",
    "kernel.sem",
    "kernel.sem_next_id",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_",
];

/// Whether the agent sets it for every container: the network is the guest's, the domain name is the pod's.
pub fn is_agents(name: &str) -> bool {
    is_network(name) || dotted(name) == "kernel.domainname"
}

fn is_network(name: &str) -> bool {
    dotted(name).starts_with("net.")
}

/// Sets what belongs to the pod: for a container of crun's what crun does not, for others all of it.
///
/// # Errors
/// `INVALID_ARGUMENT` for a setting that is no namespace's, or that the kernel does not take.
pub async fn apply(sysctls: &Sysctls, crun: bool) -> Result<()> {
    let ours: Vec<_> = sysctls.iter().filter(|(name, _)| !crun || is_agents(name)).collect();
    if ours.is_empty() {
        return Ok(());
    }
    let writes = ours.into_iter().map(|(name, value)| Ok((path(name)?, value.clone()))).collect::<Result<Vec<_>>>()?;
    namespaces::inside(move || writes.iter().try_for_each(|(path, value)| write(path, value))).await
}

fn write(path: &PathBuf, value: &str) -> Result<()> {
    fs::write(path, value).map_err(|error| Error::invalid(format!("set: {}: {error} ({value:?})", path.display())))
}

/// The file of a setting.
fn path(name: &str) -> Result<PathBuf> {
    let plain = dotted(name);
    let known = is_network(name) || POD.iter().any(|known| belongs(known, &plain));
    if !known {
        return Err(Error::invalid(format!("set: {name:.128}: not a setting of the pod's network, IPC or host name")));
    }
    let parts: Vec<_> = plain.split('.').collect();
    if parts.iter().any(|part| part.is_empty() || part.contains("..")) {
        return Err(Error::invalid(format!("set: {name:.128}: not the name of a setting")));
    }
    // Between slashes a dot is part of a name, as in that of a VLAN's interface.
    let file = if slashed(name) { name.to_owned() } else { parts.join("/") };
    Ok(PathBuf::from(ROOT).join(file))
}

fn belongs(known: &str, name: &str) -> bool {
    name == known || known.ends_with(['.', '_']) && name.starts_with(known)
}

/// As in `sysctl.d`: the first separator says which one it is.
fn slashed(name: &str) -> bool {
    name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/')
}

fn dotted(name: &str) -> String {
    name.replace('/', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_files() {
        let file = |name| path(name).map(|path| path.display().to_string());
        assert_eq!(file("net.core.somaxconn").unwrap(), "/proc/sys/net/core/somaxconn");
        assert_eq!(file("kernel.shm_rmid_forced").unwrap(), "/proc/sys/kernel/shm_rmid_forced");
        assert_eq!(file("net/ipv4/conf/eth0.5/forwarding").unwrap(), "/proc/sys/net/ipv4/conf/eth0.5/forwarding");
    }

    #[test]
    fn the_guests_own_settings_and_ways_out_are_refused() {
        for name in
            ["kernel.panic", "vm.swappiness", "kernel.shmmaxi", "net/../kernel/panic", "net", "net.", "/net/x", ""]
        {
            assert!(path(name).is_err(), "{name}");
        }
    }
}
