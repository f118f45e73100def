//! How a flattened tree lies in memory, and the numbers of it.
//!
//! | offset | field of the header | |
//! | --- | --- | --- |
//! | 0 | magic | [`MAGIC`] |
//! | 4 | totalsize | bytes of the tree, free space at its end included |
//! | 8 | off_dt_struct | nodes and properties, as tokens; a multiple of 4 |
//! | 12 | off_dt_strings | names of properties, each ended by a NUL |
//! | 16 | off_mem_rsvmap | reserved memory: address, size, ..., 0, 0; a multiple of 8 |
//! | 20 | version | [`VERSION`] |
//! | 24 | last_comp_version | [`LAST_COMPATIBLE`] |
//! | 28 | boot_cpuid_phys | hardware number of the CPU that boots |
//! | 32 | size_dt_strings | |
//! | 36 | size_dt_struct | |

/// First four bytes of a flattened tree, as a big-endian number.
pub const MAGIC: u32 = 0xd00d_feed;

/// Where the header has the hardware number of the CPU that boots, four bytes: purgatory writes it there.
pub const BOOT_CPU_OFFSET: usize = 28;

/// How deep nodes may lie, the root being at depth 1: FDT_MAX_DEPTH of Linux, which leaves out what lies deeper.
pub const MAX_DEPTH: usize = 64;

/// The version that is read and written here.
pub(crate) const VERSION: u32 = 17;
/// The oldest version whose readers can read version 17.
pub(crate) const LAST_COMPATIBLE: u32 = 16;

pub(crate) const HEADER_SIZE: usize = 40;
/// Address and size.
pub(crate) const RESERVED_SIZE: usize = 16;
pub(crate) const TOKEN_SIZE: usize = 4;

/// Offsets in the header.
pub(crate) mod field {
    pub(crate) const TOTAL_SIZE: usize = 4;
    pub(crate) const STRUCTURE: usize = 8;
    pub(crate) const STRINGS: usize = 12;
    pub(crate) const RESERVE_MAP: usize = 16;
    pub(crate) const VERSION: usize = 20;
    pub(crate) const LAST_COMPATIBLE: usize = 24;
    pub(crate) const STRINGS_SIZE: usize = 32;
    pub(crate) const STRUCTURE_SIZE: usize = 36;
}

/// Tokens of the structure block.
pub(crate) mod token {
    /// A node begins: its name and a NUL follow, then zeros up to a multiple of 4.
    pub(crate) const BEGIN_NODE: u32 = 1;
    pub(crate) const END_NODE: u32 = 2;
    /// A property: size of its value and offset of its name follow, then the value, then zeros up to a multiple of 4.
    pub(crate) const PROPERTY: u32 = 3;
    pub(crate) const NOP: u32 = 4;
    pub(crate) const END: u32 = 9;
}
