//! Collects every child that ends: our own, and the orphans that become ours.
//!
//! Owns: the only `waitpid` of the process. Must never happen: an exit code is lost because the child ended before
//! anyone knew its pid.
//!
//! crun hands a container's process over by exiting: the process becomes our child then, and may be dead before its pid file
//! was read. While a launch is under way, exits nobody asked for are therefore kept.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;
use tokio::signal::unix::{signal, SignalKind};
use tokio::sync::oneshot;

use crate::sync::lock;

/// How a process ended: its status, or 128 + the signal that killed it.
pub type Status = i32;

/// Resolves when the process has ended.
pub type Exit = oneshot::Receiver<Status>;

#[derive(Default)]
struct Table {
    waiting: HashMap<Pid, oneshot::Sender<Status>>,
    unclaimed: HashMap<Pid, Status>,
    launches: usize,
}

/// The table of children; cheap to clone.
#[derive(Clone, Default)]
pub struct Reaper(Arc<Mutex<Table>>);

impl Reaper {
    /// Reaps until the runtime ends.
    pub async fn run(self) -> io::Result<()> {
        let mut children = signal(SignalKind::child())?;
        loop {
            self.reap();
            if children.recv().await.is_none() {
                return Ok(());
            }
        }
    }

    /// Starts a child. The lock is held so that its end cannot be reaped before it is in the table.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Pid, Exit)> {
        let mut table = lock(&self.0);
        let pid = Pid::from_raw(command.spawn()?.id().cast_signed());
        Ok((pid, table.expect(pid)))
    }

    /// Like `spawn`, for a child made by `fork`, which returns its pid.
    pub fn spawn_with(&self, fork: impl FnOnce() -> nix::Result<Pid>) -> nix::Result<(Pid, Exit)> {
        let mut table = lock(&self.0);
        let pid = fork()?;
        Ok((pid, table.expect(pid)))
    }

    /// Announces that somebody else's child is about to become ours. Keep the guard until after `adopt`.
    pub fn launch(&self) -> Launch {
        lock(&self.0).launches += 1;
        Launch(self.clone())
    }

    fn reap(&self) {
        let mut table = lock(&self.0);
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => table.ended(pid, status),
                Ok(WaitStatus::Signaled(pid, signal, _)) => table.ended(pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return log::error!("waitpid: {error}"),
            }
        }
    }
}

impl Table {
    fn expect(&mut self, pid: Pid) -> Exit {
        let (sender, exit) = oneshot::channel();
        self.waiting.insert(pid, sender);
        exit
    }

    fn ended(&mut self, pid: Pid, status: Status) {
        if let Some(sender) = self.waiting.remove(&pid) {
            // The receiver may have lost interest; that is its business.
            let _ = sender.send(status);
        } else if self.launches > 0 {
            self.unclaimed.insert(pid, status);
        }
    }
}

/// While it lives, exits of unknown processes are kept.
pub struct Launch(Reaper);

impl Launch {
    /// Takes over a process that has become our child, be it alive or dead already.
    pub fn adopt(&self, pid: Pid) -> Exit {
        let mut table = lock(&self.0 .0);
        let unclaimed = table.unclaimed.remove(&pid);
        let exit = table.expect(pid);
        if let Some(status) = unclaimed {
            table.ended(pid, status);
        }
        exit
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let mut table = lock(&self.0 .0);
        table.launches -= 1;
        if table.launches == 0 {
            table.unclaimed.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_before_adoption_is_kept_for_the_launch() {
        let reaper = Reaper::default();
        let launch = reaper.launch();
        lock(&reaper.0).ended(Pid::from_raw(77), 5);
        assert_eq!(launch.adopt(Pid::from_raw(77)).try_recv(), Ok(5));
    }

    #[test]
    fn exit_after_adoption() {
        let reaper = Reaper::default();
        let launch = reaper.launch();
        let mut exit = launch.adopt(Pid::from_raw(77));
        drop(launch);
        assert!(exit.try_recv().is_err());
        lock(&reaper.0).ended(Pid::from_raw(77), 137);
        assert_eq!(exit.try_recv(), Ok(137));
    }

    #[test]
    fn orphans_are_forgotten_when_no_launch_is_under_way() {
        let reaper = Reaper::default();
        let (first, second) = (reaper.launch(), reaper.launch());
        lock(&reaper.0).ended(Pid::from_raw(1), 0);
        drop(first);
        assert_eq!(lock(&reaper.0).unclaimed.len(), 1);
        drop(second);
        assert!(lock(&reaper.0).unclaimed.is_empty());
        lock(&reaper.0).ended(Pid::from_raw(2), 0);
        assert!(lock(&reaper.0).unclaimed.is_empty());
    }
}
