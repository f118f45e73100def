//! Dumps written from cores: byte for byte, with holes, around pages that cannot be read.

mod support;

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use elfcorehdr::PhysAddr;
use proptest::prelude::*;
use support::{ElfCore, Holed, PAGE};
use vmcore::dump::Sink;
use vmcore::{BadRun, Core, copy_sparse};

fn contents(mut file: &File) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

/// 6 MiB, more than one window: data, zeros, data.
fn large() -> ElfCore {
    let mut data = vec![0; 6 << 20];
    data[..3 * PAGE].fill(1);
    data[5 * PAGE..][..17].fill(2);
    data[(4 << 20) - 100..][..PAGE].fill(3);
    let last = data.len() - 1;
    data[last] = 4;
    ElfCore::new().load(0x10_0000, data).note("VMCOREINFO", 0, b"OSRELEASE=6.12\n")
}

#[test]
fn a_mapped_file_and_a_read_one_give_the_same_dump_with_holes() {
    let elf = large();
    let bytes = elf.bytes();
    let mapped = tempfile::tempfile().unwrap();
    mapped.write_all_at(&bytes, 0).unwrap();
    let dumps = [tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap()];

    let mut seen = Vec::new();
    let from_map = copy_sparse(&Core::open(mapped).unwrap(), &dumps[0], &|_| false, |progress| {
        assert_eq!(progress.total, bytes.len() as u64);
        seen.push(progress.done);
    });
    let from_map = from_map.unwrap();
    let from_read = copy_sparse(&Core::open(bytes.clone()).unwrap(), &dumps[1], &|_| false, |_| {}).unwrap();

    assert_eq!(seen, [4 << 20, bytes.len() as u64]);
    assert_eq!(from_map, from_read);
    assert_eq!((from_map.bad_pages, from_map.done), (0, bytes.len() as u64));
    // The headers' page, the notes', three of ones, one of twos, two that threes lie across, the last.
    assert_eq!(from_map.data_pages, 9);
    assert_eq!(from_map.data_pages + from_map.zero_pages, bytes.len() as u64 / PAGE as u64);
    for dump in &dumps {
        assert_eq!(contents(dump), bytes);
        assert!(dump.metadata().unwrap().blocks() * 512 < 1 << 20, "zero pages take no room");
    }
}

/// A dump whose source changes under each write, as the memory of a crashed machine does where a device or a hypervisor goes on.
struct Unsettled {
    memory: File,
    dump: File,
}

impl Sink for Unsettled {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let before = bytes.to_vec();
        let changed: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
        self.memory.write_all_at(&changed, offset)?;
        assert_eq!(bytes, before, "what is to be written changes under the one who writes");
        self.dump.write_all_at(bytes, offset)
    }

    fn reserve(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn finish(&self, len: u64) -> io::Result<()> {
        self.dump.set_len(len)
    }
}

#[test]
fn memory_that_changes_while_it_is_written_is_the_same_for_all_who_look() {
    let bytes = large().bytes();
    let memory = tempfile::tempfile().unwrap();
    memory.write_all_at(&bytes, 0).unwrap();
    let dump = Unsettled { memory: memory.try_clone().unwrap(), dump: tempfile::tempfile().unwrap() };
    copy_sparse(&Core::open(memory).unwrap(), &dump, &|_| false, |_| {}).unwrap();
    assert_eq!(contents(&dump.dump), bytes);
}

#[test]
fn bad_pages_are_skipped_counted_and_named() {
    let elf = large();
    let bytes = elf.bytes();
    let first = elf.offset_of(0) / PAGE;
    let bad = vec![0x400, first + 1, first + 2, first + 5];
    let source = Holed { bytes: bytes.clone(), bad: bad.clone() };
    let dump = tempfile::tempfile().unwrap();
    let core = Core::open(source).unwrap();
    let copied = copy_sparse(&core, &dump, &|_| false, |_| {}).unwrap();

    let run = |page: usize, pages| {
        let offset = (page * PAGE) as u64;
        let address = PhysAddr(0x10_0000 + offset - elf.offset_of(0) as u64);
        BadRun { offset, address: Some(address), pages }
    };
    assert_eq!(copied.bad_pages, 4);
    assert_eq!(copied.bad_runs, [run(first + 1, 2), run(first + 5, 1), run(0x400, 1)]);
    let mut want = bytes;
    for page in bad {
        want[page * PAGE..][..PAGE].fill(0);
    }
    assert_eq!(contents(&dump), want);
}

#[test]
fn pages_that_the_caller_forbids_are_not_copied() {
    let elf = large();
    let core = Core::open(elf.bytes()).unwrap();
    let dump = tempfile::tempfile().unwrap();
    let copied = copy_sparse(&core, &dump, &|address| address.0 == 0x10_1000, |_| {}).unwrap();
    assert_eq!(copied.bad_runs.len(), 1);
    assert_eq!(copied.bad_runs[0].address, Some(PhysAddr(0x10_1000)));
    assert_eq!(contents(&dump)[elf.offset_of(0) + PAGE..][..PAGE], [0; PAGE]);
}

#[test]
fn a_dump_that_takes_no_more_says_what_was_done() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let error = copy_sparse(&Core::open(large().bytes()).unwrap(), &full, &|_| false, |_| {}).unwrap_err();
    assert!(error.source.raw_os_error().is_some(), "{error}");
    assert_eq!(error.copied.done, 0);
}

proptest! {
    /// Any mix of pages, any bad ones, any length: the dump is the source with its bad pages as zeros.
    #[test]
    fn the_dump_equals_the_source(pages in proptest::collection::vec(any::<Option<u8>>(), 1..40), tail in 1usize..PAGE, bad in proptest::collection::vec(2usize..40, 0..6)) {
        let mut data: Vec<u8> = pages.iter().flat_map(|byte| [byte.unwrap_or(0); PAGE]).collect();
        data.truncate(data.len() - PAGE + tail);
        let elf = ElfCore::new().note("X", 1, &[1]).load(0x5000, data);
        let mut bytes = elf.bytes();
        let bad: Vec<usize> = bad.into_iter().filter(|page| page * PAGE < bytes.len()).collect();
        let core = Core::open(Holed { bytes: bytes.clone(), bad: bad.clone() }).unwrap();
        let dump = tempfile::tempfile().unwrap();
        let copied = copy_sparse(&core, &dump, &|_| false, |_| {}).unwrap();
        for page in &bad {
            let end = ((page + 1) * PAGE).min(bytes.len());
            bytes[page * PAGE..end].fill(0);
        }
        let distinct = bad.iter().collect::<std::collections::BTreeSet<_>>().len() as u64;
        prop_assert_eq!(copied.bad_pages, distinct);
        prop_assert_eq!(copied.bad_runs.iter().map(|run| run.pages).sum::<u64>(), distinct);
        prop_assert_eq!(copied.data_pages + copied.zero_pages + distinct, bytes.len().div_ceil(PAGE) as u64);
        prop_assert!(contents(&dump) == bytes);
    }
}
