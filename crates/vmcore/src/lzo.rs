//! LZO1X compression of one page.
//!
//! The encoder that dumps are known by is under the GPL, as are its ports, and the one free library that compresses does 10
//! MB/s. So this is our own, from the description of the stream format in the kernel's Documentation/staging/lzo.rst: greedy, one
//! candidate a position out of a small hash table, larger steps the longer nothing matches.
//!
//! It is asked for where time counts for more than space, so matches shorter than seven bytes are left alone: most of the time goes by the
//! match, not by the byte. Taking those of four bytes as well makes a dump 7 % smaller and takes 1.6 times as long.

use crate::PAGE;

/// Pages up to this size are compressed: the largest that a kernel has on the machines known here. Positions are kept as u16.
const MAX_PAGE: usize = 1 << 16;
const TABLE_BITS: u32 = 12;
/// Matches of fewer bytes are not looked for.
const MIN_MATCH: usize = WORD - 1;
/// Where nothing matched 2^3 times, every second position is looked at, after 2^3 more every third.
const PATIENCE: u32 = 3;
/// As many bytes as are looked at at once.
const WORD: usize = 8;
/// A match starts at least this far from the end, so that a word and what follows it can be loaded at any position looked at.
const TAIL: usize = 12;
/// The most bytes that one match instruction and the literals' header before it take, beside the literals: a length of 64 KiB is
/// 257 bytes of extension, once in each.
const INSTRUCTION: usize = 2 * 260 + 8;
/// The most bytes that are loaded or stored at once, of which some may be too many.
const MARGIN: usize = 32;
/// The farthest match of each kind of instruction, in bytes.
const NEAR: usize = 0x800;
const MIDDLE: usize = 0x4000;
const FAR: usize = 0xbfff;
/// What ends a stream, in three bytes.
const END: u32 = 0x11;

/// A page, with room for loads and copies from any of its positions: 16 bits of index need no check against the length.
type Padded = [u8; MAX_PAGE + MARGIN];

/// The state of a compressor.
pub(crate) struct Lzo {
    /// Positions by the hash of what stands there.
    table: Box<[u16; 1 << TABLE_BITS]>,
    page: Box<Padded>,
}

impl Lzo {
    pub(crate) fn new() -> Self {
        Self { table: Box::new([0; 1 << TABLE_BITS]), page: Box::new([0; MAX_PAGE + MARGIN]) }
    }

    /// Compresses `page` (at most 64 KiB) into `out`; none where it takes no fewer bytes than `page`.
    ///
    /// `out` must have [`room_for`] bytes.
    pub(crate) fn compress(&mut self, page: &[u8], out: &mut [u8]) -> Option<usize> {
        if page.len() > MAX_PAGE || page.len() <= TAIL || out.len() < room_for(page.len()) {
            return None;
        }
        // To clear a table of 12 bits takes a page of 4 KiB a twentieth of its time.
        if page.len() <= PAGE {
            self.compress_by::<11>(page, out)
        } else {
            self.compress_by::<TABLE_BITS>(page, out)
        }
    }

    /// With as many bits of hash.
    fn compress_by<const BITS: u32>(&mut self, page: &[u8], out: &mut [u8]) -> Option<usize> {
        self.page[..page.len()].copy_from_slice(page);
        // A position of 0 in the table needs no mark: it is a candidate like any other.
        self.table[..1 << BITS].fill(0);
        let bytes = &*self.page;
        let mut stream = Stream { page: bytes, page_len: page.len(), out, len: 0, literals: 0 };
        let last = page.len() - TAIL;
        let mut at = 1;
        // Steps grow by the number of positions where nothing matched: not by the distance, so that where to look next is known early. As
        // long as nothing matched at all, a page is likely not to shrink, and they grow faster.
        let mut missed = 0;
        let mut pace = 4;
        while at < last {
            let value = load(bytes, at);
            let slot = &mut self.table[hash::<BITS>(value)];
            let candidate = usize::from(*slot);
            *slot = at as u16;
            let differ = load(bytes, candidate) ^ value;
            if first(differ) != 0 {
                at += 1 + (missed >> PATIENCE);
                missed += pace;
                continue;
            }
            let distance = at - candidate;
            if distance > FAR {
                at += 1;
                continue;
            }
            let length = match differ {
                0 => WORD + common(bytes, candidate + WORD, at + WORD, page.len()),
                _ => MIN_MATCH,
            };
            if !stream.push(at, distance, length) {
                return None;
            }
            (missed, pace) = (0, 1);
            at += length;
        }
        stream.finish()
    }
}

