//! A kdump-compressed dump, read as the ELF core that it was made of.
//!
//! So all that reads cores reads these files too. A page that the dump does not hold cannot be read, just as broken memory in
//! /proc/vmcore.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use object::elf;

use crate::bitmap::{Bitmap, Frame};
use crate::codec::{Codec, Decompressor};
use crate::elf_file::{self, Entry, MAX_LOADS};
use crate::kdump::{DESCRIPTOR, Descriptor, INCOMPLETE, NAME, NAMES, SIGNATURE, VERSION, header, sub_header};
use crate::source::ReadAt;

/// Bitmaps larger than this are refused: one of 4 GiB describes 128 TiB of memory in pages of 4 KiB.
const MAX_BITMAP: u64 = 4 << 30;
/// Notes larger than this are refused.
const MAX_NOTES: u64 = 256 << 20;
/// Bitmaps are read in pieces of this many bytes.
const PIECE: u64 = 1 << 18;
/// Frames between two places whose rank is kept.
const STRIDE: u64 = 1 << 15;
/// Descriptors read at once.
const DESCRIPTORS: u64 = 1024;
/// What makedumpfile calls machines in struct new_utsname, and their `e_machine`.
const MACHINES: [(&str, u16); 3] =
    [("x86_64", elf::EM_X86_64.0), ("ppc64le", elf::EM_PPC64.0), ("ppc64", elf::EM_PPC64.0)];

/// What the headers of a kdump-compressed dump say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpHeader {
    /// Version of the format: 1 to 6.
    pub version: u32,
    /// The system's name, node, release, version, machine, domain: struct new_utsname of the crashed kernel.
    pub utsname: [String; NAMES],
    /// When it crashed or was dumped, in seconds since 1970; 0 if not said.
    pub time: u64,
    /// Whether its writer did not come to the end.
    pub incomplete: bool,
    /// The codec; none where the header does not say, or more than one.
    pub codec: Option<Codec>,
    /// The size of a page and of a block, in bytes.
    pub page_size: u64,
    /// The frame after the last one.
    pub end: Frame,
    /// CPUs.
    pub cpus: u32,
    /// The level that its writer says it was filtered at.
    pub dump_level: u32,
    /// The first bitmap: frames that the machine had.
    pub exists: Bitmap,
    /// The second bitmap: frames that the dump is to hold.
    pub kept: Bitmap,
}

/// A kdump-compressed dump, read as an ELF core.
pub struct Compressed<S> {
    source: S,
    header: Arc<DumpHeader>,
    /// Where descriptors start, in bytes.
    table: u64,
    /// Frames, and how many of the kept ones are before them; by the frame.
    ranks: Vec<(u64, u64)>,
    core: Layout,
    tools: Mutex<Vec<Tools>>,
}

/// The core that the dump is read as.
struct Layout {
    /// ELF header and program headers.
    head: Vec<u8>,
    /// Where the notes are in the core, and in the dump.
    notes: Range<u64>,
    notes_at: u64,
    /// Runs of frames, and where they are in the core.
    loads: Vec<(Range<u64>, u64)>,
    size: u64,
}

/// What is needed to bring a page back. One for each thread that reads at a time.
struct Tools {
    decompressor: Decompressor,
    compressed: Vec<u8>,
    /// The page read last, for reads of parts of pages.
    page: Vec<u8>,
    frame: Option<u64>,
}

/// Why a kdump-compressed dump could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DumpFileError {
    /// The source cannot be read there.
    #[error("cannot read {what} of the dump at offset {offset:#x}: {source}")]
    Read {
        /// What was to be read.
        what: &'static str,
        /// Offset in the dump, in bytes.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// A field that cannot be.
    #[error("not a kdump-compressed dump that can be read: {field} is {found}, wanted {wanted}")]
    Header {
        /// The field, by its name in the format.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        wanted: &'static str,
    },
}

fn wrong(field: &'static str, found: impl fmt::Display, wanted: &'static str) -> DumpFileError {
    DumpFileError::Header { field, found: found.to_string(), wanted }
}

/// Reads, and says what could not be read.
fn read(source: &impl ReadAt, what: &'static str, offset: u64, buf: &mut [u8]) -> Result<(), DumpFileError> {
    source.read_at(offset, buf).map_err(|source| DumpFileError::Read { what, offset, source })
}

fn get32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

fn get64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}

impl<S: ReadAt> Compressed<S> {
    /// Whether `source` starts as a kdump-compressed dump does.
    ///
    /// # Errors
    /// The system's error, `UnexpectedEof` where the source is shorter than that.
    pub fn is_one(source: &S) -> io::Result<bool> {
        let mut start = [0; SIGNATURE.len()];
        source.read_at(0, &mut start)?;
        Ok(start == *SIGNATURE)
    }

