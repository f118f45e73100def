//! Command-line parsing with the habits of `getopt_long`, which kexec-tools and makedumpfile use and scripts rely on.
//!
//! Options and file names may be mixed; `--` ends the options; long options may be cut short while only one matches;
//! a value may follow in the same argument (`--opt=value`, `-tvalue`) or in the next.

use std::marker::PhantomData;

/// Whether an option takes a value, and the value's name in the help.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg {
    None,
    Value(&'static str),
}

/// One spelling of an option, a row in a program's table of options.
pub(crate) trait Spelling: Sized + 'static {
    /// The table.
    const TABLE: &'static [Self];

    /// Its long form, without dashes; empty where it has none.
    fn long(&self) -> &'static str;

    /// Its short form.
    fn short(&self) -> Option<char>;

    /// Whether it takes a value.
    fn arg(&self) -> Arg;

    /// Whether `other` is another spelling of the same option.
    fn means_the_same(&self, other: &Self) -> bool;
}

/// One element of the command line.
#[derive(Debug, Clone)]
pub(crate) enum Item<R: Spelling> {
    /// An option with its value, if it takes one.
    Option(&'static R, Option<String>),
    /// Not an option: a file name.
    Operand(String),
}

/// Why an argument is no option that we know. Worded as the C library does, because scripts have seen those words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Wrong {
    #[error("unrecognized option '{0}'")]
    Unrecognized(String),
    #[error("invalid option -- '{0}'")]
    Invalid(char),
    #[error("option '{given}' is ambiguous; possibilities:{possibilities}")]
    Ambiguous { given: String, possibilities: String },
    #[error("option '--{0}' requires an argument")]
    NeedsValue(&'static str),
    #[error("option requires an argument -- '{0}'")]
    NeedsValueShort(char),
    #[error("option '--{0}' doesn't allow an argument")]
    TakesNoValue(&'static str),
}

/// Takes the command line (without the program's name) apart, one element at a time, so that an option such as
/// `--help` acts before a mistake that follows it.
pub(crate) struct Items<R> {
    args: std::vec::IntoIter<String>,
    /// What is left of a cluster of short options (`-Sl`).
    cluster: std::vec::IntoIter<char>,
    options_ended: bool,
    table: PhantomData<R>,
}

impl<R: Spelling> Items<R> {
    pub(crate) fn new(args: Vec<String>) -> Self {
        Self {
            args: args.into_iter(),
            cluster: Vec::new().into_iter(),
            options_ended: false,
            table: PhantomData,
        }
    }

    fn long(&mut self, given: &str) -> Result<Item<R>, Wrong> {
        let (name, value) = match given.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (given, None),
        };
        let row: &'static R = resolve(name, given)?;
        match (row.arg(), value) {
            (Arg::None, None) => Ok(Item::Option(row, None)),
            (Arg::None, Some(_)) => Err(Wrong::TakesNoValue(row.long())),
            (Arg::Value(_), Some(value)) => Ok(Item::Option(row, Some(value))),
            (Arg::Value(_), None) => {
                let value = self.args.next().ok_or(Wrong::NeedsValue(row.long()))?;
                Ok(Item::Option(row, Some(value)))
            }
        }
    }

    fn short(&mut self, letter: char) -> Result<Item<R>, Wrong> {
        let row = R::TABLE.iter().find(|row| row.short() == Some(letter)).ok_or(Wrong::Invalid(letter))?;
        if let Arg::None = row.arg() {
            return Ok(Item::Option(row, None));
        }
        let attached: String = self.cluster.by_ref().collect();
        let value = if attached.is_empty() { self.args.next() } else { Some(attached) };
        Ok(Item::Option(row, Some(value.ok_or(Wrong::NeedsValueShort(letter))?)))
    }
}

impl<R: Spelling> Iterator for Items<R> {
    type Item = Result<Item<R>, Wrong>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(letter) = self.cluster.next() {
            return Some(self.short(letter));
        }
        let arg = self.args.next()?;
        if self.options_ended {
            return Some(Ok(Item::Operand(arg)));
        }
        if arg == "--" {
            self.options_ended = true;
            return self.next();
        }
        if let Some(given) = arg.strip_prefix("--") {
            return Some(self.long(given));
        }
        match arg.strip_prefix('-') {
            Some(letters) if !letters.is_empty() => {
                self.cluster = letters.chars().collect::<Vec<_>>().into_iter();
                self.next()
            }
            _ => Some(Ok(Item::Operand(arg))),
        }
    }
}

