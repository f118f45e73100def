//! Which frames of a synthetic machine are kept at which level: pages of every kind, compound ones, layouts of several kernels, and
//! structures that lie.

mod support;

use proptest::prelude::*;
use support::ElfCore;
use vmcore::{Core, DumpLevel, Frame, Selection};

/// A ppc64 machine with pages of 64 KiB and sections of 16 MiB: its structures can lie in the linear map.
const FRAME: u64 = 0x10000;
const SECTION: u64 = 256;
const SECTIONS: u64 = 2;
const LINEAR: u64 = 0xc000_0000_0000_0000;
/// Where roots, root and page structures lie, by physical address.
const ROOTS: u64 = FRAME;
const ROOT: u64 = 2 * FRAME;
const PAGES: u64 = 3 * FRAME;

const LRU: u64 = 1 << 5;
const SWAPCACHE: u64 = 1 << 10;
const PRIVATE: u64 = 1 << 14;
const SWAPBACKED: u64 = 1 << 17;
const HWPOISON: u64 = 1 << 20;
const HEAD: u64 = 1 << 6;
const ANON: u64 = 0xc000_0000_0000_1001;
const FILE: u64 = 0xc000_0000_0000_2000;
const TAIL: u64 = 1;

/// A page structure as kernels since 6.12 have it.
#[derive(Clone, Copy, Default)]
struct Page {
    flags: u64,
    /// compound_head, or compound_info.
    compound: u64,
    mapping: u64,
    private: u64,
    /// _mapcount, or page_type. 0 here is the kernel's -1: no type, not mapped.
    kind: u32,
}

const BUDDY: u32 = 0xf000_0000;
const OFFLINE: u32 = 0xf100_0000;
const HUGETLB: u32 = 0xf400_0000;
const SLAB: u32 = 0xf500_0000;
const TABLE: u32 = 0xf200_0000;

const INFO: &str = "OSRELEASE=6.12.107\nPAGESIZE=65536\nSYMBOL(mem_section)=c000000000010000\nLENGTH(mem_section)=8\n\
    SIZE(mem_section)=32\nOFFSET(mem_section.section_mem_map)=0\nNUMBER(SECTION_SIZE_BITS)=24\nSIZE(page)=64\nOFFSET(page.flags)=0\n\
    OFFSET(page.mapping)=24\nOFFSET(page._mapcount)=48\nOFFSET(page.private)=40\nOFFSET(page.compound_head)=8\nNUMBER(PG_lru)=5\n\
    NUMBER(PG_private)=14\nNUMBER(PG_swapcache)=10\nNUMBER(PG_swapbacked)=17\nNUMBER(PAGE_SLAB_MAPCOUNT_VALUE)=-184549376\n\
    NUMBER(PG_hwpoison)=20\nNUMBER(PG_head_mask)=64\nNUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456\n\
    NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)=-201326592\nNUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-251658240\n";

/// The core of a machine whose pages are the kernel's but for those given, by frame number.
fn core(info: &str, pages: &[(u64, Page)]) -> Vec<u8> {
    let mut memory = vec![0; (SECTIONS * SECTION * FRAME) as usize];
    let mut put =
        |at: u64, word: u64| memory[at as usize..at as usize + 8].copy_from_slice(&word.to_le_bytes());
    put(ROOTS, LINEAR + ROOT);
    for section in 0..SECTIONS {
        // As the kernel keeps it: the address that the array had if it began with frame 0; present, mapped, online, early.
        put(ROOT + section * 32, (LINEAR + PAGES) | 0xf);
    }
    for frame in 0..SECTIONS * SECTION {
        put(PAGES + frame * 64 + 48, 0xffff_ffff);
    }
    // There is a page of a slab on every machine.
    let slab = (100, Page { kind: SLAB, ..Page::default() });
    for (frame, page) in pages.iter().chain([&slab]) {
        let at = PAGES + frame * 64;
        for (offset, word) in [(0, page.flags), (8, page.compound), (24, page.mapping), (40, page.private)] {
            put(at + offset, word);
        }
        put(at + 48, u64::from(if page.kind == 0 { u32::MAX } else { page.kind }));
    }
    let mut elf = ElfCore::new().note("VMCOREINFO", 0, info.as_bytes()).load(0, memory);
    elf.machine = 21;
    elf.bytes()
}