    /// Reads and checks headers and bitmaps.
    ///
    /// # Errors
    /// [`DumpFileError`].
    pub fn open(source: S) -> Result<Self, DumpFileError> {
        let size = source.size();
        let size = size.map_err(|source| DumpFileError::Read { what: "the size", offset: 0, source })?;
        let mut block = [0; header::SIZE];
        read(&source, "the header", 0, &mut block)?;
        let mut header = parse_header(&block)?;
        let page_size = header.page_size;
        let mut sub = [0; sub_header::SIZE];
        read(&source, "the sub header", page_size, &mut sub)?;
        header.dump_level = get32(&sub, sub_header::DUMP_LEVEL);
        if header.version >= 6 {
            header.end = Frame(get64(&sub, sub_header::MAX_MAPNR));
        }
        if header.version >= 2 && get32(&sub, sub_header::SPLIT) != 0 {
            return Err(wrong(
                "split",
                "set",
                "a dump in one file: join the parts first (makedumpfile --reassemble)",
            ));
        }

        let bitmaps = (1 + u64::from(get32(&block, header::SUB_HEADER))) * page_size;
        let len = u64::from(get32(&block, header::BITMAPS)) * page_size;
        let table = bitmaps + len;
        // A dump cut short in its descriptors still has pages nowhere, so it must reach at least up to them.
        if table > size {
            return Err(wrong(
                "bitmap_blocks",
                format!("{len:#x} bytes at {bitmaps:#x}"),
                "bitmaps inside the file",
            ));
        }
        // Where there is room for one only, all frames that exist were dumped.
        let one = if (len / 2).saturating_mul(8) >= header.end.0 { len / 2 } else { len };
        if one.saturating_mul(8) < header.end.0 || one > MAX_BITMAP {
            return Err(wrong(
                "max_mapnr",
                header.end,
                "no more frames than the bitmaps have, and 128 TiB at most",
            ));
        }
        header.exists = read_bitmap(&source, bitmaps, header.end)?;
        header.kept =
            if one < len { read_bitmap(&source, bitmaps + one, header.end)? } else { header.exists.clone() };

        let notes = if header.version >= 4 {
            get64(&sub, sub_header::NOTES)..get64(&sub, sub_header::NOTES + 8)
        } else {
            0..0
        };
        let notes_size = notes.end.min(size.saturating_sub(notes.start));
        if notes_size > MAX_NOTES {
            return Err(wrong("size_note", notes_size, "256 MiB at most"));
        }
        let core = Layout::of(&header, notes.start, notes_size)?;
        let ranks = ranks(&header.kept);
        Ok(Self { source, header: Arc::new(header), table, ranks, core, tools: Mutex::default() })
    }

    /// What the headers say.
    pub fn header(&self) -> &Arc<DumpHeader> {
        &self.header
    }

    /// How many of the kept frames are before this one.
    fn rank(&self, frame: u64) -> u64 {
        let after = self.ranks.partition_point(|(start, _)| *start <= frame);
        let (start, rank) = after.checked_sub(1).and_then(|at| self.ranks.get(at)).copied().unwrap_or((0, 0));
        rank + self.header.kept.count_range(Frame(start)..Frame(frame))
    }

    /// Fills `buf` from `within` bytes into frame `frame` on.
    fn read_frames(&self, frame: u64, within: u64, buf: &mut [u8]) -> io::Result<()> {
        let taken = self.tools.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut tools = taken.unwrap_or_else(|| Tools {
            decompressor: Decompressor::new(),
            compressed: Vec::new(),
            page: vec![0; self.header.page_size as usize],
            frame: None,
        });
        let result = self.read_with(&mut tools, frame, within as usize, buf);
        self.tools.lock().unwrap_or_else(PoisonError::into_inner).push(tools);
        result
    }

    fn read_with(&self, tools: &mut Tools, frame: u64, within: usize, buf: &mut [u8]) -> io::Result<()> {
        let page_size = self.header.page_size as usize;
        let mut frame = frame;
        let mut rest = buf;
        let mut descriptors = Descriptors::default();
        let (head, after) =
            rest.split_at_mut(if within > 0 { (page_size - within).min(rest.len()) } else { 0 });
        if !head.is_empty() {
            self.read_part(tools, &mut descriptors, frame, within, head)?;
            frame += 1;
        }
        rest = after;
        while rest.len() >= page_size {
            let (page, after) = rest.split_at_mut(page_size);
            let frames_left = (after.len() / page_size + 1) as u64;
            let descriptor = descriptors.get(self, frame, frames_left)?;
            self.read_page(&mut tools.decompressor, &mut tools.compressed, frame, descriptor, page)?;
            rest = after;
            frame += 1;
        }
        if !rest.is_empty() {
            self.read_part(tools, &mut descriptors, frame, 0, rest)?;
        }
        Ok(())
    }

