//! What guests are made of, fetched once: kernels with their modules, Debian's kexec-tools with its libraries. Beside each
//! kernel are its headers and its compiler, in a root that programs can run in.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::arch::Arch;
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
    /// Debian 12 on PowerPC: no crash hotplug, pages of 64 KiB.
    Ppc64V6_1,
    /// Debian 13 on PowerPC: crash hotplug, pages of 4 KiB.
    Ppc64V6_12,
    /// The same with pages of 64 KiB.
    Ppc64V6_12Pages64K,
}

/// What there is to say of a line: its name, its architecture, its suite, how its releases begin, and what the names of
/// its packages end in.
struct Facts(&'static str, Arch, &'static str, &'static str, &'static str);

impl KernelLine {
    const EVERY: [KernelLine; 8] = [
        KernelLine::V5_10,
        KernelLine::V6_1,
        KernelLine::V6_12,
        KernelLine::V7,
        KernelLine::Debug,
        KernelLine::Ppc64V6_1,
        KernelLine::Ppc64V6_12,
        KernelLine::Ppc64V6_12Pages64K,
    ];

    /// The lines of an architecture that scenarios boot and every fetch for it brings, oldest first. The others come when
    /// they are asked for.
    pub fn usual(arch: Arch) -> &'static [KernelLine] {
        match arch {
            Arch::X86_64 => &[KernelLine::V6_1, KernelLine::V6_12, KernelLine::V7],
            Arch::Ppc64 => &[KernelLine::Ppc64V6_1, KernelLine::Ppc64V6_12, KernelLine::Ppc64V6_12Pages64K],
        }
    }

    const fn facts(self) -> Facts {
        use Arch::{Ppc64, X86_64};
        match self {
            KernelLine::V5_10 => Facts("5.10", X86_64, "bullseye", "5.10.", "amd64"),
            KernelLine::V6_1 => Facts("6.1", X86_64, "bookworm", "6.1.", "amd64"),
            KernelLine::V6_12 => Facts("6.12", X86_64, "trixie", "6.12.", "amd64"),
            KernelLine::V7 => Facts("7", X86_64, "sid", "7.", "amd64"),
            KernelLine::Debug => Facts("debug", X86_64, "trixie", "6.12.", "amd64"),
            KernelLine::Ppc64V6_1 => Facts("6.1-ppc64le", Ppc64, "bookworm", "6.1.", "powerpc64le"),
            KernelLine::Ppc64V6_12 => Facts("6.12-ppc64le", Ppc64, "trixie", "6.12.", "powerpc64le"),
            KernelLine::Ppc64V6_12Pages64K => {
                Facts("6.12-ppc64le-64k", Ppc64, "trixie", "6.12.", "powerpc64le-64k")
            }
        }
    }

    /// Its name on the command line and of its place in the cache.
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// The line of this [name](KernelLine::name).
    pub fn of_name(name: &str) -> Result<KernelLine> {
        let known = KernelLine::EVERY.map(KernelLine::name).join(", ");
        let found = KernelLine::EVERY.into_iter().find(|line| line.name() == name);
        found.with_context(|| format!("there is no kernel line {name}: {known} are"))
    }

    /// Its architecture.
    pub const fn arch(self) -> Arch {
        self.facts().1
    }

    /// Whether its kernels keep crash images current themselves (CONFIG_CRASH_HOTPLUG).
    pub fn has_handler(self) -> bool {
        !matches!(self, KernelLine::V5_10 | KernelLine::V6_1 | KernelLine::Ppc64V6_1)
    }

    /// The suite of Debian that it comes from.
    pub(crate) fn suite(self) -> &'static str {
        self.facts().2
    }

    fn release_prefix(self) -> &'static str {
        self.facts().3
    }

    /// The releases of the line among the names of image packages, oldest first.
    fn releases(self, packages: &[String]) -> Vec<String> {
        let end = format!("-{}", self.facts().4);
        let releases = packages.iter().filter_map(|name| name.strip_prefix("linux-image-"));
        let mut releases: Vec<String> =
            releases.filter(|release| release.ends_with(&end)).map(str::to_owned).collect();
        releases.sort_by(|a, b| debian::compare_versions(a, b));
        releases
    }

    /// The package that stands for its newest "image" or "headers".
    fn package(self, kind: &str) -> String {
        format!("linux-{kind}-{}", self.facts().4)
    }
}

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

    /// The kernel image: a bzImage; on PowerPC an ELF file.
    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(self.image_name())
    }

    /// Its name where it is installed.
    pub fn image_name(&self) -> String {
        format!("{}-{}", self.line.arch().image(), self.release)
    }

    /// The directory of its modules, with what depmod wrote.
    pub fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }
}

