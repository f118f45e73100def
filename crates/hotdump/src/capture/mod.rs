//! The capture half of the program: what runs in the capture kernel, after the crash.
//!
//! As init (pid 1) it is [`init`]; run by hand from another initramfs it is [`run`].

mod config;

pub(crate) use config::{Action, Config, Target};

use std::path::PathBuf;

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

/// Captures by hand; returns one of [`exit`]'s codes.
///
/// Progress and failures go to standard error, the report to standard output when `args.json`.
pub(crate) fn run(args: &Args) -> u8 {
    let _ = (args, Config::default());
    exit::NOTHING
}

/// The init of the capture kernel: call it when the process id is 1, before anything else.
pub(crate) fn init() -> ! {
    loop {
        std::thread::park();
    }
}
