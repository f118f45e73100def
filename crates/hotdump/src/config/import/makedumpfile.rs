//! makedumpfile's options, where a configuration has them.

use toml::Value;

use super::Meaning;
use crate::getopt::{Arg, Item, Items, Spelling};

/// An option that has a meaning here, or none that matters.
#[derive(Debug)]
struct Row {
    long: &'static str,
    short: Option<char>,
    arg: Arg,
    opt: Opt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opt {
    /// Pages to leave out.
    Level,
    /// A codec, by hotdump's name of it.
    Codec(&'static str),
    /// An ELF core.
    Elf,
    /// How it speaks and works, not what comes of it.
    Manner,
}

impl Row {
    const fn new(long: &'static str, short: Option<char>, arg: Arg, opt: Opt) -> Self {
        Self { long, short, arg, opt }
    }
}

impl Spelling for Row {
    const TABLE: &'static [Self] = &[
        Self::new("", Some('d'), Arg::Value("LEVEL"), Opt::Level),
        Self::new("", Some('c'), Arg::None, Opt::Codec("zlib")),
        Self::new("", Some('l'), Arg::None, Opt::Codec("lzo")),
        Self::new("", Some('p'), Arg::None, Opt::Codec("snappy")),
        Self::new("", Some('z'), Arg::None, Opt::Codec("zstd")),
        Self::new("", Some('E'), Arg::None, Opt::Elf),
        Self::new("", Some('F'), Arg::None, Opt::Manner),
        Self::new("message-level", None, Arg::Value("LEVEL"), Opt::Manner),
        Self::new("num-threads", None, Arg::Value("N"), Opt::Manner),
        Self::new("cyclic-buffer", None, Arg::Value("SIZE"), Opt::Manner),
        Self::new("non-cyclic", None, Arg::None, Opt::Manner),
        Self::new("non-mmap", None, Arg::None, Opt::Manner),
    ];

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

/// What a core collector with these options writes.
pub(super) fn meaning(options: &str) -> Meaning {
    let mut level = 0;
    let mut codec = "none";
    let mut elf = false;
    for item in Items::<Row>::new(options.split_whitespace().map(str::to_owned).collect()) {
        let (row, value) = match item {
            Ok(Item::Option(row, value)) => (row, value.unwrap_or_default()),
            Ok(Item::Operand(operand)) => return Meaning::not(format!("makedumpfile: what is {operand}?")),
            Err(wrong) => return Meaning::not(format!("makedumpfile: {wrong}: it has no key here")),
        };
        match row.opt {
            // Of several levels the first is the one that is tried first.
            Opt::Level => match value.split(',').next().unwrap_or_default().parse::<i64>() {
                Ok(number) => level = number,
                Err(_) => return Meaning::not(format!("makedumpfile: -d {value} is no dump level")),
            },
            Opt::Codec(name) => codec = name,
            Opt::Elf => elf = true,
            Opt::Manner => {}
        }
    }
    let text = |text: &str| Value::String(text.to_owned());
    let mut keys = vec![("dump-level", Value::Integer(level))];
    if elf {
        keys.push(("format", text("elf")));
    } else {
        keys.extend([("format", text("kdump")), ("compression", text(codec))]);
    }
    Meaning::Keys(keys)
}
