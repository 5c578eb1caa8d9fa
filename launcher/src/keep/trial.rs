//! A daemon of another installation, in the place of the one that lives.
//!
//! It is on trial from the moment it is begun until it says that it has settled. One that dies before, or has not settled in time and is
//! killed, is followed by a daemon like the one before it. Must never happen: a pod that is lost because what came next was no good.

use std::ffi::CString;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::io::Errno;

/// The longest command line that is taken.
const ARGV_MAX: usize = 64 << 10;

pub struct Trial {
    pub argv: Vec<CString>,
    patience: Duration,
    /// When it must have settled; None until it is begun.
    until: Option<Instant>,
}

impl Trial {
    /// `argv` is a file: words that end with NUL.
    pub fn of(argv: &OwnedFd, patience: Duration) -> Result<Self, Errno> {
        let mut bytes = vec![0; ARGV_MAX + 1];
        let got = rustix::io::pread(argv, &mut bytes, 0)?;
        bytes.truncate(got);
        match words(&bytes) {
            Some(argv) => Ok(Self { argv, patience, until: None }),
            None => Err(Errno::INVAL),
        }
    }

    pub fn begin(&mut self) {
        self.until = Some(Instant::now() + self.patience);
    }

    pub fn is_begun(&self) -> bool {
        self.until.is_some()
    }

    /// How long it may still take; None before it is begun.
    pub fn left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now()))
    }
}

fn words(bytes: &[u8]) -> Option<Vec<CString>> {
    let whole = bytes.strip_suffix(b"\0").filter(|_| bytes.len() <= ARGV_MAX)?;
    let argv: Vec<_> = whole.split(|byte| *byte == 0).map(CString::new).collect::<Result<_, _>>().ok()?;
    // A program by its path: nobody looks for it.
    argv.first().is_some_and(|program| program.as_bytes().starts_with(b"/")).then_some(argv)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line() {
        assert_eq!(words(b"/p\0-m\0x\0"), Some(vec![c"/p".into(), c"-m".into(), c"x".into()]));
        assert_eq!(words(b"/p\0\0"), Some(vec![c"/p".into(), c"".into()]));
    }

    #[test]
    fn what_is_none() {
        for bytes in [&b""[..], b"\0", b"/p", b"p\0"] {
            assert_eq!(words(bytes), None, "{bytes:?}");
        }
        assert_eq!(words(&[b"/", vec![b'x'; ARGV_MAX].as_slice(), b"\0"].concat()), None);
    }

    #[test]
    fn time_passes_only_once_it_is_begun() {
        let mut trial = Trial { argv: Vec::new(), patience: Duration::from_secs(60), until: None };
        assert_eq!((trial.is_begun(), trial.left()), (false, None));
        trial.begin();
        assert!(trial.is_begun() && trial.left().is_some_and(|left| left > Duration::from_secs(50)));
    }
}
