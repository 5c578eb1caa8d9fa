//! One point in time until which a whole verb may work.

use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

/// Everything a verb waits for is bounded by the same deadline.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    pub fn after(span: Duration) -> Self {
        Self(Instant::now() + span)
    }

    /// This deadline or `span` from now, whichever is first.
    pub fn within(self, span: Duration) -> Self {
        Self(self.0.min(Instant::now() + span))
    }

    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub fn is_over(self) -> bool {
        self.left().is_zero()
    }

    /// Wait until `fd` shows one of `wanted` (or an error, or a hang-up); false when the deadline came first.
    pub fn wait(self, fd: BorrowedFd<'_>, wanted: PollFlags) -> Result<bool, Errno> {
        self.wait_any(&mut [PollFd::from_borrowed_fd(fd, wanted)])
    }

    /// Wait until one of `fds` shows something; false when the deadline came first.
    pub fn wait_any(self, fds: &mut [PollFd<'_>]) -> Result<bool, Errno> {
        loop {
            let left = self.left();
            let timeout =
                Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
            match poll(fds, Some(&timeout)) {
                Err(Errno::INTR) => {}
                result => return result.map(|ready| ready > 0),
            }
        }
    }
}
