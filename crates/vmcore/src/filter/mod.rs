//! Which page frames of a core are to be in a dump.
//!
//! The kernel keeps a `struct page` for each frame, in arrays that `mem_section` lists. [`walk`] reads all of them once, [`page`] says what
//! a page is for, by the [`layout`] that vmcoreinfo tells and the kernel's BTF [confirms](check). What is not recognised for certain is
//! kept.

mod check;
mod layout;
mod level;
mod order;
mod page;
mod unlisted;
mod walk;

use std::ops::Range;

use elfcorehdr::Machine;

pub use level::{DumpLevel, NoLevel};
pub use unlisted::unlisted_memory;

use check::Checked;
use layout::Layout;
use order::{Mappings, TaskSlabs};
use page::Use;
use walk::{Sections, Walk};

use crate::bitmap::{Bitmap, Frame};
use crate::btf::Btf;
use crate::elf::{Core, CoreError};
use crate::kallsyms::Symbols;
use crate::source::{ReadAt, VirtAddr, VirtualMemory};
use crate::space::AddressSpace;
use crate::vmcoreinfo::VmcoreInfo;

/// Which frames are to be in a dump, and in what order.
#[derive(Debug, Clone)]
pub struct Selection {
    /// The crashed kernel's page size, in bytes: what a frame is.
    pub page_size: u64,
    /// Frames that the core holds, at least in part (makedumpfile's first bitmap).
    pub exists: Bitmap,
    /// Those of them that the dump is to hold (the second bitmap). Pages of zeros are in it: who writes the dump finds them as it reads
    /// the pages, and leaves them out where [`report.reached`](FilterReport::reached) includes [`DumpLevel::ZERO`]: a
    /// kdump-compressed file then has one page of zeros for all of them, an ELF file a hole.
    pub kept: Bitmap,
    /// Those of the kept that hold the kernel's page tables, to be written before all others: without them no address means anything.
    pub tables: Bitmap,
    /// Those of the others that are worth most, to be written next.
    pub first: Bitmap,
    /// Those of the others that are worth least, to be written last. None is in two of these sets.
    pub last: Bitmap,
    /// How this came about.
    pub report: FilterReport,
}

/// What was left out, and what could not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilterReport {
    /// The level that was asked for.
    pub asked: DumpLevel,
    /// The level that `kept` is of: at most what was asked for.
    pub reached: DumpLevel,
    /// Why not more, in whole sentences; empty if all went well.
    pub reasons: Vec<String>,
    /// How many of the facts that pages are told by the kernel's BTF says too; 0 where it has none.
    pub confirmed: u32,
    /// Frames left out, by kind.
    pub excluded: Excluded,
}

/// Numbers of frames that are not in a dump, by the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Excluded {
    /// Page cache without private data.
    pub cache: u64,
    /// Page cache with private data.
    pub cache_private: u64,
    /// Anonymous and hugetlb pages of user processes.
    pub user: u64,
    /// Free pages.
    pub free: u64,
    /// Pages with broken memory: reading them could stop the machine.
    pub hwpoison: u64,
    /// Pages that a hypervisor took back (a balloon, virtio-mem).
    pub offline: u64,
}

impl Excluded {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.cache + self.cache_private + self.user + self.free + self.hwpoison + self.offline
    }
}

impl Selection {
    /// All that `core` holds: dump level 0.
    #[must_use]
    pub fn everything<S: ReadAt>(core: &Core<S>) -> Self {
        let page_size = page_size(core);
        let exists = frames_of(core, page_size);
        Self {
            page_size,
            kept: exists.clone(),
            exists,
            tables: Bitmap::new(),
            first: Bitmap::new(),
            last: Bitmap::new(),
            report: FilterReport::default(),
        }
    }
}

impl Selection {
    /// Leaves out `frames`.
    pub fn remove_range(&mut self, frames: Range<Frame>) {
        for set in [&mut self.kept, &mut self.tables, &mut self.first, &mut self.last] {
            set.remove_range(frames.clone());
        }
    }

    /// Has no frame written before others.
    pub fn in_any_order(&mut self) {
        for set in [&mut self.tables, &mut self.first, &mut self.last] {
            *set = Bitmap::new();
        }
    }

    /// Leaves out all that is not in `frames`.
    pub fn keep_only(&mut self, frames: &Bitmap) {
        for set in [&mut self.kept, &mut self.tables, &mut self.first, &mut self.last] {
            set.intersect(frames);
        }
    }

