//! The static programs: hotdump, its link `kexec`, and the lab's agent.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Builds for `arch` and puts the programs into `target/dist/ARCH`.
pub(crate) fn build(arch: &str) -> Result<()> {
    let target = match arch {
        "x86_64" => "x86_64-unknown-linux-gnu",
        other => bail!("architecture {other} is not supported yet: x86_64 is"),
    };
    eprintln!("building the static programs for {arch}");
    let packages = ["--package", "hotdump", "--package", "lab-agent"];
    cargo(
        Command::new(cargo_program()).args(["build", "--release", "--target", target]).args(packages).env(
            "RUSTFLAGS",
            // The program is the capture initramfs' only one: it must need no library.
            "-C target-feature=+crt-static",
        ),
    )?;
    let built = target_directory()?.join(target).join("release");
    let dist = crate::root().join("target/dist").join(arch);
    fs::create_dir_all(&dist)?;
    for name in ["hotdump", "lab-agent"] {
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
