//! What the agent does to and tells about the machine it runs in.

pub mod clock;
pub mod copy;
pub mod details;
pub mod hotplug;
pub mod metrics;
pub mod prepare;
pub mod random;
