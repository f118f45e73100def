//! ppc64: real mode in, real mode with a device tree out. Little-endian, ELFv2.

mod entry;
mod io;
mod memory;
mod reset;
mod serial;

pub(crate) use entry::Entry;
pub(crate) use memory::{copy_down, copy_up, fill};
pub(crate) use reset::reset;
pub(crate) use serial::Serial;
