//! Finding places in the crash reservation. The same pieces asked for in the same order get the same places.

use elfcorehdr::{PhysAddr, PhysRange, RangeVec};

use crate::error::PlanError;

/// The reservation, and what of it is not taken yet.
#[derive(Debug)]
pub(crate) struct Space {
    reservation: PhysRange,
    /// What places are aligned to and rounded up to, in bytes.
    page: u64,
    /// What may be taken: inside the user's limits.
    free: RangeVec,
    /// What lies outside the user's limits but inside the reservation: the running kernel's own pages may go there.
    aside: u64,
    /// Bytes asked for so far, found or not.
    asked: u64,
}

impl Space {
    /// All of `reservation` from `min` up to, not including, `max`, in whole pages of `page` bytes.
    pub(crate) fn new(
        reservation: PhysRange,
        page: u64,
        min: Option<PhysAddr>,
        max: Option<PhysAddr>,
    ) -> Result<Self, PlanError> {
        let start = min.map_or(0, |addr| addr.0).max(reservation.start().0).checked_next_multiple_of(page);
        let end = max.map_or(u64::MAX, |addr| addr.0).min(reservation.end().0) / page * page;
        let window = start
            .and_then(|start| PhysRange::new(PhysAddr(start), PhysAddr(end)))
            .filter(|window| !window.is_empty())
            .ok_or(PlanError::EmptyWindow { reservation })?;
        let aside = reservation.len() - window.len();
        Ok(Self { reservation, page, free: [window].into_iter().collect(), aside, asked: 0 })
    }

    /// The reservation.
    #[cfg_attr(target_arch = "powerpc64", allow(dead_code, reason = "asked for by kernels that cannot move"))]
    pub(crate) fn reservation(&self) -> PhysRange {
        self.reservation
    }

    /// Leaves alone what of `taken` lies in the reservation, and the pages that it reaches into.
    pub(crate) fn avoid(&mut self, taken: &RangeVec) {
        for range in taken.iter() {
            let start = range.start().0 / self.page * self.page;
            let end = range.end().0.checked_next_multiple_of(self.page).unwrap_or(u64::MAX);
            // A Vec-backed set is never full.
            let _ = PhysRange::new(PhysAddr(start), PhysAddr(end)).map(|pages| self.free.remove(pages));
        }
    }

    /// Takes `size` bytes, rounded up to pages, as low as possible at a multiple of `align`, not below `min`.
    pub(crate) fn take_low(
        &mut self,
        what: &'static str,
        size: u64,
        align: u64,
        min: u64,
    ) -> Result<PhysRange, PlanError> {
        let pages = self.ask(what, size, None)?;
        let align = align.max(self.page);
        let found = self.free.iter().find_map(|hole| {
            let start = hole.start().0.max(min).checked_next_multiple_of(align)?;
            PhysRange::from_len(PhysAddr(start), pages).filter(|place| hole.contains_range(*place))
        });
        self.take(found).ok_or_else(|| self.too_small(what, size, None))
    }

    /// Takes `size` bytes, rounded up to pages, as high as possible at a multiple of `align`, all of it below `below`.
    pub(crate) fn take_high(
        &mut self,
        what: &'static str,
        size: u64,
        align: u64,
        below: Option<PhysAddr>,
    ) -> Result<PhysRange, PlanError> {
        let pages = self.ask(what, size, below)?;
        let align = align.max(self.page);
        let holes: Vec<PhysRange> = self.free.iter().collect();
        let found = holes.into_iter().rev().find_map(|hole| {
            let end = below.map_or(hole.end(), |below| below.min(hole.end()));
            let start = end.0.checked_sub(pages)? / align * align;
            PhysRange::from_len(PhysAddr(start), pages).filter(|place| hole.contains_range(*place))
        });
        self.take(found).ok_or_else(|| self.too_small(what, size, below))
    }

    /// Takes exactly `place`; `None` if it is not free.
    #[cfg_attr(target_arch = "powerpc64", allow(dead_code, reason = "asked for by kernels that cannot move"))]
    pub(crate) fn take_exactly(&mut self, place: PhysRange) -> Option<PhysRange> {
        self.asked = self.asked.saturating_add(place.len());
        let free = self.free.contains_range(place);
        self.take(free.then_some(place))
    }

    /// Checks that `size` bytes of the reservation are left over, anywhere in it.
    pub(crate) fn require_free(&mut self, what: &'static str, size: u64) -> Result<(), PlanError> {
        self.asked = self.asked.saturating_add(size);
        if self.free.total_len().saturating_add(self.aside) < size {
            return Err(self.too_small(what, size, None));
        }
        Ok(())
    }

    fn ask(&mut self, what: &'static str, size: u64, below: Option<PhysAddr>) -> Result<u64, PlanError> {
        let pages = size.max(1).checked_next_multiple_of(self.page);
        self.asked = self.asked.saturating_add(pages.unwrap_or(u64::MAX));
        pages.ok_or_else(|| self.too_small(what, size, below))
    }

    fn take(&mut self, found: Option<PhysRange>) -> Option<PhysRange> {
        let place = found?;
        // A Vec-backed set is never full.
        let _ = self.free.remove(place);
        Some(place)
    }

    fn too_small(&self, what: &'static str, size: u64, below: Option<PhysAddr>) -> PlanError {
        PlanError::TooSmall { reservation: self.reservation, what, size, below, need: self.asked }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 4096;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap()
    }

