//! What a capture kernel asks of each entry. Builder and parser hold entries against the same functions, so whatever
//! is built parses.

use crate::{Load, Machine, Note};
use core::fmt;

/// Size of an ELF note's own header (three 4-byte words): the capture kernel reads that much of each note area.
const NOTE_HEADER_SIZE: u64 = 12;

/// Largest note area. The capture kernel takes each into one kmalloc, which ends at 4 MiB on x86
/// (KMALLOC_MAX_SIZE); a bigger note leaves it without /proc/vmcore.
pub const MAX_NOTE_SIZE: u64 = 4 << 20;

/// What is wrong with an entry that a capture kernel would choke on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryFault {
    /// A note area smaller than one note's header. The capture kernel crashes over a size of 0.
    NoteTooSmall {
        /// Its size in bytes.
        size: u64,
        /// The least that is accepted.
        least: u64,
    },
    /// A note area that the capture kernel cannot allocate for.
    NoteTooBig {
        /// Its size in bytes.
        size: u64,
        /// The most that is accepted.
        most: u64,
    },
    /// A memory entry of no bytes.
    EmptyLoad,
    /// Memory outside the machine's physical address space.
    OutsideMachine {
        /// Where it starts.
        start: u64,
        /// Its size in bytes.
        size: u64,
        /// First address past the machine's space.
        limit: u64,
    },
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoteTooSmall { size, least } => {
                write!(f, "its note area has {size} bytes, a capture kernel needs at least {least}")
            }
            Self::NoteTooBig { size, most } => {
                write!(f, "its note area has {size} bytes, a capture kernel takes at most {most}")
            }
            Self::EmptyLoad => f.write_str("its memory has no bytes"),
            Self::OutsideMachine { start, size, limit } => {
                write!(
                    f,
                    "{size:#x} bytes at {start:#x} pass the machine's last physical address, below {limit:#x}"
                )
            }
        }
    }
}

impl core::error::Error for EntryFault {}

/// Holds a note against the rules.
pub(crate) fn check_note(machine: Machine, note: &Note) -> Result<(), EntryFault> {
    if note.size < NOTE_HEADER_SIZE {
        return Err(EntryFault::NoteTooSmall { size: note.size, least: NOTE_HEADER_SIZE });
    }
    if note.size > MAX_NOTE_SIZE {
        return Err(EntryFault::NoteTooBig { size: note.size, most: MAX_NOTE_SIZE });
    }
    check_place(machine, note.paddr.0, note.size)
}

/// Holds a memory entry against the rules.
pub(crate) fn check_load(machine: Machine, load: &Load) -> Result<(), EntryFault> {
    if load.size == 0 {
        return Err(EntryFault::EmptyLoad);
    }
    check_place(machine, load.paddr.0, load.size)?;
    check_place(machine, load.offset.0, load.size)
}

fn check_place(machine: Machine, start: u64, size: u64) -> Result<(), EntryFault> {
    let limit = machine.phys_limit();
    match start.checked_add(size) {
        Some(end) if end <= limit => Ok(()),
        _ => Err(EntryFault::OutsideMachine { start, size, limit }),
    }
}
