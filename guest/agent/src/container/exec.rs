//! Further processes of a container.
//!
//! Owns: the names of execs and how long ended ones are remembered. Must never happen: probes that run every second for
//! months fill the guest's memory.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Container, Kind, Phase, Processes};
use crate::error::{Code, Error, Result};
use crate::oci;
use crate::process::Process;
use crate::protocol::oci as message;
use crate::sync::lock;

/// Ended execs that are remembered so that a repeated `WaitProcess` gets the same answer. Only those are forgotten
/// whose output was read to its end; of the others, the oldest go when there are `UNREAD`.
const REMEMBERED: usize = 256;
const UNREAD: usize = 4096;

/// The execs of one container.
#[derive(Default)]
pub struct Table {
    processes: Processes,
    /// Names that are taken, but whose process is not there yet.
    starting: std::collections::HashSet<String>,
    /// In order of start.
    order: VecDeque<String>,
}

impl Table {
    /// The process with this name.
    pub fn get(&self, id: &str) -> Option<Arc<Process>> {
        self.processes.get(id).cloned()
    }

    /// Takes a name. That of a process whose end the host was told of is free again: the host gives names, and gives one a second
    /// time only after it has forgotten the first. One whose end nobody asked for keeps it, so that a request that is made again
    /// does nothing twice.
    fn reserve(&mut self, id: &str) -> Result<()> {
        let taken = self.processes.get(id).is_some_and(|process| !process.told());
        if taken || !self.starting.insert(id.to_owned()) {
            return Err(Error::new(Code::ALREADY_EXISTS, format!("process {id}: there is one already")));
        }
        Ok(())
    }

    fn insert(&mut self, id: &str, process: Arc<Process>) {
        self.starting.remove(id);
        if self.processes.insert(id.to_owned(), process).is_some() {
            self.order.retain(|one| one != id);
        }
        self.order.push_back(id.to_owned());
        self.forget(REMEMBERED, |process| process.spent());
        self.forget(UNREAD, |process| process.status().is_some());
    }

    /// Forgets the oldest that may be forgotten while more than `limit` such are there.
    fn forget(&mut self, limit: usize, may: impl Fn(&Process) -> bool) {
        let may = |processes: &Processes, id: &String| processes.get(id).is_none_or(|process| may(process));
        let mut surplus = self.order.iter().filter(|id| may(&self.processes, id)).count().saturating_sub(limit);
        let processes = &mut self.processes;
        self.order.retain(|id| {
            let goes = surplus > 0 && may(processes, id);
            if goes {
                surplus -= 1;
                processes.remove(id);
            }
            !goes
        });
    }
}

impl Container {
    /// Starts a process in the container; returns once it runs, or has failed to.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` for a name in use; `FAILED_PRECONDITION` when the container does not run; `INVALID_ARGUMENT` with crun's own
    /// words when the process cannot be started, for instance because there is no such command.
    pub async fn exec(&self, id: &str, process: &message::Process) -> Result<()> {
        self.check_running()?;
        if id == self.id {
            return Err(Error::new(Code::ALREADY_EXISTS, format!("process {id}: it is the container's own")));
        }
        lock(&self.execs).reserve(id)?;
        match self.spawn(process).await {
            Ok(process) => lock(&self.execs).insert(id, process),
            Err(error) => {
                lock(&self.execs).starting.remove(id);
                return Err(error);
            }
        }
        Ok(())
    }

    fn check_running(&self) -> Result<()> {
        if self.phase() != Phase::Running || self.init.status().is_some() {
            let state = if self.init.status().is_some() { "stopped".to_owned() } else { format!("{:?}", self.phase()) };
            return Err(Error::precondition(format!("exec: container {}: it is {state}, not Running", self.id)));
        }
        Ok(())
    }

    async fn spawn(&self, process: &message::Process) -> Result<Arc<Process>> {
        let Kind::Crun { crun, .. } = &self.kind else {
            return Err(Error::precondition(format!("exec: container {}: it is the pod's pause", self.id)));
        };
        let process = self.complete(process);
        let text = oci::process(&process).to_string();
        let launched = crun.exec(&self.id, &text, process.Terminal, process.OOMScoreAdj).await?;
        let oom = self.oom.clone();
        Ok(Process::start(launched.pid, launched.exit, launched.streams, move || {
            if let Some(oom) = oom {
                oom.check();
            }
        }))
    }

    /// What an exec does not say it takes from the container's own process.
    fn complete(&self, process: &message::Process) -> message::Process {
        let (mut process, template) = (process.clone(), &self.template);
        if process.Env.is_empty() {
            process.Env.clone_from(&template.Env);
        }
        if process.Cwd.is_empty() {
            process.Cwd.clone_from(&template.Cwd);
        }
        if process.Capabilities.is_none() {
            process.Capabilities.clone_from(&template.Capabilities);
        }
        if process.Rlimits.is_empty() {
            process.Rlimits.clone_from(&template.Rlimits);
        }
        if process.User.is_none() {
            process.User.clone_from(&template.User);
        }
        process
    }
}
