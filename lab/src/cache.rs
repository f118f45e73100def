//! What guests are made of, fetched once: kernels with their modules, Debian's kexec-tools with its libraries. Beside each
//! kernel are its headers and its compiler, in a root that programs can run in.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::debian::{self, Apt};
use crate::debug_kernel;

/// A line of Debian kernels; the one that its suite has at the time of the fetch stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelLine {
    /// Debian 11: the oldest that the module is for.
    V5_10,
    /// Debian 12: no crash hotplug.
    V6_1,
    /// Debian 13: crash hotplug.
    V6_12,
    /// Debian unstable.
    V7,
    /// Debian 13's source with checks for faults switched on, see [`debug_kernel`].
    Debug,
}

impl KernelLine {
    /// The lines that scenarios boot and every fetch brings, oldest first. The others come when they are asked for.
    pub const ALL: [KernelLine; 3] = [KernelLine::V6_1, KernelLine::V6_12, KernelLine::V7];

    const EVERY: [KernelLine; 5] =
        [KernelLine::V5_10, KernelLine::V6_1, KernelLine::V6_12, KernelLine::V7, KernelLine::Debug];

    /// Its name on the command line and of its place in the cache.
    pub fn name(self) -> &'static str {
        self.names().0
    }

    /// The line of this [name](KernelLine::name).
    pub fn of_name(name: &str) -> Result<KernelLine> {
        let known = KernelLine::EVERY.map(KernelLine::name).join(", ");
        let found = KernelLine::EVERY.into_iter().find(|line| line.name() == name);
        found.with_context(|| format!("there is no kernel line {name}: {known} are"))
    }

    /// The suite of Debian that it comes from.
    fn suite(self) -> &'static str {
        self.names().1
    }

    fn release_prefix(self) -> &'static str {
        self.names().2
    }

    /// Its own name, that of its suite, and how its releases begin.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            KernelLine::V5_10 => ("5.10", "bullseye", "5.10."),
            KernelLine::V6_1 => ("6.1", "bookworm", "6.1."),
            KernelLine::V6_12 => ("6.12", "trixie", "6.12."),
            KernelLine::V7 => ("7", "sid", "7."),
            KernelLine::Debug => ("debug", "trixie", "6.12."),
        }
    }
}

/// A suite's kernel, and its headers with their compiler. The two packages belong to one build.
const PACKAGES: [&str; 3] = ["linux-image-amd64", "linux-headers-amd64", "make"];

/// A fetched kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its line.
    pub line: KernelLine,
    /// Its release, as `uname -r` prints it.
    pub release: String,
    root: PathBuf,
}

impl Kernel {
    /// The root that programs of its Debian release can [run](debian::in_root) in; its compiler is there.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its headers, as a path in [`Kernel::root`].
    pub fn headers(&self) -> String {
        format!("/usr/src/linux-headers-{}", self.release)
    }

    /// The kernel image, a bzImage.
    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The directory of its modules, with what depmod wrote.
    pub fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }
}

/// The directory with everything fetched.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The cache at its usual place, see [`debian::cache_dir`].
    pub fn open() -> Result<Cache> {
        let dir = debian::cache_dir()?;
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Cache { dir })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The fetched kernel of a line.
    pub fn kernel(&self, line: KernelLine) -> Result<Kernel> {
        let root = self.kernel_dir(line);
        ensure!(
            root.exists(),
            "kernel {0} is not in {1}: run `cargo xtask fetch {0}`",
            line.name(),
            self.dir.display()
        );
        Kernel::in_dir(line, &root)
    }

    /// The root of Debian's kexec-tools and the libraries that it needs.
    pub fn kexec_tools(&self) -> Result<PathBuf> {
        let root = self.dir.join("kexec-tools");
        ensure!(root.exists(), "kexec-tools is not in {}: run `cargo xtask fetch`", self.dir.display());
        Ok(root)
    }

    fn kernel_dir(&self, line: KernelLine) -> PathBuf {
        self.dir.join("kernel").join(line.name())
    }

    /// Fetches what is missing; with `refresh` everything, as new as Debian has it. Without network it works as
    /// long as nothing is missing.
    pub fn fetch(&self, refresh: bool, say: &(dyn Fn(String) + Sync)) -> Result<()> {
        let _one_at_a_time = self.lock()?;
        let fetched = thread::scope(|scope| {
            let fetch = |line| scope.spawn(move || self.fetch_kernel(line, refresh, say));
            let running = KernelLine::ALL.map(fetch);
            running.map(|one| one.join().unwrap_or_else(|_| bail!("the fetch of a kernel panicked")))
        });
        fetched.into_iter().collect::<Result<()>>()?;
        let target = self.dir.join("kexec-tools");
        if refresh || !target.exists() {
            let suite = KernelLine::V7.suite();
            let apt = Apt::open(&self.dir.join("apt"), &[suite])?;
            apt.update()?;
            let mut packages = vec![apt.newest("kexec-tools")?];
            packages.extend(apt.libraries("kexec-tools", suite)?);
            install(&target, |new| {
                apt.extract(&packages, new)?;
                fs::write(new.join("version"), &packages[0].version)?;
                keep_needed_libraries(new)
            })?;
        }
        say(format!("kexec-tools: {}", fs::read_to_string(target.join("version"))?));
        Ok(())
    }

    /// Fetches one line, also one that is not among [`KernelLine::ALL`], or builds it: that takes long.
    pub fn fetch_line(&self, line: KernelLine, refresh: bool, say: &(dyn Fn(String) + Sync)) -> Result<()> {
        let _one_at_a_time = self.lock()?;
        self.fetch_kernel(line, refresh, say)
    }

    fn fetch_kernel(&self, line: KernelLine, refresh: bool, say: &(dyn Fn(String) + Sync)) -> Result<()> {
        let whole = |kernel: Kernel| kernel.is_whole().then_some(kernel);
        let had = if refresh { None } else { self.kernel(line).ok().and_then(whole) };
        let kernel = if let Some(kernel) = had {
            kernel
        } else {
            say(format!("kernel {}: fetching it from {}, with its compiler", line.name(), line.suite()));
            let target = self.kernel_dir(line);
            if line == KernelLine::Debug {
                let new = debug_kernel::build(&target, line.suite(), say)?;
                prepare_kernel(&new)?;
                put_in_place(&new, &target)?;
            } else {
                install(&target, |new| {
                    debian::make_root(line.suite(), &PACKAGES, new)?;
                    prepare_kernel(new)
                })?;
            }
            self.kernel(line)?
        };
        say(format!("kernel {}: {}", line.name(), kernel.release));
        Ok(())
    }

    /// Held while something is fetched: other source trees share the cache.
    fn lock(&self) -> Result<File> {
        let lock = File::create(self.dir.join("lock"))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(lock)
    }
}

