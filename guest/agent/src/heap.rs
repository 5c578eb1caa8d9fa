//! What the allocator does with the buffers of replies.
//!
//! Left alone, it gives the end of its heap back to the kernel after each large reply and takes it anew for the next: every page of every
//! reply is then cleared and mapped again, which where the processor is emulated costs more than all the copying.

/// More than any frame has: all buffers come from the heap.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 8 << 20;
/// A heap whose end is free for more than this is cut: what a reply of the largest kind needs stays.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 4 << 20;

/// Keeps the buffers of a reply for the next.
pub fn keep_buffers() {
    // SAFETY: it sets two numbers of the allocator's.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}
