//! What the capture kernel is told: a device tree.

mod tree;

use elfcorehdr::{PhysAddr, PhysRange, RangeVec};
use host::DeviceNode;

use self::tree::Capture;
use super::SEGMENT_ALIGN;
use super::image::Vmlinux;
use crate::error::{PlanError, TreeFault};
use crate::plan::{Told, Warning};

/// A device tree that lacks only the initrd's place.
pub(crate) struct BootData {
    machine: DeviceNode,
    cmdline: String,
    seed: [u8; 32],
    /// Memory that the capture kernel knows of, whether it may write there or not.
    usable: RangeVec,
    /// Memory of it that it must keep out of, besides the initrd.
    reserved: RangeVec,
    capture_memory: RangeVec,
    size: usize,
}

impl BootData {
    /// The tree to tell a kernel on this machine, out of the user's tree or the machine's own.
    pub(crate) fn new(told: &Told<'_>, _: &Vmlinux<'_>, _: &mut Vec<Warning>) -> Result<Self, PlanError> {
        let host = told.host;
        let machine = match told.tree {
            Some(bytes) => tree::unflatten(bytes)?,
            None => host.device_tree()?.ok_or(PlanError::NoDeviceTree)?,
        };
        // The capture kernel's exception vectors go where purgatory has saved what was there.
        let own: RangeVec = told.own().iter().chain([host.low_memory()]).collect();
        let tables = tree::dma_tables(&machine);
        let firmware: RangeVec = host.firmware_memory()?.iter().chain(tables.iter()).collect();
        let last = told.reserved.iter().chain(told.hidden.iter()).map(|range| range.end()).max();
        let known: RangeVec = last.and_then(|end| PhysRange::new(PhysAddr(0), end)).into_iter().collect();
        let mut boot = Self {
            cmdline: told.cmdline.to_owned(),
            seed: told.random.seed,
            reserved: known.difference(&own).chain(firmware.iter()).collect(),
            usable: known.iter().chain(firmware.iter()).collect(),
            capture_memory: own.difference(&firmware).collect(),
            machine,
            size: 0,
        };
        // The largest that it can get: with an initrd, and all CPUs that there can be.
        let (largest, reserved) = boot.tree(Some((PhysAddr(u64::MAX - 1), 1)))?;
        let room = tree::room_for_cpus(&largest, host.cpus()?.possible.len());
        let size = tree::size(&largest, &reserved)?.saturating_add(room);
        boot.size = size.next_multiple_of(SEGMENT_ALIGN as usize);
        Ok(boot)
    }

    /// The tree's nodes and its reserve map.
    fn tree(&self, initrd: Option<(PhysAddr, usize)>) -> Result<(DeviceNode, Vec<PhysRange>), TreeFault> {
        let Self { cmdline, usable, seed, .. } = self;
        let mut root = self.machine.clone();
        tree::for_capture(&mut root, &Capture { cmdline, usable, seed, initrd })?;
        let initrd = initrd.and_then(|(start, size)| PhysRange::from_len(start, size as u64));
        Ok((root, self.reserved.iter().chain(initrd).collect()))
    }

    /// All memory that the capture kernel is told it may use.
    pub(crate) fn capture_memory(&self) -> &[PhysRange] {
        self.capture_memory.as_slice()
    }

    /// Bytes of it all, with room for the nodes of CPUs that may come.
    pub(crate) fn size(&self) -> u64 {
        self.size as u64
    }

