//! Crash headers for tests.

use elfcorehdr::{Contents, Load, Machine, Note, PhysAddr, size_for};

/// The note of the one CPU that [`header`] has.
pub(super) const CPU_NOTE: Note = Note { paddr: PhysAddr(0x20_0000), size: 0x1000 };
/// Where [`header`] has vmcoreinfo.
pub(super) const VMCOREINFO: Note = Note { paddr: PhysAddr(0x30_0000), size: 0x1000 };
/// Where the memory of [`header`] begins.
pub(super) const START: PhysAddr = PhysAddr(0x10_0000);

/// A header with these entries, as long as it has to be.
pub(super) fn build(cpu_notes: &[Note], vmcoreinfo: Note, loads: &[Load]) -> Vec<u8> {
    let contents = Contents { machine: Machine::X86_64, cpu_notes, vmcoreinfo, loads };
    let mut bytes = vec![0; size_for(cpu_notes.len() + 1 + loads.len())];
    elfcorehdr::build(&contents, &mut bytes).unwrap();
    bytes
}

/// A header of one CPU and `size` bytes of memory.
pub(super) fn header(size: u64) -> Vec<u8> {
    build(&[CPU_NOTE], VMCOREINFO, &[Load { paddr: START, vaddr: 0, offset: START, size }])
}
