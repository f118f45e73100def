//! Physical memory as slices, and the memory routines that compiled code calls.
#![expect(
    unsafe_code,
    reason = "turns addresses that the loader wrote down into slices; provides the C memory routines"
)]

use purgatory::Region;

/// The memory of `region`.
///
/// The regions lie in the crash reservation and were mapped one to one by the kernel that crashed: it maps every segment
/// of a loaded image.
pub(crate) fn region_bytes(region: &Region) -> &'static [u8] {
    // SAFETY: `Params::parse` lets only non-empty regions through that do not start at 0, do not wrap and are no longer
    // than isize::MAX; the loader makes each a part of a loaded segment, which is mapped and which nobody writes to: one
    // CPU runs, with interrupts off.
    unsafe { core::slice::from_raw_parts(region.start as *const u8, region.size as usize) }
}
