//! `/proc/iomem`: who owns which physical addresses.

use crate::error::Fault;
use crate::files::hex;
use elfcorehdr::{PhysAddr, PhysRange, RangeVec};

/// Name of memory that the kernel runs on. Memory that a driver manages has the driver's name behind it in brackets:
/// `System RAM (kmem)`, `System RAM (virtio_mem)` (Documentation of add_memory_driver_managed).
const SYSTEM_RAM: &str = "System RAM";

/// Deepest nesting that the kernel prints is 5 (MAX_IORES_LEVEL); more is room.
const MAX_DEPTH: usize = 64;

/// One resource: a range of physical addresses, its owner's name, and the resources inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The addresses.
    pub range: PhysRange,
    /// Name as the kernel prints it.
    pub name: String,
    /// Resources printed as inside this one, in the kernel's order.
    pub children: Vec<Resource>,
}

/// The tree of resources, as `/proc/iomem` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Iomem {
    /// The resources that lie in no other.
    pub resources: Vec<Resource>,
}

/// Why the text is not a tree.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum IomemFault {
    /// All ranges are zero, as readers without privilege see them.
    Hidden,
    Malformed(Fault),
}

impl Iomem {
    /// Parses the text of `/proc/iomem`.
    pub(crate) fn parse(text: &str) -> Result<Self, IomemFault> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let parsed: Vec<Line<'_>> = lines
            .map(|(index, line)| Line::parse(line).map_err(|fault| fault.at_line(index + 1)))
            .collect::<Result<_, Fault>>()
            .map_err(IomemFault::Malformed)?;
        if parsed.iter().all(|line| line.start == 0 && line.last == 0) {
            return Err(if parsed.is_empty() {
                IomemFault::Malformed(Fault::new("", "a table of resources"))
            } else {
                IomemFault::Hidden
            });
        }
        let mut lines = parsed.into_iter().peekable();
        let resources = level(&mut lines, 0, 0).map_err(IomemFault::Malformed)?;
        Ok(Self { resources })
    }

    /// Every resource, each before those inside it.
    pub fn walk(&self) -> impl Iterator<Item = &Resource> {
        let mut open: Vec<&Resource> = self.resources.iter().rev().collect();
        std::iter::from_fn(move || {
            let next = open.pop()?;
            open.extend(next.children.iter().rev());
            Some(next)
        })
    }

    /// Ranges of every resource of this name, in the order of the file.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = PhysRange> + 'a {
        self.walk().filter(move |resource| resource.name == name).map(|resource| resource.range)
    }

    /// All memory that the kernel runs on, wherever it is nested: boot memory, hot-added modules, and memory that a
    /// driver added (`System RAM (kmem)`). The kernel's own crash header holds all three.
    pub fn ram(&self) -> RangeVec {
        self.walk().filter(|resource| resource.is_ram()).map(|resource| resource.range).collect()
    }

    /// The crash reservations, lowest first: none, one, or a low and a high one.
    pub fn crash_reservations(&self) -> Vec<PhysRange> {
        let mut found: Vec<PhysRange> = self.named("Crash kernel").collect();
        found.sort_unstable();
        found
    }

    /// The running kernel's code: where its image starts.
    pub fn kernel_code(&self) -> Option<PhysRange> {
        self.named("Kernel code").next()
    }

    /// The running kernel from its code to the end of its zeroed data.
    pub fn kernel_image(&self) -> Option<PhysRange> {
        let end = self.named("Kernel bss").next()?.end();
        PhysRange::new(self.kernel_code()?.start(), end)
    }
}

impl Resource {
    /// Whether the kernel runs on this memory.
    pub fn is_ram(&self) -> bool {
        let driver = self.name.strip_prefix(SYSTEM_RAM);
        driver.is_some_and(|rest| rest.is_empty() || (rest.starts_with(" (") && rest.ends_with(')')))
    }
}

