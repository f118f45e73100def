//! Building and parsing headers, held against an own reading of what a capture kernel does with them.

use elfcorehdr::layout::{ehdr, phdr, slot_offset};
use elfcorehdr::{
    BuildError, Contents, EHDR_SIZE, EntryFault, Header, Load, MAX_ENTRIES, MAX_NOTE_SIZE, Machine, Note,
    PHDR_SIZE, PhysAddr, build, room_for, size_for,
};
use judge::capture_kernel;
use proptest::prelude::*;

mod judge;

const LIMIT: u64 = 1 << 52;

fn note(paddr: u64, size: u64) -> Note {
    Note { paddr: PhysAddr(paddr), size }
}

fn load(paddr: u64, size: u64) -> Load {
    let vaddr = paddr.wrapping_add(0xffff_8880_0000_0000);
    Load { paddr: PhysAddr(paddr), vaddr, offset: PhysAddr(paddr), size }
}

const VMCOREINFO: u64 = 0x3fb4_6000;

/// A small machine: two CPUs, vmcoreinfo, kernel text, two stretches of memory.
fn small() -> (Vec<Note>, Vec<Load>) {
    let notes = vec![note(0x3fa3_d800, 368), note(0x3fab_d800, 368)];
    (notes, vec![load(0x0bc0_0000, 0x2c0_0000), load(0x10_0000, 0x2ef0_0000), load(0x3f00_0000, 0xfd_f000)])
}

fn contents<'a>(cpu_notes: &'a [Note], loads: &'a [Load]) -> Contents<'a> {
    Contents { machine: Machine::X86_64, cpu_notes, vmcoreinfo: note(VMCOREINFO, 1024), loads }
}

