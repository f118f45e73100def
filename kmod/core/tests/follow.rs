//! The core without a kernel: images in ordinary memory.

use abi::{Arm, FOLLOW_CPUS, FOLLOW_MEMORY, Reason};
use elfcorehdr::update::{Index, Node, Store};
use elfcorehdr::{Contents, Header, Load, Machine, Note, PhysAddr, PhysRange, build};
use kmod_core::arming::{self, Step, Steps};
use kmod_core::{Cpu, Excluded, Image, Live, Memory, State};
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;

const ROOM: usize = 4096;
const BLOCK: u64 = 0x800_0000;
const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;

/// Reserved memory that the test can look at and change behind the image's back.
#[derive(Clone)]
struct Fake {
    header: Rc<RefCell<Vec<u8>>>,
    ours: Rc<RefCell<bool>>,
}

impl Live for Fake {
    fn word(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.header.borrow()[offset..offset + 8].try_into().unwrap())
    }

    fn store(&mut self, store: Store) {
        store.write_to(&mut self.header.borrow_mut()).unwrap();
    }

    fn is_ours(&self) -> bool {
        *self.ours.borrow()
    }
}

impl Fake {
    /// Two CPUs, the second with a note in "the reservation", and 512 MiB of memory.
    fn new() -> Self {
        let note = |paddr| Note { paddr: PhysAddr(paddr), size: 368 };
        let ram = Load {
            paddr: PhysAddr(0x10_0000),
            vaddr: DIRECT_MAP + 0x10_0000,
            offset: PhysAddr(0x10_0000),
            size: 0x1ff0_0000,
        };
        let text = Load {
            paddr: PhysAddr(0x100_0000),
            vaddr: 0xffff_ffff_8100_0000,
            offset: PhysAddr(0x100_0000),
            size: 0x20_0000,
        };
        let contents = Contents {
            machine: Machine::X86_64,
            cpu_notes: &[note(0x20_0000), note(0x3000_0000)],
            vmcoreinfo: note(0x30_0000),
            loads: &[text, ram],
        };
        let mut header = vec![0; ROOM];
        build(&contents, &mut header).unwrap();
        Self { header: Rc::new(RefCell::new(header)), ours: Rc::new(RefCell::new(true)) }
    }

    fn image(&self, nodes: &'static mut [Node]) -> Result<Image<'static, Self>, (Reason, u32)> {
        let shadow = self.header.borrow().clone().leak();
        let excluded = Excluded::new(&[abi::Range { start: 0, end: 0x10_0000 }]).unwrap();
        Image::new(self.clone(), shadow, nodes, excluded, DIRECT_MAP, FOLLOW_MEMORY | FOLLOW_CPUS)
    }

    fn armed(&self) -> State<'static, Self> {
        let mut state = State::new();
        let image = self.image(nodes()).unwrap();
        let then = state.moment();
        assert!(state.arm(&mut Some(image), abi::Range::default(), [7; 16], then).is_ok());
        assert!(state.settle(then));
        state
    }

    fn memory(&self) -> Vec<(u64, u64)> {
        let header = self.header.borrow();
        let loads: Vec<Load> = Header::parse(&header).unwrap().loads().skip(1).collect();
        loads.iter().map(|load| (load.paddr.0, load.paddr.0 + load.size)).collect()
    }
}

fn nodes() -> &'static mut [Node] {
    vec![Node::default(); Index::nodes_for(ROOM)].leak()
}

fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap()
}

fn block(number: u64) -> PhysRange {
    range(number * BLOCK, (number + 1) * BLOCK)
}

