//! `hotdump target`: does from the running system what the capture kernel will do with the target.

mod check;
mod look;
mod network;
mod probe;

use std::path::PathBuf;

use anyhow::bail;
use host::Host;
use serde::Serialize;

use crate::exit;
use crate::prepared::{self, Prepared};
use crate::screen::{Color, Screen, Tone};
use crate::text::{print, print_json};

pub(crate) use check::check;
pub(crate) use look::look_at_server;

const ABOUT: &str = "\
The target is the one in the capture initramfs, and the steps are those of the capture kernel, by the same code: the device is looked for by its \
name, its filesystem recognised and mounted (where it is mounted already, there); or the server is looked up, reached at its port, \
mounted or logged in to with the key and the host keys that are in the initramfs. A directory like that of a dump is made, a file \
written, read back and removed. Whether the drivers are in the initramfs is held against those that are at work now.

What it cannot try from here is the capture kernel's own drivers and network: `hotdump test --really-crash` does.

Exit codes:
  0  every step was done, perhaps with a warning
  1  wrong usage, or there is nothing to check
  2  a step failed: the capture would save nothing, or not to the target";

/// The exit code where a step failed.
const FAILED: u8 = 2;

/// Options of `hotdump target`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Go through the capture kernel's steps, up to a file written to the target and removed
    #[command(after_long_help = ABOUT)]
    Check(CheckArgs),
}

/// Options of `hotdump target check`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CheckArgs {
    /// The capture initramfs [default: /var/lib/hotdump/initrd-RELEASE.img]
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    /// When to colour
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Color,
}

/// How a step came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// As it should.
    Done,
    /// Done, and something is to be known.
    Warning,
    /// The capture would fail here.
    Failed,
}

/// A step of the capture kernel's way to the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    pub(crate) step: &'static str,
    pub(crate) outcome: Outcome,
    /// What was found.
    pub(crate) detail: String,
}

/// The steps that were gone.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Steps {
    pub(crate) steps: Vec<Step>,
}

impl Steps {
    /// Notes a step, and gives its value on; `detail` says what was found.
    fn take<T, E: std::fmt::Display>(
        &mut self,
        step: &'static str,
        result: Result<T, E>,
        detail: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        match result {
            Ok(value) => {
                self.note(step, Outcome::Done, detail(&value));
                Some(value)
            }
            Err(error) => {
                self.note(step, Outcome::Failed, format!("{error:#}"));
                None
            }
        }
    }

    fn note(&mut self, step: &'static str, outcome: Outcome, detail: impl Into<String>) {
        self.steps.push(Step { step, outcome, detail: detail.into() });
    }

    /// Whether no step failed.
    pub(crate) fn all_done(&self) -> bool {
        self.steps.iter().all(|step| step.outcome != Outcome::Failed)
    }

    /// The table that people read, with the answer below.
    pub(crate) fn show(&self, screen: &mut Screen) {
        for Step { step, outcome, detail } in &self.steps {
            let detail = match outcome {
                Outcome::Done => detail.clone(),
                Outcome::Warning => format!("warning: {detail}"),
                Outcome::Failed => format!("FAILED: {detail}"),
            };
            screen.row(step, &detail);
        }
        if self.all_done() {
            screen.told("READY", Tone::Good, "the capture kernel will find this target as it was found now");
        } else {
            screen.told("NOT READY", Tone::Bad, "a dump would not get to this target");
        }
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    initramfs: PathBuf,
    target: String,
    ready: bool,
    #[serde(flatten)]
    steps: &'a Steps,
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// There is no initramfs to check, or no right to.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let Command::Check(args) = &args.command;
    let (path, prepared) = read_initramfs(args.initrd.clone())?;
    let steps = check(&path, &prepared)?;
    let ready = steps.all_done();
    if args.json {
        print_json(&Answer { initramfs: path, target: prepared.shown_target(), ready, steps: &steps })?;
    } else {
        let mut screen = Screen::new(args.color.is_wanted());
        screen.row("initramfs", &path.display().to_string());
        screen.row("target", &prepared.shown_target());
        steps.show(&mut screen);
        print(screen.text())?;
    }
    Ok(if ready { exit::OK } else { FAILED })
}

/// Reads the capture initramfs `path`, or the usual one.
///
/// # Errors
/// It cannot be read, or has no target.
pub(crate) fn read_initramfs(path: Option<PathBuf>) -> anyhow::Result<(PathBuf, Prepared)> {
    let path = match path {
        Some(path) => path,
        None => prepared::usual_path(&Host::live().kernel_release()?),
    };
    let prepared = Prepared::read(&path)?;
    if prepared.config.target.is_none() {
        bail!("{} names no target: write it by `hotdump initramfs`", path.display());
    }
    Ok((path, prepared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_step_and_the_answer() {
        let mut steps = Steps::default();
        let device: Option<u8> =
            steps.take("device", Ok::<_, String>(7), |number| format!("/dev/vd{number}"));
        assert_eq!(device, Some(7));
        steps.note("space", Outcome::Warning, "there is little");
        let text = |steps: &Steps| {
            let mut screen = Screen::new(false);
            steps.show(&mut screen);
            screen.text()
        };
        assert_eq!(
            text(&steps),
            "  device      /dev/vd7\n  space       warning: there is little\n\
             READY: the capture kernel will find this target as it was found now\n"
        );
        assert_eq!(
            steps.take("write", Err::<(), _>(anyhow::anyhow!("it").context("no")), |()| String::new()),
            None
        );
        assert!(
            text(&steps)
                .ends_with("  write       FAILED: no: it\nNOT READY: a dump would not get to this target\n")
        );
        let json = serde_json::to_value(&steps).unwrap();
        assert_eq!(json["steps"][2]["outcome"], "failed");
    }
}
