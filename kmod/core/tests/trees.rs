//! Images with device trees: CPUs come, and a crash between any two steps finds a whole tree.

use std::cell::RefCell;

use abi::{Arm, FOLLOW_CPUS, FOLLOW_MEMORY, Reason};
use devtree::Writer;
use elfcorehdr::layout::phdr;
use elfcorehdr::{Contents, Load, Machine, Note, PhysAddr, PhysRange, build, size_for};
use fake::{BLOCK, Fake, ROOM, Trees, block, nodes, range};
use kmod_core::arch::{Arch, PPC64};
use kmod_core::arming::{self, Kernel, Refused, Request};
use kmod_core::{Comer, Cpu, Image, Memory, Nodes, Parts, State};
use proptest::prelude::*;

mod fake;

const ALL: u32 = FOLLOW_MEMORY | FOLLOW_CPUS;
const RESERVATION: (u64, u64) = (0x2000_0000, 0x4000_0000);
const HEADER: u64 = 0x3000_0000;
const BACKUP: u64 = 0x3100_0000;
const POINTER: u64 = 0x3200_0028;
const TREES: [u64; 2] = [0x3300_0000, 0x3400_0000];
/// Bytes for a tree.
const TREE_ROOM: usize = 0x4000;
/// Threads of a core.
const THREADS: u32 = 4;
/// Possible cores.
const CORES: u32 = 6;
const NOTES: u64 = 0x50_0000;

fn note(cpu: u32) -> u64 {
    NOTES + u64::from(cpu) * 0x400
}

/// A core as the kernel has it.
#[derive(Clone, Debug, PartialEq)]
struct Core {
    number: u32,
    cache: bool,
}

fn core(number: u32) -> Core {
    Core { number, cache: false }
}

