//! A 16550 UART, as the crashed kernel left it: no set-up, only bytes out, polled with a bound.

use core::fmt;

use purgatory::Params;

use super::io;

/// Line status register, and its bits (PC16550D data sheet, 8.6.5).
const LINE_STATUS: u16 = 5;
const HOLDING_EMPTY: u8 = 1 << 5;
const ALL_SENT: u8 = 1 << 6;

/// Reads of the line status per byte, about 1 us each: a byte at 9600 baud takes 1 ms.
const PATIENCE: u32 = 100_000;

/// The console; silent where there is no UART.
pub(crate) struct Serial {
    base: u16,
}

impl Serial {
    /// The first serial port of a PC.
    pub(crate) const COMMON: Self = Self { base: 0x3f8 };

    /// The UART that the loader found, if there is one.
    pub(crate) fn of(params: &Params) -> Self {
        Self { base: params.serial_port }
    }

    /// Waits until the last byte has left the wire, or patience ends.
    pub(crate) fn drain(&mut self) {
        self.wait(ALL_SENT);
    }

    /// Waits for `bit` of the line status. Gives the port up when nothing answers.
    fn wait(&mut self, bit: u8) -> bool {
        // All ones is a bus without a device.
        let ready = self.base != 0
            && (0..PATIENCE)
                .any(|_| matches!(io::read(self.base + LINE_STATUS), s if s != 0xff && s & bit != 0));
        if !ready {
            self.base = 0;
        }
        ready
    }
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if !self.wait(HOLDING_EMPTY) {
                return Err(fmt::Error);
            }
            io::write(self.base, byte);
        }
        Ok(())
    }
}
