//! Signals for containers, with the rules of Kata's agent.

use std::fs;

use super::Container;
use crate::error::Result;
use crate::process::Process;

impl Container {
    /// Signals a process of the container. An empty `exec` is the container: SIGKILL then kills everything in it, any other signal
    /// goes to its first process.
    ///
    /// # Errors
    /// `NOT_FOUND` when there is no such process or it has ended, but SIGKILL for the container always succeeds.
    pub fn signal(&self, exec: &str, signal: i32) -> Result<()> {
        if exec.is_empty() && signal == libc::SIGKILL {
            self.kill_all();
            return Ok(());
        }
        let process = self.process(exec)?;
        let deaf = signal == libc::SIGTERM && (exec.is_empty() || exec == self.id) && ignores_termination(&process);
        process.signal(if deaf { libc::SIGKILL } else { signal })
    }

    /// Kills everything in the container. Through the group where there is one, which nothing escapes; else the end of the first process
    /// takes its PID namespace with it.
    pub fn kill_all(&self) {
        if let Some(cgroup) = &self.cgroup {
            match cgroup.kill() {
                Ok(()) => return,
                Err(error) => log::debug!("container {}: {error}", self.id),
            }
        }
        // It may have ended already.
        let _ = self.init.signal(libc::SIGKILL);
    }
}

/// Whether SIGTERM would do nothing: the first process of a PID namespace is only sent what it handles. Without this, stopping such a
/// container takes its whole grace period.
fn ignores_termination(process: &Process) -> bool {
    if process.status().is_some() {
        return false;
    }
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
    deaf_init(&status) && !waits_for_signals(&format!("/proc/{}/task", process.pid))
}

/// Whether a thread is in `sigwait`, as small inits are all the time. The masks do not tell: the kernel shows the signals waited for as
/// not blocked meanwhile.
fn waits_for_signals(tasks: &str) -> bool {
    let threads = fs::read_dir(tasks).into_iter().flatten().flatten();
    let calls = threads.filter_map(|thread| fs::read_to_string(thread.path().join("syscall")).ok());
    let number = libc::SYS_rt_sigtimedwait.to_string();
    calls.into_iter().any(|call| call.split(' ').next() == Some(&number))
}

fn deaf_init(status: &str) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let first = field("NSpid").and_then(|pids| pids.split_whitespace().last()) == Some("1");
    let bit = 1 << (libc::SIGTERM - 1);
    let has =
        |name| field(name).and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & bit != 0);
    first && !["SigBlk", "SigIgn", "SigCgt"].into_iter().any(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pids: &str, blocked: u64, ignored: u64, caught: u64) -> String {
        format!("Name:\tx\nNSpid:\t{pids}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n")
    }

    #[test]
    fn an_init_that_handles_nothing_is_deaf() {
        assert!(deaf_init(&status("812\t1", 0, 0, 0)));
        assert!(deaf_init(&status("812\t1", 0, 0, 1 << 1)));
    }

    #[test]
    fn one_that_catches_blocks_or_ignores_is_not() {
        let term = 1 << 14;
        assert!(!deaf_init(&status("812\t1", 0, 0, term)));
        assert!(!deaf_init(&status("812\t1", term, 0, 0)));
        assert!(!deaf_init(&status("812\t1", 0, term, 0)), "who ignores it on purpose is not overruled");
    }

    #[test]
    fn others_are_ended_by_the_signal_itself() {
        assert!(!deaf_init(&status("812\t7", 0, 0, 0)));
        assert!(!deaf_init(""));
    }
}
