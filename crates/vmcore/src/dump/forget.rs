//! What a disk lost of a dump.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::kdump::{DESCRIPTOR, Descriptor};

/// How many pages were taken out of a dump.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Pages with bytes of their own.
    pub data_pages: u64,
    /// Pages of zeros: all of them share one page, and go with it.
    pub zero_pages: u64,
}

/// How many descriptors are looked at at once.
const BATCH: u64 = 1 << 12;

/// Takes pages out of a kdump-compressed dump of which the disk lost the bytes in `lost` (file offsets, lowest first, apart from
/// each other): their descriptors become zeros, as those of pages that were never written, so that no reader takes what the disk has
/// there for memory. `descriptors` are the bytes of all of them, see [`DumpError::Sync`](super::DumpError::Sync). Gives the numbers of pages.
///
/// # Errors
/// The system's error.
pub fn forget(dump: &File, descriptors: Range<u64>, lost: &[Range<u64>]) -> io::Result<Forgotten> {
    let is_lost = |start: u64, end: u64| {
        let next = lost.partition_point(|range| range.end <= start);
        lost.get(next).is_some_and(|range| range.start < end)
    };
    let mut forgotten = Forgotten::default();
    let mut at = descriptors.start;
    let mut buffer = Vec::new();
    while at < descriptors.end {
        let len = (descriptors.end - at).min(BATCH * DESCRIPTOR as u64);
        buffer.resize(len as usize, 0);
        dump.read_exact_at(&mut buffer, at)?;
        let before = forgotten;
        for bytes in buffer.as_chunks_mut::<DESCRIPTOR>().0 {
            let Descriptor { offset, size, .. } = Descriptor::from_bytes(bytes);
            if size > 0 && is_lost(offset, offset.saturating_add(size.into())) {
                bytes.fill(0);
                // The page of zeros lies right behind the descriptors.
                let count = if offset == descriptors.end {
                    &mut forgotten.zero_pages
                } else {
                    &mut forgotten.data_pages
                };
                *count += 1;
            }
        }
        if forgotten != before {
            dump.write_all_at(&buffer, at)?;
        }
        at += len;
    }
    Ok(forgotten)
}
