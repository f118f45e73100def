//! What a capture kernel's device tree says, out of the machine's: a pure function over its nodes.
//!
//! The capture kernel is let know all memory up to the end of the reservation, because it does not come up without
//! the first block of memory, and is kept out of what is not its own by the reserve map. This is what the kernel's
//! own loader does (arch/powerpc/kexec/file_load_64.c and ranges.c, get_usable_memory_ranges).

use devtree::{Reserved, Tree, WriteError, Writer};
use elfcorehdr::{PhysAddr, PhysRange, RangeVec};
use host::{DeviceNode, DeviceProperty};

use crate::error::TreeFault;

/// Properties of `/chosen` that speak of the boot of the running kernel (of an older one, if that was booted by
/// kexec), and would mislead the next.
const OF_THIS_BOOT: [&str; 17] = [
    "bootargs",
    "kaslr-seed",
    "linux,booted-from-kexec",
    "linux,crashkernel-base",
    "linux,crashkernel-size",
    "linux,dmcryptkeys",
    "linux,elfcorehdr",
    "linux,htab-base",
    "linux,htab-size",
    // A capture kernel would free the memory that it names, which is the crashed kernel's.
    "linux,ima-kexec-buffer",
    "linux,initrd-end",
    "linux,initrd-start",
    "linux,kernel-end",
    "linux,kho-fdt",
    "linux,kho-scratch",
    "linux,memory-limit",
    "linux,usable-memory-range",
];

/// The property that a running kernel gives every node; a flattened tree has none, its nodes are named as they begin.
const NAME: &str = "name";

/// A node for the memory that can come and go one by one in blocks (LMBs).
const DYNAMIC_MEMORY: &str = "ibm,dynamic-reconfiguration-memory";

/// A block that belongs to this machine, of `ibm,dynamic-memory`'s flags (arch/powerpc/include/asm/drmem.h).
const LMB_ASSIGNED: u32 = 0x8;
/// A block that a memory node describes, or nobody.
const LMB_RESERVED: u32 = 0x80;

/// Room for names of properties that a CPU has only when it was added later.
const MORE_NAMES: usize = 1024;

/// What a capture kernel is told besides what its machine is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capture<'a> {
    /// The command line.
    pub(super) cmdline: &'a str,
    /// Memory that it may know of.
    pub(super) usable: &'a RangeVec,
    /// Random bytes.
    pub(super) seed: &'a [u8],
    /// Place and size of the initrd.
    pub(super) initrd: Option<(PhysAddr, usize)>,
}

/// Makes the machine's tree a capture kernel's.
pub(super) fn for_capture(root: &mut DeviceNode, capture: &Capture<'_>) -> Result<(), TreeFault> {
    let cells = ["#address-cells", "#size-cells"].map(|name| root.number(name));
    if cells != [Some(2); 2] {
        let found = format!("{cells:?}");
        return Err(TreeFault::Unfit { node: "/", wanted: "addresses and sizes of 2 cells", found });
    }
    if cpus(root).next().is_none() {
        return Err(TreeFault::Unfit { node: "/cpus", wanted: "nodes of CPUs", found: "none".into() });
    }
    set_chosen(root, capture);
    set_memory(root, capture.usable);
    if let Some(dynamic) = root.children.iter_mut().find(|node| node.name == DYNAMIC_MEMORY) {
        let blocks = blocks(dynamic)?;
        set(dynamic, "linux,drconf-usable-memory", usable_blocks(&blocks, capture.usable));
    }
    Ok(())
}

fn set_chosen(root: &mut DeviceNode, capture: &Capture<'_>) {
    if root.child("chosen").is_none() {
        root.children.push(DeviceNode { name: "chosen".into(), ..DeviceNode::default() });
    }
    let Some(chosen) = root.children.iter_mut().find(|node| node.name == "chosen") else { return };
    chosen.properties.retain(|property| !OF_THIS_BOOT.contains(&property.name.as_str()));
    set(chosen, "bootargs", [capture.cmdline.as_bytes(), b"\0"].concat());
    set(chosen, "rng-seed", capture.seed.to_vec());
    if let Some((start, size)) = capture.initrd {
        let end = start.0.wrapping_add(size as u64);
        set(chosen, "linux,initrd-start", start.0.to_be_bytes().to_vec());
        set(chosen, "linux,initrd-end", end.to_be_bytes().to_vec());
    }
}

