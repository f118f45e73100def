//! Developer commands; `cargo xtask` lists them.

#![forbid(unsafe_code)]

mod bench;
mod deb;
mod demo;
mod module;
mod programs;
mod setup;
mod tests;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use lab::arch::Arch;
use lab::cache::{Cache, KernelLine};
use lab::judge::Judge;
use lab::lab::Lab;
use lab::say::Teller;
use lab::scenarios::{self, Scenario};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  setup                install the Debian packages that are missing (as root or by sudo)
  fetch [--refresh]    download kernels with headers and compilers, and kexec-tools, into the cache;
                       --refresh: newer ones, if there are
  fetch LINE [--refresh]
                       one kernel; also those that are not in a plain fetch: 5.10 and debug
  debug-kernel         = fetch debug: build a kernel with KASAN, lockdep and checks of atomic sleep (an hour of a CPU)
  build                the static program: target/dist/ARCH/hotdump
  module KDIR          the kernel module: target/dist/ARCH/RELEASE/hotdump.ko; KDIR: kernel headers or build folder
  dkms                 what DKMS builds the module from, without Rust: target/dist/ARCH/hotdump-dkms-VERSION
  deb [VERSION]        Debian packages of program and module: target/dist/ARCH/*.deb
  demo                 one round, told to a person
  lab [SCENARIO...]    run these scenarios; without names, list them; `all` runs all but the long ones
  lab --kernel LINE SCENARIO...
                       the same with this kernel in every guest, as in
                       `HOTDUMP_LAB_PATIENCE=4 cargo xtask lab --kernel debug module_6_1`
  bench load           guest time of hotdump load beside that of kexec-tools
  bench events [LINE]  guest instructions of an event: the kernel's own handler, the module, a reload; on Linux LINE,
                       6.12 if not said
  bench dump CORE      time, memory and size of our dumps of this raw dump beside makedumpfile's (MAKEDUMPFILE=PATH);
                       `HOTDUMP_LAB_KEEP=1 cargo xtask lab sample` makes one in target/lab/sample/dump
  bench levels CORE    which pages ours and makedumpfile keep of this raw dump, at each dump level
  judge LINE CORE      drgn and crash read this raw dump of the lab's kernel LINE, and the same at dump level 31
  judge cuts LINE CORE drgn and libkdumpfile read the same cut short at 50 places, and drgn the tasks at half of it
  test                 format, lints, docs, unit tests, all scenarios

LINE is 5.10, 6.1, 6.12, 7 or debug, or 6.1-ppc64le, 6.12-ppc64le or 6.12-ppc64le-64k. With `--arch ppc64le` setup, fetch,
build, module and demo are for PowerPC.
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
    let (words, arch) = take_arch(words)?;
    let is_told = arch.is_some();
    let arch = arch.unwrap_or(Arch::native());
    match words.as_slice() {
        ["setup"] => setup::run(arch),
        ["fetch"] => fetch(arch, false),
        ["fetch", "--refresh"] => fetch(arch, true),
        ["build"] => {
            setup::cross(arch)?;
            programs::build(arch)
        }
        ["module", kdir] => {
            setup::cross(arch)?;
            setup::library_source()?;
            println!("{}", module::build(arch, Path::new(kdir))?.display());
            Ok(())
        }
        ["demo"] => demo::run(&ready(&[arch])?, arch),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        [command, ..] if is_told => bail!("{command} takes no --arch\n{USAGE}"),
        ["fetch", line] => fetch_line(line, false),
        ["fetch", line, "--refresh"] => fetch_line(line, true),
        ["debug-kernel"] => fetch_line(KernelLine::Debug.name(), false),
        ["dkms"] => {
            setup::library_source()?;
            println!("{}", module::dkms(Arch::native())?.display());
            Ok(())
        }
        ["deb", version @ ..] if version.len() <= 1 => {
            setup::library_source()?;
            programs::build(Arch::native())?;
            for package in deb::build(version.first().copied())? {
                println!("{}", package.display());
            }
            Ok(())
        }
        ["lab", words @ ..] => run_lab(words),
        ["bench", "load"] => bench::load(&ready(&[Arch::native()])?),
        ["bench", "events"] => bench::events(&ready(&[Arch::native()])?, KernelLine::V6_12),
        ["bench", "events", line] => {
            let line = KernelLine::of_name(line)?;
            bench::events(&ready_for(&[line.arch()], Some(line))?, line)
        }
        ["bench", "dump", core] => bench::dump(Path::new(core)),
        ["bench", "levels", core] => bench::levels(Path::new(core)),
        ["judge", "cuts", line, core] => judge(line, |judge| judge.cut_ones_are_read(Path::new(core))),
        ["judge", line, core] => judge(line, |judge| judge.filtered_is_as_good(Path::new(core))),
        ["test"] => tests::run(),
        _ => bail!("what is `{}`?\n{USAGE}", words.join(" ")),
    }
}

/// Takes `--arch ARCH` out of the words, if it is there.
fn take_arch<'a>(words: &[&'a str]) -> Result<(Vec<&'a str>, Option<Arch>)> {
    let Some(at) = words.iter().position(|word| *word == "--arch") else { return Ok((words.to_vec(), None)) };
    let name = words.get(at + 1).context("--arch of what?")?;
    Ok(([&words[..at], &words[at + 2..]].concat(), Some(Arch::of_name(name)?)))
}

fn run_lab(words: &[&str]) -> Result<()> {
    match words {
        [] => {
            for scenario in scenarios::all() {
                println!("{:18} {}", scenario.name, scenario.about);
            }
            println!("\nnot in `all`:");
            for scenario in scenarios::long() {
                println!("{:18} {}", scenario.name, scenario.about);
            }
            Ok(())
        }
        ["all"] => {
            let all = scenarios::all();
            lab::runner::run(&ready_to_run(&all, None)?, &all)
        }
        ["--kernel", line, names @ ..] if !names.is_empty() => {
            let wanted = find(names)?;
            let line = KernelLine::of_name(line)?;
            let lab = ready_to_run(&wanted, Some(line))?;
            lab::runner::run(&Lab { instead: Some(line), ..lab }, &wanted)
        }
        names => {
            let wanted = find(names)?;
            lab::runner::run(&ready_to_run(&wanted, None)?, &wanted)
        }
    }
}

/// Has debuggers for the kernel of a line read a dump that a guest with it left.
fn judge(line: &str, look: impl FnOnce(&Judge<'_>) -> Result<()>) -> Result<()> {
    let line = KernelLine::of_name(line)?;
    setup::install_missing(["python3-venv", "python3-libkdumpfile"].iter())?;
    let lab = Lab::of_tree(&root())?;
    let judge = Judge::new(&lab, &lab.kernel(line)?, &Teller::new("judge"))?;
    programs::build(line.arch())?;
    look(&judge)
}

/// Sees that everything is there that the guests of these scenarios need, with the kernel of `instead` in all of them or with
/// their own.
fn ready_to_run(scenarios: &[Scenario], instead: Option<KernelLine>) -> Result<Lab> {
    let used = |arch: &Arch| match instead {
        Some(line) => line.arch() == *arch,
        None => scenarios.iter().any(|scenario| scenario.arch == *arch),
    };
    let archs: Vec<Arch> = Arch::ALL.into_iter().filter(used).collect();
    let lab = ready_for(&archs, instead)?;
    if scenarios.iter().any(|scenario| scenario.packages) {
        for version in [None, Some(lab::lab::EARLIER)] {
            deb::build(version)?;
        }
    }
    Ok(lab)
}

/// The scenarios of these names.
fn find(names: &[&str]) -> Result<Vec<Scenario>> {
    let find = |name: &&str| {
        let found = scenarios::find(name);
        found.with_context(|| format!("there is no scenario {name}: `cargo xtask lab` lists them"))
    };
    names.iter().map(find).collect()
}

/// Sees that everything that guests of these architectures need is there.
fn ready(archs: &[Arch]) -> Result<Lab> {
    ready_for(archs, None)
}

/// Like [`ready`], also for a kernel line that is not among the usual.
fn ready_for(archs: &[Arch], line: Option<KernelLine>) -> Result<Lab> {
    if let Some(line) = line {
        fetch_line(line.name(), false)?;
    }
    for &arch in archs {
        setup::run(arch)?;
        fetch(arch, false)?;
        let _one_at_a_time = dist_lock()?;
        programs::build(arch)?;
        let extra = line.filter(|line| line.arch() == arch && !KernelLine::usual(arch).contains(line));
        let lines: Vec<KernelLine> = KernelLine::usual(arch).iter().copied().chain(extra).collect();
        module::build_for_lab(&Cache::open()?, &lines)?;
    }
    Lab::of_tree(&root())
}

/// Held while something is put into target/dist: two of these commands may run at the same time.
fn dist_lock() -> Result<File> {
    let target = root().join("target");
    fs::create_dir_all(&target)?;
    lab::cache::exclusive(&target.join("dist.lock"))
}

/// Fetches, or builds, the kernel of one line.
fn fetch_line(name: &str, refresh: bool) -> Result<()> {
    let line = KernelLine::of_name(name)?;
    setup::run(line.arch())?;
    Cache::open()?.fetch_line(line, refresh, &|line| eprintln!("{line}"))
}

fn fetch(arch: Arch, refresh: bool) -> Result<()> {
    Cache::open()?.fetch(arch, refresh, &|line| eprintln!("{line}"))
}

/// The source tree's root.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}
