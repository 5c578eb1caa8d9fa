//! One container: its processes and what may be asked of it when.
//!
//! Owns: the table of its processes and its phase. Must never happen: a request that comes twice does its work twice.

pub mod connect;
pub mod create;
pub mod exec;
pub mod id;
pub mod pause;
pub mod signal;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::task::AbortHandle;

use crate::cgroup::oom::Watch;
use crate::cgroup::{self, Cgroup};
use crate::error::{Context, Error, Result};
use crate::paths;
use crate::process::launch::Crun;
use crate::process::Process;
use crate::protocol::agent::{CgroupStats, StatsContainerResponse};
use crate::protocol::oci;
use crate::storage::submounts::Submounts;
use crate::sync::lock;

/// Where a container stands. That its process has ended is the process's to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Made, waiting for `StartContainer`.
    Created,
    /// Started.
    Running,
    /// Frozen.
    Paused,
    /// `RemoveContainer` is at work.
    Removing,
    /// A removal failed.
    Broken,
}

/// Who made it and unmakes it.
pub enum Kind {
    /// The holder of the pod's PID namespace, a child of the agent.
    Pause {
        /// Who starts connections into the pod.
        crun: Crun,
    },
    /// A container of crun's.
    Crun {
        /// How crun is run.
        crun: Crun,
        /// Whether its spec has hooks for after its start.
        hooks: bool,
    },
}

/// A container that was created.
pub struct Container {
    /// Its id, checked.
    pub id: String,
    /// How it was made.
    pub kind: Kind,
    /// Its first process.
    pub init: Arc<Process>,
    /// Its control group; none where groups are off.
    pub cgroup: Option<Cgroup>,
    /// Mount points it holds.
    pub storages: Vec<String>,
    /// Mounts of the host it holds.
    pub submounts: Submounts,
    /// Its own process as it was asked for; execs take from it what they do not say.
    template: oci::Process,
    phase: Mutex<Phase>,
    execs: Mutex<exec::Table>,
    oom: Option<Arc<Watch>>,
    follower: Option<AbortHandle>,
}

impl Container {
    /// Where it stands.
    pub fn phase(&self) -> Phase {
        *lock(&self.phase)
    }

    /// Moves from one phase to another.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` when it is in neither of them; moving to where it stands is an error too.
    pub fn step(&self, from: Phase, to: Phase) -> Result<()> {
        let mut phase = lock(&self.phase);
        if *phase != from {
            return Err(Error::precondition(format!("container {}: it is {:?}, not {from:?}", self.id, *phase)));
        }
        *phase = to;
        Ok(())
    }

    /// Begins the removal; a second one is told that the container is gone.
    pub fn begin_removal(&self) -> Result<()> {
        let mut phase = lock(&self.phase);
        if *phase == Phase::Removing {
            return Err(Error::not_found(format!("container {}: it is being removed", self.id)));
        }
        *phase = Phase::Removing;
        Ok(())
    }

    /// The removal failed half-way and may be tried again; nothing else is possible but to look and to kill.
    pub fn abandon_removal(&self) {
        *lock(&self.phase) = Phase::Broken;
    }

    /// Lets its process run.
    pub async fn start(&self) -> Result<()> {
        self.step(Phase::Created, Phase::Running)?;
        if let Kind::Crun { crun, hooks } = &self.kind {
            // Back to where it was only if nobody has begun the removal meanwhile; then that wins.
            crun.start(&self.id, *hooks).await.inspect_err(|_| drop(self.step(Phase::Running, Phase::Created)))?;
        }
        Ok(())
    }

    /// A process of it: the first one if `exec` is empty or the container's own id.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() || exec == self.id {
            return Ok(self.init.clone());
        }
        let found = lock(&self.execs).get(exec);
        found.ok_or_else(|| Error::not_found(format!("process {exec} of container {}: there is none", self.id)))
    }

    /// Freezes every process of it.
    pub async fn pause(&self) -> Result<()> {
        let cgroup = self.group()?;
        self.step(Phase::Running, Phase::Paused)?;
        cgroup.freeze(true).await.inspect_err(|_| drop(self.step(Phase::Paused, Phase::Running)))
    }

    /// Lets them go on.
    pub async fn resume(&self) -> Result<()> {
        let cgroup = self.group()?;
        self.step(Phase::Paused, Phase::Running)?;
        cgroup.freeze(false).await.inspect_err(|_| drop(self.step(Phase::Running, Phase::Paused)))
    }

    /// What it uses.
    pub fn stats(&self) -> Result<StatsContainerResponse> {
        let stats: CgroupStats = cgroup::stats::collect(self.group()?);
        let network_stats = cgroup::stats::network();
        Ok(StatsContainerResponse { cgroup_stats: Some(stats).into(), network_stats, ..Default::default() })
    }

    /// Its control group.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` where groups are off.
    pub fn group(&self) -> Result<&Cgroup> {
        let none = || Error::precondition(format!("container {}: it has no control group", self.id));
        self.cgroup.as_ref().ok_or_else(none)
    }

    /// Undoes everything but its storages: kills what runs, waits for the first process, lets crun clean up.
    pub async fn destroy(&self) -> Result<()> {
        self.kill_all();
        match &self.kind {
            Kind::Pause { .. } => {
                self.init.wait().await;
                // Empty now; should the kernel not agree, a directory stays until the guest ends.
                let _ = self.cgroup.as_ref().map(Cgroup::remove);
            }
            Kind::Crun { crun, .. } => {
                crun.delete(&self.id).await?;
                self.init.wait().await;
            }
        }
        remove_bundle(&paths::bundle(&self.id))
    }
}

fn remove_bundle(bundle: &Path) -> Result<()> {
    match fs::remove_dir_all(bundle) {
        // The pause has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.at("remove", bundle.display()),
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(follower) = &self.follower {
            follower.abort();
        }
    }
}

/// Processes by exec id.
type Processes = HashMap<String, Arc<Process>>;
