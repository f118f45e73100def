//! The memory entries in order of address: a search tree whose nodes lie in memory that the caller gives.

/// Bookkeeping for one slot of the table. The caller provides as many as the header has room for, in any state; they
/// mean nothing to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Node {
    /// Key: first address of the slot's memory.
    start: u64,
    /// Slot of the subtree with lower keys; for a free slot, the next free one.
    left: u16,
    /// Slot of the subtree with higher keys.
    right: u16,
}

/// No slot. [`crate::MAX_ENTRIES`] keeps every slot below it.
const NONE: u16 = u16::MAX;

/// Where the tree points at a subtree.
#[derive(Clone, Copy)]
enum Link {
    Root,
    Left(u16),
    Right(u16),
}

/// A treap: a tree ordered by key and, downwards, by a rank that only looks random. That keeps it as flat as a random
/// tree, O(log n) deep, without bookkeeping for balance, and every operation is one walk down.
#[derive(Debug)]
pub(super) struct Order<'a> {
    nodes: &'a mut [Node],
    root: u16,
    /// Head of the list of free slots.
    free: u16,
}

/// Rank of a slot: higher ones lie nearer the root. Multiplying by an odd number and xor with a shift lose nothing, so
/// no two slots share a rank (constants of MurmurHash3's finalizer).
fn rank(slot: u16) -> u32 {
    let mut bits = u32::from(slot).wrapping_add(1);
    bits ^= bits >> 16;
    bits = bits.wrapping_mul(0x85eb_ca6b);
    bits ^= bits >> 13;
    bits = bits.wrapping_mul(0xc2b2_ae35);
    bits ^ (bits >> 16)
}

impl<'a> Order<'a> {
    /// An empty tree, and no slot free.
    pub(super) fn new(nodes: &'a mut [Node]) -> Self {
        Self { nodes, root: NONE, free: NONE }
    }

    /// The slot whose memory starts last among those at or below `addr`.
    pub(super) fn at_or_below(&self, addr: u64) -> Option<u16> {
        let (mut best, mut slot) = (None, self.root);
        while let Some(node) = self.node(slot) {
            if node.start <= addr {
                best = Some(slot);
                slot = node.right;
            } else {
                slot = node.left;
            }
        }
        best
    }

    /// The slot whose memory starts first among those above `addr`.
    pub(super) fn above(&self, addr: u64) -> Option<u16> {
        let (mut best, mut slot) = (None, self.root);
        while let Some(node) = self.node(slot) {
            if node.start > addr {
                best = Some(slot);
                slot = node.left;
            } else {
                slot = node.right;
            }
        }
        best
    }

    /// First address that the tree knows of a slot.
    pub(super) fn start(&self, slot: u16) -> Option<u64> {
        self.node(slot).map(|node| node.start)
    }

    /// Puts a slot in whose memory starts at `start`. It must not be in already.
    pub(super) fn insert(&mut self, slot: u16, start: u64) {
        let (mut link, mut below) = (Link::Root, self.root);
        while let Some(node) = self.node(below)
            && rank(below) > rank(slot)
        {
            (link, below) = Self::step(below, node, start);
        }
        if let Some(node) = self.nodes.get_mut(usize::from(slot)) {
            node.start = start;
        }
        self.set(link, slot);
        // What was here is split by the new key into the new node's two subtrees.
        let (mut lower, mut higher) = (Link::Left(slot), Link::Right(slot));
        while let Some(node) = self.node(below) {
            if node.start < start {
                self.set(lower, below);
                lower = Link::Right(below);
                below = node.right;
            } else {
                self.set(higher, below);
                higher = Link::Left(below);
                below = node.left;
            }
        }
        self.set(lower, NONE);
        self.set(higher, NONE);
    }

    /// Takes a slot out.
    pub(super) fn remove(&mut self, slot: u16) {
        let Some(gone) = self.node(slot) else { return };
        let (mut link, mut below) = (Link::Root, self.root);
        while below != slot {
            let Some(node) = self.node(below) else { return };
            (link, below) = Self::step(below, node, gone.start);
        }
        // Its two subtrees become one, the higher rank on top.
        let (mut lower, mut higher) = (gone.left, gone.right);
        while let (Some(low), Some(high)) = (self.node(lower), self.node(higher)) {
            if rank(lower) > rank(higher) {
                self.set(link, lower);
                link = Link::Right(lower);
                lower = low.right;
            } else {
                self.set(link, higher);
                link = Link::Left(higher);
                higher = high.left;
            }
        }
        self.set(link, if lower == NONE { higher } else { lower });
    }

    /// Notes that a slot, which is not in the tree, is free.
    pub(super) fn release(&mut self, slot: u16) {
        if let Some(node) = self.nodes.get_mut(usize::from(slot)) {
            node.left = self.free;
            self.free = slot;
        }
    }

    /// The free slot that is next to be used.
    pub(super) fn first_free(&self) -> Option<u16> {
        self.node(self.free).map(|_| self.free)
    }

    /// Notes that [`Order::first_free`] is no longer free.
    pub(super) fn take_free(&mut self) {
        self.free = self.node(self.free).map_or(NONE, |node| node.left);
    }

    fn node(&self, slot: u16) -> Option<Node> {
        self.nodes.get(usize::from(slot)).copied()
    }

    fn set(&mut self, link: Link, slot: u16) {
        let place = match link {
            Link::Root => Some(&mut self.root),
            Link::Left(parent) => self.nodes.get_mut(usize::from(parent)).map(|node| &mut node.left),
            Link::Right(parent) => self.nodes.get_mut(usize::from(parent)).map(|node| &mut node.right),
        };
        if let Some(place) = place {
            *place = slot;
        }
    }

    /// The way from `slot` towards the key `start`.
    fn step(slot: u16, node: Node, start: u64) -> (Link, u16) {
        if start < node.start { (Link::Left(slot), node.left) } else { (Link::Right(slot), node.right) }
    }
}