fn select(core_bytes: Vec<u8>, level: u8) -> Selection {
    Selection::filtered(&Core::open(core_bytes).unwrap(), DumpLevel::new(level).unwrap())
}

/// The frames that are in the core and not kept.
fn left_out(selection: &Selection) -> Vec<u64> {
    selection.exists.frames().filter(|frame| !selection.kept.contains(*frame)).map(|frame| frame.0).collect()
}

#[test]
fn each_kind_goes_at_its_level_and_at_no_other() {
    let page = |flags, mapping, kind| Page { flags, mapping, kind, ..Page::default() };
    let free = |order| Page { private: order, kind: BUDDY, ..Page::default() };
    // What it is, the page, how many frames go, at which levels.
    let cases: [(&str, Page, u64, u8); 14] = [
        ("cache", page(LRU, FILE, 0), 1, 2 | 4),
        ("cache, mapped by a process", page(LRU, FILE, 3), 1, 2 | 4),
        ("cache with private data", page(LRU | PRIVATE, FILE, 0), 1, 4),
        ("anonymous", page(LRU | SWAPBACKED, ANON, 1), 1, 8),
        ("anonymous, in the swap cache", page(LRU | SWAPBACKED | SWAPCACHE, ANON, 1), 1, 8),
        ("swap cache of shared memory", page(SWAPBACKED | SWAPCACHE, FILE, 0), 1, 2 | 4),
        ("a flag that is the swap cache's only beside another", page(SWAPCACHE, FILE, 0), 0, 0),
        ("one free page", free(0), 1, 16),
        ("eight free pages", free(3), 8, 16),
        ("free pages of an order that cannot begin here", free(9), 0, 0),
        ("a table of pages, whose fields mean other things", page(0, ANON, TABLE), 0, 0),
        ("a slab, whose fields mean other things", page(LRU, ANON, SLAB), 0, 0),
        ("broken", page(LRU | HWPOISON, ANON, 0), 1, 31),
        ("the hypervisor's", page(0, 0, OFFLINE), 1, 31),
    ];
    for (what, page, frames, levels) in cases {
        let bytes = core(INFO, &[(264, page)]);
        for level in 0..=31 {
            let selection = select(bytes.clone(), level);
            let report = &selection.report;
            assert_eq!(report.reasons, [""; 0], "{what}, level {level}");
            assert_eq!(report.reached.number(), level);
            // Zeros are told by looking at them: level 1 looks at no structure.
            let goes = level > 1 && level & levels != 0;
            let expected: Vec<u64> = if goes { (264..264 + frames).collect() } else { Vec::new() };
            assert_eq!(left_out(&selection), expected, "{what}, level {level}");
            assert_eq!(report.excluded.total(), expected.len() as u64, "{what}, level {level}");
        }
    }
}

#[test]
fn a_compound_page_goes_as_a_whole_over_the_end_of_a_section_too() {
    let head = |kind, mapping| Page { flags: HEAD | LRU, mapping, kind, ..Page::default() };
    let second = |order| Page { flags: order, compound: LINEAR | TAIL, ..Page::default() };
    for (what, frame, order, pages) in [
        ("four", 264, 2, 264..268),
        ("up to the section's end", 128, 7, 128..256),
        ("larger than a section", 0, 9, 0..512),
        ("an order that cannot begin there", 264, 4, 264..265),
        ("an order that cannot be", 264, 40, 264..265),
    ] {
        for (kind, mapping) in [(0, ANON), (HUGETLB, 0)] {
            let bytes = core(INFO, &[(frame, head(kind, mapping)), (frame + 1, second(order))]);
            let selection = select(bytes, 8);
            // Of a hugetlb page that is not a compound one nothing is sure.
            let expected: Vec<u64> = if kind == HUGETLB && pages.end - pages.start == 1 {
                selection.exists.frames().filter(|_| false).map(|frame| frame.0).collect()
            } else {
                pages.clone().collect()
            };
            if frame == 0 {
                // All memory would go, the slab of frame 100 hidden in it: that cannot be.
                assert_eq!(left_out(&selection), [0; 0], "{what}");
                assert_eq!(selection.report.reached.number(), 0);
                assert!(selection.report.reasons[0].contains("slab"), "{:?}", selection.report);
            } else {
                assert_eq!(left_out(&selection), expected, "{what}, kind {kind:x}");
            }
        }
    }
    // A head whose next page is no tail is none.
    let bytes = core(INFO, &[(264, head(0, ANON)), (265, Page { flags: 2, ..Page::default() })]);
    assert_eq!(left_out(&select(bytes, 8)), [264]);
}

