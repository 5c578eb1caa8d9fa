//! What PID 1 of a guest does before anything else.
//!
//! Owns: the mounts of the guest itself. Must never happen: a missing mount ends PID 1, which the kernel answers with a
//! panic. Everything is tried, failures are reported, and the RPC that needs the missing part fails with a reason.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::mount::{mount, MsFlags};
use nix::sys::prctl;
use nix::sys::resource::{setrlimit, Resource};

use crate::paths::{CGROUPS, CRUN_STATE, LAUNCH};

struct Mount {
    fstype: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const NOEXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const NOSUID: MsFlags = MsFlags::MS_NOSUID;

/// In this order; what is a mount point already is left alone.
const MOUNTS: [Mount; 9] = [
    Mount { fstype: "proc", target: "/proc", flags: NOEXEC, data: "" },
    Mount { fstype: "sysfs", target: "/sys", flags: NOEXEC, data: "" },
    Mount { fstype: "devtmpfs", target: "/dev", flags: NOSUID, data: "mode=0755" },
    Mount { fstype: "devpts", target: "/dev/pts", flags: NOSUID, data: "gid=5,mode=620,ptmxmode=666" },
    Mount { fstype: "tmpfs", target: "/dev/shm", flags: NOSUID, data: "mode=1777" },
    Mount { fstype: "mqueue", target: "/dev/mqueue", flags: NOEXEC, data: "" },
    Mount { fstype: "tmpfs", target: "/run", flags: NOSUID, data: "mode=0755" },
    Mount { fstype: "tmpfs", target: "/tmp", flags: NOSUID, data: "mode=1777" },
    Mount { fstype: "cgroup2", target: CGROUPS, flags: NOEXEC, data: "nsdelegate" },
];

/// File descriptors for three streams of each of very many processes.
const OPEN_FILES: u64 = 1 << 20;

/// Mounts what a guest needs. Returns what failed, for there is no log yet.
pub fn mount_all() -> Vec<String> {
    MOUNTS.iter().filter(|entry| !is_mount_point(entry.target)).filter_map(|entry| mount_one(entry).err()).collect()
}

fn mount_one(entry: &Mount) -> Result<(), String> {
    // /dev/shm and the like are made here; a directory that cannot be made fails the mount.
    let _ = fs::create_dir_all(entry.target);
    mount(Some(entry.fstype), entry.target, Some(entry.fstype), entry.flags, Some(entry.data))
        .map_err(|error| format!("mount: {}: {error}", entry.target))
}

/// Whether something is mounted right here.
pub fn is_mount_point(path: &str) -> bool {
    let parent = Path::new(path).parent().unwrap_or(Path::new("/"));
    match (fs::metadata(path), fs::metadata(parent)) {
        (Ok(own), Ok(parent)) => own.dev() != parent.dev(),
        _ => false,
    }
}

/// Prepares the process itself, in a guest or on a host. Returns what failed.
pub fn prepare_process() -> Vec<String> {
    let steps = [
        ("become subreaper", prctl::set_child_subreaper(true).map_err(std::io::Error::from)),
        ("make", fs::create_dir_all(LAUNCH)),
        ("make", fs::create_dir_all(CRUN_STATE)),
        ("raise open files", raise_open_files()),
    ];
    steps.into_iter().filter_map(|(step, result)| result.err().map(|error| format!("{step}: {error}"))).collect()
}

fn raise_open_files() -> std::io::Result<()> {
    let (_, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_NOFILE)?;
    // Only root with CAP_SYS_RESOURCE may go above the hard limit; below it everybody may.
    let wanted = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES.max(hard));
    Ok(wanted.or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))?)
}
