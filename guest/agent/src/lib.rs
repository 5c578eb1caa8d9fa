//! The agent inside the guest: runs the containers of one pod and answers Kata's agent protocol over ttrpc.
//!
//! One thread, one tokio runtime. Long work that blocks (mounting, forking into namespaces) goes to tokio's blocking
//! threads; containers are made by `crun` as a child process.

pub mod cgroup;
pub mod container;
pub mod error;
mod fd;
pub mod guest;
pub mod heap;
pub mod init;
pub mod logging;
pub mod net;
pub mod oci;
pub mod options;
pub mod paths;
pub mod power;
pub mod process;
pub mod reaper;
pub mod relay;
pub mod rpc;
pub mod sandbox;
pub mod serve;
pub mod storage;
pub mod sync;
pub mod uevent;

/// Messages, server traits and clients generated from `protos/` by `build.rs`.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub mod protocol {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

/// What `Health.Version` and `GetGuestDetails` answer.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
