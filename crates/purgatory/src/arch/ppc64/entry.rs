//! Entry and hand-over.
//!
//! The kernel enters in real mode with interrupts off, r3 = this CPU's hardware id, r4 = the image's first byte, and no
//! stack (kexec_sequence in arch/powerpc/kernel/misc_64.S). It comes from a little-endian kernel, whose instruction cache
//! has been flushed for every segment.
//!
//! Before that it copied the image's first 0x100 bytes to address 0 and let the other CPUs go to 0x60 there. These bytes
//! are the capture kernel's own (but for the first word, a branch to the code below): the CPUs wait in the capture kernel's
//! code, for the capture kernel's word. Nothing here may write below 0x100.
//!
//! The capture kernel wants (arch/powerpc/kernel/head_64.S): real mode, r3 = device tree, r4 = its own address, r5 = 0.
#![expect(
    unsafe_code,
    reason = "entry code, the call from it, and memory at addresses that the loader wrote down"
)]

use core::arch::global_asm;

use purgatory::{BACKUP_SIZE, Params, TREE_OFFSET, TreeError, set_boot_cpu};

use super::copy_up;
use crate::block;

/// How to enter the capture kernel. The entry code takes the two numbers from registers, in this order.
#[repr(C)]
pub(crate) struct Entry {
    /// Physical address of the device tree.
    tree: u64,
    /// Physical address of the kernel, which is entered at its first byte.
    address: u64,
}

/// Called once by the entry code below. `cpu` is the hardware id of the CPU that runs.
#[unsafe(no_mangle)]
extern "C" fn purgatory_run(cpu: u64) -> Entry {
    // Another tree is put in force by one store, so it is found by one load: what a CPU that could not be stopped stores
    // later does not count.
    // SAFETY: the word lies in the block, which is aligned to 64 bytes, at a multiple of 8.
    let tree = unsafe { block::bytes().as_ptr().byte_add(TREE_OFFSET).cast::<u64>().read_volatile() };
    crate::run(|params| prepare(params, u64::from_le(tree), cpu as u32))
}

/// Copies low memory aside and makes `cpu` the boot CPU of `tree`.
fn prepare(params: &Params, tree: u64, cpu: u32) -> Result<Entry, TreeError> {
    if params.backup != 0 {
        // SAFETY: in real mode all memory can be read, and the loader made the backup area a part of a loaded segment of
        // that size. `Params::parse` lets only areas through that do not wrap.
        unsafe { copy_up(params.backup as *mut u8, core::ptr::null(), BACKUP_SIZE as usize) };
    }
    let slot = params.slot(tree)?;
    // SAFETY: `Params::parse` lets only slots through that a slice may span; the loader makes each a part of a loaded
    // segment, and nobody else writes to it now.
    set_boot_cpu(unsafe { core::slice::from_raw_parts_mut(slot.start as *mut u8, slot.size as usize) }, cpu)?;
    Ok(Entry { tree, address: params.entry })
}

// Labels local to this file start with .L. Global are the entry and the call into Rust above; the stack is in block.rs.
global_asm!(
    r#"
    .pushsection .text.purgatory_start, "ax", @progbits
    .balign 16
    .globl purgatory_start
    .type purgatory_start, @function
purgatory_start:
    // Where the table of contents is: compiled code expects it in r2.
    bcl 20, 31, .Lhere
.Lhere:
    mflr 12
    addis 2, 12, .TOC. - .Lhere@ha
    addi 2, 2, .TOC. - .Lhere@l

    // Floating point (bit 13), vectors (bit 25) and both together (bit 23): compiled code for this target uses them. What
    // was there stays in a register that a call preserves.
    mfmsr 31
    ori 5, 31, 0x2000
    oris 5, 5, 0x0280
    mtmsrd 5
    isync

    addis 1, 2, purgatory_stack_top@toc@ha
    addi 1, 1, purgatory_stack_top@toc@l
    li 0, 0
    stdu 0, -32(1)

    bl purgatory_run
    nop

    // r3: device tree, r4: the kernel's first byte.
    sync
    mtmsrd 31
    isync
    li 5, 0
    li 6, 0
    li 7, 0
    li 8, 0
    li 9, 0
    mtctr 4
    bctr
    .size purgatory_start, . - purgatory_start
    .popsection
"#
);
