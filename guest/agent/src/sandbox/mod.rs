//! The pod: its containers, its storages and its shared namespaces.
//!
//! Owns: the table of containers. Must never happen: two requests make the same container, or one that failed leaves its name taken.

mod containers;
pub mod namespaces;
pub mod sysctl;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use futures::future::join_all;
use nix::mount::{mount, MsFlags};
use tokio::sync::watch;

use crate::container::create::Tools;
use crate::container::Container;
use crate::error::{Context, Error, Result};
use crate::paths::{ROOT, SANDBOX};
use crate::protocol::agent::{CreateSandboxRequest, KernelModule};
use crate::storage::Storages;
use crate::sync::lock;

/// A name in the table of containers.
enum Slot {
    /// A request is making it.
    Taken,
    /// It is there.
    Made(Arc<Container>),
}

/// What is known about the pod.
#[derive(Default)]
struct State {
    created: bool,
    /// Whether the pod's containers may share a PID namespace, which then is the first container's.
    pid_kept: bool,
    containers: HashMap<String, Slot>,
}

/// The pod. One per agent.
pub struct Sandbox {
    /// What containers are made with.
    pub tools: Tools,
    /// What is mounted for it.
    pub storages: Storages,
    state: Mutex<State>,
    destroyed: watch::Sender<bool>,
}

impl Sandbox {
    /// A pod of which nothing exists yet.
    pub fn new(tools: Tools) -> Arc<Self> {
        let storages = Storages::new(tools.options.hotplug_timeout);
        Arc::new(Self { tools, storages, state: Mutex::default(), destroyed: watch::Sender::new(false) })
    }

    /// Makes the pod's own things.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` when there is one.
    pub async fn create(&self, request: CreateSandboxRequest) -> Result<()> {
        if std::mem::replace(&mut lock(&self.state).created, true) {
            return Err(Error::new(ttrpc::Code::ALREADY_EXISTS, "create sandbox: there is one already"));
        }
        self.make(request).await.inspect_err(|_| lock(&self.state).created = false)
    }

    /// Whether the pod's own things were made, or are being made.
    pub fn is_created(&self) -> bool {
        lock(&self.state).created
    }

    async fn make(&self, request: CreateSandboxRequest) -> Result<()> {
        if !request.guest_hook_path.is_empty() {
            log::warn!("guest hooks at {} are not run by this agent", request.guest_hook_path);
        }
        fs::create_dir_all(ROOT).at("make", ROOT)?;
        fs::create_dir_all(SANDBOX).at("make", SANDBOX)?;
        for module in &request.kernel_modules {
            self.load(module).await?;
        }
        let hostname = request.hostname.clone();
        let made = tokio::task::spawn_blocking(move || namespaces::make(&hostname)).await;
        made.at("make", "namespaces")??;
        self.storages.add_all(&request.storages).await?;
        write_resolv_conf(&request.dns)
    }

    async fn load(&self, module: &KernelModule) -> Result<()> {
        let mut command = std::process::Command::new("modprobe");
        command.arg("--").arg(&module.name).args(&module.parameters);
        let (_, exit) = self.tools.reaper.spawn(&mut command).at("run", "modprobe")?;
        match exit.await {
            Ok(0) => Ok(()),
            status => {
                Err(Error::invalid(format!("load kernel module: {}: modprobe ended with {status:?}", module.name)))
            }
        }
    }

    /// Ends everything. What cannot be undone is reported and left to the end of the guest.
    pub async fn destroy(&self) {
        let containers = self.containers();
        let removals = join_all(containers.iter().map(|container| self.remove(container, 0))).await;
        for error in removals.into_iter().filter_map(Result::err) {
            log::warn!("destroy sandbox: {error}");
        }
        self.storages.remove_everything().await;
        namespaces::drop_all();
        *lock(&self.state) = State::default();
        self.destroyed.send_replace(true);
    }

    /// Returns once the pod was destroyed.
    pub async fn destroyed(&self) {
        let mut destroyed = self.destroyed.subscribe();
        // The sender lives as long as we do.
        let _ = destroyed.wait_for(|destroyed| *destroyed).await;
    }
}

/// Writes the host's lines and, in a guest that has the file, puts them in place.
fn write_resolv_conf(lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let path = Path::new(SANDBOX).join("resolv.conf");
    fs::write(&path, lines.join("\n") + "\n").at("write", path.display())?;
    let target = Path::new("/etc/resolv.conf");
    if target.exists() {
        mount(Some(&path), target, None::<&str>, MsFlags::MS_BIND, None::<&str>).at("bind", target.display())?;
    }
    Ok(())
}
