//! The kernel's own list of what is loaded: `struct kimage`, read from the live kernel's memory.
//!
//! It is the only thing that tells the header in force from headers that earlier loads left behind in the
//! reservation: the kernel does not wipe them.

use elfcorehdr::{PhysAddr, PhysRange};

/// Most segments of an image (`KEXEC_SEGMENT_MAX`).
const MAX_SEGMENTS: u64 = 16;

/// Bytes of one `struct kexec_segment`: user buffer, its size, physical address, size in memory; 8 each.
const SEGMENT_SIZE: usize = 32;

/// Where in `struct kimage` the number of segments is looked for: at 56 in all of 5.10, 6.1, 6.12 and 7.2
/// (include/linux/kexec.h), with room for fields to come.
const NR_SEGMENTS_WITHIN: usize = 256;

/// Bytes of `struct kimage` to read.
pub(crate) const KIMAGE_BYTES: usize = NR_SEGMENTS_WITHIN + 8 + MAX_SEGMENTS as usize * SEGMENT_SIZE;

/// Smallest granularity of segments: PowerPC kernels with larger pages have multiples of it.
const PAGE: u64 = 4096;

/// Finds the segments in the first bytes of a `struct kimage`.
///
/// The place of the list is not taken on trust but recognised: a count of 1 to 16, and that many segments after it
/// of which each lies page-aligned inside `reservation`, has no more bytes given than it takes, and overlaps no
/// other. `None` if nothing looks so.
pub(crate) fn segments(kimage: &[u8], reservation: PhysRange) -> Option<Vec<PhysRange>> {
    (0..NR_SEGMENTS_WITHIN).step_by(8).find_map(|offset| segments_at(kimage.get(offset..)?, reservation))
}

fn segments_at(bytes: &[u8], reservation: PhysRange) -> Option<Vec<PhysRange>> {
    let count = word(bytes, 0)?;
    if count == 0 || count > MAX_SEGMENTS {
        return None;
    }
    let table = bytes.get(8..)?.get(..usize::try_from(count).ok()?.checked_mul(SEGMENT_SIZE)?)?;
    let segments: Vec<PhysRange> =
        table.chunks_exact(SEGMENT_SIZE).map(|raw| segment(raw, reservation)).collect::<Option<_>>()?;
    let mut sorted = segments.clone();
    sorted.sort();
    let apart = sorted.windows(2).all(|pair| matches!(pair, [low, high] if !low.overlaps(*high)));
    apart.then_some(segments)
}

fn segment(raw: &[u8], reservation: PhysRange) -> Option<PhysRange> {
    let (given, start, size) = (word(raw, 8)?, PhysAddr(word(raw, 16)?), word(raw, 24)?);
    let range = PhysRange::from_len(start, size)?;
    let sound = size > 0
        && given <= size
        && start.is_aligned(PAGE)
        && size.is_multiple_of(PAGE)
        && reservation.contains_range(range);
    sound.then_some(range)
}

fn word(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap()
    }

    /// A `struct kimage` with its list at `offset`, other fields filled with what looks like kernel pointers.
    fn kimage(offset: usize, segments: &[(u64, u64, u64)]) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..KIMAGE_BYTES / 8)
            .flat_map(|i| (0xffff_8880_0000_1000 + i as u64 * 64).to_le_bytes())
            .collect();
        let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        put(offset, segments.len() as u64);
        for (index, (given, start, size)) in segments.iter().enumerate() {
            let at = offset + 8 + index * SEGMENT_SIZE;
            put(at, 0x7fff_0000_0000);
            put(at + 8, *given);
            put(at + 16, *start);
            put(at + 24, *size);
        }
        bytes
    }

    const RESERVATION: (u64, u64) = (0x3000_0000, 0x4000_0000);

    #[test]
    fn finds_the_list_where_kernels_have_it() {
        let image = kimage(56, &[(0x900, 0x3fff_0000, 0x1000), (0xa0_0000, 0x3100_0000, 0xb0_0000)]);
        let found = segments(&image, range(RESERVATION.0, RESERVATION.1));
        assert_eq!(found, Some(vec![range(0x3fff_0000, 0x3fff_1000), range(0x3100_0000, 0x31b0_0000)]));
    }

    #[test]
    fn refuses_what_no_kernel_would_hold() {
        for (segment, why) in [
            ((0x10, 0x3fff_0010, 0x1000), "not page-aligned"),
            ((0x10, 0x3fff_0000, 0x1010), "size not whole pages"),
            ((0x10, 0x3fff_0000, 0), "empty"),
            ((0x1001, 0x3fff_0000, 0x1000), "more given than it takes"),
            ((0x10, 0x3fff_f000, 0x2000), "past the reservation"),
            ((0x10, 0x2fff_f000, 0x1000), "before the reservation"),
            ((0x10, u64::MAX - 0xfff, 0x1000), "past the address space"),
        ] {
            assert_eq!(segments(&kimage(56, &[segment]), range(RESERVATION.0, RESERVATION.1)), None, "{why}");
        }
        let overlapping = kimage(56, &[(0, 0x3100_0000, 0x2000), (0, 0x3100_1000, 0x1000)]);
        assert_eq!(segments(&overlapping, range(RESERVATION.0, RESERVATION.1)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_give_only_ranges_inside(bytes in proptest::collection::vec(any::<u8>(), 0..1024)) {
            let reservation = range(RESERVATION.0, RESERVATION.1);
            for found in segments(&bytes, reservation).unwrap_or_default() {
                prop_assert!(reservation.contains_range(found));
            }
        }

        #[test]
        fn a_list_is_found_at_any_place(slot in 0_usize..32, count in 1_usize..=16) {
            let list: Vec<_> = (0..count as u64).map(|i| (0x800, 0x3000_0000 + i * 0x2000, 0x1000)).collect();
            let expected: Vec<_> = list.iter().map(|(_, start, size)| range(*start, start + size)).collect();
            prop_assert_eq!(segments(&kimage(slot * 8, &list), range(RESERVATION.0, RESERVATION.1)), Some(expected));
        }
    }
}
