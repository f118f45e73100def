//! What independent readers of dumps need: kernels' debugging information, drgn, crash. Fetched when a scenario asks for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;
use crate::cache::{Cache, Kernel};
use crate::debian::{self, run};

/// Another release's helpers may call the same thing otherwise.
const DRGN: &str = "drgn==0.3.0";

/// What is fetched here takes minutes, and guests do not wait for it.
const LOCK: &str = "debuginfo.lock";

impl Cache {
    /// The kernel as an ELF file with its debugging information: the one file of Debian's package that is about it. The package is as large as
    /// all modules together and is not kept.
    ///
    /// # Errors
    /// If the suite no longer has the package.
    pub fn vmlinux(&self, kernel: &Kernel, say: &dyn Fn(String)) -> Result<PathBuf> {
        let _one_at_a_time = self.lock_by(LOCK)?;
        let target = self.dir().join("vmlinux").join(&kernel.release);
        if target.exists() {
            return Ok(target);
        }
        let package = format!("linux-image-{}-dbg", kernel.release);
        say(format!("fetching {package}, about 1 GB"));
        let apt = self.apt("debug", kernel.line.arch(), kernel.line.suite())?;
        let debs = self.dir().join("vmlinux").join("debs");
        apt.download(&[apt.newest(&package)?], &debs)?;
        let package = fs::read_dir(&debs)?.next().context("apt downloaded nothing")??.path();
        let new = self.dir().join("vmlinux").join("new");
        take_vmlinux(&package, &new)?;
        fs::remove_dir_all(&debs)?;
        fs::rename(&new, &target)?;
        Ok(target)
    }

    /// A Python that has drgn.
    ///
    /// # Errors
    /// If PyPI or Debian's python3-venv cannot be had.
    pub fn drgn(&self) -> Result<PathBuf> {
        let _one_at_a_time = self.lock_by(LOCK)?;
        let target = self.dir().join("drgn");
        let (python, made_of) = (target.join("bin/python3"), target.join("made-of"));
        if fs::read_to_string(&made_of).ok().as_deref() != Some(DRGN) {
            debian::recreate(&target)?;
            let made = run(Command::new("python3").args(["-m", "venv"]).arg(&target));
            made.context("no virtual environment: install python3-venv (`cargo xtask setup`)")?;
            run(Command::new(&python).args(["-m", "pip", "install", "--quiet", DRGN]))?;
            fs::write(&made_of, DRGN)?;
        }
        Ok(python)
    }

    /// A command that runs Debian's newest crash for dumps of an architecture.
    ///
    /// # Errors
    /// If it cannot be fetched.
    pub fn crash(&self, arch: Arch, say: &(dyn Fn(String) + Sync)) -> Result<Command> {
        let _one_at_a_time = self.lock_by(LOCK)?;
        self.fetch_tool("crash", arch, false, say)?;
        let root = self.tool("crash", arch)?;
        let mut command = arch.command(&root.join(arch.dynamic_linker()));
        command.arg("--library-path").arg(root.join(arch.libraries())).arg(root.join("usr/bin/crash"));
        Ok(command)
    }
}

/// The kernel in Debian's packages with debugging information: below boot or below lib/modules, where the other is a link to it.
const KERNEL: &str = "./usr/lib/debug/*/vmlinux*";

/// Copies the kernel out of a package with debugging information.
fn take_vmlinux(package: &Path, target: &Path) -> Result<()> {
    let mut unpack = Command::new("dpkg-deb");
    let mut unpack = unpack.arg("--fsys-tarfile").arg(package).stdout(Stdio::piped()).spawn()?;
    let archive = unpack.stdout.take().context("dpkg-deb's output")?;
    let file = fs::File::create(target).with_context(|| format!("creating {}", target.display()))?;
    let mut tar = Command::new("tar");
    tar.args(["-xO", "--exclude=*.py", "--wildcards", "--wildcards-match-slash", KERNEL]);
    let taken = tar.stdin(archive).stdout(file).status()?;
    let unpacked = unpack.wait()?;
    let is_there = fs::metadata(target)?.len() > 0;
    ensure!(
        taken.success() && unpacked.success() && is_there,
        "taking {KERNEL} out of {}: dpkg-deb: {unpacked}, tar: {taken}",
        package.display()
    );
    Ok(())
}
