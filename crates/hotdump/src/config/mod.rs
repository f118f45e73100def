//! `/etc/hotdump/hotdump.toml`, and `hotdump config`.

mod document;
mod file;
mod import;
mod keys;
mod merge;

use std::path::PathBuf;

use serde::Serialize;

use crate::text::{counted, print, print_json};
use crate::{cli, exit};

use file::{ConfigError, Configuration};
pub use keys::Description;
use keys::KEYS;
pub(crate) use merge::{Refusal, add_option, with_configured};

/// Every key of `hotdump.toml`, in the file's order.
pub fn descriptions() -> Vec<Description> {
    document::descriptions(&cli::command())
}

/// `hotdump.toml` as it is shipped: every key described, none set.
pub fn shipped() -> String {
    document::render(&cli::command(), &[])
}

/// Options of `hotdump config`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Check a configuration: every line that is wrong is named
    Check(FileArgs),
    /// Show what is in force, and where each value comes from
    Show(FileArgs),
    /// Make a configuration of another kdump service's
    Import(import::Args),
}

/// Which file to look at.
#[derive(Debug, Clone, clap::Args)]
struct FileArgs {
    /// The file [default: /etc/hotdump/hotdump.toml]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// The configuration cannot be read or is wrong, or the output cannot be written.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    match &args.command {
        Command::Check(args) => check(args),
        Command::Show(args) => show(args).map(|()| exit::OK),
        Command::Import(args) => import::run(args).map(|()| exit::OK),
    }
}

/// What `check` found, for programs.
#[derive(Debug, Serialize)]
struct Checked {
    /// None: there is no configuration.
    file: Option<PathBuf>,
    right: bool,
    /// How many keys are set.
    set: usize,
    problems: Vec<CheckedProblem>,
}

#[derive(Debug, Serialize)]
struct CheckedProblem {
    line: Option<usize>,
    text: String,
}

fn check(args: &FileArgs) -> anyhow::Result<u8> {
    let outcome = Configuration::read(args.file.as_deref(), &cli::command());
    let checked = match outcome {
        Ok(found) => {
            Checked { set: found.settings.len(), file: found.path, right: true, problems: Vec::new() }
        }
        Err(ConfigError::Wrong { path, problems }) if args.json => {
            let told =
                problems.into_iter().map(|problem| CheckedProblem { line: problem.line, text: problem.text });
            Checked { file: Some(path), right: false, set: 0, problems: told.collect() }
        }
        Err(error) => return Err(error.into()),
    };
    if args.json {
        print_json(&checked)?;
        return Ok(if checked.right { exit::OK } else { exit::FAILED });
    }
    match &checked.file {
        Some(path) => {
            print(format_args!("{}: right, {} set\n", path.display(), counted(checked.set, "key")))?
        }
        None => print(format_args!("{}: not there, which is right: nothing is set\n", file::PATH))?,
    }
    Ok(exit::OK)
}

/// What is in force for a key.
#[derive(Debug, Serialize)]
struct Shown {
    key: &'static str,
    /// None: not set, and found out when it is needed; see `default`.
    value: Option<toml::Value>,
    /// What is done where the key is not set; none: nothing.
    default: Option<String>,
    /// Whether the file sets it.
    set: bool,
    /// The line that does.
    line: Option<usize>,
    /// The option that it is the default of.
    option: String,
}

/// The whole, for programs.
#[derive(Debug, Serialize)]
struct ShownAll<'a> {
    /// None: there is no configuration.
    file: Option<&'a PathBuf>,
    keys: Vec<Shown>,
}

fn show(args: &FileArgs) -> anyhow::Result<()> {
    let program = cli::command();
    let configuration = Configuration::read(args.file.as_deref(), &program)?;
    let shown = KEYS.iter().map(|key| {
        let known = key.describe(&program);
        let setting = configuration.get(key);
        Shown {
            key: key.name,
            default: known.if_not_set(),
            value: setting.map(|setting| setting.value.clone()).or(known.default),
            set: setting.is_some(),
            line: setting.map(|setting| setting.line),
            option: known.option,
        }
    });
    let keys: Vec<Shown> = shown.collect();
    if args.json {
        return print_json(&ShownAll { file: configuration.path.as_ref(), keys });
    }
    let path = configuration.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let name = KEYS.iter().map(|key| key.name.len()).max().unwrap_or_default();
    for shown in keys {
        let line = match (&shown.value, shown.line) {
            (Some(value), Some(line)) => format!("{value}  ({path}:{line})"),
            (Some(value), None) => format!("{value}  (default)"),
            (None, _) => {
                shown.default.map_or_else(|| "-".to_owned(), |default| format!("-  (default: {default})"))
            }
        };
        print(format_args!("{:name$}  {line}\n", shown.key))?;
    }
    Ok(())
}
