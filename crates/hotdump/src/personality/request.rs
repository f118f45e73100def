//! What a kexec-tools command line asks for.

use std::path::PathBuf;

use elfcorehdr::PhysAddr;

use super::options::{OPTIONS, Of, Opt, Row};
use crate::getopt::{Item, Items, Wrong};
use crate::load::SyscallChoice;

/// A command line, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Help,
    Version,
    PrintCkrSize,
    Status { crash: bool },
    Work(Work),
}

/// What to do, in this order: unload, load, execute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Work {
    /// `-p`: all is about the crash kernel.
    pub(crate) crash: bool,
    pub(crate) unload: bool,
    pub(crate) load: bool,
    pub(crate) exec: bool,
    /// Reboot through the system's shutdown afterwards: a kernel was given and nothing else.
    pub(crate) shutdown: bool,
    pub(crate) no_sync: bool,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) initrd: Option<PathBuf>,
    /// A flattened device tree in place of the machine's.
    pub(crate) dtb: Option<PathBuf>,
    /// Whether a command line without `root=` stays so. PowerPC's kexec-tools add that of the running kernel.
    #[cfg(target_arch = "powerpc64")]
    pub(crate) no_old_root: bool,
    pub(crate) append: Option<String>,
    pub(crate) reuse_cmdline: bool,
    pub(crate) reuse_initrd: bool,
    pub(crate) kernel_type: Option<String>,
    pub(crate) mem_min: Option<PhysAddr>,
    pub(crate) mem_max: Option<PhysAddr>,
    pub(crate) syscall: SyscallChoice,
    pub(crate) hotplug: bool,
    pub(crate) debug: bool,
    /// Options that were given and change nothing, each with the reason.
    pub(crate) ignored: Vec<(&'static str, &'static str)>,
}

