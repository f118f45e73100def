//! Changing a crash header in place, so that a crash at any instant finds a good one.
//!
//! A [`Change`] becomes a few single, naturally aligned [`Store`]s in a fixed order. After each of them a capture
//! kernel accepts the header, and the memory that it names holds at least what both the old and the new header name,
//! and at most what either names. Whoever does the stores must keep their order (a write barrier between them) and
//! lets nobody else write.
//!
//! ```
//! # use elfcorehdr::{*, update::{Change, Index, Node}};
//! # let note = Note { paddr: PhysAddr(0x1000), size: 368 };
//! # let ram = Load { paddr: PhysAddr(0x10_0000), vaddr: 0, offset: PhysAddr(0x10_0000), size: 0x10_0000 };
//! # let contents = Contents { machine: Machine::X86_64, cpu_notes: &[note], vmcoreinfo: note, loads: &[ram] };
//! # let mut header = [0; 4096];
//! # build(&contents, &mut header).unwrap();
//! let mut nodes = [Node::default(); Index::nodes_for(4096)];
//! let mut index = Index::rebuild(&header, &mut nodes)?;
//! let range = PhysRange::from_len(PhysAddr(0x1_0000_0000), 0x800_0000).unwrap();
//! let mut next = Some(Change::Add { range, vaddr: 0 });
//! while let Some(change) = next {
//!     let plan = index.plan(&header, change)?;
//!     for store in plan.stores() {
//!         store.write_to(&mut header)?; // and to the header that counts, then a write barrier
//!     }
//!     next = plan.commit();
//! }
//! assert_eq!(Header::parse(&header).unwrap().loads().count(), 2);
//! # Ok::<(), elfcorehdr::update::UpdateError>(())
//! ```
//!
//! All this is about what a capture kernel saves, and so about savers that read /proc/vmcore as it is. makedumpfile
//! leaves out the pages past an entry's `p_filesz`, below its `p_memsz`, even where another entry holds them too. A crash
//! between the stores of these two sizes, where memory goes from one entry to another (a head that moves, a split, two
//! neighbours that become one), costs its dump those pages. The other order is worse: bytes in the file without memory
//! behind them are other memory's bytes, to every reader.
//!
//! Two kinds of memory entries are never changed. One that is not read from where the dump says it was, or whose
//! virtual address is that of the kernel's image: it describes no plain memory, and may overlap other entries. And the
//! first one in the table stays where it is, because tools expect something real there; only its end moves.

mod order;
mod stores;

pub use order::Node;
pub use stores::{MAX_STORES, Store, Width};

use crate::layout::{self, MAX_ENTRIES, Machine};
use crate::rules::{check_load, check_note};
use crate::{EHDR_SIZE, EntryFault, Header, Load, Note, PHDR_SIZE, ParseError, PhysAddr, PhysRange};
use core::fmt;
use order::Order;
use stores::{Stores, read_load, read_note};

/// What is to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The dump must hold this memory. What the header names already stays as it is.
    Add {
        /// The memory, also where the capture kernel reads it from.
        range: PhysRange,
        /// Virtual address of its start; 0 where none is known.
        vaddr: u64,
    },
    /// The dump must not hold this memory. What the header does not name stays as it is.
    Remove(PhysRange),
    /// A CPU's note area, of the same size, lies elsewhere.
    SetNote {
        /// Slot of the note in the table: CPUs come first, in their order.
        slot: usize,
        /// Physical address of the area: real memory, zeroed or with notes.
        paddr: PhysAddr,
    },
}

impl Change {
    /// What of a change lies at or above `from`.
    fn rest(self, from: PhysAddr) -> Option<Self> {
        let cut = |range: PhysRange| PhysRange::new(from, range.end()).filter(|rest| !rest.is_empty());
        match self {
            Self::Add { range, vaddr } => {
                cut(range).map(|rest| Self::Add { range: rest, vaddr: shifted(vaddr, range.start(), from) })
            }
            Self::Remove(range) => cut(range).map(Self::Remove),
            Self::SetNote { .. } => None,
        }
    }
}