/// The bytes that [`Lzo::compress`] needs to compress `len` bytes.
pub(crate) const fn room_for(len: usize) -> usize {
    len + INSTRUCTION + MARGIN
}

/// The eight bytes at a position.
fn load(page: &Padded, at: usize) -> u64 {
    let at = usize::from(at as u16);
    page[at..at + WORD].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The first [`MIN_MATCH`] of eight bytes, in the upper bits.
fn first(value: u64) -> u64 {
    value << (8 * (WORD - MIN_MATCH))
}

fn hash<const BITS: u32>(value: u64) -> usize {
    // Multiplicative: the golden ratio of 2^64.
    (first(value).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BITS)) as usize
}

/// How many bytes from `early` and `late` on are the same, up to `end`.
fn common(page: &Padded, early: usize, late: usize, end: usize) -> usize {
    let mut same = 0;
    while late + same < end {
        let differ = load(page, early + same) ^ load(page, late + same);
        if differ != 0 {
            same += (differ.trailing_zeros() / 8) as usize;
            break;
        }
        same += WORD;
    }
    same.min(end - late)
}

/// The compressed stream in the making.
struct Stream<'a> {
    page: &'a Padded,
    page_len: usize,
    out: &'a mut [u8],
    len: usize,
    /// Where the bytes start that are not yet in the stream.
    literals: usize,
}