/// Wrong usage; the exit code is 1 for all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("kexec: {0}")]
    Option(#[from] Wrong),
    #[error("Bad option value in --{option}={value}")]
    Value { option: &'static str, value: String },
    #[error("kexec: --{option} is for loading a kernel, and none is to be loaded")]
    NothingToLoad { option: &'static str },
    #[error("kexec: --{option} is not supported: {why}")]
    Unsupported { option: &'static str, why: &'static str },
}

impl UsageError {
    /// Whether the list of options helps: not where the option is known and only not to be had.
    pub(crate) fn wants_help(&self) -> bool {
        !matches!(self, Self::Unsupported { .. })
    }
}

/// Reads the arguments that follow the program's name.
pub(crate) fn parse(args: Vec<String>) -> Result<Request, UsageError> {
    let mut reader = Reader::default();
    for item in Items::new(args) {
        match item? {
            Item::Operand(name) => reader.operand(name),
            Item::Option(row, value) => {
                if let Some(request) = reader.option(row, value)? {
                    return Ok(request);
                }
            }
        }
    }
    reader.finish()
}

/// The request as far as it was read.
#[derive(Default)]
struct Reader {
    work: Work,
    status: bool,
    load_given: bool,
    /// What was last asked for by an action; without any it is a load followed by a shutdown.
    acted: bool,
    first_image_option: Option<&'static str>,
}

impl Reader {
    fn operand(&mut self, name: String) {
        self.work.kernel.get_or_insert_with(|| PathBuf::from(name));
    }

    /// Takes in one option. Help, version and the reservation's size answer at once, as kexec-tools' do.
    fn option(&mut self, row: &'static Row, value: Option<String>) -> Result<Option<Request>, UsageError> {
        if row.of == Of::Image {
            self.first_image_option.get_or_insert(row.long);
        }
        let work = &mut self.work;
        match row.opt {
            Opt::Help => return Ok(Some(Request::Help)),
            Opt::Version => return Ok(Some(Request::Version)),
            Opt::PrintCkrSize => return Ok(Some(Request::PrintCkrSize)),
            Opt::Status => self.status = true,
            Opt::Load => {
                self.load_given = true;
                self.act(true, false);
            }
            Opt::LoadPanic => {
                // "-u -p" unloads, as the manual has it: -p then only says which image.
                let load = !self.work.unload;
                self.work.crash = true;
                self.act(load, false);
            }
            Opt::Unload => {
                self.work.unload = true;
                self.act(false, false);
            }
            Opt::Exec => {
                self.act(false, true);
            }
            Opt::Force => {
                self.act(true, true);
            }
            Opt::NoSync => work.no_sync = true,
            Opt::Debug => work.debug = true,
            Opt::Hotplug => work.hotplug = true,
            Opt::FileSyscall => work.syscall = SyscallChoice::File,
            Opt::LoadSyscall => work.syscall = SyscallChoice::Load,
            Opt::AutoSyscall => work.syscall = SyscallChoice::Auto,
            Opt::Type => work.kernel_type = value,
            Opt::Append => work.append = value,
            Opt::ReuseCmdline => work.reuse_cmdline = true,
            Opt::ReuseInitrd => work.reuse_initrd = true,
            Opt::Initrd => work.initrd = value.map(PathBuf::from),
            #[cfg(target_arch = "powerpc64")]
            Opt::Dtb => work.dtb = value.map(PathBuf::from),
            #[cfg(target_arch = "powerpc64")]
            Opt::NoOldRoot => work.no_old_root = true,
            Opt::MemMin => work.mem_min = Some(PhysAddr(number(row, value)?)),
            Opt::MemMax => work.mem_max = Some(PhysAddr(number(row, value)?)),
            Opt::Entry => {
                if number(row, value)? != 0 {
                    return Err(unsupported(row, "a kernel is entered where its header says"));
                }
            }
            Opt::Satisfied => {}
            Opt::Ignored => work.ignored.push((row.long, row.help)),
            Opt::Refused => return Err(unsupported(row, row.help)),
        }
        Ok(None)
    }

    fn act(&mut self, load: bool, exec: bool) {
        self.acted = true;
        self.work.load = load;
        self.work.exec = exec;
    }

    fn finish(mut self) -> Result<Request, UsageError> {
        if !self.acted {
            self.work.load = true;
            self.work.shutdown = true;
        }
        if let (Some(option), true) = (self.first_image_option, self.status || !self.work.load) {
            return Err(UsageError::NothingToLoad { option });
        }
        if self.status {
            return Ok(Request::Status { crash: self.work.crash || !self.load_given });
        }
        Ok(Request::Work(self.work))
    }
}

fn unsupported(row: &Row, why: &'static str) -> UsageError {
    UsageError::Unsupported { option: row.long, why }
}

/// Reads an address as C's `strtoul` with base 0 does: decimal, 0x hexadecimal, or octal after a leading 0.
fn number(row: &Row, value: Option<String>) -> Result<u64, UsageError> {
    let value = value.unwrap_or_default();
    let parsed = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16),
        None if value.len() > 1 && value.starts_with('0') => u64::from_str_radix(&value, 8),
        None => value.parse(),
    };
    parsed.map_err(|_| UsageError::Value { option: row.long, value })
}

