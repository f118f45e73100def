//! Changing headers in place: stop after every store, and look with a capture kernel's eyes.

use elfcorehdr::layout::{ehdr, phdr, slot_offset};
use elfcorehdr::update::{Change, Index, MAX_STORES, Node, Store, UpdateError};
use elfcorehdr::{
    Contents, EntryFault, Header, Load, Machine, Note, PHDR_SIZE, PhysAddr, PhysRange, RangeVec, build,
    size_for,
};
use judge::capture_kernel;
use proptest::prelude::*;

mod judge;

const PAGE: u64 = 4096;
/// Where the tests' memory starts.
const BASE: u64 = 0x1_0000_0000;
/// Difference of virtual and physical address of plain memory.
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Virtual address of the kernel's text.
const TEXT: u64 = 0xffff_ffff_8100_0000;
const NOTES: [Note; 3] = [
    Note { paddr: PhysAddr(0x1000), size: 368 },
    Note { paddr: PhysAddr(0x2000), size: 368 },
    Note { paddr: PhysAddr(0x3000), size: 1024 },
];

fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap()
}

/// Blocks `from..to` of `size` bytes.
fn blocks(size: u64, from: u64, to: u64) -> PhysRange {
    range(BASE + from * size, BASE + to * size)
}

fn pages(from: u64, to: u64) -> PhysRange {
    blocks(PAGE, from, to)
}

fn plain(range: PhysRange) -> Load {
    let paddr = range.start();
    Load { paddr, vaddr: paddr.0 + DIRECT_MAP, offset: paddr, size: range.len() }
}

fn text(range: PhysRange) -> Load {
    Load { vaddr: TEXT, ..plain(range) }
}

fn add(range: PhysRange) -> Change {
    Change::Add { range, vaddr: range.start().0 + DIRECT_MAP }
}

fn header(loads: &[Load], slots: usize) -> Vec<u8> {
    let mut bytes = vec![0; size_for(slots)];
    let (vmcoreinfo, cpus) = NOTES.split_last().unwrap();
    let contents = Contents { machine: Machine::X86_64, cpu_notes: cpus, vmcoreinfo: *vmcoreinfo, loads };
    build(&contents, &mut bytes).unwrap();
    bytes
}

fn nodes(bytes: &[u8]) -> Vec<Node> {
    vec![Node::default(); Index::nodes_for(bytes.len())]
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn phnum(bytes: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([bytes[ehdr::PHNUM], bytes[ehdr::PHNUM + 1]]))
}

/// All that a capture kernel will save.
fn memory(bytes: &[u8]) -> RangeVec {
    in_ranges(&capture_kernel(bytes).unwrap().1)
}

fn in_ranges(memory: &[(u64, u64)]) -> RangeVec {
    memory.iter().map(|(start, end)| range(*start, *end)).collect()
}

fn with(set: &RangeVec, other: &RangeVec) -> RangeVec {
    set.iter().chain(other.iter()).collect()
}

fn common(set: &RangeVec, other: &RangeVec) -> RangeVec {
    set.difference(&set.difference(other).collect()).collect()
}

/// What the tools behind /proc/vmcore ask of a header at any instant, settled or not.
fn tools_accept(bytes: &[u8]) -> Result<(), String> {
    let mut first = true;
    for slot in 0..phnum(bytes) {
        let at = slot_offset(slot).unwrap();
        let [kind, offset, vaddr, paddr, filesz, memsz] =
            [phdr::TYPE, phdr::OFFSET, phdr::VADDR, phdr::PADDR, phdr::FILESZ, phdr::MEMSZ]
                .map(|field| word(bytes, at + field));
        let pages = (offset + memsz).next_multiple_of(PAGE) - offset / PAGE * PAGE;
        match kind as u32 {
            0 if filesz != 0 => return Err(format!("free slot {slot} holds bytes of the file")),
            0 if pages != 0 => return Err(format!("device dumps move all behind slot {slot} by {pages:#x}")),
            1 if first && (filesz == 0 || memsz == 0) => return Err(format!("first LOAD {slot} is empty")),
            1 if filesz > memsz => return Err(format!("LOAD {slot}: more in the file than in memory")),
            1 if memsz != 0 && paddr != offset => return Err(format!("LOAD {slot}: other memory's bytes")),
            // makedumpfile takes the last LOAD's word for where all memory is mapped.
            1 if vaddr < TEXT && vaddr.wrapping_sub(paddr) != DIRECT_MAP => {
                return Err(format!("LOAD {slot}: vaddr {vaddr:#x} does not go with {paddr:#x}"));
            }
            kind => first &= kind != 1,
        }
    }
    Ok(())
}

