//! ppc64: the linear map, and the kernel's page tables where they are radix ones.
//!
//! The kernel image lies in the linear map, and so do the rings of the kernel log, be they static or allocated
//! (by memblock) for `log_buf_len=`: these are read with either kind of page tables. The array of struct page and what is vmalloc'ed lie
//! elsewhere, and are read of kernels with radix tables; hash tables are not walked.

use elfcorehdr::PhysAddr;

use super::{Mapped, PRSTATUS_REGISTERS, Registers, Seen};
use crate::elf::CoreError;
use crate::source::{ReadAt, VirtAddr};
use crate::space::CachedMemory;
use crate::vmcoreinfo::VmcoreInfo;

/// struct pt_regs: 32 general registers, of which r1 is the stack pointer, then the next instruction's address.
pub(crate) const REGISTERS: Registers = Registers {
    ip: PRSTATUS_REGISTERS + 32 * 8,
    sp: PRSTATUS_REGISTERS + 8,
    names: &[
        "r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
        "r16", "r17", "r18", "r19", "r20", "r21", "r22", "r23", "r24", "r25", "r26", "r27", "r28", "r29",
        "r30", "r31", "nip", "msr", "orig_r3", "ctr", "lr", "xer", "ccr", "softe", "trap", "dar", "dsisr",
        "result",
    ],
};

/// Where the linear map starts (PAGE_OFFSET), and how long it can be: the first 51 bits, with either kind of page tables
/// and either size of pages (arch/powerpc/include/asm/book3s/64: {hash,radix}-{4k,64k}.h, H_KERN_MAP_SIZE and RADIX_KERN_MAP_SIZE).
const LINEAR_MAP: u64 = 0xc000_0000_0000_0000;
const LINEAR_SIZE: u64 = 1 << 51;

/// The physical address behind `address` of the linear map, and how many bytes from there are mapped in one piece.
///
/// # Errors
/// [`CoreError::NotLinear`].
pub(crate) fn linear(address: VirtAddr) -> Result<(PhysAddr, u64), CoreError> {
    let phys = address.0.checked_sub(LINEAR_MAP).filter(|phys| *phys < LINEAR_SIZE);
    let phys = phys.ok_or(CoreError::NotLinear { address })?;
    Ok((PhysAddr(phys), LINEAR_SIZE - phys))
}

/// Bits of an entry, which is a big-endian number on any kernel (Power ISA 3.0, "Radix Tree Translation";
/// arch/powerpc/include/asm/book3s/64/pgtable.h): it is valid; it maps a page and is no table.
const VALID: u64 = 1 << 63;
const LEAF: u64 = 1 << 62;
/// The physical address in an entry for a table, and in one for a page.
const TABLE_BITS: u64 = 0x0fff_ffff_ffff_ff00;
const PAGE_BITS: u64 = (1 << 57) - 0x1000;
/// How many bits of an address choose the entry on levels 2, 3 and 4 (radix.h: RADIX_{PMD,PUD,PGD}_INDEX_SIZE).
const UPPER_INDEX: [u32; 3] = [9, 9, 13];

/// The kernel's radix page tables.
pub(crate) struct Radix {
    top: PhysAddr,
    /// Level 1 first: how far an address is shifted to have its index, and how many bits that has.
    levels: [(u32, u32); 4],
}

impl Radix {
    /// The page tables of the kernel that `info` describes; none where they are of another kind, or not told of.
    pub(crate) fn new(info: &VmcoreInfo) -> Option<Self> {
        if info.number("RADIX_MMU") != Ok(1) {
            return None;
        }
        let (top, _) = linear(info.symbol("swapper_pg_dir").ok()?).ok()?;
        // RADIX_PTE_INDEX_SIZE of either page size.
        let (shift, index) = match info.get("PAGESIZE")? {
            "4096" => (12, 9),
            "65536" => (16, 5),
            _ => return None,
        };
        let mut levels = [(shift, index); 4];
        for level in 1..4 {
            let (below, bits) = levels[level - 1];
            levels[level] = (below + bits, UPPER_INDEX[level - 1]);
        }
        Some(Self { top, levels })
    }

    /// Calls `found` for every page table, and for all memory that is mapped outside of the linear map. What cannot be read is passed over.
    pub(crate) fn each<S: ReadAt>(&self, memory: &CachedMemory<'_, S>, found: &mut dyn FnMut(Mapped)) {
        self.each_in(memory, (self.top, 4, LINEAR_MAP), &mut Seen::default(), found);
    }

    /// The same for a table: its address, its level, the first address that it maps.
    fn each_in<S: ReadAt>(
        &self,
        memory: &CachedMemory<'_, S>,
        (table, level, start): (PhysAddr, usize, u64),
        seen: &mut Seen,
        found: &mut dyn FnMut(Mapped),
    ) {
        let (shift, bits) = self.levels[level - 1];
        found(Mapped::Table(table, 8 << bits, 4 - level as u8));
        let is_linear = |at| linear(VirtAddr(at)).is_ok();
        if level == 1 && is_linear(start) || !seen.is_new(table) {
            return;
        }
        let mut entries = vec![0; 8 << bits];
        if memory.core().read_phys(table, &mut entries).is_err() {
            return;
        }
        let entries = entries.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry));
        for (index, entry) in (0u64..).zip(entries) {
            let at = start.wrapping_add(index << shift);
            if entry & VALID == 0 {
                continue;
            }
            if entry & LEAF == 0 && level > 1 {
                self.each_in(memory, (PhysAddr(entry & TABLE_BITS), level - 1, at), seen, found);
            } else if entry & LEAF != 0 && !is_linear(at) {
                let within = (1u64 << shift) - 1;
                found(Mapped::Memory(PhysAddr(entry & PAGE_BITS & !within), within + 1));
            }
        }
    }

    /// The physical address behind `address`, and how many bytes from there are mapped in one piece.
    pub(crate) fn translate<S: ReadAt>(
        &self,
        memory: &CachedMemory<'_, S>,
        address: VirtAddr,
    ) -> Result<(PhysAddr, u64), CoreError> {
        let mut table = self.top.0;
        let mut entry = 0;
        for (level, &(shift, bits)) in (1u8..=4).zip(&self.levels).rev() {
            let index = (address.0 >> shift) & ((1 << bits) - 1);
            entry = memory.read_u64(PhysAddr(table + index * 8))?.swap_bytes();
            if entry & VALID == 0 {
                return Err(CoreError::NotMapped { address, level, entry });
            }
            if entry & LEAF != 0 {
                let within = (1u64 << shift) - 1;
                let frame = entry & PAGE_BITS & !within;
                return Ok((PhysAddr(frame | (address.0 & within)), within - (address.0 & within) + 1));
            }
            table = entry & TABLE_BITS;
        }
        // An entry of the lowest level that says it is for a table.
        Err(CoreError::NotMapped { address, level: 1, entry })
    }
}
