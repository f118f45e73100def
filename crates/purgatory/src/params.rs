//! The parameter block: what the loader tells purgatory, and how it lies in memory.

use core::fmt;

use crate::{Digest, TreeError};

/// First bytes of a parameter block.
const MAGIC: [u8; 8] = *b"hotdumpP";

/// The layout described here. Loader and purgatory come from one build, so anything else is corruption.
pub const VERSION: u32 = 2;

/// Room for regions: the kernel takes at most 16 segments (KEXEC_SEGMENT_MAX), each at most one region.
pub const MAX_REGIONS: usize = 16;

/// Bytes of a region's name, padded with zeros.
pub const NAME_SIZE: usize = 16;

/// Where the block has the identity of its load, in bytes.
pub const IDENTITY_OFFSET: usize = 16;

/// Where the block has the address of the device tree in force, in bytes: an 8-byte word, aligned and little-endian, so
/// that another tree is put in force by one store. On x86_64 the word is the address of boot_params.
pub const TREE_OFFSET: usize = 40;

/// Bytes of low memory that purgatory copies aside on ppc64 (`BACKUP_SRC_SIZE` of the kernel): the capture kernel has its
/// exception vectors there.
pub const BACKUP_SIZE: u64 = 64 << 10;

const BACKUP_OFFSET: usize = 56;
const SLOTS_OFFSET: usize = 64;
const SLOT_SIZE: usize = 16;
const RTAS_OFFSET: usize = SLOTS_OFFSET + 2 * SLOT_SIZE;
const REGION_SIZE: usize = 8 + 8 + 32 + NAME_SIZE;
const REGIONS_OFFSET: usize = 120;

/// Bytes of the parameter block in memory.
///
/// | offset | size | field |
/// | --- | --- | --- |
/// | 0 | 8 | magic `hotdumpP` |
/// | 8 | 4 | version |
/// | 12 | 4 | number of regions |
/// | 16 | 16 | identity of this load |
/// | 32 | 8 | entry of the capture kernel, physical address |
/// | 40 | 8 | boot_params of the capture kernel; ppc64: its device tree; physical address |
/// | 48 | 2 | serial console, I/O port; 0: none |
/// | 50 | 6 | zero |
/// | 56 | 8 | backup area for the first [`BACKUP_SIZE`] bytes of memory, physical address; 0: none |
/// | 64 | 16 each | two slots that a device tree may lie in: start (8), size (8); size 0: none |
/// | 96 | 8, 8, 4 | RTAS: entry, base, token of `system-reboot`; entry 0: none |
/// | 116 | 4 | zero |
/// | 120 | 64 each | regions: start (8), size (8), SHA-256 (32), name (16) |
///
/// All numbers are little-endian. What lies from offset 56 to 116 is zero on x86_64.
pub const PARAMS_SIZE: usize = REGIONS_OFFSET + MAX_REGIONS * REGION_SIZE;

/// A piece of memory that must not have changed since it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Physical address of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256 of the bytes as loaded.
    pub digest: Digest,
    name: [u8; NAME_SIZE],
}

impl Region {
    /// A region of `size` bytes at physical address `start`. `name` is for messages and is cut to [`NAME_SIZE`] bytes.
    pub fn new(name: &str, start: u64, size: u64, digest: Digest) -> Self {
        let mut padded = [0; NAME_SIZE];
        for (to, from) in padded.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Self { start, size, digest, name: padded }
    }

    /// The name for messages; "?" where it is not plain text.
    pub fn name(&self) -> &str {
        let end = self.name.iter().position(|&byte| byte == 0).unwrap_or(NAME_SIZE);
        core::str::from_utf8(&self.name[..end]).unwrap_or("?")
    }

    const EMPTY: Self = Self { start: 0, size: 0, digest: [0; 32], name: [0; NAME_SIZE] };
}

/// Memory that a device tree may lie in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Physical address of the first byte; a multiple of 8.
    pub start: u64,
    /// Length in bytes; 0 where there is no such slot.
    pub size: u64,
}

