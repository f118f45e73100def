//! Saves a crash: the log, the memory, the report, in this order.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use vmcore::dump::{DumpError, DumpOptions, Format, Sink, Written, forget, write_dump};
use vmcore::{Copied, CopyError, Core, DumpLevel, Progress, ReadAt, Selection, copy_sparse};

use super::config::{Config, FileFormat};
use super::console::{duration, progress_line, say};
use super::crashed::{Crashed, LastWords, LogFailure};
use super::place::Place;
use super::report::{BadPages, LogReport, MemoryReport, Report, Status, Times, sync_directory};
use super::sftp::RemoteFile;
use super::system;
use super::triage::{self, Triage};
use super::usage::Meter;
use crate::dump;
use crate::dumps::store::{self, INCOMPLETE, MANIFEST, REPORT, Retention, WHOLE};
use crate::manifest::{self, Manifest, Recorder};
use crate::saving::{self, Recorded};
use crate::text::{Ticker, size};

/// The kernel log's file in a dump's directory.
pub(crate) const LOG: &str = "vmcore-dmesg.txt";

/// Pieces of the dump, of 1 MiB as a rule, that are read back.
const READ_BACK: usize = 64;

/// What became of writing the memory.
enum Outcome {
    /// All of it is written.
    Whole,
    /// Some of it is not: the target took no more, or it could not be read.
    Short,
    /// All of it is written, and the disk lost some. The pages' descriptors lie in these bytes of the dump.
    Lost(Range<u64>),
}

impl Outcome {
    fn of(whole: bool) -> Self {
        if whole { Self::Whole } else { Self::Short }
    }
}

/// A capture under way.
pub(crate) struct Capture {
    started: Instant,
    report: Report,
    /// Looks at the capture kernel's memory.
    meter: Option<Meter>,
}

impl Capture {
    /// Starts the clock.
    pub(crate) fn start(time: jiff::Timestamp) -> Self {
        let report = Report {
            hotdump: env!("CARGO_PKG_VERSION"),
            status: Status::Nothing,
            started: time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            directory: None,
            local_log: None,
            kernel_release: None,
            panic: None,
            cpus: 0,
            log: LogReport::default(),
            memory: None,
            command: None,
            removed: Vec::new(),
            memory_use: None,
            seconds: Times::default(),
            errors: Vec::new(),
        };
        Self { started: Instant::now(), report, meter: None }
    }

