//! What the running kernel takes of the crash reservation for itself.
//!
//! While it loads an image it takes free pages of the reservation, from the bottom up (kimage_alloc_crash_control_pages),
//! for: the code that jumps (one page, KEXEC_CONTROL_PAGE_SIZE is 4096), and a copy of vmcoreinfo (one page). Page tables it
//! needs none: it jumps with the MMU off.

use host::{Host, HostError};

use super::SEGMENT_ALIGN;

/// The code, vmcoreinfo, and as many again: each is aligned to its size.
const PAGES: u64 = 4;

/// Bytes that the running kernel may need, however large its pages are.
pub(crate) fn control_pages(_: &Host) -> Result<u64, HostError> {
    Ok(PAGES * SEGMENT_ALIGN)
}
