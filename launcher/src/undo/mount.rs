//! Mounts, and the files that pin network namespaces.

use std::path::Path;

use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::path::Place;

/// More mounts than this on one mount point were not stacked by us.
const STACK_MAX: usize = 1024;

/// Unmount until `path` is no mount point.
pub fn detach(pod: &Path, path: &Path) -> Result<(), String> {
    match Place::find(pod, path)? {
        Some(place) => detach_at(&place),
        None => Ok(()),
    }
}

fn detach_at(place: &Place) -> Result<(), String> {
    for _ in 0..STACK_MAX {
        match unmount(place.path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(format!("unmount: {error}")),
        }
    }
    Err(format!("still a mount point after {STACK_MAX} unmounts"))
}

/// Unmount and remove the file a network namespace is bound to.
pub fn remove_netns(pod: &Path, path: &Path) -> Result<(), String> {
    detach(pod, path)?;
    unlink(pod, path)
}

/// Remove a file, socket or FIFO.
pub fn unlink(pod: &Path, path: &Path) -> Result<(), String> {
    let Some(place) = Place::find(pod, path)? else { return Ok(()) };
    match rustix::fs::unlinkat(&place.parent, &place.name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(format!("unlink: {error}")),
    }
}