    /// What a dump of `core` at `level` is to hold. Where not all kinds of pages can be told for certain, fewer are left out:
    /// [`report`](Self::report) says which level was reached, and why not more.
    #[must_use]
    pub fn filtered<S: ReadAt>(core: &Core<S>, level: DumpLevel) -> Self {
        let mut selection = Self::everything(core);
        selection.report.asked = level;
        // Whatever else fails, zeros are told by looking at them.
        let zero = level.and(DumpLevel::ZERO);
        selection.report.reached = zero;
        if level == zero {
            return selection;
        }
        let everything = selection.kept.clone();
        if let Err(why) = selection.filter(core, level) {
            selection.kept = everything;
            selection.in_any_order();
            let report = &mut selection.report;
            report.reached = zero;
            report.excluded = Excluded::default();
            report.reasons.push(why);
        }
        selection
    }

    /// Leaves out what `level` says.
    ///
    /// # Errors
    /// Why nothing may be left out, in a sentence. `self` is left half done.
    fn filter<S: ReadAt>(&mut self, core: &Core<S>, level: DumpLevel) -> Result<(), String> {
        let told = |error: CoreError| format!("what pages are for cannot be found out: {error}");
        let info = core.vmcoreinfo().map_err(told)?;
        let (sure, why) = layout::sure(&info, level);
        if let Some(why) = why {
            return Err(why);
        }
        let lacks = |error: crate::InfoError| told(error.into());
        let layout = Layout::of(&info).map_err(lacks)?;
        let sections = Sections::of(&info, self.page_size).map_err(lacks)?;
        let memory = AddressSpace::new(core, &info).map_err(told)?;
        let symbols = Symbols::open(&memory, &info).ok();
        let btf = Btf::find(&memory, &info, symbols.as_ref()).ok();
        let sure = self.confirmed(&info, btf.as_ref(), sure)?;
        let tasks = TaskSlabs::of(&memory, symbols.as_ref(), btf.as_ref());
        drop(btf);
        let mut walk = Walk::new(core, &memory, &layout, &tasks, self.page_size);
        let mut seen = Seen::default();
        let each = |section, map| {
            let frames = sections.frames(section);
            // Memory that is not in the core needs no looking at.
            if self.exists.next_in(Frame(frames.start)).is_none_or(|next| next.0 >= frames.end) {
                return;
            }
            let mut take = |frames, what| self.take(frames, what, sure, &mut seen);
            if let Err(error) = walk.section(frames.clone(), map, &mut take) {
                seen.unread += 1;
                seen.last_error.get_or_insert_with(|| error.to_string());
            }
        };
        sections.each(&memory, each).map_err(told)?;
        if let Some(error) = seen.last_error {
            let sections = seen.unread;
            self.report.reasons.push(format!(
                "of {sections} sections of memory what their pages are for cannot be read, and all is kept: {error}"
            ));
        }
        if seen.slab == 0 {
            return Err("no page of a slab is found, and every kernel has them: this kernel's pages are not understood".into());
        }
        self.report.reached = sure;
        let arrays = walk.arrays;
        let size = (self.page_size, self.exists.end());
        let mappings = order::mappings(&memory, symbols.as_ref(), &sections, size);
        self.holds_what_it_must(core, &info, &memory, symbols.as_ref(), &mappings.upper_tables)?;
        self.order(mappings, &arrays);
        Ok(())
    }

    /// What of `level` the kernel's BTF says nothing against. A kernel without any is believed.
    ///
    /// # Errors
    /// If that is not more than pages of zeros.
    fn confirmed(
        &mut self,
        info: &VmcoreInfo,
        btf: Option<&Btf>,
        level: DumpLevel,
    ) -> Result<DumpLevel, String> {
        let Some(btf) = btf else { return Ok(level) };
        let mut checked = Checked::of(info, btf);
        self.report.confirmed = checked.same;
        let sure = checked.sure(level);
        if sure == level.and(DumpLevel::ZERO) {
            return Err(checked.differences.join("; "));
        }
        self.report.reasons.append(&mut checked.differences);
        Ok(sure)
    }

    /// Completes what is written first, and last: `arrays` are the structures of pages.
    fn order(&mut self, mappings: Mappings, arrays: &Bitmap) {
        self.tables = mappings.tables;
        for run in mappings.frames.runs() {
            self.first.insert_range(run);
        }
        for run in arrays.runs().chain(mappings.functions.runs()) {
            self.first.remove_range(run.clone());
            self.last.insert_range(run);
        }
        for set in [&mut self.tables, &mut self.first, &mut self.last] {
            set.intersect(&self.kept);
        }
        for run in self.tables.runs() {
            self.first.remove_range(run.clone());
            self.last.remove_range(run);
        }
        for run in self.first.runs() {
            self.last.remove_range(run);
        }
    }

