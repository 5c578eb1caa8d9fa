//! Making the daemon: a forked child that waits until it is in the ledger, then becomes Python.

use std::env;
use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, Mode, memfd_create};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit, getpid, getppid, getrlimit, prlimit};
use rustix::thread::{CoreSchedulingScope, create_core_scheduling_cookie};

use crate::failure::{During, Failure, Outcome};
use crate::posix::{self, Fork};
use crate::process::Identity;
use crate::{cgroup, hurry, zygote};

const OOM_SCORE_ADJ_MAX: i32 = 1000;
/// Names of the fds from 3 on, for `LISTEN_FDNAMES`.
const FD_NAMES: &str = "listen:ready:bootstrap";

/// What the daemon is started with. The fds are its 1/0, 2, 3, 4 and 5.
pub struct Daemon {
    pub argv: Vec<CString>,
    /// Without the names of its fds.
    pub environ: Vec<CString>,
    /// Whether we are the first process of its unit, which systemd has made what a daemon is to be, and not the launcher.
    pub in_unit: bool,
    pub null: OwnedFd,
    pub stderr: OwnedFd,
    pub listen: OwnedFd,
    pub ready: OwnedFd,
    pub bootstrap: OwnedFd,
}

/// A child that waits to be let go. Dropped, it ends without having done anything.
pub struct Held {
    pub process: Identity,
    gate: File,
}

impl Held {
    /// `process` waits for a byte from the pipe of which `gate` is the writing end.
    pub fn new(process: Identity, gate: OwnedFd) -> Self {
        Self { process, gate: gate.into() }
    }

    pub fn let_go(mut self) -> Outcome<()> {
        self.gate.write_all(b"!").during("start daemon", "tell it to begin")
    }
}

impl Daemon {
    /// A child that blocks until it is let go, and ends when we die first: the zygote's in `run`, if there is one, or our own.
    pub fn begin(self, run: &Path) -> Outcome<Held> {
        match self.ask_zygote(run)? {
            Some(held) => Ok(held),
            None => self.fork(),
        }
    }

    /// What our own child does for itself before it becomes the daemon, is done here for the zygote's, as far as it can be.
    pub fn ask_zygote(&self, run: &Path) -> Outcome<Option<Held>> {
        if self.is_told("KATA_SHIMD_NO_ZYGOTE") {
            return Ok(None);
        }
        let environ = memfd(&self.environment()?).during("start daemon", "environment")?;
        let Some(held) = zygote::fork(run, self, &environ) else { return Ok(None) };
        let pid = held.process.pid;
        if let Some(score) = self.oom_score_adj()? {
            fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
                .during("start daemon", "oom_score_adj")?;
        }
        cgroup::bring(pid).during("start daemon", "cgroup")?;
        self.schedule_apart(Pid::from_raw(pid)).during("start daemon", "core scheduling")?;
        raise_nofile(Pid::from_raw(pid)).during("start daemon", "limit of open files")?;
        Ok(Some(held))
    }

    /// Fork. The child blocks until it is let go; when we die first, it ends.
    fn fork(self) -> Outcome<Held> {
        let oom_score_adj = self.oom_score_adj()?;
        let (wait, gate) = pipe_with(PipeFlags::CLOEXEC).during("start daemon", "pipe")?;
        match posix::fork().during("start daemon", "fork")? {
            Fork::Child => {
                drop(gate);
                self.run(wait, oom_score_adj)
            }
            Fork::Parent { child } => {
                let process = Identity::of(child).during("start daemon", child)?;
                let process = process.ok_or_else(|| Failure::new("start daemon", child, "ended at once"))?;
                Ok(Held::new(process, gate))
            }
        }
    }

