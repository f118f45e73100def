//! The device tree, as the kernel shows it: a directory a node, a file a property.

use crate::error::{Fault, HostError};
use crate::files::{Root, absent_is_none};
use elfcorehdr::{PhysAddr, PhysRange, RangeVec};

/// Where the kernel shows it. `/proc/device-tree` is a link to this.
const PATH: &str = "/sys/firmware/devicetree/base";

/// Deepest nesting taken; the kernel's own limit when it unflattens a tree is 64 (FDT_MAX_DEPTH).
const MAX_DEPTH: usize = 64;

/// A node of the device tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceNode {
    /// Name with its unit address, such as `memory@0`; empty for the root.
    pub name: String,
    /// Properties, in the order of their names. The kernel adds one called `name` to every node.
    pub properties: Vec<DeviceProperty>,
    /// Nodes below this one, in the order of their names.
    pub children: Vec<DeviceNode>,
}

/// A property of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProperty {
    /// Its name.
    pub name: String,
    /// Its bytes; numbers are big-endian.
    pub value: Vec<u8>,
}

impl DeviceNode {
    /// The bytes of a property of this node.
    pub fn property(&self, name: &str) -> Option<&[u8]> {
        self.properties.iter().find(|property| property.name == name).map(|property| &*property.value)
    }

    /// A property that holds one number of 4 or 8 bytes.
    pub fn number(&self, name: &str) -> Option<u64> {
        big_endian(self.property(name)?)
    }

    /// The node right below this one that has this whole name.
    pub fn child(&self, name: &str) -> Option<&DeviceNode> {
        self.children.iter().find(|child| child.name == name)
    }
}

/// A number of 4 or 8 bytes.
pub(crate) fn big_endian(bytes: &[u8]) -> Option<u64> {
    match bytes.len() {
        4 => Some(u32::from_be_bytes(bytes.try_into().ok()?).into()),
        8 => Some(u64::from_be_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

/// Reads the whole tree; `None` on machines without one.
pub(crate) fn read(root: &Root) -> Result<Option<DeviceNode>, HostError> {
    node(root, PATH, String::new(), 0)
}

/// Reads one property, without the rest of the tree.
fn property(root: &Root, path: &str) -> Result<Option<Vec<u8>>, HostError> {
    absent_is_none(root.bytes(&format!("{PATH}/{path}"), ""))
}

/// Reads a property that holds one number.
fn number(root: &Root, path: &str) -> Result<Option<u64>, HostError> {
    let fault = |bytes: &[u8]| {
        Fault::new(&format!("{} bytes", bytes.len()), "a number of 4 or 8 bytes")
            .in_file(&root.path(&format!("{PATH}/{path}")))
    };
    let bytes = property(root, path)?;
    bytes.map(|bytes| big_endian(&bytes).ok_or_else(|| fault(&bytes))).transpose()
}

/// The range that two properties give start and size of; `None` unless both are there and the range is not empty.
fn range(root: &Root, start: &str, size: &str) -> Result<Option<PhysRange>, HostError> {
    let pair = number(root, start)?.zip(number(root, size)?).filter(|(_, size)| *size != 0);
    pair.map(|(start, size)| {
        let fault = || Fault::new(&format!("{size:#x} bytes at {start:#x}"), "a range that ends below 2^64");
        PhysRange::from_len(PhysAddr(start), size).ok_or_else(|| fault().in_file(&root.path(PATH)))
    })
    .transpose()
}

/// The crash reservation as the running kernel tells it (arch/powerpc/kexec/core.c, export_crashk_values).
pub(crate) fn crash_reservation(root: &Root) -> Result<Option<PhysRange>, HostError> {
    range(root, "chosen/linux,crashkernel-base", "chosen/linux,crashkernel-size")
}

/// Memory that firmware lies in or has lent to devices, rounded out to 4 KiB, the smallest pages that there are: RTAS (on
/// pseries), OPAL (on powernv), and what the root's `reserved-ranges` names (pairs of start and size).
pub(crate) fn firmware_memory(root: &Root) -> Result<RangeVec, HostError> {
    let known = [
        ("rtas/linux,rtas-base", "rtas/rtas-size"),
        ("ibm,opal/opal-base-address", "ibm,opal/opal-runtime-size"),
    ];
    let mut found = RangeVec::new();
    for (start, size) in known {
        found.extend(range(root, start, size)?);
    }
    let reserved = property(root, "reserved-ranges")?.unwrap_or_default();
    let words = reserved.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)).collect::<Vec<_>>();
    found.extend(
        words
            .as_chunks::<2>()
            .0
            .iter()
            .filter_map(|[start, size]| PhysRange::from_len(PhysAddr(*start), *size)),
    );
    Ok(found.iter().map(whole_pages).collect())
}

/// Run-time services of PowerPC's firmware: where to call them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtas {
    /// Physical address to call.
    pub entry: PhysAddr,
    /// Physical address of its own memory.
    pub base: PhysAddr,
    /// Number of the call that resets the machine; `None` where it has none.
    pub system_reboot: Option<u32>,
}

