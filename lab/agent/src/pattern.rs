//! The content of each page that the agent fills: a function of the seed and the page's index, so that the host can
//! say byte by byte what the dump must hold.

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// What a page of the pattern looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All zero: a dump may leave it as a hole.
    Zero,
    /// One byte repeated.
    Repeated,
    /// The first half distinct words, the second half zero.
    Half,
    /// Words that differ from each other and from those of other pages.
    Distinct,
}

/// The kind of page `index`: 13 of 16 are distinct.
pub fn kind(index: u64) -> Kind {
    match index % 16 {
        3 => Kind::Zero,
        7 => Kind::Repeated,
        11 => Kind::Half,
        _ => Kind::Distinct,
    }
}

/// Writes page `index` of the pattern `seed` into `page`, [`PAGE`] bytes long.
pub fn write_page(seed: u64, index: u64, page: &mut [u8]) {
    let start = mix(seed ^ mix(index));
    match kind(index) {
        Kind::Zero => page.fill(0),
        Kind::Repeated => page.fill(start.to_le_bytes()[0] | 1),
        Kind::Half => {
            let (first, second) = page.split_at_mut(PAGE / 2);
            write_words(start, first);
            second.fill(0);
        }
        Kind::Distinct => write_words(start, page),
    }
}

fn write_words(start: u64, bytes: &mut [u8]) {
    // An odd step: the words of a page do not repeat.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut word = start;
    for eight in bytes.chunks_exact_mut(8) {
        eight.copy_from_slice(&word.to_le_bytes());
        word = word.wrapping_add(STEP);
    }
}

/// Spreads the bits of a number (the finaliser of MurmurHash3).
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let number = (number ^ (number >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    number ^ (number >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn pages_differ_unless_they_are_meant_to_be_alike() {
        let mut seen = BTreeSet::new();
        for index in 0..512 {
            let mut page = vec![0xff; PAGE];
            write_page(1, index, &mut page);
            let alike = matches!(kind(index), Kind::Zero | Kind::Repeated);
            assert!(seen.insert(page) || alike, "page {index} equals an earlier one");
        }
    }
}
