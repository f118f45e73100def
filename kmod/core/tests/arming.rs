//! Arming: requests and headers that lie, and machines and other programs that do not wait.

use std::cell::{Cell, RefCell};

use abi::{Arm, FOLLOW_CPUS, FOLLOW_MEMORY, Reason};
use elfcorehdr::layout::{ehdr, phdr, slot_offset};
use elfcorehdr::update::{Change, Index};
use elfcorehdr::{Header, PhysRange, RangeVec};
use fake::judge::capture_kernel;
use fake::{BLOCK, Fake, ROOM, block, nodes, range};
use kmod_core::arch::{Arch, PPC64, X86_64};
use kmod_core::arming::{self, Kernel, Refused, Request};
use kmod_core::{Cpu, Image, Memory, Nodes, State};
use proptest::prelude::*;
use x86::{BOOT_BLOCKS, NOTES, comer, image, parts};

mod fake;
#[path = "fake/x86.rs"]
mod x86;

const HEADER: u64 = 0xc800_0000;
const IDENTITY: [u8; 16] = *b"0123456789abcdef";
const ALL: u32 = FOLLOW_MEMORY | FOLLOW_CPUS;
/// Where the kernel knows the notes of the CPUs to be.
const CPUS: [Cpu; 2] =
    [Cpu { cpu: 0, present: 1, note: NOTES[0] }, Cpu { cpu: 1, present: 0, note: 0x21_0000 }];

/// A good request.
fn request() -> Arm {
    let mut arm = Arm {
        version: abi::VERSION,
        size: size_of::<Arm>() as u32,
        header: abi::Range { start: HEADER, end: HEADER + ROOM as u64 },
        identity_at: HEADER + 0x4010,
        identity: IDENTITY,
        follow: ALL,
        excluded_count: 2,
        ..Arm::default()
    };
    arm.excluded[0] = abi::Range { start: 0, end: 0x10_0000 };
    arm.excluded[1] = abi::Range { start: 0xc000_0000, end: 0xd000_0000 };
    arm
}

/// One thing that happens to the machine, or that somebody does.
#[derive(Clone, Copy, Debug)]
enum Happening {
    /// This block comes online: said before, done, said after; or called off at the second step.
    Online(u64, bool),
    /// This block goes offline: done, said after; or called off.
    Offline(u64, bool),
    /// A CPU comes.
    Cpu(u32),
    /// Somebody writes this word of the header.
    Write(usize, u64),
    /// Somebody loads another image.
    Load,
    /// Somebody unloads the image.
    Unload,
}

/// One step of one.
#[derive(Clone, Copy, Debug)]
enum Step {
    Say(Memory, u64),
    Set(u64, bool),
    Cpu(u32),
    Write(usize, u64),
    Unprotect,
    Install,
    Protect,
}

impl Happening {
    fn steps(self) -> Vec<Step> {
        match self {
            Self::Online(block, true) => {
                vec![Step::Say(Memory::Comes, block), Step::Set(block, true), Step::Say(Memory::Came, block)]
            }
            Self::Online(block, false) => {
                vec![Step::Say(Memory::Comes, block), Step::Say(Memory::Gone, block)]
            }
            Self::Offline(block, true) => vec![Step::Set(block, false), Step::Say(Memory::Gone, block)],
            Self::Offline(block, false) => vec![Step::Say(Memory::Stays, block)],
            Self::Cpu(cpu) => vec![Step::Cpu(cpu)],
            Self::Write(at, value) => vec![Step::Write(at, value)],
            Self::Load => vec![Step::Unprotect, Step::Install, Step::Protect],
            Self::Unload => vec![Step::Unprotect],
        }
    }
}

/// A kernel on which things happen whenever the core does not hold its lock.
struct Machine {
    fake: Fake,
    state: RefCell<State<'static, Fake>>,
    online: RefCell<Vec<bool>>,
    /// What is still to happen, first things last.
    script: RefCell<Vec<Step>>,
    is_reserved: fn(PhysRange) -> bool,
    ram_is_short: Cell<bool>,
    arch: &'static Arch,
}