/// The firmware service that resets a PowerPC partition, from `/rtas` of the running machine's device tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rtas {
    /// Physical address to call (`linux,rtas-entry`); 0 where there is no RTAS.
    pub entry: u64,
    /// Physical address of its private memory (`linux,rtas-base`).
    pub base: u64,
    /// Token of the call `system-reboot`.
    pub system_reboot: u32,
}

/// What the loader tells purgatory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    /// Random bytes that tell this load from every other.
    pub identity: [u8; 16],
    /// Physical address at which the capture kernel is entered. On ppc64 that is its first byte, and it stays where it is
    /// only if the loader made its word at offset 0x5c (`__run_at_load`) a 1.
    pub entry: u64,
    /// Physical address of the capture kernel's boot_params; on ppc64 of the device tree in force.
    pub boot_params: u64,
    /// I/O port of the serial console; 0 where there is none.
    pub serial_port: u16,
    /// Physical address that the first [`BACKUP_SIZE`] bytes of memory are copied to; 0 where they need not be.
    pub backup: u64,
    /// Where a device tree may lie; the one in force lies at the start of one of them.
    pub slots: [Slot; 2],
    /// How to reset a PowerPC partition whose image is damaged.
    pub rtas: Rtas,
    regions: [Region; MAX_REGIONS],
    region_count: usize,
}

impl Params {
    /// Parameters without any region, backup area, tree slot or RTAS.
    pub fn new(identity: [u8; 16], entry: u64, boot_params: u64, serial_port: u16) -> Self {
        Self {
            identity,
            entry,
            boot_params,
            serial_port,
            backup: 0,
            slots: [Slot::default(); 2],
            rtas: Rtas::default(),
            regions: [Region::EMPTY; MAX_REGIONS],
            region_count: 0,
        }
    }

    /// Adds a region to check.
    ///
    /// # Errors
    /// [`ParamsError::RegionCount`] where there is room for no more.
    pub fn push(&mut self, region: Region) -> Result<(), ParamsError> {
        let slot = self
            .regions
            .get_mut(self.region_count)
            .ok_or(ParamsError::RegionCount(MAX_REGIONS as u32 + 1))?;
        *slot = region;
        self.region_count += 1;
        Ok(())
    }

    /// The regions to check.
    pub fn regions(&self) -> &[Region] {
        &self.regions[..self.region_count]
    }

    /// The slot that a device tree at physical address `tree` lies in.
    ///
    /// # Errors
    /// [`TreeError::Place`] where no slot starts there.
    pub fn slot(&self, tree: u64) -> Result<Slot, TreeError> {
        let here = |slot: &&Slot| slot.size != 0 && slot.start == tree;
        self.slots.iter().find(here).copied().ok_or(TreeError::Place(tree))
    }

