//! Moving bytes: words where it matters, bytes for the rest. In assembly, for a compiler makes calls of the C memory routines
//! from such loops.
#![expect(unsafe_code, reason = "loops of loads and stores")]

use core::arch::asm;

/// Copies `count` bytes, lowest first. `from` may be 0, which a slice may not.
///
/// # Safety
/// `count` bytes readable at `from` and writable at `to`; no byte of `from` may be written before it is read, whole words of 8
/// bytes taken first and written then.
pub(crate) unsafe fn copy_up(to: *mut u8, from: *const u8, count: usize) {
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

/// Copies `count` bytes, of which there is one at least, highest first.
///
/// # Safety
/// `count` bytes readable at `from` and writable at `to`; no byte of `from` may be written before it is read.
pub(crate) unsafe fn copy_down(to: *mut u8, from: *const u8, count: usize) {
    // SAFETY: the caller's promise.
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
}

/// Makes `count` bytes `value`.
///
/// # Safety
/// `count` bytes writable at `to`.
pub(crate) unsafe fn fill(to: *mut u8, value: u8, count: usize) {
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
}
