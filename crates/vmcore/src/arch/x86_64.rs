//! x86_64 page tables.

use std::cell::RefCell;

use elfcorehdr::PhysAddr;

use crate::elf::{Core, CoreError};
use crate::source::{ReadAt, VirtAddr, VirtualMemory};
use crate::vmcoreinfo::VmcoreInfo;

/// Where the kernel image is linked to (__START_KERNEL_map).
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// Bits 12 to 51 of an entry are the physical address.
const ADDRESS_BITS: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
/// On levels 2 and 3: the entry maps a large page.
const LARGE: u64 = 1 << 7;
const PAGE: u64 = crate::PAGE as u64;
/// Pages kept after a read: a walk touches up to five tables, a log record three places.
const CACHE_SLOTS: usize = 16;

/// The crashed kernel's address space, read through its own page tables.
pub struct AddressSpace<'a, S> {
    core: &'a Core<S>,
    top: PhysAddr,
    levels: u8,
    address_bits: u64,
    cache: RefCell<Cache>,
}

/// The pages read last, by page frame number; a read of eight bytes out of /proc/vmcore costs as much as one of a page.
struct Cache {
    pages: Vec<(u64, Box<[u8; crate::PAGE]>)>,
    next: usize,
}

impl<'a, S: ReadAt> AddressSpace<'a, S> {
    /// The address space of the kernel that `info` describes.
    ///
    /// # Errors
    /// [`CoreError::Info`] where vmcoreinfo has not what translation needs.
    pub fn new(core: &'a Core<S>, info: &VmcoreInfo) -> Result<Self, CoreError> {
        let top = info.symbol("init_top_pgt").or_else(|_| info.symbol("swapper_pg_dir"))?;
        let phys_base = info.number("phys_base")?;
        // Absent on kernels that know neither; a value of 0 says the same.
        let five_levels = info.number("pgtable_l5_enabled").unwrap_or(0) != 0;
        let encryption = info.number("sme_mask").unwrap_or(0);
        Ok(Self {
            core,
            top: PhysAddr(top.0.wrapping_sub(KERNEL_MAP).wrapping_add(phys_base)),
            levels: if five_levels { 5 } else { 4 },
            address_bits: ADDRESS_BITS & !encryption,
            cache: RefCell::new(Cache { pages: Vec::with_capacity(CACHE_SLOTS), next: 0 }),
        })
    }

    /// The physical address behind `address`, and how many bytes from there are mapped in one piece.
    ///
    /// # Errors
    /// [`CoreError::NotMapped`], or a page table that cannot be read.
    pub fn translate(&self, address: VirtAddr) -> Result<(PhysAddr, u64), CoreError> {
        let mut table = self.top.0 & self.address_bits;
        let mut level = self.levels;
        loop {
            // A level's entry spans 4 KiB at level 1 and 512 times as much at each level above.
            let shift = 12 + 9 * (u32::from(level) - 1);
            let index = (address.0 >> shift) & 511;
            let entry = self.read_entry(PhysAddr(table + index * 8))?;
            if entry & PRESENT == 0 {
                return Err(CoreError::NotMapped { address, level, entry });
            }
            if level == 1 || (entry & LARGE != 0 && level <= 3) {
                let within = (1u64 << shift) - 1;
                let frame = entry & self.address_bits & !within;
                return Ok((PhysAddr(frame | (address.0 & within)), within - (address.0 & within) + 1));
            }
            table = entry & self.address_bits;
            level -= 1;
        }
    }

    fn read_entry(&self, address: PhysAddr) -> Result<u64, CoreError> {
        let mut bytes = [0; 8];
        self.read_cached(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads within one page, through the cache.
    fn read_cached(&self, address: PhysAddr, buf: &mut [u8]) -> Result<(), CoreError> {
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
            self.read_cached(phys, part)?;
            rest = after;
            address = VirtAddr(address.0.wrapping_add(now as u64));
        }
        Ok(())
    }
}
