//! What the capture kernel is told: boot_params, the command line, and the setup_data list, in one piece.
//!
//! boot_params starts as zeros with the setup header out of the kernel file, as the boot protocol asks. What the running
//! kernel was told by its firmware comes along: screen, ACPI's root pointer, disks as the BIOS saw them, EFI.

mod e820;
mod efi;

use elfcorehdr::{PhysAddr, RangeVec};
use host::{FirmwareRange, Host};

use self::efi::info;
use super::PAGE;
use super::image::{BzImage, field};
use crate::error::PlanError;
use crate::plan::{Told, Warning};

/// Offsets in boot_params outside the setup header (Documentation/arch/x86/zero-page.rst).
mod zero_page {
    pub(super) const SCREEN_INFO_EXT_MEM_K: usize = 0x02;
    pub(super) const ACPI_RSDP_ADDR: usize = 0x70;
    pub(super) const EXT_RAMDISK_IMAGE: usize = 0xc0;
    pub(super) const EXT_RAMDISK_SIZE: usize = 0xc4;
    pub(super) const EXT_CMD_LINE_PTR: usize = 0xc8;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

/// Size of boot_params.
const ZERO_PAGE: usize = 4096;

/// Fields that are taken from the running kernel's boot_params as they are: offset, size, name.
const INHERITED: [(usize, usize, &str); 6] = [
    (0x000, 0x40, "screen_info"),
    (0x1e9, 2, "eddbuf_entries, edd_mbr_sig_buf_entries"),
    (0x1ec, 1, "secure_boot"),
    (field::HARDWARE_SUBARCH, 4, "hardware_subarch"),
    (0x290, 0x40, "edd_mbr_sig_buffer"),
    (0xd00, 6 * 82, "eddbuf"),
];

/// Entries that e820_table in boot_params holds (E820_MAX_ENTRIES_ZEROPAGE); more go to SETUP_E820_EXT.
const E820_MAX: usize = 128;

/// kexec's number as a boot loader, 0xd, in the high four bits.
const TYPE_OF_LOADER: u8 = 0xd0;
const LOADED_HIGH: u8 = 1;

const SETUP_E820_EXT: u32 = 1;
const SETUP_EFI: u32 = 4;
const SETUP_RNG_SEED: u32 = 9;
/// `struct setup_data`: next (8), type (4), length (4).
const SETUP_DATA_HEADER: usize = 16;

/// Addresses of 5-level paging's direct map lie below those of 4-level paging's (Documentation/arch/x86/x86_64/mm.rst).
const LOWEST_4_LEVEL: u64 = 0xffff_8000_0000_0000;

/// Boot data that lacks only the addresses.
pub(crate) struct BootData {
    zero_page: Vec<u8>,
    cmdline: Vec<u8>,
    efi_map: Vec<u8>,
    setup_data: Vec<(u32, Vec<u8>)>,
    capture_memory: RangeVec,
}

impl BootData {
    /// What to tell `image` on this machine.
    pub(crate) fn new(
        told: &Told<'_>,
        image: &BzImage<'_>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, PlanError> {
        let host = told.host;
        check_paging(host, image)?;
        if told.tree.is_some() {
            return Err(PlanError::TakesNoTree);
        }
        let running = host.boot_params().unwrap_or_else(|_| {
            warnings.push(Warning::NoBootParams);
            Vec::new()
        });
        let mut boot = Self {
            zero_page: inherit(image, &running),
            cmdline: [told.cmdline.as_bytes(), b"\0"].concat(),
            efi_map: Vec::new(),
            setup_data: Vec::new(),
            capture_memory: RangeVec::new(),
        };
        if let Some(rsdp) = host.acpi_rsdp()? {
            boot.put(zero_page::ACPI_RSDP_ADDR, &rsdp.0.to_le_bytes());
        }
        boot.set_memory(&host.firmware_memmap()?, &told.own());
        boot.set_efi(host, image, &running)?;
        boot.setup_data.push((SETUP_RNG_SEED, told.random.seed.to_vec()));
        Ok(boot)
    }

