//! One process of a container: its streams, its terminal and its end.
//!
//! Owns: what lets others wait for it. Must never happen: an end is announced before what it caused (an OOM kill) was reported.

pub mod launch;
pub mod stdio;
pub mod terminal;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tokio::sync::watch;

use crate::error::{Context, Error, Result};
use crate::reaper::{Exit, Status};
use launch::Streams;
use stdio::{Input, Life, Output};
use terminal::Terminal;

/// A process that runs or has run.
pub struct Process {
    /// Its pid as the agent sees it. Not to be signalled after its end.
    pub pid: Pid,
    /// Its life; `Some` once ended.
    pub life: Life,
    /// Standard input.
    pub stdin: Input,
    /// Standard output, or all output of a terminal.
    pub stdout: Output,
    /// Standard error; empty with a terminal.
    pub stderr: Output,
    terminal: Option<Terminal>,
    /// When it ended, by a clock that nobody sets.
    ended: OnceLock<Instant>,
    told: AtomicBool,
}

impl Process {
    /// Takes over a child. `before_end` runs between its death and the moment anybody hears of it.
    pub fn start(pid: Pid, exit: Exit, streams: Streams, before_end: impl FnOnce() + Send + 'static) -> Arc<Self> {
        let (sender, life) = watch::channel(None);
        let terminal = streams.terminal.is_some();
        let process = Arc::new(Self {
            pid,
            life,
            stdin: Input::new(streams.stdin, terminal),
            stdout: Output::new(streams.stdout),
            stderr: Output::new(streams.stderr),
            terminal: streams.terminal,
            ended: OnceLock::new(),
            told: AtomicBool::new(false),
        });
        let dead = process.clone();
        tokio::spawn(async move {
            // The reaper never drops a sender; were it to, 255 is what a lost process ends with.
            let status = exit.await.unwrap_or(255);
            dead.ended.get_or_init(Instant::now);
            before_end();
            dead.stdin.release();
            if let Some(terminal) = &dead.terminal {
                terminal.release();
            }
            sender.send_replace(Some(status));
        });
        process
    }

    /// How it ended, if it did.
    pub fn status(&self) -> Option<Status> {
        *self.life.borrow()
    }

    /// Waits for its end. Any number of waiters, also after it.
    pub async fn wait(&self) -> Status {
        let mut life = self.life.clone();
        let ended = life.wait_for(Option::is_some).await;
        ended.ok().and_then(|status| *status).unwrap_or(255)
    }

    /// Waits for its end on behalf of the host, which knows of it then: how it ended, and how long ago.
    pub async fn tell(&self) -> (Status, Duration) {
        let status = self.wait().await;
        self.told.store(true, Ordering::Relaxed);
        (status, self.ended.get().map(Instant::elapsed).unwrap_or_default())
    }

    /// Whether the host has been told of its end.
    pub fn told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// Whether nobody can learn anything new from it.
    pub fn spent(&self) -> bool {
        self.status().is_some() && self.stdout.ended() && self.stderr.ended()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `NOT_FOUND` when it has ended; `INVALID_ARGUMENT` for a number that is no signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        if self.status().is_some() {
            return Err(Error::not_found(format!("signal: process {}: it has ended", self.pid)));
        }
        // Not nix's Signal: it has no real-time signals. A dead child keeps its pid until the reaper, which runs in this very
        // thread, has collected it.
        // SAFETY: kill has no memory effects.
        match Errno::result(unsafe { libc::kill(self.pid.as_raw(), signal) }) {
            Ok(_) => Ok(()),
            Err(Errno::EINVAL) => Err(Error::invalid(format!("signal: {signal}: no such signal"))),
            Err(Errno::ESRCH) => Err(Error::not_found(format!("signal: process {}: it has ended", self.pid))),
            Err(error) => Err(error).at("signal", self.pid),
        }
    }

    /// Whether it can be signalled at all.
    pub fn alive(&self) -> bool {
        self.status().is_none() && kill(self.pid, None).is_ok()
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// `UNAVAILABLE` when it has none, as kata-agent answers.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        let none = || Error::new(ttrpc::Code::UNAVAILABLE, format!("resize: process {}: it has no terminal", self.pid));
        self.terminal.as_ref().ok_or_else(none)?.resize(rows, columns)
    }
}
