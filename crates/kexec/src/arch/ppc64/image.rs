//! vmlinux: the kernel as distributions install it, an ELF file (Debian and Ubuntu; others name the same file vmlinuz).
//!
//! What is loaded is the file's one image: its segments at the distances that their addresses have. A relocatable kernel runs
//! wherever it lies once the word at 0x5c of its image says so, and moves itself to address 0 otherwise
//! (`__run_at_load` in arch/powerpc/kernel/head_64.S).

use std::borrow::Cow;

use elfcorehdr::{PhysAddr, PhysRange};
use object::LittleEndian as LE;
use object::elf::{EM_PPC64, ET_DYN, ET_EXEC, FileHeader64, PT_LOAD, ProgramHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

use super::SEGMENT_ALIGN;
use crate::error::{ImageError, PlanError};
use crate::foreign;
use crate::layout::Space;

/// Where the image has `__run_at_load`.
const RUN_AT_LOAD: usize = 0x5c;
/// What a relocatable kernel has there: "run0", and where it was built to test relocation, 1.
const RUN_AT_LOAD_VALUES: [u32; 2] = [0x7275_6e30, 1];

/// Bytes that the other CPUs wait in, at the start of the image.
const HEAD: u64 = 0x100;

/// The most that a kernel can want to run in; a kernel of 2026 takes 50 MiB.
const MAX_MEMORY: u64 = 1 << 30;

/// Longest command line without the NUL at its end (COMMAND_LINE_SIZE in arch/powerpc/include/uapi/asm/setup.h).
const CMDLINE_LIMIT: usize = 2047;

/// A kernel that passed all checks that need no machine.
#[derive(Clone, Debug)]
pub(crate) struct Vmlinux<'a> {
    /// What is loaded; empty where only the start of the file is known.
    payload: Cow<'a, [u8]>,
    /// Bytes that it takes in memory.
    memory: u64,
    /// Where it is entered, from its start.
    entry: u64,
}

/// A stretch of the file that goes to memory.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Distance from the start of the image, in bytes.
    at: u64,
    offset: u64,
    file_size: u64,
    memory: u64,
}

impl<'a> Vmlinux<'a> {
    /// Reads `file` and checks all of it that matters; makes the image that is loaded out of it.
    pub(crate) fn parse(file: &'a [u8]) -> Result<Self, ImageError> {
        let (image, pieces) = read(file, file.len() as u64)?;
        let mut payload = vec![0; image.payload_size(&pieces)];
        for piece in &pieces {
            // All lies in the file and in the image: `read` looked.
            let to =
                payload.get_mut(piece.at as usize..).and_then(|to| to.get_mut(..piece.file_size as usize));
            let from =
                file.get(piece.offset as usize..).and_then(|from| from.get(..piece.file_size as usize));
            if let Some((to, from)) = to.zip(from) {
                to.copy_from_slice(from);
            }
        }
        let word = payload.get_mut(RUN_AT_LOAD..).and_then(|rest| rest.first_chunk_mut::<4>());
        match word {
            Some(word) if RUN_AT_LOAD_VALUES.contains(&u32::from_le_bytes(*word)) => {
                *word = 1_u32.to_le_bytes();
            }
            _ if is_wrapper(file) => {
                let found = "the file is a zImage, a wrapper that holds a vmlinux".to_owned();
                return Err(ImageError::NotAKernel { found });
            }
            _ => return Err(ImageError::NotRelocatable),
        }
        Ok(Self { payload: Cow::Owned(payload), ..image })
    }

    /// As [`parse`](Self::parse), from the start of a file of `size` bytes, which has to hold the headers. The image is not
    /// made.
    pub(crate) fn parse_start(file: &'a [u8], size: u64) -> Result<Self, ImageError> {
        read(file, size).map(|(image, _)| image)
    }

    fn payload_size(&self, pieces: &[Piece]) -> usize {
        let ends = pieces.iter().map(|piece| piece.at + piece.file_size);
        ends.max().unwrap_or(0).min(self.memory) as usize
    }

