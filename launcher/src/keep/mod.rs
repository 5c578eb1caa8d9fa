//! `keep FD [options] -- ARGV…`: hold what must outlive a pod's daemon, and start the daemon again when it dies.
//!
//! Begun by the first daemon, which talks to it over the SEQPACKET socket FD. It owns no state of the pod: it holds named fds, accepts
//! containerd's connections, and gives everything to whichever daemon is there. A daemon that dies while the pod stops, or again and
//! again, is not started anew: then this program becomes `undo`. A daemon of another installation is tried in its place, and the keeper becomes
//! that installation's when it has settled. Must never happen: a connection that only the daemon holds; two
//! daemons at once; a daemon that runs and is not in the ledger.

mod child;
mod control;
mod options;
mod relay;
mod store;
mod trial;

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketFlags, accept_with};

use crate::failure::{During, Failure, Outcome};
use crate::ledger::{Append, Ledger, PodDir, Who};
use crate::posix;
use crate::process::{self, Identity};
use crate::spawn::own_path;
use child::Child;
use control::{Control, Word};
use options::Options;
use store::{LISTEN, Store};
use trial::Trial;

/// Not accepting for so long after the host had no fd left.
const PAUSE: Duration = Duration::from_millis(500);
/// A daemon that cannot be begun (no memory, no room for its record, no process to be had) is tried again after so long …
const AGAIN: Duration = Duration::from_millis(200);
/// … and this often; calls wait meanwhile, and then the pod is given up.
const ATTEMPTS: u32 = 150;

/// Run until the pod ends; then this process is its `undo`.
pub fn run(words: &[String]) -> Outcome<()> {
    let mut options = Options::parse(words)?;
    posix::reap_by_itself();
    let first = daemon_of(&options.pod)?;
    let pidfd = first.open().during("keep", first.pid)?;
    let control = Control::new(options.control()?);
    let goes_on = options.goes_on();
    let mut store = Store::new(options.next_connection);
    for (name, fd) in options.inherited()? {
        store.put(name, fd);
    }
    let mut keeper = Keeper::new(&mut options, store, control, pidfd);
    if goes_on {
        keeper.prepare_spare();
    }
    keeper.keep()
}

/// The pod's daemon, as the ledger has it.
fn daemon_of(pod: &Path) -> Outcome<Identity> {
    let missing = || Failure::new("keep", pod.display(), "its ledger names no daemon");
    let dir = PodDir::open(pod)?.ok_or_else(missing)?;
    let ledger = Ledger::read(&dir)?.ok_or_else(missing)?;
    ledger.process("daemon").and_then(|daemon| daemon.identity).ok_or_else(missing)
}

struct Keeper<'a> {
    options: &'a mut Options,
    store: Store,
    /// To the daemon that serves.
    control: Control,
    /// Its end; None once it was seen.
    daemon: Option<OwnedFd>,
    /// The next daemon, begun and waiting to be told that it is one.
    spare: Option<Child>,
    /// Another installation's daemon, which is to come next, or is there and has not settled.
    trial: Option<Trial>,
    /// The launcher whose keeper we are to become.
    relay: Option<String>,
    /// When the last daemons died.
    deaths: VecDeque<Instant>,
    /// Connections are not accepted before.
    accept_after: Option<Instant>,
}

/// What there is to do.
#[derive(Default)]
struct Ready {
    control: bool,
    died: bool,
    connection: bool,
}

impl<'a> Keeper<'a> {
    fn new(options: &'a mut Options, store: Store, control: Control, daemon: Option<OwnedFd>) -> Self {
        let deaths = VecDeque::new();
        Self { options, store, control, daemon, spare: None, trial: None, relay: None, deaths, accept_after: None }
    }

