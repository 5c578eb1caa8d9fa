//! Block devices, found by where they are plugged in.
//!
//! A PCI path names one slot per bridge level, hexadecimal, joined by `/`: `02/01` is slot 1 behind the bridge in slot 2 of the root bus.
//! The kernel chooses bus numbers and device names, so the path is followed through sysfs.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::protocol::agent::Device;
use crate::uevent;

/// Kinds of devices a container can be given.
pub const DEVICE_TYPES: [&str; 1] = ["blk"];

/// The device node for a PCI path or a name in `/dev`; waits until it is there.
pub async fn find(source: &str, limit: Duration) -> Result<PathBuf> {
    if source.starts_with("/dev/") && !source.contains("..") {
        let path = PathBuf::from(source);
        return uevent::wait_for(source, limit, || path.exists().then(|| path.clone())).await;
    }
    let slots = parse_path(source)?;
    // A slot whose notice was lost is found by looking; a kernel without the file has other means.
    let _ = fs::write("/sys/bus/pci/rescan", "1");
    uevent::wait_for(&format!("PCI path {source}"), limit, || node(Path::new("/sys/devices"), &slots)).await
}

/// Waits for the devices of a container: `(path in the container, major, minor)` each.
pub async fn devices(devices: &[Device], limit: Duration) -> Result<Vec<(String, u64, u64)>> {
    let mut found = Vec::new();
    for device in devices {
        if !DEVICE_TYPES.contains(&device.type_.as_str()) {
            return Err(Error::invalid(format!(
                "device {}: type {:.64?}: unknown; this agent has blk",
                device.container_path, device.type_
            )));
        }
        let source = if device.id.is_empty() { &device.vm_path } else { &device.id };
        let node = find(source, limit).await?;
        let rdev = fs::metadata(&node).at("stat", node.display())?.rdev();
        found.push((device.container_path.clone(), libc::major(rdev).into(), libc::minor(rdev).into()));
    }
    Ok(found)
}

/// `SLOT[.FUNCTION]` per level.
fn parse_path(path: &str) -> Result<Vec<(u8, u8)>> {
    let level = |part: &str| {
        let (slot, function) = part.split_once('.').unwrap_or((part, "0"));
        let slot = u8::from_str_radix(slot, 16).ok().filter(|slot| *slot < 32)?;
        Some((slot, function.parse().ok().filter(|function| *function < 8)?))
    };
    let levels: Option<Vec<_>> = path.split('/').map(level).collect();
    levels.ok_or_else(|| Error::invalid(format!("PCI path {path:.64?}: must be hexadecimal slots joined by '/'")))
}

/// The node in `/dev` of the disk in this slot, once both exist.
fn node(devices: &Path, slots: &[(u8, u8)]) -> Option<PathBuf> {
    let roots = children(devices).filter(|path| file_name(path).starts_with("pci"));
    let name = roots.filter_map(|root| follow(root, slots)).find_map(|device| disk(&device, 2))?;
    let node = Path::new("/dev").join(name);
    node.exists().then_some(node)
}

fn follow(root: PathBuf, slots: &[(u8, u8)]) -> Option<PathBuf> {
    slots.iter().try_fold(root, |directory, (slot, function)| {
        let ending = format!(":{slot:02x}.{function}");
        let found = children(&directory).find(|path| is_pci(file_name(path)) && file_name(path).ends_with(&ending));
        found
    })
}

/// `0000:02:01.0`
fn is_pci(name: &str) -> bool {
    name.len() == 12 && name.as_bytes()[4] == b':' && name.as_bytes()[7] == b':'
}

/// The name of the disk below a device: `<device>/block/NAME`, perhaps behind a `virtioN`.
fn disk(device: &Path, depth: usize) -> Option<String> {
    if let Some(disk) = children(&device.join("block")).next() {
        return Some(file_name(&disk).to_owned());
    }
    let below = children(device).filter(|path| file_name(path).starts_with("virtio"));
    (depth > 0).then(|| below.into_iter().find_map(|path| disk(&path, depth - 1)))?
}

fn children(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(parse_path("02/01").unwrap(), [(2, 0), (1, 0)]);
        assert_eq!(parse_path("1f.7").unwrap(), [(31, 7)]);
        for path in ["", "20", "02//01", "x", "../..", "02/01/"] {
            assert!(parse_path(path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_path_is_followed_over_bridges() {
        let root = std::env::temp_dir().join(format!("kata-agent-pci-{}", std::process::id()));
        let bridge = root.join("pci0000:00/0000:00:02.0");
        let device = bridge.join("0000:01:01.0");
        fs::create_dir_all(device.join("virtio3/block/vdc")).unwrap();
        fs::create_dir_all(bridge.join("0000:01:01.0:pcie001")).unwrap();
        let found = follow(root.join("pci0000:00"), &[(2, 0), (1, 0)]);
        let name = found.as_deref().and_then(|device| disk(device, 2));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, Some(device));
        assert_eq!(name.as_deref(), Some("vdc"));
    }
}