    fn set_memory(&mut self, firmware: &[FirmwareRange], own: &RangeVec) {
        self.capture_memory = e820::capture_memory(firmware, own);
        let entries = e820::entries(firmware, &self.capture_memory);
        let (first, more) = entries.split_at(entries.len().min(E820_MAX));
        self.put(zero_page::E820_ENTRIES, &[first.len() as u8]);
        for (index, entry) in first.iter().enumerate() {
            self.put(zero_page::E820_TABLE + index * e820::ENTRY_SIZE, &entry.bytes());
        }
        if !more.is_empty() {
            self.setup_data.push((SETUP_E820_EXT, more.iter().flat_map(|entry| entry.bytes()).collect()));
        }
    }

    fn set_efi(&mut self, host: &Host, image: &BzImage<'_>, running: &[u8]) -> Result<(), PlanError> {
        let signature = running.get(info::SIGNATURE..).and_then(|rest| rest.first_chunk::<4>());
        if signature != Some(&efi::SIGNATURE_64) || !image.takes_efi() {
            return Ok(());
        }
        let Some(efi) = host.efi()? else {
            return Ok(());
        };
        for (offset, size) in
            [(info::SIGNATURE, 4), (info::SYSTAB, 4), (info::MEMDESC_VERSION, 4), (info::SYSTAB_HI, 4)]
        {
            if let Some(bytes) = running.get(offset..offset + size) {
                self.put(offset, bytes);
            }
        }
        self.efi_map = efi::runtime_map(&efi);
        self.put(info::MEMDESC_SIZE, &(efi::DESCRIPTOR_SIZE as u32).to_le_bytes());
        self.put(info::MEMMAP_SIZE, &(self.efi_map.len() as u32).to_le_bytes());
        self.setup_data.push((SETUP_EFI, efi::setup_data(&efi)));
        Ok(())
    }

    /// All memory that the capture kernel is told it may use.
    pub(crate) fn capture_memory(&self) -> &[elfcorehdr::PhysRange] {
        self.capture_memory.as_slice()
    }

    /// Bytes of it all.
    pub(crate) fn size(&self) -> u64 {
        let (_, end) = self.places();
        end as u64
    }

    /// Offsets of the EFI map and of each setup_data entry, and the end.
    fn places(&self) -> (Vec<usize>, usize) {
        let mut end = ZERO_PAGE + self.cmdline.len();
        let sizes = self.setup_data.iter().map(|(_, data)| SETUP_DATA_HEADER + data.len());
        let places = [self.efi_map.len()].into_iter().chain(sizes);
        let places = places
            .map(|size| {
                let place = end.next_multiple_of(16);
                end = place + size;
                place
            })
            .collect();
        (places, end)
    }

    /// The bytes for their place at `base`, with the initrd's address and size.
    pub(crate) fn bytes(&self, base: PhysAddr, initrd: Option<(PhysAddr, usize)>) -> Vec<u8> {
        let (places, end) = self.places();
        let address = |place: usize| base.0.wrapping_add(place as u64);
        let mut bytes = vec![0; end];
        put(&mut bytes, 0, &self.zero_page);
        put(&mut bytes, ZERO_PAGE, &self.cmdline);
        put_halves(&mut bytes, address(ZERO_PAGE), field::CMD_LINE_PTR, zero_page::EXT_CMD_LINE_PTR);
        if let Some((start, size)) = initrd {
            put_halves(&mut bytes, start.0, field::RAMDISK_IMAGE, zero_page::EXT_RAMDISK_IMAGE);
            put_halves(&mut bytes, size as u64, field::RAMDISK_SIZE, zero_page::EXT_RAMDISK_SIZE);
        }
        let mut places = places.into_iter();
        if let Some(place) = places.next().filter(|_| !self.efi_map.is_empty()) {
            put(&mut bytes, place, &self.efi_map);
            put_halves(&mut bytes, address(place), info::MEMMAP, info::MEMMAP_HI);
        }
        let mut next = 0;
        for (place, (kind, data)) in places.zip(&self.setup_data) {
            put(&mut bytes, place, &u64::to_le_bytes(next));
            put(&mut bytes, place + 8, &kind.to_le_bytes());
            put(&mut bytes, place + 12, &(data.len() as u32).to_le_bytes());
            put(&mut bytes, place + SETUP_DATA_HEADER, data);
            next = address(place);
        }
        put(&mut bytes, field::SETUP_DATA, &next.to_le_bytes());
        bytes
    }