    #[test]
    fn pieces_go_where_they_are_asked_to() {
        let mut space = Space::new(range(0x10_0000, 0x20_0000), PAGE, None, None).unwrap();
        assert_eq!(space.take_high("a", 1, PAGE, None).unwrap(), range(0x1f_f000, 0x20_0000));
        assert_eq!(space.take_low("b", 0x1800, 0x4_0000, 0x11_0000).unwrap(), range(0x14_0000, 0x14_2000));
        // Low again fills the hole below.
        assert_eq!(space.take_low("c", 0x1000, PAGE, 0).unwrap(), range(0x10_0000, 0x10_1000));
        assert_eq!(
            space.take_high("d", 0x1000, PAGE, Some(PhysAddr(0x14_0000))).unwrap(),
            range(0x13_f000, 0x14_0000)
        );
        assert_eq!(space.take_exactly(range(0x14_1000, 0x14_3000)), None);
        assert_eq!(space.take_exactly(range(0x14_2000, 0x14_3000)), Some(range(0x14_2000, 0x14_3000)));
    }

    #[test]
    fn limits_are_kept_and_the_rest_is_left_to_the_kernel() {
        let mut space = Space::new(
            range(0x10_0000, 0x20_0000),
            PAGE,
            Some(PhysAddr(0x18_0001)),
            Some(PhysAddr(0x18_3fff)),
        )
        .unwrap();
        assert_eq!(space.take_low("a", 0x1000, PAGE, 0).unwrap(), range(0x18_1000, 0x18_2000));
        assert_eq!(space.take_high("b", 0x1000, PAGE, None).unwrap(), range(0x18_2000, 0x18_3000));
        assert!(space.take_low("c", 1, PAGE, 0).is_err());
        assert!(space.require_free("kernel", 0xf_0000).is_ok());
        assert!(space.require_free("kernel", 0x10_0000).is_err());
    }

    #[test]
    fn what_is_spoken_for_is_left_alone_with_its_pages() {
        let mut space = Space::new(range(0x10_0000, 0x13_0000), 0x1_0000, None, None).unwrap();
        space.avoid(&[range(0x11_8000, 0x11_9000), range(0x12_ffff, 0x14_0000)].into_iter().collect());
        assert_eq!(space.take_low("a", 1, 1, 0).unwrap(), range(0x10_0000, 0x11_0000));
        assert!(space.take_high("b", 1, 1, None).is_err());
    }

    #[test]
    fn limits_that_leave_nothing_are_an_error() {
        let reservation = range(0x10_0000, 0x20_0000);
        for (min, max) in [
            (Some(0x20_0000), None),
            (None, Some(0x10_0000)),
            (Some(0x18_0000), Some(0x17_0000)),
            (Some(u64::MAX), None),
        ] {
            let space = Space::new(reservation, PAGE, min.map(PhysAddr), max.map(PhysAddr));
            assert!(matches!(space, Err(PlanError::EmptyWindow { .. })), "{min:x?} {max:x?}");
        }
    }

    #[test]
    fn the_error_says_what_is_needed() {
        let mut space = Space::new(range(0, 64 << 20), PAGE, None, None).unwrap();
        space.take_low("kernel", 60 << 20, PAGE, 0).unwrap();
        let text = space.take_high("initrd", 30 << 20, PAGE, None).unwrap_err().to_string();
        assert!(text.contains("no room for initrd (30 MiB)"), "{text}");
        assert!(text.contains("needs about 90 MiB of it, it has 64 MiB"), "{text}");
        assert!(text.contains("crashkernel=192M"), "{text}");
    }

    proptest! {
        #[test]
        fn places_never_overlap_and_never_leave_the_reservation(
            start in 0u64..1 << 40,
            len in 0u64..1 << 30,
            window in (proptest::option::of(0u64..1 << 41), proptest::option::of(0u64..1 << 41)),
            asks in proptest::collection::vec(
                (any::<bool>(), 0u64..1 << 28, 0u32..25, proptest::option::of(any::<u64>())), 1..12),
        ) {
            let reservation = PhysRange::from_len(PhysAddr(start), len).unwrap();
            let Ok(mut space) = Space::new(reservation, PAGE, window.0.map(PhysAddr), window.1.map(PhysAddr)) else {
                return Ok(());
            };
            let mut taken: Vec<PhysRange> = Vec::new();
            for (low, size, align, limit) in asks {
                let align = 1 << align;
                let place = if low {
                    space.take_low("piece", size, align, limit.unwrap_or(0))
                } else {
                    space.take_high("piece", size, align, limit.map(PhysAddr))
                };
                let Ok(place) = place else { continue };
                prop_assert!(reservation.contains_range(place));
                prop_assert!(place.start().is_aligned(align.max(PAGE)) && place.len() % PAGE == 0 && place.len() >= size);
                prop_assert!(place.start().0 >= window.0.unwrap_or(0) && place.end().0 <= window.1.unwrap_or(u64::MAX));
                match (low, limit) {
                    (true, Some(min)) => prop_assert!(place.start().0 >= min),
                    (false, Some(below)) => prop_assert!(place.end().0 <= below),
                    _ => {}
                }
                prop_assert!(taken.iter().all(|other| !other.overlaps(place)));
                taken.push(place);
            }
        }
    }
}
