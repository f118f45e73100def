//! A crash image that is followed.

use abi::{FOLLOW_CPUS, FOLLOW_MEMORY, Reason};
use elfcorehdr::layout::ehdr;
use elfcorehdr::update::{Change, Index, Node, Store, UpdateError};
use elfcorehdr::{EHDR_SIZE, Header, PhysAddr, PhysRange};

use crate::arch::Arch;
use crate::arming::{Refused, Step};
use crate::nodes::Nodes;
use crate::pieces::{Excluded, Pieces};
use crate::tree::Trees;

/// The image in reserved memory.
pub trait Live {
    /// Whether the header begins with these bytes, whole words.
    fn header_has(&self, bytes: &[u8]) -> bool;
    /// Does one store to the header, whole, and keeps it before all later ones, if the 8 bytes in which it lies are `written`.
    /// Whether it did.
    fn store(&mut self, store: Store, written: [u8; 8]) -> bool;
    /// The word that names the device tree in force.
    fn tree_pointer(&self) -> u64;
    /// Writes that word: one store, after all before it.
    fn set_tree_pointer(&mut self, address: u64);
    /// Whether a place for a tree, 0 or 1, begins with these bytes, whole words.
    fn tree_has(&self, place: usize, bytes: &[u8]) -> bool;
    /// Writes `bytes` to such a place from `offset`, a multiple of 8, on.
    fn write_tree(&mut self, place: usize, offset: usize, bytes: &[u8]);
    /// Whether any crash image is loaded.
    fn is_loaded(&self) -> bool;
    /// Whether the image still carries the identity that it was armed with.
    fn is_ours(&self) -> bool;
}

/// What happens to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// It will be used from now on.
    Comes,
    /// It is used.
    Came,
    /// It is not used any more, or was not in the end.
    Gone,
    /// It stays, though it was said to go.
    Stays,
}

/// A possible CPU, as the kernel knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cpu {
    /// Its number.
    pub cpu: u32,
    /// Whether it is there.
    pub present: u32,
    /// Physical address where its registers are saved when the machine crashes.
    pub note: u64,
}

/// A CPU that comes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Comer<'a> {
    /// Its number.
    pub cpu: u32,
    /// The number that the firmware knows it by, and that a device tree lists it by.
    pub hardware: u32,
    /// The nodes of `/cpus`, that of this CPU among them; where there is no device tree, none.
    pub nodes: Nodes<'a>,
}

/// An image that is kept true. It is written only while an image is loaded and carries this one's identity, and
/// the bytes to be changed, and the file header, are those of the shadow.
#[derive(Debug)]
pub struct Image<'m, L> {
    followed: Followed<'m, L>,
    cpus: &'m [Cpu],
    trees: Option<Trees<'m>>,
    excluded: Excluded,
    direct_map: u64,
    follow: u32,
}

/// The image in reserved memory, what was last written to its header, and what is known of that.
#[derive(Debug)]
struct Followed<'m, L> {
    live: L,
    shadow: &'m mut [u8],
    index: Index<'m>,
}

/// What an image is taken in with, besides what lies in reserved memory.
#[derive(Debug)]
pub struct Parts<'m> {
    /// A copy of all of the header's room.
    pub shadow: &'m mut [u8],
    /// At least [`Index::nodes_for`] nodes for it.
    pub nodes: &'m mut [Node],
    /// The device trees, where the architecture has such.
    pub trees: Option<Trees<'m>>,
    /// RAM that a dump shall not hold.
    pub excluded: Excluded,
    /// Virtual address of physical address 0.
    pub direct_map: u64,
    /// What is to be followed.
    pub follow: u32,
}

