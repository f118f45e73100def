//! The memory routines that compiled code calls, as far as this architecture has good instructions for them. On this target they
//! come from the C library, which is not here.
//! Words where it matters, bytes for the rest. In assembly, for a compiler makes calls of these routines from such loops.
#![expect(unsafe_code, reason = "provides the C memory routines and copies memory from address 0")]

use core::arch::asm;

/// Copies `count` bytes, lowest first.
///
/// # Safety
/// `count` bytes readable at physical address `from` and writable at `to`; the first bytes of `from` may not lie in the
/// part of `to` that is written before they are read.
pub(super) unsafe fn copy_up(to: u64, from: u64, count: u64) {
    let (words, rest) = (count / 8, count % 8);
    // SAFETY: the caller's promise. Real mode takes unaligned words.
    unsafe {
        asm!(
            "cmpldi {words}, 0",
            "beq 3f",
            "mtctr {words}",
            "2: ld {kept}, 0({from})",
            "std {kept}, 0({to})",
            "addi {from}, {from}, 8",
            "addi {to}, {to}, 8",
            "bdnz 2b",
            "3: cmpldi {rest}, 0",
            "beq 5f",
            "mtctr {rest}",
            "4: lbz {kept}, 0({from})",
            "stb {kept}, 0({to})",
            "addi {from}, {from}, 1",
            "addi {to}, {to}, 1",
            "bdnz 4b",
            "5:",
            words = in(reg_nonzero) words, rest = in(reg_nonzero) rest, kept = out(reg) _,
            to = inout(reg_nonzero) to => _, from = inout(reg_nonzero) from => _,
            out("ctr") _, out("cr0") _, options(nostack),
        );
    }
}

/// C `memcpy`.
///
/// # Safety
/// As C: `count` bytes readable at `from` and writable at `to`, not overlapping.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { copy_up(to as u64, from as u64, count as u64) };
    to
}

/// C `memmove`.
///
/// # Safety
/// As C: `count` bytes readable at `from` and writable at `to`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // Forward copying does not reach what is still to be read: a word is read before it is written, and where `to` is
        // less than a word below `from`, what it overwrites has been read.
        // SAFETY: the caller's promise.
        unsafe { copy_up(to as u64, from as u64, count as u64) };
        return to;
    }
    // SAFETY: the caller's promise; from the last byte down. `to` is above `from`, so `count` is not 0.
    unsafe {
        asm!(
            "mtctr {count}",
            "2: lbzu {kept}, -1({from})",
            "stbu {kept}, -1({to})",
            "bdnz 2b",
            count = in(reg) count, kept = out(reg) _,
            to = inout(reg_nonzero) to.wrapping_add(count) => _,
            from = inout(reg_nonzero) from.wrapping_add(count) => _,
            out("ctr") _, options(nostack),
        );
    }
    to
}

/// C `memset`.
///
/// # Safety
/// As C: `count` bytes writable at `to`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    if count != 0 {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "mtctr {count}",
                "2: stb {value}, 0({to})",
                "addi {to}, {to}, 1",
                "bdnz 2b",
                count = in(reg) count, value = in(reg) value, to = inout(reg_nonzero) to => _,
                out("ctr") _, options(nostack),
            );
        }
    }
    to
}
