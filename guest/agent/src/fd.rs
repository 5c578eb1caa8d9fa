//! Descriptors that the runtime watches.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::unix::AsyncFd;
use tokio::io::Interest;

/// Watches a non-blocking descriptor. `owner` is one of this crate's owners, each of which keeps its descriptor until it is
/// dropped and always names the same one.
pub(crate) fn watch<T: AsRawFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: see above; the descriptor outlives the registration.
    Ok(unsafe { AsyncFd::register_with_interest(owner, interest) }?)
}
