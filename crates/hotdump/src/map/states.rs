//! What each stretch of physical memory is to a dump: a pure function of machine and header.

use elfcorehdr::{PhysRange, RangeVec};
use serde::Serialize;

/// Physical memory as the machine has it now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Physical {
    /// All memory.
    pub(super) ram: RangeVec,
    /// What a complete dump holds.
    pub(super) expected: RangeVec,
    /// Memory that is plugged in and not in use.
    pub(super) offline: RangeVec,
    /// The crash reservations.
    pub(super) reserved: RangeVec,
    /// What the machine was booted with; `None` where it cannot be told.
    pub(super) boot: Option<RangeVec>,
}

/// Memory that a crash header names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Named {
    /// By the addresses that the dump gives it.
    pub(super) named: RangeVec,
    /// By the addresses where it is read: a loader may let the header read a copy.
    pub(super) read: RangeVec,
}

/// What is known of the header in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum View {
    /// No crash image is loaded.
    NotLoaded,
    /// One is, and why its header cannot be read.
    Hidden(String),
    /// One is, and its header names this.
    Named(Named),
}

impl View {
    /// Why it cannot be told what the header names.
    pub(super) fn remark(&self) -> Option<&str> {
        match self {
            Self::Hidden(reason) => Some(reason),
            Self::NotLoaded | Self::Named(_) => None,
        }
    }
}

/// What a stretch of memory is. In the order of the legend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// In use and in the header.
    Covered,
    /// The same, of memory that the machine was not booted with.
    HotAdded,
    /// In use and not in the header.
    Missing,
    /// In the header and not there any more.
    Gone,
    /// In use; whether it is in the header cannot be told.
    Unknown,
    /// The crash reservation.
    Reserved,
    /// Plugged in and not in use.
    Offline,
    /// Memory that no dump names in place: what the capture kernel uses itself.
    LeftOut,
}

impl State {
    pub(super) const ALL: [Self; 8] = [
        Self::Covered,
        Self::HotAdded,
        Self::Missing,
        Self::Gone,
        Self::Unknown,
        Self::Reserved,
        Self::Offline,
        Self::LeftOut,
    ];

    /// Its name and what it means, for the legend.
    pub(super) fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Covered => ("covered", "in use, and in the crash header"),
            Self::HotAdded => ("hot-added", "the same, not in the boot memory map"),
            Self::Missing => ("MISSING", "in use, and in no crash header"),
            Self::Gone => ("GONE", "in the crash header, and not there any more"),
            Self::Unknown => ("in use", "whether it is in the crash header cannot be told"),
            Self::Reserved => ("reserved", "for the capture kernel (crashkernel=)"),
            Self::Offline => ("offline", "plugged in, not in use"),
            Self::LeftOut => ("left out", "low memory and CMA that the capture kernel uses"),
        }
    }

    /// Whether it is shown however small it is.
    pub(super) fn is_wrong(self) -> bool {
        matches!(self, Self::Missing | Self::Gone)
    }
}

/// A stretch of memory of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: PhysRange,
    pub(super) state: State,
}

/// All memory, and what the header names besides, in stretches of one kind that do not overlap, lowest first.
pub(super) fn parts(physical: &Physical, view: &View) -> Vec<Part> {
    let Physical { ram, expected, offline, reserved, boot } = physical;
    let nothing = Named::default();
    let (Named { named, read }, in_use) = match view {
        View::Named(named) => (named, State::Covered),
        View::NotLoaded => (&nothing, State::Covered),
        View::Hidden(_) => (&nothing, State::Unknown),
    };
    let missing: RangeVec = match view {
        View::Hidden(_) => RangeVec::new(),
        _ => expected.difference(named).collect(),
    };
    let seen: RangeVec = expected.difference(&missing).collect();
    let hot_added: RangeVec = match (boot, in_use) {
        (Some(boot), State::Covered) => seen.difference(boot).collect(),
        _ => RangeVec::new(),
    };
    let gone: RangeVec = read.difference(ram).collect();
    // Of two that lie in one place the first counts.
    let layers = [
        (State::Missing, &missing),
        (State::Gone, &gone),
        (State::HotAdded, &hot_added),
        (in_use, &seen),
        (State::Reserved, reserved),
        (State::Offline, offline),
        (State::LeftOut, ram),
    ];
    let mut taken = RangeVec::new();
    let mut parts = Vec::new();
    for (state, set) in layers {
        parts.extend(set.difference(&taken).map(|range| Part { range, state }));
        taken.extend(set.iter());
    }
    parts.sort_by_key(|part| part.range);
    parts
}

/// Bytes of each kind that there is, in the order of the legend.
pub(super) fn totals(parts: &[Part]) -> Vec<(State, u64)> {
    let total = |state| parts.iter().filter(|part| part.state == state).map(|part| part.range.len()).sum();
    State::ALL.into_iter().map(|state| (state, total(state))).filter(|(_, bytes)| *bytes != 0).collect()
}

