//! What the firmware said of the machine.

use crate::error::Fault;
use crate::files::hex;
use elfcorehdr::{PhysAddr, PhysRange, RangeVec};

/// Kind of a range of the firmware's memory map (x86: E820 types, as the kernel names them).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FirmwareKind {
    /// Usable memory.
    SystemRam,
    /// Not to be touched.
    Reserved,
    /// ACPI tables, usable once they are read.
    AcpiTables,
    /// Memory that the firmware keeps for sleep states.
    AcpiNvs,
    /// Broken memory.
    Unusable,
    /// Persistent memory.
    PersistentMemory,
    /// Persistent memory by the number that came before the standard's.
    PersistentMemoryLegacy,
    /// Memory for a special purpose, such as high-bandwidth memory.
    SoftReserved,
    /// A kind that this program does not know, by its name.
    Other(String),
}

impl FirmwareKind {
    /// The kind that the kernel gives this name in `/sys/firmware/memmap/*/type`. Case does not count: older kernels
    /// wrote `reserved`.
    pub(crate) fn from_name(name: &str) -> Self {
        const NAMES: [(&str, FirmwareKind); 8] = [
            ("System RAM", FirmwareKind::SystemRam),
            ("Reserved", FirmwareKind::Reserved),
            ("ACPI Tables", FirmwareKind::AcpiTables),
            ("ACPI Non-volatile Storage", FirmwareKind::AcpiNvs),
            ("Unusable memory", FirmwareKind::Unusable),
            ("Persistent Memory", FirmwareKind::PersistentMemory),
            ("Persistent Memory (legacy)", FirmwareKind::PersistentMemoryLegacy),
            ("Soft Reserved", FirmwareKind::SoftReserved),
        ];
        let known = NAMES.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        known.map_or_else(|| Self::Other(name.to_owned()), |(_, kind)| kind)
    }
}

/// One range of the firmware's memory map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareRange {
    /// The addresses.
    pub range: PhysRange,
    /// What they are.
    pub kind: FirmwareKind,
}

/// Parses the three files of an entry of `/sys/firmware/memmap`: start, last address (included), type.
pub(crate) fn parse_memmap_entry(start: &str, last: &str, kind: &str) -> Result<FirmwareRange, Fault> {
    let range = PhysRange::from_inclusive(PhysAddr(hex(start)?), PhysAddr(hex(last)?))
        .ok_or_else(|| Fault::new(&format!("{start} to {last}"), "a range that ends past its start"))?;
    Ok(FirmwareRange { range, kind: FirmwareKind::from_name(kind) })
}

/// What EFI left behind for a next kernel (`/sys/firmware/efi`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Efi {
    /// Physical address of the vendor's name.
    pub fw_vendor: PhysAddr,
    /// Physical address of the runtime services table.
    pub runtime: PhysAddr,
    /// Physical address of the configuration table.
    pub config_table: PhysAddr,
    /// The runtime regions and where the first kernel mapped them, by number.
    pub runtime_map: Vec<EfiRuntimeRegion>,
}

/// A region that EFI's runtime services use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EfiRuntimeRegion {
    /// EFI memory type.
    pub kind: u32,
    /// First physical address.
    pub phys_addr: PhysAddr,
    /// Virtual address that the first kernel mapped it at; EFI allows that to be set only once a boot.
    pub virt_addr: u64,
    /// Size in EFI pages of 4 KiB.
    pub num_pages: u64,
    /// EFI memory attributes.
    pub attribute: u64,
}

/// An entry of the boot parameters' setup_data list (`/sys/kernel/boot_params/setup_data`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupData {
    /// Its type (SETUP_* of the x86 boot protocol).
    pub kind: u32,
    /// Its contents.
    pub data: Vec<u8>,
}

/// Offset of `acpi_rsdp_addr`, 8 bytes, in the x86 boot parameters (Documentation/arch/x86/zero-page.rst).
const ACPI_RSDP_ADDR: usize = 0x70;

/// The ACPI root pointer that the boot loader handed over, if it did.
pub(crate) fn rsdp_in_boot_params(boot_params: &[u8]) -> Option<PhysAddr> {
    let field = boot_params.get(ACPI_RSDP_ADDR..)?.first_chunk::<8>()?;
    Some(u64::from_le_bytes(*field)).filter(|address| *address != 0).map(PhysAddr)
}

/// Offsets of the memory map in the x86 boot parameters (zero-page.rst): how many entries, one byte, and the first of them.
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
/// Bytes of an entry: start and size, 8 bytes each, and a type, 4 bytes.
const E820_ENTRY: usize = 20;
/// The type of usable memory.
const E820_RAM: u32 = 1;
/// The kind of [`SetupData`] with the entries that did not fit there (SETUP_E820_EXT).
const SETUP_E820_EXT: u32 = 1;

/// Usable memory in the memory map that the x86 boot parameters carry, with what `setup_data` adds; `None` if they have no map.
pub(crate) fn ram_in_boot_params(boot_params: &[u8], setup_data: &[SetupData]) -> Option<RangeVec> {
    let count = usize::from(*boot_params.get(E820_ENTRIES)?);
    let table = boot_params.get(E820_TABLE..)?.get(..count * E820_ENTRY)?;
    let more =
        setup_data.iter().filter(|entry| entry.kind == SETUP_E820_EXT).map(|entry| entry.data.as_slice());
    let ram: RangeVec = std::iter::once(table).chain(more).flat_map(e820_ram).collect();
    (!ram.is_empty()).then_some(ram)
}

