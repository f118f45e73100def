//! Sets of page frames, in little memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::ops::Range;

use elfcorehdr::PhysAddr;

/// A page frame: a page of physical memory by its number, which is its address over the crashed kernel's page size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(pub u64);

impl Frame {
    /// The frame that holds `address`, in pages of `page_size` bytes (not 0).
    #[must_use]
    pub fn holding(address: PhysAddr, page_size: u64) -> Self {
        Self(address.0 / page_size)
    }

    /// The address of the frame's first byte; none past the end of the address space.
    #[must_use]
    pub fn address(self, page_size: u64) -> Option<PhysAddr> {
        self.0.checked_mul(page_size).map(PhysAddr)
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

const WORDS: usize = 512;
/// Frames in a block: what 4 KiB of bits hold, 128 MiB of memory in pages of 4 KiB.
const BLOCK: u64 = WORDS as u64 * 64;

/// There is no frame from this number on: addresses of 64 bits in pages of 4 KiB. What is beyond is never in a set.
const LIMIT: u64 = 1 << 52;

/// The bits of one block. A block without a bit is not kept at all.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Block {
    /// All bits are set.
    Full,
    /// The bits, and how many are set: neither none nor all.
    Some(Words, u32),
}

/// Words in a group: 512 frames, 2 MiB of memory in pages of 4 KiB. Kernels keep what cannot be moved together in blocks of that size, so
/// most groups of a set have all of their bits or none.
const GROUP: usize = 8;
const GROUPS: usize = WORDS / GROUP;

/// The bits of a block, without those of groups in which all or none are set.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Words {
    /// A bit for each group: all of it is set.
    full: u64,
    /// A bit for each group: some of it is set, not all.
    mixed: u64,
    /// The words of these, in order.
    groups: Vec<[u64; GROUP]>,
}

impl Words {
    /// All bits set, or none.
    fn all(value: bool) -> Self {
        const { assert!(GROUPS == u64::BITS as usize) };
        Self { full: if value { u64::MAX } else { 0 }, mixed: 0, groups: Vec::new() }
    }

    /// Where the words of group `group` are, or would be.
    fn index(&self, group: usize) -> usize {
        (self.mixed & ((1 << group) - 1)).count_ones() as usize
    }

    fn get(&self, word: usize) -> u64 {
        let (group, bit) = (word / GROUP, 1u64 << (word / GROUP));
        if self.mixed & bit != 0 {
            self.groups[self.index(group)][word % GROUP]
        } else if self.full & bit != 0 {
            u64::MAX
        } else {
            0
        }
    }

    fn set(&mut self, word: usize, value: u64) {
        if self.get(word) == value {
            return;
        }
        let (group, bit) = (word / GROUP, 1u64 << (word / GROUP));
        let index = self.index(group);
        if self.mixed & bit == 0 {
            let rest = if self.full & bit != 0 { u64::MAX } else { 0 };
            self.groups.insert(index, [rest; GROUP]);
            self.mixed |= bit;
            self.full &= !bit;
        }
        let words = &mut self.groups[index];
        words[word % GROUP] = value;
        let is_full = *words == [u64::MAX; GROUP];
        if is_full || *words == [0; GROUP] {
            self.groups.remove(index);
            self.mixed &= !bit;
            self.full |= if is_full { bit } else { 0 };
        }
    }
}

/// A set of page frames, one bit a frame.
///
/// Blocks of 32768 frames, and groups of 512 in them, of which all or none are in the set take no bits, so that neither holes nor a
/// frame far out cost memory: a machine of 1 TiB takes 32 MiB where each 2 MiB of it has frames of both kinds, and a tenth of that where
/// each tenth has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bitmap {
    blocks: BTreeMap<u64, Block>,
}

impl Bitmap {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether `frame` is in the set.
    #[must_use]
    pub fn contains(&self, frame: Frame) -> bool {
        match self.blocks.get(&(frame.0 / BLOCK)) {
            None => false,
            Some(Block::Full) => true,
            Some(Block::Some(words, _)) => {
                let (word, mask) = place(frame.0 % BLOCK);
                words.get(word) & mask != 0
            }
        }
    }

