//! Cores built from pieces: headers, notes, physical and virtual reads.

mod support;

use elfcorehdr::{Machine, PhysAddr};
use proptest::prelude::*;
use support::{ElfCore, PAGE};
use vmcore::{AddressSpace, Core, CoreError, VirtAddr, VirtualMemory, VmcoreInfo};

fn page(byte: u8) -> Vec<u8> {
    vec![byte; PAGE]
}

#[test]
fn memory_is_found_by_physical_address_wherever_the_headers_lie() {
    for phoff in [64, 4096, 5000] {
        let mut elf =
            ElfCore::new().load(0x10_0000, page(1)).load(0x10_1000, page(2)).load(0x4000_0000, page(3));
        elf.phoff = phoff;
        let core = Core::open(elf.bytes()).unwrap();

        let mut across = [0; 6];
        core.read_phys(PhysAddr(0x10_0ffd), &mut across).unwrap();
        assert_eq!(across, [1, 1, 1, 2, 2, 2], "a read across two loads, phoff {phoff}");
        assert_eq!(core.address_of(elf.offset_of(2) as u64 + 5), Some(PhysAddr(0x4000_0005)));
        assert_eq!(core.address_of(0), None);
        assert_eq!(core.missing_bytes(), 0);
        for missing in [0xf_ffff, 0x10_2000, 0x3fff_ffff, u64::MAX] {
            let error = core.read_phys(PhysAddr(missing), &mut [0; 1]).unwrap_err();
            assert!(matches!(error, CoreError::NotInCore { address, .. } if address.0 == missing), "{error}");
        }
    }
}

#[test]
fn a_core_cut_short_says_how_much_is_missing() {
    let mut bytes = ElfCore::new().load(0, page(1)).load(0x1000, page(2)).bytes();
    bytes.truncate(bytes.len() - PAGE - 96);
    assert_eq!(Core::open(bytes).unwrap().missing_bytes(), PAGE as u64 + 96);
}

#[test]
fn what_is_no_core_is_refused_by_field() {
    let good = ElfCore::new().load(0, page(1)).bytes();
    for (at, byte, want) in [
        (0, b'E', "e_ident"),
        (4, 1, "EI_CLASS"),
        (5, 2, "EI_DATA"),
        (16, 2, "e_type"),
        (18, 183, "e_machine"),
        (54, 55, "e_phentsize"),
        (56, 0, "e_phnum"),
    ] {
        let mut bytes = good.clone();
        bytes[at] = byte;
        let error = Core::open(bytes).unwrap_err();
        assert!(
            matches!(error, CoreError::Header { field, offset, .. } if field == want && offset <= at as u64),
            "{error}"
        );
    }
    assert!(matches!(Core::open(good[..100].to_vec()).unwrap_err(), CoreError::Read { offset: 64, .. }));
}

#[test]
fn notes_give_vmcoreinfo_and_the_cpus() {
    let mut status = vec![0; 336];
    status[32..36].copy_from_slice(&4711u32.to_le_bytes());
    status[112 + 128..][..8].copy_from_slice(&0xffff_ffff_8100_0000u64.to_le_bytes());
    status[112 + 152..][..8].copy_from_slice(&0xffff_c900_0000_1000u64.to_le_bytes());
    let elf = ElfCore::new().note("CORE", 1, &status).note("CORE", 1, &status[..100]).note(
        "VMCOREINFO",
        0,
        b"OSRELEASE=6.12\nSIZE(page)=64\n",
    );
    let core = Core::open(elf.bytes()).unwrap();

    assert_eq!(core.vmcoreinfo().unwrap().release(), Some("6.12"));
    let cpus = core.cpus().unwrap();
    assert_eq!(cpus.len(), 1, "a note too short for registers is left out");
    assert_eq!(cpus[0].pid, 4711);
    assert_eq!(cpus[0].ip, VirtAddr(0xffff_ffff_8100_0000));
    assert_eq!(cpus[0].sp, VirtAddr(0xffff_c900_0000_1000));

    let without = Core::open(ElfCore::new().note("CORE", 1, &status).bytes()).unwrap();
    assert!(matches!(without.vmcoreinfo(), Err(CoreError::NoVmcoreInfo)));
}

