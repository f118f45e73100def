//! Reads the memory image of a crashed kernel (`/proc/vmcore` or an ELF core) and writes a dump of it.
//!
//! The layers, each on the one before:
//! - [`ReadAt`]: bytes at an offset, from a file or from memory;
//! - [`Core`]: the ELF file: notes, the memory that it holds, reads by physical address;
//! - [`VmcoreInfo`]: what the crashed kernel says of itself: symbols, sizes, offsets;
//! - [`AddressSpace`]: reads by the crashed kernel's virtual addresses;
//! - [`Log`]: the kernel log out of the dump, printed as dmesg does;
//! - [`Symbols`] and [`backtrace()`]: the names of functions, and what lies on a CPU's stack;
//! - [`copy`]: the whole image into a sparse file;
//! - [`Selection`]: which frames a dump is to hold;
//! - [`dump`]: these frames into a kdump-compressed or an ELF dump, by many threads;
//! - [`Dump`]: a dump of any kind, read as a core.
//!
//! A crashed machine's memory is hostile input: no number out of it is used unchecked, and a page that cannot be read
//! costs that page only.

mod arch;
mod backtrace;
mod bitmap;
mod btf;
mod codec;
mod compressed;
pub mod copy;
pub mod dump;
mod elf;
mod elf_file;
mod filter;
mod flattened;
mod kallsyms;
mod kdump;
mod lzo;
mod open;
mod printk;
mod source;
mod space;
mod vmcoreinfo;
mod window;

pub use backtrace::{StackEntry, Walk, backtrace, walk_of};
pub use bitmap::{Bitmap, Frame};
pub use btf::{Btf, BtfError, Structure};
pub use codec::{Codec, Compressor, UnknownCodec};
pub use compressed::{Compressed, DumpFileError, DumpHeader};
pub use copy::{BadRun, Copied, CopyError, Progress, copy_sparse};
pub use elf::{Core, CoreError, CpuState, Segment};
pub use filter::{DumpLevel, Excluded, FilterReport, NoLevel, Selection, unlisted_memory};
pub use flattened::{FlattenedError, Rearranged, restore};
pub use kallsyms::{Symbol, SymbolError, Symbols};
pub use open::{Dump, OpenError, Source};
pub use printk::{Log, LogError, LogStats, Record};
pub use source::{ReadAt, VirtAddr, VirtualMemory};
pub use space::AddressSpace;
pub use vmcoreinfo::{InfoError, VmcoreInfo};

/// The size of a page, in bytes, that zero pages and bad pages are counted in.
pub const PAGE: usize = 4096;
