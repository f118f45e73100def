//! Installs what the lab needs of Debian.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use lab::arch::Arch;
use lab::cache::Cache;
use lab::debian::{Apt, as_root, output};

use crate::{module, programs};

/// Packages from the machine's own sources.
const PACKAGES: [&str; 8] = [
    "busybox-static",
    "kmod",
    "e2fsprogs",
    "util-linux",
    "debian-archive-keyring",
    "xz-utils",
    "mmdebstrap",
    "make",
];

/// The first QEMU whose emulated CPU has SHA instructions is 8.2.
const QEMU: (u32, u32) = (8, 2);

/// Installs what is missing to build for `arch` and to have guests of it. Does nothing, and needs no network, where all is
/// there.
pub(crate) fn run(arch: Arch) -> Result<()> {
    ensure!(Path::new("/etc/debian_version").exists(), "set-up knows Debian only (bookworm or later)");
    let [qemu, others @ ..] = arch.guest_packages() else { bail!("no package is QEMU") };
    install_missing(PACKAGES.iter().chain(others))?;
    if qemu_version(arch) < Some(QEMU) {
        as_root(Command::new("apt-get").args(["-q", "update"]))?;
        install_qemu(arch, qemu)?;
    }
    components()?;
    cross(arch)?;
    library_source()
}

/// Installs those of Debian's packages that are missing.
pub(crate) fn install_missing<'a>(packages: impl Iterator<Item = &'a &'a str>) -> Result<()> {
    let missing: Vec<&str> = packages.copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", missing.join(" "));
    as_root(Command::new("apt-get").args(["-q", "update"]))?;
    as_root(install().args(&missing))
}

/// Installs what it takes to build for an architecture that is not this machine's: Debian's cross compiler with a C
/// library, and Rust's library, from rustup or as source.
pub(crate) fn cross(arch: Arch) -> Result<()> {
    if arch == Arch::native() {
        return Ok(());
    }
    install_missing(arch.cross_packages().iter())?;
    if programs::has_library(arch) {
        return Ok(());
    }
    let added = Command::new("rustup").args(["target", "add", arch.rust_target()]).status();
    if added.is_ok_and(|status| status.success()) && programs::has_library(arch) {
        return Ok(());
    }
    library_source()
}

fn is_installed(package: &str) -> bool {
    let state = output(Command::new("dpkg-query").args(["-W", "-f", "${Status}", package]));
    state.is_ok_and(|state| state == "install ok installed")
}

/// From the machine's own sources if theirs is new enough, else from the backports of its release, which are asked for
/// through a private configuration: the machine's own sources stay as they are.
fn install_qemu(arch: Arch, package: &str) -> Result<()> {
    let policy = output(Command::new("apt-cache").args(["policy", package]))?;
    if candidate(&policy) >= Some(QEMU) {
        as_root(install().arg(package))?;
    } else {
        let release = fs::read_to_string("/etc/os-release")?;
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let codename = codename.context("/etc/os-release has no VERSION_CODENAME")?.trim_matches('"');
        let backports = format!("{codename}-backports");
        eprintln!("installing {package} from {backports}");
        let cache = Cache::open()?;
        let apt = Apt::open(&cache.dir().join("apt-backports"), &[codename, &backports], Arch::native())?;
        apt.update()?;
        as_root(apt.command("apt-get").args(INSTALL).args(["-t", &backports, package]))?;
    }
    let (found, (major, minor)) = (qemu_version(arch), QEMU);
    ensure!(found >= Some(QEMU), "{} is {found:?} and {major}.{minor} or later is needed", arch.qemu());
    Ok(())
}

/// The version that apt would install, from `apt-cache policy`: "  Candidate: 1:7.2+dfsg-7".
fn candidate(policy: &str) -> Option<(u32, u32)> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    two_numbers(version.rsplit(':').next()?)
}

const INSTALL: [&str; 4] = ["-q", "install", "-y", "--no-install-recommends"];

fn install() -> Command {
    let mut command = Command::new("apt-get");
    command.args(INSTALL);
    command
}

/// The major and minor version of QEMU for an architecture, if there is one.
fn qemu_version(arch: Arch) -> Option<(u32, u32)> {
    parse_version(&output(Command::new(arch.qemu()).arg("--version")).ok()?)
}

/// From "QEMU emulator version 10.0.2 (Debian ...)".
fn parse_version(text: &str) -> Option<(u32, u32)> {
    two_numbers(text.split("version ").nth(1)?)
}

/// The numbers before and after the first dot.
fn two_numbers(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// rustfmt and clippy, which a minimal Rust lacks.
fn components() -> Result<()> {
    for (component, probe) in [("rustfmt", "cargo-fmt"), ("clippy", "cargo-clippy")] {
        if Command::new(probe).arg("--version").output().is_ok_and(|out| out.status.success()) {
            continue;
        }
        let status = Command::new("rustup").args(["component", "add", component]).status();
        if !status.is_ok_and(|status| status.success()) {
            bail!("{component} is missing and rustup cannot add it: install it");
        }
    }
    Ok(())
}

/// A Rust compiler with the source of its library, for the module's core: that of rustup, or Debian's beside it.
pub(crate) fn library_source() -> Result<()> {
    if module::rustc_with_source().is_ok() {
        return Ok(());
    }
    if module::is_new_enough(Path::new("rustc")) {
        let added = Command::new("rustup").args(["component", "add", "rust-src"]).status();
        if added.is_ok_and(|status| status.success()) && module::rustc_with_source().is_ok() {
            return Ok(());
        }
    }
    eprintln!("installing rustc-web rust-web-src");
    as_root(Command::new("apt-get").args(["-q", "update"]))?;
    as_root(install().args(["rustc-web", "rust-web-src"]))?;
    module::rustc_with_source().map(drop)
}

#[cfg(test)]
mod tests {
    use super::{QEMU, candidate, parse_version};

    #[test]
    fn qemu_versions() {
        let found = parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright");
        assert_eq!(found, Some((10, 0)));
        assert!(parse_version("QEMU emulator version 7.2.18") < Some(QEMU));
        assert!(parse_version("no such thing") < Some(QEMU));
        let policy = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:10.0.13+ds-0\n  Version table:";
        assert_eq!(candidate(policy), Some((10, 0)));
        assert_eq!(candidate("  Candidate: (none)"), None);
    }
}
