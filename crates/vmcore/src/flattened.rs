//! makedumpfile's flattened format: a file as a stream of records, each with the offset that its bytes belong to.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::dump::Sink;
use crate::source::ReadAt;

/// What a stream starts with, padded by zeros to 16 bytes.
const SIGNATURE: &[u8] = b"makedumpfile";
/// The first record lies behind a header of this many bytes.
const HEADER: usize = 4096;
/// Type and version in the header: both are 1 so far.
const TYPE: u64 = 1;
const VERSION: u64 = 1;
/// A record's header: offset and size, 64-bit big-endian.
pub(crate) const RECORD: usize = 16;
/// An offset and size of -1 end a stream.
pub(crate) const END_MARK: [u8; RECORD] = [0xff; RECORD];

/// The header of a stream.
pub(crate) fn file_header() -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..SIGNATURE.len()].copy_from_slice(SIGNATURE);
    header[16..24].copy_from_slice(&TYPE.to_be_bytes());
    header[24..32].copy_from_slice(&VERSION.to_be_bytes());
    header
}

/// The header of a record of `size` bytes that belong to `offset`.
pub(crate) fn record_header(offset: u64, size: u64) -> [u8; RECORD] {
    let mut header = [0; RECORD];
    header[..8].copy_from_slice(&offset.to_be_bytes());
    header[8..].copy_from_slice(&size.to_be_bytes());
    header
}

/// A stream with more records than this is not read as it is: their index would take more memory than a capture kernel has.
const MAX_RECORDS: usize = 1 << 21;

/// A flattened stream in a file, read as the file that it describes.
#[derive(Debug)]
pub struct Rearranged<S> {
    source: S,
    /// By where they belong, without overlaps: how many bytes, and where these are in the source.
    records: BTreeMap<u64, Piece>,
    size: u64,
    complete: bool,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    len: u64,
    at: u64,
}

impl<S: ReadAt> Rearranged<S> {
    /// Whether `source` starts as a flattened stream does.
    ///
    /// # Errors
    /// The system's error, `UnexpectedEof` where the source is shorter than a header.
    pub fn is_one(source: &S) -> io::Result<bool> {
        let mut start = [0; SIGNATURE.len()];
        source.read_at(0, &mut start)?;
        Ok(start == SIGNATURE)
    }

    /// Reads where the records belong. A stream that was cut short is read as far as it goes.
    ///
    /// # Errors
    /// [`FlattenedError`].
    pub fn open(source: S) -> Result<Self, FlattenedError> {
        let read = |offset, buf: &mut [u8]| {
            source.read_at(offset, buf).map_err(|source| FlattenedError::Read { offset, source })
        };
        let mut numbers = [0; 16];
        read(16, &mut numbers)?;
        let (kind, version) = split(numbers);
        if (kind, version) != (TYPE, VERSION) {
            return Err(FlattenedError::Kind { kind, version });
        }
        let end = source.size().map_err(|source| FlattenedError::Read { offset: 0, source })?;
        let mut records = BTreeMap::new();
        let mut size = 0;
        let mut at = HEADER as u64;
        let mut complete = false;
        while at.saturating_add(RECORD as u64) <= end {
            let mut header = [0; RECORD];
            read(at, &mut header)?;
            if header == END_MARK {
                complete = true;
                break;
            }
            let (offset, len) = split(header);
            let damaged = FlattenedError::Record { at, offset, len };
            if len == 0 || offset.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
                return Err(damaged);
            }
            at += RECORD as u64;
            // The last record of a stream cut short holds less than it says.
            let held = len.min(end - at);
            size = size.max(offset + held);
            if held > 0 {
                insert(&mut records, offset, Piece { len: held, at });
            }
            if records.len() > MAX_RECORDS {
                return Err(FlattenedError::TooMany { at });
            }
            at += held;
        }
        Ok(Self { source, records, size, complete })
    }

    /// Whether the stream has its end.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }
}

/// Bytes of a record that are moved at once.
const PIECE: usize = 1 << 20;

