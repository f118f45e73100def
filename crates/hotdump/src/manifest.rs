//! `manifest.json`: checksums of a dump's pieces, made as it is written, so that what lies on disk can be held against what was to.
//!
//! A dump is written in pieces, by several threads and in no order, so one checksum over all of it would take another pass over the
//! file. Each large write gets its own in passing; small ones (headers, descriptors) are read back and summed at the end, neighbours
//! together. What was never written (holes) has none.
//!
//! The sums are XXH3-128, which finds what disks and memory do to bytes and keeps up with reading them; somebody who changes a dump
//! can change its manifest as well. SHA-256 does 0.3 to 1.3 GB/s on a CPU, without and with instructions for it, where memory comes at 2.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use twox_hash::XxHash3_128;

/// Writes of fewer bytes than this are summed at the end.
const SMALL: usize = 64 << 10;
/// Bytes that are read at once.
const BUFFER: usize = 1 << 20;

/// Bytes side by side in a dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Piece {
    /// From the file's start, in bytes.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) len: u64,
    /// XXH3-128 with seed 0, in hex: what `xxh128sum` prints of these bytes.
    pub(crate) xxh128: String,
}

/// The checksums of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// The file's length, in bytes.
    pub(crate) size: u64,
    /// By offset, without overlaps.
    pub(crate) pieces: Vec<Piece>,
}

/// What came of holding a file against its manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Verdict {
    /// Bytes that were read and are as they were written.
    pub(crate) good_bytes: u64,
    /// Pieces that are not, or cannot be read: offset and length.
    pub(crate) bad: Vec<(u64, u64)>,
}

/// Listens to a dump being written.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    /// By offset: length, and the sum of those that have one already.
    pieces: Mutex<BTreeMap<u64, (u64, Option<u128>)>>,
}

impl Recorder {
    /// Notes that `bytes` are written at `offset`, in place of what may be there.
    pub(crate) fn note(&self, offset: u64, bytes: &[u8]) {
        let len = bytes.len() as u64;
        if len == 0 {
            return;
        }
        let sum = (bytes.len() >= SMALL).then(|| XxHash3_128::oneshot(bytes));
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        make_way(&mut pieces, offset, offset.saturating_add(len));
        let (mut start, mut end) = (offset, offset.saturating_add(len));
        if sum.is_none() {
            // Neighbours without a sum become one.
            let before = pieces.range(..start).next_back().map(|(at, piece)| (*at, *piece));
            if let Some((at, (length, None))) = before
                && at + length == start
            {
                pieces.remove(&at);
                start = at;
            }
            if let Some((length, None)) = pieces.get(&end).copied() {
                pieces.remove(&end);
                end += length;
            }
        }
        pieces.insert(start, (end - start, sum));
    }

    /// The manifest of `file`, in which all that was noted now lies.
    ///
    /// # Errors
    /// A piece cannot be read back.
    pub(crate) fn finish(self, file: &File) -> io::Result<Manifest> {
        let size = file.metadata()?.len();
        let pieces = self.pieces.into_inner().unwrap_or_else(PoisonError::into_inner);
        let sum = |(offset, (len, sum)): (u64, (u64, Option<u128>))| {
            let sum = sum.map_or_else(|| sum_of(file, offset, len), Ok)?;
            Ok(Piece { offset, len, xxh128: hex_of(sum) })
        };
        Ok(Manifest { size, pieces: pieces.into_iter().map(sum).collect::<io::Result<_>>()? })
    }
}

/// Cuts what lies from `start` up to `end` out of the pieces; what is left of one that is cut has no sum any more.
fn make_way(pieces: &mut BTreeMap<u64, (u64, Option<u128>)>, start: u64, end: u64) {
    let overlapping: Vec<(u64, u64)> = pieces
        .range(..end)
        .rev()
        .map(|(at, (len, _))| (*at, *len))
        .take_while(|(at, len)| at + len > start)
        .collect();
    for (at, len) in overlapping {
        pieces.remove(&at);
        if at < start {
            pieces.insert(at, (start - at, None));
        }
        if at + len > end {
            pieces.insert(end, (at + len - end, None));
        }
    }
}

impl Manifest {
    /// Holds `file` against the manifest: all pieces, or `most` of them, from the first to the last.
    /// `progress` is told how many bytes were looked at, of how many.
    pub(crate) fn check(
        &self,
        file: &File,
        most: Option<usize>,
        mut progress: impl FnMut(u64, u64),
    ) -> Verdict {
        let mut verdict = Verdict::default();
        let chosen = self.chosen(most);
        let total = chosen.iter().map(|piece| piece.len).fold(0, u64::saturating_add);
        let mut done: u64 = 0;
        for piece in chosen {
            match sum_of(file, piece.offset, piece.len) {
                Ok(sum) if hex_of(sum) == piece.xxh128 => verdict.good_bytes += piece.len,
                _ => verdict.bad.push((piece.offset, piece.len)),
            }
            done = done.saturating_add(piece.len);
            progress(done, total);
        }
        verdict
    }

