//! `unit-ended POD`: what systemd runs after each end of the unit's daemon. It judges whether another is to come, and ends the pod
//! if not.

use std::env;
use std::path::Path;
use std::time::Duration;

use rustix::process::getpid;

use super::manager;
use crate::deadline::Deadline;
use crate::failure::{During, Failure, Outcome};
use crate::ledger::{Append, Ledger, PodDir, Trial, Who};
use crate::lock::Lock;
use crate::process::Identity;
use crate::undo::{POD, Undo};

const BUDGET: Duration = Duration::from_secs(30);
/// A daemon that hangs dies slowly: its deaths are counted over a longer time than those of one that crashes.
const HANGS: usize = 3;
const HANGS_WITHIN: Duration = Duration::from_secs(600);
/// Of the times in `/proc/PID/stat`, on every architecture of Linux.
const TICKS_PER_SECOND: u64 = 100;

/// Run `unit-ended POD`.
pub fn run(words: &[String]) -> Outcome<()> {
    let [path] = words else { return Err(Failure::new("read arguments", "unit-ended", "want POD")) };
    let path = Path::new(path);
    let Some(dir) = PodDir::open(path)? else { return Ok(()) };
    let Some(ledger) = Ledger::read(&dir)? else { return Ok(()) };
    let result = env::var("SERVICE_RESULT").unwrap_or_default();
    let Some(now) = Identity::of(getpid().as_raw_pid()).during("end unit", path.display())? else { return Ok(()) };
    let Some(why) = over(&ledger, &result, now.start) else { return go_on(path, &ledger, &result) };
    if !ledger.is_stopping() {
        eprintln!("unit-ended: {}: {why}: the pod is given up", path.display());
        // Those who look at the ledger from now on wait for our undo; on a full disk they look at the unit alone.
        if let Ok(Some(mut ledger)) = Append::open(&dir, Who::Keeper) {
            let _ = ledger.phase("stopping");
        }
    }
    give_up(path, &ledger)
}

/// Another is to come: systemd starts one after a failure alone, and our failure is one of the unit's.
fn go_on(path: &Path, ledger: &Ledger, result: &str) -> Outcome<()> {
    match result == "success" && on_trial(ledger) {
        true => Err(Failure::new("end unit", path.display(), "the daemon on trial ended as if its pod had")),
        false => Ok(()),
    }
}

/// What makes room for another version's daemon, or is that, does not fail.
fn on_trial(ledger: &Ledger) -> bool {
    matches!(ledger.trial, Some(Trial::Next { .. } | Trial::Begun))
}

/// Why no further daemon is to come; None if one is, or if the launcher sees to what was not ready yet.
fn over(ledger: &Ledger, result: &str, now: u64) -> Option<String> {
    if ledger.is_stopping() {
        return Some("it was stopping".to_owned());
    }
    if ledger.phase.as_deref() != Some("running") {
        return None;
    }
    let Some(keeping) = ledger.keeping else { return Some("its daemon is gone, and nothing was kept".to_owned()) };
    if on_trial(ledger) {
        return None;
    }
    if matches!(result, "success" | "timeout") {
        return Some(format!("its daemon ended with {result}"));
    }
    let (deaths, within) = match result {
        "watchdog" => (keeping.deaths.min(HANGS), HANGS_WITHIN),
        _ => (keeping.deaths, keeping.within),
    };
    let since = now.saturating_sub(within.as_secs().saturating_mul(TICKS_PER_SECOND));
    let moved = match ledger.trial {
        Some(Trial::Past { since }) => since,
        _ => 0,
    };
    let begun = ledger.daemons.iter().filter(|start| **start >= since && **start > moved).count();
    (begun > deaths).then(|| format!("{begun} daemons died within {} s", within.as_secs()))
}

