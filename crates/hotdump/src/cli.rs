//! The command line of `hotdump`.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches as _, Parser, Subcommand};

use crate::config::{self, Refusal};
use crate::load::LoadError;
use crate::text::{print, tell};
use crate::{
    capture, dump, dumps, estimate, exit, initramfs, load, map, rehearsal, status, target, udev, verify,
    watch,
};

/// kdump that stays true over CPU and memory hotplug
///
/// Loads a crash kernel, keeps what it knows of the machine current, checks that a dump taken now would be complete, and,
/// in the crash kernel, saves the dump.
///
/// Called by the name kexec it takes the options that kdump scripts pass to kexec-tools: see `kexec --help`.
#[derive(Debug, Parser)]
#[command(name = "hotdump", version, after_help = exit::TABLE, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load a crash kernel
    Load(Box<load::Args>),
    /// Unload the crash kernel
    Unload(load::UnloadArgs),
    /// Load the crash kernel again after CPUs or memory changed, where nobody else keeps it current
    Watch(Box<watch::Args>),
    /// Have a distribution's kdump rules skip events that kernel or module take care of
    Udev(udev::Args),
    /// Tell on one screen what is loaded, whether it is current, and where dumps go
    Status(status::Args),
    /// Check whether a dump taken now would be complete
    Verify(verify::Args),
    /// Tell how much memory to reserve for the capture kernel (crashkernel=)
    Estimate(estimate::Args),
    /// Draw physical memory, and what of it a dump taken now would hold
    Map(map::Args),
    /// Write a small initramfs for the capture kernel
    Initramfs(Box<initramfs::Args>),
    /// Try the dump target from the running system
    Target(target::Args),
    /// Crash this machine to see whether a dump arrives, and tell how that came out
    Test(rehearsal::Args),
    /// Save the crashed kernel's memory (in the capture kernel)
    Capture(capture::Args),
    /// Look at a dump, check it, convert or filter it
    Dump(dump::Args),
    /// List, show, check and remove saved dumps
    Dumps(dumps::Args),
    /// Check, show and import the configuration
    Config(config::Args),
    /// Print the completions of a shell
    Completions(CompletionsArgs),
}

/// Options of `hotdump completions`.
#[derive(Debug, Clone, clap::Args)]
struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// The definition of the command line, for man pages and completions.
pub fn command() -> clap::Command {
    config::add_option(Cli::command())
}

/// Parses `args` (without the program's name) and runs the command; returns the exit code.
pub(crate) fn run(called_as: OsString, args: Vec<OsString>) -> u8 {
    let args = match config::with_configured(&command(), std::iter::once(called_as).chain(args).collect()) {
        Ok(args) => args,
        Err(Refusal::Usage(error)) => return usage(&error),
        Err(Refusal::Config(error)) => return finish(Err(error.into())),
    };
    let matches = command().try_get_matches_from(args);
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command {
        Command::Load(args) => finish(load::run(&args)),
        Command::Unload(args) => finish(load::run_unload(&args)),
        Command::Watch(args) => finish(watch::run(&args)),
        Command::Udev(args) => finish(udev::run(&args)),
        Command::Status(args) => finish(status::run(&args)),
        Command::Verify(args) => finish(verify::run(&args)),
        Command::Estimate(args) => finish(estimate::run(&args)),
        Command::Map(args) => finish(map::run(&args)),
        Command::Initramfs(args) => finish(initramfs::run(&args).map(|()| exit::OK)),
        Command::Target(args) => finish(target::run(&args)),
        Command::Test(args) => finish(rehearsal::run(&args)),
        Command::Capture(args) => capture::run(&args),
        Command::Dump(args) => finish(dump::run(&args)),
        Command::Dumps(args) => finish(dumps::run(&args)),
        Command::Config(args) => finish(config::run(&args)),
        Command::Completions(args) => finish(completions(args.shell).map(|()| exit::OK)),
    }
}

/// Prints what a shell needs to complete our command line.
fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "hotdump", &mut script);
    print(String::from_utf8_lossy(&script))
}

/// Prints clap's answer: help and version are fine, all else is wrong usage.
fn usage(error: &clap::Error) -> u8 {
    // A closed pipe (`hotdump --help | head -1`) is no reason to fail.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => exit::OK,
        _ => exit::FAILED,
    }
}

/// Prints the error, if there is one, and gives the exit code.
fn finish(outcome: anyhow::Result<u8>) -> u8 {
    let error = match outcome {
        Ok(code) => return code,
        Err(error) => error,
    };
    match error.downcast::<LoadError>() {
        Ok(expected) => {
            tell(format_args!("hotdump: {expected}"));
            expected.exit_code()
        }
        Err(other) => {
            tell(format_args!("hotdump: {}", in_words(&other)));
            exit::FAILED
        }
    }
}

/// An error and its causes; a cause that the text before it names already is not said again.
fn in_words(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        so_far if so_far.ends_with(&cause) => told,
        so_far => format!("{so_far}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read it: {source}")]
        struct Told {
            source: std::io::Error,
        }
        let source = || std::io::Error::other("it is gone");
        assert_eq!(in_words(&Told { source: source() }.into()), "cannot read it: it is gone");
        let error = anyhow::Error::from(source()).context("reading").context("at the start");
        assert_eq!(in_words(&error), "at the start: reading: it is gone");
    }
}
