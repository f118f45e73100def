//! Memory images for tests of the program.

pub(crate) const PAGE: usize = 4096;

/// A core of one stretch of memory from 1 MiB on, page by page, with a note of vmcoreinfo.
pub(crate) fn core(pages: impl ExactSizeIterator<Item = Vec<u8>>) -> Vec<u8> {
    let note = [&11u32.to_le_bytes()[..], &15u32.to_le_bytes(), &[0; 4], b"VMCOREINFO\0\0OSRELEASE=6.12\n\0"]
        .concat();
    let mut file = vec![0; PAGE];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    for (at, value) in [(16, 4u16), (18, 62), (52, 64), (54, 56), (56, 2)] {
        file[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    file[32] = 64;
    let size = (pages.len() * PAGE) as u64;
    let headers: [[u64; 7]; 2] = [
        [4, 512, 0, 0, note.len() as u64, note.len() as u64, 0],
        [1, PAGE as u64, 0, 0x10_0000, size, size, 0],
    ];
    for (at, word) in headers.iter().flatten().enumerate() {
        file[64 + at * 8..][..8].copy_from_slice(&word.to_le_bytes());
    }
    file[512..512 + note.len()].copy_from_slice(&note);
    pages.for_each(|page| file.extend(page));
    file
}
