//! Ranges and range sets: small cases with pictures, then a naive model.
//!
//! In the pictures a column is one address, `#` one that is in the set, and the first column is address 0.

use elfcorehdr::{Full, PhysAddr, PhysRange, RangeBuf, RangeSet, RangeVec};
use proptest::prelude::*;

fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::new(PhysAddr(start), PhysAddr(end)).expect("test ranges do not end before they start")
}

/// The ranges that a picture shows.
fn drawn(picture: &str) -> Vec<PhysRange> {
    let columns: Vec<bool> = picture.chars().map(|column| column == '#').collect();
    from_columns(&columns)
}

fn from_columns(columns: &[bool]) -> Vec<PhysRange> {
    let mut ranges = Vec::new();
    let mut start = None;
    for (at, taken) in columns.iter().copied().chain([false]).enumerate() {
        match (start, taken) {
            (None, true) => start = Some(at as u64),
            (Some(from), false) => {
                ranges.push(range(from, at as u64));
                start = None;
            }
            _ => {}
        }
    }
    ranges
}

fn set(ranges: &[PhysRange]) -> RangeVec {
    ranges.iter().copied().collect()
}

/// What a case does with its range.
#[derive(Clone, Copy, Debug)]
enum Change {
    Add,
    Remove,
}
use Change::{Add, Remove};

fn apply<B: RangeBuf>(set: &mut RangeSet<B>, change: Change, range: PhysRange) -> Result<(), Full> {
    match change {
        Add => set.add(range),
        Remove => set.remove(range),
    }
}

#[test]
fn changes_as_drawn() {
    let cases = [
        // name, set before, change, range, set after
        ("into nothing", "", Add, "..####", "..####"),
        ("apart, above", "##", Add, ".....##", "##...##"),
        ("apart, below", "....##", Add, "##", "##..##"),
        ("touches from above", "###...", Add, "...###", "######"),
        ("touches from below", "...###", Add, "###...", "######"),
        ("fills a gap to the byte", "##..##", Add, "..##..", "######"),
        ("overlaps the tail", "####..", Add, "..####", "######"),
        ("overlaps the head", "..####", Add, "####..", "######"),
        ("swallows three", ".#.#.#.", Add, "#######", "#######"),
        ("bridges the first two of three", "##..##..##", Add, ".####.....", "######..##"),
        ("already there", "######", Add, "..##..", "######"),
        ("between two", "##....##", Add, "...##...", "##.##.##"),
        ("nothing there", "..####", Remove, "##....", "..####"),
        ("all of it", "..####..", Remove, "..####..", "........"),
        ("more than all of it", "..####..", Remove, "########", "........"),
        ("the head", "######", Remove, "##....", "..####"),
        ("the tail", "######", Remove, "....##", "####.."),
        ("the middle splits it", "######", Remove, "..##..", "##..##"),
        ("one address", "###", Remove, ".#.", "#.#"),
        ("the gap only", "##..##", Remove, "..##..", "##..##"),
        ("tail of one, head of the next", "####.####", Remove, "..#####..", "##.....##"),
        ("whole ones between two cut ones", "###.#.#.###", Remove, ".#########.", "#.........#"),
        ("the middle of the second", "##.#####", Remove, "....##..", "##.#..##"),
        ("up to the end", "##.##.##", Remove, "...#####", "##......"),
    ];
    for (name, before, change, with, after) in cases {
        let [with] = drawn(with)[..] else { panic!("{name}: one range to change with") };
        let mut changed = set(&drawn(before));
        apply(&mut changed, change, with).unwrap();
        assert_eq!(changed.as_slice(), drawn(after), "{name}: {before} {change:?} {with}");
    }
}

/// The exclusion that x86 needs: the first megabyte and two reservations out of a machine's memory.
///
/// ```text
///  0    1M                 low                          4G      high
///  |#####|###################[####]##########|           |#######[####]####|
///  |     |###################      ##########|           |#######      ####|
/// ```
#[test]
fn memory_without_reservations() {
    let mib = |start: u64, end: u64| range(start << 20, end << 20);
    let mut ram = set(&[range(0x1000, 0x9fc00), mib(1, 3070), mib(4096, 8192)]);
    ram.subtract(&set(&[mib(0, 1), mib(2048, 2304), mib(7000, 7256)])).unwrap();
    let left = [mib(1, 2048), mib(2304, 3070), mib(4096, 7000), mib(7256, 8192)];
    assert_eq!(ram.as_slice(), left);
    assert_eq!(ram.total_len(), (2047 + 766 + 2904 + 936) << 20);
}

#[test]
fn questions_of_a_set() {
    let set = set(&drawn(".###..##"));
    assert_eq!(
        (0..9).map(|at| set.contains(PhysAddr(at))).collect::<Vec<_>>(),
        [false, true, true, true, false, false, true, true, false]
    );
    for (part, inside) in [((1, 4), true), ((2, 3), true), ((0, 2), false), ((3, 7), false), ((5, 5), true)] {
        assert_eq!(set.contains_range(range(part.0, part.1)), inside, "{part:?}");
    }
    assert_eq!(set.within(range(2, 7)).collect::<Vec<_>>(), [range(2, 4), range(6, 7)]);
    assert_eq!((set.len(), set.is_empty(), set.total_len()), (2, false, 5));
}

