//! What differs between architectures: where a CPU's note has which register, and how the crashed kernel's virtual addresses
//! become physical ones. A core of either is read on either.

pub(crate) mod ppc64;
pub(crate) mod x86_64;

use std::collections::HashSet;

use elfcorehdr::{Machine, PhysAddr};

/// A machine that cores are read of.
#[derive(Debug)]
pub(crate) struct Arch {
    pub(crate) machine: Machine,
    pub(crate) registers: Registers,
    pub(crate) mapping: Mapping,
}

/// Where NT_PRSTATUS (struct elf_prstatus) has what, in bytes.
#[derive(Debug)]
pub(crate) struct Registers {
    /// Instruction pointer.
    pub(crate) ip: usize,
    /// Stack pointer.
    pub(crate) sp: usize,
    /// The registers in the order in which they lie, of 8 bytes each.
    pub(crate) names: &'static [&'static str],
}

/// How what the kernel's addresses mean is found out.
#[derive(Debug)]
pub(crate) enum Mapping {
    /// x86_64: the kernel's page tables are walked.
    PageTables,
    /// ppc64: there is a linear map; what is not in it is looked for in page tables and lists.
    Ppc64,
}

/// What a walk over a kernel's page tables comes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mapped {
    /// A page table, this many bytes long, so many steps below the top one.
    Table(PhysAddr, u64, u8),
    /// Memory outside the linear map, this many bytes.
    Memory(PhysAddr, u64),
}

/// More page tables than this are not looked into: 2 TiB of vmalloc'ed memory have as many, and damaged ones can lead anywhere.
const MAX_TABLES: usize = 1 << 20;

/// Page tables that were looked into: each is once, however many entries lead to it.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashSet<u64>);

impl Seen {
    /// Whether the table there is to be looked into.
    pub(crate) fn is_new(&mut self, table: PhysAddr) -> bool {
        self.0.len() < MAX_TABLES && self.0.insert(table.0)
    }
}

/// struct elf_prstatus before the registers is the same on all 64-bit machines.
pub(crate) const PRSTATUS_PID: usize = 32;
pub(crate) const PRSTATUS_REGISTERS: usize = 112;

const ARCHS: [Arch; 2] = [
    Arch { machine: Machine::X86_64, registers: x86_64::REGISTERS, mapping: Mapping::PageTables },
    Arch { machine: Machine::Ppc64, registers: ppc64::REGISTERS, mapping: Mapping::Ppc64 },
];

/// The machine with this `e_machine`.
pub(crate) fn find(number: u16) -> Option<&'static Arch> {
    ARCHS.iter().find(|arch| arch.machine.number() == number)
}