    /// Puts `frame` into the set; whether it was not in it before.
    pub fn insert(&mut self, frame: Frame) -> bool {
        let inserted = frame.0 < LIMIT && !self.contains(frame);
        if inserted {
            self.change_within(frame.0, frame.0 + 1, true);
        }
        inserted
    }

    /// Takes `frame` out of the set; whether it was in it before.
    pub fn remove(&mut self, frame: Frame) -> bool {
        let before = self.contains(frame);
        if before {
            self.change_within(frame.0, frame.0 + 1, false);
        }
        before
    }

    /// Puts all of `frames` into the set. Costs time and memory by the block.
    pub fn insert_range(&mut self, frames: Range<Frame>) {
        self.change(&frames, true);
    }

    /// Takes all of `frames` out of the set, and says how many were in it.
    pub fn remove_range(&mut self, frames: Range<Frame>) -> u64 {
        let before = self.count_range(frames.clone());
        if before > 0 {
            self.change(&frames, false);
        }
        before
    }

    /// Takes out all that is not in `other`.
    pub fn intersect(&mut self, other: &Self) {
        let mut at = Frame(0);
        for run in other.runs() {
            self.remove_range(at..run.start);
            at = run.end;
        }
        self.remove_range(at..Frame(LIMIT));
    }

    fn change(&mut self, frames: &Range<Frame>, value: bool) {
        let last = frames.end.0.min(LIMIT);
        let mut at = frames.start.0;
        while at < last {
            if !value {
                // Blocks that are not held have nothing to take out, however many they are.
                let Some((held, _)) = self.blocks.range(at / BLOCK..=(last - 1) / BLOCK).next() else {
                    return;
                };
                at = at.max(held * BLOCK);
            }
            let end = block_end(at).min(last);
            self.change_within(at, end, value);
            at = end;
        }
    }

    /// Changes the frames from `from` up to `to`, which lie in one block.
    fn change_within(&mut self, from: u64, to: u64, value: bool) {
        let key = from / BLOCK;
        if to - from == BLOCK {
            if value {
                self.blocks.insert(key, Block::Full);
            } else {
                self.blocks.remove(&key);
            }
            return;
        }
        let block = match self.blocks.entry(key) {
            Entry::Vacant(_) if !value => return,
            Entry::Vacant(vacant) => vacant.insert(Block::Some(Words::all(false), 0)),
            Entry::Occupied(occupied) => occupied.into_mut(),
        };
        if *block == Block::Full {
            if value {
                return;
            }
            *block = Block::Some(Words::all(true), BLOCK as u32);
        }
        if let Block::Some(words, count) = block {
            for (word, mask) in words_of(from % BLOCK, from % BLOCK + (to - from)) {
                let was = words.get(word);
                let now = if value { was | mask } else { was & !mask };
                words.set(word, now);
                *count = *count - was.count_ones() + now.count_ones();
            }
            match u64::from(*count) {
                0 => drop(self.blocks.remove(&key)),
                BLOCK => *block = Block::Full,
                _ => {}
            }
        }
    }

