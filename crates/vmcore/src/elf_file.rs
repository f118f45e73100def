//! The head of an ELF core: the file's header and the program headers.

use std::ops::Range;

use object::elf;

use crate::bitmap::Bitmap;

const HEADER: u64 = 64;
const ENTRY: u64 = 56;
/// Readers stop at 65535 entries; some are for notes.
pub(crate) const MAX_LOADS: usize = 65_000;
/// What segments of notes start at a multiple of.
pub(crate) const NOTE_ALIGN: u64 = 4;

/// A program header: its words as they are in the file, 64 bits each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry([u64; 7]);

impl Entry {
    /// Notes: `size` bytes at file offset `offset`.
    pub(crate) fn note(offset: u64, size: u64) -> Self {
        Self([u64::from(elf::PT_NOTE.0), offset, 0, 0, size, size, NOTE_ALIGN])
    }

    /// Memory: `size` bytes at file offset `offset`, by its virtual (0 for none) and physical address.
    pub(crate) fn load(offset: u64, vaddr: u64, paddr: u64, size: u64) -> Self {
        // Low half: type; high half: flags, read, write and execute, as the kernel has it.
        Self([u64::from(elf::PT_LOAD.0) | 7 << 32, offset, vaddr, paddr, size, size, 0])
    }
}

/// How many bytes the head takes that has this many program headers.
pub(crate) fn size(entries: usize) -> u64 {
    HEADER + ENTRY * entries as u64
}

/// The head of a core of the machine with this `e_machine`.
pub(crate) fn head(machine: u16, entries: &[Entry]) -> Vec<u8> {
    let mut head = vec![0; HEADER as usize];
    // 64-bit, little-endian, version 1.
    head[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    let mut put = |at: usize, value: u16| head[at..at + 2].copy_from_slice(&value.to_le_bytes());
    put(16, elf::ET_CORE.0);
    put(18, machine);
    put(20, 1);
    put(32, HEADER as u16);
    put(52, HEADER as u16);
    put(54, ENTRY as u16);
    put(56, entries.len() as u16);
    head.extend(entries.iter().flat_map(|entry| entry.0).flat_map(u64::to_le_bytes));
    head
}

/// The runs of frames in a set. Where they are more than `most`, those with the smallest gaps between them become one.
pub(crate) fn runs(frames: &Bitmap, most: usize) -> Vec<Range<u64>> {
    let mut gap = 0;
    // Counted before they are put down: there may be millions.
    while joined(frames, gap).nth(most).is_some() {
        gap = (gap * 2).max(1);
    }
    joined(frames, gap).collect()
}

/// The runs of frames, with those joined that have at most `gap` frames between them.
fn joined(frames: &Bitmap, gap: u64) -> impl Iterator<Item = Range<u64>> + '_ {
    let mut runs = frames.runs().map(|run| run.start.0..run.end.0).peekable();
    std::iter::from_fn(move || {
        let mut run = runs.next()?;
        while let Some(next) = runs.next_if(|next| next.start - run.end <= gap) {
            run.end = next.end;
        }
        Some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitmap::Frame;

    #[test]
    fn runs_too_many_are_joined_where_the_gaps_are_smallest() {
        let mut frames = Bitmap::new();
        for start in [0, 3, 5, 20, 22, 90] {
            frames.insert(Frame(start));
        }
        assert_eq!(runs(&frames, 6), [0..1, 3..4, 5..6, 20..21, 22..23, 90..91]);
        assert_eq!(runs(&frames, 5), [0..1, 3..6, 20..23, 90..91]);
        assert_eq!(runs(&frames, 2), [0..23, 90..91]);
    }
}
