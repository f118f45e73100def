//! Saves a crash: the log, the memory, the report, in this order.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use vmcore::{Copied, CopyError, copy_sparse};

use super::console::{Meter, duration, progress_line, say};
use super::crashed::{Crashed, LastWords, LogFailure};
use super::place::Place;
use super::report::{BadPages, LogReport, MemoryReport, Report, Status, Times, sync_directory};
use super::system;
use super::triage::{self, Triage};
use crate::text::size;

const LOG: &str = "vmcore-dmesg.txt";
const INCOMPLETE: &str = "vmcore.incomplete";
const WHOLE: &str = "vmcore";
const REPORT: &str = "report.json";

/// A capture under way.
pub(crate) struct Capture {
    started: Instant,
    report: Report,
}

impl Capture {
    /// Starts the clock.
    pub(crate) fn start(time: jiff::Timestamp) -> Self {
        let report = Report {
            hotdump: env!("CARGO_PKG_VERSION"),
            status: Status::Nothing,
            started: time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            directory: None,
            kernel_release: None,
            panic: None,
            cpus: 0,
            log: LogReport::default(),
            memory: None,
            command: None,
            seconds: Times::default(),
            errors: Vec::new(),
        };
        Self { started: Instant::now(), report }
    }

    /// The report so far.
    pub(crate) fn report(&self) -> &Report {
        &self.report
    }

    /// Notes something that went wrong, and prints it.
    pub(crate) fn fault(&mut self, what: impl std::fmt::Display) {
        say!("{what}");
        self.report.errors.push(what.to_string());
    }

    /// Notes who crashed and why, and prints it. Returns the log's last lines.
    pub(crate) fn meet(&mut self, crashed: &Crashed) -> LastWords {
        let mut words = LastWords::default();
        if let Err(error) = crashed.write_log(&mut words) {
            self.fault(error);
        }
        self.report.kernel_release = crashed.release().map(str::to_owned);
        self.report.panic = words.reason().map(str::to_owned);
        self.report.cpus = crashed.core.cpus().map_or(0, |cpus| cpus.len());
        say!(
            "kernel {} crashed: {}",
            self.report.kernel_release.as_deref().unwrap_or("of unknown release"),
            words.reason().unwrap_or("its log does not say why")
        );
        let missing = crashed.core.missing_bytes();
        if missing > 0 {
            self.fault(format_args!("the image is cut short: {} of it are missing", size(missing)));
        }
        let overwritten = crashed.overwritten_bytes();
        if overwritten > 0 {
            self.fault(format_args!(
                "{} of the crashed kernel's memory are in use by this one and lost: is acpi_no_memhotplug missing on its \
                 command line?",
                size(overwritten)
            ));
        }
        words
    }

    /// Saves the log, then the memory by `command` or without one by hotdump itself, then the report.
    pub(crate) fn save(
        &mut self,
        crashed: &Crashed,
        vmcore: &Path,
        command: &[String],
        words: &LastWords,
        place: &Place,
    ) {
        self.report.directory = Some(place.shown().display().to_string());
        self.report.status = Status::InProgress;
        place.set_aside();
        self.save_log(crashed, place);
        self.save_triage(crashed, words, place);
        self.write_report(place);

        let whole = match command {
            [] => self.save_memory(crashed, place),
            [program, arguments @ ..] => self.run_command(program, arguments, vmcore, place),
        };
        let whole = whole && self.try_step(place.rename(INCOMPLETE, WHOLE), "cannot give the dump its name");
        if whole && let Some(memory) = &mut self.report.memory {
            memory.file = WHOLE.to_owned();
        }
        let anything = self.report.log.saved || self.report.memory.is_some();
        self.report.status = match (whole && self.report.errors.is_empty(), anything) {
            (true, _) => Status::Saved,
            (false, true) => Status::Partial,
            (false, false) => Status::Nothing,
        };
        self.report.seconds.total = self.started.elapsed().as_secs_f64();
        place.give_back();
        self.write_report(place);
    }

