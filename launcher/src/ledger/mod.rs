//! What exists on the host for one pod: `POD/ledger`, JSON lines, each written before its object is made.
//!
//! The paths in it are followed by root, so a ledger is believed only if it is ours, 0600, in a directory that is ours
//! and 0700.

mod append;
mod record;
mod trial;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use serde_json::Value;

pub use append::{Append, Who};
pub use record::{Link, Object, Process, Record};
pub use trial::Trial;

use crate::failure::{During, Failure, Outcome};
use crate::pod::check_private;
use record::{number, text};

const NAME: &str = "ledger";
/// More than a pod can write in its life; a file beyond it is not a ledger.
const SIZE_MAX: u64 = 256 << 20;

/// The ledger as its last line left it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Plans without `undone`, oldest first.
    pub live: Vec<Record>,
    /// `starting`, `running` or `stopping`; None before the first.
    pub phase: Option<String>,
    /// What a daemon under systemd has said about later ones; None: there are to be none.
    pub keeping: Option<Keeping>,
    /// Of another installation's daemon, if the pod was to be moved.
    pub trial: Option<Trial>,
    /// When each daemon of the pod began, oldest first; as in `Identity`.
    pub daemons: Vec<u64>,
}

/// More `deaths` of daemons than this `within` so long, and the pod is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    pub deaths: usize,
    pub within: Duration,
}

impl Keeping {
    fn read(value: &Value) -> Option<Self> {
        let fields = value.as_object()?;
        let deaths = number(fields, "deaths")?.try_into().ok()?;
        Some(Self { deaths, within: Duration::from_secs(number(fields, "within")?) })
    }
}

impl Ledger {
    /// Read the ledger in the pod directory `pod`; None if there is none.
    pub fn read(pod: &PodDir) -> Outcome<Option<Self>> {
        let Some(file) = pod.open_ledger(OFlags::RDONLY)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(SIZE_MAX).read_to_end(&mut bytes).during("read ledger", pod.path.display())?;
        Ok(Some(Self::parse(&bytes)))
    }

    /// Lines that are not records are skipped: a torn one was never followed by its object.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut ledger = Self::default();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if let Some(line) = line.strip_suffix(b"\n") {
                ledger.take(line);
            }
        }
        ledger
    }

    fn take(&mut self, line: &[u8]) {
        let Ok(Value::Object(fields)) = serde_json::from_slice(line) else { return };
        match fields.get("op").and_then(Value::as_str) {
            Some("plan") => self.live.extend(Record::from_plan(&fields)),
            Some("made") => {
                if let Some(record) = number(&fields, "n").and_then(|n| self.live.iter_mut().rfind(|r| r.n == n)) {
                    record.made(&fields);
                    if matches!(&record.object, Object::Process(process) if process.what == "daemon") {
                        self.daemons.extend(number(&fields, "start"));
                    }
                }
            }
            Some("undone") => {
                if let Some(at) = number(&fields, "n").and_then(|n| self.live.iter().rposition(|r| r.n == n)) {
                    self.live.remove(at);
                }
            }
            Some("set") if text(&fields, "key").as_deref() == Some("keeping") => {
                self.keeping = fields.get("value").and_then(Keeping::read);
            }
            Some("set") if text(&fields, "key").as_deref() == Some(trial::KEY) => {
                self.trial = fields.get("value").and_then(Trial::read);
            }
            Some("phase") => self.phase = text(&fields, "phase").or(self.phase.take()),
            _ => {}
        }
    }

    pub fn is_stopping(&self) -> bool {
        self.phase.as_deref() == Some("stopping")
    }

    /// The unit whose main process is the pod's daemon, if it is one.
    pub fn unit(&self) -> Option<&str> {
        self.live.iter().rev().find_map(|record| match &record.object {
            Object::Unit(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The number of the newest live process called `what`.
    pub fn number_of(&self, what: &str) -> Option<u64> {
        let named = |record: &&Record| matches!(&record.object, Object::Process(process) if process.what == what);
        self.live.iter().rfind(named).map(|record| record.n)
    }

    /// The newest live process called `what`.
    pub fn process(&self, what: &str) -> Option<&Process> {
        self.live.iter().rev().find_map(|record| match &record.object {
            Object::Process(process) if process.what == what => Some(process),
            _ => None,
        })
    }
}

/// A pod directory that may be believed.
pub struct PodDir<'a> {
    pub path: &'a Path,
    fd: OwnedFd,
}

impl<'a> PodDir<'a> {
    /// Open the pod directory; None if there is none.
    pub fn open(path: &'a Path) -> Outcome<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(Failure::new("open pod directory", path.display(), error)),
        };
        let dir = File::from(fd);
        let found = dir.metadata().during("check pod directory", path.display())?;
        check_private(&found, 0o077).during("check pod directory", path.display())?;
        Ok(Some(Self { path, fd: dir.into() }))
    }

    /// Open the ledger with `flags`; None if there is none.
    fn open_ledger(&self, flags: OFlags) -> Outcome<Option<File>> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match openat(&self.fd, NAME, flags, Mode::from_raw_mode(0o600)) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(Failure::new("open ledger", self.path.display(), error)),
        };
        let found = file.metadata().during("check ledger", self.path.display())?;
        if !found.is_file() {
            return Err(Failure::new("check ledger", self.path.display(), "not a regular file"));
        }
        check_private(&found, 0o177).during("check ledger", self.path.display())?;
        Ok(Some(file))
    }
}

