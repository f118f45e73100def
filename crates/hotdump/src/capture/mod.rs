//! The capture half of the program: what runs in the capture kernel, after the crash.
//!
//! As init (pid 1) it is [`init`]; run by hand from another initramfs it is [`run`].

mod config;
mod console;
mod crashed;
pub(crate) mod device;
mod init;
mod overrides;
mod place;
mod report;
mod save;
mod stall;
pub(crate) mod superblock;
mod system;
mod target;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub(crate) use config::{Action, Config, PATH as CONFIG_PATH, Target};
pub(crate) use init::init;

use console::say;
use crashed::{Crashed, LastWords};
use place::Place;
use report::Status;
use save::Capture;

/// The image of the machine that runs this; of any other file it is not known whose memory it is.
const LIVE_IMAGE: &str = "/proc/vmcore";

/// Exit codes of `hotdump capture`.
pub(crate) mod exit {
    /// Log and memory saved whole.
    pub(crate) const SAVED: u8 = 0;
    /// The command line or the configuration is wrong; nothing was done.
    pub(crate) const USAGE: u8 = 1;
    /// The kernel log is saved, the memory is not, or only in part (kept as `vmcore.incomplete`).
    pub(crate) const PARTIAL: u8 = 2;
    /// Nothing was saved.
    pub(crate) const NOTHING: u8 = 3;
}

/// Options of `hotdump capture`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Configuration written by `hotdump initramfs`; used when it exists and nothing else is given
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    pub(crate) config: PathBuf,
    /// Save below this directory, already mounted; no device is waited for or mounted
    #[arg(long, value_name = "DIR", conflicts_with = "target")]
    pub(crate) to: Option<PathBuf>,
    /// Filesystem to mount and save to: UUID=..., LABEL=..., PARTUUID=... or a device
    #[arg(long, value_name = "TARGET")]
    pub(crate) target: Option<Target>,
    /// Directory below the target's root
    #[arg(long, value_name = "DIR")]
    pub(crate) path: Option<PathBuf>,
    /// The memory image of the crashed kernel
    #[arg(long, value_name = "FILE", default_value = "/proc/vmcore")]
    pub(crate) vmcore: PathBuf,
    /// What to do once all is saved (by hand, nothing unless given)
    #[arg(long, value_name = "ACTION")]
    pub(crate) final_action: Option<Action>,
    /// What to do when not all could be saved (by hand, nothing unless given)
    #[arg(long, value_name = "ACTION")]
    pub(crate) failure_action: Option<Action>,
    /// Print the report as JSON on standard output at the end
    #[arg(long)]
    pub(crate) json: bool,
}

/// Captures; returns one of [`exit`]'s codes. Init runs this, and so may any other initramfs.
///
/// Progress and failures go to standard error, the report to standard output where `args.json`.
pub(crate) fn run(args: &Args) -> u8 {
    let config = match configuration(args) {
        Ok(config) => config,
        Err(error) => {
            say!("{error}");
            return exit::USAGE;
        }
    };
    let time = jiff::Timestamp::now();
    let mut capture = Capture::start(time);
    capture_to_target(args, &config, time, &mut capture);
    capture.conclude();
    if args.json {
        print_report(&capture);
    }
    let code = match capture.report().status {
        Status::Saved => exit::SAVED,
        Status::Partial | Status::InProgress => exit::PARTIAL,
        Status::Nothing => exit::NOTHING,
    };
    let action = if code == exit::SAVED { args.final_action } else { args.failure_action };
    if let Some(action) = action {
        let error = system::act(action);
        say!("cannot {action}: {error}");
    }
    code
}

/// The configuration file's values, changed by the kernel's command line, changed by the options.
fn configuration(args: &Args) -> Result<Config, String> {
    let explicit = args.to.is_some() || args.target.is_some();
    let mut config = match fs::read_to_string(&args.config) {
        Ok(text) => Config::parse(&text).map_err(|error| format!("{}: {error}", args.config.display()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound && explicit => Config::default(),
        Err(error) => {
            let path = args.config.display();
            return Err(format!(
                "cannot read {path}: {error}; without it give --to DIR or --target UUID=..."
            ));
        }
    };
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    for wrong in overrides::apply(&mut config, &command_line) {
        say!("{wrong}");
    }
    if let Some(target) = &args.target {
        config.target = Some(target.clone());
    }
    if let Some(path) = &args.path {
        config.path.clone_from(path);
    }
    Ok(config)
}

fn capture_to_target(args: &Args, config: &Config, time: jiff::Timestamp, capture: &mut Capture) {
    let crashed = match Crashed::open(&args.vmcore, args.vmcore == Path::new(LIVE_IMAGE)) {
        Ok(crashed) => crashed,
        Err(error) => return capture.fault(error),
    };
    let words = capture.meet(&crashed);
    let (root, path) = match &args.to {
        Some(dir) => (dir.as_path(), args.path.as_deref().unwrap_or(Path::new(""))),
        None => (Path::new(target::MOUNT_POINT), config.path.as_path()),
    };
    if args.to.is_none()
        && let Err(error) = target::mount(config)
    {
        capture.fault(error);
        return print_last_words(&words);
    }
    match Place::create(root, path, time) {
        Ok(place) => capture.save(&crashed, &args.vmcore, &config.command, &place),
        Err(error) => {
            capture.fault(format_args!("cannot make a directory in {}: {error}", root.join(path).display()));
            print_last_words(&words);
        }
    }
    if args.to.is_none()
        && let Err(error) = system::unmount(Path::new(target::MOUNT_POINT))
    {
        say!("cannot unmount the target: {error}");
    }
}

/// Where no disk takes the log, the console may keep some of it.
fn print_last_words(words: &LastWords) {
    say!("the end of the crashed kernel's log, which cannot be saved:");
    for line in words.tail() {
        say!("| {line}");
    }
}

fn print_report(capture: &Capture) {
    if let Err(error) = crate::text::print_json(capture.report()) {
        say!("cannot print the report: {error}");
    }
}