/// Says in every memory node what of its memory may be used; `0, 0` where nothing is.
fn set_memory(node: &mut DeviceNode, usable: &RangeVec) {
    for child in &mut node.children {
        set_memory(child, usable);
        if child.property("device_type") == Some(b"memory\0") {
            let (words, _) = child.property("reg").unwrap_or_default().as_chunks::<8>();
            let words: Vec<u64> = words.iter().map(|word| u64::from_be_bytes(*word)).collect();
            let (ranges, _) = words.as_chunks::<2>();
            let ranges =
                ranges.iter().filter_map(|[start, size]| PhysRange::from_len(PhysAddr(*start), *size));
            let own: RangeVec = ranges.flat_map(|range| usable.within(range)).collect();
            let value = if own.is_empty() { vec![0; 16] } else { pairs(&own) };
            set(child, "linux,usable-memory", value);
        }
    }
}

/// Start and size of each range.
fn pairs(ranges: &RangeVec) -> Vec<u8> {
    ranges.iter().flat_map(|range| [range.start().0, range.len()]).flat_map(u64::to_be_bytes).collect()
}

/// A block of memory that can come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    range: PhysRange,
    flags: u32,
}

/// The blocks that the node lists, in its order: one by one (`ibm,dynamic-memory`: address, index, reserved,
/// associativity, flags) or in runs (`ibm,dynamic-memory-v2`: number of blocks, address, index, associativity,
/// flags).
fn blocks(node: &DeviceNode) -> Result<Vec<Block>, TreeFault> {
    let unfit =
        |wanted, found| TreeFault::Unfit { node: "/ibm,dynamic-reconfiguration-memory", wanted, found };
    let size = node.property("ibm,lmb-size").unwrap_or_default();
    let found = format!("{size:x?}");
    let size = size.try_into().map(u64::from_be_bytes).ok().filter(|size| *size != 0);
    let size = size.ok_or_else(|| unfit("a block size (ibm,lmb-size) of 2 cells", found))?;
    let (name, has_runs) = match node.property("ibm,dynamic-memory") {
        Some(_) => ("ibm,dynamic-memory", false),
        None => ("ibm,dynamic-memory-v2", true),
    };
    let bytes = node.property(name).unwrap_or_default();
    let (words, _) = bytes.as_chunks::<4>();
    let words: Vec<u32> = words.iter().map(|word| u32::from_be_bytes(*word)).collect();
    let (count, entries) = words.split_first().unwrap_or((&0, &[]));
    let (entries, _) = entries.as_chunks::<6>();
    let entries = entries.get(..*count as usize);
    let entries = entries.ok_or_else(|| {
        unfit("a list of memory blocks", format!("{count} of them in {} bytes", bytes.len()))
    })?;
    let mut blocks = Vec::new();
    for [first, second, third, .., flags] in entries {
        let (count, high, low) = if has_runs { (*first, *second, *third) } else { (1, *first, *second) };
        let start = u64::from(high) << 32 | u64::from(low);
        let end = u64::from(count).checked_mul(size).and_then(|length| start.checked_add(length));
        end.filter(|_| blocks.len() + count as usize <= MOST_BLOCKS)
            .ok_or_else(|| unfit("a run of memory blocks", format!("{count} of {size:#x} at {start:#x}")))?;
        let ranges =
            (0..u64::from(count)).filter_map(|at| PhysRange::from_len(PhysAddr(start + at * size), size));
        blocks.extend(ranges.map(|range| Block { range, flags: *flags }));
    }
    Ok(blocks)
}

/// More blocks than any machine has: 64 TiB of 16 MiB.
const MOST_BLOCKS: usize = 1 << 22;

/// For each block that the kernel takes as memory (early_init_drmem_lmb in arch/powerpc/kernel/prom.c), in order: a
/// number of ranges, and these. The kernel reads nothing for the others, so there is nothing for them.
fn usable_blocks(blocks: &[Block], usable: &RangeVec) -> Vec<u8> {
    let mut value = Vec::new();
    for block in blocks.iter().filter(|block| block.flags & (LMB_ASSIGNED | LMB_RESERVED) == LMB_ASSIGNED) {
        let own: RangeVec = usable.within(block.range).collect();
        value.extend((own.len() as u64).to_be_bytes());
        value.extend(pairs(&own));
    }
    value
}

