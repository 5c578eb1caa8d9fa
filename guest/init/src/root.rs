//! From the initramfs to the root image: a read-only image below, a tmpfs above, and no way back.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};
use rustix::process::{chdir, chroot};

use crate::cmdline::Root;
use crate::device::Events;
use crate::failure::{During, Failure};

/// The program that becomes process 1 of the root image.
pub const AGENT: &str = "/sbin/kata-agent";
/// A virtio disk is there at once; a pmem or SCSI one takes a moment. Longer than this is a wrong `root=`.
const ROOT_PATIENCE: Duration = Duration::from_secs(30);

const IMAGE: &str = "/image";
const CHANGES: &str = "/changes";
const NEW_ROOT: &str = "/newroot";

/// Waits for the device and mounts the image with a tmpfs over it at [`NEW_ROOT`].
///
/// # Errors
/// No `root=`, no such device in time, or a mount failed.
pub fn mount_root(root: &Root<'_>, events: &Events) -> Result<(), Failure> {
    let step = "find the root image";
    let Some(device) = root.device else {
        return Err(Failure::new(step, "root=", "not on the kernel command line"));
    };
    let found = events.wait_for(ROOT_PATIENCE, || Path::new(device).exists().then_some(()))?;
    found.ok_or_else(|| {
        Failure::new(step, device, "no such device").hint("is the image attached, and its driver in the module list?")
    })?;
    mount_image(device, root)?;
    mount_overlay()
}

fn mount_image(device: &str, root: &Root<'_>) -> Result<(), Failure> {
    make_directory(IMAGE)?;
    let flags =
        CString::new(root.flags).map_err(|_| Failure::new("mount the root image", "rootflags=", "has a NUL"))?;
    let data = (!root.flags.is_empty()).then_some(flags.as_c_str());
    mount(device, IMAGE, root.fstype, MountFlags::RDONLY, data).during("mount the root image", device)
}

/// `pivot_root`, which container runtimes use, refuses an initramfs as root but not this.
fn mount_overlay() -> Result<(), Failure> {
    make_directory(CHANGES)?;
    mount("tmpfs", CHANGES, "tmpfs", MountFlags::empty(), Some(c"mode=0755")).during("mount tmpfs", CHANGES)?;
    let upper = format!("{CHANGES}/upper");
    let work = format!("{CHANGES}/work");
    [upper.as_str(), work.as_str(), NEW_ROOT].into_iter().try_for_each(make_directory)?;
    let layers = c"lowerdir=/image,upperdir=/changes/upper,workdir=/changes/work";
    mount("overlay", NEW_ROOT, "overlay", MountFlags::empty(), Some(layers)).during("mount overlay", NEW_ROOT)?;
    // The overlay holds its layers by itself; nobody shall find them in a mount table.
    [IMAGE, CHANGES].into_iter().try_for_each(|it| unmount(it, UnmountFlags::DETACH).during("detach", it))
}

/// Moves the kernel's file systems along, empties the initramfs, makes [`NEW_ROOT`] the root and becomes the agent.
///
/// # Errors
/// Whatever could not be done; it does not return otherwise.
pub fn switch_root() -> Result<Infallible, Failure> {
    for source in ["/dev", "/proc", "/sys"] {
        mount_move(source, format!("{NEW_ROOT}{source}").as_str()).during("move mount", source)?;
    }
    empty_initramfs()?;
    chdir(NEW_ROOT).during("enter", NEW_ROOT)?;
    mount_move(".", "/").during("move the root", NEW_ROOT)?;
    chroot(".").during("change root", NEW_ROOT)?;
    chdir("/").during("enter", "/")?;
    become_agent()
}

/// The initramfs is memory that nobody gets back otherwise. What is mounted on it is another device and stays.
fn empty_initramfs() -> Result<(), Failure> {
    let device = fs::metadata("/").during("examine", "/")?.dev();
    for entry in fs::read_dir("/").during("list", "/")?.filter_map(Result::ok) {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.dev() != device {
            continue;
        }
        // A mount point below keeps its directory; everything else goes. What resists costs memory, not correctness.
        let _ = if metadata.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
    Ok(())
}

fn become_agent() -> Result<Infallible, Failure> {
    let mut agent = Command::new(AGENT);
    agent.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    // Without a console (none configured, or its driver is late) output goes to the kernel log, input nowhere.
    let console = OpenOptions::new().read(true).write(true).open("/dev/console");
    let console = console.or_else(|_| OpenOptions::new().read(true).write(true).open("/dev/kmsg"));
    let console = console.during("open", "/dev/console")?;
    let copy = |()| console.try_clone().during("copy", "/dev/console");
    agent.stdin(copy(())?).stdout(copy(())?).stderr(copy(())?);
    Err(agent.exec()).during("run", AGENT)
}

fn make_directory(path: &str) -> Result<(), Failure> {
    fs::create_dir_all(path).during("make directory", path)
}
