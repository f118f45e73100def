//! BTF: what is in it is found, and damage costs no more than what is damaged.

mod support;

use proptest::prelude::*;
use support::btf::{Builder, kernel};
use vmcore::{Btf, BtfError};

#[test]
fn structures_sizes_and_offsets_are_found() {
    let btf = Btf::parse(&kernel().bytes()).unwrap();
    let page = btf.structure("page").unwrap();
    assert_eq!(page.size(), 64);
    let offsets = ["flags", "mapping", "private", "compound_head", "_mapcount", "page_type"]
        .map(|one| page.offset(one));
    assert_eq!(offsets, [Some(0), Some(24), Some(40), Some(8), Some(48), Some(48)]);
    // A name that is the beginning of another, and one that nobody has.
    assert_eq!([page.offset("map"), page.offset("nothing")], [None, None]);
    assert!(btf.structure("pag").is_none() && btf.structure("pageflags").is_none());
    assert_eq!(btf.values(["PG_lru", "PG_head", "PG_none"]), [Some(5), Some(6), None]);
}

#[test]
fn bit_fields_begin_at_bytes_or_are_none() {
    let mut btf = Builder::default();
    let int = btf.int("unsigned int", 4);
    // With sizes of bit fields in the upper byte of where they begin.
    btf.bit_fields("slab", 8, &[("inuse", int, 16, 16), ("objects", int, 32, 15), ("frozen", int, 47, 1)]);
    let btf = Btf::parse(&btf.bytes()).unwrap();
    let slab = btf.structure("slab").unwrap();
    assert_eq!(["inuse", "objects", "frozen"].map(|one| slab.offset(one)), [Some(2), Some(4), None]);
}

#[test]
fn more_types_than_are_gone_through_at_once() {
    let mut btf = Builder::default();
    let mut last = btf.int("int", 4);
    for number in 0..1000 {
        last = btf.structure(&format!("s{number}"), 8, &[("a", last, 0), ("b", last, 4)]);
    }
    let unnamed = btf.union("", 8, &[("deep", last, 0)]);
    btf.structure("outer", 24, &[("x", last, 0), ("", unnamed, 16)]);
    let btf = Btf::parse(&btf.bytes()).unwrap();
    assert_eq!(btf.structure("s999").unwrap().offset("b"), Some(4));
    assert_eq!(btf.structure("outer").unwrap().offset("deep"), Some(16));
}

#[test]
fn a_structure_within_itself_has_an_end() {
    let mut btf = Builder::default();
    // The first type is an unnamed structure that holds itself.
    let own = btf.structure("", 8, &[("", 1, 0), ("x", 1, 4)]);
    btf.structure("page", 8, &[("", own, 0)]);
    let btf = Btf::parse(&btf.bytes()).unwrap();
    let page = btf.structure("page").unwrap();
    assert_eq!(page.offset("nothing"), None);
    assert_eq!(page.offset("x"), Some(4));
}

#[test]
fn structures_that_hold_themselves_many_times_cost_little() {
    let mut btf = Builder::default();
    let members = vec![("", 1, 0); 5000];
    btf.structure("", 8, &members);
    btf.structure("page", 8, &[("", 1, 0)]);
    let btf = Btf::parse(&btf.bytes()).unwrap();
    // Looked at one by one to the deepest these were more than 10^29.
    assert_eq!(btf.structure("page").unwrap().offset("x"), None);
}

#[test]
fn what_is_wrong_is_named() {
    let good = kernel().bytes();
    let with = |at: usize, value: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        Btf::parse(&bytes).map(|_| ()).unwrap_err().to_string()
    };
    assert!(with(0, 0x1234).contains("first word is 0x1234"));
    assert!(with(0, 0x0002_eb9f).contains("version is 0x2"));
    assert!(with(4, u32::MAX).contains("end of its types"));
    assert!(with(12, u32::MAX).contains("end of its types"));
    assert!(with(20, u32::MAX).contains("end of its names"));
    // The second word of the first type: a kind that is none.
    assert!(with(28, 0x1f00_0000).contains("kind is 0x1f"));
    assert!(with(28, 0x0400_ffff).contains("where a type begins"));
    for len in 0..24 {
        assert!(matches!(Btf::parse(&good[..len]), Err(BtfError::Damaged { .. })), "{len} bytes");
    }
}

/// Asks for all that is asked of a kernel's.
fn ask(bytes: &[u8]) {
    if let Ok(btf) = Btf::parse(bytes) {
        for name in ["page", "mem_section", "slab", ""] {
            if let Some(found) = btf.structure(name) {
                let _ = (found.size(), ["flags", "_mapcount", "nothing", ""].map(|one| found.offset(one)));
            }
        }
        let _ = btf.values(["PG_lru", "", "PG_none"]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        ask(&bytes);
        // And behind a header that is one.
        let len = bytes.len() as u32;
        let split = len / 3 * 2;
        let mut whole: Vec<u8> = vec![0x9f, 0xeb, 1, 0];
        for number in [24, 0, split, split, len - split] {
            whole.extend(number.to_le_bytes());
        }
        whole.extend(bytes);
        ask(&whole);
    }

    #[test]
    fn damage_costs_no_more_than_answers(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let mut bytes = kernel().bytes();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        ask(&bytes);
    }
}