#[test]
fn registers_of_a_ppc64_machine_lie_elsewhere() {
    // struct elf_prstatus there has 504 bytes: 48 registers from 112, r1 the second, nip the 33rd.
    let mut status = vec![0; 504];
    status[32..36].copy_from_slice(&147u32.to_le_bytes());
    status[112 + 8..][..8].copy_from_slice(&0xc000_0000_1234_0000u64.to_le_bytes());
    status[112 + 256..][..8].copy_from_slice(&0xc000_0000_0020_5e80u64.to_le_bytes());
    let mut elf = ElfCore::new().note("CORE", 1, &status).note("CORE", 1, &status[..336]);
    elf.machine = 21;
    let core = Core::open(elf.bytes()).unwrap();
    assert_eq!(core.machine(), Machine::Ppc64);
    let cpus = core.cpus().unwrap();
    assert_eq!(cpus.len(), 1, "a note too short for registers is left out");
    assert_eq!(cpus[0].pid, 147);
    assert_eq!(cpus[0].ip, VirtAddr(0xc000_0000_0020_5e80));
    assert_eq!(cpus[0].sp, VirtAddr(0xc000_0000_1234_0000));
}

#[test]
fn a_ppc64_kernel_is_read_through_its_linear_map() {
    let mut elf = ElfCore::new().load(0, page(1)).load(0x20_0000, page(2));
    elf.machine = 21;
    let core = Core::open(elf.bytes()).unwrap();
    let space = AddressSpace::new(&core, &VmcoreInfo::parse(b"")).unwrap();
    assert_eq!(space.read_u32(VirtAddr(0xc000_0000_0020_0ffc)).unwrap(), 0x0202_0202);
    assert_eq!(space.translate(VirtAddr(0xc000_0000_0000_0008)).unwrap().0, PhysAddr(8));
    for outside in [0x20_0000, 0xbfff_ffff_ffff_fff8, 0xc008_0000_0000_0000, 0xffff_ffff_8000_0000] {
        let error = space.read_u64(VirtAddr(outside)).unwrap_err();
        assert!(matches!(error, CoreError::NotLinear { address } if address.0 == outside), "{error}");
    }
    let error = space.read_u64(VirtAddr(0xc000_0000_0020_0ffc)).unwrap_err();
    assert!(matches!(error, CoreError::NotInCore { address: PhysAddr(0x20_1000), .. }), "{error}");
}

/// Tables of four levels at 2 MiB, a page each, with entries for one address; a page of data at 3 MiB.
fn tables(
    kind: u8,
    page_size: &str,
    indexes: [u64; 4],
    entries: [u64; 4],
    data: Vec<u8>,
) -> (ElfCore, VmcoreInfo) {
    let mut tables = vec![0; 4 * 0x1_0000];
    for (level, (index, entry)) in indexes.into_iter().zip(entries).enumerate() {
        let at = level * 0x1_0000 + index as usize * 8;
        tables[at..at + 8].copy_from_slice(&entry.to_be_bytes());
    }
    let mut elf = ElfCore::new().load(0x20_0000, tables).load(0x30_0000, data);
    elf.machine = 21;
    let info = format!(
        "NUMBER(RADIX_MMU)={kind}\nPAGESIZE={page_size}\nSYMBOL(swapper_pg_dir)=c000000000200000\n\
         SYMBOL(vmemmap_list)=c000000000300000\nSYMBOL(mmu_vmemmap_psize)=c000000000300008\n\
         SYMBOL(mmu_psize_defs)=c000000000300100\nSIZE(mmu_psize_def)=88\nOFFSET(mmu_psize_def.shift)=0\n\
         SIZE(vmemmap_backing)=24\nOFFSET(vmemmap_backing.list)=0\nOFFSET(vmemmap_backing.phys)=8\n\
         OFFSET(vmemmap_backing.virt_addr)=16\n"
    );
    (elf, VmcoreInfo::parse(info.as_bytes()))
}