/// What has to hold between one store and the next of a change that leads from `before` to `after`.
struct Judge {
    least: RangeVec,
    most: RangeVec,
    notes: Vec<Note>,
    /// Slots of text, and their bytes.
    text: Vec<(usize, Vec<u8>)>,
}

impl Judge {
    fn new(bytes: &[u8], after: &RangeVec) -> Self {
        let (before, (notes, _)) = (memory(bytes), capture_kernel(bytes).unwrap());
        let text = (0..phnum(bytes)).map(|slot| slot_offset(slot).unwrap()).filter_map(|at| {
            let is_text = word(bytes, at + phdr::VADDR) >= TEXT;
            is_text.then(|| (at, bytes[at..at + PHDR_SIZE].to_vec()))
        });
        Self { least: common(&before, after), most: with(&before, after), notes, text: text.collect() }
    }

    fn look(&self, bytes: &[u8]) -> Result<(), String> {
        let (notes, memory) = capture_kernel(bytes)?;
        if notes != self.notes {
            return Err("notes changed".into());
        }
        let memory = in_ranges(&memory);
        if let Some(lost) = self.least.difference(&memory).next() {
            return Err(format!("{lost} is lost"));
        }
        if let Some(stray) = memory.difference(&self.most).next() {
            return Err(format!("{stray} never was and never will be"));
        }
        if self.text.iter().any(|(at, text)| bytes[*at..*at + PHDR_SIZE] != text[..]) {
            return Err("text changed".into());
        }
        tools_accept(bytes)
    }
}

/// Does one store, which must be one that hardware does whole.
fn do_store(bytes: &mut [u8], store: &Store) {
    assert_eq!(store.offset as usize % store.width.bytes(), 0, "{store:?} is not aligned");
    let word = store.offset as usize & !7..(store.offset as usize & !7) + 8;
    let after = store.applied_to(bytes[word.clone()].try_into().unwrap());
    store.write_to(bytes).unwrap();
    assert_eq!(bytes[word], after, "{store:?}");
}

/// Makes a change, judging the header after every store. Gives the stores done.
fn follow(
    bytes: &mut [u8],
    index: &mut Index<'_>,
    change: Change,
    judge: &Judge,
) -> Result<Vec<Store>, UpdateError> {
    let (mut next, mut done) = (Some(change), Vec::new());
    while let Some(change) = next {
        let plan = index.plan(bytes, change)?;
        assert!(plan.stores().len() <= MAX_STORES);
        for store in plan.stores() {
            do_store(bytes, store);
            done.push(*store);
            judge.look(bytes).unwrap_or_else(|fault| panic!("{change:?}, after {done:x?}: {fault}"));
        }
        next = plan.commit();
        Header::parse(bytes).unwrap();
    }
    Ok(done)
}

/// What the header must hold after a change: all memory, with what text alone covers.
fn expected(loads: &[Load], change: Change) -> RangeVec {
    let is_text = |load: &&Load| load.vaddr >= TEXT;
    let ranges = |load: &Load| load.range().unwrap();
    let mut set: RangeVec = loads.iter().filter(|load| !is_text(load)).map(ranges).collect();
    match change {
        Change::Add { range, .. } => set.add(range).unwrap(),
        Change::Remove(range) => set.remove(range).unwrap(),
        Change::SetNote { .. } => {}
    }
    set.extend(loads.iter().filter(is_text).map(ranges));
    set
}

/// Checks one change to one header, whether it can be made or not.
fn check(bytes: &[u8], change: Change) -> Result<Vec<Store>, UpdateError> {
    let loads: Vec<Load> = Header::parse(bytes).unwrap().loads().collect();
    let after = expected(&loads, change);
    let judge = Judge::new(bytes, &after);
    let (mut changed, mut nodes, mut again) = (bytes.to_vec(), nodes(bytes), nodes(bytes));
    let mut index = Index::rebuild(bytes, &mut nodes).unwrap();
    let done = follow(&mut changed, &mut index, change, &judge)?;
    assert_eq!(memory(&changed), after, "{change:?}");
    let rebuilt = Index::rebuild(&changed, &mut again).unwrap();
    assert_eq!((index.phnum(), index.free_slots()), (rebuilt.phnum(), rebuilt.free_slots()));
    let once_more = follow(&mut changed, &mut index, change, &judge).unwrap();
    assert_eq!(once_more, [], "{change:?} is made already");
    Ok(done)
}