    /// What is loaded.
    pub(crate) fn into_payload(self) -> Cow<'a, [u8]> {
        self.payload
    }

    /// Bytes that the kernel takes in memory until it manages its memory itself.
    pub(crate) fn memory_size(&self) -> u64 {
        self.memory
    }

    /// Longest command line, in bytes, without the NUL at its end.
    pub(crate) fn cmdline_limit(&self) -> usize {
        CMDLINE_LIMIT
    }

    /// Takes the kernel's place: as low as it can be.
    pub(crate) fn place(&self, space: &mut Space) -> Result<PhysRange, PlanError> {
        space.take_low("kernel", self.memory, SEGMENT_ALIGN, 0)
    }

    /// Takes the initrd's place: as high as it can be, so that the kernel has its memory in one piece.
    pub(crate) fn place_initrd(&self, space: &mut Space, size: u64) -> Result<PhysRange, PlanError> {
        space.take_high("initrd", size, SEGMENT_ALIGN, None)
    }

    /// Where the kernel is entered when it lies at `place`.
    pub(crate) fn entry(&self, place: PhysRange) -> PhysAddr {
        PhysAddr(place.start().0.wrapping_add(self.entry))
    }
}

/// The image of `file`, of which `size` bytes exist, without its payload, and its pieces.
fn read(file: &[u8], size: u64) -> Result<(Vmlinux<'_>, Vec<Piece>), ImageError> {
    let header = match FileHeader64::<LE>::parse(file) {
        Ok(header) if header.e_machine(LE) == EM_PPC64 && header.endian() == Ok(LE) => header,
        _ => return Err(foreign::recognise(file)),
    };
    let kind = header.e_type(LE);
    check("e_type", kind.0.into(), kind == ET_EXEC || kind == ET_DYN, "2 (executable) or 3 (shared)")?;
    let table = header.program_headers(LE, file).map_err(|_| ImageError::Truncated {
        field: "program headers",
        need: header.e_phoff(LE).saturating_add(u64::from(header.e_phnum(LE)) * 56),
        have: size,
    })?;
    let loads: Vec<&ProgramHeader64<LE>> = table.iter().filter(|entry| entry.p_type(LE) == PT_LOAD).collect();
    let start = loads.iter().map(|load| load.p_paddr(LE)).min();
    let start = start.ok_or(ImageError::BadField { field: "PT_LOAD", found: 0, wanted: "one or more" })?;
    let pieces: Vec<Piece> = loads.iter().map(|load| piece(load, start, size)).collect::<Result<_, _>>()?;
    let lowest = loads.iter().filter(|load| load.p_paddr(LE) == start).map(|load| load.p_vaddr(LE)).min();
    let memory = pieces.iter().map(|piece| piece.at + piece.memory).max().unwrap_or(0);
    let found = header.e_entry(LE);
    let entry = found.wrapping_sub(lowest.unwrap_or(0));
    check("e_entry", found, entry < memory && entry.is_multiple_of(4), "an instruction of the image")?;
    let first = pieces.iter().filter(|piece| piece.at == 0).map(|piece| piece.file_size).max();
    check("p_filesz", first.unwrap_or(0), first >= Some(HEAD), "0x100 or more in the first segment")?;
    Ok((Vmlinux { payload: Cow::Borrowed(&[]), memory, entry }, pieces))
}

/// Checks a segment of an image whose lowest address is `start`, in a file of `size` bytes.
fn piece(load: &ProgramHeader64<LE>, start: u64, size: u64) -> Result<Piece, ImageError> {
    let (offset, file_size, memory) = (load.p_offset(LE), load.p_filesz(LE), load.p_memsz(LE));
    let at = load.p_paddr(LE).wrapping_sub(start);
    check("p_memsz", memory, (file_size..=MAX_MEMORY).contains(&memory), "p_filesz to 1 GiB")?;
    check("p_paddr", load.p_paddr(LE), at <= MAX_MEMORY - memory, "segments within 1 GiB")?;
    match offset.checked_add(file_size) {
        Some(end) if end <= size => Ok(Piece { at, offset, file_size, memory }),
        end => Err(ImageError::Truncated { field: "PT_LOAD", need: end.unwrap_or(u64::MAX), have: size }),
    }
}

