//! The containers of the pod, from their names to their removal.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::namespaces::{self, Held};
use super::{Sandbox, Slot};
use crate::container::create::{create, Recipe};
use crate::container::id::{check_container, check_exec};
use crate::container::Container;
use crate::error::{Code, Error, Result};
use crate::protocol::agent::{CreateContainerRequest, ExecProcessRequest};
use crate::protocol::oci;
use crate::storage::block;
use crate::storage::submounts::Submounts;
use crate::sync::lock;

/// How long a removal takes at most when the request sets no limit: longer than crun's own.
const REMOVAL: Duration = Duration::from_secs(180);

impl Sandbox {
    /// The container with this id.
    ///
    /// # Errors
    /// `NOT_FOUND`, also while it is being made.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        match lock(&self.state).containers.get(id) {
            Some(Slot::Made(container)) => Ok(container.clone()),
            _ => Err(Error::not_found(format!("container {id:.128}: there is none"))),
        }
    }

    /// Ids of all containers that were made.
    pub(super) fn containers(&self) -> Vec<String> {
        let state = lock(&self.state);
        let made = state.containers.iter().filter(|(_, slot)| matches!(slot, Slot::Made(_)));
        made.map(|(id, _)| id.clone()).collect()
    }

    /// Makes a container.
    ///
    /// # Errors
    /// `ALREADY_EXISTS`, `INVALID_ARGUMENT`; nothing of the container is left then.
    pub async fn create_container(&self, request: CreateContainerRequest) -> Result<()> {
        let id = request.container_id.clone();
        check_container(&id)?;
        if !request.exec_id.is_empty() && request.exec_id != id {
            check_exec(&request.exec_id)?;
        }
        self.take_name(&id)?;
        match self.make_container(request).await {
            Ok(container) => {
                lock(&self.state).containers.insert(id, Slot::Made(Arc::new(container)));
                Ok(())
            }
            Err(error) => {
                lock(&self.state).containers.remove(&id);
                Err(error)
            }
        }
    }

    fn take_name(&self, id: &str) -> Result<()> {
        let mut state = lock(&self.state);
        if !state.created {
            return Err(Error::precondition("create container: the sandbox was not created yet"));
        }
        if state.containers.contains_key(id) {
            return Err(Error::new(Code::ALREADY_EXISTS, format!("container {id}: there is one already")));
        }
        state.containers.insert(id.to_owned(), Slot::Taken);
        Ok(())
    }

    async fn make_container(&self, request: CreateContainerRequest) -> Result<Container> {
        unsupported(&request)?;
        let joined = self.joined(&request.OCI)?;
        let devices = block::devices(&request.devices, self.tools.options.hotplug_timeout).await?;
        let storages = self.storages.add_all(&request.storages).await?;
        let spec = request.OCI.unwrap_or_default();
        let submounts = Submounts::hold(&spec).await;
        let recipe = Recipe {
            id: request.container_id,
            spec,
            storages: storages.clone(),
            submounts: submounts.clone(),
            namespaces: self.shared_namespaces(request.sandbox_pidns, joined.as_ref()),
            devices,
        };
        let made = create(recipe, &self.tools).await;
        if made.is_err() {
            submounts.release().await;
            self.storages.remove_all(&storages).await;
        }
        let container = made?;
        self.keep_pid_namespace(&container);
        Ok(container)
    }

    fn shared_namespaces(&self, pid: bool, joined: Option<&Held>) -> Vec<(&'static str, String)> {
        let path = |kind: &'static str| (kind, namespaces::path(kind).display().to_string());
        let pid = pid && joined.is_none() && lock(&self.state).pid_kept;
        let kept = ["ipc", "uts"].into_iter().chain(pid.then_some("pid")).map(path);
        kept.chain(joined.map(|held| ("pid", held.path()))).collect()
    }

    /// The PID namespace of the container that this one names as its own; it has to be held until the container is made.
    fn joined(&self, spec: &oci::Spec) -> Result<Option<Held>> {
        let pid = spec.Linux.Namespaces.iter().find(|namespace| namespace.Type == "pid");
        let target = pid.and_then(|namespace| namespace.Path.strip_prefix(namespaces::OF_CONTAINER));
        target.map(|id| Held::pid_of(&self.container(id)?.init)).transpose()
    }

    /// The first container's PID namespace is the pod's, for containers that ask to share it.
    fn keep_pid_namespace(&self, container: &Container) {
        if std::mem::replace(&mut lock(&self.state).pid_kept, true) {
            return;
        }
        if let Err(error) = namespaces::keep_pid(container.init.pid) {
            lock(&self.state).pid_kept = false;
            log::warn!("the pod's containers cannot share processes: {error}");
        }
    }

    /// Starts a further process in a container.
    pub async fn exec(&self, request: ExecProcessRequest) -> Result<()> {
        let container = self.container(&request.container_id)?;
        check_exec(&request.exec_id)?;
        let process = request.process.as_ref().filter(|process| !process.Args.is_empty());
        let process = process.ok_or_else(|| Error::invalid("exec: process: it has no arguments"))?;
        container.exec(&request.exec_id, process).await
    }

    /// Removes a container, killing what still runs in it.
    ///
    /// # Errors
    /// `NOT_FOUND`; `DEADLINE_EXCEEDED` after `seconds`, when it then can be tried again.
    pub async fn remove(&self, id: &str, seconds: u32) -> Result<()> {
        let container = self.container(id)?;
        container.begin_removal()?;
        let limit = if seconds == 0 { REMOVAL } else { Duration::from_secs(seconds.into()).min(REMOVAL) };
        let late = || Error::timeout(format!("remove container: {id}: not done within {limit:?}"));
        let destroyed = timeout(limit, container.destroy()).await.unwrap_or_else(|_| Err(late()));
        if let Err(error) = destroyed {
            container.abandon_removal();
            return Err(error);
        }
        container.submounts.release().await;
        self.storages.remove_all(&container.storages).await;
        lock(&self.state).containers.remove(id);
        Ok(())
    }
}

/// Parts of the protocol this agent does not have; ignoring them would run the container without what it needs.
fn unsupported(request: &CreateContainerRequest) -> Result<()> {
    let asked = [
        ("shared_mounts", !request.shared_mounts.is_empty()),
        ("string_user", request.string_user.is_some()),
        ("stdin_port, stdout_port, stderr_port", (request.stdin_port | request.stdout_port | request.stderr_port) != 0),
    ];
    match asked.into_iter().find(|(_, asked)| *asked) {
        Some((field, _)) => {
            Err(Error::new(Code::UNIMPLEMENTED, format!("create container: {field}: not supported by this agent")))
        }
        None => Ok(()),
    }
}
