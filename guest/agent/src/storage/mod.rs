//! What is mounted for the pod and its containers.
//!
//! Owns: how many hold each mount point. Must never happen: a mount point is unmounted under one who still holds it, or stays when nobody
//! does.

pub mod block;
mod drivers;
pub mod options;
pub mod submounts;

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::mount::{umount2, MntFlags};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::error::{Code, Context, Error, Result};
use crate::protocol::agent::Storage;
use crate::uevent::Uevents;

pub use drivers::NAMES;

/// All mount points and their holders.
pub struct Storages {
    holders: Mutex<HashMap<String, usize>>,
    hotplug: Duration,
}

impl Storages {
    /// `hotplug` is how long a device is waited for.
    pub fn new(hotplug: Duration) -> Self {
        Self { holders: Mutex::default(), hotplug }
    }

    /// Mounts all of them, or holds those that are mounted already. Returns the mount points to give back. On an error, none of them is
    /// held.
    pub async fn add_all(&self, storages: &[Storage]) -> Result<Vec<String>> {
        let mut held = Vec::new();
        for storage in storages {
            match self.add(storage).await {
                Ok(()) => held.push(storage.mount_point.clone()),
                Err(error) => {
                    self.remove_all(&held).await;
                    return Err(error);
                }
            }
        }
        Ok(held)
    }

    async fn add(&self, storage: &Storage) -> Result<()> {
        check_mount_point(&storage.mount_point)?;
        let driver = drivers::find(&storage.driver)?;
        // Before the lock: others must not wait for a device they do not want.
        let source = drivers::source(driver, storage, self.hotplug).await?;
        let mut holders = self.holders.lock().await;
        if let Some(count) = holders.get_mut(&storage.mount_point) {
            *count += 1;
            return Ok(());
        }
        let attempt = || mount(driver, storage.clone(), source.clone());
        match driver {
            drivers::Driver::VirtioFs => self.until_there(attempt).await?,
            _ => attempt().await?,
        }
        holders.insert(storage.mount_point.clone(), 1);
        Ok(())
    }

    /// Tries again with each event of a device: a shared directory that was plugged in just now has no driver yet.
    async fn until_there<W: Future<Output = Result<()>>>(&self, attempt: impl Fn() -> W) -> Result<()> {
        let events = Uevents::subscribe().at("uevents", "shared directory")?;
        let trying = async {
            loop {
                match attempt().await {
                    Err(error) if error.code == Code::NOT_FOUND => events.changed().await.at("uevents", error)?,
                    done => return done,
                }
            }
        };
        match timeout(self.hotplug, trying).await {
            Ok(done) => done,
            Err(_) => attempt().await,
        }
    }

    /// Gives mount points back; the last holder unmounts. What cannot be unmounted is reported and forgotten.
    pub async fn remove_all(&self, mount_points: &[String]) {
        let mut holders = self.holders.lock().await;
        for mount_point in mount_points.iter().rev() {
            let Some(count) = holders.get_mut(mount_point) else { continue };
            *count -= 1;
            if *count == 0 {
                holders.remove(mount_point);
                unmount(mount_point).await;
            }
        }
    }

    /// Unmounts everything, whoever holds it; the longest paths first.
    pub async fn remove_everything(&self) {
        let mut mount_points: Vec<String> = self.holders.lock().await.drain().map(|(path, _)| path).collect();
        mount_points.sort_by_key(|path| std::cmp::Reverse(path.len()));
        for mount_point in mount_points {
            unmount(&mount_point).await;
        }
    }

    /// Mounts tmpfs storages that are there again with new options, a larger size above all.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for other drivers.
    pub async fn update_ephemeral(&self, storages: &[Storage]) -> Result<()> {
        let holders = self.holders.lock().await;
        for storage in storages {
            if storage.driver != drivers::EPHEMERAL {
                return Err(Error::invalid(format!("update storage: {}: not an ephemeral one", storage.mount_point)));
            }
            if holders.contains_key(&storage.mount_point) {
                drivers::remount(storage)?;
            }
        }
        Ok(())
    }
}

async fn mount(driver: drivers::Driver, storage: Storage, source: PathBuf) -> Result<()> {
    let mount_point = storage.mount_point.clone();
    let mounted = tokio::task::spawn_blocking(move || drivers::mount(driver, &storage, &source)).await;
    mounted.at("mount", mount_point)?
}

/// Detaches, so that a holder nobody knows of cannot stop it, and removes the empty directory.
async fn unmount(mount_point: &str) {
    let path = mount_point.to_owned();
    let done = tokio::task::spawn_blocking(move || {
        // A `local` storage is a directory and no mount.
        let unmounted = umount2(path.as_str(), MntFlags::MNT_DETACH);
        if unmounted.is_err() && crate::init::is_mount_point(&path) {
            log::warn!("unmount: {path}: {unmounted:?}");
        }
        fs::remove_dir(&path)
    });
    if let Ok(Err(error)) = done.await {
        log::debug!("remove: {mount_point}: {error}");
    }
}

fn check_mount_point(path: &str) -> Result<()> {
    let path = Path::new(path);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && plain && path.components().count() > 1 {
        return Ok(());
    }
    Err(Error::invalid(format!("storage: mount point {path:?}: must be absolute, without \"..\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points() {
        check_mount_point("/run/kata-containers/sandbox/shm").unwrap();
        check_mount_point("/run/kata-containers/shared/containers/").unwrap();
        for path in ["", "/", "relative", "/a/../b", "./x"] {
            assert!(check_mount_point(path).is_err(), "{path}");
        }
    }

    #[tokio::test]
    async fn an_unknown_driver_is_named() {
        let storages = Storages::new(Duration::from_secs(1));
        let storage = Storage { driver: "9p".into(), mount_point: "/run/x".into(), ..Default::default() };
        let error = storages.add_all(&[storage]).await.unwrap_err();
        assert_eq!(error.code, ttrpc::Code::INVALID_ARGUMENT);
        assert!(error.text.contains("9p") && error.text.contains("virtio-fs"), "{error}");
    }
}