/// The same with radix translation.
fn radix(page_size: &str, indexes: [u64; 4], entries: [u64; 4]) -> (ElfCore, VmcoreInfo) {
    tables(1, page_size, indexes, entries, vec![7; 0x1_0000])
}

/// Data that begin with a list of pieces of 64 KiB, at these virtual and physical addresses.
fn pieces(list: &[(u64, u64)]) -> Vec<u8> {
    let mut data = vec![7; 0x1_0000];
    let mut put = |at: usize, value: u64| data[at..at + 8].copy_from_slice(&value.to_le_bytes());
    let entry =
        |number: usize| if number < list.len() { 0xc000_0000_0030_0400 + number as u64 * 24 } else { 0 };
    put(0, entry(0));
    // The third kind of pages; what follows the number is another one's.
    put(8, 0xdead_beef_0000_0002);
    put(0x100 + 2 * 88, 0xdead_beef_0000_0010);
    for (number, (virt, phys)) in list.iter().enumerate() {
        let at = 0x400 + number * 24;
        put(at, entry(number + 1));
        put(at + 8, *phys);
        put(at + 16, *virt);
    }
    data
}

#[test]
fn a_ppc64_kernel_with_hash_translation_is_read_through_its_own_tables_and_list() {
    let table = |level: u64| 0x20_0000 + level * 0x1_0000;
    // Beside the address these have bits that a page of 64 KiB needs no room for, and bits of the hash table's.
    let leaf = 0xc0e0_0000_0030_0000 | 0x3186;
    // 4 KiB: 61 TiB into the map, by 9, 9, 7 and 9 bits. 64 KiB: beyond 2^51, by 8, 10, 10 and 8.
    let cases = [
        ("4096", 0xc000_3d00_0000_2010, [488, 0, 0, 2], 0x1000, 0x30_3000),
        ("65536", 0xc008_0000_0002_2010, [128, 0, 0, 2], 0x1_0000, 0x30_0000),
    ];
    for (size, address, indexes, page, frame) in cases {
        let array = address + (1 << 40);
        let list = [(array + 0x1_0000, 0x30_0000), (array + 0x4_0000, 0x30_0000), (array, 0x2f_0000)];
        let (elf, info) = tables(0, size, indexes, [table(1), table(2), table(3), leaf], pieces(&list));
        let core = Core::open(elf.bytes()).unwrap();
        let space = AddressSpace::new(&core, &info).unwrap();
        let within = address % page;
        let found = space.translate(VirtAddr(address)).unwrap();
        assert_eq!(found, (PhysAddr(frame + within), page - within), "{size}");
        assert_eq!(space.translate(VirtAddr(0xc000_0000_0030_0000)).unwrap().0, PhysAddr(0x30_0000));
        // Two of the pieces follow each other in both ways.
        let found = space.translate(VirtAddr(array + 0x20)).unwrap();
        assert_eq!(found, (PhysAddr(0x2f_0020), 0x2_0000 - 0x20), "{size}");
        let found = space.translate(VirtAddr(array + 0x4_0010)).unwrap();
        assert_eq!(found, (PhysAddr(0x30_0010), 0x1_0000 - 0x10), "{size}");
        for nowhere in [array + 0x2_0000, array + 0x5_0000] {
            let error = space.translate(VirtAddr(nowhere)).unwrap_err();
            assert!(matches!(error, CoreError::NotMapped { .. }), "{error}");
        }
    }
    // A list that leads back to itself, or to where nothing is, comes to an end.
    for (at, to) in [(0x400, 0xc000_0000_0030_0400u64), (0x400, 0xc000_0070_0000_0000), (0x1b0, 0x40)] {
        let mut data = pieces(&[(0xc000_3e00_0000_0000, 0x30_0000)]);
        data[at..at + 8].copy_from_slice(&to.to_le_bytes());
        let (elf, info) = tables(0, "4096", [0; 4], [0; 4], data);
        let core = Core::open(elf.bytes()).unwrap();
        let space = AddressSpace::new(&core, &info).unwrap();
        assert!(space.translate(VirtAddr(0xc000_3e10_0000_0000)).is_err());
    }
}

