//! A dump of selected frames, compressed or as ELF, by as many threads as machine and memory allow.
//!
//! Headers and bitmaps come first, then room for what describes the pages, then the pages: those that are worth most before all others.
//! What describes a page is written when the page is on the disk. So a dump that ends early, by a full disk, a reset or a loss of power, holds in
//! readable form what was there until then.

mod descriptors;
mod elf;
mod forget;
mod kdump;
mod limits;
mod plan;
mod sink;
mod work;

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crate::bitmap::Frame;
use crate::codec::Codec;
use crate::copy::{MAX_BAD_RUNS, Progress};
use crate::elf::{Core, CoreError};
use crate::filter::Selection;
use crate::source::ReadAt;
use descriptors::{Descriptors, Ended};
pub use forget::{Forgotten, forget};
pub use limits::available_memory;
use plan::Plan;
pub use sink::{Flattened, Sink};
use work::Worker;

/// The format of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// kdump-compressed, version 6.
    Kdump(Codec),
    /// ELF core.
    Elf,
}

/// How a dump is to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DumpOptions {
    /// The dump's format.
    pub format: Format,
    /// The codec's level, where it has levels; 1 if not said.
    pub level: Option<i32>,
    /// Threads; as many as there are CPUs if not said. Fewer run where `memory_limit` allows no more.
    pub threads: Option<NonZeroUsize>,
    /// The most memory in bytes that the threads may take together, beside the bitmaps; half of what is available if not said.
    /// One thread runs in any case, in 6 MiB.
    pub memory_limit: Option<u64>,
}

impl Default for DumpOptions {
    fn default() -> Self {
        Self { format: Format::Kdump(Codec::default()), level: None, threads: None, memory_limit: None }
    }
}

/// What was written. A page has the crashed kernel's page size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Length of the dump, in bytes.
    pub size: u64,
    /// Pages that the dump was to hold.
    pub wanted_pages: u64,
    /// Pages written, those of zeros left out.
    pub data_pages: u64,
    /// Bytes that these take in the dump.
    pub data_bytes: u64,
    /// Pages of zeros: they share one page in a kdump-compressed dump, and are holes in an ELF file.
    pub zero_pages: u64,
    /// Pages that could not be read, and are not in the dump.
    pub bad_pages: u64,
    /// Where those are, lowest first; past [`MAX_BAD_RUNS`] runs only counted.
    pub bad_runs: Vec<Range<Frame>>,
    /// Threads that worked on it.
    pub threads: usize,
}

impl Written {
    /// Adds what another thread wrote.
    fn add(&mut self, other: &Self) {
        self.data_pages += other.data_pages;
        self.data_bytes += other.data_bytes;
        self.zero_pages += other.zero_pages;
        self.bad_pages += other.bad_pages;
        self.bad_runs.extend_from_slice(&other.bad_runs);
    }

    fn count_bad(&mut self, frame: u64) {
        self.bad_pages += 1;
        if let Some(last) = self.bad_runs.last_mut().filter(|last| last.end.0 == frame) {
            last.end.0 += 1;
        } else if self.bad_runs.len() < MAX_BAD_RUNS {
            self.bad_runs.push(Frame(frame)..Frame(frame + 1));
        }
    }

    fn sort_bad_runs(&mut self) {
        self.bad_runs.sort_by_key(|run| run.start);
        self.bad_runs.dedup_by(|next, run| {
            let joined = run.end == next.start;
            if joined {
                run.end = next.end;
            }
            joined
        });
        self.bad_runs.truncate(MAX_BAD_RUNS);
    }
}

/// Why a dump was not written to its end.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The core's headers or notes cannot be read.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// Memory further up than the format can say.
    #[error(
        "the core has memory up to page frame {end}, more than the {most:#x} that a machine can have: its headers are damaged"
    )]
    TooFar {
        /// The frame after the last one.
        end: Frame,
        /// The most frames.
        most: u64,
    },
    /// The codec does not start.
    #[error("cannot start the codec {codec}: {source}")]
    Codec {
        /// The codec.
        codec: Codec,
        /// Its error.
        source: io::Error,
    },
    /// The dump takes no more.
    #[error("cannot write the dump at offset {offset:#x}: {source}")]
    Write {
        /// Offset in the dump, in bytes.
        offset: u64,
        /// The system's error.
        source: io::Error,
        /// What is in the dump all the same, readable.
        written: Box<Written>,
    },
    /// Not all that was written is there: the system said so when it was asked to bring it to the disk. The dump's header says that it is
    /// incomplete.
    #[error("the disk did not take all of the dump: {source}")]
    Sync {
        /// The system's error.
        source: io::Error,
        /// What was written, and may be lost in part.
        written: Box<Written>,
        /// Where the pages' descriptors are in the dump, in bytes: for [`forget()`].
        descriptors: Range<u64>,
    },
}

/// A write that failed, before it is known what else was written.
#[derive(Debug)]
struct WriteFailure {
    offset: u64,
    source: io::Error,
}

impl From<WriteFailure> for DumpError {
    fn from(failure: WriteFailure) -> Self {
        let WriteFailure { offset, source } = failure;
        Self::Write { offset, source, written: Box::default() }
    }
}

/// Writes at an offset, and says where it failed.
fn write_at(sink: &dyn Sink, offset: u64, bytes: &[u8]) -> Result<(), WriteFailure> {
    sink.write_at(offset, bytes).map_err(|source| WriteFailure { offset, source })
}

/// Where the pages of a dump go.
enum Layout {
    Kdump(kdump::Layout),
    Elf(elf::Layout),
}

