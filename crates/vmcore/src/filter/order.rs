//! What a dump that is cut short needs most: the kernel's data, its page tables, what it maps for itself (the stacks of tasks, its modules),
//! the memory of each CPU, and the slabs that lead to the tasks. All that is written first. The kernel's functions come
//! late, because they are on its disk too, and so do the structures of pages: they are many, and who reads a dump asks for few of them.

use std::ops::Range;

use super::to_usize;
use super::walk::Sections;
use crate::arch::Mapped;
use crate::bitmap::{Bitmap, Frame};
use crate::btf::Btf;
use crate::kallsyms::Symbols;
use crate::source::{ReadAt, VirtAddr, VirtualMemory};
use crate::space::AddressSpace;

/// The kernel's own pointers to the caches whose objects lead to the tasks and tell of them.
const CACHES: [&str; 7] = [
    "task_struct_cachep",
    "radix_tree_node_cachep",
    "signal_cachep",
    "sighand_cachep",
    "mm_cachep",
    "files_cachep",
    "cred_jar",
];

/// The memory of a CPU is not more than this.
const MAX_UNIT: u64 = 1 << 26;
const MAX_UNITS: u32 = 1 << 13;
/// Nor are the kernel's data.
const MAX_IMAGE: u64 = 1 << 30;

/// Slabs whose objects lead to the tasks.
#[derive(Debug, Default)]
pub(super) struct TaskSlabs {
    /// Where the structure of a slab's page points to the slab's cache; none where that is not known, and each slab may be one.
    offset: Option<usize>,
    caches: Vec<u64>,
}

impl TaskSlabs {
    /// Those of the kernel with these symbols and types.
    pub(super) fn of<M: VirtualMemory>(
        memory: &M,
        symbols: Option<&Symbols<'_, M>>,
        btf: Option<&Btf>,
    ) -> Self {
        let (Some(symbols), Some(btf)) = (symbols, btf) else { return Self::default() };
        // A slab has been a structure of its own since 5.17.
        let offset = ["slab", "page"].into_iter().find_map(|name| btf.structure(name)?.offset("slab_cache"));
        let mut caches: Vec<u64> = symbols
            .find(CACHES)
            .into_iter()
            .flatten()
            .filter_map(|place| memory.read_u64(place).ok())
            .collect();
        let pids = symbols.find(["init_pid_ns"])[0].zip(btf.structure("pid_namespace"));
        let pids = pids.and_then(|(space, kind)| {
            memory.read_u64(VirtAddr(space.0.wrapping_add(kind.offset("pid_cachep")?))).ok()
        });
        caches.extend(pids);
        Self { offset: offset.map(to_usize).filter(|_| !caches.is_empty()), caches }
    }

    /// Whether the slab with this page structure is one.
    pub(super) fn has(&self, page: &[u8]) -> bool {
        let Some(offset) = self.offset else { return true };
        let cache = page.get(offset..).and_then(|rest| rest.first_chunk().copied().map(u64::from_le_bytes));
        cache.is_some_and(|cache| self.caches.contains(&cache))
    }
}

/// Frames that the kernel's own mappings lead to.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    /// The page tables themselves.
    pub(super) tables: Bitmap,
    /// All others but those of functions.
    pub(super) frames: Bitmap,
    /// Those that hold the kernel's functions.
    pub(super) functions: Bitmap,
    /// The uppermost tables.
    pub(super) upper_tables: Vec<Frame>,
}

/// Finds what has no page structure of its own to be told by, in a core with frames up to `end`.
pub(super) fn mappings<S: ReadAt>(
    memory: &AddressSpace<'_, S>,
    symbols: Option<&Symbols<'_, AddressSpace<'_, S>>>,
    sections: &Sections,
    (page_size, end): (u64, Frame),
) -> Mappings {
    let mut found = Mappings::default();
    let frames = |at: elfcorehdr::PhysAddr, bytes: u64| {
        let last = elfcorehdr::PhysAddr(at.0.saturating_add(bytes.saturating_sub(1)));
        Frame::holding(at, page_size)..Frame(Frame::holding(last, page_size).0.min(end.0) + 1)
    };
    let mut take = |mapped| match mapped {
        Mapped::Table(at, bytes, depth) => {
            found.tables.insert_range(frames(at, bytes));
            if depth <= 1 {
                found.upper_tables.push(Frame::holding(at, page_size));
            }
        }
        Mapped::Memory(at, bytes) => found.frames.insert_range(frames(at, bytes)),
    };
    // The table of sections is allocated, and so in the linear map.
    if let Some(root) = sections.root(memory) {
        memory.each_mapped(root, end.0.saturating_mul(page_size), &mut take);
    }
    let Some(symbols) = symbols else { return found };
    let pages = |range: Range<u64>| {
        let first = Some(range.start);
        let next = move |at: &u64| at.checked_add(page_size).map(|next| next - next % page_size);
        let pages = std::iter::successors(first, next).take_while(move |at| *at < range.end);
        pages.filter_map(|at| Some(Frame::holding(memory.translate(VirtAddr(at)).ok()?.0, page_size)))
    };
    for range in data(symbols).into_iter().chain(units(symbols, memory)) {
        for frame in pages(range) {
            found.frames.insert(frame);
        }
    }
    for frame in pages(symbols.text()) {
        found.frames.remove(frame);
        found.functions.insert(frame);
    }
    found
}

/// The kernel's data, by virtual addresses.
fn data<M: VirtualMemory>(symbols: &Symbols<'_, M>) -> Option<Range<u64>> {
    let start = symbols.text().end;
    let ends = symbols.find(["_end", "__bss_stop"]);
    let end = ends
        .into_iter()
        .flatten()
        .map(|end| end.0)
        .find(|end| (start..start.saturating_add(MAX_IMAGE)).contains(end))?;
    Some(start..end)
}

/// The memory of each CPU that is not mapped for it alone: the first chunk of the per-CPU allocator, by virtual addresses.
fn units<M: VirtualMemory>(symbols: &Symbols<'_, M>, memory: &M) -> Vec<Range<u64>> {
    let places = symbols.find(["pcpu_base_addr", "pcpu_unit_offsets", "pcpu_nr_units", "pcpu_unit_size"]);
    let read = || {
        let [base, offsets, count, size] = places;
        let (base, offsets) = (memory.read_u64(base?).ok()?, memory.read_u64(offsets?).ok()?);
        let count = memory.read_u32(count?).ok().filter(|count| *count <= MAX_UNITS)?;
        let size = u64::from(memory.read_u32(size?).ok()?);
        let unit = |number: u32| {
            let offset = memory.read_u64(VirtAddr(offsets.wrapping_add(u64::from(number) * 8))).ok()?;
            let start = base.wrapping_add(offset);
            Some(start..start.checked_add(size)?)
        };
        (size <= MAX_UNIT).then(|| (0..count).filter_map(unit).collect())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_that_lead_to_tasks_are_told_by_their_cache() {
        let slabs = TaskSlabs { offset: Some(8), caches: vec![0xc000_0000_0000_1000, 0xc000_0000_0000_2000] };
        let page = |cache: u64| [[0; 8], cache.to_le_bytes(), [0xff; 8]].concat();
        assert!(slabs.has(&page(0xc000_0000_0000_2000)) && !slabs.has(&page(0xc000_0000_0000_3000)));
        assert!(!slabs.has(&[0; 15]), "a page structure that ends before");
        // Where it is not known, none is put behind others.
        assert!(TaskSlabs::default().has(&page(7)));
    }
}
