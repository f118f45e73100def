//! In what order the frames of a dump are read, in which pieces.

use std::ops::Range;

use crate::bitmap::{Bitmap, Frame};
use crate::elf::Core;
use crate::filter::Selection;
use crate::source::ReadAt;
use crate::window::MAX_WINDOW;

/// Frames side by side whose bytes are in the core.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Extent {
    frames: Range<u64>,
    place: Place,
}

/// Where the bytes of frames are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In one piece, from this file offset on.
    File(u64),
    /// The core holds the frame in part only, or in pieces.
    Pieces,
}

/// What a thread works on at a time: frames side by side of which some are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) frames: Range<u64>,
    pub(super) place: Place,
    /// How many frames before these the dump has: the number of the first one's descriptor.
    pub(super) rank: u64,
    pub(super) pass: Pass,
}

/// Frames are read in four passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// The kernel's page tables.
    Tables,
    /// Those of the others that are worth most.
    First,
    /// All that are in neither of the others.
    Middle,
    /// Those that are worth least.
    Last,
}

/// Gives out the chunks, one after the other.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    kept: &'a Bitmap,
    tables: &'a Bitmap,
    first: &'a Bitmap,
    last: &'a Bitmap,
    extents: Vec<Extent>,
    page_size: u64,
    /// The running kernel's page size: windows are mapped at multiples of it.
    system_page: u64,
    pass: Pass,
    at: u64,
    rank: u64,
}

impl<'a> Plan<'a> {
    pub(super) fn new<S: ReadAt>(core: &Core<S>, selection: &'a Selection) -> Self {
        let Selection { kept, tables, first, last, page_size, .. } = selection;
        let system_page = rustix::param::page_size() as u64;
        let extents = extents(core, *page_size);
        Self {
            kept,
            tables,
            first,
            last,
            extents,
            page_size: *page_size,
            system_page,
            pass: Pass::Tables,
            at: 0,
            rank: 0,
        }
    }

    /// The next frames to read; none when all were given out.
    pub(super) fn next(&mut self) -> Option<Chunk> {
        loop {
            if let Some(chunk) = self.next_in_pass() {
                return Some(chunk);
            }
            let next = match self.pass {
                Pass::Tables => Pass::First,
                Pass::First => Pass::Middle,
                Pass::Middle => Pass::Last,
                Pass::Last => return None,
            };
            (self.pass, self.at, self.rank) = (next, 0, 0);
        }
    }

    fn next_in_pass(&mut self) -> Option<Chunk> {
        loop {
            let wanted = match self.pass {
                Pass::Tables => self.tables,
                Pass::First => self.first,
                Pass::Middle => self.kept,
                Pass::Last => self.last,
            };
            let from = wanted.next_in(Frame(self.at))?.0;
            let number = self.extents.partition_point(|extent| extent.frames.end <= from);
            let extent = self.extents.get(number)?;
            let start = from.max(extent.frames.start);
            let chunk = self.chunk(extent, start);
            self.rank += self.kept.count_range(Frame(self.at)..Frame(start));
            let rank = self.rank;
            self.rank += self.kept.count_range(Frame(start)..Frame(chunk.1.end));
            self.at = chunk.1.end;
            let (place, frames) = chunk;
            if self.wants_some(&frames) {
                return Some(Chunk { frames, place, rank, pass: self.pass });
            }
        }
    }

    /// The frames from `start` on that one window holds, and where their bytes are.
    fn chunk(&self, extent: &Extent, start: u64) -> (Place, Range<u64>) {
        let Place::File(offset) = extent.place else { return (Place::Pieces, start..start + 1) };
        let offset = offset + (start - extent.frames.start) * self.page_size;
        let room = MAX_WINDOW as u64 - offset % self.system_page;
        (Place::File(offset), start..extent.frames.end.min(start + room / self.page_size))
    }

    fn wants_some(&self, frames: &Range<u64>) -> bool {
        match self.pass {
            Pass::Tables | Pass::First | Pass::Last => true,
            // All of them may be for other passes.
            Pass::Middle => {
                let count = |set: &Bitmap| set.count_range(Frame(frames.start)..Frame(frames.end));
                count(self.tables) + count(self.first) + count(self.last) < count(self.kept)
            }
        }
    }
}

/// The frames of a core by where their bytes are: lowest first, none twice.
fn extents<S: ReadAt>(core: &Core<S>, page_size: u64) -> Vec<Extent> {
    let mut whole: Vec<Extent> = Vec::new();
    let mut edges = Vec::new();
    let mut loads = core.loads().to_vec();
    loads.sort_by_key(|load| load.paddr);
    for load in loads {
        let held = load.size.min(core.size().saturating_sub(load.offset));
        let Some(end) = load.paddr.0.checked_add(held).filter(|_| held > 0) else { continue };
        let (inside_start, inside_end) = (load.paddr.0.div_ceil(page_size), end / page_size);
        edges.extend([load.paddr.0 / page_size, (end - 1) / page_size]);
        // Where loads overlap, the bytes of the first one count.
        let start = inside_start.max(whole.last().map_or(0, |last| last.frames.end));
        if start < inside_end {
            let offset = load.offset + (start * page_size - load.paddr.0);
            whole.push(Extent { frames: start..inside_end, place: Place::File(offset) });
        }
    }
    edges.sort_unstable();
    edges.dedup();
    let outside = |frame: &u64| {
        let number = whole.partition_point(|extent| extent.frames.end <= *frame);
        whole.get(number).is_none_or(|extent| *frame < extent.frames.start)
    };
    let edges: Vec<u64> = edges.into_iter().filter(outside).collect();
    whole.extend(edges.into_iter().map(|frame| Extent { frames: frame..frame + 1, place: Place::Pieces }));
    whole.sort_by_key(|extent| extent.frames.start);
    whole
}
