//! Whether anything still moves: a capture that hangs on a dead disk must end in the failure action.
//!
//! What counts is CPU time of processes and I/O that came to its end. The network does not: others send to it too.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// Kernel threads have this bit set among the flags of /proc/PID/stat (PF_KTHREAD).
const KERNEL_THREAD: u64 = 0x0020_0000;

/// What /proc/diskstats counts of ended I/O, by place behind the device's name, from 1: reads, sectors read, writes, sectors
/// written, discards, sectors discarded, flushes. The times between them go on while a request hangs.
const ENDED_IO: [usize; 7] = [1, 3, 5, 7, 12, 14, 16];

/// Watches for a time in which neither a process but ours nor a disk did anything.
pub(crate) struct Watch {
    limit: Duration,
    seen: u64,
    since: Instant,
}

impl Watch {
    /// A watch that finds a stall after `limit` without activity.
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit, seen: activity(Path::new("/proc")), since: Instant::now() }
    }

    /// Looks again; whether nothing has happened for the limit.
    pub(crate) fn is_stalled(&mut self) -> bool {
        let now = activity(Path::new("/proc"));
        if now != self.seen {
            self.seen = now;
            self.since = Instant::now();
        }
        self.since.elapsed() >= self.limit
    }
}

/// A number that changes when processes or disks do something.
fn activity(proc: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let disks = fs::read_to_string(proc.join("diskstats")).unwrap_or_default();
    for disk in disks.lines() {
        let fields: Vec<&str> = disk.split_ascii_whitespace().skip(2).collect();
        ENDED_IO.iter().for_each(|place| fields.get(*place).hash(&mut hasher));
    }
    let mut ticks = 0u64;
    for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid != std::process::id() {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            ticks = ticks.wrapping_add(process_ticks(&stat).unwrap_or(0));
        }
    }
    ticks.hash(&mut hasher);
    hasher.finish()
}

/// CPU time in a line of /proc/PID/stat, in ticks; none for kernel threads.
fn process_ticks(stat: &str) -> Option<u64> {
    // The name, in parentheses, may hold anything: what follows its last one is state (field 3) and numbers.
    let (_, fields) = stat.rsplit_once(')')?;
    let field = |number: usize| fields.split_ascii_whitespace().nth(number - 3)?.parse::<u64>().ok();
    if field(9)? & KERNEL_THREAD != 0 {
        return None;
    }
    field(14)?.checked_add(field(15)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_past_any_name() {
        let stat = |name: &str, flags: u64| {
            format!("71 ({name}) R 1 71 71 0 -1 {flags} 5 0 0 0 120 34 0 0 20 0 1 0 9")
        };
        assert_eq!(process_ticks(&stat("hotdump", 0x40_0000)), Some(154));
        assert_eq!(process_ticks(&stat("a) b (c", 0)), Some(154));
        assert_eq!(process_ticks(&stat("kworker/0:1", KERNEL_THREAD)), None);
        assert_eq!(process_ticks("71 (cut"), None);
    }

    #[test]
    fn disks_and_processes_count_as_activity_and_nothing_else_does() {
        let proc = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = proc.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let own = std::process::id();
        write("4000000000/stat", "9 (dd) R 1 1 1 0 -1 0 0 0 0 0 5 5 0");
        write("diskstats", "254 0 vda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n");
        write(&format!("{own}/stat"), "1 (init) R 1 1 1 0 -1 0 0 0 0 0 5 5 0");
        let before = activity(proc.path());
        write(&format!("{own}/stat"), "1 (init) R 1 1 1 0 -1 0 0 0 0 0 9 9 0");
        write("uptime", "12.3");
        assert_eq!(activity(proc.path()), before);
        write("4000000000/stat", "9 (dd) R 1 1 1 0 -1 0 0 0 0 0 5 6 0");
        let busy = activity(proc.path());
        assert_ne!(busy, before);
        write("diskstats", "254 0 vda 1 2 3 4 5 6 7 8 9 99 99 12 13 14 15 16 17\n");
        assert_eq!(activity(proc.path()), busy, "a request that hangs makes time pass, no more");
        write("diskstats", "254 0 vda 1 2 3 4 6 6 7 8 9 99 99 12 13 14 15 16 17\n");
        assert_ne!(activity(proc.path()), busy);
    }
}
