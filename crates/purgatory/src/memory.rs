//! Physical memory as slices, and the memory routines that compiled code calls. On this target they come from the C library,
//! which is not here.
#![expect(
    unsafe_code,
    reason = "turns addresses that the loader wrote down into slices; provides the C memory routines"
)]

use purgatory::Region;

use crate::arch::{copy_down, copy_up, fill};

/// The memory of `region`.
///
/// The regions lie in the crash reservation and were mapped one to one by the kernel that crashed: it maps every segment
/// of a loaded image.
pub(crate) fn region_bytes(region: &Region) -> &'static [u8] {
    // SAFETY: `Params::parse` lets only non-empty regions through that do not start at 0, do not wrap and are no longer
    // than isize::MAX; the loader makes each a part of a loaded segment, which is mapped and which nobody writes to: one
    // CPU runs, with interrupts off.
    unsafe { core::slice::from_raw_parts(region.start as *const u8, region.size as usize) }
}

/// C `memcpy`.
///
/// # Safety
/// As C: `count` bytes readable at `from` and writable at `to`, not overlapping.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { copy_up(to, from, count) };
    to
}

/// C `memmove`.
///
/// # Safety
/// As C: `count` bytes readable at `from` and writable at `to`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // Copying upwards does not reach what is still to be read: where `to` is less than a word below `from`, what a word
        // overwrites has been read.
        // SAFETY: the caller's promise.
        unsafe { copy_up(to, from, count) };
    } else {
        // SAFETY: the caller's promise; `to` is above `from`, and `count` is not 0.
        unsafe { copy_down(to, from, count) };
    }
    to
}

/// C `memset`.
///
/// # Safety
/// As C: `count` bytes writable at `to`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { fill(to, value as u8, count) };
    to
}

/// C `memcmp`.
///
/// # Safety
/// As C: `count` bytes readable at `left` and at `right`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    for index in 0..count {
        // SAFETY: the caller's promise. Volatile, so that the compiler does not turn the loop into a call of itself.
        let (l, r) = unsafe { (left.add(index).read_volatile(), right.add(index).read_volatile()) };
        if l != r {
            return i32::from(l) - i32::from(r);
        }
    }
    0
}

/// C `bcmp`.
///
/// # Safety
/// As [`memcmp`].
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(left, right, count) }
}
