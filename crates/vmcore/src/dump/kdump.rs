//! Headers and bitmaps of a kdump-compressed dump.

use std::ops::Range;

use elfcorehdr::Machine;

use super::sink::Sink;
use super::{DumpError, WriteFailure, write_at};
use crate::bitmap::{Bitmap, Frame};
use crate::codec::Codec;
use crate::elf::Core;
use crate::filter::Selection;
use crate::kdump::{DESCRIPTOR, INCOMPLETE, NAME, NAMES, SIGNATURE, VERSION, header, sub_header};
use crate::source::{ReadAt, VirtualMemory};
use crate::space::AddressSpace;
use crate::vmcoreinfo::VmcoreInfo;

/// x86_64 has 52 bits of physical address, ppc64 53: more frames than this are no machine's.
const MAX_FRAMES: u64 = 1 << 41;
/// More notes than this are not written: a kernel's are some KiB, its drivers' (VMCOREDD) a few MiB.
const MAX_NOTES: u64 = 64 << 20;
/// Notes and bitmaps are written in pieces of this many bytes.
const PIECE: u64 = 1 << 18;

/// What is where in the dump. All offsets are in bytes.
pub(super) struct Layout {
    /// Block 0, as it is once the dump is complete.
    header: Vec<u8>,
    /// The descriptors' place.
    pub(super) table: u64,
    /// The page of zeros.
    pub(super) zero_page: u64,
    /// Pages are written from here on.
    pub(super) data: u64,
    /// The size of a page, in bytes.
    pub(super) page_size: u32,
}

impl Layout {
    /// Writes all but descriptors and pages.
    pub(super) fn write<S: ReadAt>(
        core: &Core<S>,
        selection: &Selection,
        sink: &dyn Sink,
        codec: Codec,
    ) -> Result<Self, DumpError> {
        let frames = selection.exists.end().0;
        if frames > MAX_FRAMES {
            return Err(DumpError::TooFar { end: Frame(frames), most: MAX_FRAMES });
        }
        let block = selection.page_size;
        let info = core.vmcoreinfo().unwrap_or_default();
        let notes = Notes::of(core, block + sub_header::SIZE as u64)?;
        let sub_blocks = (sub_header::SIZE as u64 + notes.size).div_ceil(block);
        let bitmap_blocks = frames.div_ceil(8 * block);
        let bitmaps = (1 + sub_blocks) * block;
        let table = bitmaps + 2 * bitmap_blocks * block;
        let zero_page = table + selection.kept.count() * DESCRIPTOR as u64;
        let header = header(core, &info, selection, codec, [sub_blocks, 2 * bitmap_blocks]);
        let layout = Self { header, table, zero_page, data: zero_page + block, page_size: block as u32 };

        write_at(sink, 0, &layout.with_status(INCOMPLETE))?;
        write_at(sink, block, &sub_header(&info, selection, &notes))?;
        notes.copy(core, sink)?;
        for (number, bitmap) in [&selection.exists, &selection.kept].into_iter().enumerate() {
            let place = bitmaps + number as u64 * bitmap_blocks * block;
            write_bitmap(bitmap, place, bitmap_blocks * block, sink)?;
        }
        let reserved = sink.reserve(layout.table, zero_page - table);
        reserved.map_err(|source| WriteFailure { offset: table, source })?;
        write_at(sink, zero_page, &vec![0; block as usize])?;
        Ok(layout)
    }

    /// Says in the header that the dump is whole.
    pub(super) fn complete(&self, sink: &dyn Sink) -> Result<(), WriteFailure> {
        write_at(sink, 0, &self.with_status(0))
    }

    /// The header's block with these bits of status beside the codec's.
    fn with_status(&self, bits: u32) -> Vec<u8> {
        let mut block = self.header.clone();
        block[header::STATUS] |= bits as u8;
        block
    }
}

