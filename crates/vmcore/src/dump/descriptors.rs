//! When a page's descriptor is written: not before the page is on the disk.
//!
//! A machine may lose power, or be reset, while it saves. What it had written is then lost but for what the system had brought to the
//! disk, in whatever order. So a thread of its own has all brought there, again and again, and then writes the descriptors of pages that
//! were written before: what a dump describes after a loss of power is there, and what is not there is not described.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Sink, WriteFailure, write_at};

/// How often pages are brought to the disk, at most: so much of the work is lost with the power.
const INTERVAL: Duration = Duration::from_millis(500);

/// The most descriptors that wait, in bytes: those of some 11,000 pages. Who has more waits as well.
const MOST: usize = 256 << 10;

/// Descriptors on their way into the dump.
pub(super) struct Descriptors<'a> {
    sink: &'a dyn Sink,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

struct Waiting {
    /// Neighbours, and where they go.
    runs: Vec<(u64, Vec<u8>)>,
    bytes: usize,
    /// Whether nobody takes them from here: then they are written at once.
    alone: bool,
}

/// How it ended for the thread that writes them.
#[derive(Default)]
pub(super) struct Ended {
    /// The disk lost some of what was written.
    pub(super) lost: Option<io::Error>,
    /// The dump takes no more.
    pub(super) failed: Option<WriteFailure>,
}

impl<'a> Descriptors<'a> {
    pub(super) fn new(sink: &'a dyn Sink) -> Self {
        let waiting = Waiting { runs: Vec::new(), bytes: 0, alone: true };
        Self { sink, waiting: Mutex::new(waiting), changed: Condvar::new() }
    }

    /// From now on there is somebody who runs [`Self::write_all`], until what this gives is dropped.
    pub(super) fn taken(&self) -> Taken<'_, 'a> {
        self.waiting().alone = false;
        Taken(self)
    }

    /// Takes descriptors of pages that are written.
    pub(super) fn add(&self, runs: Vec<(u64, Vec<u8>)>) -> Result<(), WriteFailure> {
        let waiting = self.waiting();
        let full = |waiting: &mut Waiting| waiting.bytes > MOST && !waiting.alone;
        let mut waiting = self.changed.wait_while(waiting, full).unwrap_or_else(PoisonError::into_inner);
        if waiting.alone {
            drop(waiting);
            return self.write(runs);
        }
        waiting.bytes += runs.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        waiting.runs.extend(runs);
        if waiting.bytes > MOST {
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Writes descriptors as their pages are on the disk, until there will be no more.
    pub(super) fn write_all(&self) -> Ended {
        let mut ended = Ended::default();
        loop {
            let waiting = self.waiting();
            let idle = |waiting: &mut Waiting| waiting.bytes <= MOST && !waiting.alone;
            let (mut waiting, _) = self
                .changed
                .wait_timeout_while(waiting, INTERVAL, idle)
                .unwrap_or_else(PoisonError::into_inner);
            let (runs, last) = (std::mem::take(&mut waiting.runs), waiting.alone);
            waiting.bytes = 0;
            drop(waiting);
            self.changed.notify_all();
            if !runs.is_empty() {
                // All that is lost is looked for when all is written.
                let synced = self.sink.sync();
                ended.lost = ended.lost.or(synced.err());
                let written = if ended.failed.is_none() { self.write(runs) } else { Ok(()) };
                ended.failed = ended.failed.or(written.err());
            }
            if last {
                return ended;
            }
        }
    }

    fn write(&self, runs: Vec<(u64, Vec<u8>)>) -> Result<(), WriteFailure> {
        runs.into_iter().try_for_each(|(offset, bytes)| write_at(self.sink, offset, &bytes))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends [`Descriptors::write_all`] when it is dropped, also by a panic.
pub(super) struct Taken<'d, 'a>(&'d Descriptors<'a>);

impl Drop for Taken<'_, '_> {
    fn drop(&mut self) {
        self.0.waiting().alone = true;
        self.0.changed.notify_all();
    }
}