impl AsFd for PodDir<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Identity;

    fn numbers(ledger: &Ledger) -> Vec<u64> {
        ledger.live.iter().map(|record| record.n).collect()
    }

    #[test]
    fn what_is_planned_and_not_undone_lives() {
        let ledger = Ledger::parse(
            br#"{"op":"open","v":1,"pod":"h","namespace":"n","id":"i","address":"a"}
{"op":"phase","phase":"starting"}
{"op":"plan","n":1,"scope":"pod","kind":"process","what":"daemon","polite":true,"grace_ms":50}
{"op":"made","n":1,"pid":4711,"start":123456}
{"op":"plan","n":2,"scope":"container/c","needs":[1],"kind":"mount","path":"/m"}
{"op":"plan","n":3,"scope":"pod","kind":"link","netns":null,"name":"tap0"}
{"op":"made","n":3,"ifindex":7}
{"op":"undone","n":2}
{"op":"phase","phase":"stopping"}
"#,
        );
        assert_eq!(numbers(&ledger), [1, 3]);
        assert!(ledger.is_stopping());
        assert_eq!(
            ledger.process("daemon"),
            Some(&Process {
                what: "daemon".to_owned(),
                grace_ms: Some(50),
                identity: Some(Identity { pid: 4711, start: 123456 })
            })
        );
        let link = Link { netns: None, name: "tap0".to_owned(), ifindex: Some(7) };
        assert_eq!(ledger.live.last().map(|record| &record.object), Some(&Object::Link(link)));
    }

    #[test]
    fn torn_and_strange_lines_are_skipped() {
        let ledger = Ledger::parse(
            b"{\"op\":\"plan\",\"n\":1,\"ki\n{\"op\":\"sing\",\"n\":2}\n\xff\xfe\n[]\n{\"op\":\"plan\",\"n\":3,\"kind\":\"file\",\"path\":\"/f\"}\n{\"op\":\"undone\",\"n\":3}",
        );
        assert_eq!(numbers(&ledger), [3], "a last line without a newline does not count");
    }

    #[test]
    fn unknown_kinds_and_bad_paths_stay_and_cannot_be_undone() {
        let ledger = Ledger::parse(
            br#"{"op":"plan","n":1,"kind":"wormhole","path":"/x"}
{"op":"plan","n":2,"kind":"dir","path":"/x/../etc"}
{"op":"plan","n":3,"kind":"dir"}
{"op":"plan","n":4,"kind":"link","netns":"run","name":"x"}
"#,
        );
        assert_eq!(ledger.live.len(), 4);
        assert!(ledger.live.iter().all(|record| matches!(record.object, Object::Unknown(_))));
    }

    #[test]
    fn a_pid_that_nobody_may_kill_is_no_identity() {
        let ledger = Ledger::parse(
            b"{\"op\":\"plan\",\"n\":1,\"kind\":\"process\",\"what\":\"x\"}\n{\"op\":\"made\",\"n\":1,\"pid\":1,\"start\":1}\n",
        );
        assert_eq!(ledger.process("x").map(|process| process.identity), Some(None));
    }
}