#[test]
fn a_ppc64_kernel_with_radix_tables_is_read_through_them() {
    let table = |level: u64| 1 << 63 | (0x20_0000 + level * 0x1_0000) | 9;
    let address = VirtAddr(0xc00c_0000_4020_3010);
    // Indexes of 13, 9, 9 and 9 bits; of 5 in the last level with pages of 64 KiB.
    for (size, last) in [("4096", 3), ("65536", 0)] {
        let leaf = 3 << 62 | 0x30_0000 | 0x86;
        let indexes = if last == 3 { [6144, 1, 1, 3] } else { [6144, 1, 1, 0] };
        let (elf, info) = radix(size, indexes, [table(1), table(2), table(3), leaf]);
        let core = Core::open(elf.bytes()).unwrap();
        let space = AddressSpace::new(&core, &info).unwrap();
        let page = size.parse::<u64>().unwrap();
        let within = address.0 % page;
        assert_eq!(space.translate(address).unwrap(), (PhysAddr(0x30_0000 + within), page - within));
        assert_eq!(space.read_u64(address).unwrap(), 0x0707_0707_0707_0707);
        // The linear map needs no tables.
        assert_eq!(space.translate(VirtAddr(0xc000_0000_0030_0000)).unwrap().0, PhysAddr(0x30_0000));
    }
    // A page of 2 MiB, an entry that is not valid, a table where none can be, and tables that are in no core.
    let (elf, info) = radix("4096", [6144, 1, 1, 0], [table(1), table(2), 3 << 62 | 0x20_0000, 0]);
    let core = Core::open(elf.bytes()).unwrap();
    let space = AddressSpace::new(&core, &info).unwrap();
    assert_eq!(space.translate(address).unwrap(), (PhysAddr(0x20_3010), 0x20_0000 - 0x3010));
    for (entries, level) in
        [([0, 0, 0, 0], 4), ([table(1), table(2), 1, 0], 2), ([table(1), table(2), table(3), table(0)], 1)]
    {
        let (elf, info) = radix("4096", [6144, 1, 1, 3], entries);
        let core = Core::open(elf.bytes()).unwrap();
        let error = AddressSpace::new(&core, &info).unwrap().translate(address).unwrap_err();
        assert!(matches!(error, CoreError::NotMapped { level: at, .. } if at == level), "{error}");
    }
    let (elf, info) = radix("4096", [6144, 1, 1, 3], [1 << 63 | 0x70_0000_0000, 0, 0, 0]);
    let core = Core::open(elf.bytes()).unwrap();
    assert!(matches!(
        AddressSpace::new(&core, &info).unwrap().translate(address),
        Err(CoreError::NotInCore { .. })
    ));
}

const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
const PHYS_BASE: u64 = 0x100_0000;
const TABLES: u64 = 0x200_0000;
const DATA: u64 = 0x300_0000;

