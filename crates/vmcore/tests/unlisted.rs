//! Memory that a synthetic machine used and its crash header does not list.

mod support;

use elfcorehdr::{PhysAddr, PhysRange};
use support::ElfCore;
use vmcore::{Core, unlisted_memory};

/// A ppc64 machine with pages of 64 KiB and sections of 16 MiB: its structures can lie in the linear map.
const FRAME: u64 = 0x10000;
const SECTION: u64 = 256;
const LINEAR: u64 = 0xc000_0000_0000_0000;
const ROOTS: u64 = FRAME;
const ROOT: u64 = 2 * FRAME;

const INFO: &str = "OSRELEASE=6.12.107\nPAGESIZE=65536\nSYMBOL(mem_section)=c000000000010000\nLENGTH(mem_section)=8\n\
    SIZE(mem_section)=32\nOFFSET(mem_section.section_mem_map)=0\nNUMBER(SECTION_SIZE_BITS)=24\n";

/// The core of a machine whose first section is listed, and whose sections have these words in `mem_section`.
fn core(info: &str, sections: &[u64]) -> Vec<u8> {
    let mut memory = vec![0; (SECTION * FRAME) as usize];
    let mut put =
        |at: u64, word: u64| memory[at as usize..at as usize + 8].copy_from_slice(&word.to_le_bytes());
    put(ROOTS, LINEAR + ROOT);
    for (section, word) in (0..).zip(sections) {
        put(ROOT + section * 32, *word);
    }
    let mut elf = ElfCore::new().note("VMCOREINFO", 0, info.as_bytes()).load(0, memory);
    elf.machine = 21;
    elf.bytes()
}

/// The memory of sections.
fn range(sections: std::ops::Range<u64>) -> PhysRange {
    let [start, end] = [sections.start, sections.end].map(|section| PhysAddr(section * SECTION * FRAME));
    PhysRange::new(start, end).unwrap()
}

#[test]
fn sections_that_were_added_and_of_which_nothing_is_listed_are_named() {
    let array = LINEAR + 3 * FRAME;
    // Present, with an array, in use and there at boot; in use; offline; none.
    let (early, used, offline, none) = (array | 15, array | 7, array | 3, 0);
    for (sections, want) in [
        (vec![early], vec![]),
        (vec![used], vec![]),
        (vec![early, offline, none], vec![]),
        // What was there at boot is not listed where it is reserved.
        (vec![early, early, used, used, none, used], vec![range(2..4), range(5..6)]),
        (vec![none, used], vec![range(1..2)]),
    ] {
        let core = Core::open(core(INFO, &sections)).unwrap();
        assert_eq!(unlisted_memory(&core).unwrap(), want, "{sections:x?}");
    }
}

#[test]
fn a_kernel_whose_books_cannot_be_found_is_an_error() {
    let elsewhere = INFO.replace("c000000000010000", "c000000100010000");
    for info in ["OSRELEASE=6.12.107\nPAGESIZE=65536\n", elsewhere.as_str()] {
        unlisted_memory(&Core::open(core(info, &[7])).unwrap()).unwrap_err();
    }
}
