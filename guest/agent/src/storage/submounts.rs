//! Mounts of the host below the shared directory, kept while a container uses them.
//!
//! virtiofsd announces every mount of the host, and the kernel gives it a file system of its own when somebody first goes there. Left to
//! the container that would happen in its mount namespace alone, and the file system would end with its last process, at a moment when
//! the host has not yet answered that a file was closed. Kernels up to at least 6.1 then find an inode still in use ("Busy inodes after
//! unmount"), and where they check for corrupted data that is a bug which kills the process on its way out: it never ends.
//!
//! So the agent goes there first, and ends the file system when all of the container's files are closed for the host as well.

use std::path::{Path, PathBuf};

use nix::fcntl::{open, OFlag};
use nix::mount::{umount2, MntFlags};
use nix::sys::stat::Mode;
use nix::sys::statvfs::statvfs;
use tokio::task::spawn_blocking;

use crate::init::is_mount_point;
use crate::paths;
use crate::protocol::oci;

/// Mount points held in the agent's own mount namespace.
#[derive(Debug, Default, Clone)]
pub struct Submounts(Vec<PathBuf>);

impl Submounts {
    /// Goes to every directory of the host that the container is given. What is no mount of the host is nothing to hold.
    pub async fn hold(spec: &oci::Spec) -> Self {
        let mut wanted: Vec<PathBuf> = directories(spec).collect();
        wanted.dedup();
        // Elsewhere, for a host that does not answer must not stop everything else.
        let entered = spawn_blocking(move || wanted.into_iter().filter(|path| enter(path)).collect());
        Self(entered.await.unwrap_or_default())
    }

    /// Ends them, when nothing of the container runs any more.
    pub async fn release(&self) {
        let held = self.0.clone();
        if let Err(error) = spawn_blocking(move || held.iter().rev().for_each(|path| leave(path))).await {
            log::warn!("unmount what the host shares: {error}");
        }
    }
}

/// The container's root and the sources of its bind mounts, as far as they lie in what the host shares.
fn directories(spec: &oci::Spec) -> impl Iterator<Item = PathBuf> + '_ {
    let root = spec.Root.iter().map(|root| root.Path.as_str());
    let sources = spec.Mounts.iter().map(|mount| mount.source.as_str());
    let shared = |path: &&str| Path::new(path).starts_with(paths::SHARED) && !path.split('/').any(|part| part == "..");
    root.chain(sources).filter(shared).map(PathBuf::from)
}

/// Whether the directory is a mount once somebody has been there. Blocks.
fn enter(path: &Path) -> bool {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    match open(path, flags, Mode::empty()) {
        Ok(_) => is_mount_point(&path.to_string_lossy()),
        Err(_) => false, // a file, or nothing: crun will say so
    }
}

/// Blocks.
fn leave(path: &Path) {
    // Answered only when everything asked before it was: also that the container's files are closed.
    let _ = statvfs(path);
    if let Err(error) = umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        log::debug!("unmount: {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(root: &str, sources: &[&str]) -> oci::Spec {
        let mount = |source: &&str| oci::Mount { source: (*source).into(), ..Default::default() };
        let root = Some(oci::Root { Path: root.into(), ..Default::default() });
        oci::Spec { Root: root.into(), Mounts: sources.iter().map(mount).collect(), ..Default::default() }
    }

    #[test]
    fn only_what_the_host_shares_is_gone_to() {
        let shared = |name: &str| format!("{}/{name}", paths::SHARED);
        let (root, volume, climbs) = (shared("c1/rootfs"), shared("c1/mounts/0-data"), shared("../../etc"));
        let spec = spec(&root, &["proc", "/etc", &volume, &climbs]);
        let found: Vec<_> = directories(&spec).collect();
        assert_eq!(found, [PathBuf::from(root), PathBuf::from(volume)]);
    }

    #[tokio::test]
    async fn what_is_not_there_is_not_held() {
        let root = format!("{}/none", paths::SHARED);
        let held = Submounts::hold(&spec(&root, &[])).await;
        assert!(held.0.is_empty());
        held.release().await;
    }
}
