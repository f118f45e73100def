//! The crashed kernel's memory by its virtual addresses.

use std::cell::RefCell;

use elfcorehdr::PhysAddr;

use crate::arch::x86_64::PageTables;
use crate::arch::{Mapped, Mapping, ppc64};
use crate::elf::{Core, CoreError};
use crate::source::{ReadAt, VirtAddr, VirtualMemory};
use crate::vmcoreinfo::VmcoreInfo;

const PAGE: u64 = crate::PAGE as u64;
/// Pages kept after a read: a walk touches up to five tables, a log record three places.
const CACHE_SLOTS: usize = 16;

/// The crashed kernel's address space.
pub struct AddressSpace<'a, S> {
    memory: CachedMemory<'a, S>,
    translation: Translation,
}

/// How a machine's kernel maps its memory.
enum Translation {
    PageTables(PageTables),
    Ppc64(ppc64::Kernel),
}

impl<'a, S: ReadAt> AddressSpace<'a, S> {
    /// The address space of the kernel that `info` describes.
    ///
    /// # Errors
    /// [`CoreError::Info`] where vmcoreinfo has not what translation needs.
    pub fn new(core: &'a Core<S>, info: &VmcoreInfo) -> Result<Self, CoreError> {
        let memory = CachedMemory::new(core);
        let translation = match core.mapping() {
            Mapping::PageTables => Translation::PageTables(PageTables::new(info)?),
            Mapping::Ppc64 => Translation::Ppc64(ppc64::Kernel::new(&memory, info)),
        };
        Ok(Self { memory, translation })
    }

    /// The physical address behind `address`, and how many bytes from there are mapped in one piece.
    ///
    /// # Errors
    /// [`CoreError::NotMapped`], [`CoreError::NotLinear`], or a page table that cannot be read.
    pub fn translate(&self, address: VirtAddr) -> Result<(PhysAddr, u64), CoreError> {
        match &self.translation {
            Translation::PageTables(tables) => tables.translate(&self.memory, address),
            Translation::Ppc64(kernel) => kernel.translate(&self.memory, address),
        }
    }

    /// Calls `found` for each of the kernel's page tables, and for all memory that they map outside of the linear map. Where that begins on a
    /// machine with `memory` bytes at most is told by `in_linear`, any address in it.
    pub(crate) fn each_mapped(&self, in_linear: VirtAddr, memory: u64, found: &mut dyn FnMut(Mapped)) {
        match &self.translation {
            Translation::PageTables(tables) => {
                let Ok((phys, _)) = tables.translate(&self.memory, in_linear) else { return };
                let start = in_linear.0.wrapping_sub(phys.0);
                tables.each(&self.memory, &(start..start.saturating_add(memory)), found);
            }
            Translation::Ppc64(kernel) => kernel.each(&self.memory, found),
        }
    }
}

/// Physical memory, with the pages read last kept: a read of eight bytes out of /proc/vmcore costs as much as one of a page.
pub(crate) struct CachedMemory<'a, S> {
    core: &'a Core<S>,
    cache: RefCell<Cache>,
}

/// Pages by page frame number.
struct Cache {
    pages: Vec<(u64, Box<[u8; crate::PAGE]>)>,
    next: usize,
}

impl<'a, S: ReadAt> CachedMemory<'a, S> {
    fn new(core: &'a Core<S>) -> Self {
        Self { core, cache: RefCell::new(Cache { pages: Vec::with_capacity(CACHE_SLOTS), next: 0 }) }
    }

    /// The core that it is in.
    pub(crate) fn core(&self) -> &'a Core<S> {
        self.core
    }

    /// The 64-bit little-endian number at `address`, which does not cross a page's end.
    pub(crate) fn read_u64(&self, address: PhysAddr) -> Result<u64, CoreError> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads within one page, through the cache.
    fn read(&self, address: PhysAddr, buf: &mut [u8]) -> Result<(), CoreError> {
        let within = (address.0 % PAGE) as usize;
        let frame = address.0 / PAGE;
        let mut cache = self.cache.borrow_mut();
        let missing = || CoreError::NotInCore { address, wanted: buf.len() };
        let end = within.checked_add(buf.len()).ok_or_else(missing)?;
        let page = match cache.find(frame) {
            Some(page) => page,
            None => {
                let mut page = Box::new([0; crate::PAGE]);
                if self.core.read_phys(PhysAddr(frame * PAGE), page.as_mut_slice()).is_err() {
                    // The page may lie in the core only in part.
                    drop(cache);
                    return self.core.read_phys(address, buf);
                }
                cache.keep(frame, page)
            }
        };
        buf.copy_from_slice(page.get(within..end).ok_or_else(missing)?);
        Ok(())
    }
}

impl Cache {
    fn find(&self, frame: u64) -> Option<&[u8; crate::PAGE]> {
        self.pages.iter().find(|(kept, _)| *kept == frame).map(|(_, page)| &**page)
    }

    /// Keeps a page, in place of the oldest one once all slots are taken.
    fn keep(&mut self, frame: u64, page: Box<[u8; crate::PAGE]>) -> &[u8; crate::PAGE] {
        let slot = if self.pages.len() < CACHE_SLOTS {
            self.pages.push((frame, page));
            self.pages.len() - 1
        } else {
            let slot = self.next;
            self.next = (slot + 1) % CACHE_SLOTS;
            self.pages[slot] = (frame, page);
            slot
        };
        &self.pages[slot].1
    }
}

impl<S: ReadAt> VirtualMemory for AddressSpace<'_, S> {
    fn read_virt(&self, address: VirtAddr, buf: &mut [u8]) -> Result<(), CoreError> {
        let mut address = address;
        let mut rest = buf;
        while !rest.is_empty() {
            let (phys, mapped) = self.translate(address)?;
            let now = (PAGE - phys.0 % PAGE).min(mapped).min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at_mut(now);
            self.memory.read(phys, part)?;
            rest = after;
            address = VirtAddr(address.0.wrapping_add(now as u64));
        }
        Ok(())
    }
}