/// Usable memory in a table of E820 entries.
fn e820_ram(table: &[u8]) -> impl Iterator<Item = PhysRange> {
    table.chunks_exact(E820_ENTRY).filter_map(|entry| {
        let (start, rest) = entry.split_first_chunk::<8>()?;
        let (size, kind) = rest.split_first_chunk::<8>()?;
        let is_ram = u32::from_le_bytes(*kind.first_chunk()?) == E820_RAM;
        is_ram
            .then(|| PhysRange::from_len(PhysAddr(u64::from_le_bytes(*start)), u64::from_le_bytes(*size)))?
    })
}

/// The ACPI root pointer in the text of `/sys/firmware/efi/systab`: ACPI 2.0's, else 1.0's.
pub(crate) fn rsdp_in_systab(text: &str) -> Result<Option<PhysAddr>, Fault> {
    for key in ["ACPI20=", "ACPI="] {
        if let Some(value) = text.lines().find_map(|line| line.strip_prefix(key)) {
            return hex(value.trim()).map(|address| Some(PhysAddr(address)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn e820(entries: &[(u64, u64, u32)]) -> Vec<u8> {
        let entry = |(start, size, kind): &(u64, u64, u32)| {
            [&start.to_le_bytes()[..], &size.to_le_bytes(), &kind.to_le_bytes()].concat()
        };
        entries.iter().flat_map(entry).collect()
    }

    #[test]
    fn memory_that_was_there_at_boot() {
        let table =
            e820(&[(0, 0x9fc00, 1), (0xf0000, 0x10000, 2), (0x10_0000, 0x3ff0_0000, 1), (u64::MAX, 2, 1)]);
        let mut params = vec![0; 4096];
        params[E820_TABLE..][..table.len()].copy_from_slice(&table);
        assert_eq!(ram_in_boot_params(&params, &[]), None);
        params[E820_ENTRIES] = 4;
        let range = |start, len| PhysRange::from_len(PhysAddr(start), len).unwrap();
        let low = [range(0, 0x9fc00), range(0x10_0000, 0x3ff0_0000)];
        assert_eq!(ram_in_boot_params(&params, &[]), Some(low.into_iter().collect()));
        let more = SetupData { kind: SETUP_E820_EXT, data: e820(&[(1 << 32, 1 << 30, 1)]) };
        let other = SetupData { kind: 9, data: e820(&[(1 << 40, 1 << 30, 1)]) };
        let all = low.into_iter().chain([range(1 << 32, 1 << 30)]).collect();
        assert_eq!(ram_in_boot_params(&params, &[more, other]), Some(all));
        params[E820_ENTRIES] = 255;
        assert_eq!(ram_in_boot_params(&params, &[]), None, "the table would pass the end");
        assert_eq!(ram_in_boot_params(&[], &[]), None);
    }

    #[test]
    fn kinds_by_name() {
        let cases = [
            ("System RAM", FirmwareKind::SystemRam),
            ("reserved", FirmwareKind::Reserved),
            ("ACPI Tables", FirmwareKind::AcpiTables),
            ("ACPI Non-volatile Storage", FirmwareKind::AcpiNvs),
            ("Unusable memory", FirmwareKind::Unusable),
            ("Persistent Memory", FirmwareKind::PersistentMemory),
            ("Persistent Memory (legacy)", FirmwareKind::PersistentMemoryLegacy),
            ("Soft Reserved", FirmwareKind::SoftReserved),
            ("Unknown E820 type", FirmwareKind::Other("Unknown E820 type".to_owned())),
        ];
        for (name, kind) in cases {
            assert_eq!(FirmwareKind::from_name(name), kind);
        }
    }

    #[test]
    fn root_pointer() {
        let mut boot_params = vec![0; 4096];
        assert_eq!(rsdp_in_boot_params(&boot_params), None);
        boot_params[0x70..0x78].copy_from_slice(&0x7f77_d014_u64.to_le_bytes());
        assert_eq!(rsdp_in_boot_params(&boot_params), Some(PhysAddr(0x7f77_d014)));
        assert_eq!(rsdp_in_boot_params(&boot_params[..0x77]), None, "cut short");
        let both = "ACPI=0x7f77d000\nACPI20=0x7f77d014\nSMBIOS=0x7f520000\n";
        assert_eq!(rsdp_in_systab(both), Ok(Some(PhysAddr(0x7f77_d014))));
        assert_eq!(rsdp_in_systab("SMBIOS=0x1\nACPI=0x7f77d000"), Ok(Some(PhysAddr(0x7f77_d000))));
        assert_eq!(rsdp_in_systab("SMBIOS=0x1"), Ok(None));
        assert_eq!(rsdp_in_systab("ACPI20=soon").unwrap_err().found, "soon");
    }

    proptest! {
        #[test]
        fn entries_read_back(start in 0..1u64 << 52, len in 1..1u64 << 52) {
            let range = PhysRange::from_len(PhysAddr(start), len).unwrap();
            let (first, last) = (format!("{start:#x}"), format!("{:#x}", start + len - 1));
            let kind = FirmwareKind::SystemRam;
            prop_assert_eq!(parse_memmap_entry(&first, &last, "System RAM"), Ok(FirmwareRange { range, kind }));
            prop_assert!(len == 1 || parse_memmap_entry(&last, &first, "System RAM").is_err());
        }

        #[test]
        fn any_entry_is_taken_or_refused(start in ".{0,20}", last in "(0x)?[0-9a-f]{0,17}", kind in ".{0,9}") {
            if let Ok(entry) = parse_memmap_entry(&start, &last, &kind) {
                prop_assert!(!entry.range.is_empty());
            }
        }
    }
}
