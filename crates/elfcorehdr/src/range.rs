//! Sets of physical ranges.

use crate::{PhysAddr, PhysRange};
use core::fmt;
use core::ops::Range;

/// A range set's buffer cannot hold one more range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Ranges that the buffer holds.
    pub capacity: usize,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "range set is full: its buffer holds {} ranges", self.capacity)
    }
}

impl core::error::Error for Full {}

/// Storage of a [`RangeSet`]: a list of ranges in order.
pub trait RangeBuf {
    /// The ranges held.
    fn as_slice(&self) -> &[PhysRange];
    /// Puts `range` at index `at`, which is at most the number held, and moves the later ones up. Changes nothing
    /// where there is no room.
    fn insert(&mut self, at: usize, range: PhysRange) -> Result<(), Full>;
    /// Replaces the range at index `at` if there is one.
    fn set(&mut self, at: usize, range: PhysRange);
    /// Takes out the ranges at these indexes, which are all held, and moves the later ones down.
    fn delete(&mut self, indexes: Range<usize>);
}

/// Storage in a slice that somebody else owns; allocates nothing.
#[derive(Debug)]
pub struct FixedBuf<'a> {
    slots: &'a mut [PhysRange],
    len: usize,
}

impl<'a> FixedBuf<'a> {
    /// Empty storage for as many ranges as `slots` has; what they hold is forgotten.
    pub fn new(slots: &'a mut [PhysRange]) -> Self {
        Self { slots, len: 0 }
    }
}

impl RangeBuf for FixedBuf<'_> {
    fn as_slice(&self) -> &[PhysRange] {
        self.slots.get(..self.len).unwrap_or_default()
    }

    fn insert(&mut self, at: usize, range: PhysRange) -> Result<(), Full> {
        let full = Full { capacity: self.slots.len() };
        let tail = self.slots.get_mut(at..=self.len).ok_or(full)?;
        tail.rotate_right(1);
        let slot = tail.first_mut().ok_or(full)?;
        *slot = range;
        self.len += 1;
        Ok(())
    }

    fn set(&mut self, at: usize, range: PhysRange) {
        if let Some(slot) = self.slots.get_mut(..self.len).and_then(|held| held.get_mut(at)) {
            *slot = range;
        }
    }

    fn delete(&mut self, indexes: Range<usize>) {
        if let Some(tail) = self.slots.get_mut(indexes.start..self.len)
            && indexes.len() <= tail.len()
        {
            tail.rotate_left(indexes.len());
            self.len -= indexes.len();
        }
    }
}

#[cfg(feature = "alloc")]
impl RangeBuf for alloc::vec::Vec<PhysRange> {
    fn as_slice(&self) -> &[PhysRange] {
        self
    }

    fn insert(&mut self, at: usize, range: PhysRange) -> Result<(), Full> {
        alloc::vec::Vec::insert(self, at, range);
        Ok(())
    }

    fn set(&mut self, at: usize, range: PhysRange) {
        if let Some(slot) = self.get_mut(at) {
            *slot = range;
        }
    }

    fn delete(&mut self, indexes: Range<usize>) {
        self.drain(indexes);
    }
}

/// A range set on the heap.
#[cfg(feature = "alloc")]
pub type RangeVec = RangeSet<alloc::vec::Vec<PhysRange>>;

/// A set of physical addresses, held as ranges that are sorted, not empty, and neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet<B> {
    buf: B,
}

impl<'a> RangeSet<FixedBuf<'a>> {
    /// An empty set that can hold as many ranges as `slots` has.
    pub fn in_slots(slots: &'a mut [PhysRange]) -> Self {
        Self { buf: FixedBuf::new(slots) }
    }
}

#[cfg(feature = "alloc")]
impl RangeVec {
    /// An empty set that grows on the heap. Its operations never answer [`Full`].
    pub const fn new() -> Self {
        Self { buf: alloc::vec::Vec::new() }
    }
}

#[cfg(feature = "alloc")]
impl FromIterator<PhysRange> for RangeVec {
    fn from_iter<I: IntoIterator<Item = PhysRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        set.extend(ranges);
        set
    }
}

#[cfg(feature = "alloc")]
impl Extend<PhysRange> for RangeVec {
    fn extend<I: IntoIterator<Item = PhysRange>>(&mut self, ranges: I) {
        for range in ranges {
            // A Vec is never Full.
            let _ = self.add(range);
        }
    }
}

impl<B: RangeBuf> RangeSet<B> {
    /// The ranges, lowest first.
    pub fn as_slice(&self) -> &[PhysRange] {
        self.buf.as_slice()
    }

