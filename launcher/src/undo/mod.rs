//! The only undo there is: walks the ledger backwards and takes away what it names.
//!
//! `undo POD [scope]` runs it for the daemon's own teardown; `delete` and `start` run it in-process on what a dead daemon left.

mod cgroup;
mod mount;
mod netlink;
mod path;
mod tree;
mod walk;

use std::path::Path;
use std::time::Duration;

use rustix::fd::AsFd;
use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use crate::deadline::Deadline;
use crate::failure::{During, Outcome};
use crate::ledger::{Append, Ledger, Object, PodDir, Record, Who};
use crate::process;
use crate::unit;
use walk::walk;

/// The scope that means all scopes.
pub const POD: &str = "pod";

/// One undoing of (a scope of) a pod.
pub struct Undo<'a> {
    pub pod: &'a Path,
    pub scope: &'a str,
    pub deadline: Deadline,
    /// The process that asked for it, which is never killed: a daemon that tears its own pod down.
    pub caller: Option<i32>,
    /// Whether it is the pod's unit itself that undoes, after its daemon: it ends when we do.
    pub in_unit: bool,
}

impl Undo<'_> {
    /// Undo; answer a line for each thing that could not be.
    pub fn run(&self) -> Outcome<Vec<String>> {
        let Some(dir) = PodDir::open(self.pod)? else { return Ok(Vec::new()) };
        let mut left = match Ledger::read(&dir)? {
            Some(ledger) => self.undo_records(&dir, ledger)?,
            // The launcher died between making the directory and its ledger.
            None => Vec::new(),
        };
        if self.scope == POD && left.is_empty() {
            left.extend(self.remove_pod(&dir).err());
        }
        Ok(left.into_iter().map(|line| format!("undo: {}: {line}", self.pod.display())).collect())
    }

    fn undo_records(&self, dir: &PodDir, mut ledger: Ledger) -> Outcome<Vec<String>> {
        if self.scope == POD && self.end_daemon(dir, &ledger)? {
            ledger = Ledger::read(dir)?.unwrap_or(ledger);
        }
        ledger.live.retain(|record| !self.is_caller(record));
        // On a full disk not even a torn line can be ended; undoing goes on, and twice is harmless.
        let mut journal = Append::open(dir, Who::Undo).unwrap_or(None);
        let left = walk(&ledger.live, self.scope, |record| {
            self.undo(record)?;
            let _ = journal.as_mut().map(|ledger| ledger.undone(record.n));
            Ok(())
        });
        Ok(left.into_iter().map(|leftover| format!("record {}: {}", leftover.n, leftover.why)).collect())
    }

    /// A daemon that lives would go on making things, and a keeper would start another: they end before anything else, the keeper
    /// first. True if there was one to end.
    fn end_daemon(&self, dir: &PodDir, ledger: &Ledger) -> Outcome<bool> {
        let unit = self.unit_to_end(ledger);
        let unheard = unit.is_some_and(|unit| unit::stop_soon(unit, self.deadline).is_err());
        if unheard && let Ok(Some(mut ledger)) = Append::open(dir, Who::Undo) {
            // What the unit starts next, if it does, reads it there.
            let _ = ledger.phase("stopping");
        }
        let keeper = self.end_first(ledger, "keeper").during("undo", "process keeper")?;
        // The keeper may have started another daemon since the ledger was read.
        let latest = if keeper { Ledger::read(dir)? } else { None };
        let daemon = self.end_first(latest.as_ref().unwrap_or(ledger), "daemon").during("undo", "process daemon")?;
        if let Some(unit) = unit.filter(|_| !unheard) {
            unit::stop(unit, self.deadline).during("undo", unit)?;
        }
        Ok(keeper || daemon || unit.is_some())
    }

    /// The unit that would start another daemon; none if we are one of its processes.
    fn unit_to_end<'l>(&self, ledger: &'l Ledger) -> Option<&'l str> {
        let daemon = ledger.process("daemon").and_then(|daemon| daemon.identity);
        let ours = self.in_unit || daemon.is_some_and(|daemon| self.spares(daemon.pid));
        ledger.unit().filter(|_| !ours)
    }

    fn end_first(&self, ledger: &Ledger, what: &str) -> Result<bool, String> {
        match ledger.process(what).and_then(|process| process.identity) {
            Some(process) if !self.spares(process.pid) => process::end(process, None, self.deadline).map(|()| true),
            _ => Ok(false),
        }
    }

    /// The caller's record stays: it lives, and ends by itself.
    fn is_caller(&self, record: &Record) -> bool {
        match &record.object {
            Object::Process(process) => process.identity.is_some_and(|identity| self.spares(identity.pid)),
            _ => false,
        }
    }

    /// Whoever asked for the undo: our parent, or the daemon that became us as its last act.
    fn spares(&self, pid: i32) -> bool {
        self.caller == Some(pid) || rustix::process::getpid().as_raw_pid() == pid
    }

    fn undo(&self, record: &Record) -> Result<(), String> {
        match &record.object {
            Object::Process(process) => match process.identity {
                Some(identity) => process::end(identity, process.grace_ms.map(Duration::from_millis), self.deadline),
                None => Ok(()),
            },
            Object::Mount(path) => mount::detach(self.pod, path),
            Object::Dir(path) => tree::remove(self.pod, path, self.deadline),
            Object::File(path) => mount::unlink(self.pod, path),
            Object::Cgroup(path) => cgroup::remove(path, self.caller, self.deadline),
            Object::Netns(path) => mount::remove_netns(self.pod, path),
            Object::Link(link) => netlink::delete_link(link),
            Object::Qdisc(link) => netlink::delete_ingress(link),
            // Seen to before anything else.
            Object::Unit(_) => Ok(()),
            Object::Unknown(why) => Err(why.clone()),
        }
    }

    /// The directory goes last, and in it the ledger: as long as anything is left, so is the list of it.
    fn remove_pod(&self, dir: &PodDir) -> Result<(), String> {
        tree::empty(dir.as_fd(), "ledger", self.deadline)?;
        match unlinkat(dir, "ledger", AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(format!("remove ledger: {error}")),
        }
        match rustix::fs::rmdir(dir.path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(format!("remove pod directory: {error}")),
        }
    }
}
