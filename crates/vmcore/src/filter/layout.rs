//! Where a kernel keeps what it knows of a page: `struct page`, as vmcoreinfo describes it.
//!
//! What moved over the years (read in the sources of 5.10 to 7.2): slab pages were told by a flag until 6.9 and by a page type since; page
//! types were cleared bits of an integer until 6.11 and are its top byte since 6.12; the order of a compound page was a byte of its second
//! page until 6.5 and is the low byte of that page's flags since; hugetlb was a destructor until 6.5, a flag of the second page until 6.8,
//! a page type since; `compound_head` became `compound_info` in 7.1, which is no pointer any more: only its lowest bit is read here.

use super::{DumpLevel, to_usize};
use crate::vmcoreinfo::{InfoError, VmcoreInfo};

/// The kernels whose pages are known, as (major, minor): the first and the last.
const KNOWN: [(u32, u32); 2] = [(5, 10), (7, 2)];

/// The kernel from which the order of a compound page is in the flags of its second page.
const ORDER_IN_FLAGS: (u32, u32) = (6, 6);

/// A page type, as vmcoreinfo has it: what `_mapcount` (or `page_type`, at the same place) is for such a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageType(u32);

impl PageType {
    /// Whether the word says this type. Where the type is the top byte, the rest is somebody else's.
    pub(super) const fn is(self, word: u32) -> bool {
        if self.0 & 0x00ff_ffff == 0 { word >> 24 == self.0 >> 24 } else { word == self.0 }
    }
}

/// How pages of slabs are told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Slab {
    /// By this flag.
    Flag(u64),
    /// By their type.
    Type(PageType),
}

/// How pages of hugetlbfs are told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hugetlb {
    /// By a byte of the second page, at this offset, with this value.
    Destructor(usize, u8),
    /// By this flag of the second page.
    Flag(u64),
    /// By the type of the first page.
    Type(PageType),
}

/// Where the second page of a compound page has its order.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    /// A byte at this offset.
    Byte(usize),
    /// The lowest byte of the flags.
    LowByteOfFlags,
}

/// `struct page` of one kernel. Offsets and sizes are in bytes; flags are masks of the flags word.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) size: usize,
    pub(super) flags: usize,
    pub(super) mapping: usize,
    pub(super) mapcount: usize,
    pub(super) private: usize,
    /// The word whose lowest bit says that a page is a tail of a compound page.
    pub(super) compound: usize,
    pub(super) lru: u64,
    pub(super) has_private: u64,
    pub(super) swapcache: u64,
    /// Without it `swapcache` means something else.
    pub(super) swapbacked: u64,
    pub(super) head: u64,
    pub(super) hwpoison: Option<u64>,
    pub(super) buddy: PageType,
    pub(super) offline: Option<PageType>,
    /// Memory that the hypervisor has not handed over yet: reading it may stop the machine.
    pub(super) unaccepted: Option<PageType>,
    pub(super) slab: Slab,
    pub(super) hugetlb: Option<Hugetlb>,
    pub(super) order: Order,
}

impl Layout {
    /// The layout of the kernel that `info` describes.
    ///
    /// # Errors
    /// What vmcoreinfo lacks.
    pub(super) fn of(info: &VmcoreInfo) -> Result<Self, InfoError> {
        let size = to_usize(info.size("page")?);
        let offset = |field: &str| info.offset(field).map(to_usize);
        let flag = |name: &str| info.number(name).map(bit);
        let page_type = |name: &str| info.number(name).map(to_type).ok();
        let slab = match flag("PG_slab") {
            Ok(flag) => Slab::Flag(flag),
            Err(_) => Slab::Type(to_type(info.number("PAGE_SLAB_MAPCOUNT_VALUE")?)),
        };
        // Offsets into a folio count from its first page.
        let second = |field: &str| offset(field).map(|at| at.saturating_sub(size));
        let order = match offset("page.compound_order").or_else(|_| second("folio._folio_order")) {
            Ok(at) => Order::Byte(at),
            Err(_) if version(info).is_some_and(|version| version >= ORDER_IN_FLAGS) => Order::LowByteOfFlags,
            Err(error) => return Err(error),
        };
        let destructor = offset("page.compound_dtor").or_else(|_| second("folio._folio_dtor"));
        let hugetlb =
            match (page_type("PAGE_HUGETLB_MAPCOUNT_VALUE"), destructor, info.number("HUGETLB_PAGE_DTOR")) {
                (Some(kind), ..) => Some(Hugetlb::Type(kind)),
                (None, Ok(at), Ok(value)) => {
                    u8::try_from(value).ok().map(|value| Hugetlb::Destructor(at, value))
                }
                _ => flag("PG_hugetlb").ok().map(Hugetlb::Flag),
            };
        let layout = Self {
            size,
            flags: offset("page.flags")?,
            mapping: offset("page.mapping")?,
            mapcount: offset("page._mapcount")?,
            private: offset("page.private")?,
            compound: offset("page.compound_head").or_else(|_| offset("page.compound_info"))?,
            lru: flag("PG_lru")?,
            has_private: flag("PG_private")?,
            swapcache: flag("PG_swapcache")?,
            swapbacked: flag("PG_swapbacked")?,
            head: info.number("PG_head_mask")?,
            hwpoison: flag("PG_hwpoison").ok(),
            buddy: to_type(info.number("PAGE_BUDDY_MAPCOUNT_VALUE")?),
            offline: page_type("PAGE_OFFLINE_MAPCOUNT_VALUE"),
            unaccepted: page_type("PAGE_UNACCEPTED_MAPCOUNT_VALUE"),
            slab,
            hugetlb,
            order,
        };
        layout.fits().then_some(layout).ok_or_else(|| InfoError::NotANumber {
            key: "SIZE(page)".into(),
            value: format!("{size}, with fields beyond it"),
        })
    }

