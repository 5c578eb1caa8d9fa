//! The kernel's own file systems.

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::failure::{During, Failure};

/// Mounts devtmpfs, proc and sysfs where they stay for the life of the machine.
///
/// # Errors
/// A mount failed.
pub fn mount_filesystems() -> Result<(), Failure> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mounts = [("devtmpfs", "/dev", MountFlags::NOSUID), ("proc", "/proc", safe), ("sysfs", "/sys", safe)];
    for (fstype, target, flags) in mounts {
        match mount(fstype, target, fstype, flags, None) {
            // CONFIG_DEVTMPFS_MOUNT or an earlier stage may have been quicker.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno).during("mount", target),
        }
    }
    Ok(())
}
