//! Making a container.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{json, Value};

use super::{exec, pause, Container, Kind, Phase};
use crate::cgroup::oom::{Queue, Watch};
use crate::cgroup::{self, Cgroup};
use crate::error::{Context, Error, Result};
use crate::oci as text;
use crate::options::Options;
use crate::paths;
use crate::process::launch::{Crun, Launched, Streams};
use crate::process::Process;
use crate::protocol::oci;
use crate::reaper::Reaper;
use crate::sandbox::sysctl;
use crate::storage::submounts::Submounts;

/// What a container is made from.
pub struct Recipe {
    /// Its id, checked.
    pub id: String,
    /// What the host wants.
    pub spec: oci::Spec,
    /// Mount points it holds.
    pub storages: Vec<String>,
    /// Mounts of the host it holds.
    pub submounts: Submounts,
    /// Paths of the sandbox's namespaces the container joins, by type.
    pub namespaces: Vec<(&'static str, String)>,
    /// Rules and device numbers of devices that were waited for: `(path in the container, major, minor)`.
    pub devices: Vec<(String, u64, u64)>,
}

/// What the guest lends to every container.
#[derive(Clone)]
pub struct Tools {
    /// Collects its processes.
    pub reaper: Reaper,
    /// Makes it.
    pub crun: Crun,
    /// Learns of its OOM kills.
    pub oom: Arc<Queue>,
    /// As the guest was told.
    pub options: Arc<Options>,
}

/// Makes the container. On an error nothing of it is left.
pub async fn create(recipe: Recipe, tools: &Tools) -> Result<Container> {
    check(&recipe.spec)?;
    let cgroup = tools.options.cgroups.then(|| Cgroup::of(&recipe.id));
    let pause = pause::is_pause(&recipe.spec);
    sysctl::apply(&recipe.spec.Linux.Sysctl, !pause).await?;
    if pause {
        create_pause(recipe, cgroup, tools)
    } else {
        create_with_crun(recipe, cgroup, tools).await
    }
}

fn check(spec: &oci::Spec) -> Result<()> {
    if spec.Process.Args.is_empty() {
        return Err(Error::invalid("create container: process: it has no arguments"));
    }
    if spec.Root.is_none() {
        return Err(Error::invalid("create container: root: it is missing"));
    }
    Ok(())
}

fn create_pause(recipe: Recipe, cgroup: Option<Cgroup>, tools: &Tools) -> Result<Container> {
    let (pid, exit) = pause::spawn(&tools.reaper)?;
    let init = Process::start(pid, exit, Streams::default(), || {});
    if let Some(cgroup) = &cgroup {
        cgroup.make(pid).inspect_err(|_| drop(init.signal(libc::SIGKILL)))?;
    }
    Ok(container(recipe, Kind::Pause { crun: tools.crun.clone() }, init, cgroup, None))
}

async fn create_with_crun(recipe: Recipe, cgroup: Option<Cgroup>, tools: &Tools) -> Result<Container> {
    let bundle = paths::bundle(&recipe.id);
    let mut config = config(&recipe, cgroup.is_some());
    text::untold::apply(&mut config)?;
    write_bundle(&bundle, &config)?;
    let launched = tools.crun.create(&recipe.id, &bundle, recipe.spec.Process.Terminal).await;
    let Launched { pid, exit, streams } = match launched {
        Ok(launched) => launched,
        Err(error) => {
            undo(&recipe.id, &bundle, &tools.crun).await;
            return Err(error);
        }
    };
    let oom = cgroup.clone().map(|cgroup| Watch::new(&recipe.id, cgroup, tools.oom.clone()));
    let watch = oom.clone();
    let init = Process::start(pid, exit, streams, move || {
        if let Some(watch) = watch {
            watch.check();
        }
    });
    let kind = Kind::Crun { crun: tools.crun.clone(), hooks: !recipe.spec.Hooks.Poststart.is_empty() };
    Ok(container(recipe, kind, init, cgroup, oom))
}

fn container(
    recipe: Recipe,
    kind: Kind,
    init: Arc<Process>,
    cgroup: Option<Cgroup>,
    oom: Option<Arc<Watch>>,
) -> Container {
    Container {
        follower: oom.as_ref().and_then(Watch::follow),
        id: recipe.id,
        kind,
        init,
        cgroup,
        storages: recipe.storages,
        submounts: recipe.submounts,
        template: recipe.spec.Process.clone().unwrap_or_default(),
        phase: Mutex::new(Phase::Created),
        execs: Mutex::new(exec::Table::default()),
        oom,
    }
}

fn write_bundle(bundle: &Path, config: &Value) -> Result<()> {
    fs::create_dir_all(bundle).at("make", bundle.display())?;
    let path = bundle.join("config.json");
    fs::write(&path, config.to_string()).at("write", path.display())
}

/// Best effort: the error that led here is the one to tell.
async fn undo(id: &str, bundle: &Path, crun: &Crun) {
    if let Err(error) = crun.delete(id).await {
        log::warn!("undo: {error}");
    }
    if let Err(error) = fs::remove_dir_all(bundle) {
        log::warn!("undo: {}: {error}", bundle.display());
    }
}

/// `config.json` with what only the guest knows.
fn config(recipe: &Recipe, cgroups: bool) -> Value {
    let mut config = text::spec(&recipe.spec);
    let namespaces = namespaces(&recipe.spec, &recipe.namespaces);
    if !config["linux"].is_object() {
        config["linux"] = json!({});
    }
    config["linux"]["namespaces"] = namespaces;
    if let Some(sysctl) = config["linux"]["sysctl"].as_object_mut() {
        sysctl.retain(|name, _| !sysctl::is_agents(name));
    }
    for (path, major, minor) in &recipe.devices {
        place_device(&mut config["linux"], path, *major, *minor);
    }
    if cgroups {
        config["linux"]["cgroupsPath"] = cgroup::spec_path(&recipe.id).into();
    }
    config
}

/// Types of namespaces every container has, whether the host asked for them or not: without a mount namespace of its own it would
/// change the agent's, without a PID namespace it could signal it. The control group's hides how the guest is arranged.
const ALWAYS: [&str; 3] = ["mount", "pid", "cgroup"];

/// The namespaces asked for, those of the sandbox by their path. The network is the guest's: the VM is the pod.
fn namespaces(spec: &oci::Spec, shared: &[(&'static str, String)]) -> Value {
    let asked = spec.Linux.Namespaces.iter().map(|namespace| namespace.Type.as_str());
    let mut kinds: Vec<&str> = asked.filter(|kind| *kind != "network").collect();
    kinds.extend(ALWAYS);
    kinds.sort_unstable();
    kinds.dedup();
    let entry = |kind: &str| match shared.iter().find(|(shared, _)| *shared == kind) {
        Some((_, path)) => json!({"type": kind, "path": path}),
        None => json!({"type": kind}),
    };
    kinds.into_iter().map(entry).collect()
}

/// Gives a device that was waited for the numbers it got in this guest, and allows it.
fn place_device(linux: &mut Value, path: &str, major: u64, minor: u64) {
    let devices = linux["devices"].as_array().cloned().unwrap_or_default();
    let (mut same, others): (Vec<_>, Vec<_>) = devices.into_iter().partition(|device| device["path"] == path);
    let mut device = same.pop().unwrap_or_else(|| json!({"path": path, "type": "b", "uid": 0, "gid": 0}));
    device["major"] = major.into();
    device["minor"] = minor.into();
    linux["devices"] = others.into_iter().chain([device]).collect();
    let rule = json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": "rwm"});
    let rules = linux["resources"]["devices"].as_array().cloned().unwrap_or_default();
    linux["resources"]["devices"] = rules.into_iter().chain([rule]).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(kinds: &[&str]) -> Recipe {
        let namespaces = kinds.iter().map(|kind| oci::LinuxNamespace { Type: kind.to_string(), ..Default::default() });
        let linux =
            oci::Linux { Namespaces: namespaces.collect(), CgroupsPath: "../../x".into(), ..Default::default() };
        Recipe {
            id: "c".into(),
            spec: oci::Spec { Linux: Some(linux).into(), ..Default::default() },
            storages: Vec::new(),
            submounts: Submounts::default(),
            namespaces: vec![("ipc", "/ns/ipc".into()), ("uts", "/ns/uts".into())],
            devices: Vec::new(),
        }
    }

    #[test]
    fn containers_join_the_namespaces_of_the_sandbox_they_asked_for() {
        let config = config(&recipe(&["ipc", "mount", "network"]), true);
        let expected = json!([
            {"type": "cgroup"}, {"type": "ipc", "path": "/ns/ipc"}, {"type": "mount"}, {"type": "pid"}
        ]);
        assert_eq!(config["linux"]["namespaces"], expected);
    }

    #[test]
    fn the_control_group_is_ours_to_place() {
        assert_eq!(config(&recipe(&[]), true)["linux"]["cgroupsPath"], "/kata/c");
    }

    #[test]
    fn settings_of_network_and_domain_are_not_cruns() {
        let mut asked = recipe(&[]);
        let settings = [("net.core.somaxconn", "5"), ("kernel.domainname", "d"), ("kernel.msgmax", "6")];
        asked.spec.Linux.mut_or_insert_default().Sysctl =
            settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        assert_eq!(config(&asked, false)["linux"]["sysctl"], json!({"kernel.msgmax": "6"}));
    }

    #[test]
    fn a_spec_without_linux_still_gets_namespaces() {
        let mut bare = recipe(&[]);
        bare.spec.Linux = None.into();
        assert_eq!(config(&bare, false)["linux"]["namespaces"].as_array().map(Vec::len), Some(3));
    }

    #[test]
    fn a_device_gets_its_numbers_of_this_guest() {
        let mut linux = json!({"devices": [{"path": "/dev/a", "type": "b", "major": 1, "minor": 2, "uid": 5}]});
        place_device(&mut linux, "/dev/a", 254, 16);
        place_device(&mut linux, "/dev/b", 254, 32);
        assert_eq!(linux["devices"][0], json!({"path": "/dev/a", "type": "b", "major": 254, "minor": 16, "uid": 5}));
        assert_eq!(linux["devices"][1]["minor"], 32);
        assert_eq!(linux["resources"]["devices"].as_array().map(Vec::len), Some(2));
    }
}