    /// How many frames are in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.blocks.values().map(Block::count).sum()
    }

    /// How many of `frames` are in the set.
    #[must_use]
    pub fn count_range(&self, frames: Range<Frame>) -> u64 {
        let (start, end) = (frames.start.0, frames.end.0);
        if start >= end {
            return 0;
        }
        let blocks = self.blocks.range(start / BLOCK..=(end - 1) / BLOCK);
        blocks
            .map(|(&key, block)| {
                let first = key * BLOCK;
                let from = start.saturating_sub(first);
                let to = (end - first).min(BLOCK);
                match block {
                    Block::Full => to - from,
                    Block::Some(_, count) if to - from == BLOCK => u64::from(*count),
                    Block::Some(words, _) => words_of(from, to)
                        .map(|(word, mask)| u64::from((words.get(word) & mask).count_ones()))
                        .sum(),
                }
            })
            .sum()
    }

    /// Whether the set has no frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The frame after the last one in the set; frame 0 for the empty set. This is what the kdump-compressed format calls max_mapnr.
    #[must_use]
    pub fn end(&self) -> Frame {
        let Some((&key, block)) = self.blocks.last_key_value() else { return Frame(0) };
        let within = match block {
            Block::Full => BLOCK,
            Block::Some(words, _) => {
                let word = (0..WORDS).rfind(|word| words.get(*word) != 0).unwrap_or(0);
                word as u64 * 64 + 64 - u64::from(words.get(word).leading_zeros())
            }
        };
        Frame(key * BLOCK + within)
    }

    /// The first frame of the set that is `from` or after it.
    #[must_use]
    pub fn next_in(&self, from: Frame) -> Option<Frame> {
        let mut start = from.0 % BLOCK;
        for (&key, block) in self.blocks.range(from.0 / BLOCK..) {
            if key != from.0 / BLOCK {
                start = 0;
            }
            if let Some(within) = block.find(start, true) {
                return Some(Frame(key * BLOCK + within));
            }
        }
        None
    }

    /// The first frame not in the set that is `from` or after it.
    #[must_use]
    pub fn next_out(&self, from: Frame) -> Frame {
        let mut at = from.0;
        while let Some(block) = self.blocks.get(&(at / BLOCK)) {
            if let Some(within) = block.find(at % BLOCK, false) {
                return Frame(at / BLOCK * BLOCK + within);
            }
            at = block_end(at);
        }
        Frame(at)
    }

    /// The frames of the set as runs of neighbours, lowest first, each as long as can be.
    pub fn runs(&self) -> impl Iterator<Item = Range<Frame>> + '_ {
        let mut at = Frame(0);
        std::iter::from_fn(move || {
            let start = self.next_in(at)?;
            at = self.next_out(start);
            Some(start..at)
        })
    }

    /// The frames of the set, lowest first.
    pub fn frames(&self) -> impl Iterator<Item = Frame> + '_ {
        self.runs().flat_map(|run| (run.start.0..run.end.0).map(Frame))
    }

    /// Fills `buf` with bits as bitmaps on disk have them: byte `at` is the first, its lowest bit is frame `at * 8`.
    pub fn write_bytes(&self, at: u64, buf: &mut [u8]) {
        for (byte, place) in (at..).zip(buf) {
            let frame = byte.saturating_mul(8);
            *place = match self.blocks.get(&(frame / BLOCK)) {
                None => 0,
                Some(Block::Full) => 0xff,
                Some(Block::Some(words, _)) => {
                    let within = frame % BLOCK;
                    words.get((within / 64) as usize).to_le_bytes()[(within % 64 / 8) as usize]
                }
            };
        }
    }

    /// Puts the frames into the set whose bits are set in `bytes`, which are as in [`write_bytes`](Self::write_bytes).
    pub fn insert_bytes(&mut self, at: u64, bytes: &[u8]) {
        let frame = |bit: u64| at.saturating_mul(8).saturating_add(bit);
        let bit = |bit: u64| bytes[(bit / 8) as usize] & (1 << (bit % 8)) != 0;
        let total = bytes.len() as u64 * 8;
        let mut start = 0;
        while start < total {
            // Runs of equal bytes go at once: bitmaps are mostly all ones or all zeros.
            let value = bit(start);
            let mut end = start + 1;
            let whole = if value { 0xff } else { 0 };
            while end < total && bit(end) == value {
                end += if end.is_multiple_of(8) && bytes[(end / 8) as usize] == whole { 8 } else { 1 };
            }
            if value {
                self.insert_range(Frame(frame(start))..Frame(frame(end)));
            }
            start = end;
        }
    }
}