    /// Has the report tell what of this machine's memory the capture takes.
    pub(crate) fn measure(&mut self) {
        self.meter = Meter::start(Path::new("/"));
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
        let unlisted = crashed.unlisted();
        if !unlisted.is_empty() {
            let total = unlisted.iter().map(|range| range.len()).sum();
            let ranges: Vec<String> = unlisted.iter().map(ToString::to_string).collect();
            self.fault(format_args!(
                "the crash header is out of date: {} of memory were added after it was written and are not in the image: {}",
                size(total),
                ranges.join(", ")
            ));
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
        config: &Config,
        words: &LastWords,
        place: &Place,
    ) {
        self.report.directory = Some(place.shown().display().to_string());
        self.report.status = Status::InProgress;
        place.set_aside();
        self.save_log(crashed, place);
        self.save_triage(crashed, words, place);
        self.write_report(place);

        let whole = match config.command.as_slice() {
            [] => self.save_memory(crashed, config, place),
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
        if self.report.status == Status::Saved {
            self.retain(config.retention(), place);
        }
        self.report.seconds.total = self.started.elapsed().as_secs_f64();
        place.give_back();
        self.write_report(place);
    }

    /// Removes old dumps as configured; what cannot be removed is said, and costs this dump nothing.
    fn retain(&mut self, retention: Retention, place: &Place) {
        if retention == Retention::default() {
            return;
        }
        let dir = place.dir().parent().unwrap_or(place.dir());
        let (removed, error) = store::retain(dir, retention, || system::free_space(place.dir()));
        for entry in removed {
            say!("removed the old dump {}, {}", entry.name, size(entry.disk_bytes));
            self.report.removed.push(entry.name);
        }
        if let Some(error) = error {
            say!("cannot remove old dumps: {error}");
        }
    }

    /// Saves log and triage in `place`, on this machine, when a server did not take the whole dump; then the report.
    pub(crate) fn save_locally(&mut self, crashed: &Crashed, words: &LastWords, place: &Place) {
        self.report.local_log = Some(place.shown().display().to_string());
        self.save_log(crashed, place);
        self.save_triage(crashed, words, place);
        if self.report.log.saved && self.report.status == Status::Nothing {
            self.report.status = Status::Partial;
        }
        self.report.seconds.total = self.started.elapsed().as_secs_f64();
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
        let written =
            written.and_then(|()| place.publish(triage::JSON)).and_then(|()| place.publish(triage::TEXT));
        if self.try_step(written, "cannot write the triage") {
            say!("saved a first look at the crash to {}", place.shown().join(triage::TEXT).display());
        }
        self.report.seconds.triage = self.started.elapsed().as_secs_f64();
    }

    /// Saves the memory as configured; whether it is on disk whole.
    fn save_memory(&mut self, crashed: &Crashed, config: &Config, place: &Place) -> bool {
        let raw = config.format == FileFormat::Elf && config.dump_level == DumpLevel::ALL_PAGES;
        let began = Instant::now();
        let mut job = if raw { Job::raw() } else { Job::choose(crashed, config) };
        self.make_room(crashed, config, place, &mut job);
        self.report.seconds.select = began.elapsed().as_secs_f64();
        match place.create_remote(INCOMPLETE) {
            Ok(None) => {}
            Ok(Some(file)) => return self.send_memory(crashed, &job, file, place),
            Err(error) => {
                self.fault(format_args!("cannot make {}: {error}", place.shown().join(INCOMPLETE).display()));
                return false;
            }
        }
        let file = match place.create_file(INCOMPLETE) {
            Ok(file) => file,
            Err(error) => {
                self.fault(format_args!("cannot make {}: {error}", place.shown().join(INCOMPLETE).display()));
                return false;
            }
        };
        let began = Instant::now();
        let recorder = Recorder::default();
        let sink = Recorded { file: &file, recorder: &recorder };
        let outcome = self.write_memory(crashed, &job, &sink, place);
        self.report.seconds.memory = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let synced = self.sync(&file, place);
        let trusted = match outcome {
            Outcome::Whole if synced => self.check(&file, recorder, place),
            Outcome::Whole => self.give_up_what_is_lost(&file, recorder, 0..0, place),
            Outcome::Lost(descriptors) => self.give_up_what_is_lost(&file, recorder, descriptors, place),
            // What is not whole is not worth the space of checksums, where there may be none.
            Outcome::Short => false,
        };
        self.report.seconds.sync = began.elapsed().as_secs_f64();
        trusted
    }

    fn write_memory(&mut self, crashed: &Crashed, job: &Job, sink: &dyn Sink, place: &Place) -> Outcome {
        match &job.selection {
            None => self.copy_raw(crashed, sink, place),
            Some(selection) => self.write_selected(crashed, selection, &job.options, sink, place),
        }
    }

    /// Sends the memory to a server; whether it is there whole, on its disk. What SSH carries it checks itself, so nothing is
    /// read back.
    fn send_memory(&mut self, crashed: &Crashed, job: &Job, file: RemoteFile<'_>, place: &Place) -> bool {
        let began = Instant::now();
        let whole = matches!(self.write_memory(crashed, job, &file, place), Outcome::Whole);
        self.report.seconds.memory = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let closed = self.try_step(file.close(), "the server did not take all of the dump");
        self.report.seconds.sync = began.elapsed().as_secs_f64();
        whole && closed
    }

    /// Sees whether the dump fits; removes old dumps where that is configured, and leaves more pages out where that is not enough.
    fn make_room(&mut self, crashed: &Crashed, config: &Config, place: &Place, job: &mut Job) {
        let needed = match job.estimate(&crashed.core) {
            Ok(needed) => needed,
            Err(error) => return say!("cannot tell how much space the dump needs: {error}"),
        };
        say!("phase 1 of 3: {}; about {} needed", job.shown(), size(needed));
        if let Some(reserve) = config.keep_free {
            let retention = Retention { keep: None, free: Some(needed.saturating_add(reserve.0)) };
            self.retain(retention, place);
        }
        let free = match place.free_space() {
            Ok(free) => free,
            Err(error) => {
                let dir = place.shown();
                return say!("cannot tell how much space is free in {}: {error}", dir.display());
            }
        };
        if needed <= free {
            return;
        }
        say!("only {} are free in {}: leaving more pages out", size(free), place.shown().display());
        let why = format!("a dump of level {} needs about {}", config.dump_level, size(needed));
        let why = format!("{why}, and {} were free", size(free));
        for level in saving::higher_levels(config.dump_level) {
            let reached = job.reached();
            *job = Job::choose(crashed, &Config { dump_level: level, ..config.clone() });
            if job.reached() == reached {
                continue;
            }
            match job.estimate(&crashed.core) {
                Ok(needed) if needed <= free => {
                    say!("{} needs about {}", job.shown(), size(needed));
                    return job.was_raised(config.dump_level, why);
                }
                _ => {}
            }
        }
        say!("warning: the dump may not fit; what fits will be readable");
        job.was_raised(config.dump_level, why);
    }

    /// Copies all of the image.
    fn copy_raw(&mut self, crashed: &Crashed, sink: &dyn Sink, place: &Place) -> Outcome {
        let mut ticker = Ticker::new();
        let skip = |address| crashed.is_overwritten(address);
        let outcome =
            copy_sparse(&crashed.core, sink, &skip, |progress| show_progress(&mut ticker, progress));
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
        self.report.memory = Some(raw_report(&copied, crashed.core.missing_bytes()));
        self.note_bad_pages();
        Outcome::of(error.is_none() && copied.bad_pages == 0 && crashed.core.missing_bytes() == 0)
    }

    /// Writes the pages that are selected.
    fn write_selected(
        &mut self,
        crashed: &Crashed,
        selection: &Selection,
        options: &DumpOptions,
        sink: &dyn Sink,
        place: &Place,
    ) -> Outcome {
        let mut ticker = Ticker::new();
        let outcome = write_dump(&crashed.core, selection, sink, options, |progress| {
            show_progress(&mut ticker, progress)
        });
        let (written, outcome) = match outcome {
            Ok(written) => (written, Outcome::Whole),
            Err(error) => {
                self.fault(format_args!("{}: {error}", place.shown().join(INCOMPLETE).display()));
                if let Some(left) = dump::what_is_left(&error) {
                    say!("{left}");
                }
                match error {
                    DumpError::Write { written, .. } => (*written, Outcome::Short),
                    DumpError::Sync { written, descriptors, .. } => (*written, Outcome::Lost(descriptors)),
                    _ => return Outcome::Short,
                }
            }
        };
        let missing = crashed.core.missing_bytes();
        self.report.memory = Some(selected_report(&written, selection, options, missing));
        self.note_bad_pages();
        match outcome {
            Outcome::Whole => Outcome::of(written.bad_pages == 0 && missing == 0),
            other => other,
        }
    }

    /// What the dump is to be held against, which is read from the disk from now on.
    fn summed(&mut self, dump: &File, recorder: Recorder) -> Option<Manifest> {
        // What is summed only now is still in memory as it was written.
        let manifest = recorder.finish(dump);
        system::drop_cache(dump);
        manifest.map_err(|error| self.fault(format_args!("cannot read the dump back: {error}"))).ok()
    }

    /// Finds out what the disk did not keep of a dump that was written whole, says so, and takes pages that it lost out of the dump, whose
    /// descriptors lie in `descriptors` (none in an ELF file). The dump is not whole: gives `false`.
    fn give_up_what_is_lost(
        &mut self,
        dump: &File,
        recorder: Recorder,
        descriptors: Range<u64>,
        place: &Place,
    ) -> bool {
        say!("phase 3 of 3: reading back what the disk has of it");
        let Some(manifest) = self.summed(dump, recorder) else { return false };
        let mut ticker = Ticker::new();
        let verdict = manifest.check(dump, None, |done, total| {
            ticker.show(|| format!("phase 3 of 3: {} of {}", size(done), size(total)));
        });
        let lost: Vec<Range<u64>> = verdict.bad.iter().map(|(offset, len)| *offset..offset + len).collect();
        let bytes: u64 = verdict.bad.iter().map(|(_, len)| len).sum();
        let file = place.shown().join(INCOMPLETE);
        self.fault(format_args!(
            "the disk lost up to {} of the {} of {}, in {} places",
            size(bytes),
            size(verdict.good_bytes + bytes),
            file.display(),
            lost.len()
        ));
        if !descriptors.is_empty() {
            match forget(dump, descriptors, &lost) {
                Ok(lost) => {
                    let pages = lost.data_pages + lost.zero_pages;
                    if let Some(memory) = &mut self.report.memory {
                        memory.lose(lost);
                    }
                    self.fault(format_args!("{pages} pages lay there and are given up; all others are readable"));
                }
                Err(error) => self.fault(format_args!(
                    "cannot take the pages that lay there out of the dump: {error}; it may give something else for them"
                )),
            }
            self.sync(dump, place);
        }
        false
    }

    /// Writes the dump's manifest and reads a part of the dump back; whether that is as it was written.
    fn check(&mut self, dump: &File, recorder: Recorder, place: &Place) -> bool {
        say!("phase 3 of 3: reading a part back");
        let Some(manifest) = self.summed(dump, recorder) else { return false };
        let verdict = manifest.check(dump, Some(READ_BACK), |_, _| ());
        for (offset, len) in verdict.bad.iter().take(1) {
            self.fault(format_args!(
                "the disk gave back something else than was written: {len} bytes at offset {offset:#x} of {}, and {} more pieces",
                place.shown().join(INCOMPLETE).display(),
                verdict.bad.len() - 1
            ));
        }
        let written = write_manifest(&manifest, place);
        if let Some(memory) = &mut self.report.memory {
            memory.read_back_bytes = verdict.good_bytes;
            memory.manifest_sha256 = written.as_ref().ok().cloned();
        }
        if let Err(error) = &written {
            self.fault(format_args!("cannot write {MANIFEST}: {error}"));
        }
        verdict.bad.is_empty()
    }

    /// Prints where pages could not be read, the first few runs of them.
    fn note_bad_pages(&mut self) {
        const SHOWN: usize = 8;
        let Some(memory) = self.report.memory.as_ref().filter(|memory| memory.bad_pages > 0) else { return };
        let (pages, bad) = (memory.bad_pages, memory.bad.clone());
        self.fault(format_args!("{pages} pages could not be read and are missing in the dump"));
        for run in bad.iter().take(SHOWN) {
            match run.address {
                Some(address) => say!("  {} pages from address {address}", run.pages),
                None => say!("  {} pages of the headers", run.pages),
            }
        }
        if bad.len() > SHOWN {
            say!("  and more: {REPORT} has them");
        }
    }

    fn sync(&mut self, dump: &File, place: &Place) -> bool {
        let synced = dump.sync_all().and_then(|()| sync_directory(&place.path(INCOMPLETE)));
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
        self.report.memory_use = self.meter.as_ref().map(Meter::seen);
        if let Err(error) = self.report.write(&path).and_then(|()| place.publish(REPORT)) {
            self.fault(format_args!("cannot write {}: {error}", path.display()));
        }
    }

    fn try_step(&mut self, outcome: io::Result<()>, what: &str) -> bool {
        outcome.map_err(|error| self.fault(format_args!("{what}: {error}"))).is_ok()
    }

    /// Prints how it came out, in one line.
    pub(crate) fn conclude(&self) {
        let place =
            self.report.directory.as_deref().or(self.report.local_log.as_deref()).unwrap_or("nowhere");
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
    place.publish(LOG)?;
    Ok(stats)
}

/// What is to be written, and how.
struct Job {
    /// The pages; none for all of the image as it is.
    selection: Option<Selection>,
    options: DumpOptions,
}

impl Job {
    fn raw() -> Self {
        Self { selection: None, options: DumpOptions { format: Format::Elf, ..DumpOptions::default() } }
    }

    fn choose(crashed: &Crashed, config: &Config) -> Self {
        let options = DumpOptions { format: config.dump_format(), ..DumpOptions::default() };
        let mut selection = saving::select(&crashed.core, None, config.dump_level);
        crashed.leave_out_overwritten(&mut selection);
        Self { selection: Some(selection), options }
    }

    fn reached(&self) -> DumpLevel {
        self.selection.as_ref().map(|selection| selection.report.reached).unwrap_or_default()
    }

    /// Has the report say that `asked` was asked for, and why more is left out, if it is.
    fn was_raised(&mut self, asked: DumpLevel, why: String) {
        if let Some(selection) = self.selection.as_mut().filter(|selection| selection.report.asked != asked) {
            selection.report.asked = asked;
            selection.report.reasons.push(why);
        }
    }

    fn estimate<S: ReadAt + Sync>(&self, core: &Core<S>) -> Result<u64, DumpError> {
        match &self.selection {
            Some(selection) => saving::estimate(core, selection, &self.options),
            None => saving::estimate(core, &saving::select(core, None, DumpLevel::ALL_PAGES), &self.options),
        }
    }

    /// As people read it, with why the level is not what was asked for.
    fn shown(&self) -> String {
        let mut shown =
            format!("dump level {}, {}", self.reached(), saving::format_name(self.options.format));
        for reason in self.selection.iter().flat_map(|selection| &selection.report.reasons) {
            shown += &format!("; {reason}");
        }
        shown
    }
}

fn show_progress(ticker: &mut Ticker, progress: &Progress) {
    let line = || format!("phase 2 of 3: {}", progress_line(progress));
    if progress.done == progress.total { say!("{}", line()) } else { ticker.show(line) }
}

/// Writes the manifest beside the dump, synced; gives its SHA-256.
fn write_manifest(manifest: &Manifest, place: &Place) -> io::Result<String> {
    let text = serde_json::to_vec(manifest)?;
    let mut file = place.create_file(MANIFEST)?;
    file.write_all(&text)?;
    file.sync_all()?;
    sync_directory(&place.path(MANIFEST))?;
    Ok(manifest::sha256_of(&text))
}

fn raw_report(copied: &Copied, missing_bytes: u64) -> MemoryReport {
    MemoryReport {
        file: INCOMPLETE.to_owned(),
        size: copied.size,
        done: copied.done,
        format: Some(saving::format_name(Format::Elf)),
        page_size: vmcore::PAGE as u64,
        dump_level_asked: Some(0),
        dump_level: Some(0),
        data_pages: copied.data_pages,
        zero_pages: copied.zero_pages,
        bad_pages: copied.bad_pages,
        bad: copied.bad_runs.iter().map(|run| BadPages { address: run.address, pages: run.pages }).collect(),
        missing_bytes,
        ..MemoryReport::default()
    }
}

fn selected_report(
    written: &Written,
    selection: &Selection,
    options: &DumpOptions,
    missing_bytes: u64,
) -> MemoryReport {
    let bad = written.bad_runs.iter().map(|run| BadPages {
        address: run.start.address(selection.page_size),
        pages: run.end.0 - run.start.0,
    });
    MemoryReport {
        file: INCOMPLETE.to_owned(),
        size: written.size,
        done: (written.data_pages + written.zero_pages + written.bad_pages)
            .saturating_mul(selection.page_size),
        format: Some(saving::format_name(options.format)),
        page_size: selection.page_size,
        dump_level_asked: Some(selection.report.asked.number()),
        dump_level: Some(selection.report.reached.number()),
        dump_level_reasons: selection.report.reasons.clone(),
        excluded_pages: selection.report.excluded.total(),
        data_pages: written.data_pages,
        zero_pages: written.zero_pages,
        bad_pages: written.bad_pages,
        bad: bad.collect(),
        missing_bytes,
        ..MemoryReport::default()
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
        let raw = Config { dump_level: DumpLevel::ALL_PAGES, format: FileFormat::Elf, ..Config::default() };
        let config = Config { command, ..raw };
        capture.save(&crashed, &image, &config, &words, &place);
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
        assert_eq!(names, [MANIFEST, REPORT, triage::JSON, triage::TEXT, WHOLE]);
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
