//! What the daemon says when it begins its keeper.

use std::ffi::CString;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fd::{FromRawFd, OwnedFd};

use crate::failure::{During, Failure, Outcome};
use crate::pod::is_plain;

/// `FD --pod-dir POD [--next-connection N] [--deaths N] [--within SECONDS] [--spare] [--held NAME=FD,…] -- ARGV…`
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
    /// What an earlier keeper held that has become this one; None when a daemon has begun it.
    held: Option<Vec<(String, i32)>>,
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
            within: Duration::from_secs(120),
            spare: false,
            held: None,
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
                "--held" => options.held = Some(held(words.next())?),
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

    /// Whether an earlier keeper has become this one: then a daemon serves already.
    pub fn goes_on(&self) -> bool {
        self.held.is_some()
    }

    /// What an earlier keeper held; to be taken once.
    pub fn inherited(&self) -> Outcome<Vec<(String, OwnedFd)>> {
        let mut owned = Vec::new();
        for (name, fd) in self.held.iter().flatten() {
            // SAFETY: the numbers were handed to us to own, and nothing in this process has opened fds of these numbers.
            let fd = unsafe { OwnedFd::from_raw_fd(*fd) };
            rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).during("keep", name)?;
            owned.push((name.clone(), fd));
        }
        Ok(owned)
    }

    /// The options anew, for a keeper that goes on in our place.
    pub fn words(&self, next_connection: u64) -> Vec<String> {
        let mut words = vec!["--pod-dir".to_owned(), self.pod.display().to_string()];
        words.extend(["--next-connection".to_owned(), next_connection.to_string()]);
        words.extend(["--deaths".to_owned(), self.deaths.to_string()]);
        words.extend(["--within".to_owned(), self.within.as_secs().to_string()]);
        words.extend(self.spare.then(|| "--spare".to_owned()));
        words
    }
}

/// `NAME=FD,…`
fn held(list: Option<&String>) -> Outcome<Vec<(String, i32)>> {
    let wrong = || Failure::new("read keep", "--held", "want NAME=FD,…");
    let list = list.ok_or_else(wrong)?.split(',').filter(|one| !one.is_empty());
    list.map(|one| {
        let (name, fd) = one.rsplit_once('=').ok_or_else(wrong)?;
        let fd = fd.parse().ok().filter(|fd| *fd > 2).ok_or_else(wrong)?;
        Ok((name.to_owned(), fd))
    })
    .collect()
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
    fn a_keeper_that_goes_on() {
        let got = parse("7 --pod-dir /p --deaths 3 --spare --held listen=8,c1=9 -- a");
        let got = got.unwrap_or_else(|failure| unreachable!("{failure}"));
        assert_eq!(got.held, Some(vec![("listen".to_owned(), 8), ("c1".to_owned(), 9)]));
        assert!(got.goes_on());
        let words = got.words(2).join(" ");
        assert_eq!(words, "--pod-dir /p --next-connection 2 --deaths 3 --within 120 --spare");
    }

    #[test]
    fn what_is_refused() {
        for line in ["7 --pod-dir /p --held c1=2 -- a", "7 --pod-dir /p --held c1 -- a"] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in ["", "x", "7", "7 --pod-dir p -- a", "7 --pod-dir /p", "7 --pod-dir /p --loud -- a"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
