//! Emptying and removing a cgroup, v1 or v2.
//!
//! Whoever asked for the undo may itself live in the cgroup; it and we step out first and are never killed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, fstatfs, openat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open};

use crate::deadline::Deadline;
use crate::process::{has_ended, kill};

const CGROUP_SUPER_MAGIC: i64 = 0x27_e0eb;
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
/// A process that has ended leaves its cgroup a moment later, and v1 tells nobody when.
const LINGER: Duration = Duration::from_millis(5);

/// Kill what is in the cgroup and remove it, children first. `caller` is the process that asked for the undo.
pub fn remove(path: &Path, caller: Option<i32>, deadline: Deadline) -> Result<(), String> {
    if !is_cgroup(path)? {
        return Ok(());
    }
    let spared: Vec<i32> = caller.into_iter().chain([getpid().as_raw_pid()]).collect();
    let groups = tree(path)?;
    step_out(path, &groups, &spared)?;
    loop {
        kill_all(path, &groups, &spared, deadline)?;
        match remove_all(&groups) {
            Err(Errno::BUSY) if !deadline.is_over() => std::thread::sleep(LINGER),
            Err(error) => return Err(format!("rmdir: {error}")),
            Ok(()) => return Ok(()),
        }
    }
}

/// False when there is nothing; an error when it is something else than a cgroup.
fn is_cgroup(path: &Path) -> Result<bool, String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match openat(CWD, path, flags, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(false),
        Err(error) => return Err(format!("open: {error}")),
    };
    let kind = fstatfs(&dir).map_err(|error| format!("statfs: {error}"))?.f_type;
    match kind == CGROUP_SUPER_MAGIC || kind == CGROUP2_SUPER_MAGIC {
        true => Ok(true),
        false => Err("not a cgroup".to_owned()),
    }
}

/// The cgroup and all below it, children before parents.
fn tree(path: &Path) -> Result<Vec<PathBuf>, String> {
    let mut groups = vec![path.to_owned()];
    let mut at = 0;
    while let Some(group) = groups.get(at).cloned() {
        let entries = match fs::read_dir(&group) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("read {}: {error}", group.display())),
        };
        let children = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        groups.extend(children.map(|entry| entry.path()));
        at += 1;
    }
    groups.reverse();
    Ok(groups)
}

/// Move the spared ones that are inside to the nearest ancestor that takes them (v2 refuses inner cgroups).
fn step_out(path: &Path, groups: &[PathBuf], spared: &[i32]) -> Result<(), String> {
    let inside: Vec<i32> = members(groups)?.into_iter().filter(|pid| spared.contains(pid)).collect();
    for pid in inside {
        let ancestors = path.ancestors().skip(1).map(|group| group.join("cgroup.procs"));
        if !ancestors.take_while(|procs| procs.exists()).any(|procs| fs::write(procs, pid.to_string()).is_ok()) {
            return Err(format!("pid {pid}, which undoes it, lives in it and no cgroup above takes it"));
        }
    }
    Ok(())
}

fn members(groups: &[PathBuf]) -> Result<Vec<i32>, String> {
    let mut pids = Vec::new();
    for group in groups {
        match fs::read_to_string(group.join("cgroup.procs")) {
            Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
            // EOPNOTSUPP: a threaded cgroup; its processes are listed above it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) => {}
            Err(error) => return Err(format!("read members of {}: {error}", group.display())),
        }
    }
    Ok(pids)
}

/// Kill all members but the spared ones and wait for their end.
fn kill_all(path: &Path, groups: &[PathBuf], spared: &[i32], deadline: Deadline) -> Result<(), String> {
    thaw(groups);
    // Only v2 has it; where it is missing, or fails, the loop below does the same one by one.
    let _ = fs::write(path.join("cgroup.kill"), "1");
    loop {
        let seen = members(groups)?.into_iter().filter(|pid| !spared.contains(pid));
        let held: Vec<(i32, OwnedFd)> = seen.filter_map(|pid| Some((pid, pidfd(pid)?))).collect();
        if held.is_empty() {
            return Ok(());
        }
        // Who is a member now, after its pidfd was opened, is the process we hold.
        let members = members(groups)?;
        let victims = || held.iter().filter(|(pid, _)| members.contains(pid));
        for (pid, fd) in victims() {
            kill(fd, Signal::KILL).map_err(|error| format!("pid {pid}: {error}"))?;
        }
        for (pid, fd) in victims() {
            if !has_ended(fd, deadline)? {
                return Err(format!("pid {pid} did not end after SIGKILL"));
            }
        }
        if deadline.is_over() {
            return Err("processes keep appearing in it".to_owned());
        }
    }
}

/// Frozen members of a v1 freezer cgroup do not die before they are thawed; v2 needs nothing.
fn thaw(groups: &[PathBuf]) {
    for state in groups.iter().map(|group| group.join("freezer.state")).filter(|state| state.exists()) {
        // If it does not thaw, the members will not end, and that is what is reported.
        let _ = fs::write(state, "THAWED");
    }
}

fn pidfd(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid).filter(|_| pid > 1)?, PidfdFlags::empty()).ok()
}

fn remove_all(groups: &[PathBuf]) -> Result<(), Errno> {
    for group in groups {
        match rustix::fs::rmdir(group) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
