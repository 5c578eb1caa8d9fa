//! What containerd would ask for, as short as it can be.

use kata_agent::protocol::agent::{CreateContainerRequest, Storage};
use kata_agent::protocol::oci;

/// Where the tests' only root file system lies.
pub const ROOTFS: &str = "/run/kata-containers/shared/containers/base/rootfs";
/// Capabilities of a usual container.
const CAPABILITIES: [&str; 5] = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"];

pub fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// A process that runs a script of busybox' shell.
pub fn shell(script: &str) -> oci::Process {
    process(&["/bin/sh", "-c", script])
}

pub fn process(args: &[&str]) -> oci::Process {
    let set = strings(&CAPABILITIES);
    let capabilities =
        oci::LinuxCapabilities { Bounding: set.clone(), Effective: set.clone(), Permitted: set, ..Default::default() };
    oci::Process {
        User: Some(oci::User::default()).into(),
        Args: strings(args),
        Env: strings(&["PATH=/bin", "FROM=container"]),
        Cwd: "/".into(),
        Capabilities: Some(capabilities).into(),
        ..Default::default()
    }
}

fn mount(kind: &str, destination: &str, options: &[&str]) -> oci::Mount {
    oci::Mount {
        destination: destination.into(),
        type_: kind.into(),
        source: kind.into(),
        options: strings(options),
        ..Default::default()
    }
}

pub fn bind(source: &str, destination: &str) -> oci::Mount {
    oci::Mount { source: source.into(), ..mount("bind", destination, &["rbind"]) }
}

/// A container around a process, with the namespaces the host leaves in a spec.
pub fn container(id: &str, process: oci::Process) -> CreateContainerRequest {
    let namespaces =
        ["ipc", "uts", "mount"].map(|kind| oci::LinuxNamespace { Type: kind.into(), ..Default::default() });
    let spec = oci::Spec {
        Version: "1.0.2".into(),
        Process: Some(process).into(),
        Root: Some(oci::Root { Path: ROOTFS.into(), ..Default::default() }).into(),
        Mounts: vec![
            mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
            mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("tmpfs", "/tmp", &["mode=1777"]),
        ],
        Linux: Some(oci::Linux { Namespaces: namespaces.to_vec(), CgroupsPath: "../x".into(), ..Default::default() })
            .into(),
        ..Default::default()
    };
    CreateContainerRequest { container_id: id.into(), exec_id: id.into(), OCI: Some(spec).into(), ..Default::default() }
}

pub fn storage(driver: &str, mount_point: &str, options: &[&str]) -> Storage {
    Storage {
        driver: driver.into(),
        source: driver.into(),
        mount_point: mount_point.into(),
        options: strings(options),
        ..Default::default()
    }
}
