//! Trees of real machines, damaged trees, and trees of our own, which another reader (crate `fdt`) has to read as we
//! do.

use devtree::{
    BOOT_CPU_OFFSET, Fault, MAGIC, MAX_DEPTH, Node, Outline, Reserved, Tree, TreeError, WriteError, Writer,
    is_cpu, put_cpu_first, replace_cpus,
};
use fdt::Fdt;
use fdt::node::FdtNode;
use proptest::prelude::*;

const PSERIES: &[u8] = include_bytes!("fixtures/pseries.dtb");
const POWERNV: &[u8] = include_bytes!("fixtures/powernv.dtb");

/// A node and all that is in it, one line for each node's name, property and end.
fn listing(node: Node<'_>, lines: &mut Vec<(Vec<u8>, Option<Vec<u8>>)>) {
    lines.push((node.name().to_vec(), None));
    lines.extend(node.properties().map(|found| (found.name.to_vec(), Some(found.value.to_vec()))));
    node.children().for_each(|child| listing(child, lines));
    lines.push((Vec::new(), None));
}

/// What is in the first levels of a tree that was not found whole, and may be deep.
fn shallow(node: Node<'_>, names: &mut Vec<Vec<u8>>) {
    names.extend(node.properties().map(|found| found.name.to_vec()));
    for child in node.children() {
        names.push(child.name().to_vec());
        names.extend(child.properties().map(|found| found.value.to_vec()));
    }
}

fn ours(bytes: &[u8]) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let mut lines = Vec::new();
    listing(Tree::parse(bytes).unwrap().root(), &mut lines);
    lines
}

/// The same by the other reader.
fn theirs(bytes: &[u8]) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    fn listing(node: FdtNode<'_, '_>, name: &str, lines: &mut Lines) {
        lines.push((name.into(), None));
        lines.extend(node.properties().map(|found| (found.name.into(), Some(found.value.into()))));
        node.children().for_each(|child| listing(child, child.name, lines));
        lines.push((Vec::new(), None));
    }
    let mut lines = Vec::new();
    // It gives the root's name as "/".
    listing(Fdt::new(bytes).unwrap().find_node("/").unwrap(), "", &mut lines);
    lines
}

fn write(node: Node<'_>, writer: &mut Writer<'_, '_>) -> Result<(), WriteError> {
    writer.begin_node(node.name())?;
    node.properties().try_for_each(|found| writer.property(found.name, found.value))?;
    node.children().try_for_each(|child| write(child, writer))?;
    writer.end_node()
}

fn rewritten(bytes: &[u8], room: usize) -> Result<Vec<u8>, WriteError> {
    let tree = Tree::parse(bytes).unwrap();
    let mut out = vec![0xee; room];
    let mut writer = Writer::new(&mut out, tree.boot_cpu(), tree.reserved())?;
    write(tree.root(), &mut writer)?;
    let size = writer.finish()?;
    out.truncate(size);
    Ok(out)
}

fn set(bytes: &mut [u8], at: usize, number: u32) {
    bytes[at..at + 4].copy_from_slice(&number.to_be_bytes());
}

