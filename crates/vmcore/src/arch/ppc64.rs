//! ppc64: the linear map, and Linux's own page tables of the kernel.
//!
//! The kernel image lies in the linear map, and so do the rings of the kernel log, be they static or allocated
//! (by memblock) for `log_buf_len=`. What is vmalloc'ed lies elsewhere. A CPU with radix translation walks the kernel's tables itself; where it
//! translates by a hash table, the kernel fills that from tables of the same kind and other sizes, but for the array of struct page, whose
//! pieces are in a list.

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
/// and either size of pages (arch/powerpc/include/asm/book3s/64: {hash,radix}-{4k,64k}.h, H_KERN_MAP_SIZE and RADIX_KERN_MAP_SIZE), but
/// for hash translation and pages of 4 KiB, where other things begin at 61 TiB (H_KERN_VIRT_START).
const LINEAR_MAP: u64 = 0xc000_0000_0000_0000;
const LINEAR_SIZE: u64 = 1 << 51;
const LINEAR_SIZE_HASH_4K: u64 = 61 << 40;

/// The physical address behind `address` of a linear map of `size` bytes, and how many bytes from there are mapped in one piece.
fn linear(address: VirtAddr, size: u64) -> Result<(PhysAddr, u64), CoreError> {
    let phys = address.0.checked_sub(LINEAR_MAP).filter(|phys| *phys < size);
    let phys = phys.ok_or(CoreError::NotLinear { address })?;
    Ok((PhysAddr(phys), size - phys))
}

/// Bits of an entry, which is a big-endian number on any kernel (Power ISA 3.0, "Radix Tree Translation";
/// arch/powerpc/include/asm/book3s/64/pgtable.h): it is valid; it maps a page and is no table. Of hash translation an entry for a table has
/// neither.
const VALID: u64 = 1 << 63;
const LEAF: u64 = 1 << 62;
/// The physical address in an entry for a table, and in one for a page; that of hash translation has other bits above (_PAGE_PA_MAX).
const TABLE_BITS: u64 = 0x0fff_ffff_ffff_ff00;
const PAGE_BITS: u64 = (1 << 57) - 0x1000;
const PAGE_BITS_HASH: u64 = (1 << 53) - 0x1000;

/// Where pages are how large, and how many bits of an address choose the entry on levels 1 to 4.
struct Sizes {
    page_shift: u32,
    indexes: [u32; 4],
}

/// radix.h: RADIX_{PTE,PMD,PUD,PGD}_INDEX_SIZE.
const RADIX: [Sizes; 2] =
    [Sizes { page_shift: 12, indexes: [9, 9, 9, 13] }, Sizes { page_shift: 16, indexes: [5, 9, 9, 13] }];
/// hash-4k.h and hash-64k.h: H_{PTE,PMD,PUD,PGD}_INDEX_SIZE, since 5.5.
const HASH: [Sizes; 2] =
    [Sizes { page_shift: 12, indexes: [9, 7, 9, 9] }, Sizes { page_shift: 16, indexes: [8, 10, 10, 8] }];

/// More pieces of the array of struct page are not believed in: with the least pieces, of 4 KiB, as many are 16 TiB of pages of 64 KiB.
const MAX_PIECES: usize = 1 << 20;

/// How a kernel maps its memory.
pub(crate) struct Kernel {
    /// Length of the linear map, in bytes.
    linear: u64,
    /// None where vmcoreinfo does not tell.
    tables: Option<Tables>,
    /// With hash translation, pieces of the array of struct page: where they are, by their virtual addresses, and how long.
    array: Vec<(u64, PhysAddr, u64)>,
}

