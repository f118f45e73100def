//! Our purgatory: a flat image made by the build script, put in its place here.

use elfcorehdr::PhysAddr;
use purgatory::{PARAMS_SIZE, Params};

const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/purgatory.bin"));
include!(concat!(env!("OUT_DIR"), "/purgatory.rs"));

/// Bytes that purgatory takes in memory, its stack included.
pub(crate) const MEMORY_SIZE: u64 = MEMORY;

/// Where to enter purgatory when it lies at `base`.
pub(crate) fn entry(base: PhysAddr) -> PhysAddr {
    PhysAddr(base.0.wrapping_add(ENTRY))
}

/// Where purgatory's parameter block is when it lies at `base`.
pub(crate) fn params_place(base: PhysAddr) -> PhysAddr {
    PhysAddr(base.0.wrapping_add(PARAMS as u64))
}

/// Purgatory's bytes for its place at `base`, told `params`. What is left of [`MEMORY_SIZE`] is zeros.
///
/// `kernel` are the first bytes of the capture kernel. On ppc64 purgatory starts with them, but for its first word: the
/// crashed kernel copies 0x100 bytes from there to address 0 and sends the other CPUs to 0x60, where they shall wait for the
/// capture kernel. On x86_64 they are not looked at.
pub(crate) fn image(base: PhysAddr, params: &Params, kernel: &[u8]) -> Vec<u8> {
    let mut image = IMAGE.to_vec();
    for &place in RELATIVE {
        // The build script saw every place inside the image.
        if let Some(word) = image.get_mut(place..).and_then(|rest| rest.first_chunk_mut::<8>()) {
            *word = u64::from_le_bytes(*word).wrapping_add(base.0).to_le_bytes();
        }
    }
    if let Some(block) = image.get_mut(PARAMS..).and_then(|rest| rest.first_chunk_mut::<PARAMS_SIZE>()) {
        *block = params.to_bytes();
    }
    for (to, from) in image.iter_mut().zip(kernel).take(HEAD).skip(FIRST_WORD) {
        *to = *from;
    }
    image
}

/// Bytes of the capture kernel's start that [`image`] wants to know.
pub(crate) const KERNEL_START: usize = HEAD;

/// The instruction that leads to purgatory where its first bytes are the capture kernel's.
const FIRST_WORD: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use purgatory::Region;

    const BASE: PhysAddr = PhysAddr(0x2f00_0000);

    fn params() -> Params {
        let mut params = Params::new([9; 16], 0x2e00_0200, 0x2e80_0000, 0x3f8);
        params.push(Region::new("kernel", 0x2e00_0000, 4096, [1; 32])).unwrap();
        params.backup = 0x2d00_0000;
        params
    }

    fn kernel() -> Vec<u8> {
        (0..4096).map(|index| index as u8 | 1).collect()
    }

    #[test]
    fn the_entry_and_all_words_lie_inside() {
        assert!(entry(BASE).0 - BASE.0 < IMAGE.len() as u64);
        assert!(IMAGE.len() as u64 <= MEMORY_SIZE);
        assert!(RELATIVE.iter().all(|place| place + 8 <= IMAGE.len()));
        assert!(RELATIVE.iter().all(|place| !(PARAMS..PARAMS + PARAMS_SIZE).contains(place)));
    }

    #[test]
    fn the_block_is_read_back_from_where_it_is_said_to_be() {
        let image = image(BASE, &params(), &kernel());
        let at = usize::try_from(params_place(BASE).0 - BASE.0).unwrap();
        let block = image[at..].first_chunk().unwrap();
        assert_eq!(Params::parse(block), Ok(params()));
    }

    #[test]
    fn every_relative_word_points_into_the_image_where_it_lies() {
        let image = image(BASE, &params(), &kernel());
        for &place in RELATIVE {
            let word = u64::from_le_bytes(*image[place..].first_chunk().unwrap());
            assert!((BASE.0..BASE.0 + MEMORY_SIZE).contains(&word), "{word:#x} at {place:#x}");
        }
    }

    #[test]
    fn it_cannot_be_taken_for_an_elfcorehdr_or_a_device_tree() {
        let image = image(BASE, &params(), &kernel());
        assert_ne!(&image[..4], b"\x7fELF");
        assert_ne!(image[..4], [0xd0, 0x0d, 0xfe, 0xed]);
    }

    #[cfg(target_arch = "powerpc64")]
    #[test]
    fn the_kernels_first_bytes_stand_where_the_other_cpus_go() {
        let image = image(BASE, &params(), &kernel());
        assert_eq!(image[..FIRST_WORD], IMAGE[..FIRST_WORD]);
        assert_eq!(image[FIRST_WORD..HEAD], kernel()[FIRST_WORD..HEAD]);
        assert!(IMAGE[FIRST_WORD..HEAD].iter().all(|&byte| byte == 0), "nothing of ours is lost");
        assert!(RELATIVE.iter().chain([&PARAMS]).all(|&place| place >= HEAD));
    }

    #[cfg(target_arch = "powerpc64")]
    #[test]
    fn the_first_word_leads_to_the_program() {
        assert_eq!((ENTRY, HEAD), (0, 0x100));
        let word = u32::from_le_bytes(*IMAGE.first_chunk().unwrap());
        assert_eq!(word & 0xfc00_0003, 0x4800_0000, "a relative branch without link");
        let program = (word & 0x03ff_fffc) as usize;
        // bcl 20,31,$+4: the first instruction of the entry code.
        assert_eq!(IMAGE[program..program + 4], 0x429f_0005u32.to_le_bytes());
    }
}