/// The line over the picture.
pub(super) fn headline(parts: &[Part], view: &View) -> String {
    let bytes = |state| {
        let all = totals(parts).into_iter();
        all.filter(|(one, _)| *one == state).map(|(_, bytes)| bytes).sum::<u64>()
    };
    let (missing, gone) = (bytes(State::Missing), bytes(State::Gone));
    match view {
        View::NotLoaded => "no crash image is loaded: a crash now would leave no dump".to_owned(),
        View::Hidden(_) => "a crash image is loaded; its header cannot be read".to_owned(),
        View::Named(_) => match (missing, gone) {
            (0, 0) => "the crash header has all memory that is in use".to_owned(),
            (0, gone) => format!("the crash header has {} that is gone", crate::text::size(gone)),
            (missing, 0) => format!("the crash header misses {}", crate::text::size(missing)),
            (missing, gone) => format!(
                "the crash header misses {} and has {} that is gone",
                crate::text::size(missing),
                crate::text::size(gone)
            ),
        },
    }
}

#[cfg(test)]
pub(super) mod tests {
    use elfcorehdr::PhysAddr;
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    pub(in super::super) fn range(start_mib: u64, end_mib: u64) -> PhysRange {
        PhysRange::new(PhysAddr(start_mib * MIB), PhysAddr(end_mib * MIB)).unwrap()
    }

    fn set(ranges: &[PhysRange]) -> RangeVec {
        ranges.iter().copied().collect()
    }

    /// A machine of 3 GiB and 1 GiB above 4 GiB, 256 MiB reserved, with 512 MiB hot-added, of which 128 MiB are offline.
    pub(in super::super) fn machine() -> Physical {
        Physical {
            ram: set(&[range(0, 3072), range(4096, 5632)]),
            expected: set(&[range(1, 2560), range(2816, 3072), range(4096, 5504)]),
            offline: set(&[range(5504, 5632)]),
            reserved: set(&[range(2560, 2816)]),
            boot: Some(set(&[range(0, 3072), range(4096, 5120)])),
        }
    }

    pub(in super::super) fn header(ranges: &[PhysRange]) -> View {
        View::Named(Named { named: set(ranges), read: set(ranges) })
    }

    /// Of which the header misses 128 MiB that were added, and has 128 MiB that are gone.
    pub(in super::super) fn stale() -> View {
        header(&[range(1, 2560), range(2816, 3072), range(4096, 5376), range(6144, 6272)])
    }

    fn shown(view: &View) -> Vec<(u64, u64, State)> {
        let parts = parts(&machine(), view);
        parts.iter().map(|part| (part.range.start().0 / MIB, part.range.end().0 / MIB, part.state)).collect()
    }

    #[test]
    fn each_stretch_is_of_one_kind() {
        assert_eq!(
            shown(&stale()),
            [
                (0, 1, State::LeftOut),
                (1, 2560, State::Covered),
                (2560, 2816, State::Reserved),
                (2816, 3072, State::Covered),
                (4096, 5120, State::Covered),
                (5120, 5376, State::HotAdded),
                (5376, 5504, State::Missing),
                (5504, 5632, State::Offline),
                (6144, 6272, State::Gone),
            ]
        );
        let hidden = shown(&View::Hidden("closed".to_owned()));
        assert_eq!(hidden[1], (1, 2560, State::Unknown));
        assert!(hidden.iter().all(|(.., state)| !state.is_wrong()), "{hidden:?}");
        let none = shown(&View::NotLoaded);
        assert_eq!(none[4], (4096, 5504, State::Missing));
        assert!(none.iter().all(|(.., state)| *state != State::Covered), "{none:?}");
    }

    #[test]
    fn the_line_over_the_picture_says_what_matters() {
        let line = |view: &View| headline(&parts(&machine(), view), view);
        let whole = [range(1, 2560), range(2816, 3072), range(4096, 5632)];
        let more = [range(1, 2560), range(2816, 3072), range(4096, 5760)];
        let less = [range(1, 2560), range(2816, 3072), range(4096, 5120)];
        for (view, expected) in [
            (header(&whole), "the crash header has all memory that is in use"),
            (header(&more), "the crash header has 128 MiB that is gone"),
            (header(&less), "the crash header misses 384 MiB"),
            (stale(), "the crash header misses 128 MiB and has 128 MiB that is gone"),
            (View::NotLoaded, "no crash image is loaded: a crash now would leave no dump"),
            (View::Hidden(String::new()), "a crash image is loaded; its header cannot be read"),
        ] {
            assert_eq!(line(&view), expected);
        }
    }

    /// Blocks of 1 MiB out of the first 64.
    fn blocks(mask: u64) -> RangeVec {
        (0..64).filter(|bit| mask >> bit & 1 == 1).map(|bit| range(bit, bit + 1)).collect()
    }

    proptest! {
        #[test]
        fn all_memory_is_there_once(ram in 1_u64.., off in any::<u64>(), reserved in any::<u64>(), boot in any::<u64>(), named in any::<u64>()) {
            let (offline, reserved) = (ram & off & !reserved, ram & reserved);
            let physical = Physical {
                ram: blocks(ram),
                expected: blocks(ram & !offline & !reserved),
                offline: blocks(offline),
                reserved: blocks(reserved),
                boot: Some(blocks(boot)),
            };
            let names = Named { named: blocks(named), read: blocks(named) };
            let found = parts(&physical, &View::Named(names));
            for pair in found.windows(2) {
                prop_assert!(pair[0].range.end() <= pair[1].range.start());
            }
            let all: RangeVec = found.iter().map(|part| part.range).collect();
            prop_assert_eq!(all, blocks(ram | named));
            let missing: RangeVec = found.iter().filter(|part| part.state == State::Missing).map(|part| part.range).collect();
            prop_assert_eq!(missing, blocks(ram & !offline & !reserved & !named));
        }
    }
}
