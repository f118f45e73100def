//! The whole image into a sparse file: every byte at the offset it has in the source, zero pages as holes.

use std::io;
use std::time::{Duration, Instant};

use elfcorehdr::PhysAddr;

use crate::PAGE;
use crate::dump::Sink;
use crate::elf::Core;
use crate::source::ReadAt;
use crate::window::MAX_WINDOW;

/// How much is mapped or read at once, in bytes.
const WINDOW: usize = MAX_WINDOW;

/// How much of what is mapped is taken out at once, in bytes: little enough to stay in a processor's cache.
const PIECE: usize = 256 << 10;

/// How far a copy has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Bytes of the image that were looked at.
    pub done: u64,
    /// Bytes of the whole image.
    pub total: u64,
    /// Time since the copy started.
    pub elapsed: Duration,
}

impl Progress {
    /// Bytes a second, on average so far.
    #[must_use]
    pub fn rate(&self) -> u64 {
        let millis = self.elapsed.as_millis().max(1);
        u64::try_from(u128::from(self.done) * 1000 / millis).unwrap_or(u64::MAX)
    }

    /// The time that the rest takes at this rate; none while nothing is done.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let rate = self.rate();
        (rate > 0).then(|| Duration::from_secs(self.total.saturating_sub(self.done) / rate))
    }
}

/// Pages side by side that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadRun {
    /// File offset of the first one, in bytes.
    pub offset: u64,
    /// Its physical address; none outside memory (headers, notes).
    pub address: Option<PhysAddr>,
    /// How many pages.
    pub pages: u64,
}

/// What a copy did. Pages are of 4096 bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Length of the dump, in bytes.
    pub size: u64,
    /// Bytes, from the start, that were looked at: `size` when the copy came to its end.
    pub done: u64,
    /// Pages written.
    pub data_pages: u64,
    /// Pages of zeros, left as holes.
    pub zero_pages: u64,
    /// Pages that could not be read, left as holes.
    pub bad_pages: u64,
    /// Where those are; past [`MAX_BAD_RUNS`] runs only counted.
    pub bad_runs: Vec<BadRun>,
}

/// The most runs of bad pages that are listed one by one.
pub const MAX_BAD_RUNS: usize = 1024;

/// Why a copy ended early. What was done up to there is in `copied`.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the dump at offset {offset:#x}: {source}")]
pub struct CopyError {
    /// Offset in the dump, in bytes.
    pub offset: u64,
    /// The system's error.
    pub source: io::Error,
    /// What was copied before.
    pub copied: Box<Copied>,
}

/// What a page turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Zero,
    Bad,
}

/// Copies `core` into `dump`, an empty file or one that is listened to, and calls `progress` after each window.
///
/// `dump` gets its full length first: a copy that ends early leaves a file that tools still open, with zeros where nothing
/// was saved. `skip` names pages by physical address that are not to be read, and count as bad.
///
/// # Errors
/// [`CopyError`] where `dump` takes no more. A page that cannot be read is no error: it is counted.
pub fn copy_sparse<S: ReadAt>(
    core: &Core<S>,
    dump: &dyn Sink,
    skip: &dyn Fn(PhysAddr) -> bool,
    mut progress: impl FnMut(&Progress),
) -> Result<Copied, CopyError> {
    let start = Instant::now();
    let total = core.size();
    let mut copied = Copied { size: total, ..Copied::default() };
    let mut buffer = Vec::new();
    let mut piece = Vec::new();
    let failed = |offset, source, copied: Copied| CopyError { offset, source, copied: Box::new(copied) };
    if let Err(error) = dump.finish(total) {
        return Err(failed(0, error, copied));
    }
    while copied.done < total {
        let offset = copied.done;
        let len = usize::try_from(total - offset).unwrap_or(WINDOW).min(WINDOW);
        let result = match core.source().map(offset, len) {
            Some(window) => {
                let bad = |page: usize| window.is_bad(page);
                Pages { core, dump, skip, offset, piece: Some(&mut piece) }.copy(
                    window.bytes(),
                    &bad,
                    &mut copied,
                )
            }
            None => {
                let bad = read_pages(core.source(), offset, len, &mut buffer);
                let bad = |page: usize| bad.get(page).copied().unwrap_or(false);
                Pages { core, dump, skip, offset, piece: None }.copy(&buffer, &bad, &mut copied)
            }
        };
        if let Err(error) = result {
            return Err(failed(offset, error, copied));
        }
        copied.done += len as u64;
        progress(&Progress { done: copied.done, total, elapsed: start.elapsed() });
    }
    Ok(copied)
}