impl Block {
    fn count(&self) -> u64 {
        match self {
            Self::Full => BLOCK,
            Self::Some(_, count) => u64::from(*count),
        }
    }

    /// The first bit from `from` on that is `value`.
    fn find(&self, from: u64, value: bool) -> Option<u64> {
        match self {
            Self::Full => value.then_some(from),
            Self::Some(words, _) => {
                let bits_of = |word: usize| if value { words.get(word) } else { !words.get(word) };
                let hits = words_of(from, BLOCK).map(|(word, mask)| (word, bits_of(word) & mask));
                let mut hits = hits.filter(|(_, bits)| *bits != 0);
                hits.next().map(|(word, bits)| word as u64 * 64 + u64::from(bits.trailing_zeros()))
            }
        }
    }
}

/// The number of the word that bit `bit` of a block is in, and its mask there.
fn place(bit: u64) -> (usize, u64) {
    ((bit / 64) as usize, 1 << (bit % 64))
}

/// The words with a bit from `from` up to `to` of a block, and the mask of those bits in each.
fn words_of(from: u64, to: u64) -> impl Iterator<Item = (usize, u64)> {
    let words = if from < to { from / 64..to.div_ceil(64) } else { 0..0 };
    words.map(move |word| {
        let first = from.saturating_sub(word * 64);
        let past = (to - word * 64).min(64);
        (word as usize, (u64::MAX << first) & (u64::MAX >> (64 - past)))
    })
}

