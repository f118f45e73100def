//! Writing a crash header.

use crate::layout::{self, EHDR_SIZE, MAX_ENTRIES, Machine, PHDR_SIZE, ehdr, phdr};
use crate::rules::{EntryFault, check_load, check_note};
use crate::{Load, Note};
use core::fmt;

/// What a crash header is to say.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The crashed machine's architecture.
    pub machine: Machine,
    /// Crash notes, one area a CPU, in the order of CPU numbers. An absent CPU's area must be real zeroed memory.
    pub cpu_notes: &'a [Note],
    /// The vmcoreinfo note.
    pub vmcoreinfo: Note,
    /// Memory: the kernel's text first, where the architecture has such an entry, then all that a dump must hold.
    pub loads: &'a [Load],
}

/// Why a header could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// The buffer is too small.
    TooSmall {
        /// Bytes that the header takes.
        need: usize,
        /// Bytes that the buffer has.
        have: usize,
    },
    /// More entries than a header can count.
    TooManyEntries {
        /// Entries asked for.
        entries: usize,
    },
    /// No memory at all: tools that read the dump need one real entry.
    NoLoads,
    /// An entry that a capture kernel would not take.
    Entry {
        /// Its slot in the table, from 0.
        slot: usize,
        /// What is wrong with it.
        fault: EntryFault,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { need, have } => {
                write!(f, "elfcorehdr needs {need} bytes, its buffer holds {have}")
            }
            Self::TooManyEntries { entries } => {
                write!(f, "elfcorehdr would need {entries} entries, it can count {MAX_ENTRIES}")
            }
            Self::NoLoads => f.write_str("elfcorehdr would list no memory"),
            Self::Entry { slot, fault } => write!(f, "elfcorehdr entry {slot} cannot be built: {fault}"),
        }
    }
}

impl core::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Entry { fault, .. } => Some(fault),
            _ => None,
        }
    }
}

/// Bytes that a header of `entries` slots takes; saturates.
pub const fn size_for(entries: usize) -> usize {
    entries.saturating_mul(PHDR_SIZE).saturating_add(EHDR_SIZE)
}

/// Bytes to set aside for a header that the kernel may let grow: `reported` is what `crash_elfcorehdr_size` says,
/// which on x86 counts the slots but not the file header; the sum is rounded up to whole pages of `page` bytes.
/// Saturates, so an absurd report cannot come out small.
pub const fn room_for(reported: u64, page: u64) -> u64 {
    match reported.saturating_add(EHDR_SIZE as u64).checked_next_multiple_of(page) {
        Some(bytes) => bytes,
        None => u64::MAX,
    }
}

/// Writes the header into `buf` and zeroes what is left of it, so that spare slots are free ones. Gives the bytes
/// used. Nothing is written on an error.
///
/// The CPUs' notes come first, from slot 0 on without a gap, then vmcoreinfo, then `loads` in their order: a capture
/// kernel merges the notes by overwriting as many slots from the first as there are notes.
pub fn build(contents: &Contents<'_>, buf: &mut [u8]) -> Result<usize, BuildError> {
    let entries = contents.cpu_notes.len().saturating_add(1).saturating_add(contents.loads.len());
    check(contents, entries)?;
    let count = u16::try_from(entries).map_err(|_| BuildError::TooManyEntries { entries })?;
    let (need, have) = (size_for(entries), buf.len());
    let too_small = BuildError::TooSmall { need, have };
    let (used, spare) = buf.split_at_mut_checked(need).ok_or(too_small)?;
    let (head, table) = used.split_first_chunk_mut::<EHDR_SIZE>().ok_or(too_small)?;

    *head = file_header(contents.machine, count);
    let notes = contents.cpu_notes.iter().chain([&contents.vmcoreinfo]).map(note_slot);
    let slots = notes.chain(contents.loads.iter().map(load_slot));
    let (places, _) = table.as_chunks_mut::<PHDR_SIZE>();
    for (place, slot) in places.iter_mut().zip(slots) {
        *place = slot;
    }
    spare.fill(0);
    Ok(need)
}

fn check(contents: &Contents<'_>, entries: usize) -> Result<(), BuildError> {
    if contents.loads.is_empty() {
        return Err(BuildError::NoLoads);
    }
    if entries > MAX_ENTRIES {
        return Err(BuildError::TooManyEntries { entries });
    }
    let notes = contents.cpu_notes.iter().chain([&contents.vmcoreinfo]);
    let notes = notes.map(|note| check_note(contents.machine, note));
    let loads = contents.loads.iter().map(|load| check_load(contents.machine, load));
    for (slot, checked) in notes.chain(loads).enumerate() {
        checked.map_err(|fault| BuildError::Entry { slot, fault })?;
    }
    Ok(())
}

fn file_header(machine: Machine, count: u16) -> [u8; EHDR_SIZE] {
    let mut head = [0; EHDR_SIZE];
    put(&mut head, ehdr::MAGIC, &layout::MAGIC);
    put(&mut head, ehdr::CLASS, &[layout::ELFCLASS64, layout::ELFDATA2LSB, layout::EV_CURRENT]);
    put(&mut head, ehdr::TYPE, &layout::ET_CORE.to_le_bytes());
    put(&mut head, ehdr::MACHINE, &machine.number().to_le_bytes());
    put(&mut head, ehdr::VERSION, &u32::from(layout::EV_CURRENT).to_le_bytes());
    // The capture kernel does not look at it, crash(8) does.
    put(&mut head, ehdr::PHOFF, &(EHDR_SIZE as u64).to_le_bytes());
    put(&mut head, ehdr::EHSIZE, &(EHDR_SIZE as u16).to_le_bytes());
    put(&mut head, ehdr::PHENTSIZE, &(PHDR_SIZE as u16).to_le_bytes());
    put(&mut head, ehdr::PHNUM, &count.to_le_bytes());
    head
}

fn note_slot(note: &Note) -> [u8; PHDR_SIZE] {
    let mut slot = [0; PHDR_SIZE];
    put(&mut slot, phdr::TYPE, &layout::PT_NOTE.to_le_bytes());
    put(&mut slot, phdr::OFFSET, &note.paddr.0.to_le_bytes());
    put(&mut slot, phdr::PADDR, &note.paddr.0.to_le_bytes());
    put(&mut slot, phdr::FILESZ, &note.size.to_le_bytes());
    put(&mut slot, phdr::MEMSZ, &note.size.to_le_bytes());
    slot
}

fn load_slot(load: &Load) -> [u8; PHDR_SIZE] {
    let mut slot = [0; PHDR_SIZE];
    put(&mut slot, phdr::TYPE, &layout::PT_LOAD.to_le_bytes());
    put(&mut slot, phdr::FLAGS, &layout::PF_RWX.to_le_bytes());
    put(&mut slot, phdr::OFFSET, &load.offset.0.to_le_bytes());
    put(&mut slot, phdr::VADDR, &load.vaddr.to_le_bytes());
    put(&mut slot, phdr::PADDR, &load.paddr.0.to_le_bytes());
    put(&mut slot, phdr::FILESZ, &load.size.to_le_bytes());
    put(&mut slot, phdr::MEMSZ, &load.size.to_le_bytes());
    slot
}

/// Puts `bytes` at a field of a fixed-size structure. Offsets are constants of [`layout`], so they fit.
fn put<const SIZE: usize>(structure: &mut [u8; SIZE], at: usize, bytes: &[u8]) {
    structure[at..at + bytes.len()].copy_from_slice(bytes);
}