/// RTAS as the running kernel set it up.
pub(crate) fn rtas(root: &Root) -> Result<Option<Rtas>, HostError> {
    let place = number(root, "rtas/linux,rtas-entry")?.zip(number(root, "rtas/linux,rtas-base")?);
    let system_reboot = number(root, "rtas/system-reboot")?.and_then(|token| u32::try_from(token).ok());
    Ok(place.map(|(entry, base)| Rtas { entry: PhysAddr(entry), base: PhysAddr(base), system_reboot }))
}

/// The end of the memory node at 0. PowerPC's roots have two cells for addresses and two for sizes.
pub(crate) fn real_mode_end(root: &Root) -> Result<Option<PhysAddr>, HostError> {
    let reg = property(root, "memory@0/reg")?.unwrap_or_default();
    let first = reg
        .first_chunk::<16>()
        .map(|reg| reg.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)));
    Ok(first.and_then(|words| words.reduce(u64::saturating_add)).filter(|end| *end != 0).map(PhysAddr))
}

/// `range` and what lies in the same 4 KiB.
fn whole_pages(range: PhysRange) -> PhysRange {
    const PAGE: u64 = 4096;
    let (start, end) = (range.start().0 / PAGE * PAGE, range.end().0.checked_next_multiple_of(PAGE));
    PhysRange::new(PhysAddr(start), PhysAddr(end.unwrap_or(u64::MAX))).unwrap_or(range)
}

