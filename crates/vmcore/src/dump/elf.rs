//! A dump as an ELF core: a LOAD for each run of frames.

use std::ops::Range;

use super::kdump::copy_pieces;
use super::sink::Sink;
use super::{DumpError, write_at};
use crate::bitmap::Frame;
use crate::elf::{Core, Segment};
use crate::elf_file::{self, Entry, MAX_LOADS, NOTE_ALIGN};
use crate::filter::Selection;
use crate::source::ReadAt;

/// Where frames are in the file.
pub(super) struct Layout {
    /// Runs of frames, and where their bytes start in the file. Frames in them that are not kept are holes.
    loads: Vec<(Range<u64>, u64)>,
    page_size: u64,
    /// The file's length, in bytes.
    pub(super) size: u64,
}

impl Layout {
    /// Writes headers and notes.
    pub(super) fn write<S: ReadAt>(
        core: &Core<S>,
        selection: &Selection,
        sink: &dyn Sink,
    ) -> Result<Self, DumpError> {
        let page_size = selection.page_size;
        let runs = elf_file::runs(&selection.kept, MAX_LOADS);
        let notes: Vec<_> = core.note_segments().iter().filter(|note| note.offset < core.size()).collect();
        let mut at = elf_file::size(notes.len() + runs.len());
        let mut entries = Vec::new();
        let mut pieces = Vec::new();
        for note in notes {
            let size = note.size.min(core.size() - note.offset);
            entries.push(Entry::note(at, size));
            pieces.push((note.offset..note.offset + size, at));
            at = (at + size).next_multiple_of(NOTE_ALIGN);
        }
        let mut loads = Vec::new();
        at = at.next_multiple_of(page_size);
        for frames in runs {
            let size = (frames.end - frames.start) * page_size;
            let address = frames.start * page_size;
            entries.push(Entry::load(at, virtual_address(core, address), address, size));
            loads.push((frames, at));
            at += size;
        }
        write_at(sink, 0, &elf_file::head(core.machine().number(), &entries))?;
        copy_pieces(core, &pieces, sink)?;
        Ok(Self { loads, page_size, size: at })
    }

    /// The file offset of a frame that is kept.
    pub(super) fn place(&self, frame: Frame) -> u64 {
        let number = self.loads.partition_point(|(frames, _)| frames.end <= frame.0);
        let load = self.loads.get(number);
        load.map_or(0, |(frames, offset)| offset + (frame.0 - frames.start) * self.page_size)
    }
}

/// The virtual address that the core's own headers give to a physical one; 0 where they have none.
fn virtual_address<S: ReadAt>(core: &Core<S>, address: u64) -> u64 {
    let holds = |load: &&Segment| {
        address.checked_sub(load.paddr.0).is_some_and(|into| into < load.size) && load.vaddr.0 != 0
    };
    core.loads().iter().find(holds).map_or(0, |load| load.vaddr.0.wrapping_add(address - load.paddr.0))
}