/// A node: its name, whether it is a CPU, its properties.
type NodeParts = (String, bool, Vec<(&'static str, Vec<u8>)>);

impl Core {
    fn threads(&self) -> Vec<u32> {
        (0..THREADS).map(|thread| self.number * 8 + thread).collect()
    }

    fn nodes(&self) -> Vec<NodeParts> {
        let number = self.number * 8;
        let servers: Vec<u8> = self.threads().iter().flat_map(|thread| thread.to_be_bytes()).collect();
        let mut cpu = vec![
            ("device_type", b"cpu\0".to_vec()),
            ("reg", number.to_be_bytes().to_vec()),
            ("ibm,ppc-interrupt-server#s", servers),
            ("clock-frequency", vec![0x1e; 4]),
        ];
        let mut nodes = Vec::new();
        if self.cache {
            cpu.push(("l2-cache", vec![0, 0, 0x20, self.number as u8]));
            let cache =
                vec![("device_type", b"cache\0".to_vec()), ("phandle", vec![0, 0, 0x20, self.number as u8])];
            nodes.push((format!("l2-cache@{:x}", 0x2000 + self.number), false, cache));
        }
        nodes.push((format!("PowerPC,POWER9@{number:x}"), true, cpu));
        nodes
    }
}

/// As the shim writes them down.
fn records(cores: &[Core]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut record = |kind: u32, name: &[u8], value: &[u8]| {
        for number in [kind, name.len() as u32, value.len() as u32] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes.extend(name);
        bytes.extend(value);
    };
    for (name, is_cpu, properties) in cores.iter().flat_map(Core::nodes) {
        record(u32::from(!is_cpu), name.as_bytes(), &[]);
        properties.iter().for_each(|(name, value)| record(2, name.as_bytes(), value));
        record(3, &[], &[]);
    }
    bytes
}

/// A capture kernel's tree with these cores.
fn tree(cores: &[Core]) -> Vec<u8> {
    let mut bytes = vec![0; TREE_ROOM];
    let reserved = [devtree::Reserved { address: TREES[0], size: 0x10000 }];
    let mut writer = Writer::new(&mut bytes, 8, reserved).unwrap();
    writer.begin_node(b"").unwrap();
    writer.property(b"compatible", b"qemu,pseries\0").unwrap();
    writer.begin_node(b"chosen").unwrap();
    writer.property(b"bootargs", b"maxcpus=1\0").unwrap();
    writer.end_node().unwrap();
    writer.begin_node(b"cpus").unwrap();
    writer.property(b"#address-cells", &[0, 0, 0, 1]).unwrap();
    for (name, _, properties) in cores.iter().flat_map(Core::nodes) {
        writer.begin_node(name.as_bytes()).unwrap();
        properties.iter().for_each(|(name, value)| writer.property(name.as_bytes(), value).unwrap());
        writer.end_node().unwrap();
    }
    writer.end_node().unwrap();
    writer.begin_node(b"memory@0").unwrap();
    writer.property(b"linux,usable-memory", &[0; 16]).unwrap();
    writer.end_node().unwrap();
    writer.end_node().unwrap();
    writer.finish_with_room().unwrap();
    bytes
}

/// A machine with a device tree, and an image loaded on it when it had `planned`.
struct Machine64 {
    fake: Fake,
    state: RefCell<State<'static, Fake>>,
    cores: RefCell<Vec<Core>>,
}

fn header() -> Vec<u8> {
    let notes: Vec<Note> =
        (0..CORES * THREADS).map(|cpu| Note { paddr: PhysAddr(note(cpu)), size: 536 }).collect();
    let vmcoreinfo = Note { paddr: PhysAddr(0x60_0000), size: 1024 };
    let load = |start: u64, end: u64| Load {
        paddr: PhysAddr(start),
        vaddr: 0xc000_0000_0000_0000 + start,
        offset: PhysAddr(if start == 0 { BACKUP } else { start }),
        size: end - start,
    };
    let loads =
        [load(0, 0x1_0000), load(0x1_0000, RESERVATION.0), load(RESERVATION.1, 8 * BLOCK + RESERVATION.1)];
    let contents = Contents { machine: Machine::Ppc64, cpu_notes: &notes, vmcoreinfo, loads: &loads };
    let mut header = vec![0; ROOM];
    build(&contents, &mut header).unwrap();
    header
}

impl Machine64 {
    fn new(planned: &[Core], cores: &[Core]) -> Self {
        let fake = Fake::of(header());
        *fake.trees.borrow_mut() = Trees {
            pointer: TREES[0],
            starts: TREES,
            places: [tree(planned), vec![0; TREE_ROOM]],
            seen: Vec::new(),
        };
        Self { fake, state: RefCell::new(State::new()), cores: RefCell::new(cores.to_vec()) }
    }

    fn request() -> Arm {
        let place = |start| abi::Range { start, end: start + TREE_ROOM as u64 };
        let mut arm = Arm {
            version: abi::VERSION,
            size: size_of::<Arm>() as u32,
            header: abi::Range { start: HEADER, end: HEADER + ROOM as u64 },
            identity_at: 0x3200_0010,
            follow: ALL,
            excluded_count: 2,
            tree_pointer: POINTER,
            trees: TREES.map(place),
            ..Arm::default()
        };
        arm.excluded[0] = abi::Range { start: 0, end: 0x1_0000 };
        arm.excluded[1] = abi::Range { start: RESERVATION.0, end: RESERVATION.1 };
        arm
    }

    fn arm(&self) -> Result<u32, Refused> {
        arming::arm(self, &Self::request(), ALL, 0)
    }

    /// Plugs a core and brings its threads online, one after the other. Whether the image was let go.
    fn plug(&self, core: &Core, logical: u32) -> bool {
        self.cores.borrow_mut().push(core.clone());
        (0..).zip(core.threads()).any(|(thread, hardware)| self.online(logical + thread, hardware))
    }

    fn online(&self, cpu: u32, hardware: u32) -> bool {
        let records = records(&self.cores.borrow());
        let mut state = self.state.borrow_mut();
        let nodes = if state.needs_nodes(hardware) { Nodes::new(&records) } else { Nodes::default() };
        state.cpu(&Comer { cpu, hardware, nodes })
    }

    fn trees(&self) -> Trees {
        self.fake.trees.borrow().clone()
    }

    fn node(&self, path: &str) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let trees = self.trees();
        let tree = devtree::Tree::parse(&trees.places[trees.in_force()]).unwrap();
        let properties = tree.node(path)?.properties();
        Some(properties.map(|property| (property.name.to_vec(), property.value.to_vec())).collect())
    }
}

impl Kernel<'static> for Machine64 {
    type Live = Fake;
    type Ram = Vec<abi::Range>;

    fn arch(&self) -> &'static Arch {
        &PPC64
    }

    fn page_size(&self) -> u64 {
        0x1000
    }

    fn in_reservation(&self, range: PhysRange) -> bool {
        range.start().0 >= RESERVATION.0 && range.end().0 <= RESERVATION.1
    }

    fn is_loaded(&self) -> bool {
        true
    }

    fn open(&self, request: &Request) -> Result<Image<'static, Fake>, Refused> {
        let trees = request.trees.unwrap();
        assert_eq!(trees.pointer, range(POINTER, POINTER + 8));
        let copy = self.trees().places[0].clone().leak();
        let parts = Parts {
            shadow: self.fake.shadow(),
            nodes: nodes(),
            trees: Some(kmod_core::Trees::new(trees.places, [copy, vec![0; TREE_ROOM].leak()])),
            excluded: request.excluded,
            direct_map: 0xc000_0000_0000_0000,
            follow: request.follow,
        };
        let cpus = (0..CORES * THREADS).map(|cpu| Cpu { cpu, present: 1, note: note(cpu) });
        let cpus: Vec<Cpu> = cpus.collect();
        assert!(arming::may_follow_cpus(parts.shadow, &cpus, |range| self.in_reservation(range)));
        let mut image = Image::new(self.fake.clone(), parts, &PPC64, |range| self.in_reservation(range))?;
        image.follow_cpus(cpus.leak());
        Ok(image)
    }

    fn ram(&self) -> Result<Vec<abi::Range>, Refused> {
        Ok(vec![abi::Range { start: 0, end: 8 * BLOCK + RESERVATION.1 }])
    }

    fn nodes<R>(&self, work: impl FnOnce(Nodes<'_>) -> R) -> Result<R, Refused> {
        Ok(work(Nodes::new(&records(&self.cores.borrow()))))
    }

    fn locked<R>(&self, work: impl FnOnce(&mut State<'static, Fake>) -> R) -> R {
        work(&mut self.state.borrow_mut())
    }

    fn drop_dead(&self) {
        drop(self.state.borrow_mut().take_dead());
    }
}

#[test]
fn a_core_that_comes_is_in_the_tree_before_it_runs() {
    let at_boot = [core(0), core(1)];
    let machine = Machine64::new(&at_boot, &at_boot);
    assert_eq!(machine.arm(), Ok(ALL));
    let before = machine.trees();
    assert_eq!(before.seen.len(), 0, "nothing is new");
    assert_eq!(machine.state.borrow().status().tree, TREES[0]);

    let with_cache = Core { number: 3, cache: true };
    assert!(!machine.plug(&with_cache, 8));
    let trees = machine.trees();
    assert_eq!((trees.pointer, trees.in_force()), (TREES[1], 1));
    assert_eq!(trees.places[0], before.places[0], "the old tree stays as it was");
    let (old, new) = (before.cpus(), trees.cpus());
    assert_eq!(new, [0, 1, 2, 3, 8, 9, 10, 11, 24, 25, 26, 27]);
    // One tree for all threads of the core: three steps in which the old one is in force, and the switch.
    assert_eq!(trees.seen, [old.clone(), old.clone(), old, new]);
    let status = machine.state.borrow().status();
    assert_eq!((status.trees_built, status.cpu_events, status.stores), (1, 4, 4));
    assert_eq!(status.tree, TREES[1]);
    // Nothing else changed, and the cache that the CPU names is there.
    assert_eq!(machine.node("/chosen").unwrap(), [(b"bootargs".to_vec(), b"maxcpus=1\0".to_vec())]);
    assert_eq!(machine.node("/cpus/l2-cache@2003").unwrap().len(), 2);
    assert_eq!(machine.node("/cpus/PowerPC,POWER9@18").unwrap().len(), 5);
    let tree = devtree::Tree::parse(&trees.places[1]).unwrap();
    assert_eq!(tree.boot_cpu(), 8);
    assert_eq!(tree.reserved().count(), 1);

    // The next one goes to the first place again.
    assert!(!machine.plug(&core(5), 12));
    let trees = machine.trees();
    assert_eq!(
        (trees.in_force(), trees.cpus().len(), machine.state.borrow().status().trees_built),
        (0, 16, 2)
    );
    assert_eq!(machine.node("/cpus/l2-cache@2003").unwrap().len(), 2);
}

#[test]
fn a_cpu_that_goes_changes_nothing_and_one_that_is_known_needs_no_tree() {
    let at_boot = [core(0), core(1)];
    let machine = Machine64::new(&at_boot, &at_boot);
    assert_eq!(machine.arm(), Ok(ALL));
    // Its node is gone, and comes back.
    machine.cores.borrow_mut().pop();
    assert!(!machine.plug(&core(1), 4));
    assert_eq!(machine.trees().seen.len(), 0);
    // A later tree has only what is there.
    machine.cores.borrow_mut().pop();
    assert!(!machine.plug(&core(2), 4));
    assert_eq!(machine.trees().cpus(), [0, 1, 2, 3, 16, 17, 18, 19]);
}

#[test]
fn cores_that_came_since_the_plan_are_in_the_tree_when_it_is_armed() {
    let machine = Machine64::new(&[core(0)], &[core(0), core(2)]);
    assert_eq!(machine.arm(), Ok(ALL));
    assert_eq!(machine.trees().cpus(), [0, 1, 2, 3, 16, 17, 18, 19]);
    let status = machine.state.borrow().status();
    assert_eq!((status.trees_built, status.tree), (1, TREES[1]));
    assert!(!machine.plug(&core(3), 8));
    assert_eq!(machine.trees().cpus().len(), 12);
}

#[test]
fn memory_comes_beside_memory_that_is_copied_aside() {
    let machine = Machine64::new(&[core(0)], &[core(0)]);
    assert_eq!(machine.arm(), Ok(ALL));
    assert!(!machine.state.borrow_mut().memory(Memory::Comes, block(32)));
    assert!(!machine.state.borrow_mut().memory(Memory::Came, range(0, BLOCK)));
    let header = machine.fake.header.borrow();
    let header = elfcorehdr::Header::parse(&header).unwrap();
    let loads: Vec<_> = header.loads().map(|load| (load.paddr.0, load.offset.0, load.size)).collect();
    assert_eq!(loads[0], (0, BACKUP, 0x1_0000));
    assert!(loads.contains(&(32 * BLOCK, 32 * BLOCK, BLOCK)));
    assert_eq!(loads.iter().filter(|(paddr, offset, _)| paddr != offset).count(), 1);
}

/// Only the first 64 KiB may be read from elsewhere, from inside the reservation, and once.
#[test]
fn other_memory_that_is_copied_aside_is_refused() {
    let slot = |index: u32| size_for((CORES * THREADS + 1 + index) as usize);
    type Wrong = (u32, usize, u64);
    let wrong: [Wrong; 4] = [
        (0, phdr::OFFSET, 0x100_0000),
        (0, phdr::OFFSET, RESERVATION.1 - 0x1000),
        (0, phdr::PADDR, 0x1000),
        (1, phdr::OFFSET, BACKUP + 0x1_0000),
    ];
    for (index, field, value) in wrong {
        let machine = Machine64::new(&[core(0)], &[core(0)]);
        machine.fake.header.borrow_mut()[slot(index) + field..][..8].copy_from_slice(&value.to_le_bytes());
        let refused = machine.arm().unwrap_err();
        let at = slot(index) + phdr::PADDR;
        assert_eq!(
            (refused.reason, refused.found),
            (Reason::BadHeader, at as u32),
            "{index} {field} {value:#x}"
        );
    }
    let machine = Machine64::new(&[core(0)], &[core(0)]);
    let mut header = machine.fake.header.borrow().clone();
    let first = header[slot(0)..slot(1)].to_vec();
    header[slot(1)..slot(2)].copy_from_slice(&first);
    *machine.fake.header.borrow_mut() = header;
    assert_eq!(machine.arm().unwrap_err().reason, Reason::BadHeader, "twice");
    // A header of another machine.
    let machine = Machine64::new(&[core(0)], &[core(0)]);
    machine.fake.header.borrow_mut()[18] = 62;
    assert_eq!(machine.arm().unwrap_err(), Refused { errno: 22, reason: Reason::BadHeader, found: 18 });
}

#[test]
fn trees_that_lie_are_refused() {
    type Lie = (&'static str, fn(&mut Trees), u32);
    let lies: [Lie; 5] = [
        ("the word names no place", |trees| trees.pointer = 0, 0),
        ("the word names the spare place", |trees| trees.pointer = TREES[1], 0),
        ("no tree", |trees| trees.places[0][0] = 0, 0),
        ("a size past the place", |trees| trees.places[0][4..8].fill(0x7f), TREE_ROOM as u32),
        (
            "no /cpus",
            |trees| {
                let at = trees.places[0].windows(5).position(|name| name == b"cpus\0").unwrap();
                trees.places[0][at] = b'x';
            },
            0,
        ),
    ];
    for (what, lie, found) in lies {
        let machine = Machine64::new(&[core(0)], &[core(0), core(1)]);
        lie(&mut machine.fake.trees.borrow_mut());
        let before = machine.trees();
        let refused = machine.arm().unwrap_err();
        assert_eq!((refused.errno, refused.reason, refused.found), (22, Reason::BadTree, found), "{what}");
        assert_eq!(machine.trees().places, before.places, "{what}");
    }
}

#[test]
fn trees_that_others_changed_are_let_go_and_not_written() {
    type Spoil = (&'static str, fn(&mut Trees));
    let spoil: [Spoil; 3] = [
        ("the word", |trees| trees.pointer = TREES[1]),
        ("the boot CPU", |trees| trees.places[0][31] ^= 1),
        ("a property", |trees| trees.places[0][0x200] ^= 1),
    ];
    for (what, spoil) in spoil {
        let machine = Machine64::new(&[core(0)], &[core(0)]);
        assert_eq!(machine.arm(), Ok(ALL));
        spoil(&mut machine.fake.trees.borrow_mut());
        let before = machine.trees();
        assert!(machine.plug(&core(1), 4), "{what}");
        assert_eq!(machine.state.borrow().reason(), Reason::Changed, "{what}");
        let after = machine.trees();
        assert_eq!((after.places, after.pointer), (before.places, before.pointer), "{what}");
        assert!(!machine.state.borrow().is_armed());
    }
    // Memory events look at the word, too.
    let machine = Machine64::new(&[core(0)], &[core(0)]);
    assert_eq!(machine.arm(), Ok(ALL));
    machine.fake.trees.borrow_mut().pointer = 0;
    assert!(machine.state.borrow_mut().memory(Memory::Comes, block(32)));
    // What lies in the spare place does not matter.
    let machine = Machine64::new(&[core(0)], &[core(0)]);
    assert_eq!(machine.arm(), Ok(ALL));
    machine.fake.trees.borrow_mut().places[1].fill(0xff);
    assert!(!machine.plug(&core(1), 4));
    assert_eq!(machine.trees().cpus().len(), 8);
}

#[test]
fn a_tree_that_does_not_fit_is_let_go() {
    let machine = Machine64::new(&[core(0)], &[core(0)]);
    assert_eq!(machine.arm(), Ok(ALL));
    machine.cores.borrow_mut().extend((100..400).map(core));
    let before = machine.trees();
    assert!(machine.plug(&core(1), 4));
    assert_eq!(machine.state.borrow().reason(), Reason::TreeFull);
    assert!(machine.state.borrow().reason().is_stale());
    assert_eq!(machine.trees().places, before.places);
}

#[test]
fn a_cpu_without_a_node_is_let_go() {
    for cut in [0, 7, 60, 150] {
        let machine = Machine64::new(&[core(0)], &[core(0)]);
        assert_eq!(machine.arm(), Ok(ALL));
        let records = records(&[core(0)]);
        let nodes = Nodes::new(&records[..cut]);
        assert!(machine.state.borrow_mut().cpu(&Comer { cpu: 4, hardware: 8, nodes }), "{cut}");
        assert_eq!(machine.state.borrow().reason(), Reason::Update, "{cut}");
        assert_ne!(machine.trees().cpus(), [] as [u32; 0], "{cut}: no tree without CPUs was put in force");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Cores and memory come and go in any order: every core that is there can be booted on, from before its first thread runs.
    #[test]
    fn the_tree_follows(events in prop::collection::vec((0..CORES, any::<bool>(), any::<bool>()), 1..40)) {
        let machine = Machine64::new(&[core(0)], &[core(0)]);
        prop_assert_eq!(machine.arm(), Ok(ALL));
        for (number, is_memory, cache) in events {
            if is_memory {
                prop_assert!(!machine.state.borrow_mut().memory(Memory::Comes, block(32 + u64::from(number))));
                continue;
            }
            let there = machine.cores.borrow().iter().position(|core| core.number == number);
            match there {
                Some(_) if number == 0 => {}
                Some(at) => drop(machine.cores.borrow_mut().remove(at)),
                None => {
                    let let_go = machine.plug(&Core { number, cache }, number * THREADS);
                    prop_assert!(!let_go);
                }
            }
            let trees = machine.trees();
            for core in machine.cores.borrow().iter() {
                prop_assert!(core.threads().iter().all(|thread| trees.cpus().contains(thread)), "{:?}", core);
            }
        }
    }

    /// Bytes of a tree that lie lead to no panic and no tree that is not whole.
    #[test]
    fn any_tree_is_answered(bytes in prop::collection::vec((0..0x400usize, any::<u8>()), 1..6)) {
        let machine = Machine64::new(&[core(0), core(1)], &[core(0), core(1)]);
        for (at, value) in bytes {
            machine.fake.trees.borrow_mut().places[0][at] = value;
        }
        if machine.arm().is_ok() {
            let let_go = machine.plug(&core(2), 8);
            prop_assert!(let_go || devtree::Tree::parse(&machine.trees().places[machine.trees().in_force()]).is_ok());
        }
    }
}