fn give_up(path: &Path, ledger: &Ledger) -> Outcome<()> {
    let deadline = Deadline::after(BUDGET);
    if let Some(unit) = ledger.unit() {
        // Should systemd not hear it, the next process of the unit finds nothing to do.
        let _ = manager::stop_soon(unit, deadline);
    }
    let left = Undo { pod: path, scope: POD, deadline, caller: None, in_unit: true }.run()?;
    match left.is_empty() {
        true => crate::lock_of(path).map_or(Ok(()), Lock::sweep),
        false => Err(Failure::new("undo", path.display(), format!("{} things would not go", left.len())).quote(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 100_000;

    fn ledger(phase: &str, kept: bool, ages: &[u64]) -> Ledger {
        let mut text = format!("{{\"op\":\"phase\",\"phase\":\"{phase}\"}}\n");
        text += "{\"op\":\"plan\",\"n\":1,\"kind\":\"process\",\"what\":\"daemon\"}\n";
        if kept {
            text += "{\"op\":\"set\",\"key\":\"keeping\",\"value\":{\"deaths\":4,\"within\":10}}\n";
        }
        for age in ages {
            text += &format!("{{\"op\":\"made\",\"n\":1,\"pid\":7,\"start\":{}}}\n", NOW - age);
        }
        Ledger::parse(text.as_bytes())
    }

    fn is_over(ledger: &Ledger, result: &str) -> bool {
        over(ledger, result, NOW).is_some()
    }

    #[test]
    fn a_daemon_that_crashed_is_followed_by_another() {
        assert!(!is_over(&ledger("running", true, &[1]), "signal"));
        assert!(!is_over(&ledger("running", true, &[400, 300, 200, 100]), "exit-code"));
    }

    #[test]
    fn a_pod_that_stops_or_keeps_nothing_or_was_ended_is_over() {
        assert!(is_over(&ledger("stopping", true, &[1]), "signal"));
        assert!(is_over(&ledger("running", false, &[1]), "signal"));
        assert!(is_over(&ledger("running", true, &[1]), "success"));
        assert!(is_over(&ledger("running", true, &[1]), "timeout"));
    }

    #[test]
    fn what_was_not_ready_is_the_launchers() {
        assert!(!is_over(&ledger("starting", false, &[1]), "exit-code"));
    }

    #[test]
    fn deaths_are_counted_over_their_time() {
        assert!(is_over(&ledger("running", true, &[5, 4, 3, 2, 1]), "signal"));
        assert!(!is_over(&ledger("running", true, &[1_001, 4, 3, 2, 1]), "signal"));
    }

    #[test]
    fn what_is_on_trial_may_end_as_it_likes() {
        for trial in ["{\"is\":\"next\",\"patience\":9}", "{\"is\":\"begun\"}"] {
            let mut tried = ledger("running", true, &[6, 5, 4, 3, 2, 1]);
            tried.trial = serde_json::from_str(trial).ok().and_then(|value| Trial::read(&value));
            for result in ["signal", "exit-code", "watchdog", "timeout", "success"] {
                assert!(!is_over(&tried, result), "{trial} {result}");
            }
            assert!(go_on(Path::new("/p"), &tried, "success").is_err(), "or systemd would start no other");
            assert!(go_on(Path::new("/p"), &tried, "signal").is_ok());
        }
        let mut stopping = ledger("stopping", true, &[1]);
        stopping.trial = Some(Trial::Begun);
        assert!(is_over(&stopping, "signal"));
    }

    #[test]
    fn after_a_trial_deaths_are_counted_anew() {
        let mut tried = ledger("running", true, &[6, 5, 4, 3, 2, 1]);
        tried.trial = Some(Trial::Past { since: NOW - 3 });
        assert!(!is_over(&tried, "signal"));
        tried.trial = Some(Trial::Past { since: NOW - 7 });
        assert!(is_over(&tried, "signal"));
    }

    #[test]
    fn hangs_are_counted_over_a_longer_time() {
        assert!(is_over(&ledger("running", true, &[30_000, 20_000, 10_000, 1]), "watchdog"));
        assert!(!is_over(&ledger("running", true, &[70_000, 20_000, 10_000, 1]), "watchdog"));
    }
}
