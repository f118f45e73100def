//! x86_64: 64-bit mode with paging on in, the 64-bit boot protocol out.

mod entry;
mod io;
mod memory;
mod reset;
mod serial;

pub(crate) use entry::Entry;
pub(crate) use memory::{copy_down, copy_up, fill};
pub(crate) use reset::reset;
pub(crate) use serial::Serial;