/// All ways to lay `count` pages out in entries, neighbours not always merged.
fn layouts(count: u64) -> Vec<Vec<PhysRange>> {
    let mut all: Vec<Vec<PhysRange>> = vec![vec![]];
    for page in 0..count {
        let so_far = all.clone();
        for mut layout in so_far {
            let last = layout.pop_if(|last| last.end() == pages(page, page).start());
            if let Some(last) = last {
                let mut longer = layout.clone();
                longer.push(PhysRange::new(last.start(), pages(page, page + 1).end()).unwrap());
                all.push(longer);
                layout.push(last);
            }
            layout.push(pages(page, page + 1));
            all.push(layout);
        }
    }
    all
}

/// Every small header, in three orders of slots, with and without text, with and without holes in the table, with no,
/// one and many slots to spare; every range added and removed; stopped after every store.
#[test]
fn every_small_header_every_change_every_store() {
    const COUNT: u64 = 5;
    let (mut made, mut full, mut first) = (0, 0, 0);
    for layout in layouts(COUNT) {
        // Other orders of fewer entries than that are the same.
        for order in 0..layout.len().clamp(1, 3) {
            let mut ram: Vec<Load> = layout.iter().copied().map(plain).collect();
            match order {
                0 => {}
                1 => ram.reverse(),
                _ => ram.rotate_left(layout.len() / 2),
            }
            for (has_text, hole, spare) in
                [(true, false, 0), (true, false, 1), (true, true, 0), (true, true, 4), (false, false, 4)]
            {
                let mut loads: Vec<Load> = has_text.then(|| text(pages(1, 3))).into_iter().collect();
                loads.extend(&ram);
                if loads.is_empty() {
                    continue;
                }
                let slots = NOTES.len() + loads.len() + usize::from(hole) + spare;
                let mut bytes = header(&loads, slots);
                if hole {
                    // The slot before the last entry is free.
                    loads.insert(loads.len() - 1, plain(pages(90, 91)));
                    bytes = header(&loads, slots);
                    let at = slot_offset(NOTES.len() + loads.len() - 2).unwrap();
                    if loads.len() < 3 {
                        continue; // it would be the one before text
                    }
                    bytes[at..at + PHDR_SIZE].fill(0);
                }
                for from in 0..COUNT {
                    for to in from + 1..=COUNT {
                        for change in [add(pages(from, to)), Change::Remove(pages(from, to))] {
                            match check(&bytes, change) {
                                Ok(_) => made += 1,
                                Err(UpdateError::Full { slots: had }) => {
                                    assert!(had == slots && spare + usize::from(hole) < 2);
                                    full += 1;
                                }
                                Err(UpdateError::FirstEntry { slot }) => {
                                    assert!(!has_text && slot == NOTES.len());
                                    first += 1;
                                }
                                Err(error) => panic!("{error}"),
                            }
                        }
                    }
                }
            }
        }
    }
    println!("{made} changes made, {full} found the header full, {first} would end the first entry");
    assert!(made > 20_000 && full > 500 && first > 100);
}

