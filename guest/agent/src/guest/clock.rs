//! The guest's time.

use nix::sys::time::TimeSpec;
use nix::time::{clock_settime, ClockId};

use crate::error::{Context, Error, Result};

/// Sets the clock to so many seconds and microseconds after the epoch.
pub fn set(seconds: i64, microseconds: i64) -> Result<()> {
    let fraction = (0..1_000_000).contains(&microseconds);
    if seconds < 0 || !fraction {
        return Err(Error::invalid(format!("set time: {seconds} s, {microseconds} us: out of range")));
    }
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, microseconds * 1000)).at("set", "time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused() {
        for (seconds, microseconds) in [(-1, 0), (0, -1), (0, 1_000_000)] {
            assert_eq!(set(seconds, microseconds).unwrap_err().code, ttrpc::Code::INVALID_ARGUMENT);
        }
    }
}