fn get(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// A small tree: `/` with a property and the nodes `a` and `b`.
fn small() -> Vec<u8> {
    let mut out = [0; 512];
    let mut writer = Writer::new(&mut out, 7, [Reserved { address: 0x1000, size: 0x2000 }]).unwrap();
    writer.begin_node(b"").unwrap();
    writer.property(b"p", b"value").unwrap();
    writer.begin_node(b"a").unwrap();
    writer.property(b"q", b"").unwrap();
    writer.end_node().unwrap();
    writer.begin_node(b"b").unwrap();
    writer.property(b"p", b"").unwrap();
    writer.end_node().unwrap();
    writer.end_node().unwrap();
    let size = writer.finish().unwrap();
    out[..size].to_vec()
}

#[test]
fn an_outline_makes_the_tree_again() {
    for bytes in [PSERIES.to_vec(), POWERNV.to_vec(), small()] {
        let outline = Outline::parse(&bytes).unwrap();
        let mut lines = Vec::new();
        listing(outline.tree(&bytes).root(), &mut lines);
        assert_eq!(lines, theirs(&bytes));
        assert_eq!(
            outline.tree(&bytes).reserved().collect::<Vec<_>>(),
            Tree::parse(&bytes).unwrap().reserved().collect::<Vec<_>>()
        );
        assert!(outline.tree(&bytes[..bytes.len() / 2]).node("/cpus").is_none());
    }
}

#[test]
fn real_trees_are_read_as_another_reader_does() {
    for bytes in [PSERIES, POWERNV, &small()] {
        assert_eq!(ours(bytes), theirs(bytes));
        let (tree, judge) = (Tree::parse(bytes).unwrap(), Fdt::new(bytes).unwrap());
        assert_eq!(tree.total_size(), bytes.len());
        let reserved: Vec<_> =
            judge.memory_reservations().map(|entry| (entry.address() as u64, entry.size() as u64)).collect();
        assert_eq!(tree.reserved().map(|entry| (entry.address, entry.size)).collect::<Vec<_>>(), reserved);
    }
}

#[test]
fn nodes_are_found_by_path() {
    let tree = Tree::parse(PSERIES).unwrap();
    let cpu = tree.node("/cpus/PowerPC,POWER9@2").unwrap();
    assert!(is_cpu(&cpu));
    assert_eq!(cpu.property(b"reg"), Some(&[0, 0, 0, 2][..]));
    assert_eq!(cpu.property(b"no such"), None);
    assert_eq!(tree.node("/").unwrap().name(), b"");
    assert!(tree.node("/cpus/PowerPC,POWER9").is_none(), "unit addresses are part of names");
    assert!(!is_cpu(&tree.node("/memory@0").unwrap()));
    assert_eq!(tree.node("/cpus").unwrap().children().filter(is_cpu).count(), 3);
}

#[test]
fn rewritten_trees_say_the_same() {
    for bytes in [PSERIES, POWERNV] {
        let copy = rewritten(bytes, 2 * bytes.len()).unwrap();
        assert_eq!(theirs(&copy), theirs(bytes));
        assert_eq!(rewritten(&copy, copy.len()).unwrap(), copy, "it fits into exactly its size");
        assert_eq!(rewritten(&copy, copy.len() - 1), Err(WriteError::Full));
    }
}

#[test]
fn every_room_is_enough_or_said_to_be_full() {
    let size = rewritten(POWERNV, 2 * POWERNV.len()).unwrap().len();
    for room in (0..size).step_by(61).chain(size - 100..size) {
        assert_eq!(rewritten(POWERNV, room), Err(WriteError::Full), "{room}");
    }
}

#[test]
fn free_space_is_zeroed_and_counted() {
    let mut out = [0xee; 300];
    let mut writer = Writer::new(&mut out, 0, []).unwrap();
    writer.begin_node(b"").unwrap();
    writer.property(b"name", b"x").unwrap();
    writer.end_node().unwrap();
    let used = writer.finish_with_room().unwrap();
    assert_eq!(Tree::parse(&out).unwrap().total_size(), 300);
    assert_eq!(ours(&out), theirs(&out));
    assert!(out[used..].iter().all(|&byte| byte == 0));
    assert_eq!(get(&out, 12) + get(&out, 32), used, "free space is behind the strings");
}

/// Blocks in the order that libfdt asks for before it changes a tree, as the kernel's own handler does.
fn check_order(bytes: &[u8]) {
    let (structure, strings, reserve_map) = (get(bytes, 8), get(bytes, 12), get(bytes, 16));
    assert_eq!((reserve_map, reserve_map % 8, structure % 4), (40, 0, 0));
    assert!(structure >= reserve_map + 16 && structure + get(bytes, 36) <= strings);
    assert!(strings + get(bytes, 32) <= get(bytes, 4));
}

fn with_cpus(bytes: &[u8], numbers: &[u32], to: &mut [u8]) -> Result<usize, WriteError> {
    let tree = Tree::parse(bytes).unwrap();
    let sample = tree.node("/cpus").unwrap().children().find(is_cpu).unwrap();
    replace_cpus(&tree, to, |writer| {
        for number in numbers {
            writer.begin_node(format!("PowerPC,POWER9@{number:x}").as_bytes())?;
            for found in sample.properties() {
                let value = number.to_be_bytes();
                let is_number = [b"reg".as_slice(), b"ibm,ppc-interrupt-server#s"].contains(&found.name);
                writer.property(found.name, if is_number { &value } else { found.value })?;
            }
            writer.property(b"new", b"name")?;
            writer.end_node()?;
        }
        Ok(())
    })
}

#[test]
fn cpus_are_replaced_and_nothing_else() {
    for bytes in [PSERIES, POWERNV] {
        for numbers in [&[][..], &[5], &[1, 2, 3, 4, 5, 6, 7, 8]] {
            let mut out = vec![0xee; 65536];
            let size = with_cpus(bytes, numbers, &mut out).unwrap();
            let copy = &out[..size];
            check_order(copy);
            assert_eq!(ours(copy), theirs(copy));
            let (before, after) = (Tree::parse(bytes).unwrap(), Tree::parse(copy).unwrap());
            assert_eq!(after.total_size(), size);
            assert_eq!(before.boot_cpu(), after.boot_cpu());
            assert!(before.reserved().eq(after.reserved()));
            let cpus: Vec<_> = after.node("/cpus").unwrap().children().filter(is_cpu).collect();
            let found: Vec<_> = cpus.iter().map(|cpu| cpu.property(b"reg").unwrap().to_vec()).collect();
            assert_eq!(found, numbers.iter().map(|number| number.to_be_bytes().to_vec()).collect::<Vec<_>>());
            assert!(cpus.iter().all(|cpu| cpu.property(b"new") == Some(b"name")));
            let rest = |tree: Tree<'_>| {
                let mut lines = Vec::new();
                let (root, cpus) = (tree.root(), tree.node("/cpus").unwrap());
                root.children()
                    .filter(|node| node.name() != b"cpus")
                    .for_each(|node| listing(node, &mut lines));
                cpus.children().filter(|node| !is_cpu(node)).for_each(|node| listing(node, &mut lines));
                lines
                    .extend(cpus.properties().map(|found| (found.name.to_vec(), Some(found.value.to_vec()))));
                lines
            };
            assert_eq!(rest(before), rest(after));
            let mut exact = vec![0; size];
            assert_eq!(with_cpus(bytes, numbers, &mut exact), Ok(size));
            assert_eq!(exact, copy);
            for room in [0, 40, size / 2, size - 1] {
                assert_eq!(with_cpus(bytes, numbers, &mut vec![0; room]), Err(WriteError::Full));
            }
        }
    }
}