    fn run(self, wait: OwnedFd, oom_score_adj: Option<i32>) -> ! {
        if File::from(wait).read_exact(&mut [0]).is_err() {
            posix::exit_child(0);
        }
        let Err(failure) = self.become_daemon(oom_score_adj);
        // stderr is POD/daemon.stderr by now, or still the launcher's: somebody reads it.
        eprintln!("{failure}");
        posix::exit_child(1)
    }

    pub fn become_daemon(&self, oom_score_adj: Option<i32>) -> Outcome<std::convert::Infallible> {
        let fds = [&self.null, &self.null, &self.stderr, &self.listen, &self.ready, &self.bootstrap];
        posix::become_fds(&fds).during("start daemon", "hand over fds")?;
        if !self.in_unit {
            rustix::process::setsid().during("start daemon", "setsid")?;
        }
        posix::unshare_mounts().during("start daemon", "mount namespace")?;
        if let Some(score) = oom_score_adj {
            fs::write("/proc/self/oom_score_adj", score.to_string()).during("start daemon", "oom_score_adj")?;
        }
        self.schedule_apart(None).during("start daemon", "core scheduling")?;
        raise_nofile(None).during("start daemon", "limit of open files")?;
        rustix::process::umask(Mode::from_raw_mode(0o077));
        rustix::process::chdir("/").during("start daemon", "chdir /")?;
        posix::reset_signals_of_daemon();
        let cause = posix::exec(&self.argv, Some(&self.environment()?));
        let program = self.argv.first().map(|program| program.to_string_lossy().into_owned()).unwrap_or_default();
        Err(Failure::new("start daemon", program, cause))
    }

    /// The unit's own; or one worse than containerd's, so that the kernel kills a shim before it kills containerd.
    fn oom_score_adj(&self) -> Outcome<Option<i32>> {
        if self.in_unit {
            return score("self").map(Some);
        }
        // No parent: it lives in another pid namespace.
        let Some(parent) = getppid() else { return Ok(None) };
        Ok(Some((score(&parent.as_raw_pid().to_string())? + 1).min(OOM_SCORE_ADJ_MAX)))
    }

    /// With core scheduling on, nothing of this pod shares a core with anything else. `pid` is the daemon's, or None in it.
    fn schedule_apart(&self, pid: Option<Pid>) -> Result<(), Errno> {
        match self.is_told("SCHED_CORE") {
            true => schedule_apart(pid.unwrap_or_else(getpid)),
            false => Ok(()),
        }
    }

    fn is_told(&self, name: &str) -> bool {
        is_told(&self.environ, name)
    }

    /// Its environment, with the names of its fds.
    fn environment(&self) -> Outcome<Vec<CString>> {
        let pid = getpid().as_raw_pid();
        let own = [format!("LISTEN_PID={pid}"), "LISTEN_FDS=3".into(), format!("LISTEN_FDNAMES={FD_NAMES}")];
        let own = own.into_iter().map(|entry| CString::new(entry).during("start daemon", "environment"));
        self.environ.iter().cloned().map(Ok).chain(own).collect()
    }
}

fn score(who: &str) -> Outcome<i32> {
    let path = format!("/proc/{who}/oom_score_adj");
    fs::read_to_string(&path).during("read", &path)?.trim().parse().during("read", &path)
}

/// For a daemon in `environ` that nobody but systemd has made: what `Daemon::become_daemon` does for a first one.
pub fn settle(environ: &[CString]) -> Result<(), Errno> {
    if is_told(environ, "SCHED_CORE") {
        schedule_apart(getpid())?;
    }
    raise_nofile(None)
}

/// Whether the variable is set, to more than nothing.
fn is_told(environ: &[CString], name: &str) -> bool {
    let set = |entry: &CString| {
        entry
            .as_bytes()
            .strip_prefix(name.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"="))
            .is_some_and(|value| !value.is_empty())
    };
    environ.iter().any(set)
}