    fn save_log(&mut self, crashed: &Crashed, place: &Place) {
        match log_to_file(crashed, place) {
            Ok(stats) => {
                self.report.log = LogReport { saved: true, messages: stats.records, lost: stats.lost };
                say!(
                    "saved the kernel log, {} messages, to {}",
                    stats.records,
                    place.shown().join(LOG).display()
                );
                if stats.lost > 0 {
                    self.fault(format_args!("{} messages of the kernel log could not be read", stats.lost));
                }
            }
            // That the log cannot be read was said when it was read for its last lines; an empty file would say otherwise.
            Err(LogFailure::Read(_)) => {
                let _ = std::fs::remove_file(place.path(LOG));
            }
            Err(error) => self.fault(error),
        }
        self.report.seconds.log = self.started.elapsed().as_secs_f64();
    }

    /// Writes down what the crash looks like at first sight.
    fn save_triage(&mut self, crashed: &Crashed, words: &LastWords, place: &Place) {
        let written = Triage::of(&crashed.core, crashed.info(), words).write(place, words);
        if self.try_step(written, "cannot write the triage") {
            say!("saved a first look at the crash to {}", place.shown().join(triage::TEXT).display());
        }
        self.report.seconds.triage = self.started.elapsed().as_secs_f64();
    }

    /// Copies the memory; whether it is on disk whole.
    fn save_memory(&mut self, crashed: &Crashed, place: &Place) -> bool {
        warn_of_space(crashed.core.size(), place);
        let dump = match place.create_file(INCOMPLETE) {
            Ok(dump) => dump,
            Err(error) => {
                self.fault(format_args!("cannot make {}: {error}", place.shown().join(INCOMPLETE).display()));
                return false;
            }
        };
        let began = Instant::now();
        let mut meter = Meter::new();
        let skip = |address| crashed.is_overwritten(address);
        let outcome = copy_sparse(&crashed.core, &dump, &skip, |progress| {
            if progress.done == progress.total {
                say!("{}", progress_line(progress));
            } else {
                meter.show(progress);
            }
        });
        self.report.seconds.memory = began.elapsed().as_secs_f64();
        let (copied, error) = match outcome {
            Ok(copied) => (copied, None),
            Err(CopyError { offset, source, copied }) => (*copied, Some((offset, source))),
        };
        if let Some((offset, source)) = &error {
            self.fault(format_args!(
                "cannot write {} at {} of {}: {source}",
                place.shown().join(INCOMPLETE).display(),
                size(*offset),
                size(copied.size)
            ));
        }
        self.note_bad_pages(&copied);
        self.report.memory = Some(memory_report(&copied, crashed.core.missing_bytes()));
        let whole = error.is_none() && copied.bad_pages == 0 && crashed.core.missing_bytes() == 0;
        self.sync(&dump, place) && whole
    }

    /// Prints where pages could not be read, the first few runs of them.
    fn note_bad_pages(&mut self, copied: &Copied) {
        const SHOWN: usize = 8;
        if copied.bad_pages == 0 {
            return;
        }
        self.fault(format_args!("{} pages could not be read and are zeros in the dump", copied.bad_pages));
        for run in copied.bad_runs.iter().take(SHOWN) {
            match run.address {
                Some(address) => say!("  {} pages from address {address}", run.pages),
                None => say!("  {} pages of the headers, at offset {:#x}", run.pages, run.offset),
            }
        }
        if copied.bad_runs.len() > SHOWN {
            say!("  and more: {REPORT} has them");
        }
    }

    fn sync(&mut self, dump: &File, place: &Place) -> bool {
        let began = Instant::now();
        let synced = dump.sync_all().and_then(|()| sync_directory(&place.path(INCOMPLETE)));
        self.report.seconds.sync = began.elapsed().as_secs_f64();
        self.try_step(synced, "cannot sync the dump to disk")
    }

