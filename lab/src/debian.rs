//! Debian packages without installing them: a private apt configuration with its own package lists and downloads, and
//! whole roots of other Debian releases.
//!
//! Everything lands below one cache directory outside the source tree. An entry is extracted beside its final
//! place and renamed when whole, so that what has its final name is complete.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::arch::Arch;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where downloads are kept: `$HOTDUMP_CACHE`, else `hotdump` in the user's cache directory.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("HOTDUMP_CACHE") {
        return Ok(dir.into());
    }
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME") {
        return Ok(Path::new(&dir).join("hotdump"));
    }
    let home = std::env::var_os("HOME")
        .context("neither HOTDUMP_CACHE nor HOME is set: where to keep downloads?")?;
    Ok(Path::new(&home).join(".cache/hotdump"))
}

/// A package as an index lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version, epoch included.
    pub version: String,
}

/// apt over some suites, with lists and downloads of its own.
pub struct Apt {
    arch: Arch,
    dir: PathBuf,
    suites: Vec<String>,
}

impl Apt {
    /// Opens the configuration in `dir` over `suites` with packages for `arch`, and writes it if it is not there. Reads no
    /// network.
    pub fn open(dir: &Path, suites: &[&str], arch: Arch) -> Result<Apt> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("creating {}/{sub}", dir.display()))?;
        }
        ensure!(Path::new(KEYRING).exists(), "{KEYRING} is missing: install debian-archive-keyring");
        let mirror = mirror()?;
        let sources: String = suites
            .iter()
            .map(|suite| format!("deb [arch={} signed-by={KEYRING}] {mirror} {suite} main\n", arch.debian()))
            .collect();
        fs::write(dir.join("sources.list"), sources)?;
        Ok(Apt { arch, dir: dir.into(), suites: suites.iter().map(|&suite| suite.into()).collect() })
    }

    /// A command of apt's family that sees this configuration and nothing of the system's sources.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = std::path::absolute(&self.dir).unwrap_or_else(|_| self.dir.clone());
        let dir = dir.display();
        for option in [
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
            // Container images turn these off; without them every command reads all indexes again.
            "Dir::Cache::pkgcache=pkgcache.bin".into(),
            "Dir::Cache::srcpkgcache=srcpkgcache.bin".into(),
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".into(),
            format!("APT::Architectures={}", self.arch.debian()),
            format!("APT::Architecture={}", self.arch.debian()),
            // The download user cannot enter a home directory.
            "APT::Sandbox::User=root".into(),
            "Acquire::Languages=none".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            "Acquire::IndexTargets::deb::CNF::DefaultEnabled=false".into(),
            "Acquire::Retries=3".into(),
            // A mirror that lags behind is good enough for test kernels; what it has is still signed.
            "Acquire::Check-Valid-Until=false".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Reads the suites' indexes again.
    pub fn update(&self) -> Result<()> {
        run(self.command("apt-get").args(["-q", "update"]))
    }

    /// The newest version of a package.
    pub fn newest(&self, name: &str) -> Result<Package> {
        self.versions(name)?
            .into_iter()
            .max_by(|a, b| compare_versions(&a.version, &b.version))
            .with_context(|| format!("no package {name} in {}", self.suites.join(", ")))
    }

    fn versions(&self, name: &str) -> Result<Vec<Package>> {
        let table = output(self.command("apt-cache").arg("madison").arg(name))?;
        Ok(table.lines().filter_map(madison_line).collect())
    }

    /// The library packages that `package` needs, those that they need too.
    pub fn libraries(&self, package: &str, suite: &str) -> Result<Vec<Package>> {
        let mut wanted = vec![format!("{package}/{suite}")];
        let mut found: Vec<Package> = Vec::new();
        while let Some(next) = wanted.pop() {
            for name in self.library_names(&next)? {
                if found.iter().any(|have| have.name == name) {
                    continue;
                }
                wanted.push(format!("{name}/{suite}"));
                found.push(self.newest(&name)?);
            }
        }
        Ok(found)
    }

    fn library_names(&self, package: &str) -> Result<Vec<String>> {
        let depends = self.depends(package)?;
        let names = depends.iter().filter_map(|one| one.split_whitespace().next());
        Ok(names.filter(|name| name.starts_with("lib") || *name == "zlib1g").map(str::to_owned).collect())
    }

    /// The field "Depends" of `package` ("name/suite"), at its commas.
    fn depends(&self, package: &str) -> Result<Vec<String>> {
        let shown = output(self.command("apt-cache").args(["show", package]))?;
        // The paragraph of the asked version comes first; others may follow.
        let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
        Ok(depends.split(',').map(|one| one.trim().to_owned()).collect())
    }

    /// The first package that `package` depends on whose name begins with `prefix`.
    pub fn depends_on(&self, package: &str, prefix: &str) -> Result<String> {
        let depends = self.depends(package)?;
        let mut names = depends.iter().filter_map(|one| one.split_whitespace().next());
        let found = names.find(|name| name.starts_with(prefix));
        found.map(str::to_owned).with_context(|| {
            format!("{package} of {} depends on no {prefix}*: {depends:?}", self.suites.join(", "))
        })
    }

    /// The names of all packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Downloads `packages` and extracts them into the directory `target`.
    pub fn extract(&self, packages: &[Package], target: &Path) -> Result<()> {
        let debs = debs_of(target);
        self.download(packages, &debs)?;
        unpack(&debs, target)
    }

    /// Downloads `packages` into the directory `debs`, which then holds nothing else.
    pub fn download(&self, packages: &[Package], debs: &Path) -> Result<()> {
        recreate(debs)?;
        let names = packages.iter().map(|one| format!("{}={}", one.name, one.version));
        run(self.command("apt-get").args(["-q", "download"]).args(names).current_dir(debs))
    }
}

