//! Debian packages without installing them: a private apt configuration, its own package lists and downloads.
//!
//! Everything lands below one cache directory outside the source tree. An entry is extracted beside its final
//! place and renamed when whole, so that what has its final name is complete.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The suites that kernels and tools are taken from, oldest first.
pub const SUITES: [&str; 4] = ["bookworm", "bookworm-backports", "trixie", "sid"];

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
    dir: PathBuf,
    suites: Vec<String>,
}

impl Apt {
    /// Opens the configuration in `dir` over `suites`, and writes it if it is not there. Reads no network.
    pub fn open(dir: &Path, suites: &[&str]) -> Result<Apt> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("creating {}/{sub}", dir.display()))?;
        }
        ensure!(Path::new(KEYRING).exists(), "{KEYRING} is missing: install debian-archive-keyring");
        let mirror = mirror()?;
        let sources: String = suites
            .iter()
            .map(|suite| format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n"))
            .collect();
        fs::write(dir.join("sources.list"), sources)?;
        Ok(Apt { dir: dir.into(), suites: suites.iter().map(|&suite| suite.into()).collect() })
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
            "APT::Architectures=amd64".into(),
            "APT::Architecture=amd64".into(),
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

    /// The package with the highest version among those whose name `wanted` accepts and starts with `prefix`.
    pub fn newest(&self, prefix: &str, wanted: impl Fn(&str) -> bool) -> Result<Package> {
        let names = output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        let names: Vec<&str> = names.lines().filter(|name| wanted(name)).collect();
        ensure!(!names.is_empty(), "no package named {prefix}* in {}", self.suites.join(", "));
        self.versions(&names)?
            .into_iter()
            .max_by(|a, b| compare_versions(&a.version, &b.version))
            .with_context(|| format!("no version of {prefix}* in {}", self.suites.join(", ")))
    }

    fn versions(&self, names: &[&str]) -> Result<Vec<Package>> {
        let table = output(self.command("apt-cache").arg("madison").args(names))?;
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
                found.push(self.newest(&name, |candidate| candidate == name)?);
            }
        }
        Ok(found)
    }

    fn library_names(&self, package: &str) -> Result<Vec<String>> {
        let depends = self.depends(package)?;
        let names = depends.iter().filter_map(|one| one.split_whitespace().next());
        Ok(names.filter(|name| name.starts_with("lib") || *name == "zlib1g").map(str::to_owned).collect())
    }

    /// A kernel package and the packages of the same build that it is split into (from 7 on).
    pub fn kernel_parts(&self, image: Package) -> Result<Vec<Package>> {
        let same_build = format!("(= {})", image.version);
        let depends = self.depends(&format!("{}={}", image.name, image.version))?;
        let names = depends.iter().filter_map(|one| one.strip_suffix(same_build.as_str()));
        let parts: Vec<Package> = names
            .map(|name| Package { name: name.trim().to_owned(), version: image.version.clone() })
            .collect();
        Ok([vec![image], parts].concat())
    }

    /// The field "Depends" of `package` ("name/suite" or "name=version"), at its commas.
    fn depends(&self, package: &str) -> Result<Vec<String>> {
        let shown = output(self.command("apt-cache").args(["show", package]))?;
        // The paragraph of the asked version comes first; others may follow.
        let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: ")).unwrap_or_default();
        Ok(depends.split(',').map(|one| one.trim().to_owned()).collect())
    }

    /// Downloads `packages` and extracts them into the new directory `target`.
    pub fn extract(&self, packages: &[Package], target: &Path) -> Result<()> {
        let debs = target.with_extension("debs");
        recreate(&debs)?;
        let names = packages.iter().map(|one| format!("{}={}", one.name, one.version));
        run(self.command("apt-get").args(["-q", "download"]).args(names).current_dir(&debs))?;
        fs::create_dir_all(target)?;
        for entry in fs::read_dir(&debs)? {
            run(Command::new("dpkg-deb").arg("-x").arg(entry?.path()).arg(target))?;
        }
        fs::remove_dir_all(&debs)?;
        Ok(())
    }
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
