//! What one thread does: map a window, look at its pages, compress those that are wanted, write them in batches.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use elfcorehdr::PhysAddr;

use super::plan::{Chunk, Pass, Place};
use super::{DumpError, DumpOptions, Format, Layout, Shared, WriteFailure, Written, write_at};
use crate::PAGE;
use crate::bitmap::{Bitmap, Frame};
use crate::codec::{Codec, Compressor};
use crate::copy::is_zero;
use crate::kdump::{DESCRIPTOR, Descriptor};
use crate::source::ReadAt;
use crate::window::{MAX_WINDOW, Window, prefetch};

/// A batch is written once it has this many bytes of pages: few enough to stay in a processor's cache until then.
const BATCH: usize = 1 << 18;
/// Or describes this many pages: those of zeros add no bytes.
const BATCH_PAGES: usize = 1 << 14;

/// Pages on their way into the dump.
struct Batch {
    compressor: Compressor,
    codec: Codec,
    /// Bytes of pages, one behind the other, and room for one more while it is compressed.
    data: Vec<u8>,
    /// How many bytes of `data` are pages.
    used: usize,
    /// By their numbers in the dump, pages whose bytes are in `data` (an offset into it), or which are zeros.
    described: Vec<(u64, Content)>,
    /// For an ELF file: where bytes of `data` go.
    placed: Vec<(u64, Range<usize>)>,
    counts: Written,
}

#[derive(Debug, Clone, Copy)]
enum Content {
    Zeros,
    Data(Descriptor),
}

/// One thread's tools.
pub(super) struct Worker<'s, 'a, S> {
    shared: &'s Shared<'a, S>,
    batch: Batch,
    /// For what cannot be mapped.
    buffer: Vec<u8>,
    written: Written,
}

impl<'s, 'a, S: ReadAt> Worker<'s, 'a, S> {
    pub(super) fn new(shared: &'s Shared<'a, S>, options: &DumpOptions) -> Result<Self, DumpError> {
        let page_size = shared.selection.page_size as usize;
        let codec = match options.format {
            Format::Kdump(codec) => codec,
            Format::Elf => Codec::None,
        };
        let compressor = Compressor::new(codec, options.level, page_size);
        let compressor = compressor.map_err(|source| DumpError::Codec { codec, source })?;
        let batch = Batch {
            data: vec![0; BATCH + compressor.room().max(page_size)],
            used: 0,
            compressor,
            codec,
            described: Vec::new(),
            placed: Vec::new(),
            counts: Written::default(),
        };
        Ok(Self { shared, batch, buffer: Vec::new(), written: Written::default() })
    }

    /// Works until there is nothing left to do, or a write fails here or in another thread.
    pub(super) fn run(mut self) -> (Written, Option<WriteFailure>) {
        let mut ended = Ok(());
        let mut pass = Pass::Tables;
        while let Some(chunk) = ended.is_ok().then(|| self.shared.next_chunk()).flatten() {
            // What is worth more is not to wait in a batch for what is worth less.
            if chunk.pass != pass {
                pass = chunk.pass;
                ended = self.flush();
            }
            ended = ended.and_then(|()| self.work(&chunk));
        }
        if ended.is_ok() {
            ended = self.flush();
        }
        if ended.is_err() {
            self.shared.stop.store(true, Ordering::Relaxed);
        }
        (self.written, ended.err())
    }

    fn work(&mut self, chunk: &Chunk) -> Result<(), WriteFailure> {
        let pages = match chunk.place {
            Place::File(offset) => self.work_on_file(chunk, offset)?,
            Place::Pieces => self.work_on_pieces(chunk)?,
        };
        let mut meter = self.shared.meter.lock().unwrap_or_else(PoisonError::into_inner);
        meter.add(pages * self.shared.selection.page_size);
        Ok(())
    }