#[test]
fn memory_comes_and_goes() {
    let fake = Fake::new();
    let mut state = fake.armed();
    assert!(!state.memory(Memory::Comes, block(32)));
    assert_eq!(fake.memory(), [(0x10_0000, 0x2000_0000), (0x1_0000_0000, 0x1_0800_0000)]);
    let stores = state.status().stores;
    // Said again it is no news.
    assert!(!state.memory(Memory::Came, block(32)));
    assert_eq!(state.status().stores, stores);
    assert!(!state.memory(Memory::Comes, block(33)));
    assert_eq!(fake.memory(), [(0x10_0000, 0x2000_0000), (0x1_0000_0000, 0x1_1000_0000)]);
    assert!(!state.memory(Memory::Gone, block(32)));
    assert_eq!(fake.memory(), [(0x10_0000, 0x2000_0000), (0x1_0800_0000, 0x1_1000_0000)]);
    assert!(!state.memory(Memory::Stays, block(32)), "an offlining that failed puts it back");
    assert!(!state.memory(Memory::Gone, block(2)), "the middle of memory that was there at boot");
    let mut memory = fake.memory();
    memory.sort_unstable();
    assert_eq!(
        memory,
        [(0x10_0000, 0x1000_0000), (0x1800_0000, 0x2000_0000), (0x1_0000_0000, 0x1_1000_0000)]
    );
    let status = state.status();
    assert_eq!((status.armed, status.memory_events, status.follow), (1, 6, FOLLOW_MEMORY));
}

#[test]
fn low_memory_stays_out() {
    let fake = Fake::new();
    let mut state = fake.armed();
    assert!(!state.memory(Memory::Gone, range(0, BLOCK)));
    assert!(!state.memory(Memory::Came, range(0, BLOCK)));
    assert!(fake.memory().iter().all(|(start, _)| *start >= 0x10_0000));
}

#[test]
fn excluded_memory_that_a_header_names_is_taken_out() {
    let fake = Fake::new();
    // The entry of ordinary memory begins, and is read from, a page too early.
    let slot = elfcorehdr::size_for(4);
    for (field, value) in
        [(8, 0xff000), (16, DIRECT_MAP + 0xff000), (24, 0xff000), (32, 0x1ff0_1000), (40, 0x1ff0_1000)]
    {
        fake.header.borrow_mut()[slot + field..][..8].copy_from_slice(&u64::to_le_bytes(value));
    }
    assert_eq!(fake.memory(), [(0xff000, 0x2000_0000)]);
    let mut state = fake.armed();
    let then = state.moment();
    assert_eq!(state.reconcile(then, |image| image.add(range(0, 0x2000_0000))), Ok(true));
    assert_eq!(fake.memory(), [(0x10_0000, 0x2000_0000)]);
}

#[test]
fn memory_that_is_read_from_elsewhere_is_refused() {
    let fake = Fake::new();
    let paddr = elfcorehdr::size_for(4) + 24;
    fake.header.borrow_mut()[paddr..][..8].copy_from_slice(&0x10_1000_u64.to_le_bytes());
    assert_eq!(fake.image(nodes()).err(), Some((Reason::BadHeader, paddr as u32)));
}

