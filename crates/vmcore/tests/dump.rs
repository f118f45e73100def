//! Dumps written and read back: every format and codec, threads, pages that cannot be read, full disks, files cut short, hostile
//! files.

mod support;

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::num::NonZeroUsize;
use std::sync::Mutex;

use elfcorehdr::PhysAddr;
use proptest::prelude::*;
use support::{ElfCore, Holed, PAGE};
use vmcore::dump::{DumpError, DumpOptions, Flattened, Forgotten, Format, Sink, Written, forget, write_dump};
use vmcore::{Codec, Core, Dump, Frame, ReadAt, Selection};

const CODECS: [Codec; 5] = [Codec::Zstd, Codec::Zlib, Codec::Lzo, Codec::Snappy, Codec::None];

/// A dump in memory, on a disk of limited size.
struct Disk {
    bytes: Mutex<Vec<u8>>,
    room: usize,
    /// What was written may be lost: the disk says so only when it is asked for all of it.
    fails_late: bool,
}

impl Disk {
    fn new(room: usize) -> Self {
        Self { bytes: Mutex::default(), room, fails_late: false }
    }

    fn bytes(self) -> Vec<u8> {
        self.bytes.into_inner().unwrap()
    }
}

impl Sink for Disk {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.bytes.lock().unwrap();
        let end = offset as usize + bytes.len();
        if end > self.room {
            return Err(io::Error::from_raw_os_error(28));
        }
        let len = disk.len().max(end);
        disk.resize(len, 0);
        disk[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if self.fails_late { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }

    fn finish(&self, len: u64) -> io::Result<()> {
        let mut disk = self.bytes.lock().unwrap();
        let len = disk.len().max(len as usize);
        disk.resize(len, 0);
        Ok(())
    }
}

/// Text-like, noise and zeros in turn, no two pages the same.
fn content(page: usize) -> Vec<u8> {
    match page % 3 {
        0 => vec![0; PAGE],
        1 => (0..PAGE).map(|at| (at / 5 % 11 + page) as u8).collect(),
        _ => {
            let mut state = page as u64;
            let noise = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            };
            (0..PAGE).map(noise).collect()
        }
    }
}

const INFO: &[u8] = b"OSRELEASE=6.12.1\nPAGESIZE=4096\nNUMBER(phys_base)=16777216\nCRASHTIME=1700000000\n";

/// 5 MiB in three stretches, one of more than a window.
fn machine() -> ElfCore {
    let pages = |from: usize, count: usize| (from..from + count).flat_map(content).collect();
    ElfCore::new()
        .note("CORE", 1, &[0; 336])
        .note("VMCOREINFO", 0, INFO)
        .load(0x1000, pages(0, 20))
        .load(0x10_0000, pages(20, 1100))
        .load(0x1_0000_0000, pages(1120, 130))
}

fn options(format: Format, threads: usize) -> DumpOptions {
    DumpOptions { format, threads: NonZeroUsize::new(threads), ..DumpOptions::default() }
}

/// Everything, with some frames first, some last, and some left out.
fn selection<S: ReadAt>(core: &Core<S>) -> Selection {
    let mut selection = Selection::everything(core);
    for frame in [0x105, 0x107, 0x1ff, 0x10_0000] {
        selection.kept.remove(Frame(frame));
    }
    for start in [0x10u64, 0x120, 0x131, 0x300, 0x10_0040] {
        selection.first.insert_range(Frame(start)..Frame(start + 5));
        selection.last.insert_range(Frame(start + 7)..Frame(start + 9));
        selection.tables.insert_range(Frame(start + 9)..Frame(start + 10));
    }
    selection.last.insert_range(Frame(0x140)..Frame(0x150));
    selection
}

fn page_of<S: ReadAt>(core: &Core<S>, frame: Frame) -> Option<Vec<u8>> {
    let mut page = vec![0; PAGE];
    core.read_phys(PhysAddr(frame.0 * PAGE as u64), &mut page).ok()?;
    Some(page)
}

/// Each kept page of `dump` equals the one of `core`; what was left out cannot be read, or is zeros.
fn assert_same<S: ReadAt>(dump: &Dump, core: &Core<S>, selection: &Selection) {
    for frame in selection.exists.frames() {
        let found = page_of(&dump.core, frame);
        if selection.kept.contains(frame) {
            assert!(found == page_of(core, frame), "frame {frame}");
        } else {
            assert_eq!(found, None, "frame {frame}");
        }
    }
}