struct Line<'a> {
    depth: usize,
    start: u64,
    last: u64,
    name: &'a str,
}

impl<'a> Line<'a> {
    /// `  start-last : name`, in hex, both ends included, two blanks a level.
    fn parse(line: &'a str) -> Result<Self, Fault> {
        let wanted = "start-last : name";
        let bare = line.trim_start_matches(' ');
        let (range, name) = bare.split_once(" : ").ok_or_else(|| Fault::new(line, wanted))?;
        let (start, last) = range.split_once('-').ok_or_else(|| Fault::new(line, wanted))?;
        let depth = (line.len() - bare.len()) / 2;
        Ok(Self { depth, start: hex(start)?, last: hex(last)?, name: name.trim_end() })
    }

    fn range(&self) -> Result<PhysRange, Fault> {
        PhysRange::from_inclusive(PhysAddr(self.start), PhysAddr(self.last)).ok_or_else(|| {
            Fault::new(
                &format!("{:x}-{:x} : {}", self.start, self.last, self.name),
                "a range that ends past its start",
            )
        })
    }
}

/// Takes the lines of one level and, below each, its children.
fn level<'a>(
    lines: &mut std::iter::Peekable<impl Iterator<Item = Line<'a>>>,
    depth: usize,
    parents: usize,
) -> Result<Vec<Resource>, Fault> {
    let mut resources: Vec<Resource> = Vec::new();
    while let Some(line) = lines.peek() {
        if line.depth < depth {
            break;
        }
        if line.depth > depth
            && let Some(parent) = resources.last_mut()
        {
            if parents >= MAX_DEPTH {
                return Err(Fault::new(line.name, "a table nested less deep"));
            }
            let depth = line.depth;
            parent.children.extend(level(lines, depth, parents + 1)?);
            continue;
        }
        let range = line.range()?;
        resources.push(Resource { range, name: line.name.to_owned(), children: Vec::new() });
        lines.next();
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Boot memory with the kernel and a low reservation in it, high memory with the other reservation, a hot-added
    /// module, and memory that two drivers manage, one of them below its device's range.
    const MACHINE: &str = "\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-3ffdefff : System RAM
  1a600000-1b401d31 : Kernel code
  1c90d000-1d9fffff : Kernel bss
  2f000000-3effffff : Crash kernel
b0000000-bfffffff : PCI MMCONFIG 0000 [bus 00-ff]
  b0000000-bfffffff : Reserved
    b0000000-bfffffff : pnp 00:06
100000000-1ffffffff : System RAM
  1ef000000-1feffffff : Crash kernel
200000000-21fffffff : System RAM
240000000-27fffffff : Persistent Memory
  240000000-27fffffff : dax0.0
    248000000-27fffffff : System RAM (kmem)
280000000-2bfffffff : virtio0
  280000000-287ffffff : System RAM (virtio_mem)
2c0000000-2cfffffff : System RAMdisk
";

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap()
    }

    #[test]
    fn tree() {
        let iomem = Iomem::parse(MACHINE).unwrap();
        let names = |resources: &[Resource]| resources.iter().map(|one| one.name.clone()).collect::<Vec<_>>();
        assert_eq!(iomem.resources.len(), 9);
        assert_eq!(names(&iomem.resources[2].children), ["Kernel code", "Kernel bss", "Crash kernel"]);
        assert_eq!(names(&iomem.resources[3].children), ["Reserved"]);
        assert_eq!(names(&iomem.resources[3].children[0].children), ["pnp 00:06"]);
        let in_order: Vec<String> = iomem.walk().map(|one| one.name.clone()).collect();
        let in_file: Vec<&str> = MACHINE.lines().map(|line| line.split_once(" : ").unwrap().1).collect();
        assert_eq!(in_order, in_file);
    }

    #[test]
    fn memory_and_what_is_in_it() {
        let iomem = Iomem::parse(MACHINE).unwrap();
        let ram = [
            range(0x1000, 0x9_fc00),
            range(0x10_0000, 0x3ffd_f000),
            range(0x1_0000_0000, 0x2_2000_0000),
            range(0x2_4800_0000, 0x2_8800_0000),
        ];
        assert_eq!(iomem.ram().as_slice(), ram);
        let reserved = [range(0x2f00_0000, 0x3f00_0000), range(0x1_ef00_0000, 0x1_ff00_0000)];
        assert_eq!(iomem.crash_reservations(), reserved);
        assert_eq!(iomem.kernel_code(), Some(range(0x1a60_0000, 0x1b40_1d32)));
        assert_eq!(iomem.kernel_image(), Some(range(0x1a60_0000, 0x1da0_0000)));
    }

    #[test]
    fn wrong_texts() {
        assert_eq!(Iomem::parse("00000000-00000000 : System RAM\n"), Err(IomemFault::Hidden));
        let cases = [
            ("", None, "", "a table of resources"),
            ("0-1 : a\nno range", Some(2), "no range", "start-last : name"),
            ("0-1 : a\n\n12 : b", Some(3), "12 : b", "start-last : name"),
            ("x-1 : a", Some(1), "x", "a hexadecimal number of at most 64 bits"),
            ("5-4 : a", None, "5-4 : a", "a range that ends past its start"),
            ("0-ffffffffffffffff : a", None, "0-ffffffffffffffff : a", "a range that ends past its start"),
        ];
        for (text, line, found, wanted) in cases {
            let fault = Fault { line, found: found.to_owned(), wanted };
            assert_eq!(Iomem::parse(text), Err(IomemFault::Malformed(fault)), "{text:?}");
        }
    }

    #[test]
    fn too_deep_is_refused() {
        let text: String =
            (0..=MAX_DEPTH + 1).map(|depth| format!("{:1$}1-2 : a\n", "", 2 * depth)).collect();
        let Err(IomemFault::Malformed(fault)) = Iomem::parse(&text) else { panic!("taken") };
        assert_eq!(fault.wanted, "a table nested less deep");
    }

    fn trees(depth: u32) -> impl Strategy<Value = Vec<Resource>> {
        let name =
            "[A-Za-z][A-Za-z0-9 :()]{0,12}[a-z)]".prop_filter("separator", |name| !name.contains(" : "));
        let leaf = (any::<u32>(), 0..1u64 << 40, name).prop_map(|(start, len, name)| {
            let range =
                PhysRange::from_inclusive(PhysAddr(u64::from(start)), PhysAddr(u64::from(start) + len + 1));
            Resource { range: range.unwrap(), name, children: Vec::new() }
        });
        let tree = leaf.prop_recursive(depth, 24, 4, |inner| {
            (inner.clone(), prop::collection::vec(inner, 0..4))
                .prop_map(|(parent, children)| Resource { children, ..parent })
        });
        prop::collection::vec(tree, 1..6)
    }

    fn write(resources: &[Resource], depth: usize, text: &mut String) {
        for one in resources {
            let (start, last) = (one.range.start().0, one.range.end().0 - 1);
            text.push_str(&format!("{:2$}{start:08x}-{last:08x} : {}\n", "", one.name, 2 * depth));
            write(&one.children, depth + 1, text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(resources in trees(4)) {
            let mut text = String::new();
            write(&resources, 0, &mut text);
            prop_assert_eq!(Iomem::parse(&text), Ok(Iomem { resources }));
        }

        #[test]
        fn any_text_is_taken_or_refused(text in "([ ]{0,6}[0-9a-f]{0,17}-?[0-9a-f]{0,9}( : |:)[A-Za-z ]{0,8}\n?){0,8}") {
            if let Ok(iomem) = Iomem::parse(&text) {
                prop_assert_eq!(iomem.walk().count(), text.lines().filter(|line| !line.trim().is_empty()).count());
            }
        }
    }
}