#[test]
fn kernels_before_6_6_have_order_and_destructor_in_bytes() {
    let info =
        INFO.replace("6.12.107", "6.1.0").replace("NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)=-201326592\n", "")
            + "OFFSET(page.compound_dtor)=16\nOFFSET(page.compound_order)=17\nNUMBER(HUGETLB_PAGE_DTOR)=2\n";
    let mut bytes = core(
        &info,
        &[
            (264, Page { flags: HEAD, mapping: FILE, ..Page::default() }),
            (265, Page { compound: TAIL, ..Page::default() }),
        ],
    );
    let place = bytes.len() - (SECTIONS * SECTION * FRAME) as usize + (PAGES + 265 * 64 + 16) as usize;
    assert_eq!(left_out(&select(bytes.clone(), 31)), [0; 0], "no destructor, no hugetlb page");
    bytes[place..place + 2].copy_from_slice(&[2, 3]);
    assert_eq!(left_out(&select(bytes.clone(), 8)), (264..272).collect::<Vec<_>>());
    assert_eq!(left_out(&select(bytes, 16)), [0; 0]);
}

#[test]
fn what_is_not_understood_is_kept_and_said() {
    let user = [(264, Page { flags: LRU, mapping: ANON, ..Page::default() })];
    for (info, said) in [
        (INFO.replace("6.12.107", "9.9.0"), "9.9.0"),
        (INFO.replace("OFFSET(page.mapping)=24\n", ""), "OFFSET(page.mapping)"),
        (INFO.replace("SIZE(page)=64", "SIZE(page)=40"), "SIZE(page)"),
        (INFO.replace("SIZE(mem_section)=32", "SIZE(mem_section)=0"), "SIZE(mem_section)"),
        (INFO.replace("LENGTH(mem_section)=8", "LENGTH(mem_section)=99999999999"), "LENGTH(mem_section)"),
        (INFO.replace("SECTION_SIZE_BITS)=24", "SECTION_SIZE_BITS)=4"), "SECTION_SIZE_BITS"),
        (INFO.replace("c000000000010000", "c0000ffffff10000"), "memory"),
        (INFO.replace("=-184549376", "=-167772160"), "slab"),
    ] {
        let selection = select(core(&info, &user), 31);
        assert_eq!(left_out(&selection), [0; 0], "{said}");
        assert_eq!(selection.report.reached.number(), 1, "{said}");
        assert_eq!(selection.report.asked.number(), 31);
        let reasons = selection.report.reasons.join(" ");
        assert!(reasons.contains(said), "{reasons}");
    }
    // One section whose structures are not in the core: the other is filtered all the same.
    let mut bytes = core(INFO, &user);
    let root = bytes.len() - (SECTIONS * SECTION * FRAME) as usize + ROOT as usize;
    bytes[root..root + 8].copy_from_slice(&(0xc000_0fff_0000_0000u64 | 0xf).to_le_bytes());
    let selection = select(bytes.clone(), 31);
    assert_eq!(
        selection.report.reached.number(),
        1,
        "the slab's page was in the section that cannot be read"
    );
    bytes[root..root + 8].copy_from_slice(&((LINEAR + PAGES) | 0xf).to_le_bytes());
    bytes[root + 32..root + 40].copy_from_slice(&(0xc000_0fff_0000_0000u64 | 0xf).to_le_bytes());
    let selection = select(bytes, 31);
    assert_eq!(left_out(&selection), [0; 0]);
    assert!(selection.report.reasons[0].contains("1 section"), "{:?}", selection.report);
}

#[test]
fn what_must_be_there_is_looked_for() {
    // The kernel's own table of names would go with a user's pages.
    let info = INFO.to_owned() + "SYMBOL(init_uts_ns)=c000000001080010\n";
    let user = Page { flags: LRU, mapping: ANON, ..Page::default() };
    let selection = select(core(&info, &[(0x108, user)]), 31);
    assert_eq!(left_out(&selection), [0; 0]);
    assert!(selection.report.reasons[0].contains("init_uts_ns"), "{:?}", selection.report);
    assert_eq!(left_out(&select(core(&info, &[(0x109, user)]), 31)), [0x109]);
}