impl Kernel {
    /// How the kernel maps its memory that `info` describes.
    pub(crate) fn new<S: ReadAt>(memory: &CachedMemory<'_, S>, info: &VmcoreInfo) -> Self {
        let (is_hash, pages_4k) = (info.number("RADIX_MMU") == Ok(0), info.get("PAGESIZE") == Some("4096"));
        let linear = if is_hash && pages_4k { LINEAR_SIZE_HASH_4K } else { LINEAR_SIZE };
        let mut kernel = Self { linear, tables: Tables::new(info), array: Vec::new() };
        if is_hash {
            // Without it all that needs it fails, and says at which address.
            kernel.array = kernel.array(memory, info).unwrap_or_default();
        }
        kernel
    }

    /// Reads the list of pieces of the array of struct page (struct vmemmap_backing).
    fn array<S: ReadAt>(
        &self,
        memory: &CachedMemory<'_, S>,
        info: &VmcoreInfo,
    ) -> Result<Vec<(u64, PhysAddr, u64)>, CoreError> {
        let read = |address: u64| memory.read_u64(linear(VirtAddr(address), self.linear)?.0);
        let at = |symbol| info.symbol(symbol).map(|address| address.0);
        let [next, phys, virt] =
            ["list", "phys", "virt_addr"].map(|field| format!("vmemmap_backing.{field}"));
        let (next, phys, virt) = (info.offset(&next)?, info.offset(&phys)?, info.offset(&virt)?);
        // How long each is: a kind of pages (an int), and a table of what kinds there are.
        let kind = read(at("mmu_vmemmap_psize")?)? & 0xffff_ffff;
        let kinds = at("mmu_psize_defs")?.wrapping_add(kind.wrapping_mul(info.size("mmu_psize_def")?));
        let shift = read(kinds.wrapping_add(info.offset("mmu_psize_def.shift")?))? & 0xffff_ffff;
        let Some(len) = u32::try_from(shift).ok().and_then(|shift| 1u64.checked_shl(shift)) else {
            return Ok(Vec::new());
        };
        let mut pieces = Vec::new();
        let mut entry = read(at("vmemmap_list")?)?;
        while entry != 0 && pieces.len() < MAX_PIECES {
            let field = |offset: u64| read(entry.wrapping_add(offset));
            pieces.push((field(virt)?, PhysAddr(field(phys)?), len));
            entry = field(next)?;
        }
        pieces.sort_unstable_by_key(|(virt, ..)| *virt);
        // Neighbours become one: fewer to look through, and longer pieces to read at once.
        pieces.dedup_by(|(virt, phys, len), (before, phys_before, len_before)| {
            let follows = before.checked_add(*len_before) == Some(*virt)
                && phys_before.0.checked_add(*len_before) == Some(phys.0);
            if follows {
                *len_before += *len;
            }
            follows
        });
        Ok(pieces)
    }

    /// The physical address behind `address`, and how many bytes from there are mapped in one piece.
    ///
    /// # Errors
    /// [`CoreError::NotLinear`] where it is not in the linear map and nothing else is known; [`CoreError::NotMapped`].
    pub(crate) fn translate<S: ReadAt>(
        &self,
        memory: &CachedMemory<'_, S>,
        address: VirtAddr,
    ) -> Result<(PhysAddr, u64), CoreError> {
        let outside = match linear(address, self.linear) {
            Ok(found) => return Ok(found),
            Err(outside) => outside,
        };
        let next = self.array.partition_point(|(virt, ..)| *virt <= address.0);
        if let Some((virt, phys, len)) = next.checked_sub(1).and_then(|last| self.array.get(last)) {
            let into = address.0 - virt;
            if into < *len {
                return Ok((PhysAddr(phys.0.wrapping_add(into)), len - into));
            }
        }
        match &self.tables {
            Some(tables) => tables.translate(memory, address),
            None => Err(outside),
        }
    }

    /// Calls `found` for every page table, and for all memory that they map outside of the linear map. What cannot be read is passed over.
    pub(crate) fn each<S: ReadAt>(&self, memory: &CachedMemory<'_, S>, found: &mut dyn FnMut(Mapped)) {
        if let Some(tables) = &self.tables {
            tables.each_in(memory, (tables.top, 4, LINEAR_MAP), self.linear, &mut Seen::default(), found);
        }
    }
}

