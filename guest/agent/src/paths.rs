//! Where things live in the guest.

use std::path::PathBuf;

/// Bundles of containers: `<ROOT>/<container>/config.json`.
pub const ROOT: &str = "/run/kata-containers";
/// Where the host's shared directory is mounted; the only place `CopyFile` may write to.
pub const SHARED: &str = "/run/kata-containers/shared/containers";
/// The sandbox's own files: `shm`, `resolv.conf`.
pub const SANDBOX: &str = "/run/kata-containers/sandbox";
/// Where the sandbox's IPC, UTS and PID namespaces are kept alive.
pub const NAMESPACES: &str = "/run/sandbox-ns";
/// Files handed to one run of crun: pid file, log, console socket, process.
pub const LAUNCH: &str = "/run/kata-agent/launch";
/// crun's own state.
pub const CRUN_STATE: &str = "/run/kata-agent/crun";
/// The root of the control groups, version 2.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// Names below `ROOT` that no container may take.
pub const RESERVED: [&str; 2] = ["shared", "sandbox"];

/// The bundle of a container whose id was checked.
pub fn bundle(container: &str) -> PathBuf {
    PathBuf::from(ROOT).join(container)
}
