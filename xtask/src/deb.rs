//! Debian packages, put together from what is built and from `dist/debian`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::arch::Arch;
use lab::debian::{output, recreate, run};

use crate::{module, programs, root};

/// What dpkg runs, and which files are the administrator's, where a package has them.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Where files of `dist/debian` go in the package `hotdump`, and with which mode.
const FILES: [(&str, &str, u32); 3] = [
    ("hotdump.cfg", "etc/default/grub.d/hotdump.cfg", 0o644),
    ("kernel-postinst", "etc/kernel/postinst.d/zz-hotdump", 0o755),
    ("kernel-postrm", "etc/kernel/postrm.d/zz-hotdump", 0o755),
];

/// Builds both packages for this machine's architecture and gives their paths. They are of `version`, or of this source
/// tree's. The program must have been built.
pub(crate) fn build(version: Option<&str>) -> Result<[PathBuf; 2]> {
    let _one_at_a_time = crate::dist_lock()?;
    let version = version.unwrap_or(env!("CARGO_PKG_VERSION"));
    Ok([package("hotdump", version, program)?, package("hotdump-dkms", version, dkms)?])
}

/// Builds a package of what `fill` puts into the directory that it is given.
fn package(name: &str, version: &str, fill: fn(&Path) -> Result<()>) -> Result<PathBuf> {
    let arch = Arch::native();
    let dist = programs::dist(arch);
    let stage = dist.join("deb").join(name);
    recreate(&stage)?;
    fill(&stage)?;
    let doc = stage.join("usr/share/doc").join(name);
    fs::create_dir_all(&doc)?;
    fs::copy(root().join("dist/debian/copyright"), doc.join("copyright"))?;
    let size =
        output(Command::new("du").args(["--summarize", "--apparent-size", "--block-size=1024"]).arg(&stage))?;
    let size = size.split_whitespace().next().context("du names no size")?;
    let sums = output(
        Command::new("sh")
            .args(["-c", "find . -type f ! -path './etc/*' -printf '%P\\0' | xargs -0 md5sum"])
            .current_dir(&stage),
    )?;
    let control = stage.join("DEBIAN");
    fs::create_dir(&control)?;
    let fill_in = |text: &str| {
        // The module's version is the source tree's: DKMS knows it by that.
        let module = if text.starts_with("#!") { env!("CARGO_PKG_VERSION") } else { version };
        text.replace("@VERSION@", module).replace("@ARCH@", arch.debian()).replace("@SIZE@", size)
    };
    let source = |part: &str| fs::read_to_string(root().join("dist/debian").join(format!("{name}.{part}")));
    fs::write(control.join("control"), fill_in(&source("control")?))?;
    fs::write(control.join("md5sums"), sums)?;
    if let Ok(conffiles) = source("conffiles") {
        fs::write(control.join("conffiles"), conffiles)?;
    }
    for script in SCRIPTS {
        if let Ok(text) = source(script) {
            write_with_mode(&control.join(script), &fill_in(&text), 0o755)?;
        }
    }
    let package = dist.join(format!("{name}_{version}_{}.deb", arch.debian()));
    let mut build = Command::new("dpkg-deb");
    run(build.args(["--root-owner-group", "-Zxz", "--build"]).arg(&stage).arg(&package))?;
    fs::remove_dir_all(&stage)?;
    Ok(package)
}

/// Puts the program and what belongs to it where `make install` does, and what only a package has.
fn program(stage: &Path) -> Result<()> {
    let mut make = Command::new("make");
    make.args(["--silent", "install-files", "PREFIX=/usr"]).arg(format!("DESTDIR={}", stage.display()));
    run(make.current_dir(root()))?;
    for (from, to, mode) in FILES {
        let to = stage.join(to);
        fs::create_dir_all(to.parent().context("a file has a directory")?)?;
        write_with_mode(&to, &fs::read_to_string(root().join("dist/debian").join(from))?, mode)?;
    }
    let man = stage.join("usr/share/man");
    run(Command::new("sh").args(["-c", "find . -name '*.[1-9]' -exec gzip -9n {} +"]).current_dir(man))
}

/// Puts the module's sources where DKMS looks for them.
fn dkms(stage: &Path) -> Result<()> {
    let sources = module::dkms(Arch::native())?;
    let name = sources.file_name().and_then(|name| name.to_str()).context("DKMS's directory has a name")?;
    let place = stage.join("usr/src").join(name.replace("hotdump-dkms-", "hotdump-"));
    fs::create_dir_all(&place)?;
    for entry in fs::read_dir(&sources)? {
        let entry = entry?;
        ensure!(entry.file_type()?.is_file(), "{} is no file", entry.path().display());
        fs::copy(entry.path(), place.join(entry.file_name()))?;
    }
    Ok(())
}

fn write_with_mode(path: &Path, text: &str, mode: u32) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}
