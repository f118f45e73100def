//! x86_64 page tables.

use elfcorehdr::PhysAddr;

use std::ops::Range;

use super::{Mapped, PRSTATUS_REGISTERS, Registers, Seen};
use crate::elf::CoreError;
use crate::source::{ReadAt, VirtAddr};
use crate::space::CachedMemory;
use crate::vmcoreinfo::VmcoreInfo;

/// struct user_regs_struct: rip is the 17th of its words, rsp the 20th.
pub(crate) const REGISTERS: Registers = Registers {
    ip: PRSTATUS_REGISTERS + 16 * 8,
    sp: PRSTATUS_REGISTERS + 19 * 8,
    names: &[
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi",
        "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
    ],
};

/// Where the kernel image is linked to (__START_KERNEL_map).
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// Bits 12 to 51 of an entry are the physical address.
const ADDRESS_BITS: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
const PAGE: u64 = 1 << 12;
/// On levels 2 and 3: the entry maps a large page.
const LARGE: u64 = 1 << 7;

/// Where the crashed kernel's own page tables are, and of what kind.
pub(crate) struct PageTables {
    top: PhysAddr,
    levels: u8,
    address_bits: u64,
}

impl PageTables {
    /// The page tables of the kernel that `info` describes.
    pub(crate) fn new(info: &VmcoreInfo) -> Result<Self, CoreError> {
        let top = info.symbol("init_top_pgt").or_else(|_| info.symbol("swapper_pg_dir"))?;
        let phys_base = info.number("phys_base")?;
        // Absent on kernels that know neither; a value of 0 says the same.
        let five_levels = info.number("pgtable_l5_enabled").unwrap_or(0) != 0;
        let encryption = info.number("sme_mask").unwrap_or(0);
        Ok(Self {
            top: PhysAddr(top.0.wrapping_sub(KERNEL_MAP).wrapping_add(phys_base)),
            levels: if five_levels { 5 } else { 4 },
            address_bits: ADDRESS_BITS & !encryption,
        })
    }

    /// Calls `found` for every page table of the kernel's half of the addresses, and for all memory that is mapped there outside of `linear`.
    /// What cannot be read is passed over.
    pub(crate) fn each<S: ReadAt>(
        &self,
        memory: &CachedMemory<'_, S>,
        linear: &Range<u64>,
        found: &mut dyn FnMut(Mapped),
    ) {
        let top = PhysAddr(self.top.0 & self.address_bits);
        // The addresses of the upper half begin with ones.
        let upper = u64::MAX << (12 + 9 * u32::from(self.levels) - 1);
        self.each_in(memory, (top, self.levels, upper, 256), linear, &mut Seen::default(), found);
    }

    /// The same for a table: its address, its level, the first address that it maps if all its entries are used, the first entry that is.
    fn each_in<S: ReadAt>(
        &self,
        memory: &CachedMemory<'_, S>,
        (table, level, start, first): (PhysAddr, u8, u64, u64),
        linear: &Range<u64>,
        seen: &mut Seen,
        found: &mut dyn FnMut(Mapped),
    ) {
        found(Mapped::Table(table, PAGE, self.levels - level));
        // Of the linear map all but the lowest tables are needed to find those.
        if level == 1 && linear.contains(&start) || !seen.is_new(table) {
            return;
        }
        let mut entries = [0; PAGE as usize];
        if memory.core().read_phys(table, &mut entries).is_err() {
            return;
        }
        let shift = 12 + 9 * (u32::from(level) - 1);
        let entries = entries.as_chunks().0.iter().map(|entry| u64::from_le_bytes(*entry));
        for (index, entry) in (0..).zip(entries).skip(first as usize) {
            if entry & PRESENT == 0 {
                continue;
            }
            // The upper half's addresses begin with its first entry.
            let at = start.wrapping_add((index - first) << shift);
            let target = PhysAddr(entry & self.address_bits);
            if level > 1 && (entry & LARGE == 0 || level > 3) {
                self.each_in(memory, (target, level - 1, at, 0), linear, seen, found);
            } else if !linear.contains(&at) {
                let within = (1u64 << shift) - 1;
                found(Mapped::Memory(PhysAddr(target.0 & !within), within + 1));
            }
        }
    }

    /// The physical address behind `address`, and how many bytes from there are mapped in one piece.
    pub(crate) fn translate<S: ReadAt>(
        &self,
        memory: &CachedMemory<'_, S>,
        address: VirtAddr,
    ) -> Result<(PhysAddr, u64), CoreError> {
        let mut table = self.top.0 & self.address_bits;
        let mut level = self.levels;
        loop {
            // A level's entry spans 4 KiB at level 1 and 512 times as much at each level above.
            let shift = 12 + 9 * (u32::from(level) - 1);
            let index = (address.0 >> shift) & 511;
            let entry = memory.read_u64(PhysAddr(table + index * 8))?;
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
}