/// The directory beside `target` for the packages that are extracted into it.
pub fn debs_of(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!("{name}.debs"))
}

/// Extracts the packages that lie in the directory `debs` into the directory `target`, and removes `debs`.
pub fn unpack(debs: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target)?;
    for entry in fs::read_dir(debs)? {
        run(Command::new("dpkg-deb").arg("-x").arg(entry?.path()).arg(target))?;
    }
    fs::remove_dir_all(debs)?;
    Ok(())
}

/// What a plain program of Debian's expects to find, and no package depends on.
const BASE: [&str; 9] =
    ["base-files", "bash", "coreutils", "dash", "diffutils", "findutils", "grep", "mawk", "sed"];

/// What nobody reads in a root.
const LEFT_OUT: [&str; 5] = ["doc", "info", "locale", "man", "bash-completion"];

/// Fills the empty directory `target` with `packages` of a Debian suite and all that they depend on. They are extracted
/// and not set up, which is enough to [run](in_root) compilers.
///
/// # Errors
/// If the suite has no such package, or this machine's user may not become root.
pub fn make_root(suite: &str, packages: &[&str], target: &Path) -> Result<()> {
    let mut command = mmdebstrap("extract", &[&BASE, packages].concat());
    as_root(command.arg("--skip=chroot/mount").arg(suite).arg(target).arg(mirror()?))?;
    // dpkg would choose it when it sets the package up.
    let awk = ["ln", "-s", "mawk"].map(OsStr::new);
    as_root(Command::new(awk[0]).args(&awk[1..]).arg(target.join("usr/bin/awk")))?;
    as_root(Command::new("chown").arg("-R").arg(output(Command::new("id").arg("-u"))?.trim()).arg(target))
}

/// Fills the empty directory `target` with a Debian that boots: what is essential, `packages` and all that they depend on,
/// set up.
///
/// # Errors
/// As [`make_root`].
pub fn make_system(suite: &str, packages: &[&str], target: &Path) -> Result<()> {
    as_root(mmdebstrap("minbase", packages).arg(suite).arg(target).arg(mirror()?))
}

