//! The crash header (elfcorehdr): what a capture kernel knows of the machine that crashed.
//!
//! It is an ELF core header in reserved memory. Its program headers say where each CPU's register notes lie
//! (`PT_NOTE`) and which physical memory there is to save (`PT_LOAD`); the capture kernel turns it into
//! `/proc/vmcore`. This crate holds the physical ranges ([`PhysRange`], [`RangeSet`]), the header's [`layout`],
//! a builder ([`build()`]), a strict parser ([`Header::parse`]) and the way to change a header that a crash may
//! need at any instant ([`update`]).
//!
//! It knows nothing of files, system calls or kernels and allocates nothing unless the feature `alloc` is on, so
//! the same lines can run in a loader, in a checker, in a test and in a kernel.
//!
//! Features: `alloc` (range sets on the heap, `RangeVec`), `serde` (addresses as hex strings).
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod addr;
mod build;
pub mod layout;
mod parse;
pub mod range;
mod rules;
pub mod update;

pub use addr::{PhysAddr, PhysRange};
pub use build::{BuildError, Contents, build, room_for, size_for};
pub use layout::{EHDR_SIZE, MAX_ENTRIES, Machine, PHDR_SIZE};
pub use parse::{Header, ParseError, Wanted};
#[cfg(feature = "alloc")]
pub use range::RangeVec;
pub use range::{FixedBuf, Full, RangeBuf, RangeSet};
pub use rules::{EntryFault, MAX_NOTE_SIZE};

/// An area of crash notes: where a CPU's registers, or the vmcoreinfo text, are saved when the machine crashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Note {
    /// Physical address of the area.
    pub paddr: PhysAddr,
    /// Its size in bytes.
    pub size: u64,
}

/// A stretch of memory that the dump holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Load {
    /// Physical address that the dump says this memory had.
    pub paddr: PhysAddr,
    /// Virtual address that the crashed kernel had it mapped at.
    pub vaddr: u64,
    /// Physical address that the capture kernel reads it from: `paddr`, unless the memory was copied aside.
    pub offset: PhysAddr,
    /// Size in bytes.
    pub size: u64,
}

impl Load {
    /// The memory as the dump names it: `[paddr, paddr + size)`; `None` if that passes the end of the address space.
    pub fn range(&self) -> Option<PhysRange> {
        PhysRange::from_len(self.paddr, self.size)
    }
}
