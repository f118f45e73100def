//! The core without a kernel: images in ordinary memory.

use abi::{FOLLOW_CPUS, FOLLOW_MEMORY, Reason};
use elfcorehdr::{Header, Load, Machine};
use fake::{BLOCK, Fake, block, range};
use kmod_core::arch::X86_64;
use kmod_core::arming::{self, Refused, Step, Steps};
use kmod_core::{Cpu, Excluded, Image, Memory, State};
use proptest::prelude::*;
use x86::{DIRECT_MAP, comer, image, parts};

mod fake;
#[path = "fake/x86.rs"]
mod x86;

/// What the tests of this file do with an image.
trait Follow {
    fn taken_in(&self) -> Result<Image<'static, Fake>, Refused>;
    fn armed(&self) -> State<'static, Fake>;
    fn memory(&self) -> Vec<(u64, u64)>;
}

impl Follow for Fake {
    fn taken_in(&self) -> Result<Image<'static, Self>, Refused> {
        let excluded = Excluded::new(&[abi::Range { start: 0, end: 0x10_0000 }]).unwrap();
        let parts = parts(self, excluded, FOLLOW_MEMORY | FOLLOW_CPUS);
        Image::new(self.clone(), parts, &X86_64, |_| true)
    }

    fn armed(&self) -> State<'static, Self> {
        let mut state = State::new();
        let image = self.taken_in().unwrap();
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

#[test]
fn memory_comes_and_goes() {
    let fake = image();
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
    let fake = image();
    let mut state = fake.armed();
    assert!(!state.memory(Memory::Gone, range(0, BLOCK)));
    assert!(!state.memory(Memory::Came, range(0, BLOCK)));
    assert!(fake.memory().iter().all(|(start, _)| *start >= 0x10_0000));
}

#[test]
fn excluded_memory_that_a_header_names_is_taken_out() {
    let fake = image();
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
    assert_eq!(state.reconcile(then, Step::Add(range(0, 0x2000_0000))), Ok(true));
    assert_eq!(fake.memory(), [(0x10_0000, 0x2000_0000)]);
}

#[test]
fn memory_that_is_read_from_elsewhere_is_refused() {
    let fake = image();
    let paddr = elfcorehdr::size_for(4) + 24;
    fake.header.borrow_mut()[paddr..][..8].copy_from_slice(&0x10_1000_u64.to_le_bytes());
    let refused = fake.taken_in().err().unwrap();
    assert_eq!((refused.reason, refused.found), (Reason::BadHeader, paddr as u32));
}