fn put32(block: &mut [u8], at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(block: &mut [u8], at: usize, value: u64) {
    block[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// Block 0; `blocks`: of the sub header with the notes, of both bitmaps.
fn header<S: ReadAt>(
    core: &Core<S>,
    info: &VmcoreInfo,
    selection: &Selection,
    codec: Codec,
    blocks: [u64; 2],
) -> Vec<u8> {
    let mut block = vec![0; selection.page_size as usize];
    block[..SIGNATURE.len()].copy_from_slice(SIGNATURE);
    put32(&mut block, header::VERSION, VERSION);
    block[header::UTSNAME..header::UTSNAME + NAME * NAMES].copy_from_slice(&utsname(core, info));
    let time = info.get("CRASHTIME").and_then(|time| time.parse().ok()).unwrap_or(0);
    put64(&mut block, header::TIME, time);
    put32(&mut block, header::STATUS, codec.flag());
    let frames = selection.exists.end().0;
    let cpus = core.cpus().map_or(0, |cpus| cpus.len()).max(1);
    for (at, value) in [
        (header::BLOCK_SIZE, selection.page_size),
        (header::SUB_HEADER, blocks[0]),
        (header::BITMAPS, blocks[1]),
        (header::MAX_MAPNR, frames),
        (header::CPUS, cpus as u64),
    ] {
        put32(&mut block, at, u32::try_from(value).unwrap_or(u32::MAX));
    }
    block
}

fn sub_header(info: &VmcoreInfo, selection: &Selection, notes: &Notes) -> Vec<u8> {
    let mut block = vec![0; sub_header::SIZE];
    put64(&mut block, sub_header::PHYS_BASE, info.number("phys_base").unwrap_or(0));
    put32(&mut block, sub_header::DUMP_LEVEL, u32::from(selection.report.reached.number()));
    let vmcoreinfo = notes.vmcoreinfo.clone().unwrap_or(0..0);
    for (at, place) in [(sub_header::VMCOREINFO, vmcoreinfo), (sub_header::NOTES, notes.place())] {
        put64(&mut block, at, place.start);
        put64(&mut block, at + 8, place.end - place.start);
    }
    put64(&mut block, sub_header::MAX_MAPNR, selection.exists.end().0);
    block
}

/// struct new_utsname of the crashed kernel: out of its memory, else what is known without.
fn utsname<S: ReadAt>(core: &Core<S>, info: &VmcoreInfo) -> [u8; NAME * NAMES] {
    let mut names = [0; NAME * NAMES];
    let found = || {
        let place = info.symbol("init_uts_ns").ok()?.checked_add(info.offset("uts_namespace.name").ok()?)?;
        let mut names = [0; NAME * NAMES];
        AddressSpace::new(core, info).ok()?.read_virt(place, &mut names).ok()?;
        names.starts_with(b"Linux\0").then_some(names)
    };
    if let Some(found) = found() {
        return found;
    }
    let machine = match core.machine() {
        Machine::Ppc64 => "ppc64le",
        _ => "x86_64",
    };
    // In order: system, node, release, version, machine, domain.
    let known = ["Linux", "", info.release().unwrap_or(""), "", machine, ""];
    for (place, name) in names.chunks_mut(NAME).zip(known) {
        let len = name.len().min(NAME - 1);
        place[..len].copy_from_slice(&name.as_bytes()[..len]);
    }
    names
}

/// The notes of a core on their way into a dump.
struct Notes {
    /// Where they go in the dump, one segment after the other.
    start: u64,
    size: u64,
    /// Where they are in the core, and where in the dump.
    pieces: Vec<(Range<u64>, u64)>,
    /// Where vmcoreinfo's text is in the dump.
    vmcoreinfo: Option<Range<u64>>,
}

impl Notes {
    fn of<S: ReadAt>(core: &Core<S>, start: u64) -> Result<Self, DumpError> {
        let mut notes = Self { start, size: 0, pieces: Vec::new(), vmcoreinfo: None };
        let text = core.vmcoreinfo_place()?;
        for segment in core.note_segments() {
            let size = segment.size.min(core.size().saturating_sub(segment.offset));
            if size == 0 || notes.size + size > MAX_NOTES {
                continue;
            }
            let (from, to) = (segment.offset..segment.offset + size, start + notes.size);
            if let Some(text) = text.as_ref().filter(|text| from.start <= text.start && text.end <= from.end)
            {
                notes.vmcoreinfo.get_or_insert(to + text.start - from.start..to + text.end - from.start);
            }
            notes.pieces.push((from, to));
            // Notes are aligned to four bytes.
            notes.size += size.next_multiple_of(4);
        }
        Ok(notes)
    }

    fn place(&self) -> Range<u64> {
        if self.size == 0 { 0..0 } else { self.start..self.start + self.size }
    }

    fn copy<S: ReadAt>(&self, core: &Core<S>, sink: &dyn Sink) -> Result<(), DumpError> {
        copy_pieces(core, &self.pieces, sink)
    }
}

/// Copies pieces of a core's file, none of which is a page of memory, to their places in a dump.
pub(super) fn copy_pieces<S: ReadAt>(
    core: &Core<S>,
    pieces: &[(Range<u64>, u64)],
    sink: &dyn Sink,
) -> Result<(), DumpError> {
    let mut buffer = Vec::new();
    for (from, to) in pieces {
        let mut at = from.start;
        while at < from.end {
            let now = (from.end - at).min(PIECE);
            buffer.resize(now as usize, 0);
            core.read(at, &mut buffer)?;
            write_at(sink, to + (at - from.start), &buffer)?;
            at += now;
        }
    }
    Ok(())
}

/// Writes a bitmap of `size` bytes to `place`. Pieces without a bit stay as they are: zeros.
fn write_bitmap(bitmap: &Bitmap, place: u64, size: u64, sink: &dyn Sink) -> Result<(), DumpError> {
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < size {
        let Some(frame) = bitmap.next_in(Frame(at * 8)) else { break };
        at = frame.0 / 8 / PIECE * PIECE;
        let now = size.saturating_sub(at).min(PIECE);
        buffer.clear();
        buffer.resize(now as usize, 0);
        bitmap.write_bytes(at, &mut buffer);
        write_at(sink, place + at, &buffer)?;
        at += now;
    }
    Ok(())
}