impl<'m, L: Live> Image<'m, L> {
    /// Takes in an image of this architecture. `in_reservation` tells what lies in a crash reservation. CPUs are not
    /// followed until [`Image::follow_cpus`].
    ///
    /// # Errors
    /// [`Reason::NotOurs`]; [`Reason::BadHeader`] with the byte that is wrong, if it is one; [`Reason::BadTree`] with the
    /// byte of the tree.
    pub fn new(
        live: L,
        parts: Parts<'m>,
        arch: &Arch,
        in_reservation: impl Fn(PhysRange) -> bool,
    ) -> Result<Self, Refused> {
        let Parts { shadow, nodes, mut trees, excluded, direct_map, follow } = parts;
        if !live.is_ours() {
            return Err(Reason::NotOurs.into());
        }
        // Another machine's header is told by that, though its entries may be wrong by that machine's rules as well.
        let is_native = u16_at(shadow, ehdr::MACHINE) == Some(arch.machine.number());
        let index = Index::rebuild(shadow, nodes).map_err(|error| {
            let found = match error {
                UpdateError::Header(parse) => parse.offset as u32,
                UpdateError::SlotNotZero { slot } | UpdateError::Overlap { slot, .. } => {
                    elfcorehdr::size_for(slot) as u32
                }
                _ => 0,
            };
            let found = if is_native { found } else { found.min(ehdr::MACHINE as u32) };
            Refused { found, ..Reason::BadHeader.into() }
        })?;
        let wrong = if is_native { wrong_copy(shadow, arch, in_reservation) } else { Some(ehdr::MACHINE) };
        if let Some(found) = wrong {
            return Err(Refused { found: found as u32, ..Reason::BadHeader.into() });
        }
        if let Some(trees) = &mut trees {
            trees.check(&live)?;
        }
        Ok(Self {
            followed: Followed { live, shadow, index },
            cpus: &[],
            trees,
            excluded,
            direct_map,
            follow: follow & FOLLOW_MEMORY,
        })
    }

    /// What is followed: [`FOLLOW_MEMORY`], [`FOLLOW_CPUS`].
    pub fn follow(&self) -> u32 {
        self.follow
    }

    /// Follows no longer what `follow` has.
    pub fn unfollow(&mut self, follow: u32) {
        self.follow &= !follow;
    }

    /// Follows CPUs, too: `cpus` are the possible ones, in order of their notes.
    pub fn follow_cpus(&mut self, cpus: &'m [Cpu]) {
        self.cpus = cpus;
        self.follow |= FOLLOW_CPUS;
    }

    /// Number of CPUs whose notes are followed.
    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }

    /// The image in reserved memory.
    pub fn live(&self) -> &L {
        &self.followed.live
    }

    /// Slots in use, and free ones.
    pub fn slots(&self) -> (usize, usize) {
        let Followed { shadow, index, .. } = &self.followed;
        let free = index.free_slots();
        (Index::nodes_for(shadow.len()).saturating_sub(free), free)
    }

    /// Address of the device tree in force; 0 where there is none.
    pub fn tree(&self) -> u64 {
        self.trees.as_ref().map_or(0, Trees::in_force)
    }

    /// Whether this CPU is not among those that the device tree in force lists.
    pub fn lacks(&self, hardware: u32) -> bool {
        self.trees.as_ref().is_some_and(|trees| !trees.lists(hardware))
    }

    /// Whether the image is loaded, ours, its file header as last written, and the tree in force the one that we put there.
    pub(crate) fn check(&self) -> Result<(), Reason> {
        self.followed.check()?;
        self.trees.as_ref().map_or(Ok(()), |trees| trees.check_pointer(&self.followed.live))
    }

    /// Takes an event of memory. Gives the number of stores.
    pub(crate) fn memory(&mut self, what: Memory, range: PhysRange) -> Result<u64, Reason> {
        self.check()?;
        match what {
            Memory::Comes | Memory::Came | Memory::Stays => self.add(range),
            Memory::Gone => self.remove(range),
        }
    }

    /// Takes the event that a CPU comes. Gives the number of stores.
    pub(crate) fn cpu(&mut self, comer: &Comer<'_>) -> Result<u64, Reason> {
        self.check()?;
        let slot =
            self.cpus.binary_search_by_key(&comer.cpu, |known| known.cpu).map_err(|_| Reason::Update)?;
        // First its note: when it can be booted on, it is in the dump.
        let stores = self.point(slot)?;
        let Some(trees) = &mut self.trees else { return Ok(stores) };
        // Nodes come with a CPU that the tree was found to lack; to look again would cost as much as to find out.
        if comer.nodes.is_empty() && trees.lists(comer.hardware) {
            return Ok(stores);
        }
        let written = trees.rebuild(&mut self.followed.live, comer.nodes, Some(comer.hardware))?;
        Ok(stores.wrapping_add(written))
    }

    /// Brings the device tree up to the machine's nodes. Gives the number of stores.
    pub(crate) fn follow_nodes(&mut self, nodes: Nodes<'_>) -> Result<u64, Reason> {
        self.check()?;
        match &mut self.trees {
            Some(trees) if self.follow & FOLLOW_CPUS != 0 && !trees.names(nodes) => {
                trees.rebuild(&mut self.followed.live, nodes, None)
            }
            _ => Ok(0),
        }
    }

    /// Takes a step towards what the machine is; memory in `coming` is not taken out. Gives the number of stores.
    pub(crate) fn reconcile(&mut self, step: Step, coming: Option<PhysRange>) -> Result<u64, Reason> {
        self.check()?;
        match step {
            Step::Add(range) => self.add(range),
            Step::Remove(range) => Pieces::of(range, coming.as_slice()).map(|piece| self.remove(piece)).sum(),
            Step::Point(slot) => self.point(slot),
        }
    }

    /// Has the header name what of `range` a dump holds, and nothing else of it.
    fn add(&mut self, range: PhysRange) -> Result<u64, Reason> {
        let Self { followed, excluded, direct_map, .. } = self;
        let mut stores = 0;
        let mut past = range.start();
        for piece in excluded.pieces(range) {
            stores += followed.remove_between(past, piece.start())?;
            let vaddr = direct_map.wrapping_add(piece.start().0);
            stores += followed.apply(Change::Add { range: piece, vaddr })?;
            past = piece.end();
        }
        Ok(stores + followed.remove_between(past, range.end())?)
    }

    /// Has the header name nothing of `range`.
    fn remove(&mut self, range: PhysRange) -> Result<u64, Reason> {
        self.followed.remove_between(range.start(), range.end())
    }

    /// Points the note in `slot`, one of a CPU, at that CPU's save area.
    fn point(&mut self, slot: usize) -> Result<u64, Reason> {
        let cpu = self.cpus.get(slot).ok_or(Reason::Update)?;
        self.followed.apply(Change::SetNote { slot, paddr: PhysAddr(cpu.note) })
    }
}