/// Why a header cannot be changed as asked. Nothing was planned, so nothing is to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpdateError {
    /// No slot is free for an entry that is needed, if only for a moment.
    Full {
        /// Slots that the header, and the index, have room for.
        slots: usize,
    },
    /// The first memory entry would end, or start elsewhere.
    FirstEntry {
        /// Its slot.
        slot: usize,
    },
    /// What is to be written is nothing that a capture kernel would take.
    Entry(EntryFault),
    /// The slot holds no note.
    NotANote {
        /// The slot asked for.
        slot: usize,
        /// Notes that the header has.
        notes: usize,
    },
    /// The header is not one that can be followed.
    Header(ParseError),
    /// Two memory entries name the same memory.
    Overlap {
        /// Slot of the one.
        slot: usize,
        /// Slot of the other.
        other: usize,
    },
    /// A slot that should be free is not all zero.
    SlotNotZero {
        /// The slot.
        slot: usize,
    },
    /// The index has fewer nodes than the header has slots.
    IndexTooSmall {
        /// Nodes needed.
        need: usize,
        /// Nodes there.
        have: usize,
    },
    /// The header does not have the byte.
    TooShort {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// The header is not the one that was indexed: somebody else changed it.
    NotIndexed {
        /// The slot that holds something else.
        slot: usize,
    },
}

impl fmt::Display for UpdateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("elfcorehdr: ")?;
        match self {
            Self::Full { slots } => write!(
                f,
                "all {slots} slots are in use: load the crash kernel again, with more room for the header"
            ),
            Self::FirstEntry { slot } => {
                write!(f, "the first memory entry, in slot {slot}, has to stay, only its end can move")
            }
            Self::Entry(fault) => write!(f, "the new entry cannot be: {fault}"),
            Self::NotANote { slot, notes } => {
                write!(f, "slot {slot} is no note, the notes are the first {notes} slots")
            }
            Self::Header(error) => write!(f, "cannot follow this header: {error}"),
            Self::Overlap { slot, other } => {
                write!(f, "cannot follow this header: memory entries {slot} and {other} overlap")
            }
            Self::SlotNotZero { slot } => write!(f, "slot {slot} should be free, but is not all zero"),
            Self::IndexTooSmall { need, have } => {
                write!(f, "the index has {have} nodes, the header counts {need} slots")
            }
            Self::TooShort { need, have } => write!(f, "header has {have} bytes, {need} are needed"),
            Self::NotIndexed { slot } => {
                write!(f, "slot {slot} does not hold what was last written there: arm again")
            }
        }
    }
}

impl core::error::Error for UpdateError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Entry(fault) => Some(fault),
            Self::Header(error) => Some(error),
            _ => None,
        }
    }
}

/// What is known of a header besides its bytes: its memory entries in order of address, and its free slots.
#[derive(Debug)]
pub struct Index<'a> {
    known: Known<'a>,
    /// Where plans are made. They are as large as some cache lines: made here, they are never moved.
    draft: Draft,
}

/// See [`Index`].
#[derive(Debug)]
struct Known<'a> {
    order: Order<'a>,
    machine: Machine,
    notes: u16,
    /// Slot of the first memory entry.
    first_load: u16,
    /// Slots that the header counts, `e_phnum`.
    count: u16,
    /// Slots that it could count.
    slots: u16,
    /// Free slots among the counted ones.
    free: u16,
}

/// A memory entry that may change.
#[derive(Clone, Copy)]
struct Entry {
    slot: u16,
    range: PhysRange,
    vaddr: u64,
}

impl<'a> Index<'a> {
    /// Slots, and so nodes, for a header with room for `bytes` bytes.
    pub const fn nodes_for(bytes: usize) -> usize {
        let slots = bytes.saturating_sub(EHDR_SIZE) / PHDR_SIZE;
        if slots < MAX_ENTRIES { slots } else { MAX_ENTRIES }
    }