    /// Fills `part` from `within` bytes into a page.
    fn read_part(
        &self,
        tools: &mut Tools,
        descriptors: &mut Descriptors,
        frame: u64,
        within: usize,
        part: &mut [u8],
    ) -> io::Result<()> {
        if tools.frame != Some(frame) {
            let descriptor = descriptors.get(self, frame, 1)?;
            tools.frame = None;
            self.read_page(
                &mut tools.decompressor,
                &mut tools.compressed,
                frame,
                descriptor,
                &mut tools.page,
            )?;
            tools.frame = Some(frame);
        }
        let page = tools.page.get(within..within + part.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        part.copy_from_slice(page);
        Ok(())
    }

    fn read_page(
        &self,
        decompressor: &mut Decompressor,
        compressed: &mut Vec<u8>,
        frame: u64,
        descriptor: Descriptor,
        page: &mut [u8],
    ) -> io::Result<()> {
        let damaged = |why: String| {
            io::Error::new(io::ErrorKind::InvalidData, format!("page frame {frame:#x} of the dump: {why}"))
        };
        let Descriptor { offset, size, flags } = descriptor;
        if offset == 0 {
            return Err(damaged(
                "not written, because its writer could not read it or did not come so far".into(),
            ));
        }
        let codec = Codec::from_flags(flags)
            .ok_or_else(|| damaged(format!("flags {flags:#x} name no known codec")))?;
        if size == 0 || size as usize > page.len() {
            return Err(damaged(format!("{size} bytes, where a page has {}", page.len())));
        }
        if codec == Codec::None && size as usize == page.len() {
            return self.source.read_at(offset, page);
        }
        compressed.resize(size as usize, 0);
        self.source.read_at(offset, compressed)?;
        decompressor.decompress(codec, compressed, page).map_err(|error| damaged(error.to_string()))
    }
}

/// Descriptors of frames side by side, read together.
#[derive(Default)]
struct Descriptors {
    /// The number of the first one.
    first: u64,
    bytes: Vec<u8>,
    /// The frame asked for last, and the number of its descriptor.
    last: Option<(u64, u64)>,
}

impl Descriptors {
    /// The descriptor of `frame`, the first of `frames` that will be asked for.
    fn get<S: ReadAt>(&mut self, dump: &Compressed<S>, frame: u64, frames: u64) -> io::Result<Descriptor> {
        let kept = &dump.header.kept;
        if !kept.contains(Frame(frame)) {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("page frame {frame:#x} was left out of the dump"),
            ));
        }
        let rank = match self.last {
            Some((last, rank)) if last + 1 == frame => rank + 1,
            _ => dump.rank(frame),
        };
        self.last = Some((frame, rank));
        let at = |first: u64| usize::try_from((rank - first) * DESCRIPTOR as u64).unwrap_or(usize::MAX);
        let held = |read: &Self| rank >= read.first && at(read.first) + DESCRIPTOR <= read.bytes.len();
        if !held(self) {
            let count = kept.count_range(Frame(frame)..Frame(frame.saturating_add(frames.min(DESCRIPTORS))));
            self.first = rank;
            self.bytes.clear();
            self.bytes.resize(count as usize * DESCRIPTOR, 0);
            dump.source.read_at(dump.table + rank * DESCRIPTOR as u64, &mut self.bytes)?;
        }
        let bytes = self.bytes.get(at(self.first)..).unwrap_or_default();
        Ok(Descriptor::from_bytes(bytes.first_chunk().unwrap_or(&[0; DESCRIPTOR])))
    }
}

impl<S: ReadAt> ReadAt for Compressed<S> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let core = &self.core;
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= core.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut at = offset;
        while at < end {
            let place = |until: u64| (at - offset) as usize..(until.min(end) - offset) as usize;
            let head = core.head.len() as u64;
            let after = core.loads.partition_point(|(_, start)| *start <= at);
            let load = after.checked_sub(1).and_then(|number| core.loads.get(number));
            if at < head {
                let until = head.min(end);
                buf[place(until)].copy_from_slice(&core.head[at as usize..until as usize]);
                at = until;
            } else if core.notes.contains(&at) {
                let until = core.notes.end.min(end);
                self.source.read_at(core.notes_at + (at - core.notes.start), &mut buf[place(until)])?;
                at = until;
            } else if let Some((frames, start)) = load {
                let until = start + (frames.end - frames.start) * self.header.page_size;
                let into = at - start;
                let frame = frames.start + into / self.header.page_size;
                self.read_frames(frame, into % self.header.page_size, &mut buf[place(until)])?;
                at = until.min(end);
            } else {
                // Between headers, notes and memory.
                let until = if at < core.notes.start { core.notes.start } else { core.data() }.min(end);
                buf[place(until)].fill(0);
                at = until;
            }
        }
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.core.size)
    }
}