    fn keep(&mut self) -> Outcome<()> {
        loop {
            let ready = self.wait()?;
            if ready.control {
                self.listen_to_daemon()?;
            }
            if ready.died {
                // What the daemon said last is read before its death is acted on: datagrams outlive their sender.
                self.listen_to_daemon()?;
                self.daemon_died()?;
            }
            if ready.connection {
                self.accept();
            }
            self.end_overdue();
            self.go_on_as_another();
        }
    }

    fn wait(&self) -> Outcome<Ready> {
        let pause = self.accept_after.map(|then| then.saturating_duration_since(Instant::now()));
        let listening =
            self.store.get(LISTEN).filter(|_| pause.is_none_or(|left| left.is_zero()) && self.store.has_room());
        let control = self.control.open();
        let mut fds = Vec::with_capacity(3);
        let wanted = if self.control.has_unsent() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let control = watch(&mut fds, control, wanted);
        let died = watch(&mut fds, self.daemon.as_ref(), PollFlags::IN);
        let connection = watch(&mut fds, listening, PollFlags::IN);
        // A daemon that had died before we opened it has no pidfd to show: its death is known, so nothing is waited for.
        let known = self.daemon.is_none().then_some(Duration::ZERO);
        let overdue = self.trial.as_ref().and_then(Trial::left);
        let timeout = [known, pause.filter(|left| !left.is_zero()), overdue].into_iter().flatten().min().map(timespec);
        match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => return Ok(Ready::default()),
            result => result.during("keep", "wait")?,
        };
        let shown = |at: Option<usize>| at.and_then(|at| fds.get(at)).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready { control: shown(control), died: self.daemon.is_none() || shown(died), connection: shown(connection) })
    }

    /// Take all that the daemon has said, and send what it had no room for.
    fn listen_to_daemon(&mut self) -> Outcome<()> {
        while let Some(word) = self.control.receive().during("keep", "hear the daemon")? {
            match word {
                Word::Store(name, fd) => self.hold(name, fd)?,
                Word::Remove(name) => self.store.remove(&name),
                Word::Ready => self.prepare_spare(),
                Word::Next(argv, patience) => self.prepare_trial(&argv, patience),
                Word::OnTrial(argv, patience) => self.go_on_with_trial(&argv, patience),
                Word::Settled(launcher) => self.settle(launcher),
                Word::Nothing => {}
            }
        }
        self.control.flush(&self.store);
        Ok(())
    }

    fn hold(&mut self, name: String, fd: OwnedFd) -> Outcome<()> {
        if name == LISTEN {
            // The one fd that we use ourselves, and must never wait on.
            rustix::io::ioctl_fionbio(&fd, true).during("keep", &name)?;
        }
        self.store.put(name, fd);
        Ok(())
    }

    /// Begin the next daemon ahead, if that is wanted. One that cannot be begun now is begun when it is needed.
    fn prepare_spare(&mut self) {
        if self.options.spare && self.spare.is_none() && self.trial.is_none() {
            self.spare = Child::begin(&self.options.argv, &self.options.pod).ok();
        }
    }

    /// Have another daemon, or end the pod. A host that is short of something for a moment costs that moment.
    fn daemon_died(&mut self) -> Outcome<()> {
        self.daemon = None;
        self.count_death();
        for _ in 0..ATTEMPTS {
            match self.follow() {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(self.become_undo()),
                Err(failure) => eprintln!("{failure}"),
            }
            std::thread::sleep(AGAIN);
        }
        eprintln!("keep: {}: no daemon can be begun; the pod is given up", self.options.pod.display());
        self.give_up();
        Err(self.become_undo())
    }

    /// Begin the daemon after the one that died; false if none is to come.
    fn follow(&mut self) -> Outcome<bool> {
        if self.is_over()? {
            return Ok(false);
        }
        let child = self.next_daemon()?;
        if let Err(failure) = self.record(&child) {
            self.spare = Some(child);
            return Err(failure);
        }
        let (control, pidfd) = child.let_go(&self.store)?;
        (self.control, self.daemon) = (Control::new(control), pidfd);
        Ok(true)
    }

    fn next_daemon(&mut self) -> Outcome<Child> {
        if self.trial.as_ref().is_some_and(Trial::is_begun) {
            eprintln!(
                "keep: {}: the daemon on trial has not settled; back to the one before",
                self.options.pod.display()
            );
            (self.trial, self.spare) = (None, None);
        }
        let spare = self.spare.take().filter(Child::is_there);
        if let Some(trial) = &mut self.trial {
            trial.begin();
            match spare.map_or_else(|| Child::begin(&trial.argv, &self.options.pod), Ok) {
                Ok(child) => return Ok(child),
                Err(failure) => eprintln!("{failure}"),
            }
            self.trial = None;
            return Child::begin(&self.options.argv, &self.options.pod);
        }
        spare.map_or_else(|| Child::begin(&self.options.argv, &self.options.pod), Ok)
    }

    fn count_death(&mut self) {
        let now = Instant::now();
        // One that makes room for the next, or is on trial, is not a daemon that fails.
        self.deaths.extend(self.trial.is_none().then_some(now));
        while self.deaths.front().is_some_and(|first| now.duration_since(*first) > self.options.within) {
            self.deaths.pop_front();
        }
    }

    /// Whether no further daemon is to come: the pod is stopping, or gone, or its daemons die too fast.
    fn is_over(&self) -> Outcome<bool> {
        let Some(dir) = PodDir::open(&self.options.pod)? else { return Ok(true) };
        let Some(ledger) = Ledger::read(&dir)? else { return Ok(true) };
        if ledger.is_stopping() {
            return Ok(true);
        }
        if self.deaths.len() <= self.options.deaths {
            return Ok(false);
        }
        eprintln!("keep: {}: {} daemons died; the pod is given up", self.options.pod.display(), self.deaths.len());
        self.give_up();
        Ok(true)
    }

    /// Those who look at the ledger from now on wait for our undo; on a full disk they look at our pid alone.
    fn give_up(&self) {
        let ledger = PodDir::open(&self.options.pod).ok().flatten().map(|dir| Append::open(&dir, Who::Keeper));
        if let Some(Ok(Some(mut ledger))) = ledger {
            let _ = ledger.phase("stopping");
        }
    }

    /// The ledger's daemon is this one from now on.
    fn record(&self, child: &Child) -> Outcome<()> {
        let pod = &self.options.pod;
        let missing = || Failure::new("keep", pod.display(), "its ledger is gone");
        let dir = PodDir::open(pod)?.ok_or_else(missing)?;
        let ledger = Ledger::read(&dir)?.ok_or_else(missing)?;
        let n = ledger.number_of("daemon").ok_or_else(missing)?;
        Append::open(&dir, Who::Keeper)?.ok_or_else(missing)?.made_process(n, child.process)
    }

    /// What is begun ahead from now on is of the other installation.
    fn prepare_trial(&mut self, argv: &OwnedFd, patience: Duration) {
        match Trial::of(argv, patience) {
            Ok(trial) => {
                self.spare = Child::begin(&trial.argv, &self.options.pod).ok();
                self.trial = Some(trial);
            }
            Err(error) => eprintln!("keep: read the next daemon's command line: {error}"),
        }
    }

    /// The daemon that is there is on trial, as it was before another keeper died.
    fn go_on_with_trial(&mut self, argv: &OwnedFd, patience: Duration) {
        match Trial::of(argv, patience) {
            Ok(mut trial) => {
                trial.begin();
                (self.trial, self.spare) = (Some(trial), None);
            }
            Err(error) => eprintln!("keep: read the daemon's command line: {error}"),
        }
    }

    /// The daemon on trial stays: later ones are like it, and so is their keeper.
    fn settle(&mut self, launcher: String) {
        let Some(trial) = self.trial.take_if(|trial| trial.is_begun()) else { return };
        self.options.argv = trial.argv;
        self.relay = own_path().ok().filter(|own| own.as_path() != Path::new(&launcher)).map(|_| launcher);
        if self.relay.is_none() {
            self.prepare_spare();
        }
    }

    /// A daemon on trial that does not settle is not waited for for ever.
    fn end_overdue(&self) {
        let overdue = self.trial.as_ref().and_then(Trial::left).is_some_and(|left| left.is_zero());
        if let Some(daemon) = self.daemon.as_ref().filter(|_| overdue) {
            let _ = process::kill(daemon, rustix::process::Signal::KILL);
        }
    }

    /// As soon as the daemon has all that it is to have from us.
    fn go_on_as_another(&mut self) {
        // One that has just died is followed by another first.
        let Some(control) = self.control.open().filter(|_| self.daemon.is_some()) else { return };
        if self.control.has_unsent() {
            return;
        }
        if let Some(launcher) = self.relay.take() {
            let failure = relay::become_keeper(&launcher, self.options, &self.store, control);
            eprintln!("{failure}; this keeper stays");
            self.prepare_spare();
        }
    }

    /// The last act; comes back only when that failed.
    fn become_undo(&self) -> Failure {
        let argv = || {
            // Where an installation was written over, our file is gone from its path, and is there all the same.
            let own = own_path().ok().filter(|path| path.exists()).unwrap_or_else(|| "/proc/self/exe".into());
            let words = [own.into_os_string(), "undo".into(), self.options.pod.clone().into()];
            let words = words.map(|word| CString::new(std::os::unix::ffi::OsStringExt::into_vec(word)));
            words.into_iter().collect::<Result<Vec<_>, _>>().during("keep", "undo")
        };
        match argv() {
            Ok(argv) => Failure::new("keep", "undo", posix::exec(&argv, None)),
            Err(failure) => failure,
        }
    }

    /// Take every connection that waits, keep it, and give the daemon a copy.
    fn accept(&mut self) {
        self.accept_after = None;
        while self.store.has_room() {
            let Some(listener) = self.store.get(LISTEN) else { return };
            match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(connection) => {
                    if is_ours(&connection) {
                        self.admit(connection);
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    eprintln!("keep: accept: {error}");
                    self.accept_after = Some(Instant::now() + PAUSE);
                    return;
                }
            }
        }
    }

    /// A connection without a journal cannot outlive its daemon, so it is not taken at all.
    fn admit(&mut self, connection: OwnedFd) {
        match store::journal() {
            Ok(journal) => {
                let names = self.store.admit(connection, journal);
                self.control.give(&self.store, &names);
            }
            Err(error) => eprintln!("keep: journal of a connection: {error}"),
        }
    }
}

/// Add an fd, if there is one, to those that are polled; where it is.
fn watch<'a>(fds: &mut Vec<PollFd<'a>>, fd: Option<&'a OwnedFd>, wanted: PollFlags) -> Option<usize> {
    fds.push(PollFd::from_borrowed_fd(fd?.as_fd(), wanted));
    Some(fds.len() - 1)
}

/// Root, or whoever we are.
fn is_ours(connection: &OwnedFd) -> bool {
    match socket_peercred(connection) {
        Ok(peer) => peer.uid.is_root() || peer.uid == rustix::process::geteuid(),
        Err(error) => {
            eprintln!("keep: peer: {error}");
            false
        }
    }
}

fn timespec(span: Duration) -> Timespec {
    // Rounded up, or the last fraction of a millisecond would be spent spinning.
    Timespec { tv_sec: span.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: span.subsec_nanos().into() }
}

/// Where a daemon's stderr goes: after what the daemons before it said.
fn stderr_of(pod: &Path) -> Outcome<OwnedFd> {
    let path = pod.join("daemon.stderr");
    let opened = File::options().append(true).create(true).open(&path).during("open", path.display())?;
    Ok(opened.into())
}
