//! The pod's pause container without an OCI runtime: a child of the agent that holds the pod's PID namespace.
//!
//! Owns: that child. Must never happen: it can be used to reach the guest's own files. It is chrooted into an empty
//! directory and gives up root, for containers that share its PID namespace see it as process 1.

use std::ffi::CStr;
use std::fs;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::{chroot, execv, setgid, setgroups, setuid, Gid, Pid, Uid};

use crate::error::{Context, Result};
use crate::protocol::oci;
use crate::reaper::{Exit, Reaper};

/// The name under which the agent's binary is the pause.
pub const NAME: &CStr = c"/pause";

/// Everything a pause can see of the guest.
const EMPTY: &str = "/run/kata-agent/empty";
const NOBODY: u32 = 65_534;

/// Annotations that tell a pod's sandbox from its containers, and what they say of it: containerd's, CRI-O's, dockershim's. As in
/// the daemon, the first that is there decides.
const KINDS: [(&str, &str); 3] = [
    ("io.kubernetes.cri.container-type", "sandbox"),
    ("io.kubernetes.cri-o.ContainerType", "sandbox"),
    ("io.kubernetes.docker.type", "podsandbox"),
];

/// Whether the container is the pod's pause.
pub fn is_pause(spec: &oci::Spec) -> bool {
    let kind = KINDS.iter().find_map(|(key, value)| spec.Annotations.get(*key).map(|said| said == value));
    let sandbox = kind.unwrap_or(false);
    let pause = spec.Process.Args.first().is_some_and(|command| command == "/pause");
    // A sandbox image may be anything; only the one that does nothing else can be replaced.
    pause && (sandbox || spec.Process.Args.len() == 1)
}

/// Starts the pause as the first process of a new PID namespace.
pub fn spawn(reaper: &Reaper) -> Result<(Pid, Exit)> {
    fs::create_dir_all(EMPTY).at("make", EMPTY)?;
    reaper.spawn_with(|| fork_into_namespace(|| execv(c"/proc/self/exe", &[NAME]).is_ok())).at("start", "pause")
}

/// Forks with a new PID namespace. `child` must not return successfully, and may only call what is safe after a fork.
fn fork_into_namespace(child: impl FnOnce() -> bool) -> nix::Result<Pid> {
    let flags = libc::CLONE_NEWPID | libc::SIGCHLD;
    // SAFETY: without CLONE_VM this is fork: the child has a stack of its own and executes only `child` and `_exit`.
    match Errno::result(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })? {
        0 => {
            child();
            // SAFETY: ends the child without running what belongs to the parent.
            unsafe { libc::_exit(127) }
        }
        pid => Ok(Pid::from_raw(i32::try_from(pid).map_err(|_| Errno::EOVERFLOW)?)),
    }
}

/// The pause itself: collects orphans until told to end.
pub fn run() -> ExitCode {
    let mut signals = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().for_each(|signal| signals.add(signal));
    if signals.thread_block().is_err() || confine(c"pause").is_err() {
        return ExitCode::from(126);
    }
    loop {
        match signals.wait() {
            Ok(Signal::SIGTERM | Signal::SIGINT) => return ExitCode::SUCCESS,
            _ => collect(),
        }
    }
}

/// Takes away all that a process of the agent's could do in the guest.
pub(super) fn confine(name: &CStr) -> nix::Result<()> {
    nix::sys::prctl::set_name(name)?;
    chroot(EMPTY)?;
    nix::unistd::chdir("/")?;
    setgroups(&[])?;
    setgid(Gid::from_raw(NOBODY))?;
    setuid(Uid::from_raw(NOBODY))
}

fn collect() {
    while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: Option<&str>, args: &[&str]) -> oci::Spec {
        let notes: Vec<_> = kind.map(|kind| (KINDS[0].0, kind)).into_iter().collect();
        annotated(&notes, args)
    }

    fn annotated(notes: &[(&str, &str)], args: &[&str]) -> oci::Spec {
        let process = oci::Process { Args: args.iter().map(ToString::to_string).collect(), ..Default::default() };
        let annotations = notes.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        oci::Spec { Process: Some(process).into(), Annotations: annotations.collect(), ..Default::default() }
    }

    #[test]
    fn pauses_with_arguments_by_whoever_says_so() {
        for note in KINDS {
            assert!(is_pause(&annotated(&[note], &["/pause", "--quiet"])), "{note:?}");
            assert!(!is_pause(&annotated(&[(note.0, "container")], &["/pause", "--quiet"])), "{note:?}");
        }
        assert!(!is_pause(&annotated(&[("io.kubernetes.docker.type", "sandbox")], &["/pause", "--quiet"])));
    }

    #[test]
    fn the_first_annotation_decides() {
        let both = [(KINDS[0].0, "container"), KINDS[1]];
        assert!(!is_pause(&annotated(&both, &["/pause", "--quiet"])));
    }

    #[test]
    fn pauses() {
        assert!(is_pause(&spec(Some("sandbox"), &["/pause"])));
        assert!(is_pause(&spec(None, &["/pause"])));
    }

    #[test]
    fn containers() {
        assert!(!is_pause(&spec(Some("container"), &["sh"])));
        assert!(!is_pause(&spec(Some("sandbox"), &["/bin/my-sandbox"])));
        assert!(!is_pause(&spec(None, &["/pause", "-v"])));
    }
}
