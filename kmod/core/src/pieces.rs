//! Memory without what a dump shall not hold.

use abi::MAX_EXCLUDED;
use elfcorehdr::{PhysAddr, PhysRange};

/// RAM that a dump shall not hold, lowest first, without overlap.
#[derive(Clone, Copy, Debug, Default)]
pub struct Excluded {
    ranges: [PhysRange; MAX_EXCLUDED],
    count: usize,
}

impl Excluded {
    /// From a loader's list; `None` if that is not in order, overlaps, is too long, or has a range that ends before it
    /// starts.
    pub fn new(list: &[abi::Range]) -> Option<Self> {
        let mut excluded = Self::default();
        if list.len() > excluded.ranges.len() {
            return None;
        }
        let mut past = PhysAddr(0);
        for (place, range) in excluded.ranges.iter_mut().zip(list) {
            *place = PhysRange::new(PhysAddr(range.start), PhysAddr(range.end))?;
            if place.start() < past {
                return None;
            }
            past = place.end();
        }
        excluded.count = list.len();
        Some(excluded)
    }

    /// What of `range` a dump holds, lowest first.
    pub fn pieces(&self, range: PhysRange) -> Pieces<'_> {
        Pieces::of(range, self.ranges.get(..self.count).unwrap_or_default())
    }
}

/// Iterator over the parts of a range.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    excluded: &'a [PhysRange],
    rest: PhysRange,
}

impl<'a> Pieces<'a> {
    /// The parts of `range` that are in none of `excluded`, which is in order and without overlap.
    pub(crate) fn of(range: PhysRange, excluded: &'a [PhysRange]) -> Self {
        Self { excluded, rest: range }
    }
}

impl Iterator for Pieces<'_> {
    type Item = PhysRange;

    fn next(&mut self) -> Option<PhysRange> {
        while let Some((first, others)) = self.excluded.split_first() {
            self.excluded = others;
            if let Some(cut) = self.rest.intersect(*first) {
                let piece = PhysRange::new(self.rest.start(), cut.start()).unwrap_or_default();
                self.rest = PhysRange::new(cut.end(), self.rest.end()).unwrap_or_default();
                if !piece.is_empty() {
                    return Some(piece);
                }
            }
        }
        let piece = core::mem::take(&mut self.rest);
        (!piece.is_empty()).then_some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(list: &[(u64, u64)]) -> Option<Excluded> {
        let list: Vec<_> = list.iter().map(|&(start, end)| abi::Range { start, end }).collect();
        Excluded::new(&list)
    }

    #[test]
    fn lists_that_are_out_of_order_are_refused() {
        assert!(excluded(&[(0, 1), (1, 5), (7, 7)]).is_some());
        for list in [&[(0, 2), (1, 5)][..], &[(5, 6), (0, 1)], &[(3, 2)], &[(0, 0); MAX_EXCLUDED + 1]] {
            assert!(excluded(list).is_none(), "{list:?}");
        }
    }

    #[test]
    fn pieces_leave_out_what_is_excluded() {
        type Ends = (u64, u64);
        let cases: [(&[Ends], Ends, &[Ends]); 6] = [
            (&[], (3, 9), &[(3, 9)]),
            (&[(0, 4)], (3, 9), &[(4, 9)]),
            (&[(0, 4), (6, 7)], (3, 9), &[(4, 6), (7, 9)]),
            (&[(4, 5), (8, 12)], (3, 9), &[(3, 4), (5, 8)]),
            (&[(0, 20)], (3, 9), &[]),
            (&[(0, 3), (9, 12)], (3, 9), &[(3, 9)]),
        ];
        for (list, (start, end), expected) in cases {
            let range = PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap();
            let excluded = excluded(list).unwrap();
            let pieces: Vec<_> =
                excluded.pieces(range).map(|piece| (piece.start().0, piece.end().0)).collect();
            assert_eq!(pieces, expected, "{list:?}");
        }
    }
}
