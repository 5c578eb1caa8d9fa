//! One `flock` per pod orders start and delete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::deadline::Deadline;
use crate::failure::{During, Failure, Outcome};

/// The lock of one pod, held until this is dropped.
pub struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Take the lock at `path`, waiting for whoever holds it.
    pub fn take(path: PathBuf, deadline: Deadline) -> Outcome<Self> {
        loop {
            let file = open(&path).during("open lock", path.display())?;
            let file = acquire(file, deadline).during("take lock", path.display())?.ok_or_else(|| {
                Failure::new("take lock", path.display(), "another start or delete of this pod holds it")
            })?;
            // Its last holder may have removed the name we opened: then the lock guards nothing.
            if still_named(&file, &path).during("check lock", path.display())? {
                return Ok(Self { path, _file: file });
            }
        }
    }

    /// Remove the lock of a pod of which nothing is left, unless somebody holds it, who then sees to that.
    pub fn sweep(path: PathBuf) -> Outcome<()> {
        if !path.exists() {
            return Ok(());
        }
        let file = open(&path).during("open lock", path.display())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Self { path, _file: file }.remove(),
            Err(Errno::WOULDBLOCK) => Ok(()),
            Err(error) => Err(error).during("take lock", path.display()),
        }
    }

    /// Remove the name while holding the lock: nothing of the pod is left.
    pub fn remove(self) -> Outcome<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).during("remove lock", self.path.display()),
            _ => Ok(()),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Lock the file; None when the deadline came first.
fn acquire(file: File, deadline: Deadline) -> io::Result<Option<File>> {
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => return Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => {}
        Err(error) => return Err(error.into()),
    }
    // flock has no timeout, so a thread waits; when the deadline comes first it dies with the process.
    let (sender, receiver) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let result = rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive));
        let _ = sender.send(result.map(|()| file));
    });
    match receiver.recv_timeout(deadline.left()) {
        Ok(result) => {
            let _ = waiter.join();
            Ok(Some(result?))
        }
        Err(_) => Ok(None),
    }
}

fn still_named(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((held.dev(), held.ino()) == (named.dev(), named.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