#[test]
fn slabs_come_first_and_what_is_no_kernel_s_comes_last() {
    let user = Page { flags: LRU, mapping: ANON, ..Page::default() };
    let selection = select(core(INFO, &[(264, user)]), 16);
    let places =
        |frame| [&selection.kept, &selection.first, &selection.last].map(|set| set.contains(Frame(frame)));
    assert_eq!(places(100), [true, true, false], "a slab");
    assert_eq!(places(263), [true, false, false], "the kernel's");
    assert_eq!(places(264), [true, false, true], "a user's");
    assert_eq!(places(PAGES / FRAME), [true, false, true], "structures of pages");
}

/// An x86_64 machine of 16 MiB in one section. Its kernel lies in the first 2 MiB, its page tables from 4 MiB on.
fn x86_core(pages: &[(u64, Page)]) -> Vec<u8> {
    const TABLES: u64 = 0x40_0000;
    const STRUCTS: u64 = 0x10_0000;
    let info =
        INFO.replace("PAGESIZE=65536", "PAGESIZE=4096").replace("c000000000010000", "ffffffff80003000")
            + "SYMBOL(init_top_pgt)=ffffffff80004000\nNUMBER(phys_base)=0\n";
    let mut memory = vec![0; 16 << 20];
    let mut put =
        |at: u64, word: u64| memory[at as usize..at as usize + 8].copy_from_slice(&word.to_le_bytes());
    // The table of roots, in the kernel; the root, in the linear map; the structures, in a map of their own.
    put(0x3000, 0xffff_8880_0000_2000);
    put(0x2000, 0xffff_ea00_0000_0000 | 0xf);
    for frame in 0..4096 {
        put(STRUCTS + frame * 64 + 48, 0xffff_ffff);
    }
    for (frame, page) in pages.iter().chain([&(100, Page { kind: SLAB, ..Page::default() })]) {
        let at = STRUCTS + frame * 64;
        for (offset, word) in [(0, page.flags), (8, page.compound), (24, page.mapping), (40, page.private)] {
            put(at + offset, word);
        }
        put(at + 48, u64::from(if page.kind == 0 { u32::MAX } else { page.kind }));
    }
    let (table, large) = (|number: u64| (TABLES + number * 0x1000) | 1, |phys: u64| phys | 0x81);
    let mut entry = |number: u64, index: u64, entry: u64| put((table(number) & !1) + index * 8, entry);
    for (top, number) in [(273, 0), (468, 3), (402, 6), (511, 9)] {
        // Three tables each.
        entry(number, if top == 511 { 510 } else { 0 }, table(number + 1));
    }
    // The linear map: 2 MiB in small pages, the others in large ones.
    entry(1, 0, table(2));
    (0..512).for_each(|index| entry(2, index, index << 12 | 1));
    (1..8).for_each(|index| entry(1, index, large(index << 21)));
    entry(4, 0, table(5));
    (0..64).for_each(|index| entry(5, index, (STRUCTS + index * 0x1000) | 1));
    // Mapped for the kernel alone: two pages, one behind the machine's end, a device's.
    entry(7, 0, table(8));
    entry(8, 0, 0x80_0001);
    entry(8, 1, 0x80_5001);
    entry(8, 2, 0xfee0_0000_0001);
    entry(10, 0, large(0));
    for (top, number) in [(273, 0), (468, 3), (402, 6), (511, 9)] {
        put(0x4000 + top * 8, table(number));
    }
    ElfCore::new().note("VMCOREINFO", 0, info.as_bytes()).load(0, memory).bytes()
}

