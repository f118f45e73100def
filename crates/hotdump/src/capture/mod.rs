//! The capture half of the program: what runs in the capture kernel, after the crash.
//!
//! As init (pid 1) it is [`init()`]; run by hand from another initramfs it is [`run`].

mod config;
mod console;
mod crashed;
pub(crate) mod device;
mod init;
pub(crate) mod network;
pub(crate) mod nfs;
mod overrides;
mod place;
pub(crate) mod remote;
mod report;
mod save;
mod sftp;
pub(crate) mod ssh;
mod stall;
pub(crate) mod superblock;
mod system;
mod target;
mod triage;
pub(crate) mod usage;

use std::fs;
use std::path::{Path, PathBuf};

pub(crate) use config::{
    Action, Assembly, Config, DEFAULT_FORMAT, DEFAULT_LEVEL, FileFormat, LocalLog, PATH as CONFIG_PATH,
    RaidArray, Target,
};
pub(crate) use console::progress_line;
pub(crate) use crashed::LastWords;
pub(crate) use init::init;
pub(crate) use place::Place;
pub(crate) use save::LOG;
pub(crate) use sftp::Sftp;
pub(crate) use system::{drop_cache, mount_target, unmount};
pub(crate) use target::{CHECK_STAGE, MDADM_CONFIG};
pub(crate) use triage::TEXT as TRIAGE;

use console::say;
use crashed::Crashed;
use remote::SshServer;
use report::Status;
use save::Capture;

/// The image of the machine that runs this; of any other file it is not known whose memory it is.
const LIVE_IMAGE: &str = "/proc/vmcore";

/// Exit codes of `hotdump capture`; 1 is a wrong command line, as with every command.
pub(crate) mod exit {
    /// Log and memory saved whole.
    pub(crate) const SAVED: u8 = 0;
    /// The kernel log is saved, the memory is not, or only in part (kept as `vmcore.incomplete`).
    pub(crate) const PARTIAL: u8 = 2;
    /// Nothing was saved.
    pub(crate) const NOTHING: u8 = 3;
}

/// The table that `--help` shows.
const EXIT_CODES: &str = "\
Exit codes:
  0  log and memory are saved whole
  1  wrong usage
  2  not all is saved; report.json beside the dump says what is missing
  3  nothing is saved";

/// Options of `hotdump capture`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXIT_CODES)]
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
    let (mut config, wrong) = configuration(&args.config);
    // A configuration that is not there is missed only where nothing else says where to save.
    if args.to.is_none() && args.target.is_none() || args.config.exists() {
        wrong.iter().for_each(|wrong| say!("{wrong}"));
    }
    if let Some(target) = &args.target {
        config.target = Some(target.clone());
    }
    if let Some(path) = &args.path {
        config.path.clone_from(path);
    }
    let time = jiff::Timestamp::now();
    let mut capture = Capture::start(time);
    if args.vmcore == Path::new(LIVE_IMAGE) {
        capture.measure();
    }
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

/// The configuration file's values, changed by the kernel's command line, and what is wrong with either: in a capture kernel a
/// mistake there must not cost the dump.
fn configuration(path: &Path) -> (Config, Vec<String>) {
    let text = fs::read_to_string(path).map_err(|error| error.to_string());
    let parsed = text.and_then(|text| Config::parse(&text).map_err(|error| error.to_string()));
    let (mut config, mut wrong) = match parsed {
        Ok(config) => (config, Vec::new()),
        Err(error) => (Config::default(), vec![format!("{}: {error}; going on without it", path.display())]),
    };
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    wrong.extend(overrides::apply(&mut config, &command_line));
    (config, wrong)
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
    let place = match (&args.to, &config.target) {
        (None, Some(target @ Target::Ssh(server))) => send_place(target, server, config, time, capture),
        (None, _) => match target::mount(config) {
            Ok(()) => make_place(root, path, time, capture),
            Err(error) => {
                capture.fault(error);
                None
            }
        },
        (Some(_), _) => make_place(root, path, time, capture),
    };
    if let Some(place) = place {
        capture.save(&crashed, &args.vmcore, config, &words, &place);
    }
    let saved = capture.report().status == Status::Saved;
    let local = config.local_log.as_ref().filter(|_| args.to.is_none() && !saved);
    if let Some(local) = local {
        save_locally(local, config, time, capture, |capture, place| {
            capture.save_locally(&crashed, &words, place);
        });
    }
    if !capture.report().log.saved {
        print_last_words(&words);
    }
    if args.to.is_none() {
        leave(target::MOUNT_POINT);
    }
}

fn make_place(root: &Path, path: &Path, time: jiff::Timestamp, capture: &mut Capture) -> Option<Place> {
    Place::create(root, path, time)
        .map_err(|error| {
            let dir = root.join(path);
            capture.fault(format_args!("cannot make a directory in {}: {error}", dir.display()));
        })
        .ok()
}

/// A place on a server that takes files by SSH.
fn send_place(
    target: &Target,
    server: &SshServer,
    config: &Config,
    time: jiff::Timestamp,
    capture: &mut Capture,
) -> Option<Place> {
    let session = target::open_session(target, server, config).map_err(|error| capture.fault(error)).ok()?;
    let stage = Path::new(target::STAGE);
    fs::create_dir_all(stage)
        .map_err(|error| capture.fault(format_args!("cannot make {}: {error}", stage.display())))
        .ok()?;
    let place = make_place(stage, &config.path, time, capture)?;
    place
        .send_to(session)
        .map_err(|error| {
            let dir = config.path.display();
            capture.fault(format_args!("cannot make a directory in {dir} of {target}: {error}"));
        })
        .ok()
}

/// Mounts the filesystem that takes the log when a server did not take the whole dump, and has `save` fill a place there.
fn save_locally(
    local: &LocalLog,
    config: &Config,
    time: jiff::Timestamp,
    capture: &mut Capture,
    save: impl FnOnce(&mut Capture, &Place),
) {
    say!(
        "saving the kernel log on this machine instead: {}, directory {}",
        local.target,
        local.path.display()
    );
    if let Err(error) = target::mount_local(local, config) {
        return capture.fault(error);
    }
    if let Some(place) = make_place(Path::new(target::LOCAL_MOUNT_POINT), &local.path, time, capture) {
        save(capture, &place);
    }
    leave(target::LOCAL_MOUNT_POINT);
}

fn leave(point: &str) {
    if let Err(error) = system::unmount(Path::new(point)) {
        say!("cannot unmount {point}: {error}");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_configuration_is_no_reason_not_to_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("capture.toml");
        for text in [None, Some("colour = 1"), Some("fs = \"xfs\"")] {
            if let Some(text) = text {
                fs::write(&path, text).unwrap();
            }
            let (config, wrong) = configuration(&path);
            let fine = text.is_some_and(|text| text.starts_with("fs"));
            assert_eq!(config.fs.is_some(), fine, "{text:?}");
            assert_eq!(wrong.is_empty(), fine, "{wrong:?}");
            assert!(wrong.iter().all(|wrong| wrong.contains("capture.toml")), "{wrong:?}");
        }
    }
}