/// What all threads share.
struct Shared<'a, S> {
    core: &'a Core<S>,
    selection: &'a Selection,
    sink: &'a dyn Sink,
    layout: &'a Layout,
    descriptors: Descriptors<'a>,
    plan: Mutex<Plan<'a>>,
    /// Where the next batch of compressed pages goes.
    next: AtomicU64,
    stop: AtomicBool,
    meter: Mutex<Meter<'a>>,
}

/// Tells the caller how far the work has come.
struct Meter<'a> {
    start: Instant,
    done: u64,
    total: u64,
    progress: &'a mut (dyn FnMut(&Progress) + Send),
}

impl Meter<'_> {
    fn add(&mut self, bytes: u64) {
        self.done += bytes;
        let elapsed = self.start.elapsed();
        (self.progress)(&Progress { done: self.done, total: self.total, elapsed });
    }
}

/// Writes the frames of `core` that `selection` keeps to `sink`, and calls `progress` after each few MiB, one call at a time.
///
/// A page that cannot be read is no error: it is counted and left out.
///
/// # Errors
/// [`DumpError`]; where the sink takes no more, with what was written.
pub fn write_dump<S: ReadAt + Sync>(
    core: &Core<S>,
    selection: &Selection,
    sink: &dyn Sink,
    options: &DumpOptions,
    mut progress: impl FnMut(&Progress) + Send,
) -> Result<Written, DumpError> {
    let wanted_pages = selection.kept.count();
    let (layout, data) = match options.format {
        Format::Kdump(codec) => {
            let layout = kdump::Layout::write(core, selection, sink, codec)?;
            let data = layout.data;
            (Layout::Kdump(layout), data)
        }
        Format::Elf => (Layout::Elf(elf::Layout::write(core, selection, sink)?), 0),
    };
    let shared = Shared {
        core,
        selection,
        sink,
        layout: &layout,
        descriptors: Descriptors::new(sink),
        plan: Mutex::new(Plan::new(core, selection)),
        next: AtomicU64::new(data),
        stop: AtomicBool::new(false),
        meter: Mutex::new(Meter {
            start: Instant::now(),
            done: 0,
            total: wanted_pages * selection.page_size,
            progress: &mut progress,
        }),
    };
    let (mut written, failure, lost) = shared.run(options)?;
    written.wanted_pages = wanted_pages;
    let end = shared.next.into_inner();
    let synced = || if failure.is_none() { sink.sync() } else { Ok(()) };
    if let Layout::Kdump(layout) = &layout
        && let Some(source) = lost.or_else(|| synced().err())
    {
        let (written, descriptors) =
            (Box::new(Written { size: end, ..written }), layout.table..layout.zero_page);
        return Err(DumpError::Sync { source, written, descriptors });
    }
    let ended = match failure {
        Some(failure) => Err(failure),
        None => layout.finish(sink, end),
    };
    match ended {
        Ok(size) => Ok(Written { size, ..written }),
        Err(WriteFailure { offset, source }) => {
            Err(DumpError::Write { offset, source, written: Box::new(written) })
        }
    }
}

impl Layout {
    /// Completes the dump, whose data end at `end`, and gives its length. A disk may fail, or power be lost, as long as pages are on
    /// their way: they have to be there before the header says that none is missing.
    fn finish(&self, sink: &dyn Sink, end: u64) -> Result<u64, WriteFailure> {
        let size = match self {
            Self::Kdump(layout) => {
                layout.complete(sink)?;
                end
            }
            Self::Elf(layout) => layout.size,
        };
        sink.finish(size).map_err(|source| WriteFailure { offset: size, source })?;
        Ok(size)
    }
}

impl<S: ReadAt + Sync> Shared<'_, S> {
    /// Lets the threads work, and gives what they wrote together, the first write that failed, and what the disk said of what it lost.
    fn run(
        &self,
        options: &DumpOptions,
    ) -> Result<(Written, Option<WriteFailure>, Option<io::Error>), DumpError> {
        let threads = limits::threads(options.threads, options.memory_limit);
        let worker = || Worker::new(self, options);
        // The first one is made before anything starts: what does not work for it works for none.
        let own = worker()?;
        let (ends, ended) = thread::scope(|scope| {
            let descriptors = match self.layout {
                // Where the system has no room for this thread, descriptors are written at once.
                Layout::Kdump(_) => {
                    let taken = self.descriptors.taken();
                    let writing = thread::Builder::new().spawn_scoped(scope, || self.descriptors.write_all());
                    writing.ok().map(|writing| (writing, taken))
                }
                Layout::Elf(_) => None,
            };
            let others: Vec<_> = (1..threads)
                .map_while(|_| {
                    let other = worker().ok()?;
                    // Where the system has no room for another thread, those that run do its work.
                    thread::Builder::new().spawn_scoped(scope, move || other.run()).ok()
                })
                .collect();
            let mut ends = vec![own.run()];
            ends.extend(others.into_iter().map(joined));
            let ended = descriptors.map_or_else(Ended::default, |(writing, taken)| {
                drop(taken);
                joined(writing)
            });
            (ends, ended)
        });
        let mut all = Written { threads: ends.len(), ..Written::default() };
        let mut failure = None;
        for (written, failed) in ends {
            all.add(&written);
            failure = failure.or(failed);
        }
        all.sort_bad_runs();
        Ok((all, failure.or(ended.failed), ended.lost))
    }
}

/// What a thread ended with; its panic goes on here.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl<S> Shared<'_, S> {
    fn next_chunk(&self) -> Option<plan::Chunk> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}
