//! The table of makedumpfile's options: what the parser, the help and the refusals are made from.

use crate::getopt::{Arg, Spelling};

/// An option by its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opt {
    Help,
    Version,
    Force,
    Debug,
    Level,
    Zlib,
    Lzo,
    Snappy,
    Zstd,
    Elf,
    Flatten,
    Rearrange,
    Dmesg,
    Threads,
    MessageLevel,
    /// Taken and without effect.
    Ignored,
    /// Not to be had here.
    Refused,
}

/// One spelling of an option.
#[derive(Debug)]
pub(super) struct Row {
    long: &'static str,
    short: Option<char>,
    arg: Arg,
    pub(super) opt: Opt,
    /// What it does, for the help; for [`Opt::Ignored`] and [`Opt::Refused`] why it does nothing.
    pub(super) help: &'static str,
}

impl Row {
    /// The option as the help shows it.
    pub(super) fn shown(&self) -> String {
        let name = self.short.map_or_else(|| format!("--{}", self.long), |short| format!("-{short}"));
        match self.arg {
            Arg::None => name,
            Arg::Value(value) => format!("{name} {value}"),
        }
    }
}

impl Spelling for Row {
    const TABLE: &'static [Self] = OPTIONS;

    fn long(&self) -> &'static str {
        self.long
    }

    fn short(&self) -> Option<char> {
        self.short
    }

    fn arg(&self) -> Arg {
        self.arg
    }

    fn means_the_same(&self, other: &Self) -> bool {
        self.opt == other.opt
    }
}

const fn short(short: char, arg: Arg, opt: Opt, help: &'static str) -> Row {
    Row { long: "", short: Some(short), arg, opt, help }
}

const fn long(long: &'static str, arg: Arg, opt: Opt, help: &'static str) -> Row {
    Row { long, short: None, arg, opt, help }
}

const IN_ONE_PASS: &str = "memory is never looked at in cycles";
const NO_SPLIT: &str = "dumps are written to one file";
const NO_DEBUG_INFO: &str = "what is needed of the kernel is in the dump's own vmcoreinfo";

/// The options of makedumpfile 1.7 that collectors use, and those that are known to be refused.
#[rustfmt::skip]
pub(super) const OPTIONS: &[Row] = &[
    short('c', Arg::None, Opt::Zlib, "compress pages by zlib"),
    short('l', Arg::None, Opt::Lzo, "compress pages by lzo"),
    short('p', Arg::None, Opt::Snappy, "compress pages by snappy"),
    short('z', Arg::None, Opt::Zstd, "compress pages by zstd"),
    short('E', Arg::None, Opt::Elf, "write an ELF core"),
    short('d', Arg::Value("LEVEL"), Opt::Level, "leave pages out: 1 zeros, 2 cache, 4 private cache, 8 user, 16 free, or a sum"),
    short('F', Arg::None, Opt::Flatten, "write to standard output, flattened"),
    short('R', Arg::None, Opt::Rearrange, "make a file of a flattened stream on standard input"),
    long("dump-dmesg", Arg::None, Opt::Dmesg, "write the kernel log"),
    long("num-threads", Arg::Value("N"), Opt::Threads, "compress by so many threads"),
    long("message-level", Arg::Value("LEVEL"), Opt::MessageLevel, "what is said: 1 progress, 2 common, 4 errors, 8 debug, 16 report, or a sum"),
    short('f', Arg::None, Opt::Force, "replace the output"),
    short('D', Arg::None, Opt::Debug, "say more"),
    short('v', Arg::None, Opt::Version, "print the version"),
    Row { long: "help", short: Some('h'), arg: Arg::None, opt: Opt::Help, help: "print this help" },
    short('x', Arg::Value("VMLINUX"), Opt::Ignored, NO_DEBUG_INFO),
    short('i', Arg::Value("VMCOREINFO"), Opt::Ignored, NO_DEBUG_INFO),
    short('X', Arg::None, Opt::Ignored, "there is no Xen here"),
    short('b', Arg::Value("ORDER"), Opt::Ignored, IN_ONE_PASS),
    long("cyclic-buffer", Arg::Value("SIZE"), Opt::Ignored, IN_ONE_PASS),
    long("non-cyclic", Arg::None, Opt::Ignored, IN_ONE_PASS),
    long("work-dir", Arg::Value("DIR"), Opt::Ignored, "no work files are needed"),
    long("show-stats", Arg::None, Opt::Ignored, "what was done is always said"),
    short('e', Arg::None, Opt::Refused, "page structures are always kept"),
    short('L', Arg::Value("SIZE"), Opt::Refused, "the size of a dump cannot be limited"),
    short('g', Arg::Value("VMCOREINFO"), Opt::Refused, NO_DEBUG_INFO),
    long("split", Arg::None, Opt::Refused, NO_SPLIT),
    long("reassemble", Arg::None, Opt::Refused, NO_SPLIT),
    long("mem-usage", Arg::None, Opt::Refused, "the running kernel's memory is not looked at"),
    long("config", Arg::Value("FILE"), Opt::Refused, "data is not erased by rules"),
    long("eppic", Arg::Value("FILE"), Opt::Refused, "data is not erased by rules"),
];
