//! Processes by identity: a pid alone may by now be somebody else's.

use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::deadline::Deadline;

/// A pid and the time that process started: clock ticks since boot, field 22 of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub pid: i32,
    pub start: u64,
}

/// The kernel's flag of a task that has begun to exit.
const PF_EXITING: u64 = 0x4;

impl Identity {
    /// Who has this pid now; None if nobody.
    pub fn of(pid: i32) -> Result<Option<Self>, String> {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => match start_time(&stat) {
                Some(start) => Ok(Some(Self { pid, start })),
                None => Err(format!("/proc/{pid}/stat makes no sense")),
            },
            Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(format!("/proc/{pid}/stat: {error}")),
        }
    }

    /// Whether it has begun to exit, or is gone: its end cannot be far, however long it takes to be seen.
    pub fn is_exiting(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        start_time(&stat) != Some(self.start) || field(&stat, 9).is_none_or(|flags| flags & PF_EXITING != 0)
    }

    /// A pidfd of this very process while it runs; None once it has ended.
    pub fn open(&self) -> Result<Option<OwnedFd>, String> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            // EINVAL: the number now belongs to a thread that leads no process.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(format!("pidfd_open {pid:?}: {error}")),
        };
        // The pidfd holds on to whoever has the pid, so comparing after opening leaves no gap.
        if Self::of(self.pid)? != Some(*self) || has_ended(&fd, Deadline::after(Duration::ZERO))? {
            return Ok(None);
        }
        Ok(Some(fd))
    }
}

/// Wait for the process behind a pidfd to end.
pub fn has_ended(pidfd: &OwnedFd, deadline: Deadline) -> Result<bool, String> {
    deadline.wait(pidfd.as_fd(), PollFlags::IN).map_err(|error| format!("wait for its end: {error}"))
}

/// Signal through a pidfd; a process that has just ended is fine.
pub fn kill(pidfd: &OwnedFd, signal: Signal) -> Result<(), String> {
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(format!("send signal: {error}")),
    }
}

/// End that process: ask for `grace` if there is one, then kill, and wait for the end.
pub fn end(process: Identity, grace: Option<Duration>, deadline: Deadline) -> Result<(), String> {
    let Some(pidfd) = process.open()? else { return Ok(()) };
    if let Some(grace) = grace {
        kill(&pidfd, Signal::TERM)?;
        // Half of what is left stays for the kill.
        if has_ended(&pidfd, deadline.within(grace.min(deadline.left() / 2)))? {
            return Ok(());
        }
    }
    kill(&pidfd, Signal::KILL)?;
    match has_ended(&pidfd, deadline)? {
        true => Ok(()),
        false => Err(format!("pid {} did not end after SIGKILL", process.pid)),
    }
}

fn start_time(stat: &str) -> Option<u64> {
    field(stat, 22)
}

/// The command in parentheses may itself hold spaces and parentheses; the last one ends it. Field 3 follows.
fn field(stat: &str, number: usize) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_command_may_look_like_anything() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20";
        assert_eq!(start_time(&format!("42 (a) b) (c) {tail}")), Some(987_654));
        assert_eq!(start_time("42 (x) S 1"), None);
        assert_eq!(start_time(""), None);
    }

    #[test]
    fn another_start_time_is_another_process() -> Result<(), Box<dyn std::error::Error>> {
        let us = Identity::of(i32::try_from(std::process::id())?)?.ok_or("we are gone")?;
        assert!(us.open()?.is_some());
        assert!(Identity { start: us.start + 1, ..us }.open()?.is_none());
        end(Identity { start: us.start + 1, ..us }, None, Deadline::after(Duration::ZERO))?;
        Ok(())
    }

    #[test]
    fn ending_is_idempotent() -> Result<(), Box<dyn std::error::Error>> {
        let mut child = Command::new("sleep").arg("100").stdout(Stdio::null()).spawn()?;
        let process = Identity::of(i32::try_from(child.id())?)?.ok_or("not started")?;
        let deadline = Deadline::after(Duration::from_secs(5));
        end(process, Some(Duration::from_secs(5)), deadline)?;
        end(process, None, deadline)?;
        assert!(process.open()?.is_none(), "a zombie has ended");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait()?), Some(libc::SIGTERM));
        Ok(())
    }
}
