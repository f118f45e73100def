//! Reset of a partition: the RTAS call `system-reboot`. The hypervisor itself offers a partition no call for it.
//!
//! On bare metal (OPAL), where the loader found no RTAS, and where this program lies too high for it, the CPU waits: somebody
//! has to reset the machine.
#![expect(unsafe_code, reason = "calls the firmware")]

use core::arch::{asm, global_asm};
use core::fmt::Write as _;

use purgatory::Params;

use super::{Serial, io};
use crate::block;

unsafe extern "C" {
    /// Calls RTAS, and waits for ever if that comes back.
    fn purgatory_enter_rtas(arguments: *mut Arguments, base: u64, entry: u64) -> !;
}

/// A call of RTAS that takes nothing and gives a status, all numbers big-endian (LoPAR, "RTAS Argument Call Buffer").
#[repr(C, align(8))]
struct Arguments {
    token: u32,
    inputs: u32,
    outputs: u32,
    status: u32,
}

/// RTAS is 32-bit code: its argument buffer and the way back from it must lie below.
const RTAS_LIMIT: u64 = 1 << 32;

/// Resets the machine, or waits for somebody who does.
pub(crate) fn reset() -> ! {
    let rtas = Params::parse(block::bytes()).map(|params| params.rtas).unwrap_or_default();
    let mut arguments =
        Arguments { token: rtas.system_reboot.to_be(), inputs: 0, outputs: 1u32.to_be(), status: 0 };
    let arguments = &raw mut arguments;
    if rtas.entry != 0 && io::in_a_partition() && (arguments as u64) < RTAS_LIMIT {
        // SAFETY: the loader took the addresses from the running machine's device tree; nothing of this program is needed
        // any more. The stack is the program's end, so all of it lies below the limit.
        unsafe { purgatory_enter_rtas(arguments, rtas.base, rtas.entry) }
    }
    let mut serial = Serial::COMMON;
    let _ = serial.write_str("hotdump purgatory: no way to reset is known, waiting\r\n");
    loop {
        // SAFETY: lowers this thread's priority, no more.
        unsafe { asm!("or 1, 1, 1", options(nomem, nostack, preserves_flags)) };
    }
}

// RTAS runs in real mode, 32-bit and big-endian: of the machine state only ME (bit 12) and RI (bit 1) are set. It comes back
// in the same state, so the branch that waits is spelled big-endian.
global_asm!(
    r#"
    .pushsection .text.purgatory_enter_rtas, "ax", @progbits
    .balign 16
    .globl purgatory_enter_rtas
    .type purgatory_enter_rtas, @function
purgatory_enter_rtas:
    bcl 20, 31, 1f
1:  mflr 6
    addi 6, 6, 2f - 1b
    mtlr 6
    li 0, 0
    mtcr 0
    li 6, 0x1002
    li 7, 0
    mtmsrd 7, 1
    mtsrr0 5
    mtsrr1 6
    rfid
    b .
2:  .long 0x00000048
    .size purgatory_enter_rtas, . - purgatory_enter_rtas
    .popsection
"#
);