    /// The bytes, which do not depend on their place, with the initrd's address and size.
    pub(crate) fn bytes(&self, _: PhysAddr, initrd: Option<(PhysAddr, usize)>) -> Vec<u8> {
        let tree = self.tree(initrd).and_then(|(root, reserved)| tree::flatten(&root, &reserved, self.size));
        tree.expect("the largest tree was made and measured before, and this one has the same names")
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::sample;
    use super::*;
    use crate::plan::Random;
    use devtree::{Tree, is_cpu, replace_cpus};
    use host::Host;
    use proptest::prelude::*;

    const RANDOM: Random = Random { identity: [1; 16], seed: [2; 32] };
    const BASE: PhysAddr = PhysAddr(0x3fc0_0000);
    const INITRD: (PhysAddr, usize) = (PhysAddr(0x3000_0000), 0x12_3456);
    /// With pages of 64 KiB, RTAS has one of its own.
    const MACHINES: [(&str, u64); 2] =
        [("debian-6.1-ppc64", 0x2fff_0000), ("debian-6.12-ppc64", 0x2fff_f000)];

    fn machine(name: &str) -> Host {
        let root = format!("{}/../host/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
        Host::recorded(root, super::super::MACHINE)
    }

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap()
    }

    fn boot_data(host: &Host, tree: Option<&[u8]>) -> Result<BootData, PlanError> {
        let kernel = sample(4096);
        let reserved: RangeVec = [host.reservations().unwrap().unwrap().main].into_iter().collect();
        let hidden: RangeVec =
            [range(0x3fd0_0000, 0x3fd1_0000), range(0x3ff0_0000, 0x3ff8_0000)].into_iter().collect();
        let told = Told { host, reserved: &reserved, hidden: &hidden, random: &RANDOM, cmdline: "a b", tree };
        BootData::new(&told, &Vmlinux::parse(&kernel).unwrap(), &mut Vec::new())
    }

    fn numbers(bytes: &[u8]) -> Vec<u64> {
        bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect()
    }

    #[test]
    fn the_capture_kernel_knows_low_memory_and_keeps_out_of_what_is_not_its_own() {
        for (name, rtas) in MACHINES {
            let boot = boot_data(&machine(name), None).unwrap();
            let bytes = boot.bytes(BASE, Some(INITRD));
            let tree = Tree::parse(&bytes).unwrap();
            let memory = tree.node("/memory@0").unwrap();
            assert_eq!(numbers(memory.property(b"linux,usable-memory").unwrap()), [0, 0x4000_0000]);
            let dynamic = tree.node("/ibm,dynamic-reconfiguration-memory").unwrap();
            let usable = dynamic.property(b"linux,drconf-usable-memory").unwrap();
            assert_eq!(numbers(usable), [0, 0], "two blocks of a DIMM at 2 GiB");
            let mut reserved: Vec<_> =
                tree.reserved().map(|entry| (entry.address, entry.address + entry.size)).collect();
            reserved.sort();
            let expected = [
                (0x1_0000, 0x2000_0000),
                (rtas, rtas + 0x1000),
                (0x3000_0000, 0x3012_3456),
                (0x3fd0_0000, 0x3fd1_0000),
                (0x3ff0_0000, 0x3ff8_0000),
            ];
            assert_eq!(reserved, expected, "old memory, RTAS, initrd, two hidden places");
            let mut own: RangeVec =
                [range(0, 0x1_0000), range(0x2000_0000, 0x4000_0000)].into_iter().collect();
            for (start, end) in expected.into_iter().filter(|(start, _)| *start != INITRD.0.0) {
                own.remove(range(start, end)).unwrap();
            }
            assert_eq!(boot.capture_memory(), own.as_slice());
        }
    }

    #[test]
    fn chosen_is_for_this_kernel_and_the_rest_is_the_machine() {
        for (name, _) in MACHINES {
            let host = machine(name);
            let boot = boot_data(&host, None).unwrap();
            let bytes = boot.bytes(BASE, Some(INITRD));
            let tree = Tree::parse(&bytes).unwrap();
            let chosen = tree.node("/chosen").unwrap();
            assert_eq!(chosen.property(b"bootargs"), Some(&b"a b\0"[..]));
            assert_eq!(chosen.property(b"rng-seed"), Some(&[2; 32][..]));
            assert_eq!(numbers(chosen.property(b"linux,initrd-start").unwrap()), [0x3000_0000]);
            assert_eq!(numbers(chosen.property(b"linux,initrd-end").unwrap()), [0x3012_3456]);
            let machine = host.device_tree().unwrap().unwrap();
            let old = machine.child("chosen").unwrap();
            for gone in ["linux,crashkernel-base", "linux,kernel-end", "linux,memory-limit"] {
                assert!(old.property(gone).is_some() && chosen.property(gone.as_bytes()).is_none(), "{gone}");
            }
            for kept in ["linux,stdout-path", "ibm,architecture-vec-5"] {
                assert_eq!(chosen.property(kept.as_bytes()), old.property(kept));
                assert!(old.property(kept).is_some());
            }
            let names = |node: &devtree::Node<'_>| {
                node.children().map(|child| child.name().to_vec()).collect::<Vec<_>>()
            };
            let old: Vec<_> = machine.children.iter().map(|child| child.name.clone().into_bytes()).collect();
            assert_eq!(names(&tree.root()), old);
            assert!(tree.root().property(b"name").is_none());
            let without = boot.bytes(BASE, None);
            let tree = Tree::parse(&without).unwrap();
            assert_eq!(tree.node("/chosen").unwrap().property(b"linux,initrd-start"), None);
            assert_eq!(tree.reserved().count(), 4);
        }
    }

