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
use lab::cache::Cache;
use lab::lab::Lab;
use lab::scenarios;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  setup                install the Debian packages that are missing (as root or by sudo)
  fetch [--refresh]    download kernels with headers and compilers, and kexec-tools, into the cache;
                       --refresh: newer ones, if there are
  build [--arch ARCH]  the static program: target/dist/ARCH/hotdump
  module KDIR [--arch ARCH]
                       the kernel module: target/dist/ARCH/RELEASE/hotdump.ko; KDIR: kernel headers or build folder
  demo                 one round, told to a person
  lab [SCENARIO...]    run these scenarios; without names, list them; `all` runs all but the long ones
  bench load           guest time of hotdump load beside that of kexec-tools
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
        ["build"] => programs::build("x86_64"),
        ["build", "--arch", arch] => programs::build(arch),
        ["module", kdir] => module("x86_64", kdir),
        ["module", kdir, "--arch", arch] => module(arch, kdir),
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
        ["lab", "all"] => lab::runner::run(&ready()?, &scenarios::all()),
        ["lab", names @ ..] => {
            let find = |name: &&str| {
                let found = scenarios::find(name);
                found.with_context(|| format!("there is no scenario {name}: `cargo xtask lab` lists them"))
            };
            let wanted = names.iter().map(find).collect::<Result<Vec<_>>>()?;
            lab::runner::run(&ready()?, &wanted)
        }
        ["bench", "load"] => bench::load(&ready()?),
        ["test"] => tests::run(),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("what is `{}`?\n{USAGE}", words.join(" ")),
    }
}

fn module(arch: &str, kdir: &str) -> Result<()> {
    println!("{}", module::build(arch, Path::new(kdir))?.display());
    Ok(())
}

/// Sees that everything that guests need is there.
fn ready() -> Result<Lab> {
    setup::run()?;
    fetch(false)?;
    programs::build("x86_64")?;
    module::build_for_lab(&Cache::open()?)?;
    Lab::of_tree(&root())
}

fn fetch(refresh: bool) -> Result<()> {
    Cache::open()?.fetch(refresh, &|line| eprintln!("{line}"))
}

/// The source tree's root.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
