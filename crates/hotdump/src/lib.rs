//! The `hotdump` program as a library, so that tests and developer commands can use its parts.
//!
//! One file, four faces: `hotdump` with its commands, `kexec` and `makedumpfile` when called by those names (the options that
//! distributions' kdump scripts pass to them), and the init of the capture kernel.
#![forbid(unsafe_code)]

mod capture;
mod cli;
mod config;
mod dump;
mod dumps;
mod estimate;
mod exit;
mod getopt;
mod initramfs;
mod keeping;
mod load;
mod lock;
mod makedumpfile;
mod manifest;
mod map;
mod personality;
mod prepared;
mod record;
mod rehearsal;
mod saving;
mod scratch;
mod screen;
mod status;
mod target;
mod text;
mod udev;
mod unpack;
mod verify;
mod watch;
mod whole;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

pub use cli::command;
pub use config::{Description, descriptions, shipped};

/// Runs the face of the program that its name and process id ask for.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let called_as = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    match face(&called_as, std::process::id(), args.is_empty()) {
        Face::CaptureInit => capture::init(),
        Face::Kexec => ExitCode::from(personality::run(args)),
        Face::Makedumpfile => ExitCode::from(makedumpfile::run(args)),
        Face::Hotdump => ExitCode::from(cli::run(called_as, args)),
    }
}

/// What the program is asked to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Face {
    /// `hotdump COMMAND`.
    Hotdump,
    /// `kexec OPTION...`.
    Kexec,
    /// `makedumpfile OPTION... VMCORE DUMPFILE`.
    Makedumpfile,
    /// Process 1 of the capture kernel.
    CaptureInit,
}

/// Chooses the face from `argv[0]`, the process id, and whether any argument was given.
///
/// Process 1 with arguments is a container's `hotdump COMMAND`, not a capture kernel: a kernel starts its init by
/// a path that ends in `init`.
fn face(called_as: &OsStr, pid: u32, no_arguments: bool) -> Face {
    match Path::new(called_as).file_name().and_then(OsStr::to_str) {
        Some("init") => Face::CaptureInit,
        Some("kexec") => Face::Kexec,
        Some("makedumpfile") => Face::Makedumpfile,
        _ if pid == 1 && no_arguments => Face::CaptureInit,
        _ => Face::Hotdump,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_and_the_process_id_choose_the_face() {
        for (called_as, pid, no_arguments, expected) in [
            ("hotdump", 200, true, Face::Hotdump),
            ("/usr/sbin/hotdump", 200, false, Face::Hotdump),
            ("kexec", 200, false, Face::Kexec),
            ("/sbin/kexec", 1, true, Face::Kexec),
            ("/usr/bin/makedumpfile", 200, false, Face::Makedumpfile),
            ("/init", 1, true, Face::CaptureInit),
            ("/init", 1, false, Face::CaptureInit),
            ("/sbin/hotdump", 1, true, Face::CaptureInit),
            ("hotdump", 1, false, Face::Hotdump),
            ("", 200, true, Face::Hotdump),
        ] {
            assert_eq!(
                face(OsStr::new(called_as), pid, no_arguments),
                expected,
                "{called_as} as process {pid}"
            );
        }
    }
}