#[test]
fn a_cpu_is_put_first_and_nothing_else_changes() {
    let mut tree = vec![0; 40_000];
    let size = with_cpus(PSERIES, &[0, 1, 2, 3], &mut tree).unwrap();
    tree.truncate(size);
    let numbers = |tree: &[u8]| -> Vec<u8> {
        let tree = Tree::parse(tree).unwrap();
        let cpus = tree.node("/cpus").unwrap().children().filter(is_cpu);
        cpus.map(|cpu| cpu.property(b"reg").unwrap()[3]).collect()
    };
    let sorted = |tree: &[u8]| {
        let mut lines = ours(tree);
        lines.sort();
        lines
    };
    let before = tree.clone();
    for (wanted, order) in [(0, [0, 1, 2, 3]), (2, [2, 0, 1, 3]), (3, [3, 2, 0, 1]), (0, [0, 3, 2, 1])] {
        assert_eq!(put_cpu_first(&mut tree, wanted), Ok(true));
        assert_eq!(numbers(&tree), order);
        assert_eq!(sorted(&tree), sorted(&before));
    }
    let unchanged = tree.clone();
    assert_eq!(put_cpu_first(&mut tree, 9), Ok(false));
    tree[0] = 0;
    assert!(put_cpu_first(&mut tree, 1).is_err());
    assert_eq!(tree[1..], unchanged[1..]);
}

#[test]
fn cpus_come_back_where_all_were_gone() {
    let (mut none, mut back) = (vec![0; 65536], vec![0; 65536]);
    let size = with_cpus(PSERIES, &[], &mut none).unwrap();
    let tree = Tree::parse(&none[..size]).unwrap();
    assert_eq!(tree.node("/cpus").unwrap().children().filter(is_cpu).count(), 0);
    let old = Tree::parse(PSERIES).unwrap().node("/cpus").unwrap();
    let fill = |writer: &mut Writer<'_, '_>| old.children().try_for_each(|cpu| write(cpu, writer));
    let size = replace_cpus(&tree, &mut back, fill).unwrap();
    let mut sorted = (theirs(&back[..size]), theirs(PSERIES));
    sorted.0.sort();
    sorted.1.sort();
    assert_eq!(sorted.0, sorted.1);
}

