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
