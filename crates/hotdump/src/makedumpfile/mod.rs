//! The face that answers to the name `makedumpfile`: the options that distributions' kdump services pass to their core collector, with
//! the same exit codes.

mod options;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::num::NonZeroUsize;
use std::path::Path;

use anyhow::{Context as _, bail};
use vmcore::dump::{DumpOptions, Flattened, Format, Sink, write_dump};
use vmcore::{AddressSpace, Codec, Dump, DumpLevel, Log, Progress};

use crate::capture::progress_line;
use crate::getopt::{Item, Items};
use crate::text::{Ticker, print, tell};
use crate::{dump, saving};
use options::{OPTIONS, Opt, Row};

/// Exit codes of makedumpfile 1.7.
mod code {
    pub(super) const COMPLETED: u8 = 0;
    pub(super) const FAILED: u8 = 1;
}

/// Kinds of messages, and those that are said unless told otherwise.
mod message {
    pub(super) const PROGRESS: u8 = 1;
    pub(super) const COMMON: u8 = 2;
    pub(super) const ERROR: u8 = 4;
    pub(super) const DEBUG: u8 = 8;
    pub(super) const MOST: u8 = 31;
    pub(super) const USUAL: u8 = PROGRESS | COMMON | ERROR;
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Write,
    Flatten,
    Rearrange,
    Dmesg,
    Help,
    Version,
}

/// A command line, understood.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    work: Work,
    level: DumpLevel,
    format: Format,
    threads: Option<NonZeroUsize>,
    force: bool,
    messages: u8,
    files: Vec<String>,
    /// Options that are taken and do nothing, with the reason.
    ignored: Vec<(String, &'static str)>,
}

/// What is said of a mistake in the command line, besides what it is.
const USAGE: &str = "Commandline parameter is invalid.\nTry `makedumpfile --help' for more information.";

/// Does what the arguments (without the program's name) ask for; returns the exit code.
pub(crate) fn run(args: Vec<OsString>) -> u8 {
    let args = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let request = match parse(args) {
        Ok(request) => request,
        Err(error) => {
            tell(format_args!("makedumpfile: {error}\n{USAGE}\n\nmakedumpfile Failed."));
            return code::FAILED;
        }
    };
    match request.carry_out() {
        Ok(()) => code::COMPLETED,
        Err(error) => {
            if request.says(message::ERROR) {
                tell(format_args!("makedumpfile: {error:#}"));
            }
            if request.says(message::COMMON) {
                tell("\nmakedumpfile Failed.");
            }
            code::FAILED
        }
    }
}

/// What a collector writes that is called with `options` and file names: which pages, in which format.
///
/// # Errors
/// What is wrong with the options, or that they are for something else than writing a dump.
pub(crate) fn written_with(options: &str) -> anyhow::Result<(DumpLevel, Format)> {
    let request = parse_options(options.split_whitespace().map(str::to_owned).collect())?;
    if !matches!(request.work, Work::Write | Work::Flatten) || !request.files.is_empty() {
        bail!("these are not a core collector's options");
    }
    Ok((request.level, request.format))
}

fn parse(args: Vec<String>) -> anyhow::Result<Request> {
    let request = parse_options(args)?;
    let files = match request.work {
        Work::Write | Work::Dmesg => 2,
        Work::Flatten | Work::Rearrange => 1,
        Work::Help | Work::Version => return Ok(request),
    };
    if request.files.len() != files {
        bail!("{files} file names are needed, and {} given", request.files.len());
    }
    Ok(request)
}

