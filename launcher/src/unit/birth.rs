//! `unit POD`: what systemd starts. It becomes the daemon, or hands the unit over to one that the zygote forked.
//!
//! The first of a pod gets everything from the launcher that waits for it. Later ones find in systemd's store what the daemon before
//! them had kept there; without anything kept the pod is over, and this ends well, so that systemd does not try again.
//!
//! Among what is kept may be how another installation's daemon is started, which then is tried once: it dies of its alarm unless it
//! settles, and is followed by one like those before. Must never happen: a pod that is lost because what came next was no good.

use std::env;
use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fd::{AsFd, FromRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{getpid, getppid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::launch::Launch;
use super::{handover, manager};
use crate::failure::{During, Failure, Outcome};
use crate::hurry;
use crate::ledger::{Append, Ledger, PodDir, Trial, Who};
use crate::posix;
use crate::process::Identity;
use crate::spawn::{Daemon, settle};

const STEP: &str = "start daemon";
const FIRST_FD: i32 = 3;
/// What systemd tells us and the daemon is to know.
const PASSED_ON: [&str; 2] = ["NOTIFY_SOCKET", "WATCHDOG_USEC"];
/// Names in systemd's store.
const LAUNCH: &str = "launch";
/// As `launch`, of another installation's daemon.
const NEXT: &str = "next";
const MOUNTS: &str = "mounts";

/// Run `unit POD`. Comes back when there is nothing to be done.
pub fn run(words: &[String]) -> Outcome<()> {
    let [pod] = words else { return Err(Failure::new("read arguments", "unit", "want POD")) };
    let pod = Path::new(pod);
    let kept = kept_fds()?;
    let done = if kept.is_empty() { first(pod)? } else { later(pod, kept)? };
    match done {
        Done::HandedOver => Ok(()),
        // A service that ends before it is ready has failed, and one that failed is started again.
        Done::NothingToDo => manager::notify("READY=1"),
    }
}

enum Done {
    HandedOver,
    NothingToDo,
}

/// Everything comes from the launcher, and nothing is done before the daemon is in the ledger.
fn first(pod: &Path) -> Outcome<Done> {
    let Some((launcher, [stderr, listen, ready, bootstrap, launch])) = handover::take(pod)? else {
        return Ok(Done::NothingToDo);
    };
    let launch = Launch::read(&launch)?;
    let null = null()?;
    let environ = launch.environ.into_iter().chain(passed_on()?).collect();
    let daemon = Daemon { argv: launch.argv, environ, in_unit: true, null, stderr, listen, ready, bootstrap };
    // RUN/pods/HASH
    let run = pod.parent().and_then(Path::parent).unwrap_or(pod);
    match daemon.ask_zygote(run)?.filter(|held| is_adopted(held.process.pid)) {
        Some(held) => {
            if !handover::announce(&launcher, held.process.pid)? {
                return Ok(Done::NothingToDo);
            }
            manager::notify(&format!("MAINPID={}", held.process.pid))?;
            held.let_go().map(|()| Done::HandedOver)
        }
        None if handover::announce(&launcher, getpid().as_raw_pid())? => {
            drop(launcher);
            daemon.become_daemon(None).map(|never| match never {})
        }
        None => Ok(Done::NothingToDo),
    }
}

/// systemd sees the end of its own children: a zygote that does not run under the same systemd is of no use to a unit.
fn is_adopted(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse::<i32>().ok());
    parent.is_some() && parent == getppid().map(|parent| parent.as_raw_pid())
}

/// Go on where a daemon died: in its mount namespace, with all that it had kept.
fn later(pod: &Path, kept: Vec<(String, OwnedFd)>) -> Outcome<Done> {
    let (Some(launch), Some(mounts)) = (newest(&kept, LAUNCH), newest(&kept, MOUNTS)) else {
        return Ok(Done::NothingToDo);
    };
    let Some(before) = record(pod)? else { return Ok(Done::NothingToDo) };
    let stderr = stderr_of(pod)?;
    let (launch, patience) = match (before, newest(&kept, NEXT)) {
        (Some(Trial::Next { patience }), Some(next)) => (Launch::read(next)?, Some(patience)),
        _ => (Launch::read(launch)?, None),
    };
    if before == Some(Trial::Begun) {
        // For people: without it the way back is the same.
        let said = format!("unit: {}: the daemon on trial has not settled; back to the one before\n", pod.display());
        let _ = rustix::io::write(&stderr, said.as_bytes());
    }
    move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount)).during(STEP, "mount namespace")?;
    let environ = environment(&launch.environ, &kept)?;
    let null = null()?;
    let fds: Vec<&OwnedFd> = [&null, &null, &stderr].into_iter().chain(kept.iter().map(|(_, fd)| fd)).collect();
    settle(&launch.environ).during(STEP, "limits")?;
    posix::become_fds(&fds).during(STEP, "hand over fds")?;
    rustix::process::umask(Mode::from_raw_mode(0o077));
    rustix::process::chdir("/").during(STEP, "chdir /")?;
    posix::reset_signals_of_daemon();
    if let Some(seconds) = patience {
        posix::die_in(seconds);
    }
    hurry::begin(None);
    let cause = posix::exec(&launch.argv, Some(&environ));
    Err(Failure::new(STEP, pod.display(), cause))
}

