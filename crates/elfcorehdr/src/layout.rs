//! Where each field of the crash header lies.
//!
//! An ELF-64 header, then a table of program headers ("slots") right behind it. A capture kernel takes the table to
//! start at byte [`EHDR_SIZE`] whatever `e_phoff` says (fs/proc/vmcore.c). Every field is naturally aligned when
//! the header itself is, so each can be changed by a single store. Field names and numbers are those of the ELF
//! specification (gABI, "ELF Header" and "Program Header").

use core::fmt;

/// Size of the ELF-64 file header.
pub const EHDR_SIZE: usize = 64;

/// Size of one ELF-64 program header, a slot of the table.
pub const PHDR_SIZE: usize = 56;

/// Most slots that a header may count. 65535 is ELF's `PN_XNUM`, "the count is elsewhere", which capture kernels do
/// not know.
pub const MAX_ENTRIES: usize = 65534;

/// Offsets in the file header.
pub mod ehdr {
    /// `\x7fELF`.
    pub const MAGIC: usize = 0;
    /// Class: 32 or 64 bit.
    pub const CLASS: usize = 4;
    /// Byte order.
    pub const DATA: usize = 5;
    /// Version of the identification.
    pub const IDENT_VERSION: usize = 6;
    /// Object type, 2 bytes.
    pub const TYPE: usize = 16;
    /// Machine, 2 bytes.
    pub const MACHINE: usize = 18;
    /// Object version, 4 bytes.
    pub const VERSION: usize = 20;
    /// Offset of the program header table, 8 bytes.
    pub const PHOFF: usize = 32;
    /// Size of the file header, 2 bytes.
    pub const EHSIZE: usize = 52;
    /// Size of one program header, 2 bytes.
    pub const PHENTSIZE: usize = 54;
    /// Number of program headers, 2 bytes.
    pub const PHNUM: usize = 56;
}

/// Offsets in a program header.
pub mod phdr {
    /// Type, 4 bytes. Together with [`FLAGS`] an aligned 8-byte word.
    pub const TYPE: usize = 0;
    /// Permissions, 4 bytes.
    pub const FLAGS: usize = 4;
    /// In a crash header: physical address to read from, 8 bytes.
    pub const OFFSET: usize = 8;
    /// Virtual address, 8 bytes.
    pub const VADDR: usize = 16;
    /// Physical address, 8 bytes.
    pub const PADDR: usize = 24;
    /// Bytes in the exported file, 8 bytes.
    pub const FILESZ: usize = 32;
    /// Bytes in memory, 8 bytes: the extent that a capture kernel takes.
    pub const MEMSZ: usize = 40;
    /// Alignment, 8 bytes.
    pub const ALIGN: usize = 48;
}

/// First bytes of every ELF file.
pub const MAGIC: [u8; 4] = *b"\x7fELF";
/// `EI_CLASS` of 64-bit files.
pub const ELFCLASS64: u8 = 2;
/// `EI_DATA` of little-endian files.
pub const ELFDATA2LSB: u8 = 1;
/// The only ELF version.
pub const EV_CURRENT: u8 = 1;
/// `e_type` of core files.
pub const ET_CORE: u16 = 4;
/// `p_type` of a free slot. All its other bytes must be zero too: crash(8) and the device-dump code do not skip it.
pub const PT_NULL: u32 = 0;
/// `p_type` of memory.
pub const PT_LOAD: u32 = 1;
/// `p_type` of notes.
pub const PT_NOTE: u32 = 4;
/// `p_flags` of memory: read, write, execute.
pub const PF_RWX: u32 = 7;

/// Byte offset of slot `index` in the header; `None` where it passes the address space.
pub const fn slot_offset(index: usize) -> Option<usize> {
    match index.checked_mul(PHDR_SIZE) {
        Some(bytes) => bytes.checked_add(EHDR_SIZE),
        None => None,
    }
}

/// Architecture of the machine that the header describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Machine {
    /// 64-bit x86.
    X86_64,
    /// 64-bit PowerPC, little-endian.
    Ppc64,
}

impl Machine {
    /// All that this crate knows.
    pub const ALL: [Machine; 2] = [Machine::X86_64, Machine::Ppc64];

    /// ELF's number for it (`e_machine`).
    pub const fn number(self) -> u16 {
        match self {
            Machine::X86_64 => 62,
            Machine::Ppc64 => 21,
        }
    }

    /// The machine that has this `e_machine`, if it is one that this crate knows.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|machine| machine.number() == number)
    }

    /// First address that the machine's physical address space cannot have. x86: 52 bits is the most that page
    /// tables can hold (Intel SDM vol. 3A, 4.1.4). PowerPC: a real address has at most 60 bits (Power ISA 3.1, Book III,
    /// 6.7); the kernel's linear map has no more bits for them either.
    pub const fn phys_limit(self) -> u64 {
        match self {
            Machine::X86_64 => 1 << 52,
            Machine::Ppc64 => 1 << 60,
        }
    }

    /// What the kernel adds to a physical address where it maps all memory in one piece; `None` where that differs from boot to
    /// boot. PowerPC: `PAGE_OFFSET`, whose bits no physical address has.
    pub const fn linear_map(self) -> Option<u64> {
        match self {
            Machine::X86_64 => None,
            Machine::Ppc64 => Some(0xc000_0000_0000_0000),
        }
    }

    /// First virtual address where the kernel's own image can lie; plain memory is mapped below it. x86:
    /// `__START_KERNEL_map` (Documentation/arch/x86/x86_64/mm.rst). `None` where the image is mapped like all other
    /// memory: on PowerPC it lies in the linear map.
    pub const fn kernel_image_vaddr(self) -> Option<u64> {
        match self {
            Machine::X86_64 => Some(0xffff_ffff_8000_0000),
            Machine::Ppc64 => None,
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Machine::X86_64 => "x86_64",
            Machine::Ppc64 => "ppc64",
        })
    }
}
