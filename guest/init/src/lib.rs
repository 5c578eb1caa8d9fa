//! What both first processes of a guest do: kernel file systems, modules, waiting for devices, dying loudly.
//!
//! There is no shell, no udev and no libc lookup here: every step is one system call whose failure says step, object
//! and cause on the kernel log, and then restarts the machine (under `--no-reboot` that ends QEMU, which is how the
//! host learns of it).

pub mod cmdline;
pub mod device;
pub mod failure;
pub mod kernel;
pub mod modules;
pub mod root;