#[test]
fn what_the_kernel_maps_for_itself_comes_first_and_its_page_tables() {
    let user = Page { flags: LRU, mapping: ANON, ..Page::default() };
    let selection = select(x86_core(&[(0x900, user), (0x805, user)]), 16);
    assert_eq!((selection.report.reached.number(), &selection.report.reasons), (16, &vec![]));
    let first: Vec<u64> = selection.first.frames().map(|frame| frame.0).collect();
    // The kernel but for the structures of pages and the top table, and both pages.
    let expected: Vec<u64> = (0..4).chain(5..0x100).chain(0x140..0x200).chain([0x800, 0x805]).collect();
    assert_eq!(first, expected);
    let tables: Vec<u64> = selection.tables.frames().map(|frame| frame.0).collect();
    assert_eq!(tables, [4].into_iter().chain(0x400..0x40b).collect::<Vec<_>>());
    let last: Vec<u64> = selection.last.frames().map(|frame| frame.0).collect();
    assert_eq!(last, (0x100..0x140).chain([0x900]).collect::<Vec<_>>());
    // A page that is left out is in none of them, whoever maps it.
    let selection = select(x86_core(&[(0x805, user)]), 8);
    assert_eq!(left_out(&selection), [0x805]);
    assert!(!selection.first.contains(Frame(0x805)));
    // A kernel whose page tables would be gone is not understood.
    let selection = select(x86_core(&[(0x403, user)]), 8);
    assert_eq!(left_out(&selection), [0; 0]);
    assert!(selection.report.reasons[0].contains("page table"), "{:?}", selection.report);
}

#[test]
fn radix_tables_and_what_they_map_come_first() {
    // Of the page tables the top one has a frame of its own, the others share one.
    const TOP: u64 = 240 * FRAME;
    const TABLES: u64 = 256 * FRAME;
    let info = INFO.to_owned() + "NUMBER(RADIX_MMU)=1\nSYMBOL(swapper_pg_dir)=c000000000f00000\n";
    let mut bytes = core(&info, &[]);
    let memory = bytes.len() - (SECTIONS * SECTION * FRAME) as usize;
    let mut entry = |table: u64, index: u64, entry: u64| {
        let at = memory + (table + index * 8) as usize;
        bytes[at..at + 8].copy_from_slice(&(1 << 63 | entry).to_be_bytes());
    };
    const LEAF: u64 = 1 << 62;
    // The linear map by one page of 1 GiB, and what is mapped from 0xc008000000000000 on by one of 64 KiB, one of 2 MiB, and one of a device.
    entry(TOP, 0, TABLES);
    entry(TABLES, 0, LEAF);
    entry(TOP, 1 << 12, TABLES + 0x1000);
    entry(TABLES + 0x1000, 0, TABLES + 0x2000);
    entry(TABLES + 0x2000, 0, TABLES + 0x3000);
    entry(TABLES + 0x3000, 0, LEAF | (300 * FRAME));
    entry(TABLES + 0x3000, 1, LEAF | 0x6_0000_0000_0000);
    entry(TABLES + 0x2000, 1, LEAF | (320 * FRAME));
    let selection = select(bytes, 16);
    assert_eq!((selection.report.reached.number(), &selection.report.reasons), (16, &vec![]));
    let first: Vec<u64> = selection.first.frames().map(|frame| frame.0).collect();
    assert_eq!(first, [100, 300].into_iter().chain(320..352).collect::<Vec<_>>());
    assert_eq!(selection.tables.frames().map(|frame| frame.0).collect::<Vec<_>>(), [240, 256]);
}

/// Where the kernel's BTF lies: frames of the kernel's.
const BTF: u64 = 0x110 * FRAME;

/// The core of a machine whose kernel has BTF.
fn core_with_btf(info: &str, btf: &[u8], pages: &[(u64, Page)]) -> Vec<u8> {
    let place = LINEAR + BTF;
    let end = place + btf.len() as u64;
    let told = format!("{info}SYMBOL(__start_BTF)={place:x}\nSYMBOL(__stop_BTF)={end:x}\n");
    let mut bytes = core(&told, pages);
    let at = bytes.len() - (SECTIONS * SECTION * FRAME - BTF) as usize;
    bytes[at..at + btf.len()].copy_from_slice(btf);
    bytes
}

#[test]
fn what_the_kernel_s_btf_says_too_is_counted() {
    let user = [(264, Page { flags: LRU, mapping: ANON, ..Page::default() })];
    let btf = support::btf::kernel().bytes();
    let selection = select(core_with_btf(INFO, &btf, &user), 31);
    assert_eq!(left_out(&selection), [264]);
    // Two sizes, six offsets, six flags, four types.
    assert_eq!((selection.report.confirmed, &selection.report.reasons), (18, &vec![]));
    // Damaged, it is as if there were none.
    let selection = select(core_with_btf(INFO, &btf[1..], &user), 31);
    assert_eq!((selection.report.confirmed, left_out(&selection)), (0, vec![264]));
}

