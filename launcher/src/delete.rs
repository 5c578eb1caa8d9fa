//! `delete`: whatever is left of a container whose daemon is gone, or a word to the daemon that is there.
//!
//! containerd runs it after every death of a connection, also after each normal deletion. It is idempotent and must
//! end within containerd's 5 s; it never reads stdin.

use std::env;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::fd::OwnedFd;

use crate::args::Args;
use crate::bundle::{Bundle, Role};
use crate::daemon;
use crate::deadline::Deadline;
use crate::dialect::delete_response;
use crate::failure::{During, Outcome};
use crate::ledger::{Ledger, PodDir};
use crate::lock::Lock;
use crate::pod::{Pod, run_from_environment};
use crate::process::{Identity, has_ended};
use crate::undo::{POD, Undo};

/// containerd allows 5 s; the rest is for it to start us and read the answer.
const BUDGET: Duration = Duration::from_secs(4);
/// For the daemon's answer to Abandon; the request is read even when the answer comes too late.
const ABANDON_BUDGET: Duration = Duration::from_secs(1);
/// For a daemon that does not answer, because it is just being killed, to have ended.
const ENDING_BUDGET: Duration = Duration::from_millis(500);

/// Run `delete`. What could not be undone is a warning: containerd must be able to remove the container all the same.
pub fn run(args: &Args) -> Outcome<()> {
    args.check()?;
    let deadline = Deadline::after(BUDGET);
    let bundle = Bundle::at(bundle_path(args)?);
    let pod = find_pod(args, &bundle);
    let pid = match clean_up(&pod, &args.id, deadline) {
        Ok(done) => {
            done.warnings.iter().for_each(|line| eprintln!("{line}"));
            done.vm_pid
        }
        Err(failure) => {
            eprintln!("{failure}");
            0
        }
    };
    let mut stdout = std::io::stdout();
    let answer = delete_response(pid, SystemTime::now());
    stdout.write_all(&answer).and_then(|()| stdout.flush()).during("answer containerd", "stdout")
}

fn bundle_path(args: &Args) -> Outcome<PathBuf> {
    match args.bundle.is_empty() {
        true => env::current_dir().during("find bundle", "working directory"),
        false => Ok(PathBuf::from(&args.bundle)),
    }
}

/// The container's pod. The environment may lack what it had at `start` (containerd's `env` list is for `start` alone), and the
/// bundle may have lost its config.json: then the address `start` left in it knows better.
fn find_pod(args: &Args, bundle: &Bundle) -> Pod {
    let known = bundle.address().as_deref().and_then(Pod::from_address);
    let sandbox = match bundle.role() {
        Ok(Role::Member(sandbox)) => sandbox,
        Ok(Role::Sandbox) | Err(_) => args.id.clone(),
    };
    let named = Pod::new(run_from_environment(), &args.address, &args.namespace, &sandbox);
    match (run_from_environment(), known) {
        (None, Some(known)) => known,
        (Some(run), Some(known)) if known.run() == run => known,
        _ => named,
    }
}

/// What came of it.
#[derive(Default)]
struct Done {
    /// Pid of the VM, which is what containerd was told the task's pid is.
    vm_pid: u64,
    warnings: Vec<String>,
}

fn clean_up(pod: &Pod, id: &str, deadline: Deadline) -> Outcome<Done> {
    if !pod.lock().parent().is_some_and(|locks| locks.is_dir()) {
        return Ok(Done::default());
    }
    let lock = Lock::take(pod.lock(), deadline)?;
    let done = clean_up_locked(pod, id, deadline);
    if !pod.exists()? {
        lock.remove()?;
    }
    done
}

fn clean_up_locked(pod: &Pod, id: &str, deadline: Deadline) -> Outcome<Done> {
    let path = pod.dir();
    let Some(dir) = PodDir::open(&path)? else { return Ok(Done::default()) };
    let ledger = Ledger::read(&dir)?.unwrap_or_default();
    let vm = ledger.process("qemu").and_then(|vm| vm.identity);
    let done = Done { vm_pid: vm.and_then(|vm| vm.pid.try_into().ok()).unwrap_or(0), warnings: Vec::new() };
    if !is_gone(pod, id, &ledger, deadline).during("look for daemon", path.display())? {
        return Ok(done);
    }
    let undo = Undo { pod: &path, scope: POD, deadline, caller: None };
    Ok(Done { warnings: undo.run()?, ..done })
}

/// Whether no daemon lives, nor a keeper that would start one. One that is stopping is given the time that is left; another is told,
/// and decides by itself.
fn is_gone(pod: &Pod, id: &str, ledger: &Ledger, deadline: Deadline) -> Result<bool, String> {
    let recorded: Vec<Identity> =
        ["keeper", "daemon"].into_iter().filter_map(|what| ledger.process(what)?.identity).collect();
    let alive = recorded.iter().map(Identity::open).filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()?;
    if alive.is_empty() {
        return Ok(true);
    }
    if ledger.is_stopping() {
        return have_ended(&alive, deadline.within(deadline.left() / 2));
    }
    match daemon::abandon(&pod.socket(), id, deadline.within(ABANDON_BUDGET).left()) {
        Ok(()) => Ok(false),
        // A killed process closes its sockets a moment before it has ended, which is just what brings containerd here. On a busy
        // host the moment may be long, and nobody else comes to undo it.
        Err(_) if recorded.iter().all(Identity::is_exiting) => have_ended(&alive, deadline.within(deadline.left() / 2)),
        Err(_) => have_ended(&alive, deadline.within(ENDING_BUDGET)),
    }
}

fn have_ended(processes: &[OwnedFd], deadline: Deadline) -> Result<bool, String> {
    processes.iter().try_fold(true, |ended, pidfd| Ok(ended && has_ended(pidfd, deadline)?))
}
