//! The kdump-compressed format, version 6: what is where in the file. Numbers are 64-bit and little-endian unless said otherwise.
//!
//! Block 0 is the header, block 1 and on the sub header with the notes; then two bitmaps of frames, those that exist and those
//! that were dumped; then a descriptor for each frame dumped, in order; then the pages, anywhere.

/// What a file starts with.
pub(crate) const SIGNATURE: &[u8; 8] = b"KDUMP   ";
/// The version that is written. Versions 1 to 6 are read.
pub(crate) const VERSION: u32 = 6;
/// Header status: the dump was not written to its end (DUMP_DH_COMPRESSED_INCOMPLETE).
pub(crate) const INCOMPLETE: u32 = 0x8;
/// Fields of the header, by their offsets in bytes. 32 bits each, but for the names and the time.
pub(crate) mod header {
    pub(crate) const VERSION: usize = 8;
    /// struct new_utsname: six names of 65 bytes.
    pub(crate) const UTSNAME: usize = 12;
    /// struct timeval. Microseconds stay 0: libkdumpfile tries the 32-bit layout first, in which they are the block size.
    pub(crate) const TIME: usize = 408;
    pub(crate) const STATUS: usize = 424;
    pub(crate) const BLOCK_SIZE: usize = 428;
    /// In blocks.
    pub(crate) const SUB_HEADER: usize = 432;
    /// Blocks of both bitmaps together.
    pub(crate) const BITMAPS: usize = 436;
    /// Frames, as far as 32 bits can say.
    pub(crate) const MAX_MAPNR: usize = 440;
    pub(crate) const CPUS: usize = 460;
    pub(crate) const SIZE: usize = 464;
}
/// Fields of the sub header, by their offsets in bytes.
pub(crate) mod sub_header {
    pub(crate) const PHYS_BASE: usize = 0;
    /// 32 bits.
    pub(crate) const DUMP_LEVEL: usize = 8;
    /// 32 bits: not 0 where the dump is one part of several.
    pub(crate) const SPLIT: usize = 12;
    /// Offset and size. Since version 3.
    pub(crate) const VMCOREINFO: usize = 32;
    /// Offset and size. Since version 4.
    pub(crate) const NOTES: usize = 48;
    /// Since version 6.
    pub(crate) const MAX_MAPNR: usize = 96;
    pub(crate) const SIZE: usize = 104;
}
/// The length of a name in struct new_utsname, and how many there are.
pub(crate) const NAME: usize = 65;
pub(crate) const NAMES: usize = 6;
/// The size of a page descriptor.
pub(crate) const DESCRIPTOR: usize = 24;

/// Where a page lies. One with offset 0, as a table that was never written to reads, means that the page is not in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// File offset of its bytes.
    pub(crate) offset: u64,
    /// How many bytes.
    pub(crate) size: u32,
    /// How they are compressed.
    pub(crate) flags: u32,
}

impl Descriptor {
    pub(crate) fn from_bytes(bytes: &[u8; DESCRIPTOR]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = *bytes;
        Self {
            offset: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            size: u32::from_le_bytes([i, j, k, l]),
            flags: u32::from_le_bytes([m, n, o, p]),
        }
    }

    pub(crate) fn to_bytes(self) -> [u8; DESCRIPTOR] {
        let mut bytes = [0; DESCRIPTOR];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.size.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }
}
