//! The end of the guest.

use nix::sys::reboot::{reboot, RebootMode};
use nix::unistd::sync;

/// Writes everything back and turns the machine off. Where the kernel cannot (no ACPI, as on `microvm`), a reboot ends the VM, for
/// it is started with `-no-reboot`. Returns only if the kernel refuses both.
pub fn off() {
    sync();
    let acpi = std::path::Path::new("/sys/firmware/acpi").exists();
    let mode = if acpi { RebootMode::RB_POWER_OFF } else { RebootMode::RB_AUTOBOOT };
    let Err(error) = reboot(mode);
    log::error!("power off: {error}");
}