#[test]
fn names_of_the_old_cpus_cost_no_room() {
    let strings = |bytes: &[u8]| get(bytes, 32);
    let mut out = vec![0; 65536];
    let tree = Tree::parse(PSERIES).unwrap();
    let old = tree.node("/cpus").unwrap();
    let fill = |writer: &mut Writer<'_, '_>| old.children().try_for_each(|cpu| write(cpu, writer));
    let size = replace_cpus::<WriteError>(&tree, &mut out, fill).unwrap();
    assert_eq!(strings(&out), strings(PSERIES));
    let size_with_new = with_cpus(PSERIES, &[0, 1, 2], &mut out).unwrap();
    assert_eq!(strings(&out), strings(PSERIES) + b"new\0".len(), "once, for all three");
    assert_eq!(size_with_new, size + 4 + 3 * (12 + 4));
}

#[test]
fn what_fill_may_not_do_is_refused() {
    type Fill = fn(&mut Writer<'_, '_>) -> Result<(), WriteError>;
    let cases: [(&str, Fill); 4] = [
        ("a property of /cpus", |writer| writer.property(b"p", b"")),
        ("ends /cpus", |writer| writer.end_node()),
        ("leaves a node open", |writer| writer.begin_node(b"cpu")),
        ("ends /cpus after a CPU", |writer| {
            writer.begin_node(b"cpu")?;
            writer.end_node()?;
            writer.end_node()
        }),
    ];
    let tree = Tree::parse(PSERIES).unwrap();
    for (name, fill) in cases {
        assert_eq!(replace_cpus(&tree, &mut [0; 65536], fill), Err(WriteError::Place), "{name}");
    }
    let other = small();
    let tree = Tree::parse(&other).unwrap();
    assert_eq!(replace_cpus(&tree, &mut [0; 512], |_| Ok(())), Err(WriteError::NoCpus));
}

#[test]
fn what_cannot_be_in_a_tree_is_not_written() {
    type Steps = fn(&mut Writer<'_, '_>) -> Result<(), WriteError>;
    let cases: [(Steps, WriteError); 9] = [
        (|w| w.property(b"p", b""), WriteError::Place),
        (|w| w.end_node(), WriteError::Place),
        (|w| w.begin_node(b"root"), WriteError::Name),
        (|w| w.begin_node(b"").and_then(|()| w.begin_node(b"")), WriteError::Name),
        (|w| w.begin_node(b"").and_then(|()| w.begin_node(b"a\0b")), WriteError::Name),
        (|w| w.begin_node(b"").and_then(|()| w.property(b"", b"")), WriteError::Name),
        (|w| w.begin_node(b"").and_then(|()| w.property(b"a\0b", b"")), WriteError::Name),
        (
            |w| {
                w.begin_node(b"")?;
                w.end_node()?;
                w.begin_node(b"")
            },
            WriteError::Place,
        ),
        (
            |w| {
                w.begin_node(b"")?;
                w.begin_node(b"a")?;
                w.end_node()?;
                w.property(b"late", b"")
            },
            WriteError::Place,
        ),
    ];
    for (index, (steps, expected)) in cases.into_iter().enumerate() {
        let mut out = [0; 512];
        let mut writer = Writer::new(&mut out, 0, []).unwrap();
        assert_eq!(steps(&mut writer), Err(expected), "case {index}");
    }
    let mut out = [0; 4096];
    assert_eq!(Writer::new(&mut out, 0, []).unwrap().finish(), Err(WriteError::Place));
    let mut writer = Writer::new(&mut out, 0, []).unwrap();
    writer.begin_node(b"").unwrap();
    assert_eq!(writer.finish(), Err(WriteError::Place));
    let nothing = Reserved { address: 0, size: 0 };
    assert_eq!(Writer::new(&mut out, 0, [nothing]).err(), Some(WriteError::Reserved));
    let mut writer = Writer::new(&mut out, 0, []).unwrap();
    writer.begin_node(b"").unwrap();
    (1..MAX_DEPTH).for_each(|_| writer.begin_node(b"n").unwrap());
    assert_eq!(writer.begin_node(b"n"), Err(WriteError::TooDeep));
    (0..MAX_DEPTH).for_each(|_| writer.end_node().unwrap());
    let size = writer.finish().unwrap();
    assert_eq!(ours(&out[..size]), theirs(&out[..size]));
}

