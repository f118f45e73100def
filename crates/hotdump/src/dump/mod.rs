//! `hotdump dump`: dumps anywhere: what they are, whether they are whole, and others made of them.

use std::fs::{self, File};
use std::io::{self, IsTerminal as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;
use vmcore::dump::{DumpError, DumpOptions, Flattened, Format, Sink, write_dump};
use vmcore::{AddressSpace, Codec, Dump, DumpLevel, Frame, Log, Progress, Selection};

use crate::capture::{FileFormat, LastWords, progress_line};
use crate::text::{Ticker, print, print_json, size, tell};
use crate::{exit, saving};

/// Pages that cannot be read are listed up to so many runs.
const SHOWN: usize = 8;
/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;

/// What `--help` of `check` says.
const CHECK_CODES: &str = "\
Exit codes:
  0  every page that the dump is to hold can be read
  1  wrong usage, or the dump cannot be opened
  2  pages are missing or damaged, or its writer did not come to the end";

/// What `--help` of `convert` and `filter` says.
const WRITE_CODES: &str = "\
Exit codes:
  0  the whole dump is written
  1  wrong usage, or nothing is written
  2  written, but pages of the source could not be read";

/// Options of `hotdump dump`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Tell what a dump is: ELF (/proc/vmcore too), kdump-compressed, or either flattened
    Info {
        /// The dump
        file: PathBuf,
        /// Print the answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// Write a dump in another format, with the pages that it has
    #[command(after_help = WRITE_CODES)]
    Convert(Write),
    /// Write a dump without some of its pages
    #[command(after_help = WRITE_CODES)]
    Filter {
        /// Pages to leave out, the sum of 1 zeros, 2 cache, 4 private cache, 8 user, 16 free
        #[arg(long, short = 'd', value_name = "0..31")]
        dump_level: DumpLevel,
        #[command(flatten)]
        write: Write,
    },
    /// Read every page that a dump is to hold
    #[command(after_help = CHECK_CODES)]
    Check {
        /// The dump
        file: PathBuf,
        /// Print the answer as JSON
        #[arg(long)]
        json: bool,
    },
}

/// What is written, from what.
#[derive(Debug, Clone, clap::Args)]
struct Write {
    /// The dump to read; - for a flattened one on standard input, which convert makes a file of as it is
    source: PathBuf,
    /// The file to write; - for standard output, flattened
    output: PathBuf,
    /// The format
    #[arg(long, value_enum, default_value_t = FileFormat::Kdump)]
    format: FileFormat,
    /// How pages of a kdump file are compressed: zstd, zlib, lzo, snappy or none
    #[arg(long, value_name = "CODEC", default_value_t = Codec::Zstd)]
    compression: Codec,
    /// Threads that compress [default: one a CPU, as far as memory allows]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Replace the output where it is there
    #[arg(long, short)]
    force: bool,
    /// Print what was written as JSON, on standard error where the dump goes to standard output
    #[arg(long)]
    json: bool,
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// What could not be opened, read or written.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    match &args.command {
        Command::Info { file, json } => info(file, *json),
        Command::Convert(write) if write.source == Path::new("-") => restore(write),
        Command::Convert(write) => convert(write, DumpLevel::ALL_PAGES),
        Command::Filter { dump_level, write } => convert(write, *dump_level),
        Command::Check { file, json } => check(file, *json),
    }
}

/// Opens a dump of any kind.
///
/// # Errors
/// Which file, and what is wrong with it.
pub(crate) fn open(path: &Path) -> anyhow::Result<Dump> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Dump::open(file).with_context(|| path.display().to_string())
}

/// What a dump is.
#[derive(Debug, Serialize)]
struct Info {
    file: PathBuf,
    /// `ELF` or `kdump-compressed`.
    format: &'static str,
    /// For a flattened stream, whether it has its end.
    flattened_whole: Option<bool>,
    machine: String,
    kernel_release: Option<String>,
    panic: Option<String>,
    cpus: usize,
    /// In bytes.
    page_size: u64,
    /// Pages that the machine had, as far as the dump says.
    pages: u64,
    /// Pages that the dump is to hold, those of zeros among them.
    kept_pages: u64,
    /// Of a kdump-compressed dump.
    compressed: Option<Compressed>,
    /// Bytes that the headers of an ELF dump promise and that it does not have.
    missing_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Compressed {
    version: u32,
    codec: Option<String>,
    dump_level: u32,
    /// Whether its writer did not come to the end.
    incomplete: bool,
}

impl Info {
    fn of(path: &Path, dump: &Dump) -> Self {
        let Selection { page_size, exists, kept, .. } =
            saving::select(&dump.core, dump.header.as_deref(), DumpLevel::ALL_PAGES);
        let info = dump.core.vmcoreinfo().ok();
        let mut words = LastWords::default();
        if let Some(info) = &info
            && let Ok(space) = AddressSpace::new(&dump.core, info)
            && let Ok(log) = Log::open(&space, info)
        {
            // A log in part still may have the line.
            let _ = log.write_dmesg(&mut words);
        }
        Self {
            file: path.to_owned(),
            format: if dump.header.is_some() { "kdump-compressed" } else { "ELF" },
            flattened_whole: dump.flattened,
            machine: format!("{:?}", dump.core.machine()).to_lowercase(),
            kernel_release: info.as_ref().and_then(|info| info.release()).map(str::to_owned),
            panic: words.reason().map(str::to_owned),
            cpus: dump.core.cpus().map_or(0, |cpus| cpus.len()),
            page_size,
            pages: exists.count(),
            kept_pages: kept.count(),
            compressed: dump.header.as_ref().map(|header| Compressed {
                version: header.version,
                codec: header.codec.map(|codec| codec.to_string()),
                dump_level: header.dump_level,
                incomplete: header.incomplete,
            }),
            missing_bytes: dump.core.missing_bytes(),
        }
    }

