//! How much memory a capture takes, for `hotdump estimate`: what a reservation must be able to hold.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use host::Host;
use serde::{Deserialize, Serialize};
use vmcore::dump::available_memory;

/// How often is looked. Memory that is taken for less time than this between two looks is missed; the margin is for that.
const LOOK: Duration = Duration::from_millis(100);

/// What the capture took of the capture kernel's memory. All in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryUse {
    /// What the capture kernel was given, by its own memory map; none on PowerPC, whose map has the crashed kernel's memory too.
    pub(crate) given: Option<u64>,
    /// What was left of it when the kernel and what it keeps for good were in place (MemTotal).
    pub(crate) total: u64,
    /// What could be had when the capture started (MemAvailable).
    pub(crate) available_at_start: u64,
    /// The least that could be had at any look since.
    pub(crate) available_least: u64,
    /// The most that this program had in memory (VmHWM).
    pub(crate) program_peak: u64,
    /// What the files of the initramfs take, unpacked.
    pub(crate) initramfs: u64,
}

/// Looks at the memory from now on.
pub(crate) struct Meter {
    at_start: MemoryUse,
    least: Arc<AtomicU64>,
}

impl Meter {
    /// Starts to look; none where the kernel does not tell. `initramfs` is where that lies unpacked.
    pub(crate) fn start(initramfs: &Path) -> Option<Self> {
        let total = kib(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")?;
        let available = available_memory()?;
        let given = || Some(Host::live().iomem().ok()?.ram().iter().map(|range| range.len()).sum());
        let at_start = MemoryUse {
            given: given().filter(|_| cfg!(target_arch = "x86_64")),
            total,
            available_at_start: available,
            available_least: available,
            program_peak: 0,
            initramfs: files_below(initramfs),
        };
        let least = Arc::new(AtomicU64::new(available));
        let seen = Arc::clone(&least);
        let looking = thread::Builder::new().stack_size(64 << 10).spawn(move || {
            loop {
                look(&seen);
                thread::sleep(LOOK);
            }
        });
        looking.ok()?;
        Some(Self { at_start, least })
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> MemoryUse {
        look(&self.least);
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        MemoryUse {
            available_least: self.least.load(Ordering::Relaxed),
            program_peak: kib(&status, "VmHWM").unwrap_or_default(),
            ..self.at_start.clone()
        }
    }
}

fn look(least: &AtomicU64) {
    if let Some(available) = available_memory() {
        least.fetch_min(available, Ordering::Relaxed);
    }
}

/// The bytes that a line `NAME:  123 kB` tells.
pub(crate) fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes of all files below `dir` on its own filesystem, each of them in whole blocks.
fn files_below(dir: &Path) -> u64 {
    let Ok(top) = fs::symlink_metadata(dir) else { return 0 };
    let mut to_do = vec![dir.to_owned()];
    let mut bytes = 0;
    while let Some(dir) = to_do.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                // What is mounted on it is somebody else's.
                Ok(found) if found.dev() != top.dev() => {}
                Ok(found) if found.is_dir() => to_do.push(entry.path()),
                Ok(found) if found.is_file() => bytes += found.len().next_multiple_of(4096),
                _ => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_taken_is_seen_after_it_was_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let meter = Meter::start(dir.path()).unwrap();
        let before = meter.seen();
        assert!(before.total > before.available_least && before.available_least > 0, "{before:?}");
        const TAKEN: usize = 256 << 20;
        drop(std::hint::black_box(vec![1_u8; TAKEN]));
        let after = meter.seen();
        let grown = after.program_peak - before.program_peak;
        assert!(grown > TAKEN as u64 / 2, "{grown} bytes more at the peak");
        assert!(after.available_least <= before.available_least);
        assert_eq!(after.total, before.total);
    }

    #[test]
    fn numbers_are_read_out_of_the_kernel_s_lines() {
        let text = "MemTotal:         123 kB\nMemAvailable:      7 kB\nHugePages_Total:       3\n";
        assert_eq!(kib(text, "MemTotal"), Some(123 << 10));
        assert_eq!(kib(text, "MemAvailable"), Some(7 << 10));
        for name in ["Mem", "HugePages_Total", "MemFree"] {
            assert_eq!(kib(text, name), None, "{name}");
        }
    }

    #[test]
    fn files_are_counted_in_blocks_and_links_are_not() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/x"), [0; 5000]).unwrap();
        fs::write(dir.path().join("y"), [0; 1]).unwrap();
        std::os::unix::fs::symlink("y", dir.path().join("z")).unwrap();
        assert_eq!(files_below(dir.path()), 3 * 4096);
        assert_eq!(files_below(&dir.path().join("none")), 0);
    }
}