/// The structure block of [`small`] begins at 72: root at 72, property at 80, node `a` at 100, its property at 108,
/// its end at 120, node `b` at 124, its property at 132, its end at 144, the root's at 148, the block's at 152;
/// strings `p`, `q` at 156.
#[test]
fn damage_is_named() {
    type Damage = fn(&mut Vec<u8>);
    let cases: [(Damage, usize, Fault); 30] = [
        (|b| b.truncate(3), 3, Fault::Short),
        (|b| b.truncate(30), 30, Fault::Short),
        (|b| b.truncate(159), 159, Fault::Short),
        (|b| b[0] = 0, 0, Fault::Magic(0x000d_feed)),
        (|b| set(b, 20, 16), 20, Fault::Version(16, 16)),
        (|b| set(b, 24, 18), 20, Fault::Version(17, 18)),
        (|b| set(b, 4, 161), 160, Fault::Short),
        (|b| set(b, 8, 164), 8, Fault::Outside(164)),
        (|b| set(b, 8, 36), 8, Fault::Outside(36)),
        (|b| set(b, 8, 73), 8, Fault::Unaligned(73)),
        (|b| set(b, 12, 161), 12, Fault::Outside(161)),
        (|b| set(b, 12, 8), 12, Fault::Outside(8)),
        (|b| set(b, 16, 168), 16, Fault::Outside(168)),
        (|b| set(b, 16, 44), 16, Fault::Unaligned(44)),
        (|b| set(b, 32, 5), 32, Fault::Outside(5)),
        (|b| set(b, 36, u32::MAX), 36, Fault::Outside(u32::MAX)),
        (|b| b[40..].chunks_exact_mut(16).for_each(|entry| entry[15] = 1), 40, Fault::ReserveMap),
        (|b| set(b, 72, 5), 72, Fault::Token(5)),
        (|b| set(b, 36, 80), 152, Fault::Cut),
        (|b| set(b, 84, 1000), 80, Fault::Cut),
        (|b| set(b, 36, 54), 124, Fault::Cut),
        (|b| set(b, 36, 57), 124, Fault::NodeName),
        (|b| set(b, 112, 4), 152, Fault::NotEnded),
        (|b| set(b, 116, 4), 108, Fault::PropertyName(4)),
        (|b| [124, 128].iter().for_each(|&at| set(b, at, 4)), 132, Fault::PropertyPlace),
        (|b| set(b, 120, 9), 120, Fault::NotEnded),
        (|b| [(124, 2), (128, 1)].iter().for_each(|&(at, token)| set(b, at, token)), 128, Fault::SecondRoot),
        (|b| [124, 128].iter().for_each(|&at| set(b, at, 2)), 128, Fault::NotBegun),
        (|b| (72..152).step_by(4).for_each(|at| set(b, at, 4)), 152, Fault::NotEnded),
        (
            |b| {
                let deep = [[0, 0, 0, 1], [0; 4]].concat().repeat(MAX_DEPTH + 1);
                b.splice(72..156, deep.iter().copied());
                let (length, structure) = (b.len() as u32, deep.len() as u32);
                for (at, number) in [(4, length), (12, length - 4), (36, structure)] {
                    set(b, at, number);
                }
            },
            72 + 8 * MAX_DEPTH,
            Fault::TooDeep,
        ),
    ];
    let good = small();
    assert_eq!(good.len(), 160);
    for (index, (damage, offset, fault)) in cases.into_iter().enumerate() {
        let mut bytes = good.clone();
        damage(&mut bytes);
        assert_eq!(Tree::parse(&bytes).map(drop), Err(TreeError { offset, fault }), "case {index}");
    }
}

