//! Writing records: one `write` per line, and the points at which a test may have us die.

use std::env;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use rustix::fs::OFlags;
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};

use super::{PodDir, Trial, trial};
use crate::failure::{During, Failure, Outcome};
use crate::pod::Pod;
use crate::process::Identity;

/// `write` appends lines up to this size whole.
const LINE_MAX: usize = 4096;

/// Who writes: names the kill points of `KATA_SHIMD_DIE_AT=<who>:<n>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Launcher,
    Undo,
    Keeper,
}

/// A ledger open for appending.
pub struct Append {
    file: File,
    place: String,
    /// The next record's number, for records this program plans itself.
    next: u64,
    /// Records left to write before dying; None: live.
    fuse: Option<u64>,
}

impl Append {
    /// Make the ledger of a new pod and write who it is.
    pub fn create(dir: &PodDir, pod: &Pod, address: &str, namespace: &str, id: &str) -> Outcome<Self> {
        let mut ledger = Self::at(dir, OFlags::CREATE | OFlags::EXCL, Who::Launcher)?
            .ok_or_else(|| Failure::new("make ledger", dir.path.display(), "not there"))?;
        let open =
            json!({"op": "open", "v": 1, "pod": pod.hash(), "namespace": namespace, "id": id, "address": address});
        ledger.write(&open)?;
        ledger.write(&json!({"op": "phase", "phase": "starting"}))?;
        Ok(ledger)
    }

    /// Open the ledger that is there; None if there is none.
    pub fn open(dir: &PodDir, who: Who) -> Outcome<Option<Self>> {
        Self::at(dir, OFlags::empty(), who)
    }

    fn at(dir: &PodDir, flags: OFlags, who: Who) -> Outcome<Option<Self>> {
        let place = dir.path.display().to_string();
        let Some(mut file) = dir.open_ledger(flags | OFlags::RDWR | OFlags::APPEND)? else { return Ok(None) };
        end_torn_line(&mut file).during("open ledger", &place)?;
        Ok(Some(Self { file, place, next: 1, fuse: fuse(who) }))
    }

    /// Write ahead what is about to be made; answer its number.
    pub fn plan(&mut self, mut object: Value) -> Outcome<u64> {
        let n = self.next;
        if let Some(fields) = object.as_object_mut() {
            fields.extend([("op".into(), "plan".into()), ("n".into(), n.into()), ("scope".into(), "pod".into())]);
        }
        self.write(&object)?;
        self.next += 1;
        Ok(n)
    }

    pub fn made_process(&mut self, n: u64, process: Identity) -> Outcome<()> {
        self.write(&json!({"op": "made", "n": n, "pid": process.pid, "start": process.start}))
    }

    pub fn undone(&mut self, n: u64) -> Outcome<()> {
        self.write(&json!({"op": "undone", "n": n}))
    }

    pub fn trial(&mut self, trial: Trial) -> Outcome<()> {
        self.write(&json!({"op": "set", "key": trial::KEY, "value": trial.value()}))
    }

    pub fn phase(&mut self, phase: &str) -> Outcome<()> {
        self.write(&json!({"op": "phase", "phase": phase}))
    }

    fn write(&mut self, record: &Value) -> Outcome<()> {
        let mut line = record.to_string().into_bytes();
        line.push(b'\n');
        if line.len() > LINE_MAX {
            return Err(Failure::new("write ledger", &self.place, "the record is longer than 4096 bytes"));
        }
        match self.file.write(&line).during("write ledger", &self.place)? {
            written if written == line.len() => {}
            _ => return Err(Failure::new("write ledger", &self.place, "no space left for a whole record")),
        }
        self.burn();
        Ok(())
    }

    fn burn(&mut self) {
        if let Some(left) = &mut self.fuse {
            *left = left.saturating_sub(1);
            if *left == 0 {
                // Nothing sensible can be done if even this fails: the test will notice that we live.
                let _ = kill_process(getpid(), Signal::KILL);
            }
        }
    }
}

/// A writer that was killed may have left half a line; ours must not be glued to it.
fn end_torn_line(file: &mut File) -> std::io::Result<()> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(());
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    if last != *b"\n" {
        file.write_all(b"\n")?;
    }
    Ok(())
}

fn fuse(who: Who) -> Option<u64> {
    let name = match who {
        Who::Launcher => "launcher",
        Who::Undo => "undo",
        Who::Keeper => "keeper",
    };
    let point = env::var("KATA_SHIMD_DIE_AT").ok()?;
    let (whom, n) = point.split_once(':')?;
    (whom == name).then(|| n.parse().ok()).flatten()
}
