//! Fresh randomness for a machine that was cloned: without it, all clones draw the same numbers.

use std::fs::File;
use std::os::fd::AsRawFd;

use crate::error::{Context, Error, Result};

/// As many bytes as the kernel is given at once.
const LARGEST: usize = 4096;

// The kernel's `struct rand_pool_info` with its data in place.
#[repr(C)]
struct Entropy {
    bits: libc::c_int,
    size: libc::c_int,
    data: [u8; LARGEST],
}

nix::ioctl_write_ptr_bad!(
    /// Adds data to the pool and credits it.
    rndaddentropy,
    nix::request_code_write!(b'R', 0x03, 2 * size_of::<libc::c_int>()),
    Entropy
);
nix::ioctl_none!(
    /// Makes the generator take a new key from the pool.
    rndreseedcrng,
    b'R',
    0x07
);

/// Feeds the bytes to the kernel and makes it use them at once.
pub fn reseed(bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() || bytes.len() > LARGEST {
        return Err(Error::invalid(format!("reseed: {} bytes: must be 1 to {LARGEST}", bytes.len())));
    }
    let size = libc::c_int::try_from(bytes.len()).at("reseed", "size")?;
    let mut entropy = Entropy { bits: size * 8, size, data: [0; LARGEST] };
    entropy.data[..bytes.len()].copy_from_slice(bytes);
    let device = File::options().write(true).open("/dev/random").at("open", "/dev/random")?;
    // SAFETY: the struct is what the request expects, and `size` lies within its data.
    unsafe { rndaddentropy(device.as_raw_fd(), &raw const entropy) }.at("reseed", "RNDADDENTROPY")?;
    // SAFETY: takes no argument.
    unsafe { rndreseedcrng(device.as_raw_fd()) }.at("reseed", "RNDRESEEDCRNG")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(reseed(&[]).unwrap_err().code, ttrpc::Code::INVALID_ARGUMENT);
        assert_eq!(reseed(&[0; LARGEST + 1]).unwrap_err().code, ttrpc::Code::INVALID_ARGUMENT);
    }
}
