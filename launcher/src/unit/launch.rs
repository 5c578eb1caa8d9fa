//! What a daemon is started with, in memory: its words, an empty entry, its environment; each entry ends with NUL.
//!
//! The launcher hands it to the unit's first process; a daemon that is to have successors has systemd hold one like it under the
//! name `launch` (`kata_shimd/durable/systemd.py`).

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::failure::{During, Failure, Outcome};

/// More than execve takes.
const SIZE_MAX: u64 = 8 << 20;

pub struct Launch {
    pub argv: Vec<CString>,
    pub environ: Vec<CString>,
}

impl Launch {
    pub fn keep(argv: &[CString], environ: &[CString]) -> std::io::Result<OwnedFd> {
        let mut file = File::from(memfd_create("launch", MemfdFlags::CLOEXEC)?);
        let between = CString::default();
        let mut entries = argv.iter().chain([&between]).chain(environ);
        entries.try_for_each(|entry| file.write_all(entry.as_bytes_with_nul()))?;
        Ok(file.into())
    }

    pub fn read(fd: &OwnedFd) -> Outcome<Self> {
        let file = File::from(fd.try_clone().during("start daemon", "launch")?);
        let size = file.metadata().during("start daemon", "launch")?.len();
        let mut bytes = vec![0; usize::try_from(size.min(SIZE_MAX)).unwrap_or_default()];
        file.read_exact_at(&mut bytes, 0).during("start daemon", "launch")?;
        Self::parse(&bytes).ok_or_else(|| Failure::new("start daemon", "launch", "makes no sense"))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut entries = bytes.strip_suffix(b"\0")?.split(|byte| *byte == 0);
        let own = |entry: &[u8]| CString::new(entry).ok();
        let argv: Vec<_> = entries.by_ref().take_while(|entry| !entry.is_empty()).filter_map(own).collect();
        let environ = entries.filter_map(own).collect();
        (!argv.is_empty()).then_some(Self { argv, environ })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read() {
        let words = ["python3", "-I"].map(|word| CString::new(word).unwrap_or_default());
        let environ = ["PATH=/bin", "EMPTY="].map(|word| CString::new(word).unwrap_or_default());
        let kept = Launch::keep(&words, &environ).unwrap_or_else(|error| unreachable!("{error}"));
        let read = Launch::read(&kept).unwrap_or_else(|error| unreachable!("{error}"));
        assert_eq!((read.argv, read.environ), (words.to_vec(), environ.to_vec()));
    }

    #[test]
    fn what_makes_no_sense() {
        for bytes in [&b""[..], b"\0", b"\0a\0", b"python3"] {
            assert!(Launch::parse(bytes).is_none(), "{bytes:?}");
        }
        assert_eq!(Launch::parse(b"a\0").map(|launch| launch.environ.len()), Some(0));
    }
}
