//! What a line of the ledger means. Reading forgives: a newer daemon may write what this launcher does not know, and a
//! program that was killed may have left half a line.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::pod::is_plain;
use crate::process::Identity;
use crate::unit::is_name;

/// A process that is ours to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// `daemon`, `qemu`, …
    pub what: String,
    /// Ask with SIGTERM first, and wait this long (ms) before SIGKILL; none: SIGKILL at once.
    pub grace_ms: Option<u64>,
    /// None until it was spawned: then the gate, or the fork of the launcher, has ended by itself.
    pub identity: Option<Identity>,
}

/// A network interface: ours to delete, or somebody's on which something is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// None: the network namespace of the host.
    pub netns: Option<PathBuf>,
    pub name: String,
    /// None until it was made: then the name alone says which it is.
    pub ifindex: Option<u32>,
}

/// An object on the host, and all that is needed to undo it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    Process(Process),
    Mount(PathBuf),
    Dir(PathBuf),
    File(PathBuf),
    Cgroup(PathBuf),
    Netns(PathBuf),
    Link(Link),
    /// The ingress queueing discipline of a link that is not ours.
    Qdisc(Link),
    /// A unit of systemd's: ended with the pod's daemon, before anything else.
    Unit(String),
    /// Written by somebody who knows more than we do, or damaged: cannot be undone. Says why.
    Unknown(String),
}

/// A `plan`, with what its `made` added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub n: u64,
    pub scope: String,
    /// Records that must be undone after this one.
    pub needs: Vec<u64>,
    pub object: Object,
}

impl Record {
    /// Read a plan; None if it has not even a number.
    pub fn from_plan(fields: &Map<String, Value>) -> Option<Self> {
        Some(Self {
            n: number(fields, "n")?,
            scope: text(fields, "scope").unwrap_or_else(|| "pod".to_owned()),
            needs: fields
                .get("needs")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_u64)
                .collect(),
            object: Object::from_plan(fields),
        })
    }

    /// Add the identity that was known only afterwards.
    pub fn made(&mut self, fields: &Map<String, Value>) {
        match &mut self.object {
            Object::Process(process) => process.identity = identity(fields).or(process.identity),
            Object::Link(link) => {
                link.ifindex = number(fields, "ifindex").and_then(|index| index.try_into().ok()).or(link.ifindex);
            }
            _ => {}
        }
    }
}

impl Object {
    fn from_plan(fields: &Map<String, Value>) -> Self {
        let kind = text(fields, "kind").unwrap_or_default();
        match kind.as_str() {
            "process" => Self::Process(Process {
                what: text(fields, "what").unwrap_or_default(),
                grace_ms: (fields.get("polite") == Some(&Value::Bool(true)))
                    .then(|| number(fields, "grace_ms").unwrap_or_default()),
                identity: identity(fields),
            }),
            "mount" => Self::with_path(fields, Self::Mount),
            "dir" => Self::with_path(fields, Self::Dir),
            "file" => Self::with_path(fields, Self::File),
            "cgroup" => Self::with_path(fields, Self::Cgroup),
            "netns" => Self::with_path(fields, Self::Netns),
            "link" => Self::link(fields, Self::Link),
            "qdisc" => Self::link(fields, Self::Qdisc),
            "unit" => match text(fields, "name").filter(|name| is_name(name)) {
                Some(name) => Self::Unit(name),
                None => Self::Unknown("unit without the name of a pod's".to_owned()),
            },
            other => Self::Unknown(format!("kind {other:?} is not known to this launcher")),
        }
    }

    fn with_path(fields: &Map<String, Value>, object: fn(PathBuf) -> Self) -> Self {
        match path(fields, "path") {
            Some(path) => object(path),
            None => Self::Unknown("has no absolute, plain path".to_owned()),
        }
    }

    fn link(fields: &Map<String, Value>, object: fn(Link) -> Self) -> Self {
        let netns = match fields.get("netns") {
            None | Some(Value::Null) => None,
            Some(_) => match path(fields, "netns") {
                Some(path) => Some(path),
                None => return Self::Unknown("its netns is not an absolute, plain path".to_owned()),
            },
        };
        match text(fields, "name").filter(|name| !name.is_empty()) {
            Some(name) => {
                let ifindex = number(fields, "ifindex").and_then(|index| index.try_into().ok());
                object(Link { netns, name, ifindex })
            }
            None => Self::Unknown("link without a name".to_owned()),
        }
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process(process) => write!(f, "process {}", process.what),
            Self::Mount(path) => write!(f, "mount {}", path.display()),
            Self::Dir(path) => write!(f, "dir {}", path.display()),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Self::Netns(path) => write!(f, "netns {}", path.display()),
            Self::Link(link) => write!(f, "link {}", link.name),
            Self::Qdisc(link) => write!(f, "ingress qdisc of {}", link.name),
            Self::Unit(name) => write!(f, "unit {name}"),
            Self::Unknown(_) => write!(f, "object"),
        }
    }
}

pub fn text(fields: &Map<String, Value>, name: &str) -> Option<String> {
    fields.get(name)?.as_str().map(str::to_owned)
}

pub fn number(fields: &Map<String, Value>, name: &str) -> Option<u64> {
    fields.get(name)?.as_u64()
}

fn path(fields: &Map<String, Value>, name: &str) -> Option<PathBuf> {
    text(fields, name).map(PathBuf::from).filter(|path| is_plain(path))
}

fn identity(fields: &Map<String, Value>) -> Option<Identity> {
    let pid = number(fields, "pid")?.try_into().ok().filter(|pid| *pid > 1)?;
    Some(Identity { pid, start: number(fields, "start")? })
}
