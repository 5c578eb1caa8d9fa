//! The fds that outlive a daemon, by name: `listen`, `c<N>` and `j<N>` for a connection and its journal, and the daemon's own.

use std::io;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

pub const LISTEN: &str = "listen";
/// As many as systemd would let a service have is too few for a pod; beyond this, connections wait in the backlog.
const MAX: usize = 4096;
/// Its first page is mapped by daemons, so it is there from the beginning.
const JOURNAL_HEAD: u64 = 4096;

pub struct Store {
    held: Vec<(String, OwnedFd)>,
    next: u64,
}

impl Store {
    pub fn new(next: u64) -> Self {
        Self { held: Vec::new(), next }
    }

    /// The number of the next connection.
    pub fn next(&self) -> u64 {
        self.next
    }

    pub fn get(&self, name: &str) -> Option<&OwnedFd> {
        self.held.iter().find(|(held, _)| held == name).map(|(_, fd)| fd)
    }

    pub fn has_room(&self) -> bool {
        self.held.len() + 2 <= MAX
    }

    /// Hold an fd under a name; one of that name that was held before is let go. `c<N>` keeps its number from being given again.
    pub fn put(&mut self, name: String, fd: OwnedFd) {
        if let Some(number) = name.strip_prefix('c').and_then(|number| number.parse::<u64>().ok()) {
            self.next = self.next.max(number + 1);
        }
        self.remove(&name);
        if self.held.len() < MAX {
            self.held.push((name, fd));
        }
    }

    pub fn remove(&mut self, name: &str) {
        self.held.retain(|(held, _)| held != name);
    }

    /// Hold a new connection and its journal; the names they got.
    pub fn admit(&mut self, connection: OwnedFd, journal: OwnedFd) -> [String; 2] {
        let number = self.next;
        self.put(format!("c{number}"), connection);
        self.put(format!("j{number}"), journal);
        [format!("c{number}"), format!("j{number}")]
    }

    pub fn names(&self) -> Vec<String> {
        self.held.iter().map(|(name, _)| name.clone()).collect()
    }
}

/// An empty journal for one connection.
pub fn journal() -> io::Result<OwnedFd> {
    let journal = memfd_create("connection", MemfdFlags::CLOEXEC)?;
    ftruncate(journal.as_fd(), JOURNAL_HEAD)?;
    Ok(journal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> OwnedFd {
        journal().unwrap_or_else(|error| unreachable!("{error}"))
    }

    #[test]
    fn numbers_of_connections_are_not_given_twice() {
        let mut store = Store::new(3);
        assert_eq!(store.admit(some(), some()), ["c3", "j3"]);
        store.remove("c3");
        store.put("c9".to_owned(), some());
        assert_eq!(store.admit(some(), some()), ["c10", "j10"]);
        assert_eq!(store.names(), ["j3", "c9", "c10", "j10"]);
    }

    #[test]
    fn a_name_is_held_once() {
        let mut store = Store::new(1);
        store.put("x".to_owned(), some());
        store.put("x".to_owned(), some());
        assert_eq!(store.names(), ["x"]);
    }
}
