//! bzImage: the kernel as distributions install it.

use std::borrow::Cow;

use elfcorehdr::{PhysAddr, PhysRange};

use super::{FOUR_GIB, MIB, PAGE};
use crate::error::{ImageError, PlanError};
use crate::foreign;
use crate::layout::Space;

/// Offsets in the setup header, from the start of the file and, alike, of boot_params (Documentation/arch/x86/boot.rst,
/// "Details of Header Fields").
pub(super) mod field {
    pub(crate) const SETUP_SECTS: usize = 0x1f1;
    pub(crate) const SYSSIZE: usize = 0x1f4;
    pub(crate) const BOOT_FLAG: usize = 0x1fe;
    pub(crate) const JUMP_LENGTH: usize = 0x201;
    pub(crate) const HEADER: usize = 0x202;
    pub(crate) const VERSION: usize = 0x206;
    pub(crate) const TYPE_OF_LOADER: usize = 0x210;
    pub(crate) const LOADFLAGS: usize = 0x211;
    pub(crate) const RAMDISK_IMAGE: usize = 0x218;
    pub(crate) const RAMDISK_SIZE: usize = 0x21c;
    pub(crate) const CMD_LINE_PTR: usize = 0x228;
    pub(crate) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(crate) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(crate) const RELOCATABLE_KERNEL: usize = 0x234;
    pub(crate) const XLOADFLAGS: usize = 0x236;
    pub(crate) const CMDLINE_SIZE: usize = 0x238;
    pub(crate) const HARDWARE_SUBARCH: usize = 0x23c;
    pub(crate) const PAYLOAD_OFFSET: usize = 0x248;
    pub(crate) const PAYLOAD_LENGTH: usize = 0x24c;
    pub(crate) const SETUP_DATA: usize = 0x250;
    pub(crate) const PREF_ADDRESS: usize = 0x258;
    pub(crate) const INIT_SIZE: usize = 0x260;
}

const SECTOR: u64 = 512;
/// The first byte behind the last field that is read here (init_size).
const HEADER_END: usize = field::INIT_SIZE + 4;
/// The setup header may fill boot_params up to edd_mbr_sig_buffer.
const HEADER_LIMIT: usize = 0x290;
/// 2.12 brought xloadflags, and with it the 64-bit boot protocol (Linux 3.8).
const OLDEST_PROTOCOL: u16 = 0x020c;

const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
const XLF_EFI_KEXEC: u16 = 1 << 4;
const XLF_5LEVEL: u16 = 1 << 5;

/// Alignments that a kernel can ask for: CONFIG_PHYSICAL_ALIGN goes from 2 MiB to 16 MiB on x86_64. More is room.
const MAX_ALIGNMENT: u64 = 1 << 30;
/// The most that a kernel can want to run in: a kernel cannot be larger than its mapping (KERNEL_IMAGE_SIZE).
const MAX_INIT_SIZE: u64 = 1 << 30;

/// A kernel that passed all checks that need no machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BzImage<'a> {
    file: &'a [u8],
    /// The setup header: file bytes from 0x1f1 up to here.
    header_end: usize,
    /// Where the 64-bit part begins in the file.
    setup_size: usize,
    init_size: u64,
    alignment: u64,
    pref_address: u64,
    relocatable: bool,
    xloadflags: u16,
    cmdline_size: u32,
    initrd_addr_max: u32,
}

