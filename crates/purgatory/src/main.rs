//! The freestanding program that runs between the crashed kernel and the capture kernel.
//!
//! It is entered with memory one to one (x86_64: paging on, mapped so; ppc64: real mode), on a machine of which nothing
//! else may be trusted. The entry code in `arch` gives it a stack and the vector unit and calls [`run`].

#![no_std]
#![no_main]
#![deny(unsafe_code)]

mod arch;
mod block;
mod memory;

use core::fmt::{Display, Write as _};
use core::panic::PanicInfo;

use purgatory::{Params, first_mismatch};

use arch::{Entry, Serial, reset};

/// Checks the image and returns how to enter the capture kernel, or resets the machine. `prepare` does what the
/// architecture wants done before.
fn run<E: Display>(prepare: impl FnOnce(&Params) -> Result<Entry, E>) -> Entry {
    let params = match Params::parse(block::bytes()) {
        Ok(params) => params,
        // The port is inside the damaged block: the common console is a better guess than silence.
        Err(error) => refuse(Serial::COMMON, format_args!("{error}")),
    };
    let mut serial = Serial::of(&params);
    if let Some(mismatch) = first_mismatch(&params, memory::region_bytes) {
        let region = mismatch.region;
        refuse(
            serial,
            format_args!(
                "{} changed since it was loaded: {:#x} bytes at {:#x}, digest {}, expected {}",
                region.name(),
                region.size,
                region.start,
                Hex(&mismatch.found),
                Hex(&region.digest),
            ),
        );
    }
    let entry = match prepare(&params) {
        Ok(entry) => entry,
        Err(error) => refuse(serial, format_args!("{error}")),
    };
    // A console that does not take the text must not keep the dump from being made.
    let _ = serial.write_str("hotdump purgatory: image intact, entering the capture kernel\r\n");
    entry
}

/// Says why the capture kernel is not entered, and resets the machine.
fn refuse(mut serial: Serial, why: core::fmt::Arguments<'_>) -> ! {
    let _ =
        write!(serial, "\r\nhotdump purgatory: {why}; capture kernel not entered, no dump, resetting\r\n");
    serial.drain();
    reset()
}

#[panic_handler]
fn panicked(info: &PanicInfo<'_>) -> ! {
    refuse(Serial::COMMON, format_args!("{info}"))
}

/// The first bytes of a digest, enough to tell two apart.
struct Hex<'a>(&'a [u8]);

impl Display for Hex<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