impl<L: Live> Followed<'_, L> {
    fn check(&self) -> Result<(), Reason> {
        let Self { live, shadow, .. } = self;
        if !live.is_loaded() {
            return Err(Reason::NotLoaded);
        }
        if !live.is_ours() {
            return Err(Reason::NotOurs);
        }
        let is_as_written = shadow.get(..EHDR_SIZE).is_some_and(|written| live.header_has(written));
        if is_as_written { Ok(()) } else { Err(Reason::Changed) }
    }

    /// Has the header name nothing from `start` to `end`.
    fn remove_between(&mut self, start: PhysAddr, end: PhysAddr) -> Result<u64, Reason> {
        match PhysRange::new(start, end) {
            Some(range) if !range.is_empty() => self.apply(Change::Remove(range)),
            _ => Ok(0),
        }
    }

    fn apply(&mut self, change: Change) -> Result<u64, Reason> {
        let Self { live, shadow, index } = self;
        let mut next = Some(change);
        let mut stores = 0;
        while let Some(change) = next {
            let plan = index.plan(shadow, change).map_err(|error| match error {
                UpdateError::Full { .. } => Reason::Full,
                _ => Reason::Update,
            })?;
            for store in plan.stores() {
                let at = store.offset as usize & !7;
                let written = shadow.get_mut(at..).and_then(|rest| rest.first_chunk_mut());
                let written = written.ok_or(Reason::Update)?;
                if !live.store(*store, *written) {
                    return Err(Reason::Changed);
                }
                *written = store.applied_to(*written);
                stores += 1;
            }
            next = plan.commit();
        }
        Ok(stores)
    }
}

/// Byte of an entry for memory that was copied aside, which is wrong on this architecture.
fn wrong_copy(header: &[u8], arch: &Arch, in_reservation: impl Fn(PhysRange) -> bool) -> Option<usize> {
    let header = Header::parse(header).ok()?;
    let mut taken = 0;
    let wrong = header.copied().find(|(_, load)| {
        let is_good = (load.paddr.0, load.size) == (0, arch.copied)
            && PhysRange::from_len(load.offset, load.size).is_some_and(&in_reservation);
        taken += u32::from(is_good);
        // Nothing else that we load copies memory aside: such an entry would name wrong content.
        !is_good || taken > 1
    });
    wrong.map(|(at, _)| at)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_le_bytes)
}