/// Memory that devices of PCI buses reach by tables that firmware or the first kernel laid down in memory (TCE): it
/// has to be kept, and known.
pub(super) fn dma_tables(node: &DeviceNode) -> RangeVec {
    let mut found: RangeVec =
        node.children.iter().flat_map(|child| dma_tables(child).iter().collect::<Vec<_>>()).collect();
    let table = node.number("linux,tce-base").zip(node.number("linux,tce-size"));
    if let Some((start, size)) = table.filter(|_| node.property("device_type") == Some(b"pci\0")) {
        found.extend(PhysRange::from_len(PhysAddr(start), size));
    }
    found
}

/// Nodes of CPUs.
fn cpus(root: &DeviceNode) -> impl Iterator<Item = &DeviceNode> {
    let cpus = root.child("cpus").into_iter().flat_map(|node| &node.children);
    cpus.filter(|node| node.property("device_type") == Some(b"cpu\0"))
}

/// How many bytes to keep free so that all of the machine's `possible` CPUs (threads) can get a node later.
///
/// A node is as large as the largest that there is, and has its name once more as a property: the kernel's own
/// handler writes that, too.
pub(super) fn room_for_cpus(root: &DeviceNode, possible: usize) -> usize {
    let present = cpus(root).count();
    let threads =
        cpus(root).map(|cpu| cpu.property("ibm,ppc-interrupt-server#s").map_or(1, |ids| ids.len() / 4));
    let threads = threads.max().unwrap_or(1).max(1);
    let node_size = |cpu: &DeviceNode| {
        let name = (cpu.name.len() + 1).next_multiple_of(4);
        let own = cpu.properties.iter().filter(|property| property.name != NAME);
        // Begin and end; tokens, length and name of each property.
        own.map(|property| 12 + property.value.len().next_multiple_of(4)).sum::<usize>() + 2 * name + 20
    };
    let largest = cpus(root).map(node_size).max().unwrap_or(0);
    possible.div_ceil(threads).saturating_sub(present) * largest + MORE_NAMES
}

/// The tree as it lies in memory: `room` bytes, of which the rest is free space at its end.
pub(super) fn flatten(root: &DeviceNode, reserved: &[PhysRange], room: usize) -> Result<Vec<u8>, TreeFault> {
    let mut bytes = vec![0; room];
    write(root, reserved, &mut bytes)?.finish_with_room()?;
    Ok(bytes)
}

/// Bytes that the tree takes at least.
pub(super) fn size(root: &DeviceNode, reserved: &[PhysRange]) -> Result<usize, TreeFault> {
    let mut room = 1 << 16;
    loop {
        match write(root, reserved, &mut vec![0; room]).and_then(|writer| writer.finish()) {
            Err(WriteError::Full) => room *= 2,
            result => return Ok(result?),
        }
    }
}

fn write<'b>(
    root: &DeviceNode,
    reserved: &[PhysRange],
    bytes: &'b mut [u8],
) -> Result<Writer<'b, 'static>, WriteError> {
    // Purgatory says which CPU boots; until then it is the first.
    let boot_cpu = cpus(root).find_map(|cpu| cpu.property("reg")?.first_chunk().copied());
    let boot_cpu = boot_cpu.map_or(0, u32::from_be_bytes);
    let reserved = reserved.iter().map(|range| Reserved { address: range.start().0, size: range.len() });
    let mut writer = Writer::new(bytes, boot_cpu, reserved)?;
    write_node(root, &mut writer)?;
    Ok(writer)
}

fn write_node(node: &DeviceNode, writer: &mut Writer<'_, '_>) -> Result<(), WriteError> {
    writer.begin_node(node.name.as_bytes())?;
    for property in node.properties.iter().filter(|property| property.name != NAME) {
        writer.property(property.name.as_bytes(), &property.value)?;
    }
    node.children.iter().try_for_each(|child| write_node(child, writer))?;
    writer.end_node()
}

/// Reads a flattened tree.
pub(super) fn unflatten(bytes: &[u8]) -> Result<DeviceNode, TreeFault> {
    node(Tree::parse(bytes)?.root())
}