proptest! {
    #[test]
    fn damaged_trees_are_read_or_refused(
        is_powernv in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0u8..4, any::<u8>()), 1..8),
        room in 0usize..40_000,
    ) {
        let mut bytes = if is_powernv { POWERNV } else { PSERIES }.to_vec();
        for (place, kind, value) in changes {
            let at = place.index(bytes.len());
            match kind {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                // The header, and tokens, are where most depends on a byte.
                2 => bytes[at % 40] = value,
                _ => bytes[at.saturating_sub(4) / 4 * 4 + 3] = value % 10,
            }
        }
        check_any(&bytes, room);
    }

    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..400), room in 0usize..800) {
        if bytes.len() >= 64 {
            let length = bytes.len() as u32;
            for (at, number) in [(0, MAGIC), (4, length), (8, 56), (12, 56), (16, 40), (20, 17), (24, 16), (32, 8), (36, length - 56)] {
                set(&mut bytes, at, number);
            }
            bytes[40..56].fill(0);
            // Mostly tokens.
            for at in (56..bytes.len() - 4).step_by(4) {
                let number = u32::from(bytes[at] % 16);
                set(&mut bytes, at, number);
            }
        }
        check_any(&bytes, room);
    }

    #[test]
    fn any_tree_is_read_as_it_was_written(
        steps in prop::collection::vec((0u8..4, "[a-z]{1,6}", prop::collection::vec(any::<u8>(), 0..20)), 0..60),
        reserved in prop::collection::vec((any::<u64>(), 1u64..), 0..4),
        boot_cpu in any::<u32>(),
        room in 0usize..3000,
    ) {
        let mut out = vec![0xee; room];
        let entries = reserved.iter().map(|&(address, size)| Reserved { address, size });
        let written = write_steps(&mut out, boot_cpu, entries, &steps);
        let Ok((size, lines)) = written else { return Ok(()) };
        let bytes = &out[..size];
        check_order(bytes);
        prop_assert_eq!(&ours(bytes), &lines);
        prop_assert_eq!(&theirs(bytes), &lines);
        let tree = Tree::parse(bytes).unwrap();
        prop_assert_eq!(tree.boot_cpu(), boot_cpu);
        prop_assert_eq!(get(bytes, BOOT_CPU_OFFSET), boot_cpu as usize);
        prop_assert_eq!(tree.reserved().map(|entry| (entry.address, entry.size)).collect::<Vec<_>>(), reserved);
        let mut names: Vec<&[u8]> = bytes[get(bytes, 12)..].split(|&byte| byte == 0).collect();
        names.sort();
        prop_assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "each name is there once");
    }
}

type Lines = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// Begins and ends nodes and adds properties, as far as a tree has them in that order; and what it then holds.
fn write_steps(
    out: &mut [u8],
    boot_cpu: u32,
    reserved: impl Iterator<Item = Reserved>,
    steps: &[(u8, String, Vec<u8>)],
) -> Result<(usize, Lines), WriteError> {
    let mut writer = Writer::new(out, boot_cpu, reserved)?;
    let mut lines = vec![(Vec::new(), None)];
    let (mut depth, mut takes_properties) = (1, true);
    writer.begin_node(b"")?;
    for (kind, name, value) in steps {
        match kind {
            0 => {
                writer.begin_node(name.as_bytes())?;
                lines.push((name.clone().into(), None));
                (depth, takes_properties) = (depth + 1, true);
            }
            1 if depth > 1 => {
                writer.end_node()?;
                lines.push((Vec::new(), None));
                (depth, takes_properties) = (depth - 1, false);
            }
            2 | 3 if takes_properties => {
                writer.property(name.as_bytes(), value)?;
                lines.push((name.clone().into(), Some(value.clone())));
            }
            _ => {}
        }
    }
    for _ in 0..depth {
        writer.end_node()?;
        lines.push((Vec::new(), None));
    }
    Ok((writer.finish()?, lines))
}

/// Reads, copies and edits what may be a tree.
fn check_any(bytes: &[u8], room: usize) {
    // With the outline of other bytes: of no sense, and no more.
    for other in [PSERIES, POWERNV] {
        let tree = Outline::parse(other).unwrap().tree(bytes);
        let (mut lines, mut to) = (Vec::new(), vec![0; room]);
        shallow(tree.root(), &mut lines);
        let _ = replace_cpus(&tree, &mut to, |_| Ok::<(), WriteError>(()));
    }
    let Ok(tree) = Tree::parse(bytes) else { return };
    assert!(tree.total_size() <= bytes.len());
    let mut lines = Vec::new();
    listing(tree.root(), &mut lines);
    let mut out = vec![0; room];
    let fill = |writer: &mut Writer<'_, '_>| {
        writer.begin_node(b"cpu")?;
        writer.property(b"device_type", b"cpu\0")?;
        writer.end_node()
    };
    match replace_cpus(&tree, &mut out, fill) {
        Ok(size) => {
            let copy = Tree::parse(&out[..size]).unwrap();
            assert_eq!(copy.total_size(), size);
            let cpus = copy.root().child(b"cpus").unwrap();
            assert_eq!(cpus.children().filter(is_cpu).count(), 1);
        }
        Err(WriteError::NoCpus) => assert!(tree.root().child(b"cpus").is_none()),
        Err(error) => assert_eq!(error, WriteError::Full),
    }
}