    /// Counts a run of pages of one use, and leaves it out if `level` says so.
    fn take(&mut self, frames: Range<Frame>, what: Use, level: DumpLevel, seen: &mut Seen) {
        let all_cache = level.includes(DumpLevel::CACHE_PRIVATE);
        let excluded = &mut self.report.excluded;
        let (is_out, count) = match what {
            Use::Kernel => return,
            Use::Slab | Use::TaskSlab => {
                seen.slab += frames.end.0 - frames.start.0;
                if what == Use::TaskSlab {
                    self.first.insert_range(frames);
                }
                return;
            }
            Use::Free => (level.includes(DumpLevel::FREE), &mut excluded.free),
            Use::Cache => (all_cache || level.includes(DumpLevel::CACHE), &mut excluded.cache),
            Use::CachePrivate => (all_cache, &mut excluded.cache_private),
            Use::User => (level.includes(DumpLevel::USER), &mut excluded.user),
            Use::HwPoison => (true, &mut excluded.hwpoison),
            Use::Offline => (true, &mut excluded.offline),
        };
        if is_out {
            *count += self.kept.remove_range(frames);
        } else {
            self.last.insert_range(frames);
        }
    }

    /// What nobody can do without must be kept, or the pages were read wrongly.
    fn holds_what_it_must<S: ReadAt>(
        &self,
        core: &Core<S>,
        info: &VmcoreInfo,
        memory: &AddressSpace<'_, S>,
        symbols: Option<&Symbols<'_, AddressSpace<'_, S>>>,
        upper_tables: &[Frame],
    ) -> Result<(), String> {
        let told = ["init_uts_ns", "swapper_pg_dir", "init_top_pgt", "mem_section", "prb", "node_data"];
        let mut needed: Vec<(&str, VirtAddr)> =
            told.into_iter().filter_map(|name| Some((name, info.symbol(name).ok()?))).collect();
        needed.extend(symbols.map(|symbols| needed_symbols(symbols, memory)).unwrap_or_default());
        // A CPU may have been in a user's program.
        let cpus = core.cpus().unwrap_or_default();
        needed.extend(cpus.iter().filter(|cpu| !is_user(cpu.sp)).map(|cpu| ("a CPU's stack", cpu.sp)));
        let placed = needed.into_iter().filter_map(|(name, at)| Some((name, memory.translate(at).ok()?.0)));
        let placed = placed.map(|(name, phys)| (name, Frame::holding(phys, self.page_size)));
        let tables = upper_tables.iter().map(|table| ("a page table of the kernel's", *table));
        for (name, frame) in placed.chain(tables) {
            if self.exists.contains(frame) && !self.kept.contains(frame) {
                return Err(format!(
                    "{name}, in page frame {frame}, would not be in the dump: this kernel's pages are not understood"
                ));
            }
        }
        Ok(())
    }
}

/// What only the kernel's own symbols lead to, where it has them in the dump: the first task, and an object in a slab.
fn needed_symbols<M: VirtualMemory>(symbols: &Symbols<'_, M>, memory: &M) -> Vec<(&'static str, VirtAddr)> {
    let [task, caches] = symbols.find(["init_task", "slab_caches"]);
    // The list's first element lies in a struct kmem_cache, which is allocated from a slab.
    let cache = caches.and_then(|list| memory.read_u64(list).ok()).map(VirtAddr);
    let all = [("init_task", task), ("slab_caches", caches), ("a kmem_cache, in a slab", cache)];
    all.into_iter().filter_map(|(name, address)| Some((name, address?))).collect()
}

/// The lower half of the addresses is the user's, on both machines.
fn is_user(address: VirtAddr) -> bool {
    address.0 >> 63 == 0
}

/// A number as an index; one that is too large is beyond the end of everything.
fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// What came by on the walk.
#[derive(Debug, Default)]
struct Seen {
    /// Pages of slabs.
    slab: u64,
    /// Sections whose pages could not be read.
    unread: u64,
    last_error: Option<String>,
}

/// The crashed kernel's page size: by vmcoreinfo, else what kernels of its machine have as a rule.
fn page_size<S: ReadAt>(core: &Core<S>) -> u64 {
    let told = core.vmcoreinfo().ok().and_then(|info| info.get("PAGESIZE")?.parse().ok());
    let usual = match core.machine() {
        Machine::Ppc64 => 0x10000,
        _ => 0x1000,
    };
    told.filter(|size| [0x1000, 0x10000].contains(size)).unwrap_or(usual)
}

/// The frames that the file holds, at least in part. What headers promise beyond the file's end is not there.
fn frames_of<S: ReadAt>(core: &Core<S>, page_size: u64) -> Bitmap {
    let mut frames = Bitmap::new();
    for load in core.loads() {
        let held = load.size.min(core.size().saturating_sub(load.offset));
        let end = load.paddr.0.saturating_add(held);
        frames.insert_range(Frame::holding(load.paddr, page_size)..Frame(end.div_ceil(page_size)));
    }
    frames
}
