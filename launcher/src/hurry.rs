//! A later daemon goes before the pod's other work until it serves: containerd waits two seconds for State, however busy the host is.
//!
//! It is told what to go back to, and does so as soon as it serves (`kata_shimd/daemon.py`).

use rustix::process::{Pid, getpriority_process, setpriority_process};

pub const VARIABLE: &str = "KATA_SHIMD_NICE";
/// What its niceness is lowered by: about nine times the processor time of who wants it as much.
const LEAD: i32 = 10;
const LOWEST: i32 = -20;

/// For the environment of a daemon that is as nice as this process; None where that is not to be known.
pub fn entry() -> Option<String> {
    getpriority_process(None).ok().map(|nice| format!("{VARIABLE}={nice}"))
}

/// Let a process, or this one, go first. Where that is not allowed it waits its turn.
pub fn begin(pid: Option<i32>) {
    let pid = pid.and_then(Pid::from_raw);
    if let Ok(nice) = getpriority_process(pid) {
        let _ = setpriority_process(pid, (nice - LEAD).max(LOWEST));
    }
}
