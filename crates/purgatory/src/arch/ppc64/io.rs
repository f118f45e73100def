//! What console and reset are reached by: calls to the hypervisor (LoPAR, "Hypervisor Call Functions").
#![expect(unsafe_code, reason = "the hypervisor call instruction")]

use core::arch::asm;

const H_PUT_TERM_CHAR: u64 = 0x58;

/// What the hypervisor answers when all went well.
pub(crate) const H_SUCCESS: u64 = 0;

/// Hypervisor state in the machine state register (Power ISA 3.1, book III, 4.2.1).
const MSR_HV: u64 = 1 << 60;

/// Whether there is a hypervisor to call. Little-endian kernels run on two platforms only: on bare metal in hypervisor
/// state, where the instruction would call ourselves, and in a partition that has its console and RTAS by LoPAR.
pub(crate) fn in_a_partition() -> bool {
    let msr: u64;
    // SAFETY: reads a register; this program runs in privileged state.
    unsafe { asm!("mfmsr {}", out(reg) msr, options(nomem, nostack, preserves_flags)) };
    msr & MSR_HV == 0
}

/// Puts up to 16 bytes on the virtual terminal `terminal`, all or none, and gives the hypervisor's answer.
pub(crate) fn put_term_char(terminal: u64, bytes: &[u8]) -> u64 {
    let mut padded = [0; 16];
    for (to, from) in padded.iter_mut().zip(bytes) {
        *to = *from;
    }
    let [high, low] = [0, 8].map(|at| u64::from_be_bytes(core::array::from_fn(|index| padded[at + index])));
    let answer;
    // SAFETY: the callers have seen that there is a hypervisor. The call touches no memory of ours; it may clobber what a
    // function call may, of the general registers r0 and r3 to r12.
    unsafe {
        asm!("sc 1",
            inout("r3") H_PUT_TERM_CHAR => answer, inout("r4") terminal => _, inout("r5") bytes.len().min(16) => _,
            inout("r6") high => _, inout("r7") low => _,
            out("r0") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _,
            out("ctr") _, out("xer") _, out("cr0") _, out("cr1") _, out("cr5") _, out("cr6") _, out("cr7") _,
            options(nostack));
    }
    answer
}