    fn text(&self) -> String {
        let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".to_owned());
        let mut out = format!("{}\nformat    {}", self.file.display(), self.format);
        if let Some(compressed) = &self.compressed {
            let codec = compressed.codec.as_deref().unwrap_or("codec not said");
            out += &format!(" {}, {codec}, dump level {}", compressed.version, compressed.dump_level);
            if compressed.incomplete {
                out += ", INCOMPLETE";
            }
        }
        match self.flattened_whole {
            Some(true) => out += ", flattened",
            Some(false) => out += ", flattened, CUT SHORT",
            None => {}
        }
        if self.missing_bytes > 0 {
            out += &format!(", CUT SHORT by {}", size(self.missing_bytes));
        }
        let bytes = |pages: u64| size(pages.saturating_mul(self.page_size));
        out += &format!(
            "\nkernel    {} ({})\npanic     {}\n",
            known(&self.kernel_release),
            self.machine,
            known(&self.panic)
        );
        out + &format!(
            "CPUs      {}\nmemory    {}, of which the dump is to hold {} (pages of {})\n",
            self.cpus,
            bytes(self.pages),
            bytes(self.kept_pages),
            size(self.page_size)
        )
    }
}

fn info(path: &Path, json: bool) -> anyhow::Result<u8> {
    let info = Info::of(path, &open(path)?);
    if json {
        print_json(&info)?
    } else {
        print(info.text())?
    }
    Ok(exit::OK)
}

/// What was written.
#[derive(Debug, Serialize)]
struct Report {
    output: PathBuf,
    format: String,
    dump_level_asked: u8,
    dump_level: u8,
    dump_level_reasons: Vec<String>,
    /// How many of the facts that pages are told by the kernel's BTF says too.
    layout_facts_confirmed: u32,
    /// In bytes.
    size: u64,
    page_size: u64,
    data_pages: u64,
    zero_pages: u64,
    excluded_pages: u64,
    /// Pages that could not be read.
    bad_pages: u64,
    threads: usize,
}

fn convert(write: &Write, level: DumpLevel) -> anyhow::Result<u8> {
    let dump = open(&write.source)?;
    let selection = saving::select(&dump.core, dump.header.as_deref(), level);
    for reason in &selection.report.reasons {
        tell(format_args!("hotdump: dump level {} in place of {level}: {reason}", selection.report.reached));
    }
    let format = match write.format {
        FileFormat::Kdump => Format::Kdump(write.compression),
        FileFormat::Elf => Format::Elf,
    };
    let options = DumpOptions { format, threads: write.threads, ..DumpOptions::default() };
    let mut ticker = Ticker::new();
    let progress = |progress: &Progress| ticker.show(|| progress_line(progress));
    let save = |sink: &dyn Sink| write_dump(&dump.core, &selection, sink, &options, progress);
    let written = into_output(write, save)?;
    let report = Report {
        output: write.output.clone(),
        format: saving::format_name(format),
        dump_level_asked: level.number(),
        dump_level: selection.report.reached.number(),
        dump_level_reasons: selection.report.reasons.clone(),
        layout_facts_confirmed: selection.report.confirmed,
        size: written.size,
        page_size: selection.page_size,
        data_pages: written.data_pages,
        zero_pages: written.zero_pages,
        excluded_pages: selection.report.excluded.total(),
        bad_pages: written.bad_pages,
        threads: written.threads,
    };
    report.tell(write)?;
    Ok(if report.bad_pages == 0 { exit::OK } else { exit::STALE })
}

impl Report {
    fn tell(&self, write: &Write) -> anyhow::Result<()> {
        let to_pipe = write.output == Path::new("-");
        match (write.json, to_pipe) {
            (true, false) => print_json(self)?,
            (true, true) => tell(serde_json::to_string(self)?),
            (false, _) => {
                let bad = match self.bad_pages {
                    0 => String::new(),
                    bad => format!("; {bad} pages of the source could not be read and are MISSING"),
                };
                tell(format_args!(
                    "hotdump: {}: {}, {}, dump level {}; {} pages of data, {} of zeros{bad}",
                    self.output.display(),
                    size(self.size),
                    self.format,
                    self.dump_level,
                    self.data_pages,
                    self.zero_pages
                ));
            }
        }
        Ok(())
    }
}

/// Lets `save` write to the output: standard output, flattened, or a file that gets its name once it is whole and synced.
fn into_output<T, E>(write: &Write, save: impl FnOnce(&dyn Sink) -> Result<T, E>) -> anyhow::Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    if write.output == Path::new("-") {
        let out = io::stdout();
        if out.is_terminal() {
            bail!("a dump is not for a terminal: send standard output into a file or a pipe");
        }
        let sink = Flattened::new(out).context("cannot write to standard output")?;
        return save(&sink).context("cannot write to standard output");
    }
    let shown = write.output.display();
    if !write.force && write.output.exists() {
        bail!("{shown} is there already: --force replaces it");
    }
    let mut incomplete = write.output.clone().into_os_string();
    incomplete.push(".incomplete");
    let incomplete = PathBuf::from(incomplete);
    let file = new_file(&incomplete).with_context(|| format!("cannot make {}", incomplete.display()))?;
    let saved = save(&file).with_context(|| format!("{} is left as it is", incomplete.display()))?;
    file.sync_all()
        .and_then(|()| fs::rename(&incomplete, &write.output))
        .with_context(|| format!("cannot finish {shown}"))?;
    Ok(saved)
}