/// Text in slot 3, then these pages; a change; pages by slot after it (None: free), and the number of stores.
#[test]
fn entries_as_drawn() {
    type Case = (&'static str, &'static [(u64, u64)], Change, &'static [Option<(u64, u64)>], usize);
    let cases: [Case; 14] = [
        ("insert", &[(0, 2)], add(pages(5, 6)), &[Some((0, 2)), Some((5, 6))], 7),
        ("grow the tail", &[(0, 2)], add(pages(2, 4)), &[Some((0, 4))], 2),
        ("grow the head", &[(2, 4)], add(pages(0, 2)), &[None, Some((0, 4))], 13),
        ("bridge", &[(0, 2), (3, 4)], add(pages(2, 3)), &[Some((0, 4)), None], 8),
        ("bridge downwards", &[(3, 4), (0, 2)], add(pages(2, 3)), &[None, Some((0, 4))], 8),
        ("fill a gap and more", &[(0, 2), (3, 4)], add(pages(1, 6)), &[Some((0, 6)), None], 10),
        ("cover", &[(2, 3)], add(pages(0, 6)), &[None, Some((0, 6))], 15),
        ("nothing to add", &[(0, 4)], add(pages(1, 3)), &[Some((0, 4))], 0),
        ("retire", &[(0, 2), (4, 6)], Change::Remove(pages(0, 2)), &[None, Some((4, 6))], 6),
        ("shrink the tail", &[(0, 4)], Change::Remove(pages(2, 4)), &[Some((0, 2))], 2),
        ("shrink the head", &[(0, 4)], Change::Remove(pages(0, 2)), &[None, Some((2, 4))], 13),
        ("split", &[(0, 4)], Change::Remove(pages(1, 2)), &[Some((0, 1)), Some((2, 4))], 9),
        ("several", &[(0, 2), (2, 4)], Change::Remove(pages(1, 3)), &[Some((0, 1)), None, Some((3, 4))], 15),
        ("nothing to remove", &[(0, 1)], Change::Remove(pages(1, 9)), &[Some((0, 1))], 0),
    ];
    for (name, before, change, after, stores) in cases {
        let mut loads = vec![text(pages(0, 1))];
        loads.extend(before.iter().map(|(from, to)| plain(pages(*from, *to))));
        let mut bytes = header(&loads, 12);
        assert_eq!(check(&bytes, change).unwrap().len(), stores, "{name}");
        let mut nodes = nodes(&bytes);
        let mut index = Index::rebuild(&bytes, &mut nodes).unwrap();
        let judge = Judge::new(&bytes, &expected(&loads, change));
        follow(&mut bytes, &mut index, change, &judge).unwrap();
        let found: Vec<_> = (4..phnum(&bytes))
            .map(|slot| {
                let at = slot_offset(slot).unwrap();
                let (start, size) = (word(&bytes, at + phdr::OFFSET), word(&bytes, at + phdr::MEMSZ));
                let page = |addr: u64| (addr - BASE) / PAGE;
                (size != 0).then(|| (page(start), page(start + size)))
            })
            .collect();
        assert_eq!(found, after, "{name}");
    }
}

/// The order of the stores of an insert into a slot that the header does not count yet, field by field.
#[test]
fn stores_of_an_insert() {
    let bytes = header(&[text(pages(0, 1))], 8);
    let stores = check(&bytes, add(pages(2, 4))).unwrap();
    let base = size_for(4) as u32;
    let found: Vec<(u32, usize, u64)> =
        stores.iter().map(|store| (store.offset, store.width.bytes(), store.value)).collect();
    let start = BASE + 2 * PAGE;
    let wanted = [
        (base + 16, 8, start + DIRECT_MAP),
        (base + 24, 8, start),
        (base, 8, 0x7_0000_0001),
        (base + 8, 8, start),
        (base + 40, 8, 2 * PAGE),
        (base + 32, 8, 2 * PAGE),
        (56, 2, 5),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn free_slots_are_used_before_new_ones() {
    let mut bytes = header(&[text(pages(0, 1)), plain(pages(2, 3)), plain(pages(4, 5))], 8);
    let mut nodes = nodes(&bytes);
    let mut index = Index::rebuild(&bytes, &mut nodes).unwrap();
    assert_eq!((index.phnum(), index.free_slots()), (6, 2));
    for (change, counted, free) in [
        (Change::Remove(pages(2, 3)), 6, 3),
        (add(pages(7, 8)), 6, 2),
        (add(pages(9, 10)), 7, 1),
        (add(pages(11, 12)), 8, 0),
    ] {
        let loads: Vec<Load> = Header::parse(&bytes).unwrap().loads().collect();
        let judge = Judge::new(&bytes, &expected(&loads, change));
        follow(&mut bytes, &mut index, change, &judge).unwrap();
        assert_eq!((index.phnum(), index.free_slots(), phnum(&bytes)), (counted, free, counted));
    }
    let error = index.plan(&bytes, add(pages(13, 14))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "elfcorehdr: all 8 slots are in use: load the crash kernel again, with more room for the header"
    );
    index.plan(&bytes, add(pages(12, 13))).map(|plan| assert_eq!(plan.stores().len(), 2)).unwrap();
}

/// A free slot below the first entry is not used: while it is being filled, it would be an empty first entry.
#[test]
fn first_entry_stays_first() {
    let mut bytes = header(&[plain(pages(9, 10)), plain(pages(4, 6)), plain(pages(0, 1))], 7);
    let at = slot_offset(3).unwrap();
    bytes[at..at + PHDR_SIZE].fill(0);
    check(&bytes, add(pages(20, 21))).unwrap();
    let mut nodes = nodes(&bytes);
    let mut index = Index::rebuild(&bytes, &mut nodes).unwrap();
    assert_eq!(index.free_slots(), 1);
    // Growing downwards, or over the gap below, would move it: the new memory gets an entry of its own, or goes to the
    // neighbour.
    assert_eq!(check(&bytes, add(pages(3, 4))).unwrap().len(), 7);
    assert_eq!(check(&bytes, add(pages(1, 4))).unwrap().len(), 2);
    assert_eq!(check(&bytes, Change::Remove(pages(5, 6))).unwrap().len(), 2);
    let error = index.plan(&bytes, Change::Remove(pages(4, 5))).unwrap_err();
    assert_eq!(error, UpdateError::FirstEntry { slot: 4 });
}

/// Memory that is mapped elsewhere, or read from a copy, does not merge and is not touched.
#[test]
fn only_plain_memory_of_one_mapping_merges() {
    let copied = Load { offset: PhysAddr(0x7000_0000), ..plain(pages(4, 5)) };
    let loads = [text(pages(0, 2)), copied, plain(pages(2, 3))];
    let mut bytes = header(&loads, 12);
    let mut nodes = nodes(&bytes);
    let mut index = Index::rebuild(&bytes, &mut nodes).unwrap();
    for (change, stores) in [
        // The later one touches it from below.
        (Change::Add { range: pages(11, 12), vaddr: 0 }, 6),
        (add(pages(10, 11)), 7),
        (Change::Add { range: pages(3, 4), vaddr: 0 }, 6),
        (Change::Add { range: pages(5, 6), vaddr: 0x1234_5000 }, 7),
        // No virtual address goes with none.
        (Change::Add { range: pages(6, 7), vaddr: 0 }, 6),
        (Change::Add { range: pages(7, 8), vaddr: 0 }, 2),
        (Change::Remove(pages(0, 2)), 0),
        (Change::Remove(pages(4, 5)), 0),
    ] {
        let plan = index.plan(&bytes, change).unwrap();
        assert_eq!(plan.stores().len(), stores, "{change:?}");
        plan.stores().iter().for_each(|store| do_store(&mut bytes, store));
        assert_eq!(plan.commit(), None);
    }
    let held: Vec<Load> = Header::parse(&bytes).unwrap().loads().collect();
    assert_eq!(held[..3], loads);
    assert_eq!(held.len(), 8);
}

/// PowerPC maps its kernel like all other memory, and its header begins with memory that purgatory copies aside.
#[test]
fn the_linear_map_of_ppc64_is_plain_memory() {
    const LINEAR_MAP: u64 = 0xc000_0000_0000_0000;
    let linear = |range: PhysRange| Load { vaddr: range.start().0 | LINEAR_MAP, ..plain(range) };
    let copied = Load { offset: PhysAddr(0x2000_0000), ..linear(range(0, 0x1_0000)) };
    let loads = [copied, linear(range(0x1_0000, 0x1000_0000)), linear(range(0x3000_0000, 0x8000_0000))];
    let mut bytes = vec![0; size_for(12)];
    let (vmcoreinfo, cpus) = NOTES.split_last().unwrap();
    let contents =
        Contents { machine: Machine::Ppc64, cpu_notes: cpus, vmcoreinfo: *vmcoreinfo, loads: &loads };
    build(&contents, &mut bytes).unwrap();
    let mut nodes = nodes(&bytes);
    let mut index = Index::rebuild(&bytes, &mut nodes).unwrap();
    let block = range(0x8000_0000, 0x9000_0000);
    let changes = [
        Change::Remove(range(0, 0x2_0000)),
        Change::Add { range: block, vaddr: block.start().0 | LINEAR_MAP },
        Change::Remove(range(0x3000_0000, 0x4000_0000)),
    ];
    for change in changes {
        let mut next = Some(change);
        while let Some(change) = next {
            let plan = index.plan(&bytes, change).unwrap();
            plan.stores().iter().for_each(|store| do_store(&mut bytes, store));
            next = plan.commit();
        }
    }
    let held: Vec<Load> = Header::parse(&bytes).unwrap().loads().collect();
    let expected = [copied, linear(range(0x2_0000, 0x1000_0000)), linear(range(0x4000_0000, 0x9000_0000))];
    assert!(expected.iter().all(|load| held.contains(load)) && held.len() == 3, "{held:x?}");
}

/// Entries need not start or end at a page's edge. A slot that is free, or on its way, must not move the others.
#[test]
fn ends_inside_pages() {
    let odd = range(BASE + 0x234, BASE + 3 * PAGE + 0x567);
    let last = range(BASE + 5 * PAGE + 1, BASE + 5 * PAGE + 2);
    let loads = [text(pages(8, 9)), plain(pages(9, 10)), plain(odd), plain(last)];
    let edges = [0x234, 0x235, 0x900, PAGE, 2 * PAGE + 7, 3 * PAGE + 0x566, 3 * PAGE + 0x567, 6 * PAGE];
    for (at, from) in edges.iter().enumerate() {
        for to in &edges[at + 1..] {
            let changed = range(BASE + from, BASE + to);
            for change in [add(changed), Change::Remove(changed)] {
                let mut bytes = header(&loads, 12);
                // A free slot that is counted already, with memory behind it to be moved.
                let at = slot_offset(NOTES.len() + 1).unwrap();
                bytes[at..at + PHDR_SIZE].fill(0);
                let loads: Vec<Load> = Header::parse(&bytes).unwrap().loads().collect();
                let mut after = RangeVec::new();
                for piece in expected(&loads, change).iter() {
                    let (start, end) = (piece.start().0 / PAGE * PAGE, piece.end().0.next_multiple_of(PAGE));
                    after.add(range(start, end)).unwrap();
                }
                let judge = Judge::new(&bytes, &after);
                let (mut changed, mut nodes) = (bytes.clone(), nodes(&bytes));
                let mut index = Index::rebuild(&bytes, &mut nodes).unwrap();
                follow(&mut changed, &mut index, change, &judge).unwrap();
                assert_eq!(memory(&changed), after, "{change:?}");
            }
        }
    }
}

#[test]
fn a_note_moves_at_one_store() {
    let bytes = header(&[text(pages(0, 1)), plain(pages(0, 4))], 6);
    let mut nodes = nodes(&bytes);
    let mut index = Index::rebuild(&bytes, &mut nodes).unwrap();
    for slot in 0..NOTES.len() {
        let paddr = PhysAddr(0x9_8765_4320);
        let (mut changed, mut seen) = (bytes.clone(), Vec::new());
        let plan = index.plan(&bytes, Change::SetNote { slot, paddr }).unwrap();
        for store in plan.stores() {
            do_store(&mut changed, store);
            let (mut notes, memory) = capture_kernel(&changed).unwrap();
            assert_eq!(memory, capture_kernel(&bytes).unwrap().1);
            seen.push(notes[slot].paddr);
            notes[slot].paddr = NOTES[slot].paddr;
            assert_eq!(notes, NOTES, "only this note's place changes");
        }
        assert_eq!(seen, [NOTES[slot].paddr, paddr], "p_offset is what counts, and comes last");
        assert_eq!(word(&changed, slot_offset(slot).unwrap() + phdr::PADDR), paddr.0);
        assert_eq!(plan.commit(), None);
        let again = index.plan(&changed, Change::SetNote { slot, paddr }).unwrap();
        assert_eq!(again.stores(), []);
    }
    let error = |index: &mut Index<'_>, slot, paddr| {
        index.plan(&bytes, Change::SetNote { slot, paddr: PhysAddr(paddr) }).unwrap_err().to_string()
    };
    assert_eq!(
        error(&mut index, 3, 0x1000),
        "elfcorehdr: slot 3 is no note, the notes are the first 3 slots"
    );
    assert_eq!(
        error(&mut index, usize::MAX, 0x1000),
        format!("elfcorehdr: slot {} is no note, the notes are the first 3 slots", usize::MAX)
    );
    assert_eq!(
        error(&mut index, 0, u64::MAX),
        "elfcorehdr: the new entry cannot be: 0x170 bytes at 0xffffffffffffffff pass the machine's last physical \
         address, below 0x10000000000000"
    );
}

#[test]
fn refuses_what_cannot_be_followed() {
    let good = header(&[text(pages(0, 1)), plain(pages(0, 4))], 8);
    let broken = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        let mut nodes = nodes(&bytes);
        Index::rebuild(&bytes, &mut nodes).unwrap_err().to_string()
    };
    assert_eq!(
        broken(0, 0),
        "elfcorehdr: cannot follow this header: elfcorehdr: e_ident magic at byte 0x0 is 0x464c4500, wanted 0x464c457f"
    );
    assert_eq!(broken(size_for(7) - 1, 1), "elfcorehdr: slot 6 should be free, but is not all zero");
    let overlapping = header(&[plain(pages(2, 4)), text(pages(0, 9)), plain(pages(0, 3))], 8);
    let mut nodes = nodes(&good);
    assert_eq!(
        Index::rebuild(&overlapping, &mut nodes).unwrap_err().to_string(),
        "elfcorehdr: cannot follow this header: memory entries 5 and 3 overlap"
    );
    assert_eq!(
        Index::rebuild(&good, &mut nodes[..4]).unwrap_err().to_string(),
        "elfcorehdr: the index has 4 nodes, the header counts 5 slots"
    );
    // Fewer nodes than room: the nodes are the limit.
    let mut index = Index::rebuild(&good, &mut nodes[..6]).unwrap();
    assert_eq!(index.free_slots(), 1);
    let outside = Change::Add { range: range((1 << 52) - 1, (1 << 52) + 1), vaddr: 0 };
    assert!(matches!(
        index.plan(&good, outside),
        Err(UpdateError::Entry(EntryFault::OutsideMachine { size: 2, .. }))
    ));
    assert_eq!(index.plan(&good, add(pages(5, 5))).unwrap().stores(), []);
    assert_eq!(index.plan(&good, Change::Remove(pages(1, 1))).unwrap().stores(), []);
    // Somebody else wrote.
    let mut other = good.clone();
    other[slot_offset(4).unwrap() + phdr::PADDR + 1] ^= 0x10;
    let error = index.plan(&other, Change::Remove(pages(0, 4))).unwrap_err();
    assert_eq!(error.to_string(), "elfcorehdr: slot 4 does not hold what was last written there: arm again");
    // An entry that now seems to reach over the next one, which would then start twice.
    let two = header(&[text(pages(0, 1)), plain(pages(0, 2)), plain(pages(3, 4))], 8);
    let mut others = vec![Node::default(); 8];
    let mut fooled = Index::rebuild(&two, &mut others).unwrap();
    let mut other = two.clone();
    for field in [phdr::FILESZ, phdr::MEMSZ] {
        other[slot_offset(4).unwrap() + field + 1] = 0x60;
    }
    let error = fooled.plan(&other, Change::Remove(pages(1, 3))).unwrap_err();
    assert_eq!(error, UpdateError::NotIndexed { slot: 5 });
    let mut other = good.clone();
    other[slot_offset(5).unwrap()] = 1;
    let error = index.plan(&other, add(pages(5, 6))).unwrap_err();
    assert_eq!(error, UpdateError::SlotNotZero { slot: 5 });
    let short = &good[..size_for(5)];
    let error = index.plan(short, add(pages(5, 6))).unwrap_err();
    assert_eq!(error.to_string(), "elfcorehdr: header has 344 bytes, 400 are needed");
}

/// A plan that is dropped leaves the index as it was.
#[test]
fn plans_can_be_dropped() {
    let bytes = header(&[text(pages(0, 1)), plain(pages(2, 4))], 8);
    let mut nodes = nodes(&bytes);
    let mut index = Index::rebuild(&bytes, &mut nodes).unwrap();
    for change in [add(pages(0, 2)), Change::Remove(pages(2, 4))] {
        let stores = index.plan(&bytes, change).unwrap().stores().to_vec();
        assert_eq!(index.plan(&bytes, change).unwrap().stores(), stores);
        assert_eq!((index.phnum(), index.free_slots()), (5, 3));
    }
}

/// What is known of headers of others is followed too.
#[test]
fn headers_of_others_are_followed() {
    for theirs in [
        &include_bytes!("fixtures/kexec-tools-2.0.32.bin")[..],
        include_bytes!("fixtures/linux-6.1.bin"),
        include_bytes!("fixtures/linux-6.12-hotplug.bin"),
        include_bytes!("fixtures/linux-7.2-hotplug.bin"),
    ] {
        let mut bytes = theirs.to_vec();
        bytes.resize(theirs.len() + 4 * PHDR_SIZE, 0);
        let (before, mut nodes) = (memory(&bytes), nodes(&bytes));
        let mut index = Index::rebuild(&bytes, &mut nodes).unwrap();
        let block = range(0x10_0000_0000, 0x10_0800_0000);
        for change in [Change::Add { range: block, vaddr: 0 }, Change::Remove(block)] {
            let plan = index.plan(&bytes, change).unwrap();
            plan.stores().iter().for_each(|store| do_store(&mut bytes, store));
            assert_eq!(plan.commit(), None);
            assert_eq!(memory(&bytes).contains_range(block), matches!(change, Change::Add { .. }));
        }
        assert_eq!(memory(&bytes), before);
    }
}

/// A memory block of x86.
const BLOCK: u64 = 128 << 20;

fn events(count: u64) -> impl Strategy<Value = Vec<(bool, u64, u64)>> {
    prop::collection::vec((prop::bool::weighted(0.6), 0..count, 1..6u64), 1..250)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Long lives of headers, against a set of ranges, judged after every store.
    #[test]
    fn any_life_of_a_header(events in events(120), slots in 8usize..70, order in any::<bool>()) {
        let mut loads = vec![text(blocks(BLOCK, 0, 1)), plain(blocks(BLOCK, 0, 3)), plain(blocks(BLOCK, 9, 10))];
        if order {
            loads.swap(1, 2);
        }
        let mut bytes = header(&loads, slots);
        let mut nodes = nodes(&bytes);
        let mut index = Index::rebuild(&bytes, &mut nodes).unwrap();
        for (adds, from, len) in events {
            let hit = blocks(BLOCK, from, from + len);
            let change = if adds { add(hit) } else { Change::Remove(hit) };
            let loads: Vec<Load> = Header::parse(&bytes).unwrap().loads().collect();
            let after = expected(&loads, change);
            let judge = Judge::new(&bytes, &after);
            match follow(&mut bytes, &mut index, change, &judge) {
                Ok(_) => prop_assert_eq!(memory(&bytes), after),
                Err(UpdateError::Full { .. }) => prop_assert_eq!(index.free_slots(), 0),
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
            prop_assert_eq!(index.phnum(), phnum(&bytes));
        }
        let free = index.free_slots();
        let mut again = vec![Node::default(); nodes.len()];
        prop_assert_eq!(Index::rebuild(&bytes, &mut again).unwrap().free_slots(), free);
    }

    /// Bytes that change behind the index's back: refused or followed, but never a panic or a store outside.
    #[test]
    fn hostile_bytes_never_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..6),
        early in any::<bool>(),
        cut in any::<prop::sample::Index>(),
        events in prop::collection::vec((0u64..12, 0u64..12, 0u8..3, any::<u64>()), 1..12),
    ) {
        let mut bytes = header(&[text(pages(0, 1)), plain(pages(0, 3)), plain(pages(3, 5)), plain(pages(7, 9))], 12);
        let good = bytes.clone();
        for (at, value) in damage {
            let at = at.index(bytes.len() / 8) * 8;
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let mut nodes = nodes(&good);
        let Ok(mut index) = Index::rebuild(if early { &bytes } else { &good }, &mut nodes) else { return Ok(()) };
        bytes.truncate(cut.index(2 * bytes.len()).max(bytes.len() / 4));
        for (from, to, kind, any) in events {
            let (from, to) = (from.min(to), from.max(to));
            let change = match kind {
                0 => add(pages(from, to)),
                1 => Change::Remove(pages(from, to)),
                _ => Change::SetNote { slot: from as usize, paddr: PhysAddr(any) },
            };
            let mut next = Some(change);
            while let Some(change) = next.take() {
                let Ok(plan) = index.plan(&bytes, change) else { break };
                for store in plan.stores() {
                    if store.write_to(&mut bytes).is_err() {
                        return Ok(());
                    }
                }
                next = plan.commit();
            }
        }
    }
}