    /// Indexes a header, O(n log n). `header` is all of the room it has, and `nodes` at best [`Index::nodes_for`] as
    /// many; fewer limit the slots that the header can use.
    ///
    /// The strict parser must take the header, the spare room behind it must be all zero, and memory entries that may
    /// change must not overlap each other.
    pub fn rebuild(header: &[u8], nodes: &'a mut [Node]) -> Result<Self, UpdateError> {
        let parsed = Header::parse(header).map_err(UpdateError::Header)?;
        let (count, have) = (parsed.phnum(), nodes.len());
        if count > have {
            return Err(UpdateError::IndexTooSmall { need: count, have });
        }
        let spare = header.get(parsed.size()..).unwrap_or_default();
        if let Some(at) = spare.iter().position(|byte| *byte != 0) {
            return Err(UpdateError::SlotNotZero { slot: count + at / PHDR_SIZE });
        }
        let first_load = parsed.slots().position(|slot| slot.kind() == layout::PT_LOAD).unwrap_or(count);
        let mut known = Known {
            order: Order::new(nodes),
            machine: parsed.machine(),
            notes: saturated(parsed.notes().count()),
            first_load: saturated(first_load),
            count: saturated(count),
            slots: saturated(Self::nodes_for(header.len()).min(have)),
            free: 0,
        };
        for (slot, found) in parsed.slots().enumerate().skip(first_load) {
            if found.kind() == layout::PT_LOAD && may_change(parsed.machine(), &found.load()) {
                known.enter(header, saturated(slot), &found.load())?;
            }
        }
        // From the last, so that the lowest is used first. One below the first memory entry stays unused: filling it
        // would, for a moment, make an empty entry the first.
        for (slot, found) in parsed.slots().enumerate().skip(first_load).rev() {
            if found.kind() == layout::PT_NULL {
                known.order.release(saturated(slot));
                known.free = known.free.saturating_add(1);
            }
        }
        Ok(Self { known, draft: Draft::default() })
    }

    /// Slots that the header counts (`e_phnum`), free ones included.
    pub fn phnum(&self) -> usize {
        self.known.count.into()
    }

    /// Slots that can still be filled, counted by the header already or not.
    pub fn free_slots(&self) -> usize {
        let Known { free, slots, count, .. } = self.known;
        usize::from(free) + usize::from(slots.saturating_sub(count))
    }

    /// Works out the stores that make a change, O(log n); they are at most [`MAX_STORES`]. Nothing happens until
    /// somebody does them and commits the plan.
    ///
    /// `header` is a copy of the header as the last store left it, with all of its room.
    pub fn plan<'i>(&'i mut self, header: &[u8], change: Change) -> Result<Plan<'i, 'a>, UpdateError> {
        let Self { known, draft } = self;
        draft.clear();
        match change {
            Change::Add { range, vaddr } => known.add(header, draft, change, range, vaddr),
            Change::Remove(range) => known.remove(header, draft, change, range),
            Change::SetNote { slot, paddr } => known.set_note(header, draft, slot, paddr),
        }?;
        Ok(Plan { index: self })
    }
}