#[test]
fn what_is_not_as_last_written_is_let_go_and_not_written() {
    type Spoil = (&'static str, fn(&Fake), Reason);
    let spoil: [Spoil; 4] = [
        ("unloaded", |fake| *fake.loaded.borrow_mut() = false, Reason::NotLoaded),
        ("identity", |fake| *fake.ours.borrow_mut() = false, Reason::NotOurs),
        ("file header", |fake| fake.header.borrow_mut()[56] ^= 1, Reason::Changed),
        ("slot to be used", |fake| fake.header.borrow_mut()[64 + 5 * 56 + 16] ^= 1, Reason::Changed),
    ];
    for (what, spoil, reason) in spoil {
        let fake = image();
        let mut state = fake.armed();
        spoil(&fake);
        let before = fake.header.borrow().clone();
        assert!(state.memory(Memory::Comes, block(32)), "{what}");
        assert_eq!(*fake.header.borrow(), before, "{what}");
        assert_eq!(state.reason(), reason, "{what}");
        assert!(!state.is_armed());
        // And stays so.
        (*fake.loaded.borrow_mut(), *fake.ours.borrow_mut()) = (true, true);
        assert!(!state.memory(Memory::Comes, block(40)), "{what}");
        assert_eq!(*fake.header.borrow(), before, "{what}");
    }
}

#[test]
fn a_full_header_is_let_go() {
    let fake = image();
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
    let fake = image();
    let cpus =
        vec![Cpu { cpu: 0, present: 1, note: 0x20_0000 }, Cpu { cpu: 5, present: 0, note: 0x21_0000 }].leak();
    let mut image = fake.taken_in().unwrap();
    image.follow_cpus(cpus);
    let mut state = State::new();
    let then = state.moment();
    assert!(state.arm(&mut Some(image), abi::Range::default(), [0; 16], then).is_ok());
    assert!(!state.cpu(&comer(5)));
    let notes: Vec<u64> = {
        let header = fake.header.borrow();
        Header::parse(&header).unwrap().notes().map(|note| note.paddr.0).collect()
    };
    assert_eq!(notes, [0x20_0000, 0x21_0000, 0x30_0000]);
    assert!(state.cpu(&comer(3)), "a CPU that was not possible");
    assert!(!state.is_armed());
}

#[test]
fn cpus_are_followed_only_where_the_loader_confirms_their_notes() {
    let fake = image();
    let header = fake.header.borrow();
    let in_reservation = |range: elfcorehdr::PhysRange| range.start().0 >= 0xc000_0000;
    let cpu = |cpu, note| Cpu { cpu, present: 1, note };
    for (cpus, expected) in [
        (vec![cpu(0, 0x20_0000), cpu(1, 0x21_0000)], true),
        (vec![cpu(0, 0x20_0000), cpu(1, 0xc000_0000)], true),
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
    let fake = image();
    let mut state = State::new();
    let then = state.moment();
    let image = fake.taken_in().unwrap();
    assert!(!state.disarm(Reason::OtherLoad), "nothing was armed");
    assert_eq!(
        state.arm(&mut Some(image), abi::Range::default(), [0; 16], then).err(),
        Some(Reason::OtherLoad)
    );
    let mut state = fake.armed();
    assert!(state.take_dead().is_none());
    let image = fake.taken_in().unwrap();
    let then = state.moment();
    assert_eq!(
        state.arm(&mut Some(image), abi::Range::default(), [0; 16], then).err(),
        Some(Reason::AlreadyArmed)
    );
    assert!(state.loaded());
    assert_eq!((state.follows(), state.reason(), state.loads()), (0, Reason::OtherLoad, 1));
    assert!(state.take_dead().is_some());
}

#[test]
fn an_event_between_walk_and_change_begins_the_reconciling_anew() {
    let fake = image();
    let mut state = fake.armed();
    let then = state.moment();
    assert!(!state.memory(Memory::Gone, block(3)));
    assert_eq!(state.reconcile(then, Step::Add(block(3))), Ok(false));
    assert!(!state.settle(then));
    assert_eq!(state.follows(), 0);
    let then = state.moment();
    assert_eq!(state.reconcile(then, Step::Add(block(32))), Ok(true));
    assert!(state.settle(then));
    assert_eq!(state.status().reconciled, 1);
}

#[test]
fn memory_on_its_way_is_not_reconciled_away() {
    let fake = image();
    let mut state = fake.armed();
    assert!(!state.memory(Memory::Comes, block(33)));
    assert_eq!(state.coming(), Some(block(33)));
    let then = state.moment();
    assert_eq!(state.reconcile(then, Step::Remove(range(32 * BLOCK, 1 << 52))), Ok(true));
    assert!(fake.memory().contains(&(33 * BLOCK, 34 * BLOCK)));
    assert!(!state.memory(Memory::Gone, block(33)), "it did not come in the end");
    assert_eq!(state.coming(), None);
    assert!(!fake.memory().contains(&(33 * BLOCK, 34 * BLOCK)));
}

#[test]
fn events_count_where_they_are_followed() {
    let fake = image();
    let mut state: State<Fake> = State::new();
    assert!(!state.memory(Memory::Comes, block(32)));
    assert_eq!((state.taken(), state.status().memory_events), (0, 0));
    let mut state = fake.armed();
    assert!(!state.cpu(&comer(1)), "CPUs are not followed");
    assert!(!state.memory(Memory::Comes, block(32)));
    state.took(700, 1_700_000_000);
    assert!(!state.memory(Memory::Came, block(32)));
    state.took(300, 1_700_000_001);
    let status = state.status();
    assert_eq!((state.taken(), status.memory_events, status.cpu_events, status.stores), (2, 2, 0, 7));
    assert_eq!((status.last_ns, status.slowest_ns, status.last_time), (300, 700, 1_700_000_001));
    assert_eq!((status.used_slots, status.free_slots), (6, 66), "of 72 in 4096 bytes");
}

#[test]
fn switched_off_is_let_go_when_nothing_is_left() {
    let fake = image();
    let mut state = fake.armed();
    assert!(!state.unfollow(FOLLOW_CPUS));
    assert!(state.unfollow(FOLLOW_MEMORY));
    assert_eq!(state.reason(), Reason::SwitchedOff);
}

#[test]
fn steps_cover_the_whole_machine() {
    let ram = [(0x1000, 0x9f000), (0x10_0000, 0x2000_0000), (0x2000_0000, 0x3000_0000)];
    let ram = ram.map(|(start, end)| abi::Range { start, end });
    let steps: Vec<Step> = Steps::new(&ram, Machine::X86_64).collect();
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
        let fake = image();
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
}
