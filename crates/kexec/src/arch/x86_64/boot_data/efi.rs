//! What EFI gave the running kernel and the capture kernel wants as well.

use host::{Efi, EfiRuntimeRegion};

/// Offset and fields of `struct efi_info` in boot_params (Documentation/arch/x86/zero-page.rst; include/uapi/asm/bootparam.h).
pub(super) mod info {
    pub(crate) const SIGNATURE: usize = 0x1c0;
    pub(crate) const SYSTAB: usize = 0x1c4;
    pub(crate) const MEMDESC_SIZE: usize = 0x1c8;
    pub(crate) const MEMDESC_VERSION: usize = 0x1cc;
    pub(crate) const MEMMAP: usize = 0x1d0;
    pub(crate) const MEMMAP_SIZE: usize = 0x1d4;
    pub(crate) const SYSTAB_HI: usize = 0x1d8;
    pub(crate) const MEMMAP_HI: usize = 0x1dc;
}

/// A 64-bit EFI; a 32-bit one ("EL32") cannot be called by a kernel that was started from a 64-bit kernel.
pub(super) const SIGNATURE_64: [u8; 4] = *b"EL64";

/// Bytes of an EFI memory descriptor: type (4), padding (4), physical (8), virtual (8), pages (8), attribute (8).
pub(super) const DESCRIPTOR_SIZE: usize = 40;

/// The runtime regions, mapped where the running kernel mapped them: EFI takes virtual addresses only once a boot.
pub(super) fn runtime_map(efi: &Efi) -> Vec<u8> {
    efi.runtime_map.iter().flat_map(descriptor).collect()
}

fn descriptor(region: &EfiRuntimeRegion) -> [u8; DESCRIPTOR_SIZE] {
    let mut bytes = [0; DESCRIPTOR_SIZE];
    bytes[0..4].copy_from_slice(&region.kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&region.phys_addr.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&region.virt_addr.to_le_bytes());
    bytes[24..32].copy_from_slice(&region.num_pages.to_le_bytes());
    bytes[32..40].copy_from_slice(&region.attribute.to_le_bytes());
    bytes
}

/// The contents of SETUP_EFI, `struct efi_setup_data` (arch/x86/include/asm/efi.h): vendor, unused, configuration tables,
/// SMBIOS, 8 reserved, 8 bytes each. SMBIOS is left 0, which tells the kernel to take it from the tables as they are.
pub(super) fn setup_data(efi: &Efi) -> Vec<u8> {
    let mut words = [0u64; 12];
    words[0] = efi.fw_vendor.0;
    words[2] = efi.config_table.0;
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use elfcorehdr::PhysAddr;

    #[test]
    fn a_descriptor_lies_in_memory_as_efi_says() {
        let region = EfiRuntimeRegion {
            kind: 6,
            phys_addr: PhysAddr(0x7f00_0000),
            virt_addr: 0xffff_fffe_fee0_0000,
            num_pages: 0x30,
            attribute: 0x8000_0000_0000_000f,
        };
        let efi = Efi {
            fw_vendor: PhysAddr(0x7e00_0018),
            runtime: PhysAddr(1),
            config_table: PhysAddr(0x7e00_0100),
            runtime_map: vec![region; 2],
        };
        let map = runtime_map(&efi);
        assert_eq!(map.len(), 2 * DESCRIPTOR_SIZE);
        let expected = b"\x06\0\0\0\0\0\0\0\0\0\0\x7f\0\0\0\0\0\0\xe0\xfe\xfe\xff\xff\xff\x30\0\0\0\0\0\0\0\x0f\0\0\0\0\0\0\x80";
        assert_eq!(&map[DESCRIPTOR_SIZE..], expected);
        let data = setup_data(&efi);
        assert_eq!(data.len(), 96);
        assert_eq!(data[..8], 0x7e00_0018u64.to_le_bytes());
        assert_eq!(data[16..24], 0x7e00_0100u64.to_le_bytes());
    }
}