    /// The block as it lies in memory.
    pub fn to_bytes(&self) -> [u8; PARAMS_SIZE] {
        let mut bytes = [0; PARAMS_SIZE];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.region_count as u32).to_le_bytes());
        bytes[IDENTITY_OFFSET..32].copy_from_slice(&self.identity);
        bytes[32..40].copy_from_slice(&self.entry.to_le_bytes());
        bytes[TREE_OFFSET..48].copy_from_slice(&self.boot_params.to_le_bytes());
        bytes[48..50].copy_from_slice(&self.serial_port.to_le_bytes());
        bytes[BACKUP_OFFSET..SLOTS_OFFSET].copy_from_slice(&self.backup.to_le_bytes());
        for (to, slot) in bytes[SLOTS_OFFSET..RTAS_OFFSET].chunks_exact_mut(SLOT_SIZE).zip(&self.slots) {
            to[0..8].copy_from_slice(&slot.start.to_le_bytes());
            to[8..16].copy_from_slice(&slot.size.to_le_bytes());
        }
        bytes[RTAS_OFFSET..104].copy_from_slice(&self.rtas.entry.to_le_bytes());
        bytes[104..112].copy_from_slice(&self.rtas.base.to_le_bytes());
        bytes[112..116].copy_from_slice(&self.rtas.system_reboot.to_le_bytes());
        for (to, region) in bytes[REGIONS_OFFSET..].chunks_exact_mut(REGION_SIZE).zip(self.regions()) {
            to[0..8].copy_from_slice(&region.start.to_le_bytes());
            to[8..16].copy_from_slice(&region.size.to_le_bytes());
            to[16..48].copy_from_slice(&region.digest);
            to[48..64].copy_from_slice(&region.name);
        }
        bytes
    }

    /// Reads a block back.
    ///
    /// # Errors
    /// Says what is wrong with the block. A region that is empty, at address 0 or past the end of the address space is
    /// refused, so that the caller may turn each into a slice of memory; so are slots and backup areas.
    pub fn parse(bytes: &[u8; PARAMS_SIZE]) -> Result<Self, ParamsError> {
        if bytes[0..8] != MAGIC {
            return Err(ParamsError::Magic);
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(ParamsError::Version(version));
        }
        let count = u32_at(bytes, 12);
        if count as usize > MAX_REGIONS {
            return Err(ParamsError::RegionCount(count));
        }
        let mut params = Self::new(
            array_at(bytes, IDENTITY_OFFSET),
            u64_at(bytes, 32),
            u64_at(bytes, TREE_OFFSET),
            u16_at(bytes, 48),
        );
        params.backup = u64_at(bytes, BACKUP_OFFSET);
        if params.backup.checked_add(BACKUP_SIZE).is_none() {
            return Err(ParamsError::Region { start: params.backup, size: BACKUP_SIZE });
        }
        for (to, from) in
            params.slots.iter_mut().zip(bytes[SLOTS_OFFSET..RTAS_OFFSET].chunks_exact(SLOT_SIZE))
        {
            *to = slot(from)?;
        }
        params.rtas = Rtas {
            entry: u64_at(bytes, RTAS_OFFSET),
            base: u64_at(bytes, 104),
            system_reboot: u32_at(bytes, 112),
        };
        for from in bytes[REGIONS_OFFSET..].chunks_exact(REGION_SIZE).take(count as usize) {
            params.push(region(from)?)?;
        }
        Ok(params)
    }
}

fn region(bytes: &[u8]) -> Result<Region, ParamsError> {
    let (start, size) = (u64_at(bytes, 0), u64_at(bytes, 8));
    if !is_memory(start, size) {
        return Err(ParamsError::Region { start, size });
    }
    Ok(Region { start, size, digest: array_at(bytes, 16), name: array_at(bytes, 48) })
}

fn slot(bytes: &[u8]) -> Result<Slot, ParamsError> {
    let (start, size) = (u64_at(bytes, 0), u64_at(bytes, 8));
    if size != 0 && !(is_memory(start, size) && start.is_multiple_of(8)) {
        return Err(ParamsError::Region { start, size });
    }
    Ok(Slot { start, size })
}

/// Whether a slice of memory may span this.
fn is_memory(start: u64, size: u64) -> bool {
    // isize::MAX is the most that a slice may span.
    start != 0 && size != 0 && size <= isize::MAX as u64 && start.checked_add(size).is_some()
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    core::array::from_fn(|index| bytes[offset + index])
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, offset))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

/// What is wrong with a parameter block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamsError {
    /// The first eight bytes are not the magic.
    Magic,
    /// Another version than [`VERSION`].
    Version(u32),
    /// More than [`MAX_REGIONS`] regions.
    RegionCount(u32),
    /// A region that cannot be memory.
    Region {
        /// Physical address of its first byte.
        start: u64,
        /// Its length in bytes.
        size: u64,
    },
}

impl fmt::Display for ParamsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "parameter block: no magic at its start"),
            Self::Version(found) => {
                write!(f, "parameter block: version {found}, this purgatory knows {VERSION}")
            }
            Self::RegionCount(found) => {
                write!(f, "parameter block: {found} regions, at most {MAX_REGIONS} fit")
            }
            Self::Region { start, size } => {
                write!(f, "parameter block: region of {size:#x} bytes at {start:#x} cannot be memory")
            }
        }
    }
}