/// The command line, whose file names may be too many or too few.
fn parse_options(args: Vec<String>) -> anyhow::Result<Request> {
    let mut request = Request {
        work: Work::Write,
        level: DumpLevel::ALL_PAGES,
        format: Format::Kdump(Codec::None),
        threads: None,
        force: false,
        messages: message::USUAL,
        files: Vec::new(),
        ignored: Vec::new(),
    };
    let mut codec = None;
    let mut elf = false;
    for item in Items::<Row>::new(args) {
        let (row, value) = match item? {
            Item::Option(row, value) => (row, value.unwrap_or_default()),
            Item::Operand(name) => {
                request.files.push(name);
                continue;
            }
        };
        let mut compress = |by| match codec.replace(by) {
            Some(before) if before != by => bail!("only one of -c, -l, -p and -z can be given"),
            _ => Ok(()),
        };
        match row.opt {
            Opt::Help => request.work = Work::Help,
            Opt::Version => request.work = Work::Version,
            Opt::Force => request.force = true,
            Opt::Debug => request.messages |= message::DEBUG,
            Opt::Level => request.level = level(&value)?,
            Opt::Zlib => compress(Codec::Zlib)?,
            Opt::Lzo => compress(Codec::Lzo)?,
            Opt::Snappy => compress(Codec::Snappy)?,
            Opt::Zstd => compress(Codec::Zstd)?,
            Opt::Elf => elf = true,
            Opt::Flatten => request.work = Work::Flatten,
            Opt::Rearrange => request.work = Work::Rearrange,
            Opt::Dmesg => request.work = Work::Dmesg,
            // 0 is what collectors pass for "no threads".
            Opt::Threads => {
                request.threads = Some(
                    value
                        .parse::<usize>()
                        .ok()
                        .with_context(|| format!("{value:?} is no number of threads"))?
                        .try_into()
                        .unwrap_or(NonZeroUsize::MIN),
                )
            }
            Opt::MessageLevel => request.messages = message_level(&value)?,
            Opt::Ignored => request.ignored.push((row.shown(), row.help)),
            Opt::Refused => bail!("{} is not supported: {}", row.shown(), row.help),
        }
    }
    request.format = match (elf, codec) {
        (true, Some(_)) => bail!("an ELF core (-E) holds no compressed pages"),
        (true, None) => Format::Elf,
        (false, codec) => Format::Kdump(codec.unwrap_or(Codec::None)),
    };
    Ok(request)
}

/// `-d`: a level, or several with commas between, of which the first counts.
fn level(text: &str) -> anyhow::Result<DumpLevel> {
    let first = text.split(',').next().unwrap_or_default();
    first.parse().with_context(|| format!("Dump_level({text}) is invalid."))
}

fn message_level(text: &str) -> anyhow::Result<u8> {
    let level = text.parse().ok().filter(|level| *level <= message::MOST);
    level.with_context(|| format!("Message_level({text}) is invalid."))
}

impl Request {
    fn says(&self, kind: u8) -> bool {
        self.messages & kind != 0
    }

    /// Says what is done, on standard error where standard output is the dump's.
    fn say(&self, kind: u8, line: impl std::fmt::Display) -> anyhow::Result<()> {
        match (self.says(kind), self.work) {
            (false, _) => Ok(()),
            (true, Work::Flatten) => {
                tell(line);
                Ok(())
            }
            (true, _) => print(format_args!("{line}\n")),
        }
    }

    fn carry_out(&self) -> anyhow::Result<()> {
        for (option, why) in &self.ignored {
            self.say(message::COMMON, format_args!("{option} is ignored: {why}"))?;
        }
        let [source, output] =
            [0, self.files.len().saturating_sub(1)].map(|at| self.files.get(at).map_or("", String::as_str));
        match self.work {
            Work::Help => return print(help()),
            Work::Version => {
                return print(format_args!(
                    "makedumpfile: version 1.7 (hotdump {})\nlzo\tenabled\nsnappy\tenabled\nzstd\tenabled\n",
                    env!("CARGO_PKG_VERSION")
                ));
            }
            Work::Write => self.write(source, &self.new_file(output)?)?,
            Work::Flatten => {
                let out = io::stdout();
                if out.is_terminal() {
                    bail!("a dump is not for a terminal: send standard output into a file or a pipe");
                }
                self.write(source, &Flattened::new(out).context("cannot write to standard output")?)?;
            }
            Work::Rearrange => {
                let file = self.new_file(output)?;
                vmcore::restore(&mut io::stdin().lock(), &file)?;
                file.sync_all()?;
            }
            Work::Dmesg => self.write_log(source, output)?,
        }
        let what = if self.work == Work::Dmesg { "dmesg log" } else { "dumpfile" };
        let place = if self.work == Work::Flatten { "STDOUT" } else { output };
        self.say(
            message::COMMON,
            format_args!("\nThe {what} is saved to {place}.\n\nmakedumpfile Completed."),
        )
    }

    /// The output, which must not be there without -f.
    fn new_file(&self, path: &str) -> anyhow::Result<File> {
        if !self.force && Path::new(path).exists() {
            bail!("Can't open the dump file ({path}). File exists");
        }
        dump::new_file(Path::new(path)).with_context(|| format!("Can't open the dump file ({path})"))
    }

    fn open(&self, path: &str) -> anyhow::Result<Dump> {
        let dump = dump::open(Path::new(path))?;
        let release = dump.core.vmcoreinfo().ok().and_then(|info| info.release().map(str::to_owned));
        self.say(message::DEBUG, format_args!("{path}: kernel {}", release.as_deref().unwrap_or("unknown")))?;
        Ok(dump)
    }

