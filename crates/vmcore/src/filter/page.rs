//! What a page is for, by its `struct page`.

use super::layout::{Hugetlb, Layout, Order, Slab};
use super::order::TaskSlabs;

/// The lowest bit of `mapping`: the page is anonymous (PAGE_MAPPING_ANON, FOLIO_MAPPING_ANON), KSM's too.
const MAPPING_ANON: u64 = 1;
/// The lowest bit of the word about compound pages: the page is a tail.
const TAIL: u64 = 1;
/// The largest order that is believed: of 16 GiB in pages of 64 KiB, and of 1 GiB in pages of 4 KiB.
const MAX_ORDER: u8 = 18;

/// What a page is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// The kernel's, or nothing that is known: to be kept.
    Kernel,
    /// Kept like the kernel's; counted, because a kernel without any is not read rightly.
    Slab,
    /// The same, and written first: its objects lead to the tasks.
    TaskSlab,
    Free,
    Cache,
    CachePrivate,
    User,
    HwPoison,
    /// A hypervisor's, for the time being.
    Offline,
}

/// The structures of neighbouring pages, and how they are read.
pub(super) struct Pages<'a> {
    pub(super) layout: &'a Layout,
    pub(super) tasks: &'a TaskSlabs,
    pub(super) bytes: &'a [u8],
    /// The frame number of the first of them.
    pub(super) first: u64,
}

impl Pages<'_> {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.bytes.len() / self.layout.size
    }

    /// What the page with this index is for, and for how many pages from there on that holds (a power of two).
    pub(super) fn look(&self, index: usize) -> Option<(Use, u64)> {
        let page = self.page(index)?;
        let frame = self.first + index as u64;
        let (flags, kind) = (word(page, self.layout.flags)?, half(page, self.layout.mapcount)?);
        let is = |known: Option<super::layout::PageType>| known.is_some_and(|known| known.is(kind));
        // Before all else: reading such a page could stop the machine.
        if self.layout.hwpoison.is_some_and(|flag| flags & flag != 0) {
            return Some((Use::HwPoison, 1));
        }
        if let Slab::Flag(flag) = self.layout.slab
            && flags & flag != 0
        {
            return Some((self.slab(page), self.compound(index, frame, flags)));
        }
        if self.layout.buddy.is(kind) {
            let order = word(page, self.layout.private)?;
            // An order that cannot be: what this is, is not sure.
            return Some(believable(order, frame).map_or((Use::Kernel, 1), |pages| (Use::Free, pages)));
        }
        if is(self.layout.offline) || is(self.layout.unaccepted) {
            return Some((Use::Offline, 1));
        }
        let pages = self.compound(index, frame, flags);
        Some((self.use_of(index, page, flags, kind, pages)?, pages))
    }

    fn use_of(&self, index: usize, page: &[u8], flags: u64, kind: u32, pages: u64) -> Option<Use> {
        let layout = self.layout;
        if let Slab::Type(slab) = layout.slab
            && slab.is(kind)
        {
            return Some(self.slab(page));
        }
        if pages > 1 && self.is_hugetlb(index, kind) {
            return Some(Use::User);
        }
        // A count of mappings is -1 and more; below are types that are not known here: page tables and others of the kernel's.
        if kind.cast_signed() < -1 {
            return Some(Use::Kernel);
        }
        let is_anonymous = word(page, layout.mapping)? & MAPPING_ANON != 0;
        let is_swap = flags & layout.swapcache != 0 && flags & layout.swapbacked != 0;
        Some(match (is_anonymous, flags & layout.lru != 0 || is_swap) {
            (true, _) => Use::User,
            (false, true) if flags & layout.has_private == 0 => Use::Cache,
            (false, true) => Use::CachePrivate,
            (false, false) => Use::Kernel,
        })
    }

    fn slab(&self, page: &[u8]) -> Use {
        if self.tasks.has(page) { Use::TaskSlab } else { Use::Slab }
    }

    fn is_hugetlb(&self, index: usize, kind: u32) -> bool {
        let second = || self.page(index + 1);
        match self.layout.hugetlb {
            None => false,
            Some(Hugetlb::Type(known)) => known.is(kind),
            Some(Hugetlb::Destructor(at, value)) => second().and_then(|page| page.get(at)) == Some(&value),
            Some(Hugetlb::Flag(flag)) => {
                second().and_then(|page| word(page, self.layout.flags)).is_some_and(|flags| flags & flag != 0)
            }
        }
    }

    /// How many pages the compound page has that begins here; 1 where none does, or where what is written of it cannot be.
    fn compound(&self, index: usize, frame: u64, flags: u64) -> u64 {
        if flags & self.layout.head == 0 {
            return 1;
        }
        let pages = self.page(index + 1).and_then(|second| {
            let is_tail = word(second, self.layout.compound)? & TAIL != 0;
            let order = match self.layout.order {
                Order::Byte(at) => *second.get(at)?,
                Order::LowByteOfFlags => *second.get(self.layout.flags)?,
            };
            believable(u64::from(order), frame).filter(|_| is_tail)
        });
        pages.unwrap_or(1)
    }

    fn page(&self, index: usize) -> Option<&[u8]> {
        let start = index.checked_mul(self.layout.size)?;
        self.bytes.get(start..start + self.layout.size)
    }
}

/// 2 to the `order`, where there are such pages and one can begin at `frame`.
fn believable(order: u64, frame: u64) -> Option<u64> {
    let order = u8::try_from(order).ok().filter(|order| *order <= MAX_ORDER)?;
    let pages = 1u64 << order;
    frame.is_multiple_of(pages).then_some(pages)
}

fn word(page: &[u8], at: usize) -> Option<u64> {
    page.get(at..)?.first_chunk().copied().map(u64::from_le_bytes)
}

fn half(page: &[u8], at: usize) -> Option<u32> {
    page.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}