impl Stream<'_> {
    /// Writes the low `count` (at most 4) bytes of `value`. What is stored beyond them is overwritten next.
    #[inline(always)]
    fn bytes(&mut self, value: u32, count: usize) {
        self.out[self.len..self.len + 4].copy_from_slice(&value.to_le_bytes());
        self.len += count;
    }

    /// A length beyond what an instruction holds: a zero for each 255, then the rest, which is not 0.
    fn extension(&mut self, mut length: usize) {
        while length > 255 {
            self.bytes(0, 1);
            length -= 255;
        }
        self.bytes(length as u32, 1);
    }

    /// Writes the bytes up to `end` as literals. False where the stream has become too long.
    #[inline(always)]
    fn push_literals(&mut self, end: usize) -> bool {
        let count = end - self.literals;
        if self.len + count + INSTRUCTION + MARGIN > self.out.len() {
            return false;
        }
        if count > 18 || self.len == 0 {
            self.push_many_literals(end, count);
            return true;
        }
        // Few literals are counted in two bits of the match before them, more in a byte of their own. How many there are is not to be
        // foreseen, so both are done without a branch. A copy of fixed length is few instructions; what is too much is overwritten next.
        self.out[self.len - 2] |= if count <= 3 { count as u8 } else { 0 };
        self.out[self.len] = (count as u8).wrapping_sub(3);
        self.len += usize::from(count > 3);
        let from = usize::from(self.literals as u16);
        self.out[self.len..self.len + MARGIN].copy_from_slice(&self.page[from..from + MARGIN]);
        self.len += count;
        true
    }

    /// Literals at the start of a stream, or more than fit into one instruction.
    #[inline(never)]
    fn push_many_literals(&mut self, end: usize, count: usize) {
        if self.len > 0 || count > 238 {
            self.bytes(0, 1);
            self.extension(count - 18);
        } else if count > 0 {
            // The first byte of a stream says how many literals start it.
            self.bytes(17 + count as u32, 1);
        }
        self.out[self.len..self.len + count].copy_from_slice(&self.page[self.literals..end]);
        self.len += count;
    }

    /// Writes the literals before `at`, and that `length` bytes there are those `distance` bytes before.
    #[inline(always)]
    fn push(&mut self, at: usize, distance: usize, length: usize) -> bool {
        if !self.push_literals(at) {
            return false;
        }
        self.literals = at + length;
        if length > 33 || distance > MIDDLE {
            self.push_long_match(distance, length);
            return true;
        }
        let back = distance - 1;
        let near = (length - 1) << 5 | (back & 7) << 2 | (back >> 3) << 8;
        let middle = 0x20 | (length - 2) | back << 10;
        let is_near = length <= 8 && distance <= NEAR;
        self.bytes(if is_near { near } else { middle } as u32, if is_near { 2 } else { 3 });
        true
    }

    /// A match from far away, or longer than one instruction says.
    #[inline(never)]
    fn push_long_match(&mut self, distance: usize, length: usize) {
        let (kind, most, back) = if distance <= MIDDLE {
            (0x20, 33, distance - 1)
        } else {
            let back = distance - MIDDLE;
            (0x10 | (back & 0x4000) >> 11, 9, back & 0x3fff)
        };
        if length <= most {
            self.bytes((kind | (length - 2) | back << 10) as u32, 3);
        } else {
            self.bytes(kind as u32, 1);
            self.extension(length - most);
            self.bytes((back << 2) as u32, 2);
        }
    }

    /// Writes what is left; none where all of it is not shorter than the page.
    fn finish(mut self) -> Option<usize> {
        if !self.push_literals(self.page_len) {
            return None;
        }
        self.bytes(END, 3);
        (self.len < self.page_len).then_some(self.len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(page: &[u8]) -> Option<usize> {
        let mut out = vec![0; room_for(page.len())];
        let len = Lzo::new().compress(page, &mut out)?;
        let mut back = vec![0; page.len()];
        assert_eq!(lzokay::decompress::decompress(&out[..len], &mut back), Ok(page.len()));
        assert!(back == page);
        Some(len)
    }

    #[test]
    fn pages_that_repeat_themselves_shrink() {
        for size in [4096, 16384, 65536] {
            let zeros = round_trip(&vec![0; size]).unwrap();
            assert!(zeros < 32 + size / 255, "{zeros}");
            for period in [1, 2, 3, 4, 5, 8, 64, 2047, 2048, 2049, 4000] {
                let page: Vec<u8> =
                    (0..size).map(|at| (at % period * 37 + at % period / 256) as u8).collect();
                assert!(round_trip(&page).is_some(), "period {period} in {size}");
            }
        }
    }

    #[test]
    fn a_page_without_repetition_is_left_as_it_is() {
        let mut state = 1u64;
        let noise: Vec<u8> = (0..4096)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        assert_eq!(round_trip(&noise), None);
        assert_eq!(round_trip(&noise[..8]), None);
    }

    proptest! {
        /// Pieces copied from anywhere before, and noise: every kind of instruction, read back by another implementation.
        #[test]
        fn what_is_compressed_comes_back(
            size in prop::sample::select(vec![64usize, 4096, 65536]),
            pieces in proptest::collection::vec((any::<prop::sample::Index>(), 1usize..3000, any::<u8>(), any::<bool>()), 1..200),
        ) {
            let mut page = vec![7, 11, 13];
            for (from, length, step, copy) in pieces {
                if copy {
                    let from = from.index(page.len());
                    let piece: Vec<u8> = page[from..].iter().copied().cycle().take(length).collect();
                    page.extend(piece);
                } else {
                    let start = page.len();
                    page.extend((0..length % 64).map(|at| (start * 31 + at * usize::from(step)) as u8));
                }
            }
            page.resize(size, 5);
            round_trip(&page);
        }
    }
}
