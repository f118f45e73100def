//! Reading `hotdump.toml`: all that is wrong with it at once, each by its line.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::Command;
use clap::error::{ContextKind, ContextValue};
use toml::Value;
use toml::de::{DeTable, DeValue};

use super::keys::{self, KEYS, Key, Kind};

/// Where the configuration lies unless another is named.
pub(crate) const PATH: &str = "/etc/hotdump/hotdump.toml";

/// A key that is set.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) key: &'static Key,
    pub(crate) value: Value,
    /// Counted from 1.
    pub(crate) line: usize,
}

impl Setting {
    /// The setting as arguments of its command.
    pub(super) fn arguments(&self) -> Vec<String> {
        let with = |value: String| format!("--{}={value}", self.key.option);
        match &self.value {
            Value::Boolean(true) => vec![format!("--{}", self.key.option)],
            Value::Boolean(false) => Vec::new(),
            Value::Array(values) => values.iter().map(plain).map(with).collect(),
            value => vec![with(plain(value))],
        }
    }
}

/// A value without TOML's quotes.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Something that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Counted from 1; none: of the file as a whole.
    pub(crate) line: Option<usize>,
    pub(crate) text: String,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is wrong.
    #[error("{}", Problems(.path, .problems))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong, at least one thing.
        problems: Vec<Problem>,
    },
}

struct Problems<'a>(&'a Path, &'a [Problem]);

impl fmt::Display for Problems<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.display();
        for (index, problem) in self.1.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            match problem.line {
                Some(line) => write!(f, "{newline}{path}:{line}: {}", problem.text)?,
                None => write!(f, "{newline}{path}: {}", problem.text)?,
            }
        }
        Ok(())
    }
}

/// What a configuration sets.
#[derive(Debug, Default)]
pub(crate) struct Configuration {
    /// Where it was read from; none: there is none.
    pub(crate) path: Option<PathBuf>,
    pub(crate) settings: Vec<Setting>,
}

impl Configuration {
    /// Reads `path`, or the usual file, which need not be there. `program` is the definition of the command line.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn read(path: Option<&Path>, program: &Command) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(PATH));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(ConfigError::Read { path: file.to_owned(), source }),
        };
        match parse(&text, program) {
            Ok(settings) => Ok(Self { path: Some(file.to_owned()), settings }),
            Err(problems) => Err(ConfigError::Wrong { path: file.to_owned(), problems }),
        }
    }

    /// What is set for a key.
    pub(crate) fn get(&self, key: &Key) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.key.name == key.name)
    }
}

/// Reads a configuration, or gives all that is wrong with it.
pub(super) fn parse(text: &str, program: &Command) -> Result<Vec<Setting>, Vec<Problem>> {
    let line = |at: usize| text.get(..at).map(|before| before.matches('\n').count() + 1);
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().and_then(|span| line(span.start));
        vec![Problem { line, text: error.message().to_owned() }]
    })?;
    let mut settings = Vec::new();
    let mut problems = Vec::new();
    for (name, value) in table.get_ref() {
        let line = line(name.span().start);
        match setting(name.get_ref(), value.get_ref(), line.unwrap_or_default(), program) {
            Ok(setting) => settings.push(setting),
            Err(text) => problems.push(Problem { line, text }),
        }
    }
    settings.sort_by_key(|setting| setting.line);
    problems.sort_by_key(|problem| problem.line);
    if problems.is_empty() {
        problems = disagreements(&settings, program);
    }
    if problems.is_empty() { Ok(settings) } else { Err(problems) }
}

/// Reads one key, or says what is wrong with it.
fn setting(name: &str, value: &DeValue<'_>, line: usize, program: &Command) -> Result<Setting, String> {
    let Some(key) = keys::find(name) else {
        let nearest = keys::nearest(name, KEYS.iter().map(|key| key.name));
        let hint = nearest.map_or_else(
            || "hotdump.toml(5) has all of them".to_owned(),
            |nearest| format!("the nearest that is known is \"{nearest}\""),
        );
        return Err(format!("unknown key \"{name}\": {hint}"));
    };
    let value = plain_value(value).ok_or_else(|| format!("{name} takes no value of that type"))?;
    checked(key, value, line, program).map_err(|why| format!("{name}: {why}"))
}

/// The TOML value, if it is of a type that some key takes.
fn plain_value(value: &DeValue<'_>) -> Option<Value> {
    match value {
        DeValue::String(text) => Some(Value::String(text.clone().into_owned())),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(Value::Integer)
        }
        DeValue::Boolean(value) => Some(Value::Boolean(*value)),
        DeValue::Array(values) => {
            values.iter().map(|value| plain_value(value.get_ref())).collect::<Option<_>>().map(Value::Array)
        }
        _ => None,
    }
}

/// A setting whose value the option takes; or why it does not.
pub(super) fn checked(
    key: &'static Key,
    value: Value,
    line: usize,
    program: &Command,
) -> Result<Setting, String> {
    let fits = match (key.kind(program), &value) {
        (Kind::Switch, value) => value.is_bool(),
        (Kind::List, value) => value.as_array().is_some_and(|values| values.iter().all(Value::is_str)),
        (Kind::One, value) => value.is_str() || value.is_integer(),
    };
    if !fits {
        let wanted = match key.kind(program) {
            Kind::Switch => "true or false",
            Kind::List => "an array of strings",
            Kind::One => "one string or number",
        };
        return Err(format!("{value} is not {wanted}"));
    }
    let setting = Setting { key, value, line };
    match alone(key.command, program).try_get_matches_from(arguments(key.command, [&setting])) {
        Ok(_) => Ok(setting),
        Err(error) => Err(reason(&setting.value, &error)),
    }
}

