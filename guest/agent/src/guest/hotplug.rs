//! CPUs and memory that were plugged in while the guest runs.
//!
//! The kernel leaves both offline (`MEMORY_HOTPLUG_DEFAULT_ONLINE` is off in the kernel this guest has).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Context, Result};
use crate::protocol::agent::OnlineCPUMemRequest;
use crate::uevent;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

/// How long CPUs are waited for; bringing one up takes up to half a second under emulation.
const LIMIT: Duration = Duration::from_secs(15);

/// Brings everything online that is not, waiting until `nb_cpus` CPUs were brought online if that is asked for, and lets every control
/// group use them: groups that set no list of CPUs of their own have the new ones at once.
pub async fn online(request: &OnlineCPUMemRequest) -> Result<()> {
    if request.nb_cpus > 0 {
        online_cpus(request.nb_cpus, request.wait).await?;
    }
    if !request.cpu_only {
        online_all(Path::new(MEMORY), "memory")?;
    }
    Ok(())
}

async fn online_cpus(wanted: u32, wait: bool) -> Result<()> {
    let mut done = online_all(Path::new(CPUS), "cpu")?;
    if !wait || done >= wanted {
        return Ok(());
    }
    let what = format!("{wanted} more CPUs");
    uevent::wait_for(&what, LIMIT, || {
        done += online_all(Path::new(CPUS), "cpu").unwrap_or(0);
        (done >= wanted).then_some(())
    })
    .await
}

/// Brings online what is offline in a directory of `<prefix>N`; returns how many that were.
fn online_all(directory: &Path, prefix: &str) -> Result<u32> {
    let mut count = 0;
    for file in offline(directory, prefix) {
        fs::write(&file, "1").at("online", file.display())?;
        count += 1;
    }
    Ok(count)
}

fn offline(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let numbered = |name: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.parse::<u32>().is_ok());
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let files = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(numbered))
        .map(|entry| entry.path().join("online"));
    files.filter(|file| fs::read_to_string(file).is_ok_and(|state| state.trim() == "0")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_offline_is_brought_online() {
        let root = std::env::temp_dir().join(format!("kata-agent-hotplug-{}", std::process::id()));
        for (name, state) in [("memory0", "1"), ("memory40", "0"), ("memory41", "0\n"), ("block_size", "0")] {
            fs::create_dir_all(root.join(name)).unwrap();
            fs::write(root.join(name).join("online"), state).unwrap();
        }
        fs::create_dir_all(root.join("memory42")).unwrap();
        let count = online_all(&root, "memory").unwrap();
        let state = fs::read_to_string(root.join("memory40/online")).unwrap();
        let again = online_all(&root, "memory").unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!((count, state.as_str(), again), (2, "1", 0));
    }
}
