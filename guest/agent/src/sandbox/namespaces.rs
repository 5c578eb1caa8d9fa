//! The namespaces that all containers of the pod share, kept alive without a process in them.
//!
//! Owns: the bind mounts below `/run/sandbox-ns`. Must never happen: the agent itself enters one of them.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sched::{setns, unshare, CloneFlags};
use nix::unistd::{sethostname, Pid};

use crate::error::{Context, Error, Result};
use crate::paths::NAMESPACES;
use crate::process::Process;

/// Told among the agent's features: a container may join the PID namespace of another, which Kata's protocol has no word for.
pub const FEATURE: &str = "kata-shimd.pid-of-container";
/// Before the id of that container, where the path of a namespace would be.
pub const OF_CONTAINER: &str = "container:";

/// The longest host name the kernel takes.
const HOSTNAME: usize = 64;

/// Makes the IPC and the UTS namespace, the latter with this host name, and keeps them.
pub fn make(hostname: &str) -> Result<()> {
    fs::create_dir_all(NAMESPACES).at("make", NAMESPACES)?;
    let hostname: String = hostname.chars().take(HOSTNAME).collect();
    // A thread of its own: what it unshares ends with it, but for the bind mounts.
    let thread = std::thread::spawn(move || make_here(&hostname));
    thread.join().unwrap_or_else(|_| Err(Error::internal("make namespaces: the thread died")))
}

fn make_here(hostname: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS).at("unshare", "ipc, uts")?;
    if !hostname.is_empty() {
        sethostname(hostname).at("set", "host name")?;
    }
    keep("ipc", Path::new("/proc/thread-self/ns/ipc"))?;
    keep("uts", Path::new("/proc/thread-self/ns/uts"))
}

/// Does something inside the IPC and the UTS namespace, on a thread that ends with it.
pub async fn inside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, result) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let done = enter().and_then(|()| work());
        // The caller may have gone.
        let _ = sender.send(done);
    });
    result.await.unwrap_or_else(|_| Err(Error::internal("enter namespaces: the thread died")))
}

fn enter() -> Result<()> {
    for (kind, flag) in [("ipc", CloneFlags::CLONE_NEWIPC), ("uts", CloneFlags::CLONE_NEWUTS)] {
        let namespace = File::open(path(kind)).at("open", path(kind).display())?;
        setns(namespace, flag).at("enter", path(kind).display())?;
    }
    Ok(())
}

/// Keeps the PID namespace whose first process this is.
pub fn keep_pid(first: Pid) -> Result<()> {
    fs::create_dir_all(NAMESPACES).at("make", NAMESPACES)?;
    keep("pid", Path::new(&format!("/proc/{first}/ns/pid")))
}

/// The PID namespace of a process, held: another that gets its number later is not mistaken for it.
pub struct Held(File);

impl Held {
    /// # Errors
    /// `FAILED_PRECONDITION` when the process has ended.
    pub fn pid_of(process: &Process) -> Result<Self> {
        let path = format!("/proc/{}/ns/pid", process.pid);
        let held = File::open(&path);
        if process.status().is_some() {
            return Err(Error::precondition(format!("join PID namespace: process {}: it has ended", process.pid)));
        }
        Ok(Self(held.at("open", path)?))
    }

    /// Where it is found for as long as it is held.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

fn keep(kind: &str, namespace: &Path) -> Result<()> {
    let target = path(kind);
    fs::write(&target, "").at("make", target.display())?;
    mount(Some(namespace), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).at("bind", target.display())
}

/// Where a kept namespace is.
pub fn path(kind: &str) -> PathBuf {
    Path::new(NAMESPACES).join(kind)
}

/// Lets go of all of them.
pub fn drop_all() {
    for kind in ["ipc", "uts", "pid"] {
        // Those that were never made are not there.
        let _ = umount2(&path(kind), MntFlags::MNT_DETACH);
        let _ = fs::remove_file(path(kind));
    }
}
