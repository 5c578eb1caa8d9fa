//! The keeper becomes another installation's keeper, by exec: process, fds and the daemon's socket stay what they are.

use std::ffi::CString;
use std::os::fd::AsRawFd;

use rustix::fd::OwnedFd;
use rustix::io::{FdFlags, fcntl_setfd};

use super::options::Options;
use super::store::Store;
use crate::failure::{During, Failure, Outcome};
use crate::posix;

/// Become `launcher keep …`, holding what we hold. Comes back only when that failed, as it was before.
pub fn become_keeper(launcher: &str, options: &Options, store: &Store, control: &OwnedFd) -> Failure {
    let fds = || store.names().into_iter().filter_map(|name| store.get(&name)).chain([control]);
    let exec = || -> Outcome<std::io::Error> {
        let argv = argv(launcher, options, store, control)?;
        for fd in fds() {
            fcntl_setfd(fd, FdFlags::empty()).during("keep", "hand over fds")?;
        }
        Ok(posix::exec(&argv, None))
    };
    let failure = match exec() {
        Ok(error) => Failure::new("keep", launcher, error),
        Err(failure) => failure,
    };
    for fd in fds() {
        let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
    }
    failure
}

fn argv(launcher: &str, options: &Options, store: &Store, control: &OwnedFd) -> Outcome<Vec<CString>> {
    let held: Vec<_> = store
        .names()
        .into_iter()
        .filter_map(|name| store.get(&name).map(|fd| format!("{name}={}", fd.as_raw_fd())))
        .collect();
    let mut words = vec![launcher.to_owned(), "keep".to_owned(), control.as_raw_fd().to_string()];
    words.extend(options.words(store.next()));
    words.extend(["--held".to_owned(), held.join(","), "--".to_owned()]);
    let mut argv = words.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>().during("keep", launcher)?;
    argv.extend(options.argv.iter().cloned());
    Ok(argv)
}
