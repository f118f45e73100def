//! An x86 machine.

use elfcorehdr::{Contents, Load, Machine, Note, PhysAddr, build};
use kmod_core::{Comer, Excluded, Parts};

use crate::fake::{BLOCK, Fake, ROOM, nodes};

/// Virtual address of physical address 0.
pub(crate) const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// Blocks that are there at boot: four, less low memory.
pub(crate) const BOOT_BLOCKS: u64 = 4;
/// The notes of two CPUs and of vmcoreinfo. The second CPU's is one that the loader could not know.
pub(crate) const NOTES: [u64; 3] = [0x20_0000, 0xc000_0000, 0x30_0000];

/// Two CPUs, and 512 MiB of memory.
pub(crate) fn image() -> Fake {
    let note = |paddr| Note { paddr: PhysAddr(paddr), size: 368 };
    let [first, second, vmcoreinfo] = NOTES.map(note);
    let load = |paddr, vaddr, size| Load { paddr: PhysAddr(paddr), vaddr, offset: PhysAddr(paddr), size };
    let text = load(0x100_0000, 0xffff_ffff_8100_0000, 0x20_0000);
    let ram = load(0x10_0000, DIRECT_MAP + 0x10_0000, BOOT_BLOCKS * BLOCK - 0x10_0000);
    let contents =
        Contents { machine: Machine::X86_64, cpu_notes: &[first, second], vmcoreinfo, loads: &[text, ram] };
    let mut header = vec![0; ROOM];
    build(&contents, &mut header).unwrap();
    Fake::of(header)
}

/// What goes with an image in memory of the kernel's.
pub(crate) fn parts(fake: &Fake, excluded: Excluded, follow: u32) -> Parts<'static> {
    Parts { shadow: fake.shadow(), nodes: nodes(), trees: None, excluded, direct_map: DIRECT_MAP, follow }
}

/// A CPU that comes to a machine without a device tree.
pub(crate) fn comer(cpu: u32) -> Comer<'static> {
    Comer { cpu, ..Comer::default() }
}
