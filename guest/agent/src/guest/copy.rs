//! `CopyFile`: files the host has no other way to bring in.
//!
//! Owns: writing below the shared directory. Must never happen: a path leaves it, also not over a symbolic link that a
//! container put there. Every component is opened relative to its parent, and links are never followed.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{open, openat, renameat, AtFlags, OFlag};
use nix::sys::stat::{fchmod, fchmodat, mkdirat, FchmodatFlags, Mode, SFlag};
use nix::unistd::{fchownat, symlinkat, unlinkat, Gid, Uid, UnlinkatFlags};

use crate::error::{Context, Error, Result};
use crate::paths::SHARED;
use crate::protocol::agent::CopyFileRequest;

/// What a chunk is written to until the file is complete.
const PARTIAL: &str = ".kata-copy";

/// Writes one chunk of a file, or makes a directory or a symbolic link (whose target is the data).
///
/// # Errors
/// `INVALID_ARGUMENT` for a path outside the shared directory or sizes that contradict each other.
pub fn copy(request: &CopyFileRequest) -> Result<()> {
    let root = open(SHARED, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).at("open", SHARED)?;
    copy_below(root, Path::new(SHARED), request)
}

fn copy_below(root: OwnedFd, base: &Path, request: &CopyFileRequest) -> Result<()> {
    let parts = components(base, &request.path)?;
    let Some((name, parents)) = parts.split_last() else {
        return Err(Error::invalid(format!("copy file: {:?}: it is the shared directory itself", request.path)));
    };
    let directory_mode = if request.dir_mode == 0 { 0o750 } else { request.dir_mode };
    let parent = parents
        .iter()
        .try_fold(root, |parent, part| descend(&parent, part, directory_mode))
        .at("copy file", &request.path)?;
    let target = Target { parent, name, request };
    match SFlag::from_bits_truncate(request.file_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => target.directory(),
        SFlag::S_IFLNK => target.link(),
        _ => target.chunk(),
    }
}

/// The components of `path` below `base`.
fn components<'a>(base: &Path, path: &'a str) -> Result<Vec<&'a OsStr>> {
    let outside = || Error::invalid(format!("copy file: {path:.256?}: must lie below {}", base.display()));
    let rest = Path::new(path).strip_prefix(base).map_err(|_| outside())?;
    let part = |component| match component {
        Component::Normal(name) => Ok(name),
        _ => Err(outside()),
    };
    rest.components().map(part).collect()
}

/// Opens a directory below another, making it if it is not there.
fn descend(parent: &OwnedFd, name: &OsStr, mode: u32) -> nix::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::from_bits_truncate(mode)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error),
    }
    openat(parent, name, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

struct Target<'a> {
    parent: OwnedFd,
    name: &'a OsStr,
    request: &'a CopyFileRequest,
}

impl Target<'_> {
    fn mode(&self) -> Mode {
        Mode::from_bits_truncate(self.request.file_mode & 0o7777)
    }

    fn own(&self, name: &OsStr) -> Result<()> {
        let id = |id: i32| u32::try_from(id).ok();
        let (user, group) = (id(self.request.uid).map(Uid::from_raw), id(self.request.gid).map(Gid::from_raw));
        fchownat(&self.parent, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW).at("chown", &self.request.path)
    }

    fn directory(&self) -> Result<()> {
        descend(&self.parent, self.name, 0o700).at("make", &self.request.path)?;
        self.own(self.name)?;
        fchmodat(&self.parent, self.name, self.mode(), FchmodatFlags::FollowSymlink).at("chmod", &self.request.path)
    }

    /// Replaces whatever has the name, as a mounted volume's `..data` link is replaced.
    fn link(&self) -> Result<()> {
        let target = std::str::from_utf8(&self.request.data).at("copy file", "target of the link")?;
        match unlinkat(&self.parent, self.name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error).at("replace", &self.request.path),
        }
        symlinkat(target, &self.parent, self.name).at("link", &self.request.path)?;
        self.own(self.name)
    }

    fn chunk(&self) -> Result<()> {
        let end = check_size(self.request)?;
        let mut partial = self.name.to_owned();
        partial.push(PARTIAL);
        let start = if self.request.offset == 0 { OFlag::O_CREAT | OFlag::O_TRUNC } else { OFlag::empty() };
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | start;
        let file = openat(&self.parent, partial.as_os_str(), flags, Mode::from_bits_truncate(0o600))
            .at("open", &self.request.path)?;
        let file = std::fs::File::from(file);
        file.write_all_at(&self.request.data, self.request.offset.unsigned_abs()).at("write", &self.request.path)?;
        if end < self.request.file_size {
            return Ok(());
        }
        self.own(&partial)?;
        fchmod(file.as_fd(), self.mode()).at("chmod", &self.request.path)?;
        renameat(&self.parent, partial.as_os_str(), &self.parent, self.name).at("rename", &self.request.path)
    }
}

/// Where the chunk ends.
fn check_size(request: &CopyFileRequest) -> Result<i64> {
    let length = i64::try_from(request.data.len()).unwrap_or(i64::MAX);
    let end = request.offset.checked_add(length);
    match end {
        Some(end) if request.offset >= 0 && end <= request.file_size => Ok(end),
        _ => Err(Error::invalid(format!(
            "copy file: {}: {length} bytes at {} do not fit into {}",
            request.path, request.offset, request.file_size
        ))),
    }
}

#[cfg(test)]
mod tests;