    fn put(&mut self, offset: usize, value: &[u8]) {
        put(&mut self.zero_page, offset, value);
    }
}

/// boot_params with the kernel's setup header and what comes from the running kernel.
fn inherit(image: &BzImage<'_>, running: &[u8]) -> Vec<u8> {
    let mut page = vec![0; ZERO_PAGE];
    put(&mut page, field::SETUP_SECTS, image.setup_header());
    for (offset, size, _) in INHERITED {
        if let Some(bytes) = running.get(offset..offset + size) {
            put(&mut page, offset, bytes);
        }
    }
    // Memory size in the way of 1995: the memory map says it.
    put(&mut page, zero_page::SCREEN_INFO_EXT_MEM_K, &[0; 2]);
    put(&mut page, field::TYPE_OF_LOADER, &[TYPE_OF_LOADER]);
    put(&mut page, field::LOADFLAGS, &[LOADED_HIGH]);
    page
}

/// A kernel is entered in the paging mode of the running one, and has to know it.
fn check_paging(host: &Host, image: &BzImage<'_>) -> Result<(), PlanError> {
    let direct_map = host.kcore().ok().and_then(|kcore| kcore.direct_map_offset());
    let five_levels = direct_map.is_some_and(|offset| offset < LOWEST_4_LEVEL);
    if five_levels && !image.knows_five_levels() { Err(PlanError::FiveLevel) } else { Ok(()) }
}

/// Writes `value` at `offset`; all offsets are below sizes that were added up from the same numbers.
fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(offset..).and_then(|rest| rest.get_mut(..value.len())) {
        place.copy_from_slice(value);
    }
}

/// Writes a 64-bit value into two 32-bit fields.
fn put_halves(bytes: &mut [u8], value: u64, low: usize, high: usize) {
    put(bytes, low, &(value as u32).to_le_bytes());
    put(bytes, high, &((value >> 32) as u32).to_le_bytes());
}