    /// Lets the user's own command save the memory; whether it says that it did, and the result is on disk.
    fn run_command(&mut self, program: &str, arguments: &[String], vmcore: &Path, place: &Place) -> bool {
        let output = place.path(INCOMPLETE);
        let fill = |word: &String| {
            word.replace("{vmcore}", &vmcore.to_string_lossy()).replace("{output}", &output.to_string_lossy())
        };
        let arguments: Vec<String> = arguments.iter().map(fill).collect();
        self.report.command =
            Some(std::iter::once(program.to_owned()).chain(arguments.iter().cloned()).collect());
        say!("saving the memory by {program} {}", arguments.join(" "));
        let began = Instant::now();
        let status = Command::new(program).args(&arguments).status();
        self.report.seconds.memory = began.elapsed().as_secs_f64();
        let ran = match status {
            Ok(status) if status.success() => true,
            Ok(status) => {
                self.fault(format_args!("{program} did not save the memory: {status}"));
                false
            }
            Err(error) => {
                self.fault(format_args!("cannot start {program}: {error}"));
                return false;
            }
        };
        let file = match File::open(&output) {
            Ok(file) => file,
            Err(error) => {
                self.fault(format_args!("{program} left no {}: {error}", output.display()));
                return false;
            }
        };
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        self.report.memory =
            Some(MemoryReport { file: INCOMPLETE.to_owned(), size, done: size, ..MemoryReport::default() });
        self.sync(&file, place) && ran
    }

    fn write_report(&mut self, place: &Place) {
        let path = place.path(REPORT);
        if let Err(error) = self.report.write(&path) {
            self.fault(format_args!("cannot write {}: {error}", path.display()));
        }
    }

    fn try_step(&mut self, outcome: io::Result<()>, what: &str) -> bool {
        outcome.map_err(|error| self.fault(format_args!("{what}: {error}"))).is_ok()
    }

    /// Prints how it came out, in one line.
    pub(crate) fn conclude(&self) {
        let place = self.report.directory.as_deref().unwrap_or("nowhere");
        let seconds = std::time::Duration::from_secs_f64(self.report.seconds.total);
        match self.report.status {
            Status::Saved => say!("saved the crash in {place}, in {}", duration(seconds)),
            Status::Partial | Status::InProgress => {
                say!("NOT all of the crash is saved; what there is lies in {place}")
            }
            Status::Nothing => say!("NOTHING of the crash is saved"),
        }
    }
}

fn log_to_file(crashed: &Crashed, place: &Place) -> Result<vmcore::LogStats, LogFailure> {
    let mut out = BufWriter::new(place.create_file(LOG)?);
    let stats = crashed.write_log(&mut out)?;
    out.flush()?;
    out.get_ref().sync_all()?;
    sync_directory(&place.path(LOG))?;
    Ok(stats)
}

/// How much of the memory is zeros is known only in the end, so too little space for all of it is a warning only.
fn warn_of_space(needed: u64, place: &Place) {
    match system::free_space(place.dir()) {
        Ok(free) if free < needed => say!(
            "warning: {} free in {}, and the dump needs up to {}; pages of zeros take none",
            size(free),
            place.shown().display(),
            size(needed)
        ),
        Ok(_) => {}
        Err(error) => say!("cannot tell how much space is free in {}: {error}", place.shown().display()),
    }
}