/// The kernel's page tables.
struct Tables {
    top: PhysAddr,
    /// Level 1 first: how far an address is shifted to have its index, and how many bits that has.
    levels: [(u32, u32); 4],
    /// The bits that an entry for a table has for certain.
    table_mark: u64,
    page_bits: u64,
}

/// What an entry says.
enum Entry {
    Nothing,
    Table(PhysAddr),
    Page(u64),
}

impl Tables {
    /// The page tables of the kernel that `info` describes; none where it does not tell.
    fn new(info: &VmcoreInfo) -> Option<Self> {
        let (sizes, table_mark, page_bits) = match info.number("RADIX_MMU").ok()? {
            1 => (RADIX, VALID, PAGE_BITS),
            0 => (HASH, 0, PAGE_BITS_HASH),
            _ => return None,
        };
        // The kernel's own tables lie in its image.
        let (top, _) = linear(info.symbol("swapper_pg_dir").ok()?, LINEAR_SIZE_HASH_4K).ok()?;
        let page_size: u64 = info.get("PAGESIZE")?.parse().ok()?;
        let sizes = sizes.iter().find(|sizes| 1 << sizes.page_shift == page_size)?;
        let mut shift = sizes.page_shift;
        let levels = sizes.indexes.map(|bits| {
            let level = (shift, bits);
            shift += bits;
            level
        });
        Some(Self { top, levels, table_mark, page_bits })
    }

    fn entry(&self, entry: u64, level: usize) -> Entry {
        if entry & (VALID | LEAF) == VALID | LEAF {
            Entry::Page(entry & self.page_bits)
        } else if level > 1 && entry & LEAF == 0 && entry != 0 && entry & self.table_mark == self.table_mark {
            Entry::Table(PhysAddr(entry & TABLE_BITS))
        } else {
            Entry::Nothing
        }
    }

    /// Looks into a table: its address, its level, the first address that it maps.
    fn each_in<S: ReadAt>(
        &self,
        memory: &CachedMemory<'_, S>,
        (table, level, start): (PhysAddr, usize, u64),
        linear_size: u64,
        seen: &mut Seen,
        found: &mut dyn FnMut(Mapped),
    ) {
        let (shift, bits) = self.levels[level - 1];
        found(Mapped::Table(table, 8 << bits, 4 - level as u8));
        let is_linear = |at| linear(VirtAddr(at), linear_size).is_ok();
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
            match self.entry(entry, level) {
                Entry::Table(below) => self.each_in(memory, (below, level - 1, at), linear_size, seen, found),
                Entry::Page(address) if !is_linear(at) => {
                    let within = (1u64 << shift) - 1;
                    found(Mapped::Memory(PhysAddr(address & !within), within + 1));
                }
                Entry::Page(_) | Entry::Nothing => {}
            }
        }
    }

    fn translate<S: ReadAt>(
        &self,
        memory: &CachedMemory<'_, S>,
        address: VirtAddr,
    ) -> Result<(PhysAddr, u64), CoreError> {
        let mut table = self.top;
        let mut level = 4;
        loop {
            let (shift, bits) = self.levels[level - 1];
            let index = (address.0 >> shift) & ((1 << bits) - 1);
            let entry = memory.read_u64(PhysAddr(table.0 + index * 8))?.swap_bytes();
            match self.entry(entry, level) {
                Entry::Page(frame) => {
                    let within = (1u64 << shift) - 1;
                    let into = address.0 & within;
                    return Ok((PhysAddr(frame & !within | into), within - into + 1));
                }
                Entry::Table(below) => (table, level) = (below, level - 1),
                Entry::Nothing => return Err(CoreError::NotMapped { address, level: level as u8, entry }),
            }
        }
    }
}