/// Settings that cannot be together.
fn disagreements(settings: &[Setting], program: &Command) -> Vec<Problem> {
    let mut commands: Vec<&str> = KEYS.iter().map(|key| key.command).collect();
    commands.dedup();
    let wrong = |command: &&str| {
        let of_it = settings.iter().filter(|setting| setting.key.command == *command);
        alone(command, program).try_get_matches_from(arguments(command, of_it)).err()
    };
    commands.iter().filter_map(wrong).map(|error| Problem { line: None, text: first_line(&error) }).collect()
}

/// A command of the program that demands nothing, so that its options can be tried.
fn alone(command: &str, program: &Command) -> Command {
    let command = program.find_subcommand(command).cloned();
    command.unwrap_or_default().mut_args(|arg| arg.required(false))
}

fn arguments<'a>(command: &str, settings: impl IntoIterator<Item = &'a Setting>) -> Vec<String> {
    std::iter::once(command.to_owned()).chain(settings.into_iter().flat_map(Setting::arguments)).collect()
}

/// Why an option does not take `value`.
fn reason(value: &Value, error: &clap::Error) -> String {
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(valid)) if !valid.is_empty() => {
            let nearest = keys::nearest(&plain(value), valid.iter().map(String::as_str));
            let hint = nearest.map(|nearest| format!("; the nearest is \"{nearest}\"")).unwrap_or_default();
            format!("{value} is none of {}{hint}", valid.join(", "))
        }
        _ => first_line(error),
    }
}

/// What clap says first, without its mark of an error.
fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<Problem> {
        parse(text, &crate::cli::command()).unwrap_err()
    }

    #[test]
    fn what_is_set_becomes_arguments() {
        let text = "# mine\nkeep = \"reload\"\nremove = ['a', \"b=c\"]\nno-initrd = true\nno-defaults = false\n\
                    dump-level = 31\nappend = '-x \"y z\"'\n";
        let settings = parse(text, &crate::cli::command()).unwrap();
        let told: Vec<_> =
            settings.iter().map(|setting| (setting.line, setting.key.command, setting.arguments())).collect();
        let args = |args: &[&str]| args.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            told,
            [
                (2, "load", args(&["--keep=reload"])),
                (3, "load", args(&["--remove=a", "--remove=b=c"])),
                (4, "load", args(&["--no-initrd"])),
                (5, "load", args(&[])),
                (6, "initramfs", args(&["--dump-level=31"])),
                (7, "load", args(&["--append=-x \"y z\""])),
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, line, words) in [
            ("kep = 1", 1, "unknown key \"kep\": the nearest that is known is \"keep\""),
            ("\n\nfoo-bar = 1", 3, "unknown key \"foo-bar\": hotdump.toml(5)"),
            ("\n[load]\nkeep = \"auto\"", 2, "unknown key \"load\""),
            (
                "keep = \"modul\"",
                1,
                "keep: \"modul\" is none of auto, native, module, reload; the nearest is \"module\"",
            ),
            ("keep = true", 1, "keep: true is not one string or number"),
            ("keep = 1.5", 1, "keep takes no value of that type"),
            ("remove = \"quiet\"", 1, "remove: \"quiet\" is not an array of strings"),
            ("remove = [[\"quiet\"]]", 1, "is not an array of strings"),
            ("no-initrd = \"yes\"", 1, "no-initrd: \"yes\" is not true or false"),
            ("target = \"vda1\"", 1, "target: \"vda1\" names no target"),
            ("keep-dumps = 0", 1, "keep-dumps: 0 is not in 1.."),
            ("dump-level = 99", 1, "dump-level: "),
            ("mem-min = \"zz\"", 1, "mem-min: "),
            ("kernel = \"\"", 1, "kernel: "),
            ("keep = \"auto\"\nkeep = \"native\"", 2, "duplicate key"),
            ("keep = \"auto", 1, "invalid basic string"),
            ("keep = 99999999999999999999", 1, "keep takes no value of that type"),
            ("\0", 1, ""),
        ] {
            let problems = problems(text);
            assert_eq!(problems.len(), 1, "{text}: {problems:?}");
            assert_eq!(problems[0].line, Some(line), "{text}: {problems:?}");
            assert!(problems[0].text.contains(words), "{text}: {problems:?}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_named_at_once() {
        let problems = problems("kep = 1\nsyscall = \"auto\"\nfs = 7\npath = []\n");
        let lines: Vec<_> = problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [Some(1), Some(4)], "{problems:?}");
    }

    #[test]
    fn settings_that_cannot_be_together() {
        let problems = problems("initrd = \"/i\"\nno-initrd = true\n");
        assert!(problems[0].text.contains("cannot be used with"), "{problems:?}");
    }

    #[test]
    fn the_usual_file_may_be_missing_and_a_named_one_may_not() {
        let program = crate::cli::command();
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("nowhere")] {
            let error = Configuration::read(Some(&path), &program).unwrap_err();
            assert!(error.to_string().starts_with("cannot read the configuration /"), "{error}");
        }
        let path = dir.path().join("binary");
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(Configuration::read(Some(&path), &program), Err(ConfigError::Read { .. })));
    }
}
