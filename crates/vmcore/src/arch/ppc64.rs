//! ppc64: the linear map. The kernel image lies in it, and so do the rings of the kernel log, be they static or allocated
//! (by memblock) for `log_buf_len=`: page tables, of which there are two kinds, need not be known.

use elfcorehdr::PhysAddr;

use super::{PRSTATUS_REGISTERS, Registers};
use crate::elf::CoreError;
use crate::source::VirtAddr;

/// struct pt_regs: 32 general registers, of which r1 is the stack pointer, then the next instruction's address.
pub(crate) const REGISTERS: Registers = Registers {
    ip: PRSTATUS_REGISTERS + 32 * 8,
    sp: PRSTATUS_REGISTERS + 8,
    names: &[
        "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
        "r16", "r17", "r18", "r19", "r20", "r21", "r22", "r23", "r24", "r25", "r26", "r27", "r28", "r29",
        "r30", "r31", "nip", "msr", "orig_r3", "ctr", "lr", "xer", "ccr", "softe", "trap", "dar", "dsisr",
        "result",
    ],
};

/// Where the linear map starts (PAGE_OFFSET), and how long it can be: the first 51 bits, with either kind of page tables
/// and either size of pages (arch/powerpc/include/asm/book3s/64: {hash,radix}-{4k,64k}.h, H_KERN_MAP_SIZE and RADIX_KERN_MAP_SIZE).
const LINEAR_MAP: u64 = 0xc000_0000_0000_0000;
const LINEAR_SIZE: u64 = 1 << 51;

/// The physical address behind `address`, and how many bytes from there are mapped in one piece.
///
/// # Errors
/// [`CoreError::NotLinear`].
pub(crate) fn translate(address: VirtAddr) -> Result<(PhysAddr, u64), CoreError> {
    let phys = address.0.checked_sub(LINEAR_MAP).filter(|phys| *phys < LINEAR_SIZE);
    let phys = phys.ok_or(CoreError::NotLinear { address })?;
    Ok((PhysAddr(phys), LINEAR_SIZE - phys))
}