fn small_bytes() -> Vec<u8> {
    let (notes, loads) = small();
    let mut bytes = vec![0xa5; 4096];
    let used = build(&contents(&notes, &loads), &mut bytes).unwrap();
    assert_eq!(used, size_for(6));
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn slot(index: usize, field: usize) -> usize {
    slot_offset(index).unwrap() + field
}

#[test]
fn small_header_reads_back() {
    let bytes = small_bytes();
    let (notes, loads) = small();
    let header = Header::parse(&bytes).unwrap();
    assert_eq!((header.machine(), header.phnum(), header.size()), (Machine::X86_64, 6, size_for(6)));
    assert_eq!(header.notes().collect::<Vec<_>>(), [notes[0], notes[1], note(VMCOREINFO, 1024)]);
    assert_eq!(header.loads().collect::<Vec<_>>(), loads);
    assert_eq!(header.loads().next().unwrap().range().unwrap().to_string(), "[0xbc00000, 0xe800000)");
    assert!(bytes[size_for(6)..].iter().all(|byte| *byte == 0), "spare room is zeroed");
    assert_eq!(bytes[ehdr::PHOFF], 64, "crash(8) goes by e_phoff");
}

/// readelf and the kernel's own headers agree on these bytes: where each field lies is checked against numbers, not
/// against this crate's names for them.
#[test]
fn bytes_are_where_elf_wants_them() {
    let bytes = small_bytes();
    assert_eq!(bytes[..8], [0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    assert_eq!(bytes[16..24], [4, 0, 62, 0, 1, 0, 0, 0]);
    assert_eq!(bytes[52..64], [64, 0, 56, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
    let text = &bytes[64 + 3 * 56..64 + 4 * 56];
    assert_eq!(text[..16], [1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0xc0, 0x0b, 0, 0, 0, 0]);
    assert_eq!(text[32..48], [0, 0, 0xc0, 2, 0, 0, 0, 0, 0, 0, 0xc0, 2, 0, 0, 0, 0]);
    assert_eq!(text[48..], [0; 8]);
}

/// Memory in a header: first address, end, source.
type Piece = (u64, u64, u64);

/// Headers that others built (see fixtures/README.md): strict as the parser is, it takes them.
#[test]
fn headers_of_others() {
    // bytes, notes, memory
    let cases: [(&[u8], usize, &[Piece]); 4] = [
        (
            include_bytes!("fixtures/kexec-tools-2.0.32.bin"),
            3,
            &[
                (0x2d80_0000, 0x3043_0000, 0x2d80_0000),
                (0x1000, 0x9_fc00, 0x2cf6_1000),
                (0x10_0000, 0x1d00_0000, 0x10_0000),
                (0x2d00_0000, 0x3ffd_f000, 0x2d00_0000),
            ],
        ),
        (
            include_bytes!("fixtures/linux-6.1.bin"),
            3,
            &[
                (0x860_0000, 0xba3_0000, 0x860_0000),
                (0x10_0000, 0x2f00_0000, 0x10_0000),
                (0x3f00_0000, 0x3ffd_f000, 0x3f00_0000),
            ],
        ),
        (
            include_bytes!("fixtures/linux-6.12-hotplug.bin"),
            5,
            &[
                (0x2d80_0000, 0x3043_0000, 0x2d80_0000),
                (0x10_0000, 0x1d00_0000, 0x10_0000),
                (0x2d00_0000, 0x3ffd_f000, 0x2d00_0000),
                (0x1_0000_0000, 0x1_2000_0000, 0x1_0000_0000),
            ],
        ),
        (
            include_bytes!("fixtures/linux-7.2-hotplug.bin"),
            5,
            &[
                (0x1940_0000, 0x1c63_0000, 0x1940_0000),
                (0x10_0000, 0x2e00_0000, 0x10_0000),
                (0x3e00_0000, 0x3ffd_f000, 0x3e00_0000),
                (0x1_0000_0000, 0x1_2000_0000, 0x1_0000_0000),
            ],
        ),
    ];
    for (bytes, notes, loads) in cases {
        let header = Header::parse(bytes).unwrap();
        assert_eq!((header.size(), header.notes().count()), (bytes.len(), notes));
        let found = header.loads().map(|load| (load.paddr.0, load.range().unwrap().end().0, load.offset.0));
        assert_eq!(found.collect::<Vec<_>>(), loads);
    }
}

/// What the kernel builds, this crate builds to the byte.
#[test]
fn same_bytes_as_the_kernel() {
    let theirs: &[u8] = include_bytes!("fixtures/linux-6.12-hotplug.bin");
    let header = Header::parse(theirs).unwrap();
    let mut notes: Vec<Note> = header.notes().collect();
    let vmcoreinfo = notes.pop().unwrap();
    let loads: Vec<Load> = header.loads().collect();
    let mut ours = vec![0; theirs.len()];
    let contents = Contents { machine: Machine::X86_64, cpu_notes: &notes, vmcoreinfo, loads: &loads };
    build(&contents, &mut ours).unwrap();
    assert_eq!(ours, theirs);
}

#[test]
fn build_refuses() {
    let (notes, loads) = small();
    let entry = |slot, fault| BuildError::Entry { slot, fault };
    let outside = |start, size| EntryFault::OutsideMachine { start, size, limit: LIMIT };
    let cases: [(Vec<Note>, Vec<Load>, usize, BuildError); 9] = [
        (notes.clone(), loads.clone(), size_for(6) - 1, BuildError::TooSmall { need: 400, have: 399 }),
        (notes.clone(), vec![], 4096, BuildError::NoLoads),
        (vec![note(1, 0)], loads.clone(), 4096, entry(0, EntryFault::NoteTooSmall { size: 0, least: 12 })),
        (vec![note(1, 11)], loads.clone(), 4096, entry(0, EntryFault::NoteTooSmall { size: 11, least: 12 })),
        (
            vec![notes[0], note(1, MAX_NOTE_SIZE + 1)],
            loads.clone(),
            4096,
            entry(1, EntryFault::NoteTooBig { size: MAX_NOTE_SIZE + 1, most: MAX_NOTE_SIZE }),
        ),
        (notes.clone(), vec![loads[0], load(0x1000, 0)], 4096, entry(4, EntryFault::EmptyLoad)),
        (notes.clone(), vec![load(u64::MAX, 2)], 4096, entry(3, outside(u64::MAX, 2))),
        (notes.clone(), vec![load(LIMIT - 1, 2)], 4096, entry(3, outside(LIMIT - 1, 2))),
        (
            vec![note(0x1000, 400); MAX_ENTRIES],
            loads.clone(),
            0,
            BuildError::TooManyEntries { entries: 65538 },
        ),
    ];
    for (notes, loads, room, error) in cases {
        let mut bytes = vec![0xa5; room];
        assert_eq!(build(&contents(&notes, &loads), &mut bytes), Err(error), "{error}");
        assert!(bytes.iter().all(|byte| *byte == 0xa5), "{error}: nothing is written");
    }
}

#[test]
fn most_entries_fit() {
    let notes = vec![note(0x1000, 400); MAX_ENTRIES - 2];
    let mut bytes = vec![0; size_for(MAX_ENTRIES)];
    assert_eq!(build(&contents(&notes, &[load(0x10_0000, 0x1000)]), &mut bytes), Ok(size_for(MAX_ENTRIES)));
    assert_eq!(Header::parse(&bytes).unwrap().phnum(), MAX_ENTRIES);
}

#[test]
fn parse_says_what_is_wrong_where() {
    // what is broken: where, bytes put there, the whole message
    let cases: [(usize, &[u8], &str); 24] = [
        (0, b"\x7fELX", "e_ident magic at byte 0x0 is 0x584c457f, wanted 0x464c457f"),
        (ehdr::CLASS, &[1], "EI_CLASS at byte 0x4 is 0x1, wanted 0x2"),
        (ehdr::DATA, &[2], "EI_DATA at byte 0x5 is 0x2, wanted 0x1"),
        (ehdr::IDENT_VERSION, &[0], "EI_VERSION at byte 0x6 is 0x0, wanted 0x1"),
        (ehdr::TYPE, &[2, 0], "e_type at byte 0x10 is 0x2, wanted 0x4"),
        (ehdr::MACHINE, &[20, 0], "e_machine at byte 0x12 is 0x14, wanted 0x3e (x86_64) or 0x15 (ppc64)"),
        (ehdr::VERSION, &[2], "e_version at byte 0x14 is 0x2, wanted 0x1"),
        (ehdr::PHOFF, &[0x80], "e_phoff at byte 0x20 is 0x80, wanted 0x40"),
        (ehdr::EHSIZE, &[52], "e_ehsize at byte 0x34 is 0x34, wanted 0x40"),
        (ehdr::PHENTSIZE, &[32], "e_phentsize at byte 0x36 is 0x20, wanted 0x38"),
        (ehdr::PHNUM, &[0, 0], "e_phnum at byte 0x38 is 0x0, wanted 0x2 or more"),
        (ehdr::PHNUM, &[0xff, 0xff], "e_phnum at byte 0x38 is 0xffff, wanted 0xfffe or less"),
        (ehdr::PHNUM, &[3, 0], "e_phnum without memory entries at byte 0x38 is 0x3, wanted 0x4 or more"),
        (ehdr::PHNUM, &[73, 0], "length at byte 0x1000 is 0x1000, wanted 0x1038 or more"),
        (
            slot(0, phdr::TYPE),
            &[1],
            "p_type at byte 0x40 is 0x1, wanted a note (PT_NOTE, 4): the notes start in slot 0",
        ),
        (
            slot(1, phdr::TYPE),
            &[1],
            "p_type at byte 0xb0 is 0x4, wanted memory (PT_LOAD, 1): notes come first, without a gap",
        ),
        (
            slot(4, phdr::TYPE),
            &[6],
            "p_type at byte 0x120 is 0x6, wanted a note (PT_NOTE, 4), memory (PT_LOAD, 1) or a free slot (PT_NULL, 0)",
        ),
        (slot(4, phdr::TYPE), &[0], "free slot (PT_NULL) at byte 0x124 is 0x7, wanted 0x0"),
        (
            slot(1, phdr::MEMSZ),
            &[0, 0],
            "p_memsz at byte 0xa0 is 0x0, but its note area has 0 bytes, a capture kernel needs at least 12",
        ),
        (
            slot(1, phdr::MEMSZ),
            &[1, 0, 0x40],
            "p_memsz at byte 0xa0 is 0x400001, but its note area has 4194305 bytes, a capture kernel takes at most \
             4194304",
        ),
        (slot(0, phdr::FILESZ), &[8], "p_filesz at byte 0x60 is 0x108, wanted 0x170"),
        (slot(5, phdr::MEMSZ), &[0; 8], "p_memsz at byte 0x180 is 0x0, but its memory has no bytes"),
        (
            slot(5, phdr::OFFSET),
            &[0xff; 8],
            "p_offset at byte 0x160 is 0xffffffffffffffff, but 0xfdf000 bytes at 0xffffffffffffffff pass the \
             machine's last physical address, below 0x10000000000000",
        ),
        (
            slot(5, phdr::PADDR),
            &[0xff; 7],
            "p_paddr at byte 0x170 is 0xffffffffffffff, but 0xfdf000 bytes at 0xffffffffffffff pass the machine's \
             last physical address, below 0x10000000000000",
        ),
    ];
    for (at, value, message) in cases {
        let mut bytes = small_bytes();
        put(&mut bytes, at, value);
        let error = Header::parse(&bytes).unwrap_err();
        assert_eq!(error.to_string(), format!("elfcorehdr: {message}"));
    }
}

#[test]
fn parse_wants_the_whole_table() {
    let bytes = small_bytes();
    for length in 0..size_for(6) {
        let error = Header::parse(&bytes[..length]).unwrap_err();
        assert_eq!((error.field, error.offset, error.found), ("length", length, length as u64));
    }
    Header::parse(&bytes[..size_for(6)]).unwrap();
}

#[test]
fn free_slots_are_passed_over() {
    let mut bytes = small_bytes();
    put(&mut bytes, slot(4, 0), &[0; PHDR_SIZE]);
    put(&mut bytes, ehdr::PHNUM, &[8, 0]);
    let header = Header::parse(&bytes).unwrap();
    let (_, loads) = small();
    assert_eq!(header.phnum(), 8);
    assert_eq!(header.loads().collect::<Vec<_>>(), [loads[0], loads[2]]);
}

#[test]
fn room_for_what_the_kernel_reports() {
    // Debian 6.12 on x86_64: 16384 slots and two more, and no word of the 64 bytes before them.
    assert_eq!(room_for(917_616, 4096), 921_600);
    assert_eq!(room_for(4096, 4096), 8192, "the file header does not fit into a full page");
    assert_eq!(room_for(4096 - 64, 4096), 4096);
    assert_eq!(room_for(u64::MAX, 4096), u64::MAX);
    assert_eq!(slot_offset(2), Some(EHDR_SIZE + 2 * PHDR_SIZE));
    assert_eq!((slot_offset(usize::MAX), size_for(usize::MAX)), (None, usize::MAX));
    for (number, machine) in [(62, Some(Machine::X86_64)), (21, Some(Machine::Ppc64)), (20, None)] {
        assert_eq!(Machine::from_number(number), machine);
    }
}

fn machines() -> impl Strategy<Value = (Vec<Note>, Note, Vec<Load>)> {
    let notes = (0..LIMIT / 2, 12..=MAX_NOTE_SIZE).prop_map(|(paddr, size)| note(paddr, size));
    let loads =
        (0..LIMIT / 2, any::<u64>(), 0..LIMIT / 2, 1..LIMIT / 4).prop_map(|(paddr, vaddr, offset, size)| {
            Load { paddr: PhysAddr(paddr), vaddr, offset: PhysAddr(offset), size }
        });
    (prop::collection::vec(notes.clone(), 0..9), notes, prop::collection::vec(loads, 1..12))
}

/// Values that make trouble in some field or other.
fn troublesome() -> impl Strategy<Value = u64> {
    prop_oneof![
        prop::sample::select(
            &[0, 1, 4, 11, 12, 64, 0x1000, LIMIT - 1, LIMIT, 1 << 63, u64::MAX - 4095, u64::MAX][..]
        ),
        any::<u64>(),
        0..16u64,
    ]
}

proptest! {
    #[test]
    fn built_headers_parse_back((cpu_notes, vmcoreinfo, loads) in machines(), spare in 0usize..200) {
        let entries = cpu_notes.len() + 1 + loads.len();
        let mut bytes = vec![0x5a; size_for(entries) + spare];
        let contents = Contents { machine: Machine::X86_64, cpu_notes: &cpu_notes, vmcoreinfo, loads: &loads };
        prop_assert_eq!(build(&contents, &mut bytes), Ok(size_for(entries)));
        let header = Header::parse(&bytes).unwrap();
        prop_assert_eq!(header.phnum(), entries);
        prop_assert_eq!(header.loads().collect::<Vec<_>>(), &loads[..]);
        let mut notes = cpu_notes.clone();
        notes.push(vmcoreinfo);
        prop_assert_eq!(header.notes().collect::<Vec<_>>(), notes);
        prop_assert!(bytes[size_for(entries)..].iter().all(|byte| *byte == 0));
        prop_assert!(capture_kernel(&bytes).is_ok());
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Header::parse(&bytes).is_err());
    }

    /// Whatever the parser takes, the capture kernel takes too, and both see the same notes and memory.
    #[test]
    fn accepts_only_what_a_capture_kernel_would(
        (cpu_notes, vmcoreinfo, loads) in machines(),
        whole in prop::collection::vec((0usize..22, 0usize..7, troublesome()), 0..4),
        resized in prop::collection::vec((0usize..22, troublesome()), 0..3),
        single in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut bytes = vec![0; 4096];
        let contents = Contents { machine: Machine::X86_64, cpu_notes: &cpu_notes, vmcoreinfo, loads: &loads };
        let used = build(&contents, &mut bytes).unwrap();
        for (index, field, value) in whole {
            put(&mut bytes, slot(index, field * 8), &value.to_le_bytes());
        }
        for (index, size) in resized {
            put(&mut bytes, slot(index, phdr::FILESZ), &size.to_le_bytes());
            put(&mut bytes, slot(index, phdr::MEMSZ), &size.to_le_bytes());
        }
        for (at, value) in single {
            let at = at.index(used);
            bytes[at] = value;
        }
        if let Ok(header) = Header::parse(&bytes) {
            let (notes, memory) = capture_kernel(&bytes).map_err(TestCaseError::fail)?;
            prop_assert_eq!(header.notes().collect::<Vec<_>>(), notes);
            let pages = |load: Load| {
                (load.offset.0 / 4096 * 4096, (load.offset.0 + load.size).next_multiple_of(4096))
            };
            prop_assert_eq!(header.loads().map(pages).collect::<Vec<_>>(), memory);
        }
    }
}
