//! A container's control group, version 2.
//!
//! Owns: `/sys/fs/cgroup/kata/<container>`. The host's `cgroupsPath` is not used: it may climb, and nothing in the guest depends
//! on it. Must never happen: waiting for a state by looking at it again and again.

pub mod oom;
pub mod stats;
pub mod update;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;
use tokio::time::timeout;

use crate::error::{Context, Error, Result};
use crate::fd::watch;
use crate::paths::CGROUPS;

/// The group that holds all containers' groups, as crun is told it.
const PARENT: &str = "/kata";

/// How long freezing may take. A task that sleeps in the kernel delays it.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// One control group that exists or will be made by crun.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
}

/// What goes into a container's `linux.cgroupsPath`.
pub fn spec_path(container: &str) -> String {
    format!("{PARENT}/{container}")
}

/// Enables every controller for the containers' groups. Returns what could not be enabled.
pub fn enable_controllers() -> Vec<String> {
    let parent = PathBuf::from(format!("{CGROUPS}{PARENT}"));
    let mut problems = enable_in(Path::new(CGROUPS));
    match fs::create_dir_all(&parent) {
        Ok(()) => problems.extend(enable_in(&parent)),
        Err(error) => problems.push(format!("make: {}: {error}", parent.display())),
    }
    problems
}

/// One write per controller: one that is refused must not keep the others back.
fn enable_in(group: &Path) -> Vec<String> {
    let available = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    let enable = |name: &str| {
        let result = fs::write(group.join("cgroup.subtree_control"), format!("+{name}"));
        result.err().map(|error| format!("enable controller {name}: {}: {error}", group.display()))
    };
    available.split_whitespace().filter_map(enable).collect()
}

impl Cgroup {
    /// The group of a container whose id was checked.
    pub fn of(container: &str) -> Self {
        Self { path: PathBuf::from(format!("{CGROUPS}{PARENT}/{container}")) }
    }

    /// Makes the group and moves a process into it; for containers crun knows nothing of.
    pub fn make(&self, pid: Pid) -> Result<()> {
        fs::create_dir_all(&self.path).at("make", self.path.display())?;
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Removes the group, which must be empty.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_dir(&self.path)
    }

    /// Reads a file of the group.
    pub fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.path.join(file))
    }

    /// Writes a file of the group.
    pub fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value).at("write", format_args!("{} ({value:?})", path.display()))
    }

    /// Whether the group has this file, that is, this controller.
    pub fn has(&self, file: &str) -> bool {
        self.path.join(file).exists()
    }

    /// Kills every process in the group and below, also frozen ones and those forked meanwhile.
    pub fn kill(&self) -> Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Stops or continues every process of the group, and waits until they are.
    pub async fn freeze(&self, freeze: bool) -> Result<()> {
        let wanted = if freeze { "1" } else { "0" };
        let events = self.watch("cgroup.events").at("watch", self.path.display())?;
        self.write("cgroup.freeze", wanted)?;
        let reached = async {
            while value(&self.read("cgroup.events").at("read", "cgroup.events")?, "frozen") != Some(u64::from(freeze)) {
                events.changed().await.at("watch", "cgroup.events")?;
            }
            Ok(())
        };
        let late = || Error::timeout(format!("freeze: {}: not {wanted} within {FREEZE_LIMIT:?}", self.path.display()));
        timeout(FREEZE_LIMIT, reached).await.unwrap_or_else(|_| Err(late()))
    }

    /// Watches a file of the group for changes from now on.
    pub fn watch(&self, file: &str) -> io::Result<Changes> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(&self.path.join(file), AddWatchFlags::IN_MODIFY)?;
        Ok(Changes(watch(Watcher(inotify), Interest::READABLE)?))
    }
}

/// An inotify in the form tokio wants.
struct Watcher(Inotify);

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// A subscription to changes of one file.
pub struct Changes(AsyncFd<Watcher>);

impl Changes {
    /// Returns after at least one change since the last call.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            match guard.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?)) {
                Ok(events) => return events.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

/// The number after `key` in a file of lines `key value`.
pub(crate) fn value(text: &str, key: &str) -> Option<u64> {
    pairs(text).find(|(name, _)| *name == key).map(|(_, value)| value)
}

/// All `key value` lines whose value is a number.
pub(crate) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}
