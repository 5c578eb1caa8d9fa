//! The OCI bundle: what its annotations say of the pod, and the two files the shim leaves in it.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::args::check_name;
use crate::failure::{During, Failure, Outcome};

/// Larger than any spec containerd accepts.
const CONFIG_MAX: u64 = 32 << 20;

/// Keys that say what a container is, the first present one deciding, with their words for a sandbox and a container.
const TYPE_KEYS: [(&str, &str, &str); 3] = [
    ("io.kubernetes.cri.container-type", "sandbox", "container"),
    ("io.kubernetes.cri-o.ContainerType", "sandbox", "container"),
    ("io.kubernetes.docker.type", "podsandbox", "container"),
];
/// Keys that say which sandbox a container is in, the first present one deciding.
const SANDBOX_KEYS: [&str; 3] =
    ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID", "io.kubernetes.sandbox.id"];

/// A container's part in its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It is the pod's sandbox, or a container without one: the pod is named by its own id.
    Sandbox,
    /// It joins the pod of this sandbox.
    Member(String),
}

/// A bundle directory.
pub struct Bundle(PathBuf);

impl Bundle {
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Read the role from config.json; a bundle without one belongs to a sandbox without a spec (containerd 2.3).
    pub fn role(&self) -> Outcome<Role> {
        let Some(config) = self.config()? else { return Ok(Role::Sandbox) };
        match config.get("annotations") {
            None | Some(Value::Null) => Ok(Role::Sandbox),
            Some(Value::Object(annotations)) => role(annotations),
            Some(_) => {
                Err(Failure::new("read bundle", self.path_of_config().display(), "annotations are not an object"))
            }
        }
    }

    /// The slice of systemd's that the pod was given, where cgroups are systemd's: `SLICE:PREFIX:NAME` in `linux.cgroupsPath`.
    pub fn slice(&self) -> Option<String> {
        let config = self.config().ok()??;
        let (slice, _) = config.pointer("/linux/cgroupsPath")?.as_str()?.split_once(':')?;
        let lawful =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'\\' | b':' | b'@');
        (slice.ends_with(".slice") && slice.bytes().all(lawful)).then(|| slice.to_owned())
    }

    fn path_of_config(&self) -> PathBuf {
        self.0.join("config.json")
    }

    fn config(&self) -> Outcome<Option<Value>> {
        let path = self.path_of_config();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).during("read bundle", path.display()),
        };
        let mut bytes = Vec::new();
        file.take(CONFIG_MAX).read_to_end(&mut bytes).during("read bundle", path.display())?;
        serde_json::from_slice(&bytes).during("read bundle", path.display()).map(Some)
    }

    /// The address an earlier `start` left here.
    pub fn address(&self) -> Option<String> {
        let mut text = String::new();
        File::open(self.0.join("address")).ok()?.take(4096).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Leave the daemon's pid and address. containerd removes them with the bundle, so no ledger names them.
    pub fn publish(&self, pid: i32, address: &str) -> Outcome<()> {
        self.replace("shim.pid", &pid.to_string())?;
        self.replace("address", address)
    }

    /// Write a file that readers see either whole or not at all. The name is made for this process alone.
    fn replace(&self, name: &str, content: &str) -> Outcome<()> {
        let path = self.0.join(name);
        let draft = self.0.join(format!(".{name}.{}", std::process::id()));
        let write = || {
            // A draft can only be a dead launcher's who had our pid; nobody else may write to the bundle.
            match fs::remove_file(&draft) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            file.write_all(content.as_bytes())?;
            fs::rename(&draft, &path)
        };
        write().during("write bundle", path.display())
    }
}

fn role(annotations: &Map<String, Value>) -> Outcome<Role> {
    let present = |key: &str| annotations.get(key).map(|value| value.as_str().unwrap_or_default().to_owned());
    for (key, sandbox, container) in TYPE_KEYS {
        match present(key) {
            None => {}
            Some(value) if value == sandbox => return Ok(Role::Sandbox),
            Some(value) if value == container => {
                return match SANDBOX_KEYS.iter().find_map(|key| Some((key, present(key)?))) {
                    Some((key, id)) => check_name(key, &id).map(|()| Role::Member(id)),
                    None => Err(Failure::new("find sandbox", key, "the container names no sandbox")
                        .hint(&format!("annotate it with {}", SANDBOX_KEYS[0]))),
                };
            }
            Some(value) => {
                return Err(Failure::new("find container type", key, format!("{value:?} is not one"))
                    .hint(&format!("it is {sandbox} or {container}, or is not there at all")));
            }
        }
    }
    Ok(Role::Sandbox)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(pairs: &[(&str, &str)]) -> Outcome<Role> {
        role(&pairs.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))).collect())
    }

    #[test]
    fn no_annotation_is_a_pod_of_its_own() {
        assert_eq!(decide(&[]), Ok(Role::Sandbox));
        assert_eq!(decide(&[("io.kubernetes.cri.sandbox-id", "s")]), Ok(Role::Sandbox));
    }

    #[test]
    fn the_three_dialects() {
        for (key, sandbox, container) in TYPE_KEYS {
            assert_eq!(decide(&[(key, sandbox)]), Ok(Role::Sandbox));
            for id in SANDBOX_KEYS {
                assert_eq!(decide(&[(key, container), (id, "s1")]), Ok(Role::Member("s1".to_owned())));
            }
        }
    }

    #[test]
    fn the_first_key_decides() {
        let both = [(TYPE_KEYS[2].0, "container"), (TYPE_KEYS[0].0, "sandbox"), (SANDBOX_KEYS[0], "s")];
        assert_eq!(decide(&both), Ok(Role::Sandbox));
        let ids = [(TYPE_KEYS[0].0, "container"), (SANDBOX_KEYS[2], "late"), (SANDBOX_KEYS[1], "early")];
        assert_eq!(decide(&ids), Ok(Role::Member("early".to_owned())));
    }

    #[test]
    fn what_is_refused() {
        assert!(decide(&[(TYPE_KEYS[0].0, "pod")]).is_err());
        assert!(decide(&[(TYPE_KEYS[0].0, "container")]).is_err(), "no sandbox named");
        assert!(decide(&[(TYPE_KEYS[0].0, "container"), (SANDBOX_KEYS[0], "../x")]).is_err());
        assert!(decide(&[(TYPE_KEYS[2].0, "sandbox")]).is_err(), "docker says podsandbox");
    }
}