impl Kernel {
    /// Whether its headers are there, and it is as this source tree builds it, where it is built and not fetched.
    fn is_whole(&self) -> bool {
        let headers = self.root.join(&self.headers()[1..]);
        headers.exists() && (self.line != KernelLine::Debug || debug_kernel::is_as_configured(&self.root))
    }

    fn in_dir(line: KernelLine, root: &Path) -> Result<Kernel> {
        for entry in fs::read_dir(root.join("boot"))? {
            let name = entry?.file_name();
            if let Some(release) = name.to_string_lossy().strip_prefix("vmlinuz-") {
                let is_of_line = release.starts_with(line.release_prefix());
                ensure!(
                    is_of_line,
                    "{} is no longer where {} comes from: it has {release}",
                    line.suite(),
                    line.name()
                );
                return Ok(Kernel { line, release: release.into(), root: root.into() });
            }
        }
        bail!("no vmlinuz-* in {}/boot", root.display())
    }
}

/// Has `fill` make a directory beside `target`, then puts it in `target`'s place.
fn install(target: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let new =
        target.with_file_name(format!("new-{}", target.file_name().unwrap_or_default().to_string_lossy()));
    debian::recreate(&new)?;
    fill(&new)?;
    put_in_place(&new, target)
}

fn put_in_place(new: &Path, target: &Path) -> Result<()> {
    if target.exists() {
        fs::remove_dir_all(target)?;
    }
    fs::rename(new, target).with_context(|| format!("putting {} in place", target.display()))
}

/// Gives a root's kernel one layout (the image in `boot`), and its module index.
fn prepare_kernel(root: &Path) -> Result<()> {
    for entry in fs::read_dir(root.join("lib/modules"))? {
        let release = entry?.file_name();
        let beside_modules = root.join("lib/modules").join(&release).join("vmlinuz");
        if beside_modules.exists() {
            let image = format!("vmlinuz-{}", release.to_string_lossy());
            fs::rename(beside_modules, root.join("boot").join(image))?;
        }
        debian::run(Command::new("depmod").arg("-b").arg(root).arg(release).env("PATH", sbin_path()))?;
    }
    Ok(())
}

/// The search path with the system directories that a plain user's lacks.
pub fn sbin_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// Where the dynamic linker is, in Debian's packages and in the guest.
pub const LINKER: &str = "usr/lib64/ld-linux-x86-64.so.2";
/// Where the libraries are, in Debian's packages and in the guest.
pub const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Leaves kexec, the dynamic linker and the libraries that kexec loads; the rest of the packages goes.
fn keep_needed_libraries(root: &Path) -> Result<()> {
    let linker = fs::canonicalize(root.join(LINKER))
        .or_else(|_| fs::canonicalize(root.join(LIBRARIES).join("ld-linux-x86-64.so.2")));
    let linker = linker.context("kexec-tools' libc6 brought no dynamic linker")?;
    let libraries = root.join(LIBRARIES);
    let kexec =
        ["usr/sbin/kexec", "sbin/kexec"].map(|path| root.join(path)).into_iter().find(|path| path.exists());
    let kexec = kexec.context("the package kexec-tools holds no sbin/kexec")?;
    let list = debian::output(
        Command::new(&linker).arg("--library-path").arg(&libraries).arg("--list").arg(&kexec),
    )?;
    let kept = root.join("kept");
    fs::create_dir_all(kept.join(LIBRARIES))?;
    fs::create_dir_all(kept.join("usr/lib64"))?;
    fs::create_dir_all(kept.join("usr/sbin"))?;
    for path in list.lines().filter_map(|line| line.split("=> ").nth(1)?.split(" (").next()) {
        let path = Path::new(path);
        if let Some(name) = path.file_name().filter(|_| path.starts_with(&libraries)) {
            fs::copy(path, kept.join(LIBRARIES).join(name))?;
        }
    }
    fs::copy(&linker, kept.join(LINKER))?;
    fs::copy(&kexec, kept.join("usr/sbin/kexec"))?;
    for old in ["usr", "etc", "var", "lib", "lib64", "sbin", "bin"].map(|old| root.join(old)) {
        if old.is_symlink() {
            fs::remove_file(old)?;
        } else if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    fs::rename(kept.join("usr"), root.join("usr"))?;
    fs::remove_dir(kept)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::KernelLine;

    #[test]
    fn lines_by_name() {
        for line in KernelLine::EVERY {
            assert_eq!(KernelLine::of_name(line.name()).unwrap(), line);
        }
        let unknown = KernelLine::of_name("6.2").unwrap_err().to_string();
        assert!(unknown.contains("6.12, 7, debug"), "{unknown}");
    }
}