/// The packages of the root with servers.
const SERVERS: [&str; 4] = ["nfs-ganesha", "nfs-ganesha-vfs", "openssh-server", "openssh-client"];
/// The packages of the root with what makes filesystems and brings disks up.
const STORAGE: [&str; 6] = ["lvm2", "mdadm", "fdisk", "e2fsprogs", "xfsprogs", "btrfs-progs"];
/// The file of a root that says which packages it was made of.
const MADE_OF: &str = "made-of";
const SERVER_USERS: &str = "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\nnobody:x:65534:65534::/:/usr/sbin/nologin\n";

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
    pub fn kexec_tools(&self, arch: Arch) -> Result<PathBuf> {
        self.tool("kexec-tools", arch)
    }

    /// A static busybox: this machine's own, or for another architecture Debian's.
    pub fn busybox(&self, arch: Arch) -> Result<PathBuf> {
        let root = if arch == Arch::native() { "/".into() } else { self.tool("busybox-static", arch)? };
        let found = ["usr/bin/busybox", "bin/busybox"].map(|path| root.join(path));
        let found = found.into_iter().find(|path| path.exists());
        found.context("busybox is missing: install busybox-static (`cargo xtask setup`)")
    }

    /// A root with the servers that take dumps, and the clients of the same release. The first call fetches it.
    pub fn servers(&self) -> Result<PathBuf> {
        let target = self.dir.join("servers");
        let _one_at_a_time = self.lock()?;
        if !target.exists() {
            install(&target, |new| {
                debian::make_root(KernelLine::V6_1.suite(), &SERVERS, new)?;
                for dir in ["dev", "proc", "run", "srv", "var/lib/nfs"] {
                    fs::create_dir_all(new.join(dir))?;
                }
                std::os::unix::fs::symlink("/proc/self/mounts", new.join("etc/mtab"))?;
                // Packages that are not set up have no users.
                fs::write(new.join("etc/passwd"), SERVER_USERS)?;
                Ok(())
            })?;
        }
        Ok(target)
    }

    /// A root with the programs that make partitions, software RAID, LVM volumes and filesystems. The first call fetches it, and the
    /// first one after other packages are asked for.
    pub fn storage(&self) -> Result<PathBuf> {
        let (target, recipe) = (self.dir.join("storage"), STORAGE.join("\n"));
        let _one_at_a_time = self.lock()?;
        if fs::read_to_string(target.join(MADE_OF)).ok().as_ref() != Some(&recipe) {
            install(&target, |new| {
                debian::make_root(KernelLine::V6_1.suite(), &STORAGE, new)?;
                Ok(fs::write(new.join(MADE_OF), recipe)?)
            })?;
        }
        Ok(target)
    }

    pub(crate) fn tool(&self, package: &str, arch: Arch) -> Result<PathBuf> {
        let root = self.tool_dir(package, arch);
        ensure!(
            root.exists(),
            "{} is not there: run `cargo xtask fetch --arch {}`",
            root.display(),
            arch.name()
        );
        Ok(root)
    }

    fn tool_dir(&self, package: &str, arch: Arch) -> PathBuf {
        match arch {
            Arch::X86_64 => self.dir.join(package),
            Arch::Ppc64 => self.dir.join(format!("{package}-{}", arch.name())),
        }
    }

    fn kernel_dir(&self, line: KernelLine) -> PathBuf {
        self.dir.join("kernel").join(line.name())
    }

    /// Fetches what is missing for guests of an architecture; with `refresh` everything, as new as Debian has it. Without
    /// network it works as long as nothing is missing.
    pub fn fetch(&self, arch: Arch, refresh: bool, say: &(dyn Fn(String) + Sync)) -> Result<()> {
        let _one_at_a_time = self.lock()?;
        let fetched = thread::scope(|scope| {
            let fetch = |line: &KernelLine| {
                let line = *line;
                scope.spawn(move || self.fetch_kernel(line, refresh, say))
            };
            let running: Vec<_> = KernelLine::usual(arch).iter().map(fetch).collect();
            let joined = running.into_iter().map(|one| one.join());
            joined
                .map(|one| one.unwrap_or_else(|_| bail!("the fetch of a kernel panicked")))
                .collect::<Vec<_>>()
        });
        fetched.into_iter().collect::<Result<()>>()?;
        self.fetch_tool("kexec-tools", arch, refresh, say)?;
        if arch != Arch::native() {
            self.fetch_tool("busybox-static", arch, refresh, say)?;
        }
        Ok(())
    }

    /// Fetches a package of unstable with the libraries that it needs.
    pub(crate) fn fetch_tool(
        &self,
        package: &str,
        arch: Arch,
        refresh: bool,
        say: &(dyn Fn(String) + Sync),
    ) -> Result<()> {
        let target = self.tool_dir(package, arch);
        if refresh || !target.exists() {
            let suite = KernelLine::V7.suite();
            let apt = self.apt(package, arch, suite)?;
            let mut packages = vec![apt.newest(package)?];
            packages.extend(apt.libraries(package, suite)?);
            install(&target, |new| {
                apt.extract(&packages, new)?;
                fs::write(new.join("version"), &packages[0].version)?;
                if package == "kexec-tools" { keep_needed_libraries(new, arch) } else { Ok(()) }
            })?;
        }
        say(format!("{package} ({}): {}", arch.name(), fs::read_to_string(target.join("version"))?));
        Ok(())
    }

    /// A suite's packages of an architecture, as they are now. Each that is fetched at the same time as others has a
    /// configuration of its own, by its name: apt takes turns otherwise, or gives up.
    pub(crate) fn apt(&self, name: &str, arch: Arch, suite: &str) -> Result<Apt> {
        let apt = Apt::open(&self.dir.join("apt").join(format!("{name}-{}", arch.name())), &[suite], arch)?;
        apt.update()?;
        Ok(apt)
    }

    /// Fetches one line, also one that is not [usual](KernelLine::usual), or builds it: that takes long.
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
                prepare_kernel(&new, line.arch())?;
                put_in_place(&new, &target)?;
            } else {
                install(&target, |new| {
                    if line.arch() == Arch::native() {
                        let (image, headers) = (line.package("image"), line.package("headers"));
                        debian::make_root(line.suite(), &[&image, &headers, "make"], new)?;
                    } else {
                        self.make_cross_root(line, new, say)?;
                    }
                    prepare_kernel(new, line.arch())
                })?;
            }
            self.kernel(line)?
        };
        say(format!("kernel {}: {}", line.name(), kernel.release));
        Ok(())
    }

    /// Makes a root of this machine's architecture in which modules for the line's kernel can be built: image and headers
    /// are of the kernel's architecture, the kernel's tools and the cross compiler of this one's.
    ///
    /// Of the suite's releases it is the newest that can be had: an index can be ahead of what lies in the mirror's pool.
    fn make_cross_root(&self, line: KernelLine, new: &Path, say: &(dyn Fn(String) + Sync)) -> Result<()> {
        let apt = self.apt(line.name(), line.arch(), line.suite())?;
        let names = apt.names(&format!("linux-image-{}", line.release_prefix()))?;
        let mut releases = line.releases(&names);
        let debs = debian::debs_of(new);
        let headers = loop {
            let release = releases.pop();
            let release =
                release.with_context(|| format!("{} has no {}", line.suite(), line.package("image")))?;
            let [image, headers] = ["image", "headers"].map(|kind| format!("linux-{kind}-{release}"));
            let common = apt.depends_on(&headers, "linux-headers-")?;
            let packages = [image, headers.clone(), common].map(|name| apt.newest(&name));
            match apt.download(&packages.into_iter().collect::<Result<Vec<_>>>()?, &debs) {
                Ok(()) => break headers,
                Err(error) if releases.is_empty() => return Err(error),
                Err(error) => say(format!("{release} is not to be had, an older one is tried: {error:#}")),
            }
        };
        let kbuild = apt.depends_on(&headers, "linux-kbuild-")?;
        let compiler = format!("{}-{}", apt.depends_on(&headers, "gcc-")?, line.arch().compiler_suffix());
        debian::make_root(line.suite(), &["make", &kbuild, &compiler], new)?;
        debian::unpack(&debs, new)
    }

    /// Held while something is fetched: other source trees share the cache.
    pub(crate) fn lock(&self) -> Result<File> {
        self.lock_by("lock")
    }

    /// The same by a file of its own, for what takes long and no guest needs.
    pub(crate) fn lock_by(&self, name: &str) -> Result<File> {
        exclusive(&self.dir.join(name))
    }
}