impl<'a> BzImage<'a> {
    /// Reads the header of `file` and checks all of it that matters for the 64-bit boot protocol.
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        Self::parse_start(file, file.len() as u64)
    }

    /// As [`parse`](Self::parse), from the start of a file of `size` bytes. What is not there is not in the
    /// [payload](Self::into_payload).
    pub(crate) fn parse_start(file: &'a [u8], size: u64) -> Result<Self, ImageError> {
        if bytes_at(file, field::HEADER) != Some(*b"HdrS") {
            return Err(foreign::recognise(file));
        }
        let header =
            file.get(..HEADER_END).ok_or_else(|| truncated("setup header", HEADER_END as u64, size))?;
        // All fields lie in `header`, whose length was just checked.
        let u8_at = |offset: usize| header.get(offset).copied().unwrap_or_default();
        let u16_at = |offset| u16::from_le_bytes(bytes_at(header, offset).unwrap_or_default());
        let u32_at = |offset| u32::from_le_bytes(bytes_at(header, offset).unwrap_or_default());
        let u64_at = |offset| u64::from_le_bytes(bytes_at(header, offset).unwrap_or_default());

        let version = u16_at(field::VERSION);
        if version < OLDEST_PROTOCOL {
            let [minor, major] = version.to_le_bytes();
            return Err(ImageError::ProtocolTooOld { major, minor });
        }
        let boot_flag = u16_at(field::BOOT_FLAG);
        check("boot_flag", u64::from(boot_flag), boot_flag == 0xaa55, "0xaa55")?;
        let loadflags = u8_at(field::LOADFLAGS);
        check(
            "loadflags",
            u64::from(loadflags),
            loadflags & LOADED_HIGH != 0,
            "LOADED_HIGH set (a zImage has it not)",
        )?;
        let xloadflags = u16_at(field::XLOADFLAGS);
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(ImageError::Not64Bit { xloadflags });
        }
        let header_end = field::HEADER + usize::from(u8_at(field::JUMP_LENGTH));
        check(
            "jump",
            header_end as u64,
            (HEADER_END..=HEADER_LIMIT).contains(&header_end),
            "a header that ends in 0x264 to 0x290",
        )?;
        let alignment = u64::from(u32_at(field::KERNEL_ALIGNMENT));
        let sane = alignment.is_power_of_two() && (PAGE..=MAX_ALIGNMENT).contains(&alignment);
        check("kernel_alignment", alignment, sane, "a power of two from 4 KiB to 1 GiB")?;
        let init_size = u64::from(u32_at(field::INIT_SIZE));
        check("init_size", init_size, (1..=MAX_INIT_SIZE).contains(&init_size), "up to 1 GiB")?;
        let cmdline_size = u32_at(field::CMDLINE_SIZE);
        check(
            "cmdline_size",
            u64::from(cmdline_size),
            (255..=1 << 20).contains(&cmdline_size),
            "255 to 1 MiB",
        )?;
        let pref_address = u64_at(field::PREF_ADDRESS);
        let fits = pref_address.checked_add(init_size).is_some() && pref_address % PAGE == 0;
        check("pref_address", pref_address, fits, "an address")?;

        // 0 stands for 4 sectors, for the sake of very old kernels.
        let sectors = match u8_at(field::SETUP_SECTS) {
            0 => 4,
            count => u64::from(count),
        };
        let setup_size = (sectors + 1) * SECTOR;
        let image = Self {
            file,
            header_end,
            setup_size: setup_size as usize,
            init_size,
            alignment,
            pref_address,
            relocatable: u8_at(field::RELOCATABLE_KERNEL) != 0,
            xloadflags,
            cmdline_size,
            initrd_addr_max: u32_at(field::INITRD_ADDR_MAX),
        };
        // syssize counts 16 bytes each, rounded up. The compressed kernel has to lie inside, or the file is cut.
        let code = setup_size + u64::from(u32_at(field::SYSSIZE)) * 16;
        let payload =
            setup_size + u64::from(u32_at(field::PAYLOAD_OFFSET)) + u64::from(u32_at(field::PAYLOAD_LENGTH));
        for (name, need) in
            [("syssize", code.saturating_sub(15)), ("payload", payload), ("setup_sects", setup_size + SECTOR)]
        {
            if size < need {
                return Err(truncated(name, need, size));
            }
        }
        let fits = size - setup_size <= init_size;
        check("init_size", init_size, fits, "at least the size of the code in the file")?;
        Ok(image)
    }

    /// The setup header's bytes, from [`field::SETUP_SECTS`] on.
    pub(super) fn setup_header(&self) -> &'a [u8] {
        self.file.get(field::SETUP_SECTS..self.header_end).unwrap_or_default()
    }

    /// The part that is loaded: the decompressor and the compressed kernel.
    pub(crate) fn into_payload(self) -> Cow<'a, [u8]> {
        Cow::Borrowed(self.file.get(self.setup_size..).unwrap_or_default())
    }

    /// Bytes that the kernel takes in memory until it manages its memory itself.
    pub(crate) fn memory_size(&self) -> u64 {
        self.init_size
    }

    /// Longest command line, in bytes, without the NUL at its end.
    pub(crate) fn cmdline_limit(&self) -> usize {
        self.cmdline_size as usize
    }

    /// Whether the kernel takes EFI's runtime map from a kernel before it.
    pub(super) fn takes_efi(&self) -> bool {
        self.xloadflags & XLF_EFI_KEXEC != 0
    }

    /// Whether the kernel can be entered with 5-level page tables.
    pub(super) fn knows_five_levels(&self) -> bool {
        self.xloadflags & XLF_5LEVEL != 0
    }

    fn above_4g(&self) -> bool {
        self.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0
    }

    /// Takes the kernel's place: as low as it can be, all of what it runs in until it manages its memory itself.
    pub(crate) fn place(&self, space: &mut Space) -> Result<PhysRange, PlanError> {
        let reservation = space.reservation();
        if !self.relocatable {
            let wanted =
                PhysRange::from_len(PhysAddr(self.pref_address), self.init_size.next_multiple_of(PAGE));
            let wanted = wanted.unwrap_or_default();
            return space.take_exactly(wanted).ok_or(PlanError::NotRelocatable { reservation, wanted });
        }
        // Below the address that it was built for, a kernel would move itself up there, out of the reservation
        // (arch/x86/boot/compressed/head_64.S, LOAD_PHYSICAL_ADDR).
        let place = space.take_low("kernel", self.init_size, self.alignment, self.pref_address.max(MIB))?;
        if place.end().0 > FOUR_GIB && !self.above_4g() {
            return Err(PlanError::Above4G { reservation });
        }
        Ok(place)
    }

    /// Takes the initrd's place: as high as it can be, so that the kernel has its memory in one piece.
    pub(crate) fn place_initrd(&self, space: &mut Space, size: u64) -> Result<PhysRange, PlanError> {
        let below = (!self.above_4g()).then_some(PhysAddr(u64::from(self.initrd_addr_max) + 1));
        space.take_high("initrd", size, PAGE, below)
    }

    /// Where the kernel is entered when it lies at `place`: 64-bit mode, 0x200 behind its start.
    pub(crate) fn entry(&self, place: PhysRange) -> PhysAddr {
        PhysAddr(place.start().0.wrapping_add(0x200))
    }
}

fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn truncated(field: &'static str, need: u64, have: u64) -> ImageError {
    ImageError::Truncated { field, need, have }
}

fn check(field: &'static str, found: u64, good: bool, wanted: &'static str) -> Result<(), ImageError> {
    if good { Ok(()) } else { Err(ImageError::BadField { field, found, wanted }) }
}

/// A kernel file with the header of Debian's 6.12 and `code` bytes in place of its code.
#[cfg(test)]
pub(crate) fn sample(code: usize) -> Vec<u8> {
    const SETUP_SECTORS: usize = 39;
    let mut file = vec![0x90; (SETUP_SECTORS + 1) * 512 + code];
    let fields: &[(usize, &[u8])] = &[
        (field::SETUP_SECTS, &[SETUP_SECTORS as u8]),
        (field::SYSSIZE, &(code as u32).div_ceil(16).to_le_bytes()),
        (field::BOOT_FLAG, &[0x55, 0xaa]),
        (field::JUMP_LENGTH, &[0x6a]),
        (field::HEADER, b"HdrS"),
        (field::VERSION, &[0x0f, 0x02]),
        (field::LOADFLAGS, &[LOADED_HIGH]),
        (field::INITRD_ADDR_MAX, &0x7fff_ffff_u32.to_le_bytes()),
        (field::KERNEL_ALIGNMENT, &0x20_0000_u32.to_le_bytes()),
        (field::RELOCATABLE_KERNEL, &[1]),
        (field::XLOADFLAGS, &[0x7f, 0]),
        (field::CMDLINE_SIZE, &2047_u32.to_le_bytes()),
        (field::PAYLOAD_OFFSET, &0_u32.to_le_bytes()),
        (field::PAYLOAD_LENGTH, &(code as u32).to_le_bytes()),
        (field::PREF_ADDRESS, &0x100_0000_u64.to_le_bytes()),
        (field::INIT_SIZE, &0x37e_f000_u32.to_le_bytes()),
    ];
    for (offset, bytes) in fields {
        file[*offset..*offset + bytes.len()].copy_from_slice(bytes);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn changed(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = sample(8192);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        file
    }

    #[test]
    fn the_header_of_a_distribution_kernel_is_taken() {
        let file = sample(8192);
        let image = BzImage::parse(&file).unwrap();
        assert_eq!(image.into_payload().len(), 8192);
        assert_eq!(image.setup_header().len(), 0x202 + 0x6a - 0x1f1);
        assert_eq!(image.cmdline_limit(), 2047);
        assert!(image.takes_efi() && image.knows_five_levels());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases: &[(Vec<u8>, &str)] = &[
            (changed(field::HEADER, b"HdrX"), "its first bytes are those of no kernel"),
            (changed(field::VERSION, &[0x0b, 0x02]), "boot protocol 2.11 is too old"),
            (changed(field::BOOT_FLAG, &[0, 0]), "boot_flag is 0x0"),
            (changed(field::LOADFLAGS, &[0]), "loadflags is 0x0"),
            (
                changed(field::XLOADFLAGS, &[0x7e, 0]),
                "no 64-bit entry (XLF_KERNEL_64 is not set in xloadflags 0x7e)",
            ),
            (changed(field::KERNEL_ALIGNMENT, &[1]), "kernel_alignment is 0x200001"),
            (changed(field::KERNEL_ALIGNMENT, &[0; 4]), "kernel_alignment is 0x0"),
            (changed(field::INIT_SIZE, &[0; 4]), "init_size is 0x0"),
            (changed(field::INIT_SIZE, &[0, 0x10, 0, 0]), "init_size is 0x1000"),
            (changed(field::INIT_SIZE, &[0xff; 4]), "init_size is 0xffffffff"),
            (changed(field::JUMP_LENGTH, &[0x10]), "jump is 0x212"),
            (changed(field::JUMP_LENGTH, &[0xff]), "jump is 0x301"),
            (changed(field::CMDLINE_SIZE, &[0; 4]), "cmdline_size is 0x0"),
            (changed(field::PREF_ADDRESS, &[0xff; 8]), "pref_address is 0xffffffffffffffff"),
            (changed(field::SETUP_SECTS, &[0xff]), "truncated: syssize"),
            (changed(field::PAYLOAD_LENGTH, &[0xff; 4]), "truncated: payload needs"),
            (sample(8192)[..20000].to_vec(), "truncated: syssize needs"),
            (sample(8192)[..0x250].to_vec(), "truncated: setup header needs 612 bytes, the file has 592"),
        ];
        for (file, expected) in cases {
            let text = BzImage::parse(file).unwrap_err().to_string();
            assert!(text.contains(expected), "{text:?} should say {expected:?}");
        }
    }

    fn space(start: u64, end: u64) -> Space {
        Space::new(PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap(), PAGE, None, None).unwrap()
    }

    #[test]
    fn a_kernel_goes_to_its_alignment_and_not_below_where_it_was_built_for() {
        let file = sample(8192);
        let image = BzImage::parse(&file).unwrap();
        let place = |start| image.place(&mut space(start, start + (256 << 20))).unwrap().start().0;
        assert_eq!(place(0x2e00_0000), 0x2e00_0000);
        assert_eq!(place(0x2e10_0000), 0x2e20_0000);
        assert_eq!(place(0x40_0000), 0x100_0000);
        assert_eq!(place(0x1_ef00_0000), 0x1_ef00_0000);
    }

    #[test]
    fn a_kernel_that_cannot_be_where_the_reservation_is_is_refused() {
        let low = changed(field::XLOADFLAGS, &[1, 0]);
        let image = BzImage::parse(&low).unwrap();
        assert!(matches!(
            image.place(&mut space(FOUR_GIB, FOUR_GIB + (256 << 20))),
            Err(PlanError::Above4G { .. })
        ));
        let mut below = space(0x2000_0000, 0x9000_0000);
        image.place(&mut below).unwrap();
        assert!(image.place_initrd(&mut below, 4096).unwrap().end().0 <= 0x8000_0000);

        let fixed = changed(field::RELOCATABLE_KERNEL, &[0]);
        let image = BzImage::parse(&fixed).unwrap();
        let error = image.place(&mut space(0x2e00_0000, 0x3e00_0000)).unwrap_err();
        assert!(error.to_string().contains("is not relocatable and wants [0x1000000, 0x47ef000)"), "{error}");
        assert_eq!(image.place(&mut space(0xc0_0000, 0x1_c000_0000)).unwrap().start().0, 0x100_0000);
    }

    proptest! {
        /// Whatever the header says: an error or an image whose pieces lie in the file and which can be placed or refused.
        #[test]
        fn damaged_headers_never_panic(
            changes in proptest::collection::vec((0x1f0usize..0x270, any::<u8>()), 0..12),
            cut in 0usize..24_000,
        ) {
            let mut file = sample(2048);
            for (offset, byte) in changes {
                file[offset] = byte;
            }
            file.truncate(file.len().saturating_sub(cut));
            if let Ok(image) = BzImage::parse(&file) {
                prop_assert!(image.into_payload().len() as u64 <= image.init_size);
                prop_assert!(!image.setup_header().is_empty());
                let mut space = space(0x2e00_0000, 0x1_4000_0000);
                if let Ok(place) = image.place(&mut space) {
                    prop_assert!(place.start().is_aligned(image.alignment) || !image.relocatable);
                    prop_assert!(place.len() >= image.init_size);
                }
                let _ = image.place_initrd(&mut space, 1 << 20);
            }
        }

        #[test]
        fn any_file_is_read_or_refused(file in proptest::collection::vec(any::<u8>(), 0..2048)) {
            prop_assert!(BzImage::parse(&file).is_err());
        }
    }
}