impl Machine {
    fn new(fake: Fake, blocks: &[bool], script: &[Happening]) -> Self {
        let mut online = vec![true; BOOT_BLOCKS as usize];
        online.extend(blocks);
        let mut steps: Vec<Step> = Vec::new();
        let mut will_be = online.clone();
        for happening in script {
            // Nothing comes that is there, nor goes that is not.
            match *happening {
                Happening::Online(block, _) if will_be[block as usize] => continue,
                Happening::Offline(block, _) if !will_be[block as usize] => continue,
                Happening::Online(block, true) => will_be[block as usize] = true,
                Happening::Offline(block, true) => will_be[block as usize] = false,
                _ => {}
            }
            steps.extend(happening.steps());
        }
        steps.reverse();
        Self {
            fake,
            state: RefCell::new(State::new()),
            online: RefCell::new(online),
            script: RefCell::new(steps),
            is_reserved: |range| range.start().0 >= 0xc000_0000 && range.end().0 <= 0xd000_0000,
            ram_is_short: Cell::new(false),
            arch: &X86_64,
        }
    }

    fn step(&self) -> bool {
        let Some(step) = self.script.borrow_mut().pop() else { return false };
        let mut state = self.state.borrow_mut();
        match step {
            Step::Say(what, number) => drop(state.memory(what, block(number))),
            Step::Set(number, is) => self.online.borrow_mut()[number as usize] = is,
            Step::Cpu(cpu) => drop(state.cpu(&comer(cpu))),
            Step::Write(at, value) => {
                self.fake.header.borrow_mut()[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            Step::Unprotect => {
                state.disarm(Reason::OtherLoad);
                *self.fake.loaded.borrow_mut() = false;
            }
            // The new image happens to leave ours as it was.
            Step::Install => *self.fake.loaded.borrow_mut() = true,
            Step::Protect => drop(state.loaded()),
        }
        if state.follows() & FOLLOW_MEMORY != 0 {
            drop(state);
            self.must_name_all();
        }
        true
    }

    fn run(&self) {
        while self.step() {}
    }

    fn arm(&self, request: &Arm) -> Result<u32, Refused> {
        let loads_before = self.state.borrow().loads();
        arming::arm(self, request, ALL, loads_before)
    }

    /// The header names all memory that is in use, whatever was said.
    fn must_name_all(&self) {
        if capture_kernel(&self.fake.header.borrow()).is_err() {
            return; // Others wrote.
        }
        let saved = self.saved();
        for (number, is_online) in self.online.borrow().iter().enumerate() {
            let wanted = block(number as u64);
            let wanted = if number == 0 { range(0x10_0000, BLOCK) } else { wanted };
            assert!(!is_online || saved.contains_range(wanted), "block {number} is not in {saved:?}");
        }
    }

    /// What a capture kernel would save.
    fn saved(&self) -> RangeVec {
        let (_, saved) = capture_kernel(&self.fake.header.borrow()).unwrap();
        saved.into_iter().map(|(start, end)| range(start, end)).collect()
    }

    /// What the header must name in the end.
    fn memory(&self) -> RangeVec {
        let online = self.online.borrow();
        let numbers = (0..).zip(online.iter()).filter(|(_, is)| **is).map(|(number, _)| block(number));
        let mut all: RangeVec = numbers.collect();
        all.remove(range(0, 0x10_0000)).unwrap();
        all
    }
}

impl Kernel<'static> for Machine {
    type Live = Fake;
    type Ram = Vec<abi::Range>;

    fn arch(&self) -> &'static Arch {
        self.arch
    }

    fn page_size(&self) -> u64 {
        0x1000
    }

    fn in_reservation(&self, range: PhysRange) -> bool {
        (self.is_reserved)(range)
    }

    fn is_loaded(&self) -> bool {
        *self.fake.loaded.borrow()
    }

