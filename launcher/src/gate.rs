//! `gate FD [options] -- ARGV…`: become ARGV, but only once somebody says so.
//!
//! Its spawner writes the process into the ledger, then sends one byte. If the spawner dies in between, the pipe ends
//! and so does the gate: nothing ever runs that is not in the ledger.

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::path::PathBuf;

use rustix::fd::{AsFd, FromRawFd, OwnedFd};
use rustix::process::{Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType, clear_ambient_capability_set};
use rustix::thread::{
    move_into_link_name_space, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::failure::{During, Failure, Outcome};

/// The capability with the highest number the kernel could ever have.
const CAPABILITIES: u32 = 64;
/// What a shell answers for a program it could not run.
pub const CANNOT_EXEC: u8 = 127;

/// What to change before becoming ARGV, in the order it is done.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    fd: i32,
    /// (to, from): numbers that ARGV's program expects its descriptors at.
    fds: Vec<(i32, i32)>,
    cgroups: Vec<PathBuf>,
    oom_score_adj: Option<i32>,
    netns: Option<PathBuf>,
    nofile: Option<u64>,
    chdir: Option<PathBuf>,
    drop_caps: bool,
    groups: Option<Vec<u32>>,
    gid: Option<u32>,
    uid: Option<u32>,
    no_new_privs: bool,
    die_with: Option<i32>,
    argv: Vec<CString>,
}

/// Run the gate. Comes back only when nothing is to be run, or with why it could not be.
pub fn run(words: &[String]) -> Outcome<()> {
    let plan = Plan::parse(words)?;
    if !plan.is_let_through()? {
        return Ok(());
    }
    plan.change()?;
    if !plan.has_parent()? {
        return Ok(());
    }
    let (program, cause) = plan.exec();
    Err(Failure::new("exec", program, cause))
}

impl Plan {
    fn parse(words: &[String]) -> Outcome<Self> {
        let mut words = words.iter();
        let mut plan = Self { fd: number("FD", words.next())?, ..Self::default() };
        while let Some(option) = words.next() {
            match option.as_str() {
                "--" => {
                    let argv: Result<_, _> = words.map(|word| CString::new(word.as_str())).collect();
                    plan.argv = argv.during("read gate", "ARGV")?;
                    break;
                }
                "--no-new-privs" => plan.no_new_privs = true,
                "--drop-caps" => plan.drop_caps = true,
                "--netns" => plan.netns = Some(value(option, words.next())?.into()),
                "--cgroup" => plan.cgroups.push(value(option, words.next())?.into()),
                "--fd" => plan.fds.push(mapping(option, words.next())?),
                "--chdir" => plan.chdir = Some(value(option, words.next())?.into()),
                "--oom-score-adj" => plan.oom_score_adj = Some(number(option, words.next())?),
                "--nofile" => plan.nofile = Some(number(option, words.next())?),
                "--uid" => plan.uid = Some(number(option, words.next())?),
                "--gid" => plan.gid = Some(number(option, words.next())?),
                "--die-with" => plan.die_with = Some(number(option, words.next())?),
                "--groups" => plan.groups = Some(numbers(option, words.next())?),
                other => return Err(Failure::new("read gate", other, "no such option")),
            }
        }
        match plan.argv.is_empty() {
            true => Err(Failure::new("read gate", "ARGV", "nothing to run").hint("it follows after --")),
            false => Ok(plan),
        }
    }

    /// Wait for the byte. False when the other end closed without one.
    fn is_let_through(&self) -> Outcome<bool> {
        if self.fd < 0 {
            return Err(Failure::new("read gate", "FD", "negative"));
        }
        // SAFETY: the number was handed to us to own, and nothing in this process has opened an fd of that number.
        let gate = unsafe { OwnedFd::from_raw_fd(self.fd) };
        let mut byte = [0];
        let got = rustix::io::retry_on_intr(|| rustix::io::read(&gate, &mut byte)).during("read gate", self.fd)?;
        Ok(got == 1)
    }

    fn change(&self) -> Outcome<()> {
        for (to, from) in &self.fds {
            renumber(*to, *from).during("place descriptor", to)?;
        }
        for cgroup in &self.cgroups {
            let procs = cgroup.join("cgroup.procs");
            fs::write(&procs, "0").during("join cgroup", procs.display())?;
        }
        if let Some(score) = self.oom_score_adj {
            fs::write("/proc/self/oom_score_adj", score.to_string()).during("set oom_score_adj", score)?;
        }
        if let Some(netns) = &self.netns {
            enter_netns(netns).during("join network namespace", netns.display())?;
        }
        if let Some(limit) = self.nofile {
            let both = Rlimit { current: Some(limit), maximum: Some(limit) };
            setrlimit(Resource::Nofile, both).during("limit open files", limit)?;
        }
        if let Some(dir) = &self.chdir {
            rustix::process::chdir(dir).during("change directory", dir.display())?;
        }
        self.drop_privileges()
    }