/// Finds the option that `name` spells, whole or cut short. `given` is `name` with what followed it, for the message.
fn resolve<R: Spelling>(name: &str, given: &str) -> Result<&'static R, Wrong> {
    if let Some(row) = R::TABLE.iter().filter(|row| !row.long().is_empty()).find(|row| row.long() == name) {
        return Ok(row);
    }
    let matching: Vec<&'static R> =
        R::TABLE.iter().filter(|row| !row.long().is_empty() && row.long().starts_with(name)).collect();
    match matching.as_slice() {
        [] => Err(Wrong::Unrecognized(format!("--{given}"))),
        // Two spellings of one option are no doubt.
        [first, rest @ ..] if rest.iter().all(|row| row.means_the_same(first)) => Ok(first),
        several => Err(Wrong::Ambiguous {
            given: format!("--{given}"),
            possibilities: several.iter().map(|row| format!(" '--{}'", row.long())).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::personality::options::{OPTIONS, Opt, Row};

    /// An element, told by its option's meaning.
    type Seen = (Option<Opt>, Option<String>);

    fn items(line: &[&str]) -> Result<Vec<Seen>, Wrong> {
        let line = line.iter().map(|arg| (*arg).to_owned()).collect();
        let seen = |item: Item<Row>| match item {
            Item::Option(row, value) => (Some(row.opt), value),
            Item::Operand(name) => (None, Some(name)),
        };
        Items::<Row>::new(line).map(|item| item.map(seen)).collect()
    }

    fn flag(opt: Opt) -> Seen {
        (Some(opt), None)
    }

    fn with(opt: Opt, value: &str) -> Seen {
        (Some(opt), Some(value.to_owned()))
    }

    fn operand(name: &str) -> Seen {
        (None, Some(name.to_owned()))
    }

    #[test]
    fn forms_of_options() {
        use Opt::*;
        let table: &[(&[&str], Vec<Seen>)] = &[
            (&["-p"], vec![flag(LoadPanic)]),
            (&["--load-panic"], vec![flag(LoadPanic)]),
            (&["--load-pa"], vec![flag(LoadPanic)]),
            (&["-Sl"], vec![flag(Status), flag(Load)]),
            (&["-tbzImage"], vec![with(Type, "bzImage")]),
            (&["-t", "bzImage"], vec![with(Type, "bzImage")]),
            (&["-ptbzImage"], vec![flag(LoadPanic), with(Type, "bzImage")]),
            (&["-t=x"], vec![with(Type, "=x")]),
            (&["--append=a=b c"], vec![with(Append, "a=b c")]),
            (&["--append", "-p"], vec![with(Append, "-p")]),
            (&["--append="], vec![with(Append, "")]),
            (&["k", "-p", "m"], vec![operand("k"), flag(LoadPanic), operand("m")]),
            (&["--", "-p"], vec![operand("-p")]),
            (&["-"], vec![operand("-")]),
            (&["--command", "-S"], vec![with(Append, "-S")]),
            (&["--i", "x"], vec![with(Initrd, "x")]),
        ];
        for (line, expected) in table {
            assert_eq!(items(line).as_ref(), Ok(expected), "{line:?}");
        }
    }

    #[test]
    fn mistakes_are_worded_as_the_c_library_does() {
        for (line, expected) in [
            ("--nope", "unrecognized option '--nope'"),
            ("--foo=bar", "unrecognized option '--foo=bar'"),
            ("-Z", "invalid option -- 'Z'"),
            ("--mem", "option '--mem' is ambiguous; possibilities: '--mem-min' '--mem-max'"),
            (
                "--load-p",
                "option '--load-p' is ambiguous; possibilities: '--load-preserve-context' '--load-panic'",
            ),
            ("--append", "option '--append' requires an argument"),
            ("-ut", "option requires an argument -- 't'"),
            ("--status=1", "option '--status' doesn't allow an argument"),
        ] {
            assert_eq!(items(&[line]).unwrap_err().to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn any_command_line_is_taken_apart(args in proptest::collection::vec("(-{0,2}[a-zA-Z=-]{0,8})|\\PC{0,6}", 0..8)) {
            // A mistake does not stop the walk: at most one element per character, plus the operands.
            let most = args.iter().map(|arg| arg.chars().count() + 1).sum::<usize>();
            prop_assert!(Items::<Row>::new(args).count() <= most);
        }

        #[test]
        fn every_long_option_is_found_by_its_name(index in 0..OPTIONS.len()) {
            let row = &OPTIONS[index];
            prop_assert_eq!(resolve::<Row>(row.long, row.long).map(|found| found.opt), Ok(row.opt));
        }
    }
}