/// Makes the file of a stream that cannot be read twice (a pipe), in `sink`. Returns how many bytes of the stream there were.
///
/// # Errors
/// [`FlattenedError`]; what came before the damage, or the stream's early end, is in `sink`.
pub fn restore(stream: &mut impl Read, sink: &dyn Sink) -> Result<u64, FlattenedError> {
    let mut at = 0;
    let mut header = [0; HEADER];
    take(stream, &mut at, &mut header)?;
    let [.., kind, version] =
        [0, 16, 24].map(|at| header[at..].first_chunk().map_or(0, |word| u64::from_be_bytes(*word)));
    if !header.starts_with(SIGNATURE) || (kind, version) != (TYPE, VERSION) {
        return Err(FlattenedError::Kind { kind, version });
    }
    let mut end = 0;
    let mut buffer = vec![0; PIECE];
    loop {
        let mut header = [0; RECORD];
        take(stream, &mut at, &mut header)?;
        if header == END_MARK {
            sink.finish(end).map_err(|source| FlattenedError::Write { offset: end, source })?;
            return Ok(at);
        }
        let (offset, len) = split(header);
        let past = offset.checked_add(len).filter(|past| len > 0 && *past <= i64::MAX as u64);
        let past = past.ok_or(FlattenedError::Record { at, offset, len })?;
        let mut to = offset;
        while to < past {
            let piece = &mut buffer[..(past - to).min(PIECE as u64) as usize];
            take(stream, &mut at, piece)?;
            sink.write_at(to, piece).map_err(|source| FlattenedError::Write { offset: to, source })?;
            to += piece.len() as u64;
        }
        end = end.max(past);
    }
}

/// Fills `buf` from a stream of which `at` bytes are read.
fn take(stream: &mut impl Read, at: &mut u64, buf: &mut [u8]) -> Result<(), FlattenedError> {
    stream.read_exact(buf).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => FlattenedError::Cut { at: *at },
        _ => FlattenedError::Read { offset: *at, source },
    })?;
    *at += buf.len() as u64;
    Ok(())
}

/// Two 64-bit big-endian numbers.
fn split(bytes: [u8; 16]) -> (u64, u64) {
    let both = u128::from_be_bytes(bytes);
    ((both >> 64) as u64, both as u64)
}

/// Puts a record in; what it overlaps of earlier ones is gone.
fn insert(records: &mut BTreeMap<u64, Piece>, offset: u64, piece: Piece) {
    let end = offset + piece.len;
    let before = records.range(..end).next_back().filter(|(start, old)| *start + old.len > offset);
    if before.is_some() {
        let overlapped: Vec<(u64, Piece)> = records
            .range(..end)
            .rev()
            .take_while(|(start, old)| *start + old.len > offset)
            .map(|(start, old)| (*start, *old))
            .collect();
        for (start, old) in overlapped {
            records.remove(&start);
            let old_end = start + old.len;
            if start < offset {
                records.insert(start, Piece { len: offset - start, at: old.at });
            }
            if old_end > end {
                records.insert(end, Piece { len: old_end - end, at: old.at + (end - start) });
            }
        }
    }
    records.insert(offset, piece);
}

impl<S: ReadAt> ReadAt for Rearranged<S> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        // What no record has is zeros.
        buf.fill(0);
        let from = self.records.range(..=offset).next_back().map_or(offset, |(start, _)| *start);
        for (start, piece) in self.records.range(from..end) {
            let (low, high) = (offset.max(*start), end.min(start + piece.len));
            if low < high {
                let place = &mut buf[(low - offset) as usize..(high - offset) as usize];
                self.source.read_at(piece.at + (low - start), place)?;
            }
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }
}