/// Whether the file is what arch/powerpc/boot/wrapper makes: the kernel lies packed in a section of this name.
fn is_wrapper(file: &[u8]) -> bool {
    const SECTION: &[u8] = b"\0.kernel:vmlinux.strip\0";
    file.windows(SECTION.len()).any(|window| window == SECTION)
}

fn check(field: &'static str, found: u64, good: bool, wanted: &'static str) -> Result<(), ImageError> {
    if good { Ok(()) } else { Err(ImageError::BadField { field, found, wanted }) }
}

/// A kernel file with the headers of Debian's 6.12 and `code` bytes (at least 0x100) in place of its code; a sixteenth more
/// are memory that the file does not fill.
#[cfg(test)]
pub(crate) fn sample(code: usize) -> Vec<u8> {
    const VADDR: u64 = 0xc000_0000_0000_0000;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([3, 0, 21, 0, 1, 0, 0, 0]);
    file.extend([VADDR, 64, 0].map(u64::to_le_bytes).concat());
    // e_flags: ELFv2.
    file.extend([2, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let (offset, size) = (0x1_0000, code as u64);
    for words in [
        [7 << 32 | 1, offset, VADDR, 0, size, size + size / 16, 0x1_0000],
        [4 << 32 | 4, offset + 0x80, VADDR + 0x80, 0x80, 0x20, 0x20, 4],
    ] {
        file.extend(words.map(u64::to_le_bytes).concat());
    }
    file.resize(0x1_0000 + code, 0x60);
    file[0x1_0000 + RUN_AT_LOAD..][..4].copy_from_slice(b"0nur");
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Offset of the first program header in a sample.
    const LOAD: usize = 64;

    fn changed(offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = sample(8192);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        file
    }

    fn space(start: u64, end: u64) -> Space {
        let range = PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap();
        Space::new(range, SEGMENT_ALIGN, None, None).unwrap()
    }

    #[test]
    fn the_image_of_a_distribution_kernel_runs_where_it_is_put() {
        let file = sample(8192);
        let image = Vmlinux::parse(&file).unwrap();
        assert_eq!((image.memory_size(), image.cmdline_limit()), (8192 + 512, 2047));
        let mut space = space(0x2000_1000, 0x3000_0000);
        let place = image.place(&mut space).unwrap();
        assert_eq!(place.to_string(), "[0x20010000, 0x20020000)");
        assert_eq!(image.entry(place), place.start());
        let payload = image.into_payload();
        assert_eq!(payload.len(), 8192);
        assert_eq!(payload[RUN_AT_LOAD..RUN_AT_LOAD + 4], [1, 0, 0, 0]);
        assert_eq!(payload[RUN_AT_LOAD + 4..], file[0x1_0000 + RUN_AT_LOAD + 4..]);
    }

    #[test]
    fn segments_keep_their_distance() {
        let mut file = sample(0x2000);
        // The second program header becomes a segment that lies 0x4000 above the first; its bytes are the last 0x40.
        let words: [u64; 7] =
            [7 << 32 | 1, 0x1_1fc0, 0xc000_0000_0000_4000, 0x4000, 0x40, 0x3_0000, 0x1_0000];
        file[LOAD + 56..LOAD + 112].copy_from_slice(&words.map(u64::to_le_bytes).concat());
        file[0x1_1fc0..].fill(7);
        let image = Vmlinux::parse(&file).unwrap();
        assert_eq!(image.memory_size(), 0x3_4000);
        let payload = image.into_payload();
        assert_eq!(payload.len(), 0x4040);
        assert!(payload[0x2000..0x4000].iter().all(|&byte| byte == 0));
        assert_eq!(payload[0x4000..], [7; 0x40]);
    }

    #[test]
    fn an_appended_signature_is_left_out() {
        let signed = [&sample(8192)[..], b"a signature~Module signature appended~\n"].concat();
        assert_eq!(
            Vmlinux::parse(&signed).unwrap().into_payload(),
            Vmlinux::parse(&sample(8192)).unwrap().into_payload()
        );
    }

    #[test]
    fn the_start_of_a_file_is_enough_to_judge_it() {
        let file = sample(1 << 20);
        let image = Vmlinux::parse_start(&file[..0x1_0000], file.len() as u64).unwrap();
        assert_eq!(image.memory_size(), (1 << 20) + (1 << 16));
        let error = Vmlinux::parse_start(&file[..0x1_0000], 0x9_0000).unwrap_err().to_string();
        assert_eq!(error, "truncated: PT_LOAD needs 1114112 bytes, the file has 589824: copy it again");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases: &[(Vec<u8>, &str)] = &[
            (vec![], "the file is empty"),
            (b"\x1f\x8b\x08".to_vec(), "the file is gzip data"),
            (changed(0, b"MZ"), "EFI program"),
            (changed(18, &[20, 0]), "32-bit PowerPC"),
            (changed(16, &[1, 0]), "e_type is 0x1"),
            (changed(24, &[0xff; 8]), "e_entry is 0xffffffffffffffff"),
            (changed(24, &[2]), "e_entry is 0xc000000000000002"),
            (changed(LOAD, &[5]), "PT_LOAD is 0x0"),
            (changed(LOAD + 32, &[0; 8]), "p_filesz is 0x0"),
            (changed(LOAD + 32, &[0xff; 8]), "p_memsz is 0x2200"),
            (changed(LOAD + 40, &[0, 0, 0, 0, 1]), "p_memsz is 0x100000000"),
            (changed(LOAD + 8, &[0xff; 8]), "truncated: PT_LOAD needs 18446744073709551615"),
            (changed(56, &[0xfe, 0xff]), "truncated: program headers"),
            (changed(0x1_0000 + RUN_AT_LOAD, &[0]), "not relocatable"),
            (
                [changed(0x1_0000 + RUN_AT_LOAD, &[0]), b"\0.kernel:vmlinux.strip\0".to_vec()].concat(),
                "the file is a zImage",
            ),
            (sample(8192)[..0x1_1000].to_vec(), "truncated: PT_LOAD needs 73728 bytes, the file has 69632"),
        ];
        for (file, expected) in cases {
            let text = Vmlinux::parse(file).unwrap_err().to_string();
            assert!(text.contains(expected), "{text:?} should say {expected:?}");
        }
        // 32 bits, and the other byte order.
        for file in [changed(4, &[1]), changed(5, &[2])] {
            assert!(Vmlinux::parse(&file).is_err());
        }
    }

    proptest! {
        /// Whatever the headers say: an error or an image whose pieces lie in the file and which can be placed or refused.
        #[test]
        fn damaged_headers_never_panic(
            changes in proptest::collection::vec((0usize..LOAD + 112, any::<u8>()), 0..12),
            cut in 0usize..80_000,
        ) {
            let mut file = sample(2048);
            for (offset, byte) in changes {
                file[offset] = byte;
            }
            file.truncate(file.len().saturating_sub(cut));
            if let Ok(image) = Vmlinux::parse(&file) {
                prop_assert!(image.memory <= MAX_MEMORY && image.entry < image.memory);
                prop_assert!(image.payload.len() as u64 <= image.memory);
                prop_assert!(image.payload.len() >= HEAD as usize);
                let mut space = space(0x2e00_0000, 0x1_4000_0000);
                if let Ok(place) = image.place(&mut space) {
                    prop_assert!(place.start().is_aligned(SEGMENT_ALIGN) && place.len() >= image.memory);
                    prop_assert!(place.contains(image.entry(place)));
                }
                let _ = image.place_initrd(&mut space, 1 << 20);
            }
        }

        #[test]
        fn any_file_is_read_or_refused(file in proptest::collection::vec(any::<u8>(), 0..2048)) {
            prop_assert!(Vmlinux::parse(&file).is_err());
        }
    }
}