impl Known<'_> {
    /// Takes a memory entry in unless it overlaps one that is in already.
    fn enter(&mut self, header: &[u8], slot: u16, load: &Load) -> Result<(), UpdateError> {
        let range = load.range().unwrap_or_default();
        let below = self.order.at_or_below(range.start().0);
        for other in [below, self.order.above(range.start().0)].into_iter().flatten() {
            if self.entry(header, other)?.range.overlaps(range) {
                return Err(UpdateError::Overlap { slot: slot.into(), other: other.into() });
            }
        }
        self.order.insert(slot, range.start().0);
        Ok(())
    }

    /// Adds the first stretch of `range` that no entry names: up to two neighbours touch it.
    fn add(
        &self,
        header: &[u8],
        draft: &mut Draft,
        change: Change,
        range: PhysRange,
        vaddr: u64,
    ) -> Result<(), UpdateError> {
        if range.is_empty() {
            return Ok(());
        }
        check_load(self.machine, &plain(range, vaddr)).map_err(UpdateError::Entry)?;
        let below = self.at_or_below(header, range.start())?;
        if let Some(holder) = below.filter(|below| below.range.contains(range.start())) {
            draft.rest = change.rest(holder.range.end());
            return Ok(());
        }
        let above = self.above(header, range.start())?;
        let end = above.map_or(range.end(), |above| above.range.start().min(range.end()));
        draft.rest = change.rest(end);
        let below = below.filter(|below| {
            below.range.end() == range.start()
                && shifted(below.vaddr, below.range.start(), range.start()) == vaddr
        });
        let above = above.filter(|above| {
            above.range.start() == end
                && above.slot != self.first_load
                && shifted(vaddr, range.start(), end) == above.vaddr
        });
        let end = above.map_or(end, |above| above.range.end());
        match below {
            Some(below) => {
                draft.stores.resize(header, below.slot, end.0 - below.range.start().0)?;
            }
            None => {
                let whole = PhysRange::new(range.start(), end).unwrap_or_default();
                self.fill(header, draft, &plain(whole, vaddr))?;
            }
        }
        // Its memory is in the other entry by now.
        if let Some(above) = above {
            self.clear(header, draft, above.slot)?;
        }
        Ok(())
    }

    /// Takes what lies in `range` out of the lowest entry that reaches into it.
    fn remove(
        &self,
        header: &[u8],
        draft: &mut Draft,
        change: Change,
        range: PhysRange,
    ) -> Result<(), UpdateError> {
        let below = self.at_or_below(header, range.start())?.filter(|entry| entry.range.overlaps(range));
        let hit = match below {
            Some(below) => Some(below),
            None => self.above(header, range.start())?,
        };
        let Some((entry, cut)) = hit.and_then(|entry| Some((entry, entry.range.intersect(range)?))) else {
            return Ok(());
        };
        draft.rest = change.rest(entry.range.end());
        // The end of the entry becomes one of its own before the old one lets go of it.
        if let Some(tail) = PhysRange::new(cut.end(), entry.range.end()).filter(|tail| !tail.is_empty()) {
            let vaddr = shifted(entry.vaddr, entry.range.start(), tail.start());
            self.fill(header, draft, &plain(tail, vaddr))?;
        }
        match cut.start().0 - entry.range.start().0 {
            0 => self.clear(header, draft, entry.slot),
            head => draft.stores.resize(header, entry.slot, head),
        }
    }

    fn set_note(
        &self,
        header: &[u8],
        draft: &mut Draft,
        slot: usize,
        paddr: PhysAddr,
    ) -> Result<(), UpdateError> {
        let not_a_note = UpdateError::NotANote { slot, notes: self.notes.into() };
        let slot = u16::try_from(slot).ok().filter(|slot| *slot < self.notes).ok_or(not_a_note)?;
        let size = read_note(header, slot)?.size;
        check_note(self.machine, &Note { paddr, size }).map_err(UpdateError::Entry)?;
        draft.stores.point(header, slot, paddr)
    }

    /// Drafts a new entry.
    fn fill(&self, header: &[u8], draft: &mut Draft, load: &Load) -> Result<(), UpdateError> {
        // Two entries of one start would lose each other in the order. Only bytes that others wrote lead here.
        let same = self.order.at_or_below(load.paddr.0);
        if let Some(slot) = same.filter(|same| self.order.start(*same) == Some(load.paddr.0)) {
            return Err(UpdateError::NotIndexed { slot: slot.into() });
        }
        let (slot, new_count) = match self.order.first_free() {
            Some(slot) => (slot, None),
            None if self.count < self.slots => (self.count, Some(self.count.saturating_add(1))),
            None => return Err(UpdateError::Full { slots: self.slots.into() }),
        };
        draft.filled = Some(Filled { slot, start: load.paddr.0, counted: new_count.is_none() });
        draft.stores.fill(header, slot, load, new_count)
    }

    /// Drafts the end of an entry.
    fn clear(&self, header: &[u8], draft: &mut Draft, slot: u16) -> Result<(), UpdateError> {
        if slot == self.first_load {
            return Err(UpdateError::FirstEntry { slot: slot.into() });
        }
        draft.cleared = Some(slot);
        draft.stores.free(header, slot)
    }

    fn at_or_below(&self, header: &[u8], addr: PhysAddr) -> Result<Option<Entry>, UpdateError> {
        self.order.at_or_below(addr.0).map(|slot| self.entry(header, slot)).transpose()
    }

    fn above(&self, header: &[u8], addr: PhysAddr) -> Result<Option<Entry>, UpdateError> {
        self.order.above(addr.0).map(|slot| self.entry(header, slot)).transpose()
    }

    /// The entry in a slot of the order, if the header still holds it.
    fn entry(&self, header: &[u8], slot: u16) -> Result<Entry, UpdateError> {
        let load = read_load(header, slot)?;
        let known = self.order.start(slot) == Some(load.paddr.0) && may_change(self.machine, &load);
        match load.range().filter(|_| known && check_load(self.machine, &load).is_ok()) {
            Some(range) => Ok(Entry { slot, range, vaddr: load.vaddr }),
            None => Err(UpdateError::NotIndexed { slot: slot.into() }),
        }
    }

    /// Makes the index say what the header says once a draft's stores are done.
    fn commit(&mut self, draft: &Draft) {
        if let Some(filled) = draft.filled {
            if filled.counted {
                self.order.take_free();
                self.free = self.free.saturating_sub(1);
            } else {
                self.count = self.count.saturating_add(1);
            }
            self.order.insert(filled.slot, filled.start);
        }
        if let Some(slot) = draft.cleared {
            self.order.remove(slot);
            self.order.release(slot);
            self.free = self.free.saturating_add(1);
        }
    }
}