    /// `most` pieces at even distances, the first and the last among them; all where there are no more.
    fn chosen(&self, most: Option<usize>) -> Vec<&Piece> {
        let count = self.pieces.len();
        match most {
            Some(most) if most < count && most > 1 => {
                (0..most).filter_map(|number| self.pieces.get(number * (count - 1) / (most - 1))).collect()
            }
            _ => self.pieces.iter().collect(),
        }
    }
}

/// The sum of `len` bytes from `offset`.
fn sum_of(file: &File, offset: u64, len: u64) -> io::Result<u128> {
    let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
    let mut hash = XxHash3_128::new();
    let mut buffer = vec![0; BUFFER.min(usize::try_from(len).unwrap_or(BUFFER))];
    let mut at = offset;
    while at < end {
        let now = (end - at).min(BUFFER as u64) as usize;
        let part = &mut buffer[..now];
        file.read_exact_at(part, at)?;
        hash.write(part);
        at += now as u64;
    }
    Ok(hash.finish_128())
}

fn hex_of(sum: u128) -> String {
    format!("{sum:032x}")
}

/// The SHA-256 of a manifest, in hex: reports have it, so that a manifest is not taken for another dump's.
pub(crate) fn sha256_of(manifest: &[u8]) -> String {
    Sha256::digest(manifest).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(file: &File, recorder: &Recorder, offset: u64, bytes: &[u8]) {
        file.write_all_at(bytes, offset).unwrap();
        recorder.note(offset, bytes);
    }

    #[test]
    fn known_sums() {
        assert_eq!(sha256_of(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        // As xxh128sum has it.
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abc", 0).unwrap();
        assert_eq!(hex_of(sum_of(&file, 0, 3).unwrap()), "06b05ab6733a618578af5f94892f3950");
        assert_eq!(hex_of(XxHash3_128::oneshot(b"abc")), "06b05ab6733a618578af5f94892f3950");
    }

    #[test]
    fn small_neighbours_become_one_piece_and_what_was_overwritten_is_summed_anew() {
        let file = tempfile::tempfile().unwrap();
        let recorder = Recorder::default();
        write(&file, &recorder, 0, &[1; 4096]);
        write(&file, &recorder, 4096, &[2; 100]);
        write(&file, &recorder, 1 << 20, &vec![3; SMALL]);
        write(&file, &recorder, 8, &[4; 8]);
        write(&file, &recorder, (1 << 20) + 5, &[5; 1]);
        let manifest = recorder.finish(&file).unwrap();
        let places: Vec<_> = manifest.pieces.iter().map(|piece| (piece.offset, piece.len)).collect();
        assert_eq!(places, [(0, 4196), (1 << 20, SMALL as u64)]);
        assert_eq!(manifest.check(&file, None, |_, _| ()).bad, []);
        file.write_all_at(&[9], (1 << 20) + 5).unwrap();
        assert_eq!(manifest.check(&file, None, |_, _| ()).bad, [(1 << 20, SMALL as u64)]);
        file.set_len(1 << 20).unwrap();
        assert_eq!(manifest.check(&file, None, |_, _| ()).bad.len(), 1, "what is cut off is bad too");
    }

    #[test]
    fn a_part_reaches_from_the_first_piece_to_the_last() {
        let piece = |offset| Piece { offset, len: 1, xxh128: String::new() };
        let manifest = Manifest { size: 100, pieces: (0..100).map(piece).collect() };
        let chosen = |most| manifest.chosen(most).iter().map(|piece| piece.offset).collect::<Vec<_>>();
        assert_eq!(chosen(Some(4)), [0, 33, 66, 99]);
        assert_eq!(chosen(Some(200)).len(), 100);
        assert_eq!(chosen(None).len(), 100);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is written where, over what: the manifest covers each byte written once, and any byte changed is found.
        #[test]
        fn every_byte_written_is_covered(
            writes in proptest::collection::vec((0u64..200_000, 1usize..100_000), 1..8),
            change in any::<proptest::sample::Index>(),
        ) {
            let file = tempfile::tempfile().unwrap();
            let recorder = Recorder::default();
            let mut covered = vec![false; 300_000];
            for (number, (offset, len)) in writes.iter().enumerate() {
                write(&file, &recorder, *offset, &vec![number as u8 + 1; *len]);
                covered[*offset as usize..*offset as usize + len].fill(true);
            }
            let manifest = recorder.finish(&file).unwrap();
            let mut seen = vec![false; 300_000];
            for piece in &manifest.pieces {
                for byte in piece.offset..piece.offset + piece.len {
                    prop_assert!(!std::mem::replace(&mut seen[byte as usize], true));
                }
            }
            prop_assert!(seen == covered);
            prop_assert_eq!(manifest.check(&file, None, |_, _| ()).bad, []);
            let written: Vec<usize> = (0..covered.len()).filter(|at| covered[*at]).collect();
            file.write_all_at(&[0], written[change.index(written.len())] as u64).unwrap();
            prop_assert_eq!(manifest.check(&file, None, |_, _| ()).bad.len(), 1);
        }
    }
}