/// Why a flattened stream could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FlattenedError {
    /// The source cannot be read there.
    #[error("cannot read the flattened dump at offset {offset:#x}: {source}")]
    Read {
        /// Offset in the source, in bytes.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// A kind that is not known.
    #[error("a flattened dump of type {kind}, version {version}: type 1, version 1 is known")]
    Kind {
        /// Its type.
        kind: u64,
        /// Its version.
        version: u64,
    },
    /// A record that cannot be.
    #[error(
        "the flattened dump has a record of {len:#x} bytes for offset {offset:#x}, at {at:#x}: the stream is damaged"
    )]
    Record {
        /// Where it is in the source, in bytes.
        at: u64,
        /// Where it says that it belongs.
        offset: u64,
        /// How many bytes it says it has.
        len: u64,
    },
    /// A stream without its end.
    #[error("the flattened dump ends early, behind {at:#x} bytes: its writer or the way here broke off")]
    Cut {
        /// Bytes that were read in whole.
        at: u64,
    },
    /// The file that a stream describes takes no more.
    #[error("cannot write the dump at offset {offset:#x}: {source}")]
    Write {
        /// Offset in the file, in bytes.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// More records than are kept in memory.
    #[error(
        "the flattened dump has more than {MAX_RECORDS} records up to offset {at:#x}: make a file of it first (makedumpfile -R)"
    )]
    TooMany {
        /// Offset in the source, in bytes.
        at: u64,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(records: &[(u64, &[u8])]) -> Vec<u8> {
        let mut stream = file_header().to_vec();
        for (offset, bytes) in records {
            stream.extend(record_header(*offset, bytes.len() as u64));
            stream.extend(*bytes);
        }
        stream.extend(END_MARK);
        stream
    }

    #[test]
    fn a_pipe_becomes_the_file_and_one_cut_short_says_so() {
        let whole = stream(&[(10, b"later"), (0, b"first"), (11, b"A")]);
        let restored = |stream: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            let outcome = restore(&mut &*stream, &file);
            let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
            ReadAt::read_at(&file, 0, &mut bytes).unwrap();
            (outcome, bytes)
        };
        let (outcome, bytes) = restored(&whole);
        assert_eq!(
            (outcome.unwrap(), bytes.as_slice()),
            (whole.len() as u64, b"first\0\0\0\0\0lAter".as_slice())
        );
        for cut in 0..whole.len() {
            assert!(matches!(restored(&whole[..cut]).0, Err(FlattenedError::Cut { .. })), "{cut}");
        }
        assert!(matches!(restored(&[0; 5000]).0, Err(FlattenedError::Kind { .. })));
        let huge = [file_header().as_slice(), &record_header(u64::MAX - 1, 5)].concat();
        assert!(matches!(restored(&huge).0, Err(FlattenedError::Record { .. })));
    }

    proptest! {
        /// Any records, overlapping or not, whole or cut: the last one written to a byte counts.
        #[test]
        fn records_are_laid_over_each_other_in_their_order(
            records in proptest::collection::vec((0usize..300, 1usize..60, any::<u8>()), 0..30),
            cut in 0usize..400,
        ) {
            let mut stream = file_header().to_vec();
            let mut want = Vec::new();
            for (offset, len, byte) in &records {
                stream.extend(record_header(*offset as u64, *len as u64));
                stream.extend(vec![*byte; *len]);
                want.resize(want.len().max(offset + len), 0);
                want[*offset..offset + len].fill(*byte);
            }
            let whole = stream.len();
            stream.extend(END_MARK);
            let file = Rearranged::open(stream.as_slice()).unwrap();
            let mut found = vec![1; want.len()];
            file.read_at(0, &mut found).unwrap();
            prop_assert!(file.is_complete() && found == want);
            file.read_at(0, &mut vec![0; want.len() + 1]).unwrap_err();
            if want.len() > 9 {
                file.read_at(5, &mut found[..4]).unwrap();
                prop_assert_eq!(&found[..4], &want[5..9]);
            }

            let cut = whole.saturating_sub(cut).max(HEADER);
            let short = Rearranged::open(&stream[..cut]).unwrap();
            prop_assert!(!short.is_complete() && short.size <= file.size);
        }

        /// Damage ends in an answer or an error.
        #[test]
        fn hostile_records_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), offset: u64) {
            let mut stream = file_header().to_vec();
            stream.extend(bytes);
            if let Ok(file) = Rearranged::open(stream.as_slice()) {
                let _ = file.read_at(offset, &mut [0; 64]);
                let _ = file.read_at(0, &mut [0; 64]);
            }
        }
    }
}