    /// Whether all fields lie in a page structure of a size that can be.
    fn fits(&self) -> bool {
        let words = [self.flags, self.mapping, self.private, self.compound];
        let bytes = [
            match self.order {
                Order::Byte(at) => at,
                Order::LowByteOfFlags => self.flags,
            },
            match self.hugetlb {
                Some(Hugetlb::Destructor(at, _)) => at,
                _ => self.flags,
            },
        ];
        (32..=256).contains(&self.size)
            && words.iter().all(|at| at.saturating_add(8) <= self.size)
            && self.mapcount.saturating_add(4) <= self.size
            && bytes.iter().all(|at| *at < self.size)
    }
}

/// How much of `asked` is sure to be told rightly on the kernel that `info` describes; and why not all.
pub(super) fn sure(info: &VmcoreInfo, asked: DumpLevel) -> (DumpLevel, Option<String>) {
    let release = info.release().unwrap_or("of an unknown release");
    match version(info) {
        Some(version) if (KNOWN[0]..=KNOWN[1]).contains(&version) => (asked, None),
        _ => {
            let [(first, other), (last, minor)] = KNOWN;
            let why = format!(
                "the crashed kernel is {release}, and where kernels keep what a page is for is known of {first}.{other} to {last}.{minor}: only \
                 pages of zeros are left out"
            );
            (asked.and(DumpLevel::ZERO), Some(why))
        }
    }
}

/// Major and minor number of the release.
fn version(info: &VmcoreInfo) -> Option<(u32, u32)> {
    let mut numbers = info.release()?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The mask of a flag by its number; none of the flags where there is no such bit.
fn bit(number: u64) -> u64 {
    u32::try_from(number).ok().and_then(|number| 1u64.checked_shl(number)).unwrap_or(0)
}

/// vmcoreinfo prints types as the signed 32-bit numbers that they are.
#[allow(clippy::cast_possible_truncation)]
fn to_type(number: u64) -> PageType {
    PageType(number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_types_before_and_since_they_are_a_byte() {
        let old = to_type(-129i64 as u64);
        assert!(old.is(0xffff_ff7f) && !old.is(0xffff_ffff) && !old.is(0));
        let new = to_type(-268_435_456i64 as u64);
        assert!(new.is(0xf000_0000) && new.is(0xf000_0005) && !new.is(0xf100_0000) && !new.is(0xffff_ffff));
    }

    #[test]
    fn kernels_that_are_not_known_lose_pages_of_zeros_only() {
        let of = |release: &str| {
            sure(&VmcoreInfo::parse(format!("OSRELEASE={release}\n").as_bytes()), DumpLevel::new(31).unwrap())
        };
        for known in ["5.10.0-32-amd64", "6.1.0-50-amd64", "7.2.13+deb14-amd64"] {
            assert_eq!(of(known).0.number(), 31, "{known}");
        }
        for unknown in ["4.19.0", "7.3.0-rc1", "8.0", "", "x.y"] {
            let (level, why) = of(unknown);
            assert_eq!(level.number(), 1, "{unknown}");
            assert!(why.unwrap().contains("5.10 to 7.2"));
        }
    }
}
