//! `containerd-shim-kata-v2`: what containerd runs.
//!
//! It finds or makes the daemon of a pod (`start`), and takes away what a dead one left (`delete`). Three verbs are for the daemon: `gate`
//! lets nothing run that is not in the ledger, `undo` takes away what is, `keep` starts it again when it dies. Two are for systemd:
//! `unit` begins a daemon in a unit, `unit-ended` judges its end. A few milliseconds, and no Python, but for the daemon itself.
//!
//! On success nothing is written but what the protocol asks for: containerd reads stdout and stderr together.

mod args;
mod bundle;
mod cgroup;
mod daemon;
mod deadline;
mod delete;
mod dialect;
mod failure;
mod gate;
mod hurry;
mod journal;
mod keep;
mod ledger;
mod lock;
mod pod;
mod posix;
mod process;
mod spawn;
mod start;
mod undo;
mod unit;
mod wire;
mod words;
mod zygote;

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf, absolute};
use std::process::ExitCode;
use std::time::Duration;

use args::{Args, Verb};
use deadline::Deadline;
use failure::{During, Failure, Outcome};
use lock::Lock;

/// For the daemon's own teardown; its steps have budgets of their own.
const UNDO_BUDGET: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    posix::ignore_who_looks();
    let words: Result<Vec<String>, _> = env::args_os().skip(1).map(|word| word.into_string()).collect();
    let words = match words {
        Ok(words) => words,
        Err(word) => return report(&Failure::new("read arguments", word.to_string_lossy(), "not UTF-8"), 1),
    };
    match words.split_first() {
        Some((verb, rest)) if verb == "gate" => finish(gate::run(rest), gate::CANNOT_EXEC),
        Some((verb, rest)) if verb == "keep" => finish(keep::run(rest), 1),
        Some((verb, rest)) if verb == "undo" => undo(rest),
        Some((verb, rest)) if verb == "unit" => finish(unit::birth(rest), 1),
        Some((verb, rest)) if verb == "unit-ended" => finish(unit::ended(rest), 1),
        _ => finish(containerd(&words), 1),
    }
}

fn containerd(words: &[String]) -> Outcome<()> {
    let args = Args::parse(words)?;
    match args.verb()? {
        Verb::Start => start::run(&args),
        Verb::Delete => delete::run(&args),
        Verb::Info => print(&dialect::runtime_info()),
        Verb::Version => print(format!("{}\n", dialect::version_text()).as_bytes()),
    }
}

/// `undo POD [scope]`, run by the pod's daemon, which is spared.
fn undo(words: &[String]) -> ExitCode {
    let (pod, scope) = match words {
        [pod] => (pod, undo::POD),
        [pod, scope] => (pod, scope.as_str()),
        _ => return report(&Failure::new("read arguments", "undo", "want POD [scope]"), 1),
    };
    let run = || {
        let pod = absolute(Path::new(pod)).during("undo", pod)?;
        let caller = rustix::process::getppid().map(|parent| parent.as_raw_pid());
        let deadline = Deadline::after(UNDO_BUDGET);
        let left = undo::Undo { pod: &pod, scope, deadline, caller, in_unit: false }.run()?;
        // `delete` may have come and gone while the daemon was still ending.
        if scope == undo::POD
            && left.is_empty()
            && !pod.exists()
            && let Some(lock) = lock_of(&pod)
        {
            Lock::sweep(lock)?;
        }
        Ok(left)
    };
    match run() {
        Ok(left) => {
            left.iter().for_each(|line| eprintln!("{line}"));
            if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(failure) => report(&failure, 1),
    }
}

/// RUN/locks/HASH, from RUN/pods/HASH.
fn lock_of(pod: &Path) -> Option<PathBuf> {
    let pods = pod.parent().filter(|pods| pods.ends_with("pods"))?;
    Some(pods.parent()?.join("locks").join(pod.file_name()?))
}

fn print(bytes: &[u8]) -> Outcome<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).during("answer", "stdout")
}

fn finish(outcome: Outcome<()>, code: u8) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure, code),
    }
}

fn report(failure: &Failure, code: u8) -> ExitCode {
    eprintln!("{failure}");
    ExitCode::from(code)
}
