//! What the daemon says when it begins its keeper.

use std::ffi::CString;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fd::{FromRawFd, OwnedFd};

use crate::failure::{During, Failure, Outcome};
use crate::pod::is_plain;

/// `FD --pod-dir POD [--next-connection N] [--deaths N] [--within SECONDS] [--spare] -- ARGV…`
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    fd: i32,
    pub pod: PathBuf,
    pub next_connection: u64,
    /// More deaths than this, `within` so long, and the pod is given up.
    pub deaths: usize,
    pub within: Duration,
    /// The next daemon is begun while this one lives.
    pub spare: bool,
    pub argv: Vec<CString>,
}

impl Options {
    pub fn parse(words: &[String]) -> Outcome<Self> {
        let mut words = words.iter();
        let fd = number("FD", words.next())?;
        let mut options = Self {
            fd,
            pod: PathBuf::new(),
            next_connection: 1,
            deaths: 10,
            within: Duration::from_secs(10),
            spare: false,
            argv: Vec::new(),
        };
        while let Some(option) = words.next() {
            match option.as_str() {
                "--" => {
                    let argv: Result<_, _> = words.map(|word| CString::new(word.as_str())).collect();
                    options.argv = argv.during("read keep", "ARGV")?;
                    break;
                }
                "--spare" => options.spare = true,
                "--pod-dir" => options.pod = number::<PathBuf>(option, words.next())?,
                "--next-connection" => options.next_connection = number(option, words.next())?,
                "--deaths" => options.deaths = number(option, words.next())?,
                "--within" => options.within = Duration::from_secs(number(option, words.next())?),
                other => return Err(Failure::new("read keep", other, "no such option")),
            }
        }
        if !is_plain(&options.pod) || options.argv.is_empty() {
            return Err(Failure::new("read keep", "arguments", "want an absolute --pod-dir, and ARGV after --"));
        }
        Ok(options)
    }

    /// The socket to the daemon; to be taken once.
    pub fn control(&self) -> Outcome<OwnedFd> {
        if self.fd < 3 {
            return Err(Failure::new("read keep", "FD", "is a standard stream"));
        }
        // SAFETY: the number was handed to us to own, and nothing in this process has opened an fd of that number.
        let control = unsafe { OwnedFd::from_raw_fd(self.fd) };
        rustix::io::fcntl_setfd(&control, rustix::io::FdFlags::CLOEXEC).during("keep", "control socket")?;
        Ok(control)
    }
}

fn number<T: std::str::FromStr>(option: &str, word: Option<&String>) -> Outcome<T> {
    let word = word.ok_or_else(|| Failure::new("read keep", option, "no value"))?;
    word.parse().map_err(|_| Failure::new("read keep", option, format!("{word:?} makes no sense")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Outcome<Options> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn all_of_it() {
        let got = parse("7 --pod-dir /p --next-connection 4 --deaths 3 --within 9 --spare -- python3 -m x");
        let got = got.unwrap_or_else(|failure| unreachable!("{failure}"));
        assert_eq!((got.fd, got.next_connection, got.deaths, got.within.as_secs(), got.spare), (7, 4, 3, 9, true));
        assert_eq!((got.pod, got.argv.len()), (PathBuf::from("/p"), 3));
    }

    #[test]
    fn what_is_refused() {
        for line in ["", "x", "7", "7 --pod-dir p -- a", "7 --pod-dir /p", "7 --pod-dir /p --loud -- a"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