impl core::error::Error for ParamsError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Params {
        let mut params = Params::new([3; 16], 0x2d00_0200, 0x2c00_0000, 0x2f8);
        params.push(Region::new("kernel", 0x2d00_0000, 12 << 20, [1; 32])).unwrap();
        params.push(Region::new("a name longer than sixteen", 0x2c00_0000, 4096, [2; 32])).unwrap();
        params.backup = 0x2b00_0000;
        params.slots =
            [Slot { start: 0x2a00_0000, size: 0x1_0000 }, Slot { start: 0x2a10_0000, size: 0x2_0000 }];
        params.rtas = Rtas { entry: 0x1eef_1000, base: 0x1eef_0000, system_reboot: 10 };
        params
    }

    #[test]
    fn what_was_written_is_read_back() {
        let params = sample();
        assert_eq!(Params::parse(&params.to_bytes()), Ok(params));
    }

    #[test]
    fn names_are_cut_to_their_room() {
        assert_eq!(sample().regions()[1].name(), "a name longer th");
    }

    #[test]
    fn a_seventeenth_region_is_refused() {
        let mut params = Params::new([0; 16], 1, 1, 0);
        for _ in 0..MAX_REGIONS {
            params.push(Region::new("r", 1, 1, [0; 32])).unwrap();
        }
        assert_eq!(params.push(Region::new("r", 1, 1, [0; 32])), Err(ParamsError::RegionCount(17)));
    }

    #[test]
    fn damage_is_named() {
        let cases: &[(usize, &[u8], ParamsError)] = &[
            (0, b"X", ParamsError::Magic),
            (8, &[3], ParamsError::Version(3)),
            (12, &[17], ParamsError::RegionCount(17)),
            (56, &[0xff; 8], ParamsError::Region { start: u64::MAX, size: BACKUP_SIZE }),
            (64, &[0; 8], ParamsError::Region { start: 0, size: 0x1_0000 }),
            (80, &[4], ParamsError::Region { start: 0x2a10_0004, size: 0x2_0000 }),
            (88, &[0xff; 8], ParamsError::Region { start: 0x2a10_0000, size: u64::MAX }),
            (120, &[0; 8], ParamsError::Region { start: 0, size: 12 << 20 }),
            (128, &[0; 8], ParamsError::Region { start: 0x2d00_0000, size: 0 }),
            (120, &[0xff; 8], ParamsError::Region { start: u64::MAX, size: 12 << 20 }),
            (128, &[0xff; 8], ParamsError::Region { start: 0x2d00_0000, size: u64::MAX }),
        ];
        for (offset, change, expected) in cases {
            let mut bytes = sample().to_bytes();
            bytes[*offset..*offset + change.len()].copy_from_slice(change);
            assert_eq!(Params::parse(&bytes), Err(*expected), "{change:x?} at {offset}");
        }
    }

    #[test]
    fn a_tree_lies_at_the_start_of_a_slot() {
        let mut params = sample();
        assert_eq!(params.slot(0x2a10_0000), Ok(params.slots[1]));
        for tree in [0, 0x2a00_0008, 0x2c00_0000] {
            assert_eq!(params.slot(tree), Err(TreeError::Place(tree)));
        }
        params.slots[0] = Slot::default();
        assert_eq!(params.slot(0), Err(TreeError::Place(0)), "a slot that is not there");
    }

    #[test]
    fn the_word_of_the_tree_is_where_the_module_looks_for_it() {
        let bytes = sample().to_bytes();
        assert_eq!(u64_at(&bytes, TREE_OFFSET), 0x2c00_0000);
        assert_eq!(TREE_OFFSET % 8, 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            mut bytes in proptest::collection::vec(any::<u8>(), PARAMS_SIZE),
            count in 0u32..20,
            slots in any::<bool>(),
        ) {
            bytes[0..8].copy_from_slice(&MAGIC);
            bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
            bytes[12..16].copy_from_slice(&count.to_le_bytes());
            if !slots {
                bytes[BACKUP_OFFSET..RTAS_OFFSET].fill(0);
            }
            let block: &[u8; PARAMS_SIZE] = bytes.as_slice().try_into().unwrap();
            if let Ok(params) = Params::parse(block) {
                prop_assert_eq!(params.regions().len(), count as usize);
                for region in params.regions() {
                    prop_assert!(region.start.checked_add(region.size).is_some());
                }
                for slot in params.slots {
                    prop_assert!(slot.start.checked_add(slot.size).is_some());
                }
            }
        }
    }
}
