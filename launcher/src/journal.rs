//! The one thing the launcher writes into a pod's journal: that a `start` failed, and why. There may never be a daemon to tell of it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::args::Args;
use crate::failure::Failure;
use crate::pod::Pod;

/// Daemons keep the number of journals low. Where every `start` fails before there is one, this does.
const MANY: usize = 1024;
/// A journal that is longer is not made longer: where one `start` is tried again and again, no daemon ever shortens it.
const SIZE_MAX: u64 = 1 << 20;
/// As long as any value in a journal.
const VALUE_MAX: usize = 2048;

/// Note that `start` of a container of sandbox `sandbox` failed. A journal that cannot be written is silently short.
pub fn refused(pod: &Pod, args: &Args, sandbox: &str, failure: &Failure) {
    let path = pod.journal();
    let others = path.parent().and_then(|journals| fs::read_dir(journals).ok()).map_or(0, Iterator::count);
    if others >= MANY && !path.exists() {
        return;
    }
    let line = line(args, sandbox, failure);
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    let short = |file: &File| file.metadata().is_ok_and(|found| found.len() < SIZE_MAX);
    let _ = file.map(|mut file| if short(&file) { file.write_all(format!("{line}\n").as_bytes()) } else { Ok(()) });
}

fn line(args: &Args, sandbox: &str, failure: &Failure) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let error: String = failure.to_string().chars().take(VALUE_MAX).collect();
    json!({
        "t": u64::try_from(now.as_nanos()).unwrap_or(0),
        "event": "refused",
        "namespace": args.namespace,
        "id": sandbox,
        "address": args.address,
        "container": args.id,
        "error": error,
    })
}
