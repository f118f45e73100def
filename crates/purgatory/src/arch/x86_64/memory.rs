//! Moving bytes by string instructions: short, and fast where it matters.
#![expect(unsafe_code, reason = "string instructions")]

use core::arch::asm;

/// Copies `count` bytes, lowest first.
///
/// # Safety
/// `count` bytes readable at `from` and writable at `to`; no byte of `from` may be written before it is read.
pub(crate) unsafe fn copy_up(to: *mut u8, from: *const u8, count: usize) {
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
}

/// Copies `count` bytes, of which there is one at least, highest first.
///
/// # Safety
/// As [`copy_up`].
pub(crate) unsafe fn copy_down(to: *mut u8, from: *const u8, count: usize) {
    // SAFETY: the caller's promise; restores the direction flag.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _,
            inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _, options(nostack));
    }
}

/// Makes `count` bytes `value`.
///
/// # Safety
/// `count` bytes writable at `to`.
pub(crate) unsafe fn fill(to: *mut u8, value: u8, count: usize) {
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value,
            options(nostack, preserves_flags));
    }
}