    fn write(&self, source: &str, sink: &dyn Sink) -> anyhow::Result<()> {
        let dump = self.open(source)?;
        let selection = saving::select(&dump.core, dump.header.as_deref(), self.level);
        for reason in &selection.report.reasons {
            let reached = selection.report.reached;
            self.say(
                message::COMMON,
                format_args!("dump level {reached} in place of {}: {reason}", self.level),
            )?;
        }
        let options = DumpOptions { format: self.format, threads: self.threads, ..DumpOptions::default() };
        let mut ticker = Ticker::new();
        let progress = |progress: &Progress| {
            if self.says(message::PROGRESS) {
                ticker.show(|| format!("Copying data: {}", progress_line(progress)));
            }
        };
        let written = write_dump(&dump.core, &selection, sink, &options, progress).map_err(|error| {
            let left = dump::what_is_left(&error);
            let error = anyhow::Error::from(error);
            left.map_or_else(|| error.to_string(), |left| format!("{error}; {left}"))
        });
        let written = written.map_err(anyhow::Error::msg)?;
        if written.bad_pages > 0 {
            bail!("{} pages of {source} could not be read and are missing in the dump", written.bad_pages);
        }
        Ok(())
    }

    fn write_log(&self, source: &str, output: &str) -> anyhow::Result<()> {
        let dump = self.open(source)?;
        let info = dump.core.vmcoreinfo()?;
        let space = AddressSpace::new(&dump.core, &info)?;
        let log = Log::open(&space, &info)?;
        let mut out = BufWriter::new(self.new_file(output)?);
        let stats = log.write_dmesg(&mut out).with_context(|| format!("cannot write {output}"))?;
        out.flush().with_context(|| format!("cannot write {output}"))?;
        if stats.lost > 0 {
            bail!("{} messages of the log could not be read", stats.lost);
        }
        Ok(())
    }
}

fn help() -> String {
    let mut out = "\
Usage: makedumpfile [OPTION]... VMCORE DUMPFILE
       makedumpfile -F [OPTION]... VMCORE > STREAM
       makedumpfile -R DUMPFILE < STREAM
       makedumpfile --dump-dmesg VMCORE LOGFILE

This is hotdump, with the options that core collectors pass to makedumpfile.

"
    .to_owned();
    for row in OPTIONS {
        let note = match row.opt {
            Opt::Ignored => "ignored: ",
            Opt::Refused => "not supported: ",
            _ => "",
        };
        out += &format!("  {:<24}{note}{}\n", row.shown(), row.help);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Request, String> {
        parse(line.split_whitespace().map(str::to_owned).collect()).map_err(|error| format!("{error:#}"))
    }

    /// The lines that kdump-utils, kdump-tools and openSUSE's kdump have as their defaults.
    #[test]
    fn the_default_collectors_are_understood() {
        for (line, format, level) in [
            ("-l --message-level 7 -d 31 /proc/vmcore /t/vmcore", Format::Kdump(Codec::Lzo), 31),
            ("-F -l --message-level 7 -d 31 /proc/vmcore", Format::Kdump(Codec::Lzo), 31),
            ("-c -d 31 /proc/vmcore /t/vmcore", Format::Kdump(Codec::Zlib), 31),
            ("-z -d31 --num-threads 4 /proc/vmcore /t/vmcore", Format::Kdump(Codec::Zstd), 31),
            ("-E -d 1,17 -x /boot/vmlinux /proc/vmcore /t/vmcore", Format::Elf, 1),
            ("/proc/vmcore /t/vmcore", Format::Kdump(Codec::None), 0),
        ] {
            let request = parsed(line).unwrap();
            assert_eq!((request.format, request.level.number()), (format, level), "{line}");
        }
        assert_eq!(parsed("-x v a b").unwrap().ignored.len(), 1);
        assert_eq!(parsed("--num-threads 0 a b").unwrap().threads, Some(NonZeroUsize::MIN));
    }

    #[test]
    fn mistakes_are_told() {
        for (line, words) in [
            ("-d 32 a b", "Dump_level(32)"),
            ("--message-level 32 a b", "Message_level(32)"),
            ("-E -c a b", "-E"),
            ("-c -l a b", "only one of"),
            ("a", "2 file names"),
            ("-R", "1 file names"),
            ("--split a b c", "not supported"),
            ("--nope a b", "unrecognized option '--nope'"),
            ("-d", "requires an argument"),
            ("--num-threads x a b", "no number of threads"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
    }
}
