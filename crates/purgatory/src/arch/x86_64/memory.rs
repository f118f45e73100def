//! The memory routines that compiled code calls, as far as this architecture has good instructions for them. On this target they
//! come from the C library, which is not here.
//! String instructions: short, and fast where it matters.
#![expect(unsafe_code, reason = "provides the C memory routines")]

use core::arch::asm;

/// C `memcpy`.
///
/// # Safety
/// As C: `count` bytes readable at `from` and writable at `to`, not overlapping.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// C `memmove`.
///
/// # Safety
/// As C: `count` bytes readable at `from` and writable at `to`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: forward copying does not reach what is still to be read.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller's promise; copies from the last byte down, and restores the direction flag.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _,
            inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// C `memset`.
///
/// # Safety
/// As C: `count` bytes writable at `to`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value as u8,
            options(nostack, preserves_flags));
    }
    to
}