    /// The ranges, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = PhysRange> + Clone + '_ {
        self.as_slice().iter().copied()
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether the set holds no address.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// Bytes in all ranges together.
    pub fn total_len(&self) -> u64 {
        // Disjoint ranges of one address space cannot sum to more than it.
        self.iter().map(PhysRange::len).sum()
    }

    /// Whether `addr` lies in the set.
    pub fn contains(&self, addr: PhysAddr) -> bool {
        self.holder(addr).is_some()
    }

    /// Whether all of `range` lies in the set. An empty range always does.
    pub fn contains_range(&self, range: PhysRange) -> bool {
        range.is_empty() || self.holder(range.start()).is_some_and(|holder| holder.contains_range(range))
    }

    /// The range of the set that `addr` lies in.
    fn holder(&self, addr: PhysAddr) -> Option<PhysRange> {
        let at = self.as_slice().partition_point(|held| held.end() <= addr);
        self.as_slice().get(at).copied().filter(|held| held.contains(addr))
    }

    /// Adds the addresses of `range`; ranges that come to overlap or touch become one. Changes nothing if the
    /// buffer is [`Full`].
    pub fn add(&mut self, range: PhysRange) -> Result<(), Full> {
        if range.is_empty() {
            return Ok(());
        }
        let held = self.as_slice();
        let first = held.partition_point(|held| held.end() < range.start());
        let past = held.partition_point(|held| held.start() <= range.end());
        let Some((lowest, highest)) =
            held.get(first..past).and_then(|joined| joined.first().zip(joined.last()))
        else {
            return self.buf.insert(first, range);
        };
        let start = lowest.start().min(range.start());
        let end = highest.end().max(range.end());
        if let Some(joined) = PhysRange::new(start, end) {
            self.buf.set(first, joined);
            self.buf.delete(first + 1..past);
        }
        Ok(())
    }

    /// Takes the addresses of `range` out. Taking the middle out of a range splits it, which needs room for one
    /// more; changes nothing if the buffer is [`Full`].
    pub fn remove(&mut self, range: PhysRange) -> Result<(), Full> {
        if range.is_empty() {
            return Ok(());
        }
        let held = self.as_slice();
        let first = held.partition_point(|held| held.end() <= range.start());
        let past = held.partition_point(|held| held.start() < range.end());
        let Some((lowest, highest)) = held.get(first..past).and_then(|hit| hit.first().zip(hit.last()))
        else {
            return Ok(());
        };
        let left = PhysRange::new(lowest.start(), range.start()).filter(|left| !left.is_empty());
        let right = PhysRange::new(range.end(), highest.end()).filter(|right| !right.is_empty());
        match (left, right) {
            (Some(left), Some(right)) if past - first == 1 => {
                self.buf.insert(first, left)?;
                self.buf.set(first + 1, right);
            }
            (left, right) => {
                let mut kept = first;
                for part in [left, right].into_iter().flatten() {
                    self.buf.set(kept, part);
                    kept += 1;
                }
                self.buf.delete(kept..past);
            }
        }
        Ok(())
    }

    /// Takes the addresses of all of `other`'s ranges out, lowest first. If the buffer is [`Full`] at one of them,
    /// the ones below it are out already.
    pub fn subtract<C: RangeBuf>(&mut self, other: &RangeSet<C>) -> Result<(), Full> {
        other.iter().try_for_each(|range| self.remove(range))
    }

    /// What is in this set and not in `other`, lowest first.
    pub fn difference<'a, C: RangeBuf>(
        &'a self,
        other: &'a RangeSet<C>,
    ) -> impl Iterator<Item = PhysRange> + 'a {
        self.iter().flat_map(move |range| Remainder { rest: range, holes: other.as_slice() })
    }

    /// What is both in this set and in `window`, lowest first.
    pub fn within(&self, window: PhysRange) -> impl Iterator<Item = PhysRange> + '_ {
        self.iter().filter_map(move |range| range.intersect(window))
    }
}

/// What is left of one range after holes, sorted and disjoint, are taken out of it.
struct Remainder<'a> {
    rest: PhysRange,
    holes: &'a [PhysRange],
}

impl Iterator for Remainder<'_> {
    type Item = PhysRange;

    fn next(&mut self) -> Option<PhysRange> {
        loop {
            if self.rest.is_empty() {
                return None;
            }
            let skip = self.holes.partition_point(|hole| hole.end() <= self.rest.start());
            self.holes = self.holes.get(skip..).unwrap_or_default();
            let hole = self.holes.first().and_then(|hole| hole.intersect(self.rest));
            let Some(hole) = hole else {
                return Some(core::mem::take(&mut self.rest));
            };
            let before = PhysRange::new(self.rest.start(), hole.start())?;
            self.rest = PhysRange::new(hole.end(), self.rest.end())?;
            if !before.is_empty() {
                return Some(before);
            }
        }
    }
}
