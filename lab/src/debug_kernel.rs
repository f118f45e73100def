//! A kernel that looks for faults while it runs (KASAN, lockdep, sleep in atomic context), built from Debian's source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};

use crate::debian;

/// The lines of its configuration that differ from `make allnoconfig`.
const CONFIG: &str = include_str!("../debug-kernel.config");

/// Where they are in the root of the kernel that was built with them.
const CONFIG_PLACE: &str = "usr/src/debug-kernel.config";

const SOURCE: &str = "linux-source-6.12";
const COMPILER: &str = "gcc-14";
/// The source, and what a kernel's build needs.
const PACKAGES: [&str; 15] = [
    SOURCE,
    COMPILER,
    "gcc",
    "libc6-dev",
    "libelf-dev",
    "libssl-dev",
    "make",
    "bison",
    "flex",
    "bc",
    "perl-base",
    "tar",
    "xz-utils",
    "gzip",
    "kmod",
];

/// Builds the kernel in a root beside `target` and gives that root; what an interrupted build left there is taken up.
/// The kernel, its modules and its build folder, which serves as its headers, are where Debian's packages have theirs.
///
/// # Errors
/// If the suite has no such source, if a line of the configuration is not in force, or if the build fails.
pub fn build(target: &Path, suite: &str, say: &(dyn Fn(String) + Sync)) -> Result<PathBuf> {
    let root = target.with_file_name("building-debug");
    let build = root.join("usr/src").join(SOURCE);
    if !build.join("Makefile").exists() {
        debian::recreate(&root)?;
        debian::make_root(suite, &PACKAGES, &root)?;
        let unpack = format!("tar xf {SOURCE}.tar.xz && rm {SOURCE}.tar.xz");
        debian::run(debian::in_root(&root, "/usr/src")?.args(["sh", "-c", &unpack]))?;
    }
    fs::write(root.join(CONFIG_PLACE), CONFIG)?;
    make(&root, &[&format!("KCONFIG_ALLCONFIG=/{CONFIG_PLACE}"), "allnoconfig"])?;
    let config = fs::read_to_string(build.join(".config"))?;
    for line in CONFIG.lines().filter(|line| line.starts_with("CONFIG_")) {
        ensure!(config.lines().any(|one| one == line), "{line} is not in force in {}", build.display());
    }
    say("kernel debug: building it, which takes an hour of a CPU".into());
    let jobs = format!("-j{}", thread::available_parallelism().map_or(1, usize::from));
    make(&root, &[&jobs, "bzImage", "modules"])?;
    let release = fs::read_to_string(build.join("include/config/kernel.release"))?;
    let release = release.trim();
    make(&root, &["INSTALL_MOD_PATH=/", "modules_install"])?;
    fs::create_dir_all(root.join("boot"))?;
    let image = root.join("boot").join(format!("vmlinuz-{release}"));
    fs::copy(build.join("arch/x86/boot/bzImage"), image).context("copying the kernel that was built")?;
    let headers = root.join("usr/src").join(format!("linux-headers-{release}"));
    if !headers.is_symlink() {
        std::os::unix::fs::symlink(SOURCE, headers)?;
    }
    // Modules are built with headers, scripts and tools; the rest is large.
    let large = "find . \\( -path ./scripts -o -path ./tools \\) -prune -o \\( -name '*.[oa]' -o -name vmlinux \\) \
                 -exec rm {} +";
    debian::run(debian::in_root(&root, &format!("/usr/src/{SOURCE}"))?.args(["sh", "-c", large]))?;
    Ok(root)
}

/// Whether the kernel in this root was built with the configuration that is wanted now.
pub fn is_as_configured(root: &Path) -> bool {
    fs::read_to_string(root.join(CONFIG_PLACE)).is_ok_and(|config| config == CONFIG)
}

fn make(root: &Path, arguments: &[&str]) -> Result<()> {
    let mut command: Command = debian::in_root(root, &format!("/usr/src/{SOURCE}"))?;
    command
        .args(["nice", "make", "ARCH=x86_64"])
        .arg(format!("CC={COMPILER}"))
        .arg(format!("HOSTCC={COMPILER}"));
    debian::run(command.args(arguments))
}