    /// The bounding set goes while we still may; ids before the rest, which setresuid would otherwise need back.
    fn drop_privileges(&self) -> Outcome<()> {
        if self.drop_caps {
            drop_bounding_set().during("drop capabilities", "bounding set")?;
        }
        if let Some(groups) = &self.groups {
            let groups: Vec<_> = groups.iter().map(|id| rustix::process::Gid::from_raw(*id)).collect();
            set_thread_groups(&groups).during("set groups", "")?;
        }
        if let Some(id) = self.gid {
            let gid = rustix::process::Gid::from_raw(id);
            set_thread_res_gid(gid, gid, gid).during("set group", id)?;
        }
        if let Some(id) = self.uid {
            let uid = rustix::process::Uid::from_raw(id);
            set_thread_res_uid(uid, uid, uid).during("set user", id)?;
        }
        if self.drop_caps {
            drop_own_sets().during("drop capabilities", "own sets")?;
        }
        if self.no_new_privs {
            set_no_new_privs(true).during("set no_new_privs", "")?;
        }
        Ok(())
    }

    /// Tie our life to our spawner's. False when it has died already, which no signal will tell of any more. Last of all, for a change
    /// of user unties it.
    fn has_parent(&self) -> Outcome<bool> {
        let Some(parent) = self.die_with else { return Ok(true) };
        set_parent_process_death_signal(Some(Signal::KILL)).during("die with", parent)?;
        Ok(getppid().is_some_and(|now| now.as_raw_pid() == parent))
    }

    /// Become ARGV. Comes back only when that failed.
    fn exec(&self) -> (String, io::Error) {
        crate::posix::reset_signals();
        (
            self.argv.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default(),
            crate::posix::exec(&self.argv, None),
        )
    }
}

/// Make `from` be `to`, and no longer `from`: a pipe ends when its last descriptor is closed, and the program knows of one.
fn renumber(to: i32, from: i32) -> Result<(), rustix::io::Errno> {
    if to == from {
        return Ok(());
    }
    // SAFETY: both numbers are the spawner's to give; nothing in this process owns a descriptor of either number.
    let (from, to) = unsafe { (OwnedFd::from_raw_fd(from), OwnedFd::from_raw_fd(to)) };
    rustix::io::dup2(&from, &mut ManuallyDrop::new(to))
}

fn enter_netns(path: &PathBuf) -> io::Result<()> {
    let netns = fs::File::open(path)?;
    Ok(move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn drop_bounding_set() -> Result<(), rustix::io::Errno> {
    for capability in (0..CAPABILITIES).filter_map(|bit| CapabilitySet::from_bits(1 << bit)) {
        match remove_capability_from_bounding_set(capability) {
            // The kernel does not have this one.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn drop_own_sets() -> Result<(), rustix::io::Errno> {
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

fn value<'a>(option: &str, word: Option<&'a String>) -> Outcome<&'a str> {
    word.map(String::as_str).ok_or_else(|| Failure::new("read gate", option, "no value"))
}

fn number<T: std::str::FromStr<Err: std::fmt::Display>>(option: &str, word: Option<&String>) -> Outcome<T> {
    value(option, word)?.parse().during("read gate", option)
}

/// `TO=FROM`, two descriptors.
fn mapping(option: &str, word: Option<&String>) -> Outcome<(i32, i32)> {
    let text = value(option, word)?;
    let (to, from) = text.split_once('=').ok_or_else(|| Failure::new("read gate", option, "want TO=FROM"))?;
    let pair: (i32, i32) = (to.parse().during("read gate", option)?, from.parse().during("read gate", option)?);
    match pair.0 >= 0 && pair.1 >= 0 {
        true => Ok(pair),
        false => Err(Failure::new("read gate", option, "negative")),
    }
}

/// A list like `1,2`; empty means none.
fn numbers(option: &str, word: Option<&String>) -> Outcome<Vec<u32>> {
    let list = value(option, word)?.split(',').filter(|id| !id.is_empty());
    list.map(|id| id.parse().during("read gate", option)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Outcome<Plan> {
        Plan::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn every_option() {
        let plan = parse(
            "7 --netns /n --cgroup /a --cgroup /b --oom-score-adj -5 --uid 1 --gid 2 --groups 3,4 --no-new-privs \
             --drop-caps --chdir /c --nofile 99 --die-with 8 --fd 3=11 --fd 4=12 -- /bin/x --netns y",
        );
        let expected = Plan {
            fd: 7,
            fds: vec![(3, 11), (4, 12)],
            cgroups: vec!["/a".into(), "/b".into()],
            oom_score_adj: Some(-5),
            netns: Some("/n".into()),
            nofile: Some(99),
            chdir: Some("/c".into()),
            drop_caps: true,
            groups: Some(vec![3, 4]),
            gid: Some(2),
            uid: Some(1),
            no_new_privs: true,
            die_with: Some(8),
            argv: vec![c"/bin/x".into(), c"--netns".into(), c"y".into()],
        };
        assert_eq!(plan, Ok(expected));
    }

    #[test]
    fn what_is_refused() {
        for line in [
            "",
            "3 --fd 3 -- /a",
            "3 --fd a=b -- /a",
            "3 --fd 3=-1 -- /a",
            "x -- /a",
            "3",
            "3 --",
            "3 --colour red -- /a",
            "3 --uid -- /a",
            "3 --uid",
            "3 --groups a -- /x",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn no_groups_at_all() {
        let plan = Plan::parse(&["3", "--groups", "", "--", "/x"].map(str::to_owned));
        assert_eq!(plan.map(|plan| plan.groups), Ok(Some(vec![])));
    }
}