/// Fills `buffer` with `len` bytes from `offset`: at once, or page by page where that fails. Returns which pages failed.
fn read_pages(source: &impl ReadAt, offset: u64, len: usize, buffer: &mut Vec<u8>) -> Vec<bool> {
    buffer.resize(len, 0);
    if source.read_at(offset, buffer).is_ok() {
        return Vec::new();
    }
    let read =
        |(page, place): (usize, &mut [u8])| source.read_at(offset + (page * PAGE) as u64, place).is_err();
    buffer.chunks_mut(PAGE).enumerate().map(read).collect()
}

/// The pages of one window, on their way into the dump.
struct Pages<'a, S> {
    core: &'a Core<S>,
    dump: &'a dyn Sink,
    skip: &'a dyn Fn(PhysAddr) -> bool,
    /// The window's offset in image and dump.
    offset: u64,
    /// For a window whose bytes may change at any time: devices of a crashed machine may still write to its memory, and
    /// hypervisors do (PowerPC's count there how often a CPU ran). What is written is taken out first, so that all who get it,
    /// such as a checksum, get the same.
    piece: Option<&'a mut Vec<u8>>,
}

impl<S: ReadAt> Pages<'_, S> {
    /// Writes the window's data pages, neighbours in one go, and counts all pages.
    fn copy(mut self, bytes: &[u8], is_bad: &dyn Fn(usize) -> bool, copied: &mut Copied) -> io::Result<()> {
        // Data pages seen and not yet written start here.
        let mut pending = None;
        for (number, page) in bytes.chunks(PAGE).enumerate() {
            let at = number * PAGE;
            match self.kind(number, page, is_bad) {
                Kind::Data => {
                    pending.get_or_insert(at);
                    continue;
                }
                Kind::Zero => copied.zero_pages += 1,
                Kind::Bad => self.count_bad(at, copied),
            }
            self.write(bytes, pending.take(), at, copied)?;
        }
        self.write(bytes, pending, bytes.len(), copied)
    }

    fn kind(&self, number: usize, page: &[u8], is_bad: &dyn Fn(usize) -> bool) -> Kind {
        if self.address(number * PAGE).is_some_and(self.skip) {
            return Kind::Bad;
        }
        // The order counts: whether a mapped page is bad is known only after it was read.
        let zero = is_zero(page);
        if is_bad(number) {
            Kind::Bad
        } else if zero {
            Kind::Zero
        } else {
            Kind::Data
        }
    }

    fn address(&self, at: usize) -> Option<PhysAddr> {
        self.core.address_of(self.offset + at as u64)
    }

    /// Writes the data pages from `from` up to `to`, if there are any.
    fn write(&mut self, bytes: &[u8], from: Option<usize>, to: usize, copied: &mut Copied) -> io::Result<()> {
        let Some((from, data)) = from.and_then(|from| Some((from, bytes.get(from..to)?))) else {
            return Ok(());
        };
        let offset = self.offset + from as u64;
        match &mut self.piece {
            None => self.dump.write_at(offset, data)?,
            Some(piece) => {
                for (number, data) in data.chunks(PIECE).enumerate() {
                    piece.clear();
                    piece.extend_from_slice(data);
                    self.dump.write_at(offset + (number * PIECE) as u64, piece)?;
                }
            }
        }
        copied.data_pages += data.len().div_ceil(PAGE) as u64;
        Ok(())
    }

    fn count_bad(&self, at: usize, copied: &mut Copied) {
        let offset = self.offset + at as u64;
        let address = self.address(at);
        copied.bad_pages += 1;
        if let Some(last) = copied.bad_runs.last_mut() {
            let bytes = last.pages * PAGE as u64;
            let next = last.address.and_then(|address| address.0.checked_add(bytes)).map(PhysAddr);
            if last.offset + bytes == offset && next == address {
                last.pages += 1;
                return;
            }
        }
        if copied.bad_runs.len() < MAX_BAD_RUNS {
            copied.bad_runs.push(BadRun { offset, address, pages: 1 });
        }
    }
}

/// Whether a page holds zeros only.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    // In pieces that the compiler turns into vector instructions, with a way out after each.
    page.chunks(256).all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}
