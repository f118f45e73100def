//! `hotdump initramfs`: a small initramfs for the capture kernel, with hotdump itself as init.

pub(crate) mod archive;
mod build;
mod builder;
mod destination;
mod glob;
mod machine;
mod modules;
pub(crate) mod mounts;
mod program;
mod server;
mod stack;
mod unpack;

use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;
use vmcore::{Codec, DumpLevel};

use crate::capture::network::Network;
use crate::capture::{self, Action, FileFormat, LocalLog, Target};
use crate::text;
use crate::whole::{self, Readers};

pub(crate) use build::expected;
use builder::Builder;

/// Where dumps go if not said.
const DEFAULT_PATH: &str = "/var/crash";

/// Options of `hotdump initramfs`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Where to save to: UUID=..., LABEL=..., PARTUUID=..., a device, nfs:SERVER:/DIRECTORY or ssh://USER@SERVER (with :PORT where it is not 22) [default: the filesystem that
    /// holds --path]
    #[arg(long, value_name = "TARGET")]
    pub(crate) target: Option<Target>,
    /// The target's filesystem type [default: found from its superblock]
    #[arg(long, value_name = "TYPE")]
    pub(crate) fs: Option<String>,
    /// Directory for the dumps: of the running system, or with --target below the target's root; on a server this machine's
    /// name follows
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PATH)]
    pub(crate) path: PathBuf,
    /// Options for the mount of an NFS target besides hotdump's own, such as vers=4.1 or port=20490
    #[arg(long, value_name = "OPTIONS")]
    pub(crate) nfs_options: Option<String>,
    /// Private key for an SSH target; it must not ask for a passphrase [default: /root/.ssh/kdump_id_rsa]
    #[arg(long, value_name = "FILE")]
    pub(crate) sshkey: Option<PathBuf>,
    /// File with the keys of an SSH target's host; no other key is trusted [default: /root/.ssh/known_hosts]
    #[arg(long, value_name = "FILE")]
    pub(crate) known_hosts: Option<PathBuf>,
    /// Directory of this system for the log of a crash whose dump the server does not take, or none [default: /var/crash]
    #[arg(long, value_name = "DIR")]
    pub(crate) local_log: Option<PathBuf>,
    /// Who puts the initramfs together
    #[arg(long, value_enum, default_value = "own")]
    pub(crate) builder: Builder,
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
    /// Pages to leave out, the sum of 1 zeros, 2 cache, 4 private cache, 8 user, 16 free; 0 saves all
    #[arg(long, value_name = "0..31", default_value_t = capture::DEFAULT_LEVEL)]
    pub(crate) dump_level: DumpLevel,
    /// The kind of file that takes the memory
    #[arg(long, value_enum, default_value_t = capture::DEFAULT_FORMAT)]
    pub(crate) format: FileFormat,
    /// How pages of a kdump file are compressed: zstd, zlib, lzo, snappy or none
    #[arg(long, value_name = "CODEC", default_value_t = Codec::Zstd)]
    pub(crate) compression: Codec,
    /// How many dumps to keep, the new one among them; the oldest are removed once it is saved [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep: Option<u32>,
    /// How much of the target is to stay free, as in 2G: the oldest dumps but the newest are removed for it
    #[arg(long, value_name = "SIZE")]
    pub(crate) keep_free: Option<text::Bytes>,
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
    /// Leave a file alone that has the same content already
    #[arg(long)]
    pub(crate) if_changed: bool,
    /// Print what went in as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Compression of the initramfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Compression {
    /// Plain cpio
    None,
    /// gzip
    Gzip,
    /// Zstandard
    Zstd,
}

/// A file that went in.
#[derive(Debug, Serialize)]
struct Content {
    path: String,
    /// In bytes, unpacked.
    size: usize,
}

/// What went in.
#[derive(Debug, Serialize)]
struct Report {
    output: PathBuf,
    /// Whether the file was written; with `--if-changed` one of the same content stays.
    written: bool,
    /// In bytes, as written.
    size: usize,
    /// In bytes, before compression.
    unpacked: usize,
    /// None where the distribution's tools chose it.
    compression: Option<Compression>,
    builder: Builder,
    kernel_release: String,
    target: Option<Target>,
    /// The filesystem's type; none for a server.
    fs: Option<String>,
    path: PathBuf,
    /// The way to a server.
    network: Option<Network>,
    local_log: Option<LocalLog>,
    final_action: Action,
    failure_action: Action,
    dump_level: u8,
    /// `kdump` or `elf`.
    format: FileFormat,
    /// Of a kdump file.
    compression_of_dump: String,
    command: Vec<String>,
    /// In the order in which they are loaded.
    modules: Vec<Content>,
    /// Everything else.
    files: Vec<Content>,
    warnings: Vec<String>,
}

/// What an initramfs for a target would have, were it written now.
#[derive(Debug)]
pub(crate) struct Expected {
    /// Paths of modules in it.
    pub(crate) modules: Vec<String>,
    /// What is not as good as it could be.
    pub(crate) warnings: Vec<String>,
    /// The way to a server.
    pub(crate) network: Option<Network>,
}

/// Builds the initramfs and prints what went in on standard output.
///
/// # Errors
/// What could not be found, read or written, and what to do about it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let (bytes, mut report) = build::build(args)?;
    // The same inputs make the same bytes.
    report.written = !(args.if_changed && std::fs::read(&args.output).is_ok_and(|there| there == bytes));
    if report.written {
        whole::write(&args.output, &bytes, Readers::Owner)
            .with_context(|| format!("cannot write {}", args.output.display()))?;
    }
    if args.json {
        return text::print_json(&report);
    }
    if report.written {
        print(&report);
    } else {
        println!("{}: unchanged", report.output.display());
    }
    Ok(())
}

fn print(report: &Report) {
    let list = |title: &str, contents: &[Content]| {
        println!("{title}:");
        for content in contents {
            println!("  {:>10}  {}", text::size(content.size as u64), content.path);
        }
    };
    let (packed, unpacked) = (text::size(report.size as u64), text::size(report.unpacked as u64));
    println!(
        "{}: {packed}, {unpacked} unpacked, for kernel {}",
        report.output.display(),
        report.kernel_release
    );
    let target = report.target.as_ref().map(Target::to_string).unwrap_or_default();
    let kind = report.fs.as_ref().map(|kind| format!(" ({kind})")).unwrap_or_default();
    println!("saves to {target}{kind}, directory {}", report.path.display());
    if let Some(network) = &report.network {
        print_network(network);
    }
    if let Some(local) = &report.local_log {
        println!(
            "where the server fails, the log goes to {}, directory {}",
            local.target,
            local.path.display()
        );
    }
    if !report.command.is_empty() {
        println!("by the command {}", report.command.join(" "));
    }
    println!("then {}, on failure {}", report.final_action, report.failure_action);
    match report.builder {
        Builder::Own => {
            list("modules, in the order in which they are loaded", &report.modules);
            list("other files", &report.files);
        }
        Builder::InitramfsTools => println!("put together by mkinitramfs"),
        Builder::Dracut => println!("put together by dracut"),
    }
    for warning in &report.warnings {
        eprintln!("hotdump: warning: {warning}");
    }
}

fn print_network(network: &Network) {
    let addresses: Vec<String> = network.addresses.iter().map(ToString::to_string).collect();
    let gateway = network.gateway.map(|gateway| format!(" by {gateway}")).unwrap_or_default();
    println!(
        "over the interface {} with {}, to {}{gateway}",
        network.mac,
        addresses.join(", "),
        network.server
    );
}
