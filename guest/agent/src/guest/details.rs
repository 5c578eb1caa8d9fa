//! `GetGuestDetails`.

use std::fs;
use std::path::Path;

use crate::container::connect;
use crate::protocol::agent::{AgentDetails, GuestDetailsRequest, GuestDetailsResponse};
use crate::sandbox::namespaces;
use crate::storage;

const BLOCK_SIZE: &str = "/sys/devices/system/memory/block_size_bytes";
const PROBE: &str = "/sys/devices/system/memory/probe";

/// What was asked about the machine, and what the agent can do.
pub fn details(request: &GuestDetailsRequest, init: bool) -> GuestDetailsResponse {
    let block_size = || fs::read_to_string(BLOCK_SIZE).ok().and_then(|text| hexadecimal(&text)).unwrap_or(0);
    GuestDetailsResponse {
        mem_block_size_bytes: if request.mem_block_size { block_size() } else { 0 },
        support_mem_hotplug_probe: request.mem_hotplug_probe && Path::new(PROBE).exists(),
        agent_details: Some(AgentDetails {
            version: crate::VERSION.to_owned(),
            init_daemon: init,
            device_handlers: storage::block::DEVICE_TYPES.map(str::to_owned).to_vec(),
            storage_handlers: storage::NAMES.map(str::to_owned).to_vec(),
            // crun has it built in; the kernel decides.
            supports_seccomp: Path::new("/proc/sys/kernel/seccomp").exists(),
            extra_features: [connect::FEATURE, namespaces::FEATURE].map(str::to_owned).to_vec(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_hexadecimal() {
        assert_eq!(hexadecimal("8000000\n"), Some(128 << 20));
        assert_eq!(hexadecimal("0x10"), Some(16));
        assert_eq!(hexadecimal(""), None);
    }

    #[test]
    fn handlers_are_listed() {
        let agent = details(&GuestDetailsRequest::default(), true).agent_details;
        assert!(agent.init_daemon);
        assert!(agent.storage_handlers.contains(&"virtio-fs".to_owned()));
    }
}
