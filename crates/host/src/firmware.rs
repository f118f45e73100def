//! What the firmware said of the machine.

use crate::error::Fault;
use crate::files::hex;
use elfcorehdr::{PhysAddr, PhysRange};

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