/// An empty file for its owner only: memory holds secrets.
///
/// # Errors
/// The system's error.
pub(crate) fn new_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Makes a file of the flattened stream on standard input.
fn restore(write: &Write) -> anyhow::Result<u8> {
    if write.output == Path::new("-") {
        bail!("a stream from standard input is made a file of: name one in place of the second -");
    }
    let bytes = into_output(write, |sink| vmcore::restore(&mut io::stdin().lock(), sink))?;
    if write.json {
        print_json(&serde_json::json!({ "output": write.output, "stream_bytes": bytes }))?;
    } else {
        tell(format_args!("hotdump: {}: made of a stream of {}", write.output.display(), size(bytes)));
    }
    Ok(exit::OK)
}

/// What `check` found.
#[derive(Debug, Serialize)]
struct Checked {
    #[serde(flatten)]
    info: Info,
    /// Pages that were read.
    good_pages: u64,
    /// Pages that are to be in the dump and cannot be read.
    bad_pages: u64,
    /// The first of them: page frame numbers, the last not included.
    bad: Vec<(u64, u64)>,
}

fn check(path: &Path, json: bool) -> anyhow::Result<u8> {
    let dump = open(path)?;
    let selection = saving::select(&dump.core, dump.header.as_deref(), DumpLevel::ALL_PAGES);
    let mut checked = Checked { info: Info::of(path, &dump), good_pages: 0, bad_pages: 0, bad: Vec::new() };
    read_all(&dump, &selection, &mut checked);
    let info = &checked.info;
    let cut = info.missing_bytes > 0
        || info.flattened_whole == Some(false)
        || info.compressed.as_ref().is_some_and(|compressed| compressed.incomplete);
    if json {
        print_json(&checked)?;
    } else {
        let mut out = info.text();
        out += &format!("checked   {} pages can be read, {} cannot\n", checked.good_pages, checked.bad_pages);
        for (from, to) in &checked.bad {
            out += &format!("          page frames {from:#x} to {:#x}\n", to - 1);
        }
        print(out)?;
    }
    Ok(if checked.bad_pages > 0 || cut { exit::STALE } else { exit::OK })
}

/// Reads every page that is kept, in pieces; page by page where one cannot be read whole.
fn read_all(dump: &Dump, selection: &Selection, checked: &mut Checked) {
    let page_size = selection.page_size;
    let total = selection.kept.count();
    let mut ticker = Ticker::new();
    let mut buffer = vec![0; PIECE.max(page_size) as usize];
    let step = (PIECE / page_size).max(1);
    let mut read = |from: u64, to: u64| {
        let bytes = buffer.get_mut(..((to - from) * page_size) as usize);
        let address = Frame(from).address(page_size);
        address.zip(bytes).is_some_and(|(address, bytes)| dump.core.read_phys(address, bytes).is_ok())
    };
    for run in selection.kept.runs() {
        let mut at = run.start.0;
        while at < run.end.0 {
            let to = (at + step).min(run.end.0);
            if read(at, to) {
                checked.good_pages += to - at;
            } else {
                for frame in at..to {
                    if read(frame, frame + 1) { checked.good_pages += 1 } else { checked.count_bad(frame) }
                }
            }
            at = to;
            ticker.show(|| format!("checking: {} of {total} pages", checked.good_pages + checked.bad_pages));
        }
    }
}

impl Checked {
    fn count_bad(&mut self, frame: u64) {
        self.bad_pages += 1;
        if let Some(last) = self.bad.last_mut().filter(|last| last.1 == frame) {
            last.1 += 1;
        } else if self.bad.len() < SHOWN {
            self.bad.push((frame, frame + 1));
        }
    }
}

/// What a writer's error left behind, in words.
pub(crate) fn what_is_left(error: &DumpError) -> Option<String> {
    let DumpError::Write { written, .. } = error else { return None };
    let pages = written.data_pages + written.zero_pages;
    Some(format!("what was written is readable: {pages} pages of {}", written.wanted_pages))
}
