//! What is said to systemd: by its own client, which finds it with and without a bus, and by its notify socket.

use std::env;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::deadline::Deadline;
use crate::failure::{During, Failure, Outcome};

/// For a call that only puts something into a queue, or asks.
const CALL_BUDGET: Duration = Duration::from_secs(5);
const SAID_MAX: u64 = 4096;

/// A call of systemctl's under way; dropped, it is no longer waited for, and what it asked for goes on.
pub struct Call {
    child: Child,
    pub pidfd: OwnedFd,
}

impl Call {
    pub fn begin(words: &[&str]) -> Outcome<Self> {
        let mut command = Command::new("systemctl");
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().during("call systemd", "systemctl")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure::new("call systemd", "systemctl", "no pid"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).during("call systemd", "systemctl")?;
        Ok(Self { child, pidfd })
    }

    /// What it has answered; an error with what it said when it failed, or has no answer by `deadline`.
    pub fn answer(mut self, deadline: Deadline) -> Result<String, String> {
        match deadline.wait(self.pidfd.as_fd(), PollFlags::IN) {
            Ok(true) => {}
            Ok(false) => return Err("systemd does not answer in time".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
        let status = self.child.wait().map_err(|error| error.to_string())?;
        let said = |pipe: Option<&mut dyn Read>| {
            let mut text = String::new();
            // What it said is for people: half of it is better than none.
            let _ = pipe.map(|pipe| pipe.take(SAID_MAX).read_to_string(&mut text));
            text.trim().to_owned()
        };
        match status.success() {
            true => Ok(said(self.child.stdout.as_mut().map(|pipe| pipe as &mut dyn Read))),
            false => Err(said(self.child.stderr.as_mut().map(|pipe| pipe as &mut dyn Read))),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // One that has ended needs neither.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn call(words: &[&str], deadline: Deadline) -> Result<String, String> {
    Call::begin(words).map_err(|failure| failure.to_string())?.answer(deadline)
}

/// The unit is not started again from now on; returns before it has ended. One that is not there has ended.
pub fn stop_soon(unit: &str, deadline: Deadline) -> Result<(), String> {
    known(call(&["--no-block", "stop", unit], deadline.within(CALL_BUDGET)))
}

/// The unit has ended when this returns.
pub fn stop(unit: &str, deadline: Deadline) -> Result<(), String> {
    known(call(&["stop", unit], deadline))
}

fn known(answer: Result<String, String>) -> Result<(), String> {
    match answer {
        Err(said) if !said.contains("not loaded") => Err(said),
        _ => Ok(()),
    }
}

/// Whether the unit runs, or is about to.
pub fn is_up(unit: &str, deadline: Deadline) -> bool {
    let state = call(&["show", "--property=ActiveState", "--value", unit], deadline.within(CALL_BUDGET));
    matches!(state.as_deref(), Ok("active" | "activating" | "deactivating" | "reloading"))
}

/// A word to the systemd that runs us (sd_notify(3)).
pub fn notify(text: &str) -> Outcome<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return Err(Failure::new("tell systemd", "NOTIFY_SOCKET", "not set").hint("only systemd runs this"));
    };
    let say = || {
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddrUnix::new_abstract_name(name)?,
            None => SocketAddrUnix::new(path.as_os_str())?,
        };
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        sendto(&socket, text.as_bytes(), SendFlags::NOSIGNAL, &address)
    };
    say().during("tell systemd", text).map(|_| ())
}