    fn work_on_file(&mut self, chunk: &Chunk, offset: u64) -> Result<u64, WriteFailure> {
        let page_size = self.shared.selection.page_size as usize;
        let len = (chunk.frames.end - chunk.frames.start) as usize * page_size;
        // Windows start at a multiple of the running kernel's page size.
        let before = (offset % rustix::param::page_size() as u64) as usize;
        let source = self.shared.core.source();
        if before + len <= MAX_WINDOW
            && let Some(window) = source.map(offset - before as u64, before + len)
        {
            let bytes = window.bytes().get(before..).unwrap_or_default();
            return self
                .pages(chunk, bytes, &|page| window_is_bad(&window, before + page * page_size, page_size));
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(len, 0);
        let mut bad = Vec::new();
        if source.read_at(offset, &mut buffer).is_err() {
            let wanted = self.wanted(chunk);
            let read = |(page, place): (usize, &mut [u8])| {
                wanted.contains(page) && source.read_at(offset + (page * page_size) as u64, place).is_err()
            };
            bad = buffer.chunks_mut(page_size).enumerate().map(read).collect();
        }
        let ended = self.pages(chunk, &buffer, &|page| bad.get(page).copied().unwrap_or(false));
        self.buffer = buffer;
        ended
    }

    /// A frame that the core holds in part, or in several pieces: what is not there is zeros.
    fn work_on_pieces(&mut self, chunk: &Chunk) -> Result<u64, WriteFailure> {
        let page_size = self.shared.selection.page_size;
        let mut page = vec![0; page_size as usize];
        let start = chunk.frames.start * page_size;
        let core = self.shared.core;
        let mut at = 0;
        let mut found = false;
        let mut bad = false;
        while let Some((from, len)) = core.next_piece(PhysAddr(start + at), page_size - at) {
            let into = (from.0 - start) as usize;
            if let Some(place) = page.get_mut(into..into + len as usize) {
                bad |= core.read_phys(from, place).is_err();
            }
            found = true;
            at = into as u64 + len;
        }
        self.pages(chunk, &page, &|_| bad || !found)
    }

    /// Which of the chunk's frames are to be written now, and which are in the dump.
    fn wanted(&self, chunk: &Chunk) -> Wanted {
        let selection = self.shared.selection;
        let kept = Bits::of(&selection.kept, &chunk.frames);
        let [tables, first, last] =
            [&selection.tables, &selection.first, &selection.last].map(|set| Bits::of(set, &chunk.frames));
        let mut now = Bits::of(&selection.kept, &chunk.frames);
        for (word, now) in now.words.iter_mut().enumerate() {
            let [tables, first, last] = [&tables, &first, &last].map(|set| set.words[word]);
            *now &= match chunk.pass {
                Pass::Tables => tables,
                Pass::First => first,
                Pass::Middle => !(tables | first | last),
                Pass::Last => last,
            };
        }
        Wanted { kept, now }
    }

    /// Takes the wanted pages out of the chunk's bytes, and says how many they were.
    fn pages(
        &mut self,
        chunk: &Chunk,
        bytes: &[u8],
        is_bad: &dyn Fn(usize) -> bool,
    ) -> Result<u64, WriteFailure> {
        let page_size = self.shared.selection.page_size as usize;
        let wanted = self.wanted(chunk);
        let mut rank = chunk.rank;
        let mut count = 0;
        for (number, page) in bytes.chunks_exact(page_size).enumerate() {
            if wanted.contains(number) {
                if wanted.contains(number + 1) {
                    prefetch(
                        bytes.get((number + 1) * page_size..(number + 2) * page_size).unwrap_or_default(),
                    );
                }
                self.page(chunk.frames.start + number as u64, rank, page, &|| is_bad(number))?;
                count += 1;
            }
            rank += u64::from(wanted.kept.contains(number));
        }
        Ok(count)
    }

    fn page(
        &mut self,
        frame: u64,
        rank: u64,
        page: &[u8],
        is_bad: &dyn Fn() -> bool,
    ) -> Result<(), WriteFailure> {
        let shared = self.shared;
        if is_zero(page) {
            if is_bad() {
                self.written.count_bad(frame);
                return Ok(());
            }
            self.batch.zeros(rank);
        } else {
            let (len, flags) = self.batch.compressed(page);
            // Whether a mapped page is bad is known only after all of it was read.
            if is_bad() {
                self.written.count_bad(frame);
                return Ok(());
            }
            match shared.layout {
                Layout::Kdump(_) => self.batch.describe(rank, len, flags),
                Layout::Elf(layout) => self.batch.place(layout.place(Frame(frame)), len),
            }
        }
        if self.batch.used >= BATCH || self.batch.described.len() >= BATCH_PAGES {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes the batch: pages first, then, in time, what describes them.
    fn flush(&mut self) -> Result<(), WriteFailure> {
        match self.shared.layout {
            Layout::Kdump(layout) => {
                let pages = self.batch.pages();
                let base = self.shared.next.fetch_add(pages.len() as u64, Ordering::Relaxed);
                write_at(self.shared.sink, base, pages)?;
                self.shared.descriptors.add(self.batch.descriptors(layout, base))?;
            }
            Layout::Elf(_) => {
                for (offset, range) in &self.batch.placed {
                    let pages = self.batch.pages().get(range.clone()).unwrap_or_default();
                    write_at(self.shared.sink, *offset, pages)?;
                }
            }
        }
        self.written.add(&self.batch.counts);
        self.batch.clear();
        Ok(())
    }
}

/// Whether one of the window's pages between these bytes could not be read.
fn window_is_bad(window: &Window, start: usize, len: usize) -> bool {
    (start / PAGE..(start + len).div_ceil(PAGE)).any(|page| window.is_bad(page))
}

/// The bits of a chunk's frames.
struct Bits {
    words: [u64; Self::WORDS],
    /// The chunk's first frame has this bit.
    shift: usize,
}

impl Bits {
    /// The frames of a window, and seven for those before it in the first byte.
    const WORDS: usize = MAX_WINDOW / PAGE / 64 + 1;

    fn of(bitmap: &Bitmap, frames: &Range<u64>) -> Self {
        let mut bytes = [0; Self::WORDS * 8];
        let shift = (frames.start % 8) as usize;
        let used = (shift + (frames.end - frames.start) as usize).div_ceil(8).min(bytes.len());
        bitmap.write_bytes(frames.start / 8, &mut bytes[..used]);
        let mut words = [0; Self::WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Self { words, shift }
    }

    fn contains(&self, number: usize) -> bool {
        let bit = number + self.shift;
        self.words.get(bit / 64).is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }
}

struct Wanted {
    kept: Bits,
    now: Bits,
}

impl Wanted {
    fn contains(&self, number: usize) -> bool {
        self.now.contains(number)
    }
}

impl Batch {
    /// What is to be written.
    fn pages(&self) -> &[u8] {
        &self.data[..self.used]
    }

    /// Puts a page behind the others, compressed if that makes it smaller. Gives its length there, and its descriptor's flags. It counts
    /// once it is described or placed.
    fn compressed(&mut self, page: &[u8]) -> (usize, u32) {
        let room = &mut self.data[self.used..];
        match self.compressor.compress(page, room) {
            Some(len) => (len, self.codec.flag()),
            None => {
                room[..page.len()].copy_from_slice(page);
                (page.len(), 0)
            }
        }
    }

    fn zeros(&mut self, rank: u64) {
        self.described.push((rank, Content::Zeros));
        self.counts.zero_pages += 1;
    }

    fn describe(&mut self, rank: u64, len: usize, flags: u32) {
        let descriptor = Descriptor { offset: self.used as u64, size: len as u32, flags };
        self.described.push((rank, Content::Data(descriptor)));
        self.count(len);
    }

    fn place(&mut self, offset: u64, len: usize) {
        let at = self.used;
        match self.placed.last_mut() {
            Some((start, range)) if range.end == at && *start + range.len() as u64 == offset => {
                range.end = at + len;
            }
            _ => self.placed.push((offset, at..at + len)),
        }
        self.count(len);
    }

    fn count(&mut self, len: usize) {
        self.used += len;
        self.counts.data_pages += 1;
        self.counts.data_bytes += len as u64;
    }

    fn clear(&mut self) {
        self.used = 0;
        self.described.clear();
        self.placed.clear();
        self.counts = Written::default();
    }

    /// The descriptors, neighbours in one go, and where they go; the batch's data are at `base`.
    fn descriptors(&self, layout: &super::kdump::Layout, base: u64) -> Vec<(u64, Vec<u8>)> {
        let zeros = Descriptor { offset: layout.zero_page, size: layout.page_size, flags: 0 };
        let runs = self.described.chunk_by(|one, next| one.0 + 1 == next.0);
        let bytes = |content: &Content| match *content {
            Content::Zeros => zeros.to_bytes(),
            Content::Data(data) => Descriptor { offset: base + data.offset, ..data }.to_bytes(),
        };
        let described = |run: &[(u64, Content)]| {
            let first = run.first().map_or(0, |(rank, _)| *rank);
            let bytes = run.iter().flat_map(|(_, content)| bytes(content)).collect();
            (layout.table + first * DESCRIPTOR as u64, bytes)
        };
        runs.map(described).collect()
    }
}
