//! The kernel's own file systems, and its modules.

use std::fs::{self, File};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::finit_module;

use crate::failure::{During, Failure};

/// Names of the modules to load, one a line, dependencies before dependants; written by the image builder.
pub const MODULE_LIST: &str = "/modules.list";
/// Where the initrd keeps them, as `NAME.ko`, uncompressed.
pub const MODULE_DIR: &str = "/modules";

/// Mounts devtmpfs, proc and sysfs where they stay for the life of the machine.
///
/// # Errors
/// A mount failed.
pub fn mount_kernel_filesystems() -> Result<(), Failure> {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (fstype, target, flags) in
        [("devtmpfs", "/dev", MountFlags::NOSUID), ("proc", "/proc", safe), ("sysfs", "/sys", safe)]
    {
        match mount(fstype, target, fstype, flags, None) {
            // CONFIG_DEVTMPFS_MOUNT or an earlier stage may have been quicker.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno).during("mount", target),
        }
    }
    Ok(())
}

/// Loads every listed module, in order.
///
/// # Errors
/// The list or a module cannot be read, or the kernel refuses one.
pub fn load_modules() -> Result<(), Failure> {
    let list = fs::read_to_string(MODULE_LIST).during("read the module list", MODULE_LIST)?;
    list.split_ascii_whitespace().try_for_each(load_module)
}

fn load_module(name: &str) -> Result<(), Failure> {
    let file = File::open(format!("{MODULE_DIR}/{name}.ko")).during("open module", name)?;
    match finit_module(&file, c"", 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Failure::new("load module", name, errno.to_string())
            .hint("modules and kernel must come from one package; build the guest again")),
    }
}
