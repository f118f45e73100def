//! Huge pages.
#![expect(unsafe_code, reason = "a mapping is made, and read and written as bytes")]

use std::ffi::c_void;
use std::ptr;
use std::slice;

use anyhow::{Context, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// A huge page of this program's own.
pub(crate) struct Huge {
    start: *mut c_void,
    size: usize,
}

impl Huge {
    /// Takes one of `size` bytes, a power of two, out of the kernel's pool of that size.
    pub(crate) fn new(size: usize) -> Result<Huge> {
        ensure!(size.is_power_of_two(), "no huge page has {size} bytes");
        // The kernel reads the size's exponent from these bits (MAP_HUGE_SHIFT).
        let flags =
            MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::from_bits_retain(size.trailing_zeros() << 26);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, flags) };
        let start = start.with_context(|| format!("taking a huge page of {size} bytes"))?;
        Ok(Huge { start, size })
    }

    /// What is in it.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is this long, readable, and changed only through `bytes_mut`.
        unsafe { slice::from_raw_parts(self.start.cast(), self.size) }
    }

    /// What is in it, to be changed.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is this long, writable, and nobody else has a reference to it.
        unsafe { slice::from_raw_parts_mut(self.start.cast(), self.size) }
    }
}

impl Drop for Huge {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone. That it cannot be undone would harm nobody.
        let _ = unsafe { munmap(self.start, self.size) };
    }
}
