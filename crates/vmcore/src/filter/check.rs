//! What vmcoreinfo says of page structures, held against the kernel's BTF, which the compiler wrote and not a person.
//!
//! They can differ where a kernel was changed and its vmcoreinfo forgotten. Then whatever is told by that is kept.

use super::DumpLevel;
use crate::btf::Btf;
use crate::vmcoreinfo::VmcoreInfo;

/// Kinds of pages that are told by one field or number.
const ALL: u8 = 2 | 4 | 8 | 16;
const USED: u8 = 2 | 4 | 8;
const CACHE: u8 = 2 | 4;
const USER: u8 = 8;
const FREE: u8 = 16;

/// A structure of vmcoreinfo, a member of it, and which levels depend on where that is.
const MEMBERS: [(&str, &str, u8); 11] = [
    ("mem_section", "section_mem_map", ALL),
    ("page", "flags", ALL),
    ("page", "_mapcount", ALL),
    ("page", "compound_head", USED),
    ("page", "compound_info", USED),
    ("page", "mapping", USED),
    ("page", "private", FREE),
    ("page", "compound_order", USED),
    ("page", "compound_dtor", USER),
    ("folio", "_folio_order", USED),
    ("folio", "_folio_dtor", USER),
];

/// Structures whose size counts.
const SIZES: [&str; 2] = ["mem_section", "page"];

/// A number of vmcoreinfo, the enumerator that it is made of, how, and which levels depend on it.
const NUMBERS: [(&str, &str, Made, u8); 12] = [
    ("PG_lru", "PG_lru", Made::Same, CACHE),
    ("PG_private", "PG_private", Made::Same, CACHE),
    ("PG_swapcache", "PG_swapcache", Made::Same, CACHE),
    ("PG_swapbacked", "PG_swapbacked", Made::Same, CACHE),
    ("PG_slab", "PG_slab", Made::Same, ALL),
    ("PG_hwpoison", "PG_hwpoison", Made::Same, ALL),
    ("PG_head_mask", "PG_head", Made::Mask, USED),
    ("PAGE_BUDDY_MAPCOUNT_VALUE", "PGTY_buddy", Made::TopByte, FREE),
    ("PAGE_SLAB_MAPCOUNT_VALUE", "PGTY_slab", Made::TopByte, ALL),
    ("PAGE_HUGETLB_MAPCOUNT_VALUE", "PGTY_hugetlb", Made::TopByte, USER),
    ("PAGE_OFFLINE_MAPCOUNT_VALUE", "PGTY_offline", Made::TopByte, ALL),
    ("PAGE_UNACCEPTED_MAPCOUNT_VALUE", "PGTY_unaccepted", Made::TopByte, ALL),
];

/// How a number of vmcoreinfo is made of an enumerator.
#[derive(Debug, Clone, Copy)]
enum Made {
    Same,
    Mask,
    /// Of 32 bits, printed as a signed number.
    TopByte,
}

impl Made {
    fn of(self, value: i32) -> u64 {
        let value = i64::from(value);
        match self {
            Self::Same => value.cast_unsigned(),
            Self::Mask => 1u64.checked_shl(u32::try_from(value).unwrap_or(u32::MAX)).unwrap_or(0),
            Self::TopByte => (value << 24).cast_unsigned() & 0xffff_ffff,
        }
    }

    /// The number as vmcoreinfo has it, in the same bits.
    const fn told(self, number: u64) -> u64 {
        if matches!(self, Self::TopByte) { number & 0xffff_ffff } else { number }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// How many facts both have, and the same.
    pub(super) same: u32,
    /// In what they differ, a sentence each.
    pub(super) differences: Vec<String>,
    /// Levels that depend on that.
    doubted: u8,
}

impl Checked {
    /// Holds all that both have against each other. What only one of them has is no difference.
    pub(super) fn of(info: &VmcoreInfo, btf: &Btf) -> Self {
        let mut checked = Self::default();
        for name in SIZES {
            if let (Ok(told), Some(found)) = (info.size(name), btf.structure(name)) {
                checked.compare(|| format!("SIZE({name})"), told, found.size(), ALL);
            }
        }
        for (name, member, levels) in MEMBERS {
            let key = format!("{name}.{member}");
            let Ok(told) = info.offset(&key) else { continue };
            if let Some(found) = btf.structure(name).and_then(|found| found.offset(member)) {
                checked.compare(|| format!("OFFSET({key})"), told, found, levels);
            }
        }
        let values = btf.values(NUMBERS.map(|(_, enumerator, ..)| enumerator));
        for ((key, _, made, levels), value) in NUMBERS.into_iter().zip(values) {
            if let (Ok(told), Some(value)) = (info.number(key), value) {
                checked.compare(|| format!("NUMBER({key})"), made.told(told), made.of(value), levels);
            }
        }
        checked
    }

    fn compare(&mut self, key: impl FnOnce() -> String, told: u64, found: u64, levels: u8) {
        if told == found {
            self.same += 1;
            return;
        }
        self.doubted |= levels;
        let key = key();
        self.differences.push(format!(
            "vmcoreinfo has {key}={told} and the kernel's BTF {found}: what is told by that is kept"
        ));
    }

    /// What of `level` depends on nothing that is doubted.
    pub(super) const fn sure(&self, level: DumpLevel) -> DumpLevel {
        level.without(self.doubted)
    }
}