#[test]
fn what_the_kernel_s_btf_contradicts_is_kept_and_said() {
    let page = |flags, mapping, kind| Page { flags, mapping, kind, ..Page::default() };
    let pages = [
        (264, page(LRU, FILE, 0)),
        (265, page(LRU | PRIVATE, FILE, 0)),
        (266, page(LRU, ANON, 0)),
        (267, page(0, 0, BUDDY)),
    ];
    let btf = support::btf::kernel().bytes();
    let kept = |from: &str, to: &str| {
        assert!(INFO.contains(from));
        select(core_with_btf(&INFO.replace(from, to), &btf, &pages), 31)
    };
    // What vmcoreinfo says wrongly, what is left out all the same, and the level that this is.
    for (from, to, gone, level) in [
        ("NUMBER(PG_private)=14", "NUMBER(PG_private)=13", vec![266, 267], 25),
        ("NUMBER(PG_lru)=5", "NUMBER(PG_lru)=4", vec![266, 267], 25),
        ("OFFSET(page.private)=40", "OFFSET(page.private)=32", vec![264, 265, 266], 15),
        ("OFFSET(page.mapping)=24", "OFFSET(page.mapping)=16", vec![267], 17),
        (
            "NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)=-201326592",
            "NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)=0",
            vec![264, 265, 267],
            23,
        ),
    ] {
        let selection = kept(from, to);
        assert_eq!(left_out(&selection), gone, "{to}");
        assert_eq!(selection.report.reached.number(), level, "{to}");
        let key = to.split('=').next().unwrap();
        assert!(selection.report.reasons[0].contains(key), "{:?}", selection.report);
    }
    for (from, to) in [
        ("SIZE(page)=64", "SIZE(page)=56"),
        ("OFFSET(page._mapcount)=48", "OFFSET(page._mapcount)=52"),
        ("NUMBER(PG_hwpoison)=20", "NUMBER(PG_hwpoison)=21"),
        ("OFFSET(mem_section.section_mem_map)=0", "OFFSET(mem_section.section_mem_map)=8"),
    ] {
        let selection = kept(from, to);
        assert_eq!(left_out(&selection), [0; 0], "{to}");
        assert_eq!(selection.report.reached.number(), 1, "{to}");
        let key = to.split('=').next().unwrap();
        assert!(selection.report.reasons[0].contains(key), "{:?}", selection.report);
    }
}

proptest! {
    // A case costs a machine's memory: so many fewer than elsewhere.
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: ProptestConfig::default().cases / 5,
        ..ProptestConfig::default()
    })]

    /// Whatever the structures say, what is kept is in the core, the numbers add up, and it ends.
    #[test]
    fn garbage_costs_no_more_than_pages(
        level in 0u8..=31,
        words in proptest::collection::vec((0u64..SECTIONS * SECTION * 8, any::<u64>()), 0..64),
        roots in proptest::collection::vec((0u64..16, any::<u64>(), any::<bool>()), 0..8),
        line in 0usize..22,
        value in prop_oneof![any::<i64>(), -300i64..300],
    ) {
        let mut lines: Vec<String> = INFO.lines().map(str::to_owned).collect();
        if let Some(line) = lines.get_mut(line)
            && let Some((key, _)) = line.split_once('=')
        {
            *line = format!("{key}={value}");
        }
        let mut bytes = core(&(lines.join("\n") + "\n"), &[]);
        let memory = bytes.len() - (SECTIONS * SECTION * FRAME) as usize;
        for (index, word) in words {
            let at = memory + (PAGES + index * 8) as usize;
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        for (index, word, is_root) in roots {
            let at = memory + (if is_root { ROOTS } else { ROOT } + index * 8) as usize;
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        let selection = select(bytes, level);
        let gone = left_out(&selection).len() as u64;
        prop_assert_eq!(selection.kept.count() + gone, selection.exists.count());
        prop_assert_eq!(selection.report.excluded.total(), gone);
        prop_assert!(selection.report.reached.number() == level || !selection.report.reasons.is_empty());
    }
}
