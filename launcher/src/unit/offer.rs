//! `start` has systemd begin the pod's unit, and gives its first process all that a daemon gets.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, OwnedFd};
use serde_json::json;

use super::launch::Launch;
use super::manager::Call;
use super::{DROP_IN, drop_in_dir, handover, name};
use crate::deadline::Deadline;
use crate::failure::{During, Failure, Outcome};
use crate::ledger::Append;
use crate::pod::Pod;
use crate::process::Identity;
use crate::spawn::{Daemon, Held, own_path};

/// For systemd to begin the unit's first process, and for that to have a daemon.
const BUDGET: Duration = Duration::from_secs(20);
const STEP: &str = "start unit";

/// The daemon of a new unit, which waits to be let go. `slice` is the pod's; none: the template's.
pub fn begin(daemon: &Daemon, pod: &Pod, ledger: &mut Append, what: &str, slice: Option<&str>) -> Outcome<Held> {
    let (unit, dir) = (name(pod.hash()), pod.dir());
    ledger.plan(json!({"kind": "unit", "name": unit}))?;
    ledger.plan(json!({"kind": "dir", "path": drop_in_dir(&unit)}))?;
    write_drop_in(&drop_in_dir(&unit), &drop_in(&own_path()?, &dir, what, slice))?;
    let offered = handover::offer(&dir)?;
    let launch = Launch::keep(&daemon.argv, &daemon.environ).during(STEP, &unit)?;
    let deadline = Deadline::after(BUDGET);
    await_birth(&offered, &unit, deadline)?;
    let socket = handover::accept(&offered, &dir)?;
    handover::give(&socket, daemon, &launch)?;
    let pid = handover::hear_pid(&socket, deadline)?;
    let process = Identity::of(pid).during(STEP, &unit)?;
    Ok(Held::new(process.ok_or_else(|| Failure::new(STEP, &unit, "its daemon ended at once"))?, socket))
}

/// Wait for the unit's first process, or for systemd's word that there is none.
fn await_birth(offered: &OwnedFd, unit: &str, deadline: Deadline) -> Outcome<()> {
    let call = Call::begin(&["start", unit])?;
    let mut fds = [&call.pidfd, offered].map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
    let woken = deadline.wait_any(&mut fds).during(STEP, unit)?;
    match (woken, fds.map(|fd| !fd.revents().is_empty())) {
        (_, [_, true]) => Ok(()),
        (false, _) => Err(Failure::new(STEP, unit, format!("did not begin within {} s", BUDGET.as_secs()))),
        (true, _) => Err(match call.answer(deadline) {
            Ok(_) => Failure::new(STEP, unit, "began and ended").hint("see its log: journalctl -u"),
            Err(said) => Failure::new(STEP, unit, said.replace('\n', " ")),
        }),
    }
}

fn write_drop_in(dir: &Path, text: &str) -> Outcome<()> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.and_then(|()| fs::write(dir.join(DROP_IN), text)).during("write drop-in", dir.display())
}

fn drop_in(launcher: &Path, pod: &Path, what: &str, slice: Option<&str>) -> String {
    let (launcher, pod) = (quote(launcher), quote(pod));
    let slice = slice.map(|slice| format!("Slice={slice}\n")).unwrap_or_default();
    format!(
        "[Unit]\nDescription=Kata pod {what}\n[Service]\n{slice}\
         ExecStart=\nExecStart={launcher} unit {pod}\nExecStopPost=\nExecStopPost={launcher} unit-ended {pod}\n"
    )
}

/// A word of a command line in a unit file.
fn quote(path: &Path) -> String {
    let text = path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_own_part_of_its_unit() {
        let text =
            drop_in(Path::new("/opt/a b/shim"), Path::new("/run/k/pods/1"), "k8s.io/x", Some("kubepods-p.slice"));
        assert!(text.contains("\nExecStart=\nExecStart=\"/opt/a b/shim\" unit \"/run/k/pods/1\"\n"), "{text}");
        assert!(text.contains("\nSlice=kubepods-p.slice\n"), "{text}");
        assert!(!drop_in(Path::new("/a"), Path::new("/b"), "x", None).contains("Slice="));
    }

    #[test]
    fn nothing_in_a_path_means_something() {
        assert_eq!(quote(Path::new("/a%i\"$X\\")), "\"/a%%i\\\"$$X\\\\\"");
    }
}