#[test]
fn what_is_not_as_last_written_is_let_go_and_not_written() {
    type Spoil = (&'static str, fn(&Fake), Reason);
    let spoil: [Spoil; 3] = [
        ("identity", |fake| *fake.ours.borrow_mut() = false, Reason::NotOurs),
        ("file header", |fake| fake.header.borrow_mut()[56] ^= 1, Reason::Changed),
        ("slot to be used", |fake| fake.header.borrow_mut()[64 + 5 * 56 + 16] ^= 1, Reason::Changed),
    ];
    for (what, spoil, reason) in spoil {
        let fake = Fake::new();
        let mut state = fake.armed();
        spoil(&fake);
        let before = fake.header.borrow().clone();
        assert!(state.memory(Memory::Comes, block(32)), "{what}");
        assert_eq!(*fake.header.borrow(), before, "{what}");
        assert_eq!(state.reason(), reason, "{what}");
        assert!(!state.is_armed());
        // And stays so.
        *fake.ours.borrow_mut() = true;
        assert!(!state.memory(Memory::Comes, block(40)), "{what}");
        assert_eq!(*fake.header.borrow(), before, "{what}");
    }
}

#[test]
fn a_full_header_is_let_go() {
    let fake = Fake::new();
    let mut state = fake.armed();
    let free = state.status().free_slots;
    for number in 0..free {
        assert!(!state.memory(Memory::Comes, block(32 + 2 * u64::from(number))), "block {number}");
    }
    assert!(state.memory(Memory::Comes, block(9999)));
    assert_eq!(state.reason(), Reason::Full);
    Header::parse(&fake.header.borrow()).unwrap();
}

#[test]
fn a_new_cpu_gets_its_note() {
    let fake = Fake::new();
    let cpus =
        vec![Cpu { cpu: 0, present: 1, note: 0x20_0000 }, Cpu { cpu: 5, present: 0, note: 0x21_0000 }].leak();
    let mut image = fake.image(nodes()).unwrap();
    image.follow_cpus(cpus);
    let mut state = State::new();
    let then = state.moment();
    assert!(state.arm(&mut Some(image), abi::Range::default(), [0; 16], then).is_ok());
    assert!(!state.cpu(5));
    let notes: Vec<u64> = {
        let header = fake.header.borrow();
        Header::parse(&header).unwrap().notes().map(|note| note.paddr.0).collect()
    };
    assert_eq!(notes, [0x20_0000, 0x21_0000, 0x30_0000]);
    assert!(state.cpu(3), "a CPU that was not possible");
    assert!(!state.is_armed());
}

#[test]
fn cpus_are_followed_only_where_the_loader_confirms_their_notes() {
    let fake = Fake::new();
    let header = fake.header.borrow();
    let in_reservation = |range: PhysRange| range.start().0 >= 0x3000_0000;
    let cpu = |cpu, note| Cpu { cpu, present: 1, note };
    for (cpus, expected) in [
        (vec![cpu(0, 0x20_0000), cpu(1, 0x21_0000)], true),
        (vec![cpu(0, 0x20_0000), cpu(1, 0x3000_0000)], true),
        (vec![cpu(0, 0x20_0000), cpu(1, 0)], false),
        (vec![cpu(0, 0x22_0000), cpu(1, 0x21_0000)], false),
        (vec![cpu(0, 0x20_0000)], false),
        (vec![], false),
    ] {
        assert_eq!(arming::may_follow_cpus(&header, &cpus, in_reservation), expected, "{cpus:?}");
    }
}

#[test]
fn another_load_stops_an_arming_that_is_under_way() {
    let fake = Fake::new();
    let mut state = State::new();
    let then = state.moment();
    let image = fake.image(nodes()).unwrap();
    assert!(!state.disarm(Reason::OtherLoad), "nothing was armed");
    assert_eq!(
        state.arm(&mut Some(image), abi::Range::default(), [0; 16], then).err(),
        Some(Reason::OtherLoad)
    );
    let mut state = fake.armed();
    assert!(state.take_dead().is_none());
    let image = fake.image(nodes()).unwrap();
    let then = state.moment();
    assert_eq!(
        state.arm(&mut Some(image), abi::Range::default(), [0; 16], then).err(),
        Some(Reason::AlreadyArmed)
    );
    assert!(state.disarm(Reason::OtherLoad));
    assert_eq!((state.follows(), state.reason()), (0, Reason::OtherLoad));
    assert!(state.take_dead().is_some());
}

#[test]
fn an_event_between_walk_and_change_begins_the_reconciling_anew() {
    let fake = Fake::new();
    let mut state = fake.armed();
    let then = state.moment();
    assert!(!state.memory(Memory::Gone, block(3)));
    assert_eq!(state.reconcile(then, |image| image.add(block(3))), Ok(false));
    assert!(!state.settle(then));
    assert_eq!(state.follows(), 0);
    let then = state.moment();
    assert_eq!(state.reconcile(then, |image| image.add(block(32))), Ok(true));
    assert!(state.settle(then));
    assert_eq!(state.status().reconciled, 1);
}

#[test]
fn switched_off_is_let_go_when_nothing_is_left() {
    let fake = Fake::new();
    let mut state = fake.armed();
    assert!(!state.unfollow(FOLLOW_CPUS));
    assert!(state.unfollow(FOLLOW_MEMORY));
    assert_eq!(state.reason(), Reason::SwitchedOff);
}

fn request() -> Arm {
    Arm {
        version: abi::VERSION,
        size: size_of::<Arm>() as u32,
        header: abi::Range { start: 0x3000_0000, end: 0x3000_2000 },
        identity_at: 0x3000_4010,
        follow: FOLLOW_MEMORY,
        ..Arm::default()
    }
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    assert!(arming::check(&request()).is_ok());
    type Wrong = (fn(&mut Arm), Reason);
    let wrong: [Wrong; 14] = [
        (|arm| arm.version += 1, Reason::Version),
        (|arm| arm.size -= 8, Reason::Version),
        (|arm| arm.follow = 0, Reason::SwitchedOff),
        (|arm| arm.follow = 4, Reason::BadRequest),
        (|arm| arm.follow |= 1 << 31, Reason::BadRequest),
        (|arm| arm.header.start += 8, Reason::Misaligned),
        (|arm| arm.header.end -= 8, Reason::Misaligned),
        (|arm| arm.header.end = arm.header.start, Reason::Misaligned),
        (|arm| arm.header.end = 0x1000, Reason::Misaligned),
        (|arm| arm.header.end = 0x4000_0000, Reason::Misaligned),
        (|arm| arm.identity_at += 1, Reason::Misaligned),
        (|arm| arm.identity_at = u64::MAX - 7, Reason::Misaligned),
        (|arm| arm.identity_at = 0x3000_1ff8, Reason::Overlap),
        (|arm| arm.excluded_count = 17, Reason::BadRequest),
    ];
    for (change, reason) in wrong {
        let mut arm = request();
        change(&mut arm);
        assert_eq!(arming::check(&arm).err(), Some(reason), "{arm:?}");
    }
}

#[test]
fn steps_cover_the_whole_machine() {
    let ram = [(0x1000, 0x9f000), (0x10_0000, 0x2000_0000), (0x2000_0000, 0x3000_0000)];
    let ram = ram.map(|(start, end)| abi::Range { start, end });
    let steps: Vec<Step> = Steps::new(&ram).collect();
    let limit = Machine::X86_64.phys_limit();
    assert_eq!(
        steps,
        [
            Step::Remove(range(0, 0x1000)),
            Step::Add(range(0x1000, 0x9f000)),
            Step::Remove(range(0x9f000, 0x10_0000)),
            Step::Add(range(0x10_0000, 0x2000_0000)),
            Step::Add(range(0x2000_0000, 0x3000_0000)),
            Step::Remove(range(0x3000_0000, limit)),
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// After any events the header names the blocks that are there, whatever the order.
    #[test]
    fn the_header_follows(events in proptest::collection::vec((32u64..60, 0u8..4), 1..80)) {
        let fake = Fake::new();
        let mut state = fake.armed();
        let mut there = std::collections::BTreeSet::new();
        for (number, what) in events {
            let what = [Memory::Comes, Memory::Came, Memory::Gone, Memory::Stays][usize::from(what)];
            if what == Memory::Gone { there.remove(&number); } else { there.insert(number); }
            prop_assert!(!state.memory(what, block(number)));
        }
        let named = fake.memory();
        for number in 32..60 {
            let (start, end) = (block(number).start().0, block(number).end().0);
            let is_named = named.iter().any(|(from, to)| *from <= start && end <= *to);
            let is_touched = named.iter().any(|(from, to)| *from < end && start < *to);
            prop_assert_eq!(is_named, there.contains(&number));
            prop_assert_eq!(is_touched, there.contains(&number));
        }
    }

    /// No bytes make arming panic.
    #[test]
    fn any_header_is_taken_or_refused(at in 0usize..ROOM, value: u8, events in 0u64..64) {
        let fake = Fake::new();
        fake.header.borrow_mut()[at] = value;
        if let Ok(image) = fake.image(nodes()) {
            let mut state = State::new();
            let then = state.moment();
            prop_assert!(state.arm(&mut Some(image), abi::Range::default(), [0; 16], then).is_ok());
            state.memory(Memory::Comes, block(events));
            state.memory(Memory::Gone, block(events));
        }
    }
}