/// Page tables at TABLES, one page a level from the top down, each with the one entry that `address` needs;
/// the last level's entry is `leaf`.
fn mapped(address: u64, levels: &[u8], leaf: u64, flags: u64) -> ElfCore {
    let mut tables = vec![0; PAGE * levels.len()];
    for (number, level) in levels.iter().enumerate() {
        let index = (address >> (12 + 9 * (u64::from(*level) - 1))) & 511;
        let last = number + 1 == levels.len();
        let entry = if last { leaf } else { (TABLES + (number as u64 + 1) * PAGE as u64) | 0x63 | flags };
        let at = number * PAGE + index as usize * 8;
        tables[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    }
    let data = (0..2 * PAGE).map(|at| (at / 16) as u8).collect();
    ElfCore::new().load(TABLES, tables).load(DATA, data)
}

fn info(five: bool, sme_mask: u64) -> VmcoreInfo {
    let top = TABLES.wrapping_sub(PHYS_BASE).wrapping_add(KERNEL_MAP);
    let text = format!(
        "SYMBOL(init_top_pgt)={top:x}\nNUMBER(phys_base)={PHYS_BASE}\nNUMBER(pgtable_l5_enabled)={}\nNUMBER(sme_mask)={sme_mask}\n",
        u8::from(five)
    );
    VmcoreInfo::parse(text.as_bytes())
}

#[test]
fn virtual_addresses_translate_at_every_page_size_and_depth() {
    let sme = 1 << 51;
    let address = 0xffff_8881_2345_6000u64;
    let huge = |bits: u32| address & ((1 << bits) - 1);
    for (name, levels, five, flags, leaf, want) in [
        ("4 KiB", &[4, 3, 2, 1][..], false, 0, DATA | 0x8000_0000_0000_0063, DATA),
        ("4 KiB, five levels", &[5, 4, 3, 2, 1], true, 0, DATA | 0x63, DATA),
        ("4 KiB, encrypted", &[4, 3, 2, 1], false, sme, DATA | sme | 0x63, DATA),
        ("2 MiB", &[4, 3, 2], false, 0, 0x4000_0000 | 0xe3, 0x4000_0000 | huge(21)),
        ("1 GiB", &[4, 3], false, 0, 0x4000_0000 | 0xe3, 0x4000_0000 | huge(30)),
        ("2 MiB with the attribute bit 12", &[4, 3, 2], false, 0, 0x4000_1000 | 0xe3, 0x4000_0000 | huge(21)),
    ] {
        let core = Core::open(mapped(address, levels, leaf, flags).bytes()).unwrap();
        let space = AddressSpace::new(&core, &info(five, sme * u64::from(flags != 0))).unwrap();
        assert_eq!(space.translate(VirtAddr(address)).unwrap().0, PhysAddr(want), "{name}");
    }
}

#[test]
fn reads_by_virtual_address_stop_at_the_first_page_that_is_not_mapped() {
    let address = 0xffff_c900_0000_0000;
    let core = Core::open(mapped(address, &[4, 3, 2, 1], DATA | 0x63, 0).bytes()).unwrap();
    let space = AddressSpace::new(&core, &info(false, 0)).unwrap();

    assert_eq!(space.read_u64(VirtAddr(address + 0x120)).unwrap(), 0x1212_1212_1212_1212);
    assert_eq!(space.read_u32(VirtAddr(address + 0xffc)).unwrap(), 0xffff_ffff);
    let error = space.read_u64(VirtAddr(address + 0xffc)).unwrap_err();
    assert!(
        matches!(error, CoreError::NotMapped { address: at, level: 1, entry: 0 } if at.0 == address + 0x1000),
        "{error}"
    );
}

proptest! {
    /// Random bytes, and random damage to a good core, end in an answer or an error.
    #[test]
    fn hostile_bytes_do_no_harm(
        damage in proptest::collection::vec((0usize..0x3000, any::<u8>()), 0..60),
        cut in 0usize..0x8000,
        address: u64,
        machine in prop::sample::select(vec![62, 21]),
    ) {
        let mapped_at = 0xffff_c900_0000_0000;
        let mut elf = mapped(mapped_at, &[4, 3, 2, 1], DATA | 0x63, 0).note("VMCOREINFO", 0, b"OSRELEASE=1\n");
        elf.machine = machine;
        let mut bytes = elf.bytes();
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        bytes.truncate(cut);
        if let Ok(core) = Core::open(bytes) {
            let _ = (core.vmcoreinfo(), core.cpus(), core.missing_bytes(), core.address_of(address));
            let _ = core.read_phys(PhysAddr(address), &mut [0; 64]);
            let space = AddressSpace::new(&core, &info(address % 2 == 0, 0)).unwrap();
            for at in [address, mapped_at, 0xc000_0000_0000_0000 | address, u64::MAX] {
                let _ = space.read_virt(VirtAddr(at), &mut [0; 64]);
            }
        }
    }
}
