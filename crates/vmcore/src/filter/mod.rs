//! Which page frames of a core are to be in a dump.

mod level;

use elfcorehdr::Machine;

pub use level::{DumpLevel, NoLevel};

use crate::bitmap::{Bitmap, Frame};
use crate::elf::Core;
use crate::source::ReadAt;

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
    /// Those of the kept that are worth most, to be written first.
    pub first: Bitmap,
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
            first: Bitmap::new(),
            report: FilterReport::default(),
        }
    }
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
