//! What makes a guest worth copying: little in memory, and of that what a first container needs.
//!
//! Nothing here may read what the kernel makes once and keeps, the boot id above all: every copy would have it.

use std::fs;
use std::process::{Command, Stdio};

use crate::error::{Context, Result};
use crate::reaper::Reaper;

/// Written in this order: caches go, then what is left moves together, so that what is free is free in large pieces.
const SHRINK: [(&str, &str); 2] = [("/proc/sys/vm/drop_caches", "3"), ("/proc/sys/vm/compact_memory", "1")];

/// Drops caches, compacts, and runs crun once so that its pages are there.
pub async fn prepare(reaper: &Reaper) -> Result<()> {
    nix::unistd::sync();
    for (file, value) in SHRINK {
        if let Err(error) = fs::write(file, value) {
            log::warn!("prepare: {file}: {error}"); // a kernel without compaction is copied as it is
        }
    }
    warm(reaper).await
}

async fn warm(reaper: &Reaper) -> Result<()> {
    let mut command = Command::new("crun");
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let (_, exit) = reaper.spawn(&mut command).at("run", "crun --version")?;
    // How it ended is its own matter: its pages are there.
    let _ = exit.await;
    Ok(())
}
