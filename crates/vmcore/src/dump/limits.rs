//! How many threads there may be.

use std::num::NonZeroUsize;
use std::thread;

use crate::window::MAX_WINDOW;

/// The most threads. Each has a window of its own; some windows are left for others.
const MAX_THREADS: usize = crate::window::MAX_WINDOWS - 8;
/// What a thread takes at most: a buffer for a window where the source cannot be mapped, a batch of compressed
/// pages with their descriptors, the codec's state, its stack.
const THREAD: u64 = MAX_WINDOW as u64 + (2 << 20);

/// The number of threads: as many as were `asked` for, or CPUs, as far as they fit into `limit` bytes, or half of the memory that is
/// available; at least one.
pub(super) fn threads(asked: Option<NonZeroUsize>, limit: Option<u64>) -> usize {
    let wanted = asked.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let limit = limit.or_else(|| available_memory().map(|bytes| bytes / 2)).unwrap_or(THREAD);
    let fit = usize::try_from(limit / THREAD).unwrap_or(MAX_THREADS);
    wanted.min(fit).clamp(1, MAX_THREADS)
}

/// What programs can take of the running kernel's memory, in bytes: MemAvailable of /proc/meminfo, none where it does not tell.
#[must_use]
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_fit_into_memory_and_one_always_runs() {
        let asked = NonZeroUsize::new(4);
        assert_eq!(threads(asked, Some(0)), 1);
        assert_eq!(threads(asked, Some(2 * THREAD)), 2);
        assert_eq!(threads(asked, Some(u64::MAX)), 4);
        assert_eq!(threads(NonZeroUsize::new(1000), Some(u64::MAX)), MAX_THREADS);
        assert!(threads(None, Some(u64::MAX)) >= 1);
        assert!(available_memory().unwrap() > 1 << 20);
    }
}