/// The ledger's daemon is this process from now on. How far a trial had come before it; None: the pod is over.
fn record(pod: &Path) -> Outcome<Option<Option<Trial>>> {
    let Some(dir) = PodDir::open(pod)? else { return Ok(None) };
    let Some(ledger) = Ledger::read(&dir)?.filter(|ledger| !ledger.is_stopping()) else { return Ok(None) };
    let us = getpid().as_raw_pid();
    let identity = Identity::of(us).during(STEP, us)?;
    let (Some(n), Some(us), Some(mut append)) =
        (ledger.number_of("daemon"), identity, Append::open(&dir, Who::Keeper)?)
    else {
        return Ok(None);
    };
    match ledger.trial {
        Some(Trial::Next { .. }) => append.trial(Trial::Begun)?,
        Some(Trial::Begun) => append.trial(Trial::Past { since: us.start.saturating_sub(1) })?,
        _ => {}
    }
    append.made_process(n, us).map(|()| Some(ledger.trial))
}

/// Of what is held under a name more than once, as it is while it is replaced (`kata_shimd/durable/systemd.py`).
fn newest<'a>(kept: &'a [(String, OwnedFd)], wanted: &str) -> Option<&'a OwnedFd> {
    let generation = |name: &str| match name.strip_prefix(wanted)? {
        "" => Some(0),
        rest => rest.strip_prefix('+')?.parse::<u64>().ok(),
    };
    let found = kept.iter().filter_map(|(name, fd)| Some((generation(name)?, fd)));
    found.max_by_key(|(generation, _)| *generation).map(|(_, fd)| fd)
}

/// What systemd held for us, by name, in the order of their numbers.
fn kept_fds() -> Outcome<Vec<(String, OwnedFd)>> {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    if variable("LISTEN_PID") != getpid().as_raw_pid().to_string() {
        return Ok(Vec::new());
    }
    let names: Vec<String> = variable("LISTEN_FDNAMES").split(':').map(str::to_owned).collect();
    let count: usize = variable("LISTEN_FDS").parse().during("adopt fds", "LISTEN_FDS")?;
    if names.len() != count {
        return Err(Failure::new("adopt fds", "LISTEN_FDNAMES", format!("{} names for {count} fds", names.len())));
    }
    // SAFETY: systemd opened these numbers for us to own, and nothing in this process has opened an fd before.
    Ok((FIRST_FD..).zip(names).map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect())
}

fn environment(base: &[CString], kept: &[(String, OwnedFd)]) -> Outcome<Vec<CString>> {
    let names: Vec<&str> = kept.iter().map(|(name, _)| name.as_str()).collect();
    let own = [
        format!("LISTEN_PID={}", getpid().as_raw_pid()),
        format!("LISTEN_FDS={}", kept.len()),
        format!("LISTEN_FDNAMES={}", names.join(":")),
    ];
    let own = own.into_iter().chain(hurry::entry()).map(|entry| CString::new(entry).during(STEP, "environment"));
    let before = |entry: &&CString| !entry.to_bytes().starts_with(hurry::VARIABLE.as_bytes());
    base.iter().filter(before).cloned().map(Ok).chain(own).chain(passed_on()?.into_iter().map(Ok)).collect()
}

fn passed_on() -> Outcome<Vec<CString>> {
    let present = PASSED_ON.into_iter().filter_map(|name| env::var(name).ok().map(|value| format!("{name}={value}")));
    present.map(|entry| CString::new(entry).during(STEP, "environment")).collect()
}

fn null() -> Outcome<OwnedFd> {
    openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).during("open", "/dev/null")
}

/// After what the daemons before said.
fn stderr_of(pod: &Path) -> Outcome<OwnedFd> {
    let path = pod.join("daemon.stderr");
    let opened = File::options().append(true).create(true).mode(0o600).open(&path);
    Ok(opened.during("open", path.display())?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_name_counts() {
        let file = || File::open("/dev/null").map(OwnedFd::from).unwrap_or_else(|error| unreachable!("{error}"));
        let names = ["launch+2", "launch", "launch+10", "launcher", "next+x"];
        let kept: Vec<_> = names.map(|name| (name.to_owned(), file())).into();
        let at = |wanted| newest(&kept, wanted).map(std::os::fd::AsRawFd::as_raw_fd);
        assert_eq!(at("launch"), kept.get(2).map(|(_, fd)| std::os::fd::AsRawFd::as_raw_fd(fd)));
        assert_eq!(at("next"), None);
    }
}