/// Stores that make a change, or a step of it. They are to be done all, in order; then the plan is committed. A plan
/// that is dropped instead, before any store is done, leaves everything as it was.
#[derive(Debug)]
#[must_use = "a plan changes nothing until its stores are done and it is committed"]
pub struct Plan<'i, 'a> {
    index: &'i mut Index<'a>,
}

impl Plan<'_, '_> {
    /// The stores, in their order. None, where the header says already what it should.
    pub fn stores(&self) -> &[Store] {
        self.index.draft.stores.as_slice()
    }

    /// Notes that all stores are done. Gives what of the change is left to plan: a change of many entries is made one
    /// entry at a time.
    #[must_use = "what is left of the change is to be planned too"]
    pub fn commit(self) -> Option<Change> {
        let Index { known, draft } = self.index;
        known.commit(draft);
        draft.rest
    }
}

/// What a plan holds.
#[derive(Debug, Default)]
struct Draft {
    stores: Stores,
    filled: Option<Filled>,
    cleared: Option<u16>,
    rest: Option<Change>,
}

impl Draft {
    fn clear(&mut self) {
        self.stores.clear();
        (self.filled, self.cleared, self.rest) = (None, None, None);
    }
}

/// A slot that gets an entry.
#[derive(Clone, Copy, Debug)]
struct Filled {
    slot: u16,
    start: u64,
    /// Whether the header counts the slot already.
    counted: bool,
}

/// Whether an entry is plain memory: read from where the dump says it was, and not the kernel's image.
fn may_change(machine: Machine, load: &Load) -> bool {
    load.offset == load.paddr && machine.kernel_image_vaddr().is_none_or(|image| load.vaddr < image)
}

fn plain(range: PhysRange, vaddr: u64) -> Load {
    Load { paddr: range.start(), vaddr, offset: range.start(), size: range.len() }
}

/// Virtual address at `to` of memory that has `vaddr` at `from`; unknown (0) stays unknown.
fn shifted(vaddr: u64, from: PhysAddr, to: PhysAddr) -> u64 {
    if vaddr == 0 { 0 } else { vaddr.wrapping_add(to.0.wrapping_sub(from.0)) }
}

/// Slot numbers and counts of a header that was parsed fit by [`MAX_ENTRIES`].
fn saturated(slots: usize) -> u16 {
    u16::try_from(slots).unwrap_or(u16::MAX)
}