const _: () = assert!(ZERO_PAGE as u64 == PAGE);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::image::sample;
    use crate::plan::Random;
    use elfcorehdr::PhysRange;
    use host::FirmwareKind;

    const BASE: PhysAddr = PhysAddr(0x1_2345_6000);
    const RANDOM: Random = Random { identity: [1; 16], seed: [2; 32] };

    fn machine(name: &str) -> Host {
        let path = format!("{}/../host/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        Host::recorded(path, elfcorehdr::Machine::X86_64)
    }

    fn own() -> RangeVec {
        [PhysRange::from_len(PhysAddr(0x6b00_0000), 0xf00_0000).unwrap()].into_iter().collect()
    }

    fn boot_data(name: &str, kernel: &[u8]) -> BootData {
        let image = BzImage::parse(kernel).unwrap();
        let mut warnings = Vec::new();
        let (reserved, hidden) = (own(), RangeVec::new());
        let host = machine(name);
        let told = Told {
            host: &host,
            reserved: &reserved,
            hidden: &hidden,
            random: &RANDOM,
            cmdline: "a b",
            tree: None,
        };
        let boot = BootData::new(&told, &image, &mut warnings).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        boot
    }

    fn u32_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from(u32::from_le_bytes(*bytes[offset..].first_chunk().unwrap()))
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(*bytes[offset..].first_chunk().unwrap())
    }

    /// Follows the setup_data list as a kernel does: type and contents of each entry.
    fn setup_data(bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut list = Vec::new();
        let mut at = u64_at(bytes, field::SETUP_DATA);
        while at != 0 {
            assert_eq!(at % 16, 0);
            let entry = &bytes[usize::try_from(at - BASE.0).unwrap()..];
            let (kind, size) = (u32_at(entry, 8), usize::try_from(u32_at(entry, 12)).unwrap());
            list.push((kind, entry[SETUP_DATA_HEADER..SETUP_DATA_HEADER + size].to_vec()));
            at = u64_at(entry, 0);
        }
        list
    }

    #[test]
    fn the_kernel_finds_its_command_line_and_initrd() {
        let kernel = sample(2048);
        let boot = boot_data("debian-6.1", &kernel);
        let bytes = boot.bytes(BASE, Some((PhysAddr(0x3_0000_0000), 0x1_0000_0123)));
        assert_eq!(bytes.len() as u64, boot.size());
        let cmdline = u32_at(&bytes, field::CMD_LINE_PTR) | u32_at(&bytes, zero_page::EXT_CMD_LINE_PTR) << 32;
        assert_eq!(&bytes[usize::try_from(cmdline - BASE.0).unwrap()..][..4], b"a b\0");
        let initrd =
            u32_at(&bytes, field::RAMDISK_IMAGE) | u32_at(&bytes, zero_page::EXT_RAMDISK_IMAGE) << 32;
        let size = u32_at(&bytes, field::RAMDISK_SIZE) | u32_at(&bytes, zero_page::EXT_RAMDISK_SIZE) << 32;
        assert_eq!((initrd, size), (0x3_0000_0000, 0x1_0000_0123));
        assert_eq!(bytes[field::TYPE_OF_LOADER], 0xd0);
        assert_eq!(bytes[field::HEADER..field::HEADER + 4], *b"HdrS");
        // The sentinel of a bootloader that copied too much.
        assert_eq!(bytes[0x1ef], 0);
    }

    #[test]
    fn a_bios_machine_gets_random_numbers_only() {
        let kernel = sample(2048);
        let bytes = boot_data("debian-6.1", &kernel).bytes(BASE, None);
        assert_eq!(setup_data(&bytes), [(9, vec![2; 32])]);
        assert_eq!(bytes[info::SIGNATURE..info::SIGNATURE + 32], [0; 32]);
    }

    #[test]
    fn an_efi_machine_hands_efi_on() {
        let kernel = sample(2048);
        let host = machine("debian-6.12-uefi");
        let efi = host.efi().unwrap().unwrap();
        let running = host.boot_params().unwrap();
        let bytes = boot_data("debian-6.12-uefi", &kernel).bytes(BASE, None);
        assert_eq!(bytes[info::SIGNATURE..info::SIGNATURE + 4], *b"EL64");
        assert_eq!(u32_at(&bytes, info::SYSTAB), u32_at(&running, info::SYSTAB));
        assert_eq!(u32_at(&bytes, info::MEMMAP_SIZE), 40 * efi.runtime_map.len() as u64);
        let map = u32_at(&bytes, info::MEMMAP) | u32_at(&bytes, info::MEMMAP_HI) << 32;
        let map = &bytes[usize::try_from(map - BASE.0).unwrap()..];
        assert_eq!(u64_at(map, 8), efi.runtime_map[0].phys_addr.0);
        assert_eq!(u64_at(map, 16), efi.runtime_map[0].virt_addr);
        let list = setup_data(&bytes);
        assert_eq!(list.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [9, 4]);
        assert_eq!(u64_at(&list[1].1, 16), efi.config_table.0);
        assert_ne!(u64_at(&bytes, zero_page::ACPI_RSDP_ADDR), 0);
    }

    #[test]
    fn a_kernel_that_does_not_take_efi_gets_none() {
        let mut kernel = sample(2048);
        kernel[field::XLOADFLAGS] &= !(1 << 4);
        let bytes = boot_data("debian-6.12-uefi", &kernel).bytes(BASE, None);
        assert_eq!(bytes[info::SIGNATURE..info::SIGNATURE + 32], [0; 32]);
        assert_ne!(u64_at(&bytes, zero_page::ACPI_RSDP_ADDR), 0);
    }

    #[test]
    fn entries_past_the_zero_page_go_to_setup_data() {
        let kernel = sample(2048);
        for count in [0u64, 126, 127, 128, 300] {
            let mut boot = boot_data("debian-6.1", &kernel);
            boot.setup_data.clear();
            let firmware: Vec<FirmwareRange> = (0..count)
                .map(|index| FirmwareRange {
                    range: PhysRange::from_len(PhysAddr((1 << 32) + index * 0x2000), 0x1000).unwrap(),
                    kind: FirmwareKind::Reserved,
                })
                .collect();
            boot.set_memory(&firmware, &own());
            let bytes = boot.bytes(BASE, None);
            let first = usize::from(bytes[zero_page::E820_ENTRIES]);
            let more: usize = setup_data(&bytes)
                .iter()
                .map(|(kind, data)| {
                    assert_eq!(*kind, 1);
                    data.len() / 20
                })
                .sum();
            // One entry is the reservation.
            assert_eq!((first as u64).min(128), (count + 1).min(128), "{count}");
            assert_eq!((first + more) as u64, count + 1, "{count}");
        }
    }
}
