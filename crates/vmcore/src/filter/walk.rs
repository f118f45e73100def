//! The walk over all `struct page`s: mem_section, its roots, the sections, and each section's array.

use std::ops::Range;

use elfcorehdr::PhysAddr;

use super::layout::Layout;
use super::order::TaskSlabs;
use super::page::{Pages, Use};
use super::to_usize;
use crate::bitmap::{Bitmap, Frame};
use crate::elf::{Core, CoreError};
use crate::source::{ReadAt, VirtAddr, VirtualMemory};
use crate::space::AddressSpace;
use crate::vmcoreinfo::{InfoError, VmcoreInfo};

/// How much of an array is looked at at once, in bytes.
const CHUNK: usize = 2 << 20;

/// Flags in the lowest bits of `section_mem_map` (include/linux/mmzone.h): the section is there; its array is; its memory is in use;
/// it was there at boot (since 5.3); the flags themselves.
const PRESENT: u64 = 1;
const HAS_MEM_MAP: u64 = 2;
const ONLINE: u64 = 4;
const EARLY: u64 = 8;
/// Six bits: SECTION_IS_VMEMMAP_PREINIT is the sixth on kernels that have it, and arrays are aligned to more.
const FLAGS: u64 = 0x3f;

/// The most sections that a machine can have by what is believed here: 2^52 bytes in sections of 16 MiB.
const MAX_SECTIONS: u64 = 1 << 28;

/// The sections of a kernel: where they are, and how many pages each has.
pub(super) struct Sections {
    roots: VirtAddr,
    root_count: u64,
    per_root: u64,
    size: u64,
    mem_map: u64,
    pages: u64,
}

impl Sections {
    pub(super) fn of(info: &VmcoreInfo, page_size: u64) -> Result<Self, InfoError> {
        let wrong = |key: &str, value: u64| InfoError::NotANumber {
            key: key.into(),
            value: format!("{value}, which cannot be"),
        };
        let size = info.size("mem_section")?;
        let root_count = info.length("mem_section")?;
        let bits = info.number("SECTION_SIZE_BITS")?;
        let shift = page_size.trailing_zeros();
        let pages = bits.checked_sub(u64::from(shift)).filter(|bits| *bits < 30).map(|bits| 1u64 << bits);
        let pages = pages.ok_or_else(|| wrong("NUMBER(SECTION_SIZE_BITS)", bits))?;
        // Kernels with SPARSEMEM_EXTREME have pages of them, the others one root for each.
        let per_root = if (8..=page_size).contains(&size) { page_size / size } else { 0 };
        if per_root == 0 {
            return Err(wrong("SIZE(mem_section)", size));
        }
        if root_count > MAX_SECTIONS / per_root {
            return Err(wrong("LENGTH(mem_section)", root_count));
        }
        let (roots, mem_map) = (info.symbol("mem_section")?, info.offset("mem_section.section_mem_map")?);
        if mem_map > size - 8 {
            return Err(wrong("OFFSET(mem_section.section_mem_map)", mem_map));
        }
        Ok(Self { roots, root_count, per_root, size, mem_map, pages })
    }

    /// Calls `found` with the number of each section that has an array, and with the array's address.
    pub(super) fn each(
        &self,
        memory: &impl VirtualMemory,
        mut found: impl FnMut(u64, VirtAddr),
    ) -> Result<(), CoreError> {
        self.each_map(memory, |section, map| {
            if map & PRESENT != 0 && map & HAS_MEM_MAP != 0 {
                found(section, VirtAddr(map & !FLAGS));
            }
        })
    }

    /// Calls `found` with the number of each section whose memory is in use, and was not there at boot.
    pub(super) fn each_added(
        &self,
        memory: &impl VirtualMemory,
        mut found: impl FnMut(u64),
    ) -> Result<(), CoreError> {
        self.each_map(memory, |section, map| {
            if map & (PRESENT | ONLINE | EARLY) == PRESENT | ONLINE {
                found(section);
            }
        })
    }

    /// Calls `found` with the number of each section that there could be, and with its `section_mem_map`.
    fn each_map(
        &self,
        memory: &impl VirtualMemory,
        mut found: impl FnMut(u64, u64),
    ) -> Result<(), CoreError> {
        let mut roots = vec![0; 4096];
        let mut root = vec![0; to_usize(self.per_root * self.size)];
        let mut number = 0;
        while number < self.root_count {
            let now = (self.root_count - number).min(roots.len() as u64 / 8);
            let part = &mut roots[..to_usize(now * 8)];
            memory.read_virt(offset(self.roots, number * 8), part)?;
            for (index, pointer) in part.chunks_exact(8).enumerate() {
                let pointer = u64_of(pointer);
                if pointer == 0 {
                    continue;
                }
                memory.read_virt(VirtAddr(pointer), &mut root)?;
                let first = (number + index as u64) * self.per_root;
                for (section, entry) in (first..).zip(root.chunks_exact(to_usize(self.size))) {
                    found(section, u64_of(&entry[to_usize(self.mem_map)..]));
                }
            }
            number += now;
        }
        Ok(())
    }

