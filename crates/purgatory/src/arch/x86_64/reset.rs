//! Three ways to reset a PC, each tried if the one before did nothing.
#![expect(unsafe_code, reason = "the last way is a triple fault")]

use core::arch::asm;

use super::io;

/// The chipset's reset control register: bit 1 asks for a hard reset, bit 2 makes it happen.
const RESET_CONTROL: u16 = 0xcf9;
const KEYBOARD: u16 = 0x64;
/// Keyboard controller command: pulse the reset line.
const PULSE_RESET: u8 = 0xfe;

/// Resets the machine.
pub(crate) fn reset() -> ! {
    let kept = io::read(RESET_CONTROL) & !0x06;
    io::write(RESET_CONTROL, kept | 0x02);
    pause();
    io::write(RESET_CONTROL, kept | 0x06);
    pause();
    io::write(KEYBOARD, PULSE_RESET);
    pause();
    let no_idt = [0u8; 10];
    // SAFETY: with an empty interrupt table the breakpoint cannot be delivered and the CPU shuts down, which resets the
    // machine. Nothing runs after it.
    unsafe { asm!("lidt [{}]", "int3", "2: hlt", "jmp 2b", in(reg) &no_idt, options(noreturn)) }
}

/// About 50 ms: reads of an unused port take about 1 us each.
fn pause() {
    for _ in 0..50_000 {
        io::read(0x80);
    }
}
