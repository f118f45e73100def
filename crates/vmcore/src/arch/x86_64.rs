//! x86_64 page tables.

use elfcorehdr::PhysAddr;

use super::{PRSTATUS_REGISTERS, Registers};
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

    /// Where the tables are that the top one points to, for the upper half of the addresses.
    pub(crate) fn upper_tables<S: ReadAt>(&self, memory: &CachedMemory<'_, S>) -> Vec<PhysAddr> {
        let top = self.top.0 & self.address_bits;
        let entries = (256..512).map_while(|index| memory.read_u64(PhysAddr(top + index * 8)).ok());
        let present = entries.filter(|entry| entry & PRESENT != 0);
        present.map(|entry| PhysAddr(entry & self.address_bits)).collect()
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