/// Reads the node whose directory is `path`; `None` if there is none. CPUs and memory come and go: what vanishes on the way
/// is left out.
fn node(root: &Root, path: &str, name: String, depth: usize) -> Result<Option<DeviceNode>, HostError> {
    let Some(entries) = absent_is_none(root.entries(path))? else {
        return Ok(None);
    };
    if depth > MAX_DEPTH {
        return Err(Fault::new(&name, "nodes nested at most 64 deep").in_file(&root.path(path)));
    }
    let mut node = DeviceNode { name, ..DeviceNode::default() };
    for (name, is_directory) in entries {
        let place = format!("{path}/{name}");
        if is_directory {
            node.children.extend(self::node(root, &place, name, depth + 1)?);
        } else {
            let value = absent_is_none(root.bytes(&place, ""))?;
            node.properties.extend(value.map(|value| DeviceProperty { name, value }));
        }
    }
    Ok(Some(node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tree(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path().to_owned());
        for (path, bytes) in files {
            let place = root.path(&format!("{PATH}/{path}"));
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(place, bytes).unwrap();
        }
        (folder, root)
    }

    #[test]
    fn nodes_and_properties_are_found_by_name() {
        let (_folder, root) = tree(&[
            ("model", b"IBM pSeries\0"),
            ("chosen/linux,crashkernel-base", &[0, 0, 0, 0, 0x20, 0, 0, 0]),
            ("chosen/linux,initrd-start", &[0, 0, 0x10, 0]),
            ("cpus/PowerPC,POWER9@8/reg", &[0, 0, 0, 8]),
            ("cpus/PowerPC,POWER9@0/reg", &[0, 0, 0, 0]),
            ("empty-one", b""),
        ]);
        let found = read(&root).unwrap().unwrap();
        assert_eq!(found.name, "");
        assert_eq!(found.property("model"), Some(&b"IBM pSeries\0"[..]));
        assert_eq!((found.property("empty-one"), found.number("empty-one")), (Some(&[][..]), None));
        let chosen = found.child("chosen").unwrap();
        assert_eq!(chosen.number("linux,crashkernel-base"), Some(0x2000_0000));
        assert_eq!(chosen.number("linux,initrd-start"), Some(0x1000));
        assert_eq!((chosen.number("none"), found.child("chose")), (None, None));
        let cpus: Vec<&str> =
            found.child("cpus").unwrap().children.iter().map(|cpu| cpu.name.as_str()).collect();
        assert_eq!(
            cpus,
            ["PowerPC,POWER9@0", "PowerPC,POWER9@8"],
            "in order, however the directory lists them"
        );
    }

    fn text(ranges: &RangeVec) -> Vec<String> {
        ranges.iter().map(|range| range.to_string()).collect()
    }

    #[test]
    fn memory_that_is_spoken_for() {
        let (_folder, root) = tree(&[
            ("chosen/linux,crashkernel-base", &0x2000_0000_u64.to_be_bytes()),
            ("chosen/linux,crashkernel-size", &0x1000_0000_u64.to_be_bytes()),
            ("rtas/linux,rtas-base", &[0x2f, 0xff, 0xf8, 0]),
            ("rtas/rtas-size", &[0, 0, 0x08, 0x5c]),
            ("ibm,opal/opal-base-address", &0x3000_0000_u64.to_be_bytes()),
            ("ibm,opal/opal-runtime-size", &0x100_0000_u64.to_be_bytes()),
            ("reserved-ranges", &[0x7000_0000_u64, 0x1_0000, u64::MAX, 2].map(u64::to_be_bytes).concat()),
        ]);
        assert_eq!(crash_reservation(&root).unwrap().unwrap().to_string(), "[0x20000000, 0x30000000)");
        let firmware = firmware_memory(&root).unwrap();
        assert_eq!(text(&firmware), ["[0x2ffff000, 0x31000000)", "[0x70000000, 0x70010000)"]);
    }

    #[test]
    fn firmware_to_call_and_memory_to_reach() {
        let (_folder, root) = tree(&[
            ("rtas/linux,rtas-entry", &[0x2f, 0xff, 0xf0, 0x10]),
            ("rtas/linux,rtas-base", &[0x2f, 0xff, 0xf0, 0]),
            ("rtas/system-reboot", &[0, 0, 0x20, 0x14]),
            ("memory@0/reg", &[0, 0x3000_0000_u64, 7, 7].map(u64::to_be_bytes).concat()),
        ]);
        let entry = PhysAddr(0x2fff_f010);
        let expected = Rtas { entry, base: PhysAddr(0x2fff_f000), system_reboot: Some(0x2014) };
        assert_eq!(rtas(&root).unwrap(), Some(expected));
        assert_eq!(real_mode_end(&root).unwrap(), Some(PhysAddr(0x3000_0000)));
        let (_folder, root) = tree(&[("rtas/system-reboot", &[0, 0, 0x20, 0x14]), ("memory@0/reg", &[0; 8])]);
        assert_eq!((rtas(&root).unwrap(), real_mode_end(&root).unwrap()), (None, None));
    }

    #[test]
    fn no_reservation_is_none_and_a_bad_one_an_error() {
        let base = ("chosen/linux,crashkernel-base", &[0xff; 8][..]);
        let size = |bytes: &'static [u8]| ("chosen/linux,crashkernel-size", bytes);
        for files in [&[][..], &[base], &[base, size(&[0; 8])]] {
            let (_folder, root) = tree(files);
            assert_eq!(crash_reservation(&root).unwrap(), None);
        }
        for (bytes, expected) in
            [(&[0_u8, 1, 2][..], "found \"3 bytes\""), (&[0, 0, 0, 2], "0x2 bytes at 0xffffffffffffffff")]
        {
            let (_folder, root) = tree(&[base, size(bytes)]);
            let error = crash_reservation(&root).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_machine_without_a_tree_has_none() {
        let (_folder, root) = tree(&[]);
        assert_eq!(read(&root).unwrap(), None);
    }

    #[test]
    fn nesting_without_end_is_refused() {
        let deep = format!("{}reg", "a/".repeat(MAX_DEPTH + 1));
        let (_folder, root) = tree(&[(&deep, b"")]);
        let error = read(&root).unwrap_err().to_string();
        assert!(error.contains("wanted nodes nested at most 64 deep"), "{error}");
        let (_folder, root) = tree(&[(&deep[2..], b"")]);
        assert!(read(&root).is_ok());
    }
}
