//! `hotdump initramfs`: a small initramfs for the capture kernel, with hotdump itself as init.

use std::path::PathBuf;

use crate::capture::{Action, Target};

/// Options of `hotdump initramfs`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Filesystem to save to: UUID=..., LABEL=..., PARTUUID=... or a device [default: the one that holds --path]
    #[arg(long, value_name = "TARGET")]
    pub(crate) target: Option<Target>,
    /// The target's filesystem type [default: found from its superblock]
    #[arg(long, value_name = "TYPE")]
    pub(crate) fs: Option<String>,
    /// Directory for the dumps: of the running system, or with --target below the target's root
    #[arg(long, value_name = "DIR", default_value = "/var/crash")]
    pub(crate) path: PathBuf,
    /// Release of the capture kernel [default: the running kernel's]
    #[arg(long, value_name = "RELEASE")]
    pub(crate) kernel_release: Option<String>,
    /// Directory that holds modules.dep [default: /lib/modules/RELEASE]
    #[arg(long, value_name = "DIR")]
    pub(crate) modules_dir: Option<PathBuf>,
    /// A module to put in besides those found, with what it needs (may be given again)
    #[arg(long = "add-module", value_name = "MODULE")]
    pub(crate) add_modules: Vec<String>,
    /// What to do once all is saved
    #[arg(long, value_name = "ACTION", default_value = "reboot")]
    pub(crate) final_action: Action,
    /// What to do when not all could be saved
    #[arg(long, value_name = "ACTION", default_value = "reboot")]
    pub(crate) failure_action: Action,
    /// Save memory by this command in place of hotdump; {vmcore} and {output} are replaced
    #[arg(long, value_name = "COMMAND")]
    pub(crate) command: Option<String>,
    /// A file to put in, under its own path or at DEST (may be given again)
    #[arg(long = "include", value_name = "FILE[:DEST]")]
    pub(crate) includes: Vec<String>,
    /// The program to put in as init [default: this one]
    #[arg(long, value_name = "FILE", default_value = "/proc/self/exe")]
    pub(crate) program: PathBuf,
    /// How to compress [default: gzip where the capture kernel surely unpacks it, else none]
    #[arg(long, value_enum)]
    pub(crate) compress: Option<Compression>,
    /// Print what went in as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Compression of the initramfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Compression {
    /// Plain cpio
    None,
    /// gzip
    Gzip,
    /// Zstandard
    Zstd,
}

/// Builds the initramfs and prints what went in on standard output.
///
/// # Errors
/// What could not be found, read or written, and what to do about it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    anyhow::bail!("{}: not built", args.output.display())
}
