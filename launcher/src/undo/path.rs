//! Finding the place of an object without being led astray.
//!
//! What lies below the pod directory may be shared with the guest, which can put a link anywhere. So paths below it are
//! resolved from its fd, through no link; other paths are ours or the administrator's, and may pass through links.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// The directory an object lies in, held open, and the object's name there.
pub struct Place {
    pub parent: OwnedFd,
    pub name: OsString,
}

impl Place {
    /// None when the directory is not there, so neither is the object.
    pub fn find(pod: &Path, path: &Path) -> Result<Option<Self>, String> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err("has no parent directory".to_owned());
        };
        match open_dir(pod, parent) {
            Ok(parent) => Ok(Some(Self { parent, name: name.to_owned() })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(format!("open {}: {error}", parent.display())),
        }
    }

    /// A path to the object that passes through the held directory, for calls that take no directory fd.
    pub fn path(&self) -> PathBuf {
        Path::new(&format!("/proc/self/fd/{}", self.parent.as_raw_fd())).join(&self.name)
    }
}

fn open_dir(pod: &Path, dir: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match dir.strip_prefix(pod) {
        Err(_) => openat(CWD, dir, flags, Mode::empty()),
        Ok(below) => {
            let pod = openat(CWD, pod, flags | OFlags::NOFOLLOW, Mode::empty())?;
            let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
            openat2(&pod, below, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
        }
    }
}
