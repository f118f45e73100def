//! `report.json`: what was saved and what was not, for programs to read.

use std::fs::{self, File};
use std::io;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use elfcorehdr::PhysAddr;
use serde::Serialize;
use vmcore::dump::Forgotten;

use super::usage::MemoryUse;

/// How a capture came out. Written as "in-progress" first, so that a machine that dies half-way leaves the truth behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    /// The memory is being saved.
    InProgress,
    /// Log and memory are saved whole.
    Saved,
    /// Not all could be saved; what is missing is said in the report.
    Partial,
    /// Nothing could be saved.
    Nothing,
}

/// The kernel log.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct LogReport {
    /// Whether the log file is on disk, synced.
    pub(crate) saved: bool,
    /// Messages in it.
    pub(crate) messages: u64,
    /// Messages that could not be read out of the dump.
    pub(crate) lost: u64,
}

/// Pages side by side that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct BadPages {
    /// Physical address of the first one; none outside memory.
    pub(crate) address: Option<PhysAddr>,
    /// How many, of 4096 bytes.
    pub(crate) pages: u64,
}

/// The memory.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct MemoryReport {
    /// The dump's file name beside the report.
    pub(crate) file: String,
    /// The dump's length, in bytes, holes included.
    pub(crate) size: u64,
    /// Bytes of the memory that were looked at.
    pub(crate) done: u64,
    /// The file's format; none where a command wrote it.
    pub(crate) format: Option<String>,
    /// The size of the pages that are counted below, in bytes.
    pub(crate) page_size: u64,
    /// The level that was configured.
    pub(crate) dump_level_asked: Option<u8>,
    /// The level that the dump is of.
    pub(crate) dump_level: Option<u8>,
    /// Why these are not the same.
    pub(crate) dump_level_reasons: Vec<String>,
    /// Pages left out by the filter.
    pub(crate) excluded_pages: u64,
    /// Pages that were written, and that the disk has.
    pub(crate) data_pages: u64,
    /// Pages of zeros, which take no space.
    pub(crate) zero_pages: u64,
    /// Pages that could not be read, and read as zeros or not at all.
    pub(crate) bad_pages: u64,
    /// Where those are; at most 1024 runs.
    pub(crate) bad: Vec<BadPages>,
    /// Pages that were written, and that the disk then lost: they are not in the dump.
    pub(crate) lost_pages: u64,
    /// Bytes that the core's headers promise and that it does not have.
    pub(crate) missing_bytes: u64,
    /// The SHA-256 of `manifest.json`, which has the checksums of the dump's pieces; none where it could not be made.
    pub(crate) manifest_sha256: Option<String>,
    /// Bytes that were read back from the disk and are as they were written.
    pub(crate) read_back_bytes: u64,
}

impl MemoryReport {
    /// Counts pages as lost that the disk did not keep.
    pub(crate) fn lose(&mut self, lost: Forgotten) {
        self.data_pages = self.data_pages.saturating_sub(lost.data_pages);
        self.zero_pages = self.zero_pages.saturating_sub(lost.zero_pages);
        self.lost_pages += lost.data_pages + lost.zero_pages;
    }
}

/// How long things took, in seconds.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Times {
    /// From the program's start to the log on disk.
    pub(crate) log: f64,
    /// From the program's start to the triage on disk.
    pub(crate) triage: f64,
    /// Copying the memory.
    pub(crate) memory: f64,
    /// Choosing pages, and seeing whether they fit.
    pub(crate) select: f64,
    /// Syncing it to disk, and reading a part back.
    pub(crate) sync: f64,
    /// All of it.
    pub(crate) total: f64,
}

/// The report.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// The version of hotdump that wrote it.
    pub(crate) hotdump: &'static str,
    /// How the capture came out.
    pub(crate) status: Status,
    /// When the capture started, UTC.
    pub(crate) started: String,
    /// Where the dump lies.
    pub(crate) directory: Option<String>,
    /// Where on this machine log and triage lie, because a server did not take the whole dump.
    pub(crate) local_log: Option<String>,
    /// The crashed kernel's release.
    pub(crate) kernel_release: Option<String>,
    /// The line of its log that says why it crashed.
    pub(crate) panic: Option<String>,
    /// CPUs whose state is in the dump.
    pub(crate) cpus: usize,
    /// The kernel log.
    pub(crate) log: LogReport,
    /// The memory; none where it was not reached.
    pub(crate) memory: Option<MemoryReport>,
    /// The command that saved it in hotdump's place.
    pub(crate) command: Option<Vec<String>>,
    /// Old dumps that were removed.
    pub(crate) removed: Vec<String>,
    /// What it took of the capture kernel's memory; none where it ran elsewhere.
    pub(crate) memory_use: Option<MemoryUse>,
    /// How long things took.
    pub(crate) seconds: Times,
    /// What went wrong, in the order it did.
    pub(crate) errors: Vec<String>,
}

impl Report {
    /// Writes the report to `path`, in whole or not at all.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        let temporary = path.with_extension("json.new");
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_directory(path)
    }
}

/// Syncs the directory that holds `path`, so that a name in it lasts.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_report_is_json_with_addresses_in_hex_and_replaces_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        let mut report = Report {
            hotdump: "0.1.0",
            status: Status::InProgress,
            started: "2026-11-22T15:32:10Z".into(),
            directory: None,
            local_log: None,
            kernel_release: Some("6.12".into()),
            panic: None,
            cpus: 2,
            log: LogReport { saved: true, messages: 3, lost: 0 },
            memory: None,
            command: None,
            removed: Vec::new(),
            memory_use: None,
            seconds: Times::default(),
            errors: Vec::new(),
        };
        report.write(&path).unwrap();
        report.status = Status::Partial;
        report.memory = Some(MemoryReport {
            bad: vec![BadPages { address: Some(PhysAddr(0x12_3000)), pages: 2 }],
            ..MemoryReport::default()
        });
        report.write(&path).unwrap();

        let found: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(found["status"], "partial");
        assert_eq!(found["memory"]["bad"][0]["address"], "0x123000");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }
}