fn node(from: devtree::Node<'_>) -> Result<DeviceNode, TreeFault> {
    let fault = || TreeFault::Name(String::from_utf8_lossy(from.name()).into_owned());
    let text = |name: &[u8]| String::from_utf8(name.to_vec()).map_err(|_| fault());
    let property = |found: devtree::Property<'_>| {
        Ok(DeviceProperty { name: text(found.name)?, value: found.value.to_vec() })
    };
    Ok(DeviceNode {
        name: text(from.name())?,
        properties: from.properties().map(property).collect::<Result<_, TreeFault>>()?,
        children: from.children().map(node).collect::<Result<_, _>>()?,
    })
}

fn set(node: &mut DeviceNode, name: &str, value: Vec<u8>) {
    match node.properties.iter_mut().find(|property| property.name == name) {
        Some(property) => property.value = value,
        None => node.properties.push(DeviceProperty { name: name.to_owned(), value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leaf(name: &str, properties: &[(&str, &[u8])]) -> DeviceNode {
        let mut node = DeviceNode { name: name.into(), ..DeviceNode::default() };
        properties.iter().for_each(|(name, value)| set(&mut node, name, value.to_vec()));
        node
    }

    fn cells(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
    }

    fn words(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
    }

    fn ranges(ranges: &[(u64, u64)]) -> RangeVec {
        ranges.iter().filter_map(|(start, end)| PhysRange::new(PhysAddr(*start), PhysAddr(*end))).collect()
    }

    /// A machine with one CPU of four threads, and what else is given.
    fn machine(more: Vec<DeviceNode>) -> DeviceNode {
        let cpu =
            [("device_type", &b"cpu\0"[..]), ("ibm,ppc-interrupt-server#s", &[0; 16]), ("name", b"x\0")];
        let cache = leaf("l2-cache@1", &[("device_type", b"cache\0")]);
        let mut cpus = leaf("cpus", &[]);
        cpus.children = vec![leaf("PowerPC,POWER9@0", &cpu), cache];
        let mut root = leaf("", &[("#address-cells", &cells(&[2])), ("#size-cells", &cells(&[2]))]);
        root.children = [vec![cpus], more].concat();
        root
    }

    fn captured(mut root: DeviceNode, usable: &RangeVec) -> Result<DeviceNode, TreeFault> {
        let capture = Capture { cmdline: "c", usable, seed: &[1], initrd: None };
        for_capture(&mut root, &capture).map(|()| root)
    }

    /// Blocks of 0x100 at 0 (a memory node has it), 0x100 (assigned), 0x200 (not), 0x300 and 0x400 (assigned): all in
    /// one list, or in runs.
    fn dynamic() -> [DeviceNode; 2] {
        let size = words(&[0x100]);
        let blocks = [(0, 0x88), (0x100, 8), (0x200, 0), (0x300, 8), (0x400, 8)];
        let list: Vec<u32> = blocks.iter().flat_map(|(start, flags)| [0, *start, 7, 7, 7, *flags]).collect();
        let runs: [u32; 19] = [3, 1, 0, 0, 7, 7, 0x88, 1, 0, 0x100, 7, 7, 8, 2, 0, 0x300, 7, 7, 8];
        let name = "ibm,dynamic-reconfiguration-memory";
        [
            leaf(name, &[("ibm,lmb-size", &size), ("ibm,dynamic-memory", &cells(&[vec![5], list].concat()))]),
            leaf(name, &[("ibm,lmb-size", &size), ("ibm,dynamic-memory-v2", &cells(&runs))]),
        ]
    }

    #[test]
    fn blocks_of_memory_are_usable_as_far_as_the_kernel_asks() {
        for dynamic in dynamic() {
            let root =
                captured(machine(vec![dynamic]), &ranges(&[(0, 0x180), (0x190, 0x1a0), (0x350, 0x400)]));
            let root = root.unwrap();
            let usable = root.children[1].property("linux,drconf-usable-memory").unwrap();
            let expected = [&[2, 0x100, 0x80, 0x190, 0x10][..], &[1, 0x350, 0xb0], &[0]].concat();
            assert_eq!(usable, words(&expected), "nothing for what is not assigned or has a memory node");
        }
    }

    #[test]
    fn memory_nodes_say_what_is_usable_wherever_they_are() {
        let memory = |name, reg: &[u64]| leaf(name, &[("device_type", b"memory\0"), ("reg", &words(reg))]);
        let mut bus = leaf("bus", &[]);
        bus.children = vec![memory("memory@9000", &[0x9000, 0x1000])];
        let root = machine(vec![memory("memory@0", &[0, 0x1000, 0x2000, 0x1000]), bus]);
        let root = captured(root, &ranges(&[(0x800, 0x2800)])).unwrap();
        let usable = |node: &DeviceNode| node.property("linux,usable-memory").unwrap().to_vec();
        assert_eq!(usable(&root.children[1]), words(&[0x800, 0x800, 0x2000, 0x800]));
        assert_eq!(usable(&root.children[2].children[0]), words(&[0, 0]));
        assert_eq!(root.children[0].property("linux,usable-memory"), None);
    }

    #[test]
    fn a_missing_chosen_is_made() {
        let root = captured(machine(Vec::new()), &ranges(&[])).unwrap();
        let chosen = root.child("chosen").unwrap();
        assert_eq!(chosen.property("bootargs"), Some(&b"c\0"[..]));
        assert_eq!(chosen.property("rng-seed"), Some(&[1][..]));
    }

    #[test]
    fn what_chosen_says_of_this_boot_does_not_reach_the_next() {
        let old: Vec<_> =
            OF_THIS_BOOT.iter().chain(&["rng-seed", "stdin"]).map(|name| (*name, &b"old"[..])).collect();
        let root = captured(machine(vec![leaf("chosen", &old)]), &ranges(&[])).unwrap();
        let mut left = root.child("chosen").unwrap().properties.clone();
        left.sort_by(|one, other| one.name.cmp(&other.name));
        let left: Vec<_> =
            left.iter().map(|property| (property.name.as_str(), property.value.as_slice())).collect();
        assert_eq!(left, [("bootargs", &b"c\0"[..]), ("rng-seed", &[1]), ("stdin", b"old")]);
    }

    #[test]
    fn every_node_of_dma_tables_is_found() {
        let table = |name, kind: &[u8], start: u64| {
            leaf(
                name,
                &[
                    ("device_type", kind),
                    ("linux,tce-base", &words(&[start])),
                    ("linux,tce-size", &cells(&[0x10])),
                ],
            )
        };
        let mut bus = table("pci@1", b"pci\0", 0x1000);
        bus.children = vec![table("pci@2", b"pci\0", 0x2000), table("isa@3", b"isa\0", 0x3000)];
        let root = machine(vec![bus, leaf("pci@4", &[("device_type", b"pci\0")])]);
        assert_eq!(dma_tables(&root), ranges(&[(0x1000, 0x1010), (0x2000, 0x2010)]));
    }

    #[test]
    fn room_is_for_cores_not_threads() {
        let root = machine(Vec::new());
        // Begin, name, end; device_type and its 4 bytes; 16 bytes of thread numbers; name with 20 bytes.
        let node = (4 + 20 + 4) + (12 + 4) + (12 + 16) + (12 + 20);
        for (possible, more) in [(0, 0), (4, 0), (5, 1), (8, 1), (32, 7)] {
            assert_eq!(room_for_cpus(&root, possible), more * node + MORE_NAMES, "{possible}");
        }
    }

    #[test]
    fn what_no_machine_has_is_refused() {
        let broken = |change: fn(&mut DeviceNode)| {
            let [list, _] = dynamic();
            let mut root = machine(vec![list]);
            change(&mut root);
            captured(root, &ranges(&[(0, 0x1000)])).unwrap_err().to_string()
        };
        type Case = (fn(&mut DeviceNode), &'static str);
        let cases: [Case; 7] = [
            (|root| set(root, "#size-cells", cells(&[1])), "found [Some(2), Some(1)]"),
            (|root| root.properties.clear(), "found [None, None]"),
            (|root| root.children[0].children.truncate(0), "/cpus: wanted nodes of CPUs, found none"),
            (|root| set(&mut root.children[1], "ibm,lmb-size", words(&[0])), "wanted a block size"),
            (|root| set(&mut root.children[1], "ibm,lmb-size", cells(&[1])), "found [0, 0, 0, 1]"),
            (
                |root| set(&mut root.children[1], "ibm,dynamic-memory", cells(&[1, 2])),
                "found 1 of them in 8 bytes",
            ),
            (
                |root| {
                    root.children[1].properties.pop();
                    let runs = cells(&[1, u32::MAX, 0, 0, 0, 0, 0]);
                    set(&mut root.children[1], "ibm,dynamic-memory-v2", runs);
                },
                "found 4294967295 of 0x100 at 0x0",
            ),
        ];
        for (change, expected) in cases {
            let error = broken(change);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn names_have_to_be_text() {
        let mut bytes = flatten(&machine(Vec::new()), &[], 4096).unwrap();
        let at = bytes.windows(4).position(|name| name == b"Powe").unwrap();
        bytes[at] = 0xff;
        let error = unflatten(&bytes).unwrap_err().to_string();
        assert!(error.contains("a name that is not text in node \"\u{fffd}owerPC,POWER9@0\""), "{error}");
    }

    #[test]
    fn large_trees_are_measured_as_well() {
        let root = machine(vec![leaf("large", &[("p", &vec![0; 1 << 20])])]);
        let size = size(&root, &[]).unwrap();
        assert!(flatten(&root, &[], size - 1).is_err());
        let bytes = flatten(&root, &[], size).unwrap();
        assert_eq!(unflatten(&bytes).unwrap().children[1], root.children[1]);
    }

    /// The memory that a kernel finds (early_init_dt_scan_memory in drivers/of/fdt.c, early_init_drmem_lmb in
    /// arch/powerpc/kernel/prom.c).
    fn found_by_kernel(root: &DeviceNode) -> RangeVec {
        let read = |bytes: &[u8]| {
            bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect::<Vec<_>>()
        };
        let mut found = RangeVec::new();
        for node in root.children.iter().filter(|node| node.property("device_type") == Some(b"memory\0")) {
            let usable = read(node.property("linux,usable-memory").or(node.property("reg")).unwrap());
            let pairs = usable.as_chunks::<2>().0.iter();
            found.extend(
                pairs
                    .filter(|[_, size]| *size != 0)
                    .filter_map(|[start, size]| PhysRange::from_len(PhysAddr(*start), *size)),
            );
        }
        let Some(dynamic) = root.child("ibm,dynamic-reconfiguration-memory") else { return found };
        let mut usable = read(dynamic.property("linux,drconf-usable-memory").unwrap()).into_iter();
        for block in blocks(dynamic).unwrap() {
            if block.flags & LMB_RESERVED != 0 || block.flags & LMB_ASSIGNED == 0 {
                continue;
            }
            for _ in 0..usable.next().unwrap() {
                let (start, size) = (usable.next().unwrap(), usable.next().unwrap());
                found.extend(PhysRange::from_len(PhysAddr(start), size));
            }
        }
        assert_eq!(usable.next(), None);
        found
    }

    proptest! {
        #[test]
        fn a_kernel_finds_what_is_usable_of_the_memory_that_there_is(
            usable in prop::collection::vec((0u64..0x1000, 0u64..0x400), 0..6),
            nodes in prop::collection::vec((0u64..0x800, 1u64..0x300), 0..4),
            flags in prop::collection::vec(prop::sample::select(vec![0, 8, 0x80, 0x88, 0x108]), 0..12),
            has_runs in any::<bool>(),
        ) {
            let usable = usable.iter().map(|&(start, size)| (start, start + size)).collect::<Vec<_>>();
            let usable = ranges(&usable);
            let mut memory = RangeVec::new();
            let mut children = Vec::new();
            for (start, size) in nodes {
                memory.extend(PhysRange::from_len(PhysAddr(start), size));
                children.push(leaf("memory", &[("device_type", b"memory\0"), ("reg", &words(&[start, size]))]));
            }
            let mut list = vec![flags.len() as u32];
            for (index, flags) in flags.iter().enumerate() {
                let start = 0x800 + 0x80 * index as u32;
                let entry = if has_runs { [1, 0, start, 7, 7, *flags] } else { [0, start, 7, 7, 7, *flags] };
                list.extend(entry);
                if flags & 0x88 == 8 {
                    memory.extend(PhysRange::from_len(PhysAddr(start.into()), 0x80));
                }
            }
            let name = if has_runs { "ibm,dynamic-memory-v2" } else { "ibm,dynamic-memory" };
            children.push(leaf(DYNAMIC_MEMORY, &[("ibm,lmb-size", &words(&[0x80])), (name, &cells(&list))]));
            let root = captured(machine(children), &usable).unwrap();
            let expected: RangeVec = memory.iter().flat_map(|range| usable.within(range).collect::<Vec<_>>()).collect();
            prop_assert_eq!(found_by_kernel(&root), expected);
        }
    }
}