    /// Where the first root lies that holds sections; none where the kernel keeps them all in one place.
    pub(super) fn root(&self, memory: &impl VirtualMemory) -> Option<VirtAddr> {
        let roots =
            (0..self.root_count).map_while(|number| memory.read_u64(offset(self.roots, number * 8)).ok());
        { roots }.find(|root| *root != 0).map(VirtAddr)
    }

    /// The frames of a section.
    pub(super) fn frames(&self, section: u64) -> Range<u64> {
        section * self.pages..(section + 1) * self.pages
    }
}

/// Looks at all pages, lowest first.
pub(super) struct Walk<'a, S> {
    core: &'a Core<S>,
    memory: &'a AddressSpace<'a, S>,
    layout: &'a Layout,
    tasks: &'a TaskSlabs,
    page_size: u64,
    chunk: Vec<u8>,
    /// The frames that hold page structures.
    pub(super) arrays: Bitmap,
    /// Up to where what was found last holds: compound and free pages can be larger than a section.
    until: u64,
    last: Use,
}

impl<'a, S: ReadAt> Walk<'a, S> {
    pub(super) fn new(
        core: &'a Core<S>,
        memory: &'a AddressSpace<'a, S>,
        layout: &'a Layout,
        tasks: &'a TaskSlabs,
        page_size: u64,
    ) -> Self {
        let arrays = Bitmap::new();
        Self {
            core,
            memory,
            layout,
            tasks,
            page_size,
            chunk: Vec::new(),
            arrays,
            until: 0,
            last: Use::Kernel,
        }
    }

    /// Looks at the pages `frames`, whose array's address is, as the kernel has it, that of the page with frame number 0, and calls
    /// `found` with runs of frames of one use.
    pub(super) fn section(
        &mut self,
        frames: Range<u64>,
        map: VirtAddr,
        found: &mut impl FnMut(Range<Frame>, Use),
    ) -> Result<(), CoreError> {
        let size = self.layout.size as u64;
        let at_once = CHUNK as u64 / size;
        let mut first = frames.start;
        while first < frames.end {
            let count = at_once.min(frames.end - first);
            let mut chunk = std::mem::take(&mut self.chunk);
            chunk.resize(to_usize(count * size), 0);
            let read = self.read(offset(map, first.wrapping_mul(size)), &mut chunk);
            if read.is_ok() {
                self.pages(&Pages { layout: self.layout, tasks: self.tasks, bytes: &chunk, first }, found);
            }
            self.chunk = chunk;
            read?;
            first += count;
        }
        Ok(())
    }

    fn pages(&mut self, pages: &Pages<'_>, found: &mut impl FnMut(Range<Frame>, Use)) {
        let end = pages.first + pages.count() as u64;
        let mut found = |frames: Range<u64>, what| {
            if !frames.is_empty() {
                found(Frame(frames.start)..Frame(frames.end), what);
            }
        };
        let mut run = (pages.first..pages.first, self.last);
        let mut at = pages.first;
        while at < end {
            if at >= self.until {
                // Within the chunk there is a page at each index.
                let (what, count) = pages.look(to_usize(at - pages.first)).unwrap_or((Use::Kernel, 1));
                (self.last, self.until) = (what, at + count);
            }
            let stop = self.until.min(end);
            if self.last != run.1 {
                found(run.0, run.1);
                run = (at..stop, self.last);
            } else {
                run.0.end = stop;
            }
            at = stop;
        }
        found(run.0, run.1);
    }

    /// Reads by virtual address as much at once as is mapped in one piece: arrays are mapped by large pages.
    fn read(&mut self, address: VirtAddr, buf: &mut [u8]) -> Result<(), CoreError> {
        let (mut address, mut rest) = (address, buf);
        while !rest.is_empty() {
            let (phys, mapped) = self.memory.translate(address)?;
            let now = usize::try_from(mapped).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = rest.split_at_mut(now);
            self.core.read_phys_mapped(phys, part)?;
            let last = PhysAddr(phys.0 + part.len().saturating_sub(1) as u64);
            let frames =
                Frame::holding(phys, self.page_size)..Frame(Frame::holding(last, self.page_size).0 + 1);
            self.arrays.insert_range(frames);
            rest = after;
            address = offset(address, now as u64);
        }
        Ok(())
    }
}

fn offset(address: VirtAddr, bytes: u64) -> VirtAddr {
    VirtAddr(address.0.wrapping_add(bytes))
}

fn u64_of(bytes: &[u8]) -> u64 {
    bytes.first_chunk().copied().map(u64::from_le_bytes).unwrap_or(0)
}