fn memory_report(copied: &Copied, missing_bytes: u64) -> MemoryReport {
    MemoryReport {
        file: INCOMPLETE.to_owned(),
        size: copied.size,
        done: copied.done,
        data_pages: copied.data_pages,
        zero_pages: copied.zero_pages,
        bad_pages: copied.bad_pages,
        bad: copied.bad_runs.iter().map(|run| BadPages { address: run.address, pages: run.pages }).collect(),
        missing_bytes,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::capture::exit;

    const PAGE: usize = 4096;

    /// A core with one stretch of memory: a page of ones, one of zeros, `more` pages that the file does not have.
    fn core(more: usize) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        for (at, value) in
            [(16, 4u64), (18, 62), (32, 64), (54, 56), (56, 1), (64, 1), (72, 4096), (88, 0x10_0000)]
        {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes()[..2]);
            bytes[at + 2] = value.to_le_bytes()[2];
        }
        for at in [96, 104] {
            bytes[at..at + 8].copy_from_slice(&((2 + more as u64) * PAGE as u64).to_le_bytes());
        }
        bytes.extend([1; PAGE]);
        bytes.extend([0; PAGE]);
        bytes
    }

    /// Saves `core` by `command`; returns the report as it is on disk, and the names beside it.
    fn save(core: &[u8], command: &[&str]) -> (serde_json::Value, Vec<String>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::write(&image, core).unwrap();
        let time = "2026-11-22T15:32:10Z".parse().unwrap();
        let place = Place::create(dir.path(), Path::new("crash"), time).unwrap();
        let crashed = Crashed::open(&image, false).unwrap();
        let mut capture = Capture::start(time);
        let words = capture.meet(&crashed);
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        capture.save(&crashed, &image, &command, &words, &place);
        let report = serde_json::from_slice(&fs::read(place.path(REPORT)).unwrap()).unwrap();
        let entries = fs::read_dir(place.dir()).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        (report, names, dir)
    }

    #[test]
    fn a_whole_dump_is_named_so_also_where_the_log_cannot_be_read() {
        let core = core(0);
        let (report, names, dir) = save(&core, &[]);
        assert_eq!(names, [REPORT, triage::JSON, triage::TEXT, WHOLE]);
        assert_eq!(fs::read(dir.path().join("crash/2026-11-22-15:32:10/vmcore")).unwrap(), core);
        assert_eq!(report["status"], "partial", "the log is missing");
        assert!(report["errors"][0].as_str().unwrap().contains("VMCOREINFO"), "{report}");
        assert_eq!(
            (&report["memory"]["data_pages"], &report["memory"]["zero_pages"]),
            (&2.into(), &1.into())
        );
        assert_eq!(report["memory"]["file"], WHOLE);
    }

    #[test]
    fn an_image_cut_short_stays_incomplete() {
        let (report, names, _dir) = save(&core(3), &[]);
        assert_eq!(names, [REPORT, triage::JSON, triage::TEXT, INCOMPLETE]);
        assert_eq!(report["status"], "partial");
        assert_eq!(report["memory"]["missing_bytes"], 3 * PAGE);
    }

    #[test]
    fn a_command_in_hotdumps_place_is_believed_by_its_exit_code() {
        for (script, name, file) in [
            ("cp $0 $1", Some(WHOLE), WHOLE),
            ("cp $0 $1; exit 3", Some(INCOMPLETE), INCOMPLETE),
            ("exit 0", None, ""),
        ] {
            let (report, names, _dir) = save(&core(0), &["/bin/sh", "-c", script, "{vmcore}", "{output}"]);
            let dump = names.iter().find(|name| name.starts_with("vmcore"));
            assert_eq!(dump.map(String::as_str), name, "{script}");
            assert_eq!(report["memory"]["file"].as_str().unwrap_or(""), file, "{script}");
            assert_eq!(report["command"][0], "/bin/sh");
        }
        let (report, names, _dir) = save(&core(0), &["/no/such/program", "{output}"]);
        assert_eq!(names, [REPORT, triage::JSON, triage::TEXT]);
        assert!(report["errors"].to_string().contains("/no/such/program"), "{report}");
    }

    #[test]
    fn by_hand_into_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let args = |image: &Path| crate::capture::Args {
            config: dir.path().join("none.toml"),
            to: Some(dir.path().to_owned()),
            target: None,
            path: Some("crash".into()),
            vmcore: image.to_owned(),
            final_action: None,
            failure_action: None,
            json: false,
        };
        assert_eq!(crate::capture::run(&args(&image)), exit::NOTHING, "there is no image");
        fs::write(&image, core(0)).unwrap();
        assert_eq!(crate::capture::run(&args(&image)), exit::PARTIAL, "there is no log");
        assert_eq!(fs::read_dir(dir.path().join("crash")).unwrap().count(), 1);
    }
}
