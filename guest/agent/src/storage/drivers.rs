//! The kinds of storage and how each is mounted.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::unistd::{chown, Gid};

use super::{block, options};
use crate::error::{Context, Error, Result};
use crate::protocol::agent::Storage;

/// The name of the driver whose mounts can be resized.
pub(super) const EPHEMERAL: &str = "ephemeral";

/// What a driver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Driver {
    /// A virtio-fs tag of the host.
    VirtioFs,
    /// Memory of the guest: tmpfs, hugetlbfs.
    Ephemeral,
    /// A directory of the guest.
    Local,
    /// A block device, found by its PCI path or named.
    Block,
    /// Layers that are mounted already.
    Overlay,
}

const DRIVERS: [(&str, Driver); 5] = [
    ("virtio-fs", Driver::VirtioFs),
    (EPHEMERAL, Driver::Ephemeral),
    ("local", Driver::Local),
    ("blk", Driver::Block),
    ("overlayfs", Driver::Overlay),
];

/// Names of all drivers, as `GetGuestDetails` lists them.
pub const NAMES: [&str; DRIVERS.len()] = {
    let mut names = [""; DRIVERS.len()];
    let mut index = 0;
    while index < DRIVERS.len() {
        names[index] = DRIVERS[index].0;
        index += 1;
    }
    names
};

pub(super) fn find(name: &str) -> Result<Driver> {
    let found = DRIVERS.iter().find(|(known, _)| *known == name).map(|(_, driver)| *driver);
    found.ok_or_else(|| {
        Error::invalid(format!("storage: driver {name:.64?}: unknown; this agent has {}", NAMES.join(", ")))
    })
}

/// What is to be mounted; waits for it if it is a device.
pub(super) async fn source(driver: Driver, storage: &Storage, limit: Duration) -> Result<PathBuf> {
    match driver {
        Driver::Block => block::find(&storage.source, limit).await,
        _ => Ok(PathBuf::from(&storage.source)),
    }
}

/// Mounts. Blocks. `NOT_FOUND` is a shared directory that is not there, or not yet.
pub(super) fn mount(driver: Driver, storage: &Storage, source: &Path) -> Result<()> {
    let target = Path::new(&storage.mount_point);
    if driver == Driver::Local {
        return make_local(target, storage);
    }
    fs::create_dir_all(target).at("make", target.display())?;
    let fstype = match (driver, storage.fstype.as_str()) {
        (Driver::VirtioFs, "") => "virtiofs",
        (Driver::Ephemeral, "") => "tmpfs",
        (Driver::Overlay, "") => "overlay",
        (_, "") => return Err(Error::invalid(format!("mount: {}: no file system type", target.display()))),
        (_, fstype) => fstype,
    };
    if fstype == "hugetlbfs" {
        reserve_huge_pages(&storage.options)?;
    }
    let parsed = options::parse(&storage.options);
    let data = Some(parsed.data.as_str()).filter(|data| !data.is_empty());
    let mounted = nix::mount::mount(Some(source), target, Some(fstype), parsed.flags, data);
    if (driver, mounted) == (Driver::VirtioFs, Err(Errno::EINVAL)) {
        // So the kernel says that it has no device of this tag.
        return Err(Error::not_found(format!("mount: {}: no device has this tag", mounting(source, target, fstype))));
    }
    mounted.at("mount", mounting(source, target, fstype))?;
    share_with_group(target, group(storage, parsed.group), storage)
}

fn mounting(source: &Path, target: &Path, fstype: &str) -> String {
    format!("{} ({fstype}) at {}", source.display(), target.display())
}

/// Mounts a tmpfs again with other options.
pub(super) fn remount(storage: &Storage) -> Result<()> {
    let parsed = options::parse(&storage.options);
    let flags = parsed.flags | MsFlags::MS_REMOUNT;
    nix::mount::mount(None::<&str>, storage.mount_point.as_str(), None::<&str>, flags, Some(parsed.data.as_str()))
        .at("remount", &storage.mount_point)
}

/// A directory with the mode and the group it was asked to have.
fn make_local(target: &Path, storage: &Storage) -> Result<()> {
    let mode = options::value(&storage.options, "mode").and_then(|mode| u32::from_str_radix(mode, 8).ok());
    fs::DirBuilder::new().recursive(true).mode(0o755).create(target).at("make", target.display())?;
    if let Some(mode) = mode {
        fs::set_permissions(target, fs::Permissions::from_mode(mode)).at("set mode", target.display())?;
    }
    share_with_group(target, group(storage, options::parse(&storage.options).group), storage)
}

/// The group is named by an option or by a field.
fn group(storage: &Storage, option: Option<u32>) -> Option<u32> {
    option.or_else(|| storage.fs_group.as_ref().map(|group| group.group_id))
}

/// Gives the root of the mount to the group, which everything made below then inherits.
fn share_with_group(target: &Path, group: Option<u32>, storage: &Storage) -> Result<()> {
    let Some(group) = group else { return Ok(()) };
    chown(target, None, Some(Gid::from_raw(group))).at("chown", target.display())?;
    let read_only = options::parse(&storage.options).flags.contains(MsFlags::MS_RDONLY);
    let wanted = if read_only { 0o2550 } else { 0o2770 };
    let mode = fs::metadata(target).at("stat", target.display())?.permissions().mode() & 0o7777 | wanted;
    fs::set_permissions(target, fs::Permissions::from_mode(mode)).at("set mode", target.display())
}

/// Asks the kernel for as many huge pages as the mount may use.
fn reserve_huge_pages(options: &[String]) -> Result<()> {
    let bytes = |name| options::value(options, name).and_then(parse_size);
    let (Some(page), Some(size)) = (bytes("pagesize"), bytes("size")) else {
        return Err(Error::invalid("mount: hugetlbfs: needs pagesize= and size="));
    };
    let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", page >> 10);
    let before: u64 = fs::read_to_string(&path).at("read", &path)?.trim().parse().unwrap_or(0);
    let wanted = before + size.div_ceil(page.max(1));
    fs::write(&path, wanted.to_string()).at("write", &path)?;
    let now: u64 = fs::read_to_string(&path).at("read", &path)?.trim().parse().unwrap_or(0);
    if now < wanted {
        // What was reserved must not stay reserved for nobody.
        fs::write(&path, before.to_string()).at("write", &path)?;
        return Err(Error::new(
            ttrpc::Code::RESOURCE_EXHAUSTED,
            format!("reserve huge pages: {path}: {now} of {wanted}"),
        ));
    }
    Ok(())
}

/// `2M`, `2Mi`, `2MB`, `1048576`.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KI" | "KB" => 10,
        "M" | "MI" | "MB" => 20,
        "G" | "GI" | "GB" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("2M"), Some(2 << 20));
        assert_eq!(parse_size("1Gi"), Some(1 << 30));
        assert_eq!(parse_size("4096"), Some(4096));
        assert_eq!(parse_size("2MB"), Some(2 << 20));
        assert_eq!(parse_size("x"), None);
        assert_eq!(parse_size("2T"), None);
    }

    #[test]
    fn names_are_those_of_the_table() {
        assert_eq!(NAMES, ["virtio-fs", "ephemeral", "local", "blk", "overlayfs"]);
        for name in NAMES {
            find(name).unwrap();
        }
    }
}
