//! What console and reset are reached by: I/O ports.
#![expect(unsafe_code, reason = "port instructions")]

use core::arch::asm;

/// Reads a byte from `port`.
pub(crate) fn read(port: u16) -> u8 {
    let value;
    // SAFETY: reads a device register; touches no memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes `value` to `port`.
pub(crate) fn write(port: u16, value: u8) {
    // SAFETY: the callers write to the UART and to the reset registers only, which touch no memory of ours.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}
