//! The calls for which there is no safe wrapper. All `unsafe` but one line lives here.

use std::ffi::{CString, c_char, c_int, c_uint};
use std::io;
use std::ptr;

use rustix::fd::{AsRawFd, OwnedFd};

/// Which side of a fork we are on.
pub enum Fork {
    Parent { child: i32 },
    Child,
}

/// Fork. Only for a program with one thread: the child goes on as if nothing had happened.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: the launcher has one thread when it forks, so no lock can be held by a thread the child does not have.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent { child }),
    }
}

/// End a forked child without running what was registered for the end of its parent.
pub fn exit_child(code: u8) -> ! {
    // SAFETY: takes no pointers and does not return.
    unsafe { libc::_exit(code.into()) }
}

/// Give `fds` the numbers 0, 1, 2, … and close every other fd.
pub fn become_fds(fds: &[&OwnedFd]) -> io::Result<()> {
    let above = c_int::try_from(fds.len()).map_err(io::Error::other)?;
    // First out of the way, so that no number is overwritten before it is used; these copies close with the rest.
    let copies = fds.iter().map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, above)).collect::<Result<Vec<_>, _>>()?;
    for (number, copy) in (0..).zip(&copies) {
        // SAFETY: plain numbers; what `number` was before belongs to nobody who will use it again.
        if unsafe { libc::dup2(copy.as_raw_fd(), number) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    std::mem::forget(copies);
    // SAFETY: plain numbers. Every owner of an fd in this range is gone with the exec that follows.
    match unsafe { libc::syscall(libc::SYS_close_range, above as c_uint, c_uint::MAX, 0 as c_uint) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// What somebody sends who wants to look into a daemon (`kata-shimd attach`, and for its stacks).
const LOOKING: [c_int; 2] = [libc::SIGUSR1, libc::SIGUSR2];
/// What Rust's runtime, our parent or we may have changed.
const CHANGED: [c_int; 8] = [
    libc::SIGPIPE,
    libc::SIGXFSZ,
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGCHLD,
    libc::SIGALRM,
];

/// Undo what Rust's runtime, our parent and we did to signals, so that the program we become starts with none ignored by
/// accident and none blocked.
pub fn reset_signals() {
    dispose(&LOOKING, libc::SIG_DFL);
    reset_signals_of_daemon();
}

/// As `reset_signals`, for a program that becomes a daemon, and goes on to be left in peace by who looks for one.
pub fn reset_signals_of_daemon() {
    dispose(&CHANGED, libc::SIG_DFL);
    // SAFETY: the set is made by sigemptyset before it is read.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
    }
}

/// Who looks for a daemon finds its pid as soon as that is on record, when it may be a fork of ours that has done nothing yet. So that is
/// said first of all, and holds until the daemon has come to its handlers.
pub fn ignore_who_looks() {
    dispose(&LOOKING, libc::SIG_IGN);
}

fn dispose(signals: &[c_int], how: libc::sighandler_t) {
    for &signal in signals {
        // SAFETY: SIG_DFL and SIG_IGN are valid dispositions of all signals but those that cannot be caught, of which there is none here.
        unsafe { libc::signal(signal, how) };
    }
}

/// Die of SIGALRM in so many seconds, whatever we have become by then, unless that takes it back.
pub fn die_in(seconds: u32) {
    // SAFETY: takes and returns plain numbers.
    unsafe { libc::alarm(seconds) };
}

/// Children of ours that end are nobody's business: their ends are seen by pidfd.
pub fn reap_by_itself() {
    // SAFETY: SIG_IGN is a valid disposition of SIGCHLD.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Become `argv`, with `env` or the environment we have. Comes back only when that failed.
pub fn exec(argv: &[CString], env: Option<&[CString]>) -> io::Error {
    let Some(program) = argv.first() else { return io::Error::other("nothing to run") };
    let args = pointers(argv);
    // SAFETY: both arrays end with NULL and their strings with NUL; they outlive the call.
    unsafe {
        match env {
            None => libc::execv(program.as_ptr(), args.as_ptr()),
            Some(env) => libc::execve(program.as_ptr(), args.as_ptr(), pointers(env).as_ptr()),
        };
    }
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// A mount namespace of our own, which sees the host's mounts come and go and shows it none of ours.
pub fn unshare_mounts() -> io::Result<()> {
    use rustix::mount::{MountPropagationFlags as Propagation, mount_change};
    // SAFETY: CLONE_NEWNS does not touch the file descriptor table.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    mount_change("/", Propagation::DOWNSTREAM | Propagation::REC)?;
    mount_change("/", Propagation::SHARED | Propagation::REC)?;
    Ok(())
}