/// The help: made from the table of options.
pub(crate) fn help() -> String {
    use std::fmt::Write as _;

    use crate::getopt::Arg;

    let mut text = String::from(
        "Usage: kexec [OPTION]... [kernel]\nLoad a kernel for kexec or for a crash, or act on the loaded one\n\n",
    );
    for row in OPTIONS {
        let short = row.short.map_or_else(|| "   ".to_owned(), |letter| format!("-{letter},"));
        let long = match row.arg {
            Arg::None => format!("--{}", row.long),
            Arg::Value(name) => format!("--{}={name}", row.long),
        };
        let note = match row.opt {
            Opt::Ignored => "no effect: ",
            Opt::Refused => "refused: ",
            _ => "",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, " {short} {long:<24} {note}{}", row.help);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(line: &str) -> Result<Request, UsageError> {
        parse(line.split_whitespace().map(str::to_owned).collect())
    }

    fn work(line: &str) -> Work {
        match request(line) {
            Ok(Request::Work(work)) => work,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_last_action_counts() {
        // Unload, load, execute, shutdown; crash.
        for (line, steps, crash) in [
            ("k", [false, true, false, true], false),
            ("-l k", [false, true, false, false], false),
            ("-p k", [false, true, false, false], true),
            ("-l -p k", [false, true, false, false], true),
            ("-p -l k", [false, true, false, false], true),
            ("-u", [true, false, false, false], false),
            ("-p -u", [true, false, false, false], true),
            ("-u -p", [true, false, false, false], true),
            ("-u -l k", [true, true, false, false], false),
            ("-e", [false, false, true, false], false),
            ("-l -e", [false, false, true, false], false),
            ("-e -l k", [false, true, false, false], false),
            ("-f k", [false, true, true, false], false),
        ] {
            let work = work(line);
            assert_eq!([work.unload, work.load, work.exec, work.shutdown], steps, "{line}");
            assert_eq!(work.crash, crash, "{line}");
        }
    }

    #[test]
    fn the_last_value_and_system_call_count() {
        let read = work("-p k -c -s -a --append=a --command-line=b --initrd x --ramdisk y ignored");
        assert_eq!(read.syscall, SyscallChoice::Auto);
        assert_eq!(read.append.as_deref(), Some("b"));
        assert_eq!(read.initrd, Some(PathBuf::from("y")));
        assert_eq!(read.kernel, Some(PathBuf::from("k")));
        assert_eq!(work("-p k -s -c").syscall, SyscallChoice::Load);
        assert_eq!(work("-p k -c -s").syscall, SyscallChoice::File);
        assert_eq!(work("-p k").syscall, SyscallChoice::Auto);
    }

    #[test]
    fn status_asks_for_the_crash_image_unless_told() {
        for (line, crash) in
            [("-S", true), ("-S -l", false), ("-S -p", true), ("-S -l -p", true), ("-u -S", true)]
        {
            assert_eq!(request(line), Ok(Request::Status { crash }), "{line}");
        }
    }

    #[test]
    fn addresses_are_read_as_c_reads_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("0x1000", Some(4096)),
            ("0X1f", Some(31)),
            ("010", Some(8)),
            ("0xffffffffffffffff", Some(u64::MAX)),
            ("0x10000000000000000", None),
            ("08", None),
            ("0x", None),
            ("16M", None),
            ("+", None),
        ] {
            let line = format!("-p k --mem-max={text}");
            let read = request(&line).ok().and_then(|request| match request {
                Request::Work(work) => work.mem_max,
                _ => None,
            });
            assert_eq!(read, expected.map(PhysAddr), "{text}");
        }
    }

    #[test]
    fn options_without_effect_are_told_and_those_that_change_the_meaning_refused() {
        assert!(work("-p k -x --elf64-core-headers").ignored.is_empty());
        for line in ["--load-preserve-context k", "--entry=0x10 -l k"] {
            assert!(matches!(request(line), Err(UsageError::Unsupported { .. })), "{line}");
        }
        assert!(work("--entry=0 -l k").load);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn options_of_x86() {
        assert_eq!(work("-p k --noefi -x --elf64-core-headers").ignored.len(), 1);
        for line in ["--real-mode -l k", "--dtb=x -l k"] {
            assert!(matches!(request(line), Err(UsageError::Unsupported { .. })), "{line}");
        }
    }

    #[cfg(target_arch = "powerpc64")]
    #[test]
    fn options_of_powerpc() {
        for option in ["--dtb=t", "--devicetreeblob t"] {
            let work = work(&format!("-p k --dt-no-old-root {option}"));
            assert_eq!((work.dtb, work.no_old_root), (Some(PathBuf::from("t")), true), "{option}");
        }
        assert!(!work("-p k --elf64-core-headers").no_old_root);
        assert!(request("-p k --noefi").is_err());
    }

    #[test]
    fn every_option_is_in_the_help() {
        let help = help();
        for row in OPTIONS {
            assert!(help.contains(&format!("--{}", row.long)), "{}", row.long);
        }
    }

    proptest! {
        #[test]
        fn any_command_line_is_understood_or_refused(args in proptest::collection::vec("(--?[a-z-]{0,12}(=[a-z0-9]{0,4})?)|[a-z]{0,4}", 0..6)) {
            let _ = parse(args);
        }
    }
}