/// The first frame after the block that `frame` is in.
fn block_end(frame: u64) -> u64 {
    (frame / BLOCK + 1) * BLOCK
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn frames(from: u64, to: u64) -> Range<Frame> {
        Frame(from)..Frame(to)
    }

    #[test]
    fn a_terabyte_takes_little_memory() {
        let mut set = Bitmap::new();
        set.insert_range(frames(3, (1 << 28) + 5));
        set.insert(Frame(1 << 51));
        assert_eq!(set.count(), (1 << 28) + 3);
        let bits = set.blocks.values().filter(|block| matches!(block, Block::Some(..))).count();
        assert_eq!((set.blocks.len(), bits), ((1 << 13) + 2, 3));
        assert_eq!(set.end(), Frame((1 << 51) + 1));
    }

    /// What a set takes on the heap, about: its groups, and three words for each block.
    fn bytes(set: &Bitmap) -> usize {
        let groups = |block: &Block| match block {
            Block::Full => 0,
            Block::Some(words, _) => words.groups.capacity() * size_of::<[u64; GROUP]>(),
        };
        set.blocks.values().map(|block| groups(block) + size_of::<(u64, Block)>()).sum()
    }

    /// A capture kernel of 128 MiB has two such sets (what is kept, what of it comes first), and 6 MiB for a thread.
    #[test]
    fn a_terabyte_fits_into_a_small_capture_kernel() {
        const TIB: u64 = 1 << 28;
        // Every tenth stretch of 2 MiB is the kernel's own, some pages of it free; the rest is programs'.
        let mut usual = Bitmap::new();
        for group in (0..TIB).step_by(10 * 512) {
            usual.insert_range(frames(group, group + 300));
            usual.insert_range(frames(group + 301, group + 512));
        }
        assert!(bytes(&usual) < 5 << 20, "{}", bytes(&usual));
        // The worst that there can be: both kinds in each.
        let mut worst = Bitmap::new();
        for group in (0..TIB).step_by(512) {
            worst.insert_range(frames(group, group + 1));
        }
        assert!(bytes(&worst) < 34 << 20, "{}", bytes(&worst));
        assert_eq!(usual.count(), TIB.div_ceil(5120) * 511);
        assert_eq!(worst.count(), TIB / 512);
    }

    #[test]
    fn what_no_address_reaches_is_in_no_set() {
        let mut set = Bitmap::new();
        assert!(!set.insert(Frame(u64::MAX)));
        set.insert_range(frames(LIMIT - 1, u64::MAX));
        assert_eq!(set.runs().collect::<Vec<_>>(), [frames(LIMIT - 1, LIMIT)]);
        assert_eq!(set.remove_range(frames(0, u64::MAX)), 1);
        assert!(set.is_empty());
    }

    #[test]
    fn an_intersection_has_what_both_have() {
        let set = |ranges: &[(u64, u64)]| {
            let mut set = Bitmap::new();
            ranges.iter().for_each(|(from, to)| set.insert_range(frames(*from, *to)));
            set
        };
        for (one, other, both) in [
            (&[(0, 10)][..], &[(3, 5), (8, 20)][..], &[(3, 5), (8, 10)][..]),
            (&[(0, 10)], &[], &[]),
            (&[], &[(0, 10)], &[]),
            (&[(5, 6), (100_000, 200_000)], &[(0, 150_000)], &[(5, 6), (100_000, 150_000)]),
        ] {
            let mut found = set(one);
            found.intersect(&set(other));
            assert!(found == set(both), "{one:?} and {other:?}");
        }
    }

    #[derive(Debug, Clone)]
    enum Change {
        Insert(u64),
        Remove(u64),
        InsertRange(u64, u64),
        RemoveRange(u64, u64),
        InsertBytes(u64, Vec<u8>),
    }

    /// Frames near the ends of blocks, where mistakes are.
    fn frame() -> impl Strategy<Value = u64> {
        (0..3u64, 0..70u64, any::<bool>()).prop_map(|(block, off, below)| {
            if below { (block * BLOCK).saturating_sub(off) } else { block * BLOCK + off }
        })
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            frame().prop_map(Change::Insert),
            frame().prop_map(Change::Remove),
            (frame(), frame()).prop_map(|(from, to)| Change::InsertRange(from, to)),
            (frame(), frame()).prop_map(|(from, to)| Change::RemoveRange(from, to)),
            (frame(), proptest::collection::vec(prop_oneof![Just(0), Just(0xff), any::<u8>()], 0..40))
                .prop_map(|(at, bytes)| Change::InsertBytes(at / 8, bytes)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_set_is_what_a_plain_set_is(changes in proptest::collection::vec(change(), 1..12), from in frame(), to in frame()) {
            let mut set = Bitmap::new();
            let mut plain = BTreeSet::new();
            for change in changes {
                match change {
                    Change::Insert(frame) => assert_eq!(set.insert(Frame(frame)), plain.insert(frame)),
                    Change::Remove(frame) => assert_eq!(set.remove(Frame(frame)), plain.remove(&frame)),
                    Change::InsertRange(from, to) => {
                        set.insert_range(frames(from, to));
                        plain.extend(from..to);
                    }
                    Change::RemoveRange(from, to) => {
                        let before = plain.len();
                        plain.retain(|frame| !(from..to).contains(frame));
                        assert_eq!(set.remove_range(frames(from, to)), (before - plain.len()) as u64);
                    }
                    Change::InsertBytes(at, bytes) => {
                        set.insert_bytes(at, &bytes);
                        let bits = (0..bytes.len() as u64 * 8).filter(|bit| bytes[(bit / 8) as usize] >> (bit % 8) & 1 != 0);
                        plain.extend(bits.map(|bit| at * 8 + bit));
                    }
                }
            }
            assert!(set.frames().map(|frame| frame.0).eq(plain.iter().copied()));
            assert_eq!(set.count(), plain.len() as u64);
            assert_eq!(set.end().0, plain.last().map_or(0, |last| last + 1));
            assert_eq!(set.count_range(frames(from, to)), if from < to { plain.range(from..to).count() as u64 } else { 0 });
            assert_eq!(set.contains(Frame(from)), plain.contains(&from));
            let mut bytes = vec![0; (3 * BLOCK as usize + 72) / 8];
            set.write_bytes(0, &mut bytes);
            let mut again = Bitmap::new();
            again.insert_bytes(0, &bytes);
            assert_eq!(again, set);
        }
    }
}
