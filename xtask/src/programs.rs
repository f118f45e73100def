//! The static programs: hotdump, its link `kexec`, and the lab's agent.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::arch::Arch;

use crate::module;

/// What is built. The lab's agent needs least of the others' code.
const PROGRAMS: [&str; 2] = ["lab-agent", "hotdump"];

/// Crates with code of their own for each architecture.
const OF_AN_ARCHITECTURE: [&str; 4] = ["host", "kexec", "purgatory", "vmcore"];

/// A program that needs no library, nor the directories of another architecture to run under emulation.
const STATIC: &str = "-C target-feature=+crt-static";

/// Builds for `arch` and puts the programs into `target/dist/ARCH`.
pub(crate) fn build(arch: Arch) -> Result<()> {
    let target = arch.rust_target();
    let toolchain = Toolchain::of(arch)?;
    eprintln!("building the static programs for {}", arch.name());
    let built = target_directory()?.join(target).join("release");
    let dist = dist(arch);
    fs::create_dir_all(&dist)?;
    for name in PROGRAMS {
        let mut command = Command::new(cargo_program());
        command.args(["build", "--release", "--target", target, "--package", name]);
        // The program is the capture initramfs' only one: it must need no library.
        command.env("RUSTFLAGS", STATIC);
        toolchain.set_up(&mut command, arch);
        cargo(&mut command)?;
        // A new file under the old name: the old one may be running.
        let new = dist.join(format!("{name}.new"));
        fs::copy(built.join(name), &new).with_context(|| format!("copying {name} to {}", dist.display()))?;
        fs::rename(new, dist.join(name))?;
    }
    let link = dist.join("kexec");
    if !link.is_symlink() {
        std::os::unix::fs::symlink("hotdump", link)?;
    }
    Ok(())
}

/// Runs the unit tests of the crates that differ between architectures for `arch`, which is not this machine's, under
/// user emulation. Left out where the library is made from source: tests need more of it than the programs.
pub(crate) fn test(arch: Arch) -> Result<()> {
    let toolchain = Toolchain::of(arch)?;
    if !matches!(toolchain, Toolchain::Own) {
        eprintln!("no unit tests for {}: rustup has no library for it", arch.name());
        return Ok(());
    }
    eprintln!("unit tests for {}: {}", arch.name(), OF_AN_ARCHITECTURE.join(" "));
    let mut command = Command::new(cargo_program());
    command.args(["test", "--quiet", "--target", arch.rust_target()]);
    command.args(OF_AN_ARCHITECTURE.iter().flat_map(|name| ["--package", name]));
    command.env("RUSTFLAGS", STATIC);
    toolchain.set_up(&mut command, arch);
    command.env(variable(arch, "RUNNER"), arch.user_emulator());
    cargo(&mut command)
}

/// Where what is built for `arch` goes.
pub(crate) fn dist(arch: Arch) -> PathBuf {
    crate::root().join("target/dist").join(arch.name())
}

/// The compiler of the programs.
#[derive(Debug)]
enum Toolchain {
    /// The one in use, which has the target's library.
    Own,
    /// One that has the library's source and compiles it for the target.
    FromSource(PathBuf),
}

impl Toolchain {
    fn of(arch: Arch) -> Result<Toolchain> {
        if has_library(arch) {
            return Ok(Toolchain::Own);
        }
        let rustc = module::rustc_with_source();
        Ok(Toolchain::FromSource(rustc.with_context(|| {
            format!("this Rust has no library for {0}, and rustup cannot add it", arch.rust_target())
        })?))
    }

    fn set_up(&self, command: &mut Command, arch: Arch) {
        // This machine's own is left to cargo. Build scripts and macros are for this machine whatever is built, and lie in one place:
        // linked by another program's name they, and all that needs them, would be built anew for each architecture in turn.
        if arch != Arch::native() {
            command.env(variable(arch, "LINKER"), arch.linker());
        }
        if let Toolchain::FromSource(rustc) = self {
            // A stable compiler builds the library this way, too. By the variable and not by -Zbuild-std: a cargo started
            // by a build script (purgatory's) has to know.
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            command.env("CARGO_UNSTABLE_BUILD_STD", "std,panic_abort");
        }
    }
}

/// The variable that tells cargo `what` of the target.
fn variable(arch: Arch, what: &str) -> String {
    format!("CARGO_TARGET_{}_{what}", arch.rust_target().replace('-', "_").to_uppercase())
}

/// Whether the Rust in use has the library for `arch`.
pub(crate) fn has_library(arch: Arch) -> bool {
    let arguments = ["--print", "target-libdir", "--target", arch.rust_target()];
    let dir = lab::debian::output(Command::new("rustc").args(arguments));
    dir.is_ok_and(|dir| Path::new(dir.trim()).is_dir())
}

/// The cargo that runs us.
pub(crate) fn cargo_program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Runs a command of cargo's in the source tree; what it prints goes to the terminal.
pub(crate) fn cargo(command: &mut Command) -> Result<()> {
    let status =
        command.current_dir(crate::root()).status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// Where cargo builds.
pub(crate) fn target_directory() -> Result<PathBuf> {
    let arguments = ["metadata", "--format-version", "1", "--no-deps"];
    let metadata =
        lab::debian::output(Command::new(cargo_program()).args(arguments).current_dir(crate::root()))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let directory = metadata["target_directory"].as_str();
    directory.map(PathBuf::from).context("cargo metadata names no target directory")
}