#[test]
fn questions_of_a_range() {
    let held = range(2, 6);
    assert_eq!(held.split_at(PhysAddr(3)), Some((range(2, 3), range(3, 6))));
    assert_eq!(held.split_at(PhysAddr(2)), None);
    assert_eq!(held.split_at(PhysAddr(6)), None);
    assert_eq!(held.intersect(range(4, 9)), Some(range(4, 6)));
    assert_eq!(held.intersect(range(6, 9)), None);
    assert!(held.overlaps(range(0, 3)) && !held.overlaps(range(0, 2)));
    assert!(held.contains_range(range(2, 6)) && held.contains_range(range(9, 9)));
    assert!(!held.contains_range(range(1, 6)));
    assert_eq!(held.to_string(), "[0x2, 0x6)");
}

#[test]
fn ends_of_the_address_space() {
    let last = PhysAddr(u64::MAX);
    assert_eq!(PhysRange::new(PhysAddr(2), PhysAddr(1)), None);
    assert_eq!(PhysRange::from_len(last, 1), None);
    assert_eq!(PhysRange::from_inclusive(last, last), None);
    assert_eq!(PhysRange::from_inclusive(PhysAddr(3), PhysAddr(2)), None);
    assert_eq!(PhysRange::from_inclusive(PhysAddr(3), PhysAddr(3)), Some(range(3, 4)));
    let mut all = set(&[range(0, u64::MAX)]);
    assert_eq!(all.total_len(), u64::MAX);
    all.remove(range(1, u64::MAX - 1)).unwrap();
    assert_eq!(all.as_slice(), [range(0, 1), range(u64::MAX - 1, u64::MAX)]);
    assert!(PhysAddr(0x3000).is_aligned(0x1000) && !PhysAddr(0x3001).is_aligned(0x1000));
    assert!(!PhysAddr(0).is_aligned(0));
}

#[test]
fn addresses_travel_as_hex_strings() {
    let written = serde_json::to_string(&range(0x1000, u64::MAX)).unwrap();
    assert_eq!(written, r#"{"start":"0x1000","end":"0xffffffffffffffff"}"#);
    assert_eq!(serde_json::from_str::<PhysRange>(&written).unwrap(), range(0x1000, u64::MAX));
    for wrong in [r#""1000""#, r#""0x""#, r#""0x+1""#, r#""0x1ffffffffffffffff""#, "4096"] {
        assert!(serde_json::from_str::<PhysAddr>(wrong).is_err(), "{wrong}");
    }
    let reversed = serde_json::from_str::<PhysRange>(r#"{"start":"0x2","end":"0x1"}"#);
    assert!(reversed.unwrap_err().to_string().contains("before its start"));
}

/// Addresses that the model knows.
const SPACE: usize = 48;

fn changes() -> impl Strategy<Value = Vec<(Change, PhysRange)>> {
    let ends =
        (0..SPACE as u64, 0..12u64).prop_map(|(start, len)| range(start, (start + len).min(SPACE as u64)));
    prop::collection::vec((prop::sample::select(&[Add, Remove][..]), ends), 0..40)
}

fn paint(columns: &mut [bool], change: Change, with: PhysRange) {
    for column in &mut columns[with.start().0 as usize..with.end().0 as usize] {
        *column = matches!(change, Add);
    }
}

proptest! {
    #[test]
    fn like_a_bitmap(changes in changes()) {
        let mut columns = [false; SPACE];
        let mut on_heap = RangeVec::new();
        let mut slots = [PhysRange::default(); SPACE];
        let mut fixed = RangeSet::in_slots(&mut slots);
        for (change, with) in changes {
            paint(&mut columns, change, with);
            apply(&mut on_heap, change, with).unwrap();
            apply(&mut fixed, change, with).unwrap();
            prop_assert_eq!(on_heap.as_slice(), from_columns(&columns));
            prop_assert_eq!(fixed.as_slice(), from_columns(&columns));
        }
        prop_assert_eq!(on_heap.total_len(), columns.iter().filter(|taken| **taken).count() as u64);
    }

    /// A full buffer refuses exactly the changes whose outcome it cannot hold, and stays as it was.
    #[test]
    fn full_changes_nothing(changes in changes(), capacity in 0usize..5) {
        let mut columns = [false; SPACE];
        let mut slots = vec![PhysRange::default(); capacity];
        let mut fixed = RangeSet::in_slots(&mut slots);
        for (change, with) in changes {
            let mut wanted = columns;
            paint(&mut wanted, change, with);
            let outcome = apply(&mut fixed, change, with);
            if from_columns(&wanted).len() <= capacity {
                prop_assert_eq!(outcome, Ok(()));
                columns = wanted;
            } else {
                prop_assert_eq!(outcome, Err(Full { capacity }));
            }
            prop_assert_eq!(fixed.as_slice(), from_columns(&columns));
        }
    }

    #[test]
    fn difference_is_subtraction(one in changes(), other in changes()) {
        let build = |changes: Vec<(Change, PhysRange)>| {
            let mut columns = [false; SPACE];
            changes.into_iter().for_each(|(change, with)| paint(&mut columns, change, with));
            columns
        };
        let (one, other) = (build(one), build(other));
        let left: Vec<bool> = one.iter().zip(other).map(|(one, other)| *one && !other).collect();
        let (mut one, other) = (set(&from_columns(&one)), set(&from_columns(&other)));
        prop_assert_eq!(one.difference(&other).collect::<Vec<_>>(), from_columns(&left));
        one.subtract(&other).unwrap();
        prop_assert_eq!(one.as_slice(), from_columns(&left));
    }
}
