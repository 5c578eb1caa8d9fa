//! Removing a directory tree that others could write to.
//!
//! Never crosses a mount point and never follows a link: each step opens one name, from a directory held open, with
//! RESOLVE_NO_XDEV. Depth is bounded by moving what is too deep up to the top.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, ResolveFlags, openat2, renameat_with, unlinkat};
use rustix::io::Errno;

use super::path::Place;
use crate::deadline::Deadline;

/// Directories held open at once; well below the usual limit of 1024 fds.
const DEPTH_MAX: usize = 64;

/// Remove the tree at `path`.
pub fn remove(pod: &Path, path: &Path, deadline: Deadline) -> Result<(), String> {
    let Some(place) = Place::find(pod, path)? else { return Ok(()) };
    let name = CString::new(place.name.as_bytes()).map_err(|error| error.to_string())?;
    let top = match open(place.parent.as_fd(), &name) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(cannot_open(&name, error)),
    };
    Sweep { top: top.as_fd(), moved: 0, deadline }.empty(top.as_fd(), 0, None)?;
    remove_dir(place.parent.as_fd(), &name)
}

/// Remove everything in the directory behind `dir` except `keep`; the directory stays.
pub fn empty(dir: BorrowedFd<'_>, keep: &str, deadline: Deadline) -> Result<(), String> {
    Sweep { top: dir, moved: 0, deadline }.empty(dir, 0, Some(keep))
}

/// One removal: where too deep subtrees are moved to, and how many were.
struct Sweep<'a> {
    top: BorrowedFd<'a>,
    moved: u64,
    deadline: Deadline,
}

impl Sweep<'_> {
    /// Remove what is in `dir`. Goes on after a failure, and reports the first.
    fn empty(&mut self, dir: BorrowedFd<'_>, depth: usize, keep: Option<&str>) -> Result<(), String> {
        loop {
            let moved = self.moved;
            let mut first = Ok(());
            for name in names(dir)? {
                if keep.is_none_or(|keep| name.as_bytes() != keep.as_bytes()) {
                    first = first.and(self.remove(dir, &name, depth));
                }
            }
            // Only at the top can something have appeared behind us: what was too deep.
            if depth > 0 || first.is_err() || moved == self.moved {
                return first;
            }
        }
    }

    fn remove(&mut self, dir: BorrowedFd<'_>, name: &CString, depth: usize) -> Result<(), String> {
        if self.deadline.is_over() {
            return Err("out of time".to_owned());
        }
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(format!("remove {}: {error}", name.to_string_lossy())),
        }
        if depth >= DEPTH_MAX {
            return self.move_up(dir, name);
        }
        match open(dir, name) {
            Ok(child) => self.empty(child.as_fd(), depth + 1, None)?,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(cannot_open(name, error)),
        }
        remove_dir(dir, name)
    }

    /// Put a subtree that lies too deep directly below the top, where the next pass finds it.
    fn move_up(&mut self, dir: BorrowedFd<'_>, name: &CString) -> Result<(), String> {
        loop {
            self.moved += 1;
            match renameat_with(dir, name, self.top, format!(".deep-{}", self.moved), RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(format!("move {} up: {error}", name.to_string_lossy())),
            }
        }
    }
}

fn open(dir: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(dir, name, flags, Mode::empty(), resolve)
}

fn cannot_open(name: &CString, error: Errno) -> String {
    let name = name.to_string_lossy();
    match error {
        Errno::XDEV => format!("{name} is a mount point"),
        Errno::LOOP | Errno::NOTDIR => format!("{name} is not a directory"),
        error => format!("open {name}: {error}"),
    }
}

fn remove_dir(dir: BorrowedFd<'_>, name: &CString) -> Result<(), String> {
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(format!("remove {}: {error}", name.to_string_lossy())),
    }
}

/// All names at once: removing while reading may make the kernel skip some.
fn names(dir: BorrowedFd<'_>) -> Result<Vec<CString>, String> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(|error| format!("read directory: {error}"))? {
        let entry = entry.map_err(|error| format!("read directory: {error}"))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}