    #[test]
    fn there_is_room_for_every_cpu_that_may_come() {
        for (name, _) in MACHINES {
            let host = machine(name);
            let boot = boot_data(&host, None).unwrap();
            let bytes = boot.bytes(BASE, Some(INITRD));
            assert_eq!((bytes.len() as u64, boot.size() % SEGMENT_ALIGN), (boot.size(), 0));
            let tree = Tree::parse(&bytes).unwrap();
            assert_eq!(
                tree.total_size(),
                bytes.len(),
                "the kernel's handler takes room from the free space inside"
            );
            let cpus: Vec<_> = tree.node("/cpus").unwrap().children().filter(is_cpu).collect();
            assert_eq!(cpus.len(), host.cpus().unwrap().present.len());
            let possible = host.cpus().unwrap().possible.len();
            let mut grown = vec![0; bytes.len()];
            let size = replace_cpus::<devtree::WriteError>(&tree, &mut grown, |writer| {
                for cpu in 0..possible {
                    writer.begin_node(format!("PowerPC,POWER9@{cpu:x}").as_bytes())?;
                    cpus[0].properties().try_for_each(|found| writer.property(found.name, found.value))?;
                    writer.property(b"name", b"PowerPC,POWER9@0\0")?;
                    writer.end_node()?;
                }
                Ok(())
            });
            assert!(size.unwrap() <= bytes.len());
        }
    }

    /// A tree's nodes, with properties in the order of their names.
    fn sorted(bytes: &[u8]) -> DeviceNode {
        fn sort(node: &mut DeviceNode) {
            node.properties.sort_by(|one, other| one.name.cmp(&other.name));
            node.children.iter_mut().for_each(sort);
        }
        let mut root = tree::unflatten(bytes).unwrap();
        sort(&mut root);
        root
    }

    #[test]
    fn a_tree_of_the_users_is_made_to_fit_as_well() {
        let host = machine(MACHINES[1].0);
        let own = boot_data(&host, None).unwrap().bytes(BASE, Some(INITRD));
        let again = boot_data(&host, Some(&own)).unwrap().bytes(BASE, Some(INITRD));
        assert!(sorted(&again) == sorted(&own), "a tree of ours is not changed by being made ours again");
        let error = boot_data(&host, Some(b"\x7fELF")).err().unwrap().to_string();
        assert!(error.contains("device tree: not a device tree blob"), "{error}");
    }

    proptest! {
        #[test]
        fn a_damaged_tree_of_the_users_is_made_to_fit_or_refused(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..12),
        ) {
            let host = machine(MACHINES[1].0);
            let mut bytes = boot_data(&host, None).unwrap().bytes(BASE, Some(INITRD));
            for (place, value, is_low) in changes {
                // Most bytes are free space; small numbers are tokens and sizes.
                let at = place.index(8192);
                bytes[at] = if is_low { value % 16 } else { value };
            }
            if let Ok(boot) = boot_data(&host, Some(&bytes)) {
                let made = boot.bytes(BASE, Some(INITRD));
                let tree = Tree::parse(&made).unwrap();
                prop_assert_eq!((tree.total_size(), made.len() as u64), (made.len(), boot.size()));
                prop_assert!(tree.reserved().any(|entry| (entry.address, entry.size) == (INITRD.0.0, INITRD.1 as u64)));
            }
        }
    }
}