fn schedule_apart(pid: Pid) -> Result<(), Errno> {
    match create_core_scheduling_cookie(pid, CoreSchedulingScope::ThreadGroup) {
        // ENODEV: no SMT here; EINVAL: a kernel without it.
        Err(Errno::NODEV | Errno::INVAL) | Ok(()) => Ok(()),
        Err(error) => Err(error),
    }
}

fn raise_nofile(pid: Option<Pid>) -> Result<(), Errno> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    prlimit(pid, Resource::Nofile, Rlimit { current: maximum, maximum }).map(|_| ())
}

/// Entries that end with NUL, in memory.
fn memfd(entries: &[CString]) -> std::io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("environ", MemfdFlags::CLOEXEC)?);
    entries.iter().try_for_each(|entry| file.write_all(entry.as_bytes_with_nul()))?;
    Ok(file.into())
}

/// Our environment, without what was meant for others, and with `own`.
pub fn environment_with(own: &[String]) -> Outcome<Vec<CString>> {
    let ours = [hurry::VARIABLE, "NOTIFY_SOCKET"];
    let foreign = |name: &OsString| ours.iter().any(|one| name == one) || name.as_bytes().starts_with(b"LISTEN_");
    let inherited = env::vars_os().filter(|(name, _)| !foreign(name)).map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    });
    let all = inherited.chain(own.iter().map(OsString::from));
    all.map(|entry| CString::new(entry.into_vec()).during("start daemon", "environment")).collect()
}

/// The launcher's own path, links resolved: its neighbours are those of the installation.
pub fn own_path() -> Outcome<PathBuf> {
    env::current_exe().during("find launcher", "/proc/self/exe")
}

/// The interpreter of the daemon: `python3` beside the launcher, or what the script `kata-shimd` beside it names.
pub fn python(launcher: &Path) -> Outcome<PathBuf> {
    let beside = launcher.with_file_name("python3");
    if beside.exists() {
        return Ok(beside);
    }
    let script = launcher.with_file_name("kata-shimd");
    let found = File::open(&script).ok().and_then(|file| interpreter(BufReader::new(file.take(4096))));
    found.ok_or_else(|| {
        Failure::new("find Python", launcher.display(), "neither python3 nor the script kata-shimd lies beside it")
            .hint("install the package kata-shimd, and link to its launcher rather than copying it")
    })
}

/// The interpreter a script names: after `#!`, or, where installers found that too long, in a line `'''exec' PATH …`.
fn interpreter(mut script: impl BufRead) -> Option<PathBuf> {
    let mut line = || {
        let mut line = String::new();
        script.read_line(&mut line).ok().map(|_| line)
    };
    let first = line()?;
    let program = first.strip_prefix("#!")?.trim();
    let path = match program {
        "/bin/sh" => {
            line()?.strip_prefix("'''exec'")?.trim().split("\"$0\"").next()?.trim().trim_matches('"').to_owned()
        }
        _ => program.split_whitespace().next()?.to_owned(),
    };
    Some(PathBuf::from(path)).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(script: &str) -> Option<PathBuf> {
        interpreter(script.as_bytes())
    }

    #[test]
    fn the_interpreter_of_a_script() {
        assert_eq!(read("#!/venv/bin/python3.11\nimport x\n"), Some("/venv/bin/python3.11".into()));
        assert_eq!(read("#!/venv/bin/python -E\n"), Some("/venv/bin/python".into()));
        let long = "#!/bin/sh\n'''exec' \"/a long/path/python\" \"$0\" \"$@\"\n' '''\n";
        assert_eq!(read(long), Some("/a long/path/python".into()));
        let plain = "#!/bin/sh\n'''exec' /a/path/python \"$0\" \"$@\"\n' '''\n";
        assert_eq!(read(plain), Some("/a/path/python".into()));
    }

    #[test]
    fn what_names_no_interpreter() {
        for script in ["", "import x\n", "#!python\n", "#!/bin/sh\necho\n", "#!\n"] {
            assert_eq!(read(script), None, "{script:?}");
        }
    }
}
