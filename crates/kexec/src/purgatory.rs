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
pub(crate) fn image(base: PhysAddr, params: &Params) -> Vec<u8> {
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
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use purgatory::Region;

    const BASE: PhysAddr = PhysAddr(0x2f00_0000);

    fn params() -> Params {
        let mut params = Params::new([9; 16], 0x2e00_0200, 0x2e80_0000, 0x3f8);
        params.push(Region::new("kernel", 0x2e00_0000, 4096, [1; 32])).unwrap();
        params
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
        let image = image(BASE, &params());
        let at = usize::try_from(params_place(BASE).0 - BASE.0).unwrap();
        let block = image[at..].first_chunk().unwrap();
        assert_eq!(Params::parse(block), Ok(params()));
    }

    #[test]
    fn every_relative_word_points_into_the_image_where_it_lies() {
        let image = image(BASE, &params());
        for &place in RELATIVE {
            let word = u64::from_le_bytes(*image[place..].first_chunk().unwrap());
            assert!((BASE.0..BASE.0 + MEMORY_SIZE).contains(&word), "{word:#x} at {place:#x}");
        }
    }

    #[test]
    fn it_cannot_be_taken_for_an_elfcorehdr() {
        assert_ne!(&IMAGE[..4], b"\x7fELF");
    }
}
