//! Developer commands; `cargo xtask` lists them.

#![forbid(unsafe_code)]

mod bench;
mod demo;
mod module;
mod programs;
mod setup;
mod tests;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use lab::arch::Arch;
use lab::cache::{Cache, KernelLine};
use lab::lab::Lab;
use lab::scenarios::{self, Scenario};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  setup                install the Debian packages that are missing (as root or by sudo)
  fetch [--refresh]    download kernels with headers and compilers, and kexec-tools, into the cache;
                       --refresh: newer ones, if there are
  fetch LINE [--refresh]
                       one kernel; also those that are not in a plain fetch: 5.10 and debug
  debug-kernel         = fetch debug: build a kernel with KASAN, lockdep and checks of atomic sleep (an hour of a CPU)
  build [--arch ARCH]  the static program: target/dist/ARCH/hotdump
  module KDIR [--arch ARCH]
                       the kernel module: target/dist/ARCH/RELEASE/hotdump.ko; KDIR: kernel headers or build folder
  dkms                 what DKMS builds the module from, without Rust: target/dist/ARCH/hotdump-dkms-VERSION
  demo                 one round, told to a person
  lab [SCENARIO...]    run these scenarios; without names, list them; `all` runs all but the long ones
  lab --kernel LINE SCENARIO...
                       the same with this kernel in every guest: 5.10, 6.1, 6.12, 7 or debug, as in
                       `HOTDUMP_LAB_PATIENCE=4 cargo xtask lab --kernel debug module_6_1`
  bench load           guest time of hotdump load beside that of kexec-tools
  bench events [LINE]  guest instructions of an event: the kernel's own handler, the module, a reload; on Linux LINE,
                       6.12 if not said
  test                 format, lints, docs, unit tests, all scenarios

demo, lab NAME, bench and test do setup, fetch and build first, and build the module for the lab's kernels.
HOTDUMP_CACHE is where downloads are kept (~/.cache/hotdump); HOTDUMP_LAB_PATIENCE=N makes waits N times as long;
HOTDUMP_LAB_JOBS=N runs N scenarios at a time (one per CPU); HOTDUMP_LAB_KEEP=1 keeps guests' disks.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match words {
        ["setup"] => setup::run(),
        ["fetch"] => fetch(false),
        ["fetch", "--refresh"] => fetch(true),
        ["fetch", line] => fetch_line(line, false).map(drop),
        ["fetch", line, "--refresh"] => fetch_line(line, true).map(drop),
        ["debug-kernel"] => fetch_line(KernelLine::Debug.name(), false).map(drop),
        ["build"] => programs::build(Arch::native()),
        ["build", "--arch", arch] => build(Arch::of_name(arch)?),
        ["module", kdir] => module(Arch::native(), kdir),
        ["module", kdir, "--arch", arch] => module(Arch::of_name(arch)?, kdir),
        ["dkms"] => {
            setup::library_source()?;
            println!("{}", module::dkms(Arch::native())?.display());
            Ok(())
        }
        ["demo"] => demo::run(&ready()?),
        ["lab"] => {
            for scenario in scenarios::all() {
                println!("{:18} {}", scenario.name, scenario.about);
            }
            println!("\nnot in `all`:");
            for scenario in scenarios::long() {
                println!("{:18} {}", scenario.name, scenario.about);
            }
            Ok(())
        }
        ["lab", "--kernel", line, names @ ..] if !names.is_empty() => {
            let wanted = find(names)?;
            let instead = Some(fetch_line(line, false)?);
            lab::runner::run(&Lab { instead, ..ready_for(instead)? }, &wanted)
        }
        ["lab", "all"] => lab::runner::run(&ready()?, &scenarios::all()),
        ["lab", names @ ..] => {
            let wanted = find(names)?;
            lab::runner::run(&ready()?, &wanted)
        }
        ["bench", "load"] => bench::load(&ready()?),
        ["bench", "events"] => bench::events(&ready()?, KernelLine::V6_12),
        ["bench", "events", line] => {
            let found = KernelLine::ALL.into_iter().find(|one| one.name() == *line);
            bench::events(&ready()?, found.with_context(|| format!("the lab has no kernel line {line}"))?)
        }
        ["test"] => tests::run(),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("what is `{}`?\n{USAGE}", words.join(" ")),
    }
}

/// The scenarios of these names.
fn find(names: &[&str]) -> Result<Vec<Scenario>> {
    let find = |name: &&str| {
        let found = scenarios::find(name);
        found.with_context(|| format!("there is no scenario {name}: `cargo xtask lab` lists them"))
    };
    names.iter().map(find).collect()
}

fn build(arch: Arch) -> Result<()> {
    setup::cross(arch)?;
    programs::build(arch)
}

fn module(arch: Arch, kdir: &str) -> Result<()> {
    setup::library_source()?;
    println!("{}", module::build(arch, Path::new(kdir))?.display());
    Ok(())
}

/// Sees that everything that guests need is there.
fn ready() -> Result<Lab> {
    ready_for(None)
}

/// Like [`ready`], also for a kernel line that is not among the usual.
fn ready_for(line: Option<KernelLine>) -> Result<Lab> {
    setup::run()?;
    fetch(false)?;
    programs::build(Arch::native())?;
    let lines: Vec<KernelLine> = KernelLine::ALL.into_iter().chain(line).collect();
    module::build_for_lab(&Cache::open()?, &lines)?;
    Lab::of_tree(&root())
}

/// Fetches, or builds, the kernel of one line.
fn fetch_line(name: &str, refresh: bool) -> Result<KernelLine> {
    let line = KernelLine::of_name(name)?;
    setup::run()?;
    Cache::open()?.fetch_line(line, refresh, &|line| eprintln!("{line}"))?;
    Ok(line)
}

fn fetch(refresh: bool) -> Result<()> {
    Cache::open()?.fetch(refresh, &|line| eprintln!("{line}"))
}

/// The source tree's root.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
