//! What containerd says on stdin and wants to read on stdout, which differs between its versions.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::failure::{Failure, Outcome};
use crate::wire::{Encoder, decode, text};

const NAME: &str = "io.containerd.kata.v2";
/// Type of the features in `RuntimeInfo`.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// What a process that was ended by `delete` is said to have died of: 128 + SIGKILL.
const KILLED: u64 = 137;

/// How `start` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The bare address: every containerd up to 2.2 takes it, and speaks Task v2.
    Bare,
    /// JSON, Task v3; only where the administrator says that containerd is new enough (2.0 to 2.2).
    Json,
    /// `BootstrapResult`, containerd from 2.3 on; with the version of the Task API.
    Protobuf(u32),
}

impl Reply {
    /// Choose by what came on stdin: `BootstrapParams`, whose id and namespace must be those of the flags, or something
    /// older. An options `Any` decodes as the former by accident, hence the comparison.
    pub fn choose(stdin: &[u8], id: &str, namespace: &str) -> Outcome<Self> {
        let v3 = match env::var("KATA_SHIMD_REPLY").as_deref() {
            Err(_) | Ok("") => false,
            Ok("json3") => true,
            Ok(other) => {
                return Err(Failure::new("choose reply", "KATA_SHIMD_REPLY", format!("{other:?} is not known"))
                    .hint("set it to json3 for the Task API v3, or not at all"));
            }
        };
        Ok(Self::of(is_bootstrap_params(stdin, id, namespace), v3))
    }

    fn of(bootstrap: bool, v3: bool) -> Self {
        match (bootstrap, v3) {
            (true, v3) => Self::Protobuf(if v3 { 3 } else { 2 }),
            (false, true) => Self::Json,
            (false, false) => Self::Bare,
        }
    }

    pub fn encode(self, address: &str) -> Vec<u8> {
        match self {
            Self::Bare => address.as_bytes().to_vec(),
            Self::Json => {
                serde_json::json!({"version": 3, "address": address, "protocol": "ttrpc"}).to_string().into_bytes()
            }
            Self::Protobuf(version) => {
                Encoder::default().integer(1, version.into()).text(2, address).text(3, "ttrpc").finish()
            }
        }
    }
}

fn is_bootstrap_params(stdin: &[u8], id: &str, namespace: &str) -> bool {
    decode(stdin).is_some_and(|fields| text(&fields, 1) == Some(id) && text(&fields, 2) == Some(namespace))
}

/// `containerd.task.v2.DeleteResponse`. `exited_at` is always set: clients show year 1 otherwise.
pub fn delete_response(pid: u64, now: SystemTime) -> Vec<u8> {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = Encoder::default().integer(1, since.as_secs()).integer(2, since.subsec_nanos().into()).finish();
    Encoder::default().integer(1, pid).integer(2, KILLED).message(3, &at).finish()
}

/// `containerd.types.RuntimeInfo`.
pub fn runtime_info() -> Vec<u8> {
    let version = Encoder::default().text(1, env!("CARGO_PKG_VERSION")).text(2, revision()).finish();
    let features = Encoder::default().text(1, FEATURES).message(2, features().to_string().as_bytes()).finish();
    Encoder::default().text(1, NAME).message(2, &version).message(4, &features).finish()
}

/// What containerd from 2.0 on asks a runtime for before it lets pods ask for it, as OCI's features structure. User namespaces are
/// not in it, for there are none in a pod.
fn features() -> serde_json::Value {
    serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "mountOptions": ["bind", "rbind", "ro", "rro", "rw", "nosuid", "nodev", "noexec"],
        "linux": {"namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"]},
    })
}

pub fn version_text() -> String {
    let words = ["containerd-shim-kata-v2 (kata-shimd)", env!("CARGO_PKG_VERSION"), revision()];
    words.join(" ").trim_end().to_owned()
}

/// The commit this was built from, when the builder said.
fn revision() -> &'static str {
    option_env!("KATA_SHIMD_REVISION").unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Value;
    use std::time::Duration;

    #[test]
    fn bootstrap_params_are_told_from_options() {
        let params = Encoder::default().text(1, "abc").text(2, "k8s.io").integer(3, -4i64 as u64).finish();
        let options = Encoder::default().text(1, "runtimeoptions.v1.Options").message(2, b"\x12\x02/x").finish();
        assert!(is_bootstrap_params(&params, "abc", "k8s.io"));
        assert!(!is_bootstrap_params(&params, "abc", "default"));
        assert!(!is_bootstrap_params(&params, "abd", "k8s.io"));
        assert!(!is_bootstrap_params(&options, "abc", "k8s.io"));
        assert!(!is_bootstrap_params(b"", "abc", "k8s.io"));
        assert!(!is_bootstrap_params(b"\x0a\xff", "abc", "k8s.io"));
    }

    #[test]
    fn replies() {
        assert_eq!(Reply::of(false, false).encode("unix:///s"), b"unix:///s");
        assert_eq!(Reply::of(true, false).encode("unix:///s"), b"\x08\x02\x12\x09unix:///s\x1a\x05ttrpc");
        assert_eq!(Reply::of(true, true), Reply::Protobuf(3));
        let json: serde_json::Value = serde_json::from_slice(&Reply::of(false, true).encode("u")).unwrap_or_default();
        assert_eq!(json, serde_json::json!({"version": 3, "address": "u", "protocol": "ttrpc"}));
    }

    #[test]
    fn delete_says_137_and_when() {
        let bytes = delete_response(42, UNIX_EPOCH + Duration::new(3, 4));
        assert_eq!(
            decode(&bytes),
            Some(vec![(1, Value::Integer(42)), (2, Value::Integer(137)), (3, Value::Bytes(b"\x08\x03\x10\x04"))])
        );
    }

    #[test]
    fn info_names_the_runtime() {
        let bytes = runtime_info();
        let fields = decode(&bytes).unwrap_or_default();
        assert_eq!(text(&fields, 1), Some("io.containerd.kata.v2"));
        assert_eq!(fields.len(), 3);
    }

    #[test]
    fn info_announces_recursive_read_only_mounts_and_no_user_namespaces() {
        let features = features();
        assert!(features["mountOptions"].as_array().is_some_and(|options| options.contains(&"rro".into())));
        assert!(features["linux"]["namespaces"].as_array().is_some_and(|kinds| !kinds.contains(&"user".into())));
    }
}