impl Layout {
    fn of(header: &DumpHeader, notes_at: u64, notes_size: u64) -> Result<Self, DumpFileError> {
        let name = header.utsname[4].as_str();
        let machine = MACHINES.iter().find(|(known, _)| *known == name);
        let (_, machine) = machine.ok_or_else(|| wrong("utsname.machine", name, "x86_64 or ppc64le"))?;
        let page_size = header.page_size;
        let frames = elf_file::runs(&header.exists, MAX_LOADS);
        let start = elf_file::size(frames.len() + 1);
        let mut entries = vec![Entry::note(start, notes_size)];
        let mut loads = Vec::with_capacity(frames.len());
        let mut at = (start + notes_size).next_multiple_of(page_size);
        for run in frames {
            entries.push(Entry::load(at, 0, run.start * page_size, (run.end - run.start) * page_size));
            let len = (run.end - run.start) * page_size;
            loads.push((run, at));
            at += len;
        }
        let head = elf_file::head(*machine, &entries);
        Ok(Self { head, notes: start..start + notes_size, notes_at, loads, size: at })
    }

    /// Where memory starts.
    fn data(&self) -> u64 {
        self.loads.first().map_or(self.size, |(_, start)| *start)
    }
}

impl<S> fmt::Debug for Compressed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressed").field("header", &self.header).finish_non_exhaustive()
    }
}

fn parse_header(block: &[u8; header::SIZE]) -> Result<DumpHeader, DumpFileError> {
    if !block.starts_with(SIGNATURE) {
        let found = String::from_utf8_lossy(&block[..SIGNATURE.len()]).into_owned();
        return Err(wrong("signature", format!("{found:?}"), "\"KDUMP   \""));
    }
    let version = get32(block, header::VERSION);
    if !(1..=VERSION).contains(&version) {
        return Err(wrong("header_version", version, "1 to 6"));
    }
    let page_size = u64::from(get32(block, header::BLOCK_SIZE));
    if !(0x1000..=0x10000).contains(&page_size) || !page_size.is_power_of_two() {
        return Err(wrong("block_size", page_size, "4096 to 65536, a power of two (of a 64-bit machine)"));
    }
    let name = |number: usize| {
        let start = header::UTSNAME + number * NAME;
        let name = block[start..start + NAME].split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    };
    let status = get32(block, header::STATUS);
    Ok(DumpHeader {
        version,
        utsname: std::array::from_fn(name),
        time: get64(block, header::TIME),
        incomplete: status & INCOMPLETE != 0,
        codec: Codec::from_flags(status & !INCOMPLETE),
        page_size,
        end: Frame(u64::from(get32(block, header::MAX_MAPNR))),
        cpus: get32(block, header::CPUS),
        dump_level: 0,
        exists: Bitmap::new(),
        kept: Bitmap::new(),
    })
}

/// The frames below `end` of the bitmap at `offset`.
fn read_bitmap(source: &impl ReadAt, offset: u64, end: Frame) -> Result<Bitmap, DumpFileError> {
    let mut bitmap = Bitmap::new();
    let len = end.0.div_ceil(8);
    let mut buffer = vec![0; PIECE.min(len) as usize];
    let mut at = 0;
    while at < len {
        let now = (len - at).min(PIECE);
        let piece = &mut buffer[..now as usize];
        read(source, "a bitmap", offset + at, piece)?;
        if piece.iter().any(|byte| *byte != 0) {
            bitmap.insert_bytes(at, piece);
        }
        at += now;
    }
    bitmap.remove_range(end..Frame(len * 8));
    Ok(bitmap)
}

/// The rank of a frame in each stretch of [`STRIDE`] that has any.
fn ranks(kept: &Bitmap) -> Vec<(u64, u64)> {
    let mut ranks = Vec::new();
    let mut rank = 0;
    let mut next = kept.next_in(Frame(0));
    while let Some(frame) = next {
        let start = frame.0 / STRIDE * STRIDE;
        ranks.push((start, rank));
        rank += kept.count_range(Frame(start)..Frame(start + STRIDE));
        next = kept.next_in(Frame(start + STRIDE));
    }
    ranks
}