fn contents(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_is_written_is_read_back_whatever_the_format_and_the_threads() {
    let input = tempfile::tempfile().unwrap();
    input.write_at(0, &machine().bytes()).unwrap();
    let core = Core::open(input).unwrap();
    let selection = selection(&core);
    let formats = CODECS.map(Format::Kdump).into_iter().chain([Format::Elf]);
    for format in formats {
        for threads in [1, 3] {
            let options = options(format, threads);
            let file = tempfile::tempfile().unwrap();
            let mut seen = Vec::new();
            let written =
                write_dump(&core, &selection, &file, &options, |at| seen.push((at.done, at.total))).unwrap();
            let bytes = contents(&file);

            assert_eq!(written.size, bytes.len() as u64);
            assert_eq!((written.wanted_pages, written.bad_pages, written.threads), (1246, 0, threads));
            assert_eq!(written.data_pages + written.zero_pages, 1246);
            assert_eq!(
                written.zero_pages,
                selection.kept.frames().filter(|at| page_of(&core, *at) == Some(vec![0; PAGE])).count()
                    as u64
            );
            assert!(seen.is_sorted() && seen.last() == Some(&(1246 * 4096, 1246 * 4096)), "{seen:?}");
            let dump = Dump::open(bytes).unwrap();
            assert_eq!(dump.core.vmcoreinfo().unwrap().release(), Some("6.12.1"));
            assert_eq!(dump.core.cpus().unwrap().len(), 1);
            assert_same(&dump, &core, &selection);
            if let (Format::Kdump(codec), Some(header)) = (format, &dump.header) {
                assert_eq!((header.codec, header.incomplete, header.version), (Some(codec), false, 6));
                assert_eq!((&header.exists, &header.kept), (&selection.exists, &selection.kept));
                assert_eq!((header.time, header.cpus), (1_700_000_000, 1));
                assert_eq!(
                    header.utsname.each_ref().map(String::as_str),
                    ["Linux", "", "6.12.1", "", "x86_64", ""]
                );
            }

            let stream = tempfile::tempfile().unwrap();
            write_dump(&core, &selection, &Flattened::new(&stream).unwrap(), &options, |_| {}).unwrap();
            let dump = Dump::open(contents(&stream)).unwrap();
            assert_eq!(dump.flattened, Some(true));
            assert_same(&dump, &core, &selection);
        }
    }
}

#[test]
fn a_dump_of_a_dump_is_the_same_dump() {
    let core = Core::open(machine().bytes()).unwrap();
    let selection = selection(&core);
    let write = |core: &Core<vmcore::Source>, format| {
        let disk = Disk::new(usize::MAX);
        write_dump(core, &selection, &disk, &options(format, 1), |_| {}).unwrap();
        disk.bytes()
    };
    let source = Core::open(Box::new(machine().bytes()) as vmcore::Source).unwrap();
    let lzo = write(&source, Format::Kdump(Codec::Lzo));
    let again = write(&Dump::open(lzo.clone()).unwrap().core, Format::Kdump(Codec::Lzo));
    assert!(lzo == again);
    let elf = write(&Dump::open(lzo).unwrap().core, Format::Elf);
    assert_same(&Dump::open(elf).unwrap(), &core, &selection);
}

#[test]
fn loads_that_are_not_of_whole_pages_are_read_all_the_same() {
    // Data not aligned in the file either: 40 bytes of a page, one whole, 100 bytes; then two stretches of one page.
    let data = |byte: u8, len: usize| vec![byte; len];
    let elf = ElfCore::new()
        .note("VMCOREINFO", 0, INFO)
        .load(0x2000 - 40, data(1, 40 + PAGE + 100))
        .load(0x8000, data(2, 1000))
        .load(0x8000 + 2000, data(3, 96));
    let core = Core::open(elf.bytes()).unwrap();
    let selection = Selection::everything(&core);
    let disk = Disk::new(usize::MAX);
    let written =
        write_dump(&core, &selection, &disk, &options(Format::Kdump(Codec::Lzo), 1), |_| {}).unwrap();
    assert_eq!((written.wanted_pages, written.data_pages), (4, 4));
    let dump = Dump::open(disk.bytes()).unwrap();
    let at = |frame: u64, at: usize| page_of(&dump.core, Frame(frame)).unwrap()[at];
    assert_eq!(
        [at(1, PAGE - 41), at(1, PAGE - 40), at(2, 0), at(2, PAGE - 1), at(3, 99), at(3, 100)],
        [0, 1, 1, 1, 1, 0]
    );
    assert_eq!([at(8, 999), at(8, 1000), at(8, 1999), at(8, 2000), at(8, 2096)], [2, 0, 0, 3, 0]);
}

#[test]
fn pages_that_cannot_be_read_are_counted_named_and_not_in_the_dump() {
    let elf = machine();
    let first = elf.offset_of(1) / PAGE;
    let source = Holed { bytes: elf.bytes(), bad: vec![first + 3, first + 4, first + 1050] };
    let core = Core::open(source).unwrap();
    let selection = Selection::everything(&core);
    for threads in [1, 2] {
        let disk = Disk::new(usize::MAX);
        let options = options(Format::Kdump(Codec::Zstd), threads);
        let written = write_dump(&core, &selection, &disk, &options, |_| {}).unwrap();
        assert_eq!(written.bad_pages, 3);
        assert_eq!(written.bad_runs, [Frame(0x103)..Frame(0x105), Frame(0x51a)..Frame(0x51b)]);
        assert_eq!(written.data_pages + written.zero_pages, 1247);
        let dump = Dump::open(disk.bytes()).unwrap();
        assert_same(&dump, &core, &selection);
        assert_eq!(page_of(&dump.core, Frame(0x103)), None);
    }
}

#[test]
fn a_dump_says_that_it_is_complete_only_when_its_pages_are_on_the_disk() {
    let core = Core::open(machine().bytes()).unwrap();
    let selection = Selection::everything(&core);
    let disk = Disk { fails_late: true, ..Disk::new(usize::MAX) };
    let options = options(Format::Kdump(Codec::Zstd), 1);
    let Err(DumpError::Sync { source, written, descriptors }) =
        write_dump(&core, &selection, &disk, &options, |_| {})
    else {
        panic!("a disk that lost something is not told")
    };
    assert_eq!(source.raw_os_error(), Some(5));
    let bytes = disk.bytes();
    assert_readable(bytes.clone(), &core, &selection, &written);

    // It counts for more that what was written is lost than that no more can be written.
    let full = Disk { fails_late: true, ..Disk::new(written.size as usize - 1) };
    let error = write_dump(&core, &selection, &full, &options, |_| {}).unwrap_err();
    assert!(matches!(error, DumpError::Sync { .. }), "{error}");

    // What the disk lost is not there any more, and all else is.
    let lost = [written.size - 90_000..written.size - 80_000, written.size - 5000..written.size];
    let file = tempfile::tempfile().unwrap();
    let mut damaged = bytes;
    lost.iter().for_each(|range| damaged[range.start as usize..range.end as usize].fill(0x55));
    Sink::write_at(&file, 0, &damaged).unwrap();
    let forgotten = forget(&file, descriptors.clone(), &lost).unwrap();
    assert!((4..40).contains(&forgotten.data_pages), "{forgotten:?}");
    assert_eq!(forgotten.zero_pages, 0);
    let left = Written { data_pages: written.data_pages - forgotten.data_pages, ..*written };
    assert_readable(contents(&file), &core, &selection, &left);
    assert_eq!(forget(&file, descriptors.clone(), &lost).unwrap(), Forgotten::default(), "twice");
    let zeros = descriptors.end..descriptors.end + 1;
    let forgotten = forget(&file, descriptors, &[zeros]).unwrap();
    assert_eq!(forgotten, Forgotten { data_pages: 0, zero_pages: written.zero_pages }, "they share one page");
}

/// What was done to a sink.
enum Done {
    Write(u64, Vec<u8>),
    Sync,
}

/// Keeps what was done to it, in order.
#[derive(Default)]
struct Journal(Mutex<Vec<Done>>);

impl Sink for Journal {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().push(Done::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.lock().unwrap().push(Done::Sync);
        Ok(())
    }

    fn finish(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_page_is_described_before_it_would_outlast_a_loss_of_power() {
    let core = Core::open(machine().bytes()).unwrap();
    let selection = Selection::everything(&core);
    for threads in [1, 3] {
        let options = options(Format::Kdump(Codec::Zstd), threads);
        let disk = Disk { fails_late: true, ..Disk::new(usize::MAX) };
        let Err(DumpError::Sync { descriptors, written, .. }) =
            write_dump(&core, &selection, &disk, &options, |_| {})
        else {
            panic!("a disk that lost something is not told")
        };
        let journal = Journal::default();
        write_dump(&core, &selection, &journal, &options, |_| {}).unwrap();

        let mut kept = vec![false; written.size as usize];
        let mut since = Vec::new();
        let (mut described, mut is_complete) = (0, false);
        for done in journal.0.into_inner().unwrap() {
            let Done::Write(offset, bytes) = done else {
                since.drain(..).for_each(|range: std::ops::Range<usize>| kept[range].fill(true));
                continue;
            };
            since.push(offset as usize..offset as usize + bytes.len());
            if offset == 0 {
                // The header: first it says that the dump is incomplete, at last that it is not.
                is_complete = described > 0;
                assert!(
                    !is_complete || since.len() == 1,
                    "the header is written while something is on its way"
                );
            } else if descriptors.contains(&offset) {
                for descriptor in bytes.as_chunks::<24>().0 {
                    let at = u64::from_le_bytes(*descriptor.first_chunk().unwrap()) as usize;
                    let size = u32::from_le_bytes(*descriptor[8..].first_chunk().unwrap()) as usize;
                    assert!(kept[at..at + size].iter().all(|kept| *kept), "{size} bytes at {at:#x}");
                    described += 1;
                }
            }
        }
        assert_eq!((described, is_complete), (written.data_pages + written.zero_pages, true));
    }
}

/// What a full disk left: headers that say so, the pages that are worth most, and no page that is not as it was.
fn assert_readable(bytes: Vec<u8>, core: &Core<Vec<u8>>, selection: &Selection, written: &Written) {
    let dump = Dump::open(bytes).unwrap();
    assert!(dump.header.as_ref().unwrap().incomplete);
    let mut held = 0;
    for frame in selection.kept.frames() {
        if let Some(page) = page_of(&dump.core, frame) {
            assert!(Some(page) == page_of(core, frame), "frame {frame}");
            held += 1;
        }
    }
    assert!(held >= written.data_pages + written.zero_pages, "{held} pages of {written:?}");
}

/// Whether there is a page that is not of the first; then all of those must be there, and if there is one of the last, all others. With more
/// threads than one a page is not waited for.
fn assert_in_order(bytes: Vec<u8>, selection: &Selection) -> bool {
    let dump = Dump::open(bytes).unwrap();
    let is_there = |frame: &Frame| page_of(&dump.core, *frame).is_some();
    let sets = [&selection.tables, &selection.first, &selection.last];
    let in_middle = |frame: &Frame| !sets.iter().any(|set| set.contains(*frame));
    let (first, last) = (
        selection.first.frames().all(|frame| is_there(&frame)),
        selection.last.frames().any(|frame| is_there(&frame)),
    );
    let middle: Vec<bool> = selection.kept.frames().filter(in_middle).map(|frame| is_there(&frame)).collect();
    let some = last || middle.contains(&true);
    assert!(first || !some, "a page is there before one of the first");
    assert!(!last || !middle.contains(&false), "a page of the last is there before others");
    some
}

#[test]
fn a_full_disk_leaves_what_was_written() {
    let core = Core::open(machine().bytes()).unwrap();
    let selection = selection(&core);
    let whole = Disk::new(usize::MAX);
    write_dump(&core, &selection, &whole, &options(Format::Kdump(Codec::Lzo), 1), |_| {}).unwrap();
    let size = whole.bytes().len();
    let (mut some, mut in_order) = (0, 0);
    for (threads, percent) in
        [1, 2].into_iter().flat_map(|threads| (5..100).step_by(5).map(move |percent| (threads, percent)))
    {
        let disk = Disk::new(size * percent / 100);
        let options = options(Format::Kdump(Codec::Lzo), threads);
        let error = write_dump(&core, &selection, &disk, &options, |_| {}).unwrap_err();
        let DumpError::Write { source, written, .. } = error else { panic!("{error}") };
        assert_eq!(source.raw_os_error(), Some(28));
        some += u64::from(written.data_pages > 0);
        // Of a disk that is full before the bitmaps are whole nothing is left.
        if percent > 10 {
            let bytes = disk.bytes();
            in_order += u64::from(threads == 1 && assert_in_order(bytes.clone(), &selection));
            assert_readable(bytes, &core, &selection, &written);
        }
    }
    assert!(some > 0 && in_order > 0);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let error = write_dump(&core, &selection, &full, &options(Format::Elf, 1), |_| {}).unwrap_err();
    assert!(matches!(error, DumpError::Write { .. }), "{error}");
}

#[test]
fn a_file_cut_short_holds_what_is_before_the_cut() {
    let core = Core::open(machine().bytes()).unwrap();
    let selection = selection(&core);
    let disk = Disk::new(usize::MAX);
    let written =
        write_dump(&core, &selection, &disk, &options(Format::Kdump(Codec::Zstd), 1), |_| {}).unwrap();
    let bytes = disk.bytes();
    // Behind the pages that are worth most: 25, some of them of zeros.
    let start = bytes.len() - written.data_bytes as usize + 20 * PAGE;
    let mut before = 0;
    for cut in (start..bytes.len()).step_by(99_991) {
        let dump = Dump::open(bytes[..cut].to_vec()).unwrap();
        let mut held = 0;
        for frame in selection.kept.frames() {
            if let Some(page) = page_of(&dump.core, frame) {
                assert!(Some(page) == page_of(&core, frame), "frame {frame}");
                held += 1;
            }
        }
        assert!(held >= before, "{held} pages at {cut}, {before} before");
        before = held;
        assert!(selection.first.frames().all(|frame| page_of(&dump.core, frame).is_some()), "cut at {cut}");
    }
    assert!(before > 1100);
}

#[test]
fn a_machine_with_memory_where_none_can_be_is_refused() {
    let core = Core::open(ElfCore::new().load(1 << 60, vec![1; PAGE]).bytes()).unwrap();
    let error = write_dump(
        &core,
        &Selection::everything(&core),
        &Disk::new(1 << 20),
        &DumpOptions::default(),
        |_| {},
    );
    assert!(matches!(error, Err(DumpError::TooFar { .. })), "{error:?}");
}

/// A small dump of each kind, for damage.
fn small(kind: usize) -> Vec<u8> {
    let elf = ElfCore::new().note("VMCOREINFO", 0, INFO).load(0x3000, (0..12).flat_map(content).collect());
    let core = Core::open(elf.bytes()).unwrap();
    let selection = Selection::everything(&core);
    let disk = Disk::new(usize::MAX);
    let format = CODECS.get(kind % 5).map_or(Format::Elf, |codec| Format::Kdump(*codec));
    if kind < 5 {
        write_dump(&core, &selection, &disk, &options(format, 1), |_| {}).unwrap();
        return disk.bytes();
    }
    let mut stream = Vec::new();
    write_dump(&core, &selection, &Flattened::new(&mut stream).unwrap(), &options(format, 1), |_| {})
        .unwrap();
    stream
}

proptest! {
    /// Damage, cuts and extreme numbers end in an answer or an error, in bounded memory.
    #[test]
    fn hostile_dumps_do_no_harm(
        kind in 0usize..10,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>(), prop::sample::select(vec![0u64, 1, 0x7f, 0xff, 1 << 31, u64::MAX, u64::MAX - 4095, 1 << 63, 0x1000])), 1..12),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = small(kind);
        for (at, in_headers, value) in damage {
            let reach = if in_headers { bytes.len().min(2 * PAGE + 200) } else { bytes.len() };
            let at = at.index(reach);
            let end = bytes.len().min(at + 8);
            bytes[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(dump) = Dump::open(bytes) {
            let _ = (dump.core.vmcoreinfo(), dump.core.cpus());
            for address in [0, 0x3000, 0x3ffc, 0x8000, u64::MAX] {
                let _ = dump.core.read_phys(PhysAddr(address), &mut [0; 5000]);
            }
            let selection = Selection::everything(&dump.core);
            let disk = Disk::new(64 << 20);
            let _ = write_dump(&dump.core, &selection, &disk, &options(Format::Kdump(Codec::Lzo), 1), |_| {});
        }
    }
}