/// A command that fills a directory with packages. Its arguments suite, directory and mirror are still to come.
fn mmdebstrap(variant: &str, packages: &[&str]) -> Command {
    let mut command = Command::new("mmdebstrap");
    command.args(["--quiet", "--mode=root", "--format=directory"]).arg(format!("--variant={variant}"));
    command.arg(format!("--architectures={}", Arch::native().debian())).arg(format!("--keyring={KEYRING}"));
    for option in [
        "APT::Install-Recommends \"false\"",
        "APT::Sandbox::User \"root\"",
        "Acquire::Check-Valid-Until \"false\"",
        "Acquire::Retries \"3\"",
    ] {
        command.arg(format!("--aptopt={option}"));
    }
    command.args(LEFT_OUT.map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*")));
    command.arg(format!("--include={}", packages.join(",")));
    command
}

/// A command in a root, with an environment of its own and /proc, in the root's directory `dir`.
pub fn in_root(root: &Path, dir: &str) -> Result<Command> {
    // However we end, it ends with us: the first process of a PID namespace does not die by signals of its own.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare"]);
    if !is_root()? {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(format!("--wd={dir}")).arg("--root").arg(root);
    command.args(["/usr/bin/env", "-i", "LC_ALL=C", "HOME=/root", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
    Ok(command)
}

fn is_root() -> Result<bool> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}

/// Runs a command as root: as it is, or by sudo. What it prints goes to the terminal.
pub fn as_root(command: &mut Command) -> Result<()> {
    let mut whole = Command::new("env");
    if !is_root()? {
        whole = Command::new("sudo");
        whole.arg("env");
    }
    whole.args(["DEBIAN_FRONTEND=noninteractive", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
    whole.arg(command.get_program()).args(command.get_args());
    let status = whole.status().with_context(|| format!("starting {whole:?}"))?;
    ensure!(status.success(), "{whole:?}: {status}");
    Ok(())
}

/// A line of `apt-cache madison`: name, version and source, with bars between; sources of source packages left out.
fn madison_line(line: &str) -> Option<Package> {
    let mut fields = line.split('|').map(str::trim);
    let (name, version, source) = (fields.next()?, fields.next()?, fields.next()?);
    source.ends_with("Packages").then(|| Package { name: name.into(), version: version.into() })
}

/// Debian's order of versions, as dpkg knows it.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let is = |relation| {
        let status = Command::new("dpkg").args(["--compare-versions", a, relation, b]).status();
        status.is_ok_and(|status| status.success())
    };
    if is("lt") {
        Ordering::Less
    } else if is("gt") {
        Ordering::Greater
    } else {
        Ordering::Equal
    }
}

/// The Debian mirror that the machine's own apt uses.
fn mirror() -> Result<String> {
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    let targets = output(Command::new("apt-get").args(["indextargets", "--format", format]))?;
    let by_name = targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|"));
    // Before the first `apt-get update` apt does not know what its sources call themselves.
    let by_path = || {
        let uris = targets.lines().filter_map(|line| line.rsplit('|').next());
        uris.map(|uri| uri.trim_end_matches('/')).find(|uri| uri.ends_with("/debian"))
    };
    by_name
        .or_else(by_path)
        .map(|uri| uri.trim_end_matches('/').to_owned())
        .context("apt's own sources name no Debian mirror: the lab needs a Debian machine")
}

/// Makes `dir` exist and be empty.
pub fn recreate(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("emptying {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))
}

/// Runs a command, its output kept for the error message.
pub fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs a command and gives its standard output; a failure carries what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Programs of a root of the host's architecture, with their libraries: the path in a guest, and where it is.
pub fn programs(root: &Path, programs: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for program in programs {
        let mut list = in_root(root, "/")?;
        let list = output(list.args(["/lib64/ld-linux-x86-64.so.2", "--list", program]))?;
        let libraries = list.lines().filter_map(|line| line.split("=> ").nth(1)?.split(" (").next());
        for path in libraries.chain([*program]) {
            let from = fs::canonicalize(root.join(path.trim_start_matches('/')))?;
            // Guests have one place for what an old root keeps in two.
            let two = ["/lib", "/sbin", "/bin"].iter().any(|dir| path.starts_with(dir));
            files.push((if two { format!("/usr{path}") } else { path.to_owned() }, from));
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn madison_lines() {
        let binary = "linux-image-amd64 | 6.1.176-1 | http://mirror/debian bookworm/main amd64 Packages";
        let package = Package { name: "linux-image-amd64".into(), version: "6.1.176-1".into() };
        assert_eq!(madison_line(binary), Some(package));
        assert_eq!(madison_line("linux | 7.2.13-1 | http://mirror/debian sid/main Sources"), None);
        assert_eq!(madison_line(""), None);
    }

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        assert_eq!(compare_versions("6.12.95-1~bpo12+1", "6.12.95-1"), Ordering::Less);
        assert_eq!(compare_versions("6.12.107-1", "6.12.95-1"), Ordering::Greater);
        assert_eq!(compare_versions("1:2.0.32-3", "1:2.0.32-3"), Ordering::Equal);
    }
}
