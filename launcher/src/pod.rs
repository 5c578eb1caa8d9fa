//! Names on disk of one pod, all derived from the run directory and the pod's hash.

use std::env;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use crate::failure::{During, Failure, Outcome};

const DEFAULT_RUN: &str = "/run/kata-shimd";
const SOCKET: &str = "shim.sock";
/// Longest path a unix socket can have, without its terminating NUL; one less than the kernel's limit, as Kata counts.
const SOCKET_PATH_MAX: usize = 106;
const HASH_DIGITS: usize = 20;

/// The run directory named by the environment, if it names one.
pub fn run_from_environment() -> Option<PathBuf> {
    env::var_os("KATA_SHIMD_RUN_DIR").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// One pod's place under the run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    run: PathBuf,
    hash: String,
}

impl Pod {
    /// The pod of sandbox `id`, in the run directory `run` or the default one.
    pub fn new(run: Option<PathBuf>, address: &str, namespace: &str, id: &str) -> Self {
        Self { run: run.unwrap_or_else(|| PathBuf::from(DEFAULT_RUN)), hash: hash(address, namespace, id) }
    }

    /// The pod whose socket an `address` file names: `unix://RUN/pods/HASH/shim.sock`.
    pub fn from_address(address: &str) -> Option<Self> {
        let socket = Path::new(address.trim().strip_prefix("unix://")?);
        let dir = socket.parent().filter(|_| socket.file_name() == Some(OsStr::new(SOCKET)))?;
        let hash = dir.file_name()?.to_str()?;
        let run = dir.parent().filter(|pods| pods.ends_with("pods"))?.parent()?;
        let lawful = hash.len() == HASH_DIGITS && hash.bytes().all(|b| b.is_ascii_hexdigit());
        (lawful && is_plain(run)).then(|| Self { run: run.to_owned(), hash: hash.to_owned() })
    }

    pub fn run(&self) -> &Path {
        &self.run
    }

    pub fn hash(&self) -> &str {
        &self.hash
    }

    pub fn dir(&self) -> PathBuf {
        self.run.join("pods").join(&self.hash)
    }

    pub fn lock(&self) -> PathBuf {
        self.run.join("locks").join(&self.hash)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir().join(SOCKET)
    }

    pub fn stderr(&self) -> PathBuf {
        self.dir().join("daemon.stderr")
    }

    /// Kept after the pod.
    pub fn journal(&self) -> PathBuf {
        self.run.join("journal").join(format!("{}.jsonl", self.hash))
    }

    /// The address containerd dials.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Make what all pods share below the run directory, and refuse a run directory that others could write to.
    pub fn prepare_run(&self) -> Outcome<()> {
        if !is_plain(&self.run) {
            return Err(Failure::new("check run directory", self.run.display(), "not an absolute, plain path")
                .hint("set KATA_SHIMD_RUN_DIR to one"));
        }
        if self.socket().as_os_str().as_bytes().len() > SOCKET_PATH_MAX {
            return Err(Failure::new("check run directory", self.run.display(), "too long for the path of a socket")
                .hint("set KATA_SHIMD_RUN_DIR to a shorter one"));
        }
        for dir in [self.run.clone(), self.run.join("pods"), self.run.join("locks"), self.run.join("journal")] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.during("make directory", dir.display())
                .map_err(|failure| failure.hint("set KATA_SHIMD_RUN_DIR to where root may write"))?;
            let found = File::open(&dir).and_then(|dir| dir.metadata()).during("check directory", dir.display())?;
            check_private(&found, 0o022).during("check directory", dir.display())?;
        }
        Ok(())
    }

    /// Make the pod's own directory. It must not be there yet.
    pub fn make_dir(&self) -> Outcome<()> {
        let dir = self.dir();
        DirBuilder::new().mode(0o700).create(&dir).during("make pod directory", dir.display())
    }

    /// Whether anything of this pod is on disk.
    pub fn exists(&self) -> Outcome<bool> {
        match self.dir().symlink_metadata() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).during("look for pod", self.dir().display()),
        }
    }
}

/// Ours, and without any of the permission bits `forbidden`.
pub fn check_private(found: &Metadata, forbidden: u32) -> Result<(), String> {
    let us = rustix::process::geteuid().as_raw();
    if found.uid() != us {
        return Err(format!("belongs to user {}, not {us}", found.uid()));
    }
    if found.mode() & forbidden != 0 {
        return Err(format!("mode {:04o} lets others in", found.mode() & 0o7777));
    }
    Ok(())
}

/// Absolute, and without `.`, `..` or a NUL: what a path in our own records looks like.
pub fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        && !path.as_os_str().as_bytes().contains(&0)
}

/// First 20 hex digits of sha256(address NUL namespace NUL id).
fn hash(address: &str, namespace: &str, id: &str) -> String {
    let digest = hmac_sha256::Hash::hash([address, namespace, id].join("\0").as_bytes());
    digest.iter().take(HASH_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_hash() {
        let pod = Pod::new(None, "/run/containerd/containerd.sock", "k8s.io", "abc");
        // printf '/run/containerd/containerd.sock\0k8s.io\0abc' | sha256sum | cut -c1-20
        assert_eq!(pod.hash(), "2722a3e258eed084d11d");
        assert_eq!(pod.address(), format!("unix:///run/kata-shimd/pods/{}/shim.sock", pod.hash()));
        assert_ne!(pod.hash(), Pod::new(None, "/run/containerd/containerd.sock", "k8s.io", "abd").hash());
    }

    #[test]
    fn an_address_names_its_pod() {
        let pod = Pod::new(Some("/tmp/x".into()), "a", "n", "i");
        assert_eq!(Pod::from_address(&format!("{}\n", pod.address())), Some(pod.clone()));
        for other in ["", "unix:///run/containerd/s/abc", "unix://run/pods/00112233445566778899/shim.sock"] {
            assert_eq!(Pod::from_address(other), None, "{other}");
        }
        let climbing = pod.address().replace("/tmp/x", "/tmp/../x");
        assert_eq!(Pod::from_address(&climbing), None);
    }

    #[test]
    fn plain_paths() {
        assert!(is_plain(Path::new("/a/b")));
        for path in ["a", "/a/../b", "", "/a\0b"] {
            assert!(!is_plain(Path::new(path)), "{path:?}");
        }
    }
}