    fn open(&self, request: &Request) -> Result<Image<'static, Fake>, Refused> {
        let parts = parts(&self.fake, request.excluded, request.follow);
        let follow_cpus = arming::may_follow_cpus(parts.shadow, &CPUS, |range| self.in_reservation(range));
        let mut image = Image::new(self.fake.clone(), parts, self.arch, |range| self.in_reservation(range))?;
        if follow_cpus && request.follow & FOLLOW_CPUS != 0 {
            image.follow_cpus(&CPUS);
        }
        Ok(image)
    }

    fn ram(&self) -> Result<Vec<abi::Range>, Refused> {
        if self.ram_is_short.get() {
            return Err(Reason::NoMemory.into());
        }
        let mut all = self.memory();
        all.add(range(0x1000, 0x9f000)).unwrap();
        Ok(all.iter().map(|range| abi::Range { start: range.start().0, end: range.end().0 }).collect())
    }

    fn nodes<R>(&self, work: impl FnOnce(Nodes<'_>) -> R) -> Result<R, Refused> {
        Ok(work(Nodes::default()))
    }

    fn locked<R>(&self, work: impl FnOnce(&mut State<'static, Fake>) -> R) -> R {
        self.step();
        work(&mut self.state.borrow_mut())
    }

    fn drop_dead(&self) {
        drop(self.state.borrow_mut().take_dead());
    }
}

#[test]
fn a_good_request_is_followed() {
    let machine = Machine::new(image(), &[false, true], &[]);
    assert_eq!(machine.arm(&request()), Ok(ALL));
    assert_eq!(machine.saved(), machine.memory());
    let status = machine.state.borrow().status();
    assert_eq!((status.armed, status.follow, status.reconciled, status.identity), (1, ALL, 2, IDENTITY));
    // The second CPU has its note now.
    let header = machine.fake.header.borrow();
    let notes: Vec<u64> = Header::parse(&header).unwrap().notes().map(|note| note.paddr.0).collect();
    assert_eq!(notes, [NOTES[0], CPUS[1].note, NOTES[2]]);
}

/// Each wrong field has its own answer, and none leads to a store.
#[test]
fn requests_that_lie_are_refused() {
    type Wrong = (fn(&mut Arm), Reason);
    let wrong: [Wrong; 26] = [
        (|arm| arm.version += 1, Reason::Version),
        (|arm| arm.version = 0, Reason::Version),
        (|arm| arm.size -= 8, Reason::Version),
        (|arm| arm.follow = 0, Reason::SwitchedOff),
        (|arm| arm.follow |= 1 << 31, Reason::BadRequest),
        (|arm| arm.follow |= 4, Reason::BadRequest),
        (|arm| arm.header.start += 8, Reason::Misaligned),
        (|arm| arm.header.end -= 8, Reason::Misaligned),
        (|arm| arm.identity_at += 1, Reason::Misaligned),
        (|arm| arm.identity_at = u64::MAX - 7, Reason::Misaligned),
        (|arm| arm.header.end = arm.header.start, Reason::Misaligned),
        (|arm| arm.header.end = 0x1000, Reason::Misaligned),
        (|arm| arm.header.end = !0xfff, Reason::Misaligned),
        (|arm| arm.identity_at = arm.header.end - 8, Reason::Overlap),
        (|arm| arm.identity_at = arm.header.start - 8, Reason::Overlap),
        (|arm| arm.excluded_count = 17, Reason::BadRequest),
        (|arm| arm.excluded.swap(0, 1), Reason::BadRequest),
        (|arm| arm.excluded[0].end = 0xc800_0000, Reason::BadRequest),
        (|arm| arm.excluded[1].end = 0, Reason::BadRequest),
        (|arm| arm.excluded_count = 1, Reason::NotExcluded),
        (|arm| arm.excluded[1].start = HEADER + 0x800, Reason::NotExcluded),
        (|arm| arm.excluded[1].end = HEADER + 0x800, Reason::NotExcluded),
        (
            |arm| {
                (arm.header, arm.identity_at) = (abi::Range { start: 0x8000, end: 0x9000 }, 0x4000);
            },
            Reason::OutsideReservation,
        ),
        // x86 has no device trees.
        (|arm| arm.tree_pointer = HEADER + 0x4000, Reason::BadRequest),
        (
            |arm| arm.trees[0] = abi::Range { start: HEADER + 0x8000, end: HEADER + 0x9000 },
            Reason::BadRequest,
        ),
        (|arm| arm.trees[1].end = 1, Reason::BadRequest),
    ];
    for (change, reason) in wrong {
        let mut arm = request();
        change(&mut arm);
        let machine = Machine::new(image(), &[true, false], &[]);
        let before = machine.fake.header.borrow().clone();
        assert_eq!(machine.arm(&arm).map_err(|refused| refused.reason), Err(reason), "{arm:x?}");
        assert_eq!(*machine.fake.header.borrow(), before);
        assert!(!machine.state.borrow().is_armed());
    }
}

/// Pages are the kernel's, of 4 or of 64 KiB.
#[test]
fn requests_with_trees_that_lie_are_refused() {
    type Wrong = (fn(&mut Arm), Reason);
    let page = 0x1_0000;
    let mut good = request();
    good.header.end = HEADER + page;
    good.identity_at = HEADER + page + 0x10;
    good.tree_pointer = HEADER + page + 0x28;
    let place = |number| abi::Range { start: HEADER + number * page, end: HEADER + (number + 2) * page };
    good.trees = [place(2), place(4)];
    let check = |arm: &Arm, page| arming::check(arm, ALL, &PPC64, page);
    let trees = check(&good, page).unwrap().trees.unwrap();
    assert_eq!(trees.pointer, range(HEADER + page + 0x28, HEADER + page + 0x30));
    assert_eq!(trees.places[1], range(HEADER + 4 * page, HEADER + 6 * page));
    let wrong: [Wrong; 19] = [
        (|arm| (arm.tree_pointer, arm.trees) = (0, [abi::Range::default(); 2]), Reason::BadRequest),
        (|arm| arm.header.end = HEADER + 0x1000, Reason::Misaligned),
        (|arm| arm.trees[0].start += 0x1000, Reason::Misaligned),
        (|arm| arm.trees[1].end -= 0x1000, Reason::Misaligned),
        (|arm| arm.trees[0] = abi::Range::default(), Reason::Misaligned),
        (|arm| arm.trees[1].end = arm.trees[1].start, Reason::Misaligned),
        (|arm| arm.trees[1].end = 0, Reason::Misaligned),
        (|arm| arm.trees[1].end += 0x1_0000, Reason::Misaligned),
        (|arm| arm.trees[1].end = !0xffff, Reason::Misaligned),
        (|arm| arm.tree_pointer += 4, Reason::Misaligned),
        (|arm| arm.tree_pointer = u64::MAX - 7, Reason::Misaligned),
        (|arm| arm.tree_pointer = arm.identity_at + 8, Reason::Overlap),
        (|arm| arm.tree_pointer = HEADER + 8, Reason::Overlap),
        (|arm| arm.tree_pointer = arm.trees[1].end - 8, Reason::Overlap),
        (|arm| arm.identity_at = arm.trees[0].start, Reason::Overlap),
        (|arm| arm.trees[1] = arm.trees[0], Reason::Overlap),
        (|arm| arm.trees[0] = abi::Range { start: HEADER, end: HEADER + 0x2_0000 }, Reason::Overlap),
        (
            |arm| arm.trees[1] = abi::Range { start: HEADER - 0x1_0000, end: HEADER + 0x1_0000 },
            Reason::Overlap,
        ),
        (|arm| arm.header.end = HEADER + 0x3_0000, Reason::Overlap),
    ];
    for (change, reason) in wrong {
        let mut arm = good;
        change(&mut arm);
        assert_eq!(check(&arm, page).err(), Some(reason), "{arm:x?}");
    }
    good.header.end = HEADER + 0x1000;
    assert!(check(&good, 0x1000).is_ok());
}

#[test]
fn what_is_switched_off_is_not_followed() {
    let refused = |wanted| arming::check(&request(), wanted, &X86_64, 0x1000).err();
    assert_eq!(refused(0), Some(Reason::SwitchedOff));
    let memory = arming::check(&request(), FOLLOW_MEMORY, &X86_64, 0x1000).unwrap();
    assert_eq!(memory.follow, FOLLOW_MEMORY);
    let cpus = Arm { follow: FOLLOW_CPUS, ..request() };
    assert_eq!(arming::check(&cpus, FOLLOW_MEMORY, &X86_64, 0x1000).err(), Some(Reason::SwitchedOff));
}

#[test]
fn machines_that_cannot_are_told_apart() {
    type Spoil = (fn(&mut Machine), i32, Reason);
    let spoil: [Spoil; 5] = [
        (|machine| *machine.fake.loaded.borrow_mut() = false, 19, Reason::NotLoaded),
        (|machine| *machine.fake.ours.borrow_mut() = false, 22, Reason::NotOurs),
        (|machine| machine.is_reserved = |range| range.start().0 != HEADER, 22, Reason::OutsideReservation),
        (|machine| machine.is_reserved = |range| range.start().0 == HEADER, 22, Reason::OutsideReservation),
        (|machine| machine.ram_is_short.set(true), 12, Reason::NoMemory),
    ];
    for (spoil, errno, reason) in spoil {
        let mut machine = Machine::new(image(), &[true], &[]);
        let before = machine.fake.header.borrow().clone();
        spoil(&mut machine);
        let refused = machine.arm(&request()).unwrap_err();
        assert_eq!((refused.errno, refused.reason), (errno, reason));
        assert_eq!(*machine.fake.header.borrow(), before);
        assert!(!machine.state.borrow().is_armed());
    }
}

#[test]
fn a_second_arming_is_refused_and_changes_nothing() {
    let machine = Machine::new(image(), &[true], &[]);
    assert_eq!(machine.arm(&request()), Ok(ALL));
    let before = machine.fake.header.borrow().clone();
    let refused = machine.arm(&request()).unwrap_err();
    assert_eq!((refused.errno, refused.reason), (16, Reason::AlreadyArmed));
    assert_eq!(*machine.fake.header.borrow(), before);
    assert_eq!(machine.state.borrow().follows(), ALL);
    // Let go, it can be armed again.
    machine.state.borrow_mut().disarm(Reason::Asked);
    assert_eq!(machine.arm(&request()), Ok(ALL));
}

/// Whoever opened the device before loading is not taken for the one whose image came after.
#[test]
fn an_image_that_came_after_the_own_is_not_armed() {
    for (loads, expected) in [(0, Ok(ALL)), (1, Ok(ALL)), (2, Err(Reason::OtherLoad))] {
        let machine = Machine::new(image(), &[], &vec![Happening::Load; loads]);
        machine.run();
        let result = arming::arm(&machine, &request(), ALL, 0);
        assert_eq!(result.map_err(|refused| refused.reason), expected, "{loads} loads");
    }
}

#[test]
fn a_machine_that_never_rests_is_given_up() {
    let restless = vec![Happening::Offline(0, false); 2000];
    let machine = Machine::new(image(), &[], &restless);
    let refused = machine.arm(&request()).unwrap_err();
    assert_eq!((refused.errno, refused.reason), (11, Reason::Restless));
    assert!(!machine.state.borrow().is_armed());
}

#[test]
fn a_full_header_is_not_armed() {
    let mut header = image().header.borrow().clone();
    let mut index = Index::rebuild(&header, nodes()).unwrap();
    while index.free_slots() != 0 {
        let range = block(1000 + 2 * index.free_slots() as u64);
        let plan = index.plan(&header, Change::Add { range, vaddr: 0 }).unwrap();
        let stores = plan.stores().to_vec();
        assert_eq!(plan.commit(), None);
        stores.iter().for_each(|store| store.write_to(&mut header).unwrap());
    }
    // A machine with the same memory, and more.
    let numbers: Vec<bool> = (BOOT_BLOCKS..2000).map(|number| number % 2 == 0 && number >= 1000).collect();
    let machine = Machine::new(Fake::of(header), &numbers, &[]);
    assert_eq!(machine.arm(&request()).unwrap_err().reason, Reason::Full);
    capture_kernel(&machine.fake.header.borrow()).unwrap();
    assert!(!machine.state.borrow().is_armed());
}

/// Every byte of the header, every bit of it, and a few more values: refused without a store, or followed, with a header
/// that capture kernels take after every store.
#[test]
fn headers_that_lie_are_refused_or_followed() {
    let good = image().header.borrow().clone();
    let used = slot_offset(6).unwrap();
    let (mut taken, mut refused) = (0, 0);
    for at in 0..used {
        let bits = (0..8).map(|bit| good[at] ^ (1 << bit));
        for value in bits.chain([0, 0xff]).filter(|value| *value != good[at]) {
            let mut header = good.clone();
            header[at] = value;
            let machine = Machine::new(
                Fake::of(header.clone()),
                &[true, false],
                &[Happening::Online(5, true), Happening::Offline(2, true), Happening::Cpu(1)],
            );
            // What happens, happens after arming.
            let script = machine.script.take();
            match machine.arm(&request()) {
                Ok(_) => {
                    taken += 1;
                    *machine.script.borrow_mut() = script;
                    machine.run();
                    capture_kernel(&machine.fake.header.borrow()).unwrap();
                }
                Err(why) => {
                    refused += 1;
                    // The first memory entry cannot move; that shows when it has to.
                    let is_late = matches!(why.reason, Reason::Update);
                    assert!(is_late || why.reason == Reason::BadHeader, "{at:#x} = {value:#x}: {why:?}");
                    assert!(is_late || *machine.fake.header.borrow() == header, "{at:#x} = {value:#x}");
                    assert!(!machine.state.borrow().is_armed());
                }
            }
        }
    }
    println!("{refused} headers refused, {taken} followed");
    assert!(refused > 1500 && taken > 300);
}

/// Fields of the file header that a capture kernel insists on: the answer names the byte.
#[test]
fn the_answer_names_the_byte_that_is_wrong() {
    let third = slot_offset(2).unwrap();
    for (at, found) in [
        (ehdr::MAGIC, 0),
        (ehdr::CLASS, ehdr::CLASS),
        (ehdr::TYPE, ehdr::TYPE),
        (ehdr::MACHINE, ehdr::MACHINE),
        (ehdr::PHENTSIZE, ehdr::PHENTSIZE),
        (third + phdr::TYPE, third + phdr::TYPE),
        (slot_offset(40).unwrap() + 3, slot_offset(40).unwrap()),
    ] {
        let fake = image();
        fake.header.borrow_mut()[at] ^= 0x40;
        let header = fake.header.borrow().clone();
        let refused = Machine::new(Fake::of(header), &[], &[]).arm(&request()).unwrap_err();
        assert_eq!((refused.reason, refused.found), (Reason::BadHeader, found as u32), "byte {at:#x}");
    }
}

/// Its entries would be wrong by the rules of that machine, too: it is the machine that is told of.
#[test]
fn a_header_of_another_machine_is_told_by_its_machine() {
    let fake = image();
    let other = elfcorehdr::Machine::Ppc64.number().to_le_bytes();
    fake.header.borrow_mut()[ehdr::MACHINE..][..2].copy_from_slice(&other);
    let header = fake.header.borrow().clone();
    let refused = Machine::new(Fake::of(header), &[], &[]).arm(&request()).unwrap_err();
    assert_eq!((refused.reason, refused.found), (Reason::BadHeader, ehdr::MACHINE as u32));
}

fn happening() -> impl Strategy<Value = Happening> {
    // Block 2 came at boot; from 4 on they are hot-added.
    let number = prop_oneof![1 => 2..3u64, 9 => 4..20u64];
    prop_oneof![
        10 => (number.clone(), prop::bool::weighted(0.8)).prop_map(|(at, done)| Happening::Online(at, done)),
        10 => (number, prop::bool::weighted(0.8)).prop_map(|(at, done)| Happening::Offline(at, done)),
        3 => (0..2u32).prop_map(Happening::Cpu),
    ]
}

fn any_happening() -> impl Strategy<Value = Happening> {
    let word = (0..ROOM / 8).prop_map(|word| word * 8);
    // Mostly where something is.
    let word = prop_oneof![3 => (0..60usize).prop_map(|word| word * 8), 1 => word];
    prop_oneof![
        30 => happening(),
        1 => (word, any::<u64>()).prop_map(|(at, value)| Happening::Write(at, value)),
        1 => Just(Happening::Load),
        1 => Just(Happening::Unload),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Things happen at every point of an arming, and after: from when it says to follow, the header names all memory in
    /// use at every instant, and in the end just that.
    #[test]
    fn armed_in_the_middle_of_things(
        blocks in prop::collection::vec(any::<bool>(), 16),
        script in prop::collection::vec(happening(), 0..60),
        before in 0usize..20,
    ) {
        let machine = Machine::new(image(), &blocks, &script);
        for _ in 0..before {
            machine.step();
        }
        prop_assert_eq!(machine.arm(&request()), Ok(ALL));
        machine.must_name_all();
        machine.run();
        let text = range(0x100_0000, 0x120_0000);
        let mut wanted = machine.memory();
        wanted.add(text).unwrap();
        prop_assert_eq!(machine.saved(), wanted);
        prop_assert_eq!(machine.state.borrow().follows(), ALL);
    }

    /// Others load, unload and write at any point: no store but to an image that is loaded, ours and as last written
    /// (the fake image holds every store against that), and no panic.
    #[test]
    fn others_do_not_wait(
        blocks in prop::collection::vec(any::<bool>(), 16),
        script in prop::collection::vec(any_happening(), 0..60),
        before in 0usize..20,
        armings in 1usize..4,
    ) {
        let machine = Machine::new(image(), &blocks, &script);
        for _ in 0..before {
            machine.step();
        }
        for _ in 0..armings {
            if let Err(refused) = machine.arm(&request()) {
                prop_assert_ne!(refused.reason, Reason::None);
            }
            machine.step();
        }
        machine.run();
    }

    /// Requests of random numbers.
    #[test]
    fn any_request_is_answered(
        words in prop::collection::vec((0..size_of::<Arm>() / 4, prop_oneof![
            any::<u32>(), 0..20u32, Just(HEADER as u32), Just(0xc000_0000), Just(0xd000_0000)
        ]), 1..6),
    ) {
        let mut fields = encoded(&request());
        for (at, value) in words {
            fields[at] = value;
        }
        let arm = decoded(&fields);
        let machine = Machine::new(image(), &[true, false], &[]);
        let before = machine.fake.header.borrow().clone();
        match machine.arm(&arm) {
            Ok(_) => drop(capture_kernel(&machine.fake.header.borrow()).unwrap()),
            Err(refused) => {
                prop_assert_ne!(refused.reason, Reason::None);
                prop_assert_eq!(&*machine.fake.header.borrow(), &before);
            }
        }
    }
}

/// A request as words of 4 bytes.
fn encoded(arm: &Arm) -> Vec<u32> {
    let wide = |value: u64| [value as u32, (value >> 32) as u32];
    let mut words = vec![arm.version, arm.size];
    words.extend([arm.header.start, arm.header.end, arm.identity_at].into_iter().flat_map(wide));
    words.extend(arm.identity.as_chunks::<4>().0.iter().copied().map(u32::from_ne_bytes));
    words.extend([arm.follow, arm.excluded_count]);
    words.extend(arm.excluded.iter().flat_map(|range| [range.start, range.end]).flat_map(wide));
    words.extend(wide(arm.tree_pointer));
    words.extend(arm.trees.iter().flat_map(|range| [range.start, range.end]).flat_map(wide));
    words.extend([arm.reason, arm.found]);
    words
}

fn decoded(words: &[u32]) -> Arm {
    let wide = |at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
    let range = |at: usize| abi::Range { start: wide(at), end: wide(at + 2) };
    let mut identity = [0; 16];
    for (bytes, word) in identity.as_chunks_mut::<4>().0.iter_mut().zip(&words[8..12]) {
        *bytes = word.to_ne_bytes();
    }
    Arm {
        version: words[0],
        size: words[1],
        header: range(2),
        identity_at: wide(6),
        identity,
        follow: words[12],
        excluded_count: words[13],
        excluded: std::array::from_fn(|at| range(14 + 4 * at)),
        tree_pointer: wide(78),
        trees: [range(80), range(84)],
        reason: words[88],
        found: words[89],
    }
}
