//! The digest check.

use sha2::{Digest as _, Sha256};

use crate::{Params, Region};

/// Bytes of a SHA-256 digest.
pub const DIGEST_SIZE: usize = 32;

/// A SHA-256 digest.
pub type Digest = [u8; DIGEST_SIZE];

/// A region whose bytes are not the ones that were loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch<'a> {
    /// The region as the loader described it, with the digest it should have.
    pub region: &'a Region,
    /// The digest of the bytes found.
    pub found: Digest,
}

/// SHA-256 of `bytes`. Uses the CPU's SHA instructions where it has them.
pub fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// Digests every region of `params` and returns the first that differs from what the loader wrote down.
///
/// `bytes_of` gives the memory of a region.
pub fn first_mismatch<'p, 'm>(
    params: &'p Params,
    mut bytes_of: impl FnMut(&Region) -> &'m [u8],
) -> Option<Mismatch<'p>> {
    params.regions().iter().find_map(|region| {
        let found = digest(bytes_of(region));
        (found != region.digest).then_some(Mismatch { region, found })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params_for(memory: &[u8]) -> Params {
        let mut params = Params::new([7; 16], 0x100200, 0x9000, 0x3f8);
        params.push(Region::new("kernel", 0x1000, 16, digest(&memory[..16]))).unwrap();
        params.push(Region::new("initrd", 0x1010, 48, digest(&memory[16..]))).unwrap();
        params
    }

    fn check<'p>(params: &'p Params, memory: &[u8]) -> Option<Mismatch<'p>> {
        first_mismatch(params, |region| {
            let start = usize::try_from(region.start - 0x1000).unwrap();
            &memory[start..start + usize::try_from(region.size).unwrap()]
        })
    }

    #[test]
    fn the_digest_is_sha256() {
        // FIPS 180-2, appendix B.1.
        let expected = [
            0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
            0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad,
        ];
        assert_eq!(digest(b"abc"), expected);
    }

    #[test]
    fn untouched_memory_passes() {
        let memory: Vec<u8> = (0..64).collect();
        assert_eq!(check(&params_for(&memory), &memory), None);
    }

    #[test]
    fn every_single_flipped_bit_is_found_in_its_region() {
        let memory: Vec<u8> = (0..64).collect();
        let params = params_for(&memory);
        for bit in 0..memory.len() * 8 {
            let mut changed = memory.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let mismatch = check(&params, &changed).expect("a flipped bit must be found");
            assert_eq!(mismatch.region.name(), if bit < 16 * 8 { "kernel" } else { "initrd" });
            assert_ne!(mismatch.found, mismatch.region.digest);
        }
    }
}