/// Waits until nobody else has this file, and has it until what is given is dropped.
///
/// # Errors
/// The system's error.
pub fn exclusive(path: &Path) -> Result<File> {
    let lock = File::create(path).with_context(|| format!("making {}", path.display()))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(lock)
}

impl Kernel {
    /// Whether its headers are there, and it is as this source tree builds it, where it is built and not fetched.
    fn is_whole(&self) -> bool {
        let headers = self.root.join(&self.headers()[1..]);
        headers.exists() && (self.line != KernelLine::Debug || debug_kernel::is_as_configured(&self.root))
    }

    /// The kernel whose image is in the root's `boot`.
    pub(crate) fn in_dir(line: KernelLine, root: &Path) -> Result<Kernel> {
        for entry in fs::read_dir(root.join("boot"))? {
            let name = entry?.file_name();
            let image = format!("{}-", line.arch().image());
            if let Some(release) = name.to_string_lossy().strip_prefix(&image) {
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
        bail!("no {}-* in {}/boot", line.arch().image(), root.display())
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

pub(crate) fn put_in_place(new: &Path, target: &Path) -> Result<()> {
    if target.exists() {
        fs::remove_dir_all(target)?;
    }
    fs::rename(new, target).with_context(|| format!("putting {} in place", target.display()))
}

/// Gives a root's kernel one layout (the image in `boot`), and its module index.
fn prepare_kernel(root: &Path, arch: Arch) -> Result<()> {
    for entry in fs::read_dir(root.join("lib/modules"))? {
        let release = entry?.file_name();
        let beside_modules = root.join("lib/modules").join(&release).join(arch.image());
        if beside_modules.exists() {
            let image = format!("{}-{}", arch.image(), release.to_string_lossy());
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

/// Leaves kexec, the dynamic linker and the libraries that kexec loads; the rest of the packages goes.
fn keep_needed_libraries(root: &Path, arch: Arch) -> Result<()> {
    let name = Path::new(arch.dynamic_linker()).file_name().context("the dynamic linker has a name")?;
    let libraries = root.join(arch.libraries());
    let linker = fs::canonicalize(root.join(arch.dynamic_linker()))
        .or_else(|_| fs::canonicalize(libraries.join(name)))
        .context("kexec-tools' libc6 brought no dynamic linker")?;
    let kexec =
        ["usr/sbin/kexec", "sbin/kexec"].map(|path| root.join(path)).into_iter().find(|path| path.exists());
    let kexec = kexec.context("the package kexec-tools holds no sbin/kexec")?;
    let list = debian::output(
        arch.command(&linker).arg("--library-path").arg(&libraries).arg("--list").arg(&kexec),
    )?;
    let kept = root.join("kept");
    fs::create_dir_all(kept.join(arch.libraries()))?;
    fs::create_dir_all(kept.join("usr/lib64"))?;
    fs::create_dir_all(kept.join("usr/sbin"))?;
    for path in list.lines().filter_map(|line| line.split("=> ").nth(1)?.split(" (").next()) {
        let path = Path::new(path);
        if let Some(name) = path.file_name().filter(|_| path.starts_with(&libraries)) {
            fs::copy(path, kept.join(arch.libraries()).join(name))?;
        }
    }
    fs::copy(&linker, kept.join(arch.dynamic_linker()))?;
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
        assert!(unknown.contains("6.12, 7, debug, 6.1-ppc64le"), "{unknown}");
    }

    #[test]
    fn releases_of_a_line_among_packages() {
        let packages =
            ["6.12.117+deb13-powerpc64le-64k", "6.12.9+deb13-powerpc64le", "6.12.117+deb13-powerpc64le"]
                .map(|release| format!("linux-image-{release}"));
        let dbg = ["linux-image-6.12.117+deb13-powerpc64le-dbg".to_owned()];
        let releases = KernelLine::Ppc64V6_12.releases(&[&packages[..], &dbg].concat());
        assert_eq!(releases, ["6.12.9+deb13-powerpc64le", "6.12.117+deb13-powerpc64le"]);
    }
}
