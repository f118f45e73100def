//! `hotdump udev`: has a distribution's kdump rules skip events that kernel or module take care of.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::exit;
use crate::text::print;

const ABOUT: &str = "\
Distributions' kdump services load the crash kernel again at each event of memory or CPUs, by udev rules: Debian's \
50-kdump-tools.rules, Fedora's and RHEL's 98-kexec.rules, SUSE's 70-kdump.rules. An override is a file by the same name in \
/etc/udev/rules.d, which udev reads in place of the distribution's: lines that skip what the kernel (Linux 6.6 and later) or hotdump.ko \
takes care of, and behind them the distribution's own rules as they are now.

Without an option it prints the override of each such file that is there, and says whether one is installed and still has the rules \
of the distribution. --install writes them; run it again after an update of the distribution's package. --remove takes them \
away. A file that hotdump did not write is neither replaced nor removed.";

/// Options of `hotdump udev`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = ABOUT)]
pub(crate) struct Args {
    /// Write the overrides
    #[arg(long, conflicts_with = "remove")]
    install: bool,
    /// Remove the overrides
    #[arg(long)]
    remove: bool,
    /// Work on the system below this directory
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    root: PathBuf,
}

/// The rules of distributions' kdump services.
const RULES: [&str; 3] = ["50-kdump-tools.rules", "98-kexec.rules", "70-kdump.rules"];

/// Where distributions' rules lie; the second is the first's older place, often a link to it.
const THEIRS: [&str; 2] = ["usr/lib/udev/rules.d", "lib/udev/rules.d"];
const OURS: &str = "etc/udev/rules.d";

/// How a file of ours begins.
const MARK: &str = "# Written by `hotdump udev --install`.";

/// In front of the distribution's rules. The same tests as in dist/98-hotdump.rules.
const SKIP: &str = r#"
# `hotdump udev --remove` takes this file away. Below the line are the distribution's rules as they were then.

# Kept current by the kernel, or by hotdump.ko, which has the same file on kernels without a handler of their own.
SUBSYSTEM=="cpu", ATTRS{crash_hotplug}=="1", GOTO="hotdump_skip"
SUBSYSTEM=="memory", ATTRS{crash_hotplug}=="1", GOTO="hotdump_skip"
# By hotdump.ko in place of the kernel's own handler.
SUBSYSTEM=="memory", ATTR{[misc/hotdump]follows_memory}=="1", GOTO="hotdump_skip"
SUBSYSTEM=="cpu", ATTR{[misc/hotdump]follows_cpus}=="1", GOTO="hotdump_skip"

# ----------------------------------------------------------------
"#;

const END: &str = "\nLABEL=\"hotdump_skip\"\n";

/// An override, and what there is of it.
#[derive(Debug)]
struct Override {
    theirs: PathBuf,
    ours: PathBuf,
    text: String,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    NotInstalled,
    Installed,
    /// With rules that the distribution has no more.
    Outdated,
    /// There is a file that hotdump did not write.
    Foreign,
}

impl State {
    fn words(self) -> &'static str {
        match self {
            Self::NotInstalled => "not installed: `hotdump udev --install` writes it",
            Self::Installed => "installed",
            Self::Outdated => "installed, and out of date: `hotdump udev --install` writes it anew",
            Self::Foreign => "there is a file that hotdump did not write, which stays",
        }
    }
}

/// Prints, installs or removes overrides.
///
/// # Errors
/// A file that is not ours is in the way, or the file system failed.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    if args.remove {
        return remove(&args.root);
    }
    let found = overrides(&args.root)?;
    if found.is_empty() {
        print(format_args!(
            "no distribution's kdump rules are there ({}): nothing to override\n",
            RULES.join(", ")
        ))?;
    }
    if args.install {
        // All or none.
        for one in &found {
            ensure!(
                one.state != State::Foreign,
                "{} is not hotdump's: move it away, or put the lines that `hotdump udev` prints at its top",
                one.ours.display()
            );
        }
    }
    for one in &found {
        if args.install {
            one.install()?;
            print(format_args!("{}: written in place of {}\n", one.ours.display(), one.theirs.display()))?;
        } else {
            let (ours, state) = (one.ours.display(), one.state.words());
            print(format_args!("# {ours}, in place of {}: {state}\n{}", one.theirs.display(), one.text))?;
        }
    }
    Ok(exit::OK)
}

/// The override of each of the distributions' files that is there.
fn overrides(root: &Path) -> anyhow::Result<Vec<Override>> {
    let mut found = Vec::new();
    for name in RULES {
        let Some((theirs, rules)) = first_there(THEIRS.map(|dir| root.join(dir).join(name)))? else {
            continue;
        };
        let ours = root.join(OURS).join(name);
        let text = text(&rules);
        let state = match read(&ours)? {
            None => State::NotInstalled,
            Some(there) if there == text => State::Installed,
            Some(there) if there.starts_with(MARK) => State::Outdated,
            Some(_) => State::Foreign,
        };
        found.push(Override { theirs, ours, text, state });
    }
    Ok(found)
}

/// The override of a file with these `rules`.
fn text(rules: &str) -> String {
    let mut text = format!("{MARK}{SKIP}");
    // A last line without its end would run into ours.
    let _ = writeln!(text, "{}", rules.trim_end_matches('\n'));
    text + END
}

fn first_there(paths: [PathBuf; 2]) -> anyhow::Result<Option<(PathBuf, String)>> {
    for path in paths {
        if let Some(text) = read(&path)? {
            return Ok(Some((path, text)));
        }
    }
    Ok(None)
}

/// A file's text; none where there is no file.
fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

impl Override {
    /// Writes the file whole or not at all.
    fn install(&self) -> anyhow::Result<()> {
        // udev reads files that end in .rules only.
        let new = self.ours.with_extension("rules.hotdump-new");
        let write = || {
            self.ours.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            let mut file = File::create(&new)?;
            file.write_all(self.text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &self.ours)
        };
        write()
            .inspect_err(|_| drop(std::fs::remove_file(&new)))
            .with_context(|| format!("writing {}", self.ours.display()))
    }
}

/// Removes all overrides of ours, whether the distribution's rules are still there or not.
fn remove(root: &Path) -> anyhow::Result<u8> {
    let mut left = Vec::new();
    for path in RULES.map(|name| root.join(OURS).join(name)) {
        match read(&path)? {
            Some(text) if text.starts_with(MARK) => {
                std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
                print(format_args!("{}: removed\n", path.display()))?;
            }
            Some(_) => left.push(path.display().to_string()),
            None => {}
        }
    }
    ensure!(left.is_empty(), "{} is not hotdump's and stays", left.join(", "));
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIANS: &str =
        "SUBSYSTEM==\"memory\", ACTION==\"online\", PROGRAM=\"/usr/sbin/kdump-config try-reload\"";

    fn debian() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(THEIRS[1]);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(RULES[0]), DEBIANS).unwrap();
        let ours = root.path().join(OURS).join(RULES[0]);
        (root, ours)
    }

    fn call(root: &Path, install: bool, remove: bool) -> anyhow::Result<u8> {
        run(&Args { install, remove, root: root.to_owned() })
    }

    fn state(root: &Path) -> State {
        overrides(root).unwrap()[0].state
    }

    #[test]
    fn installed_brought_up_to_date_and_removed() {
        let (root, ours) = debian();
        let root = root.path();
        assert_eq!(state(root), State::NotInstalled);
        call(root, false, false).unwrap();
        assert!(!ours.exists(), "printing writes nothing");
        call(root, true, false).unwrap();
        assert_eq!(state(root), State::Installed);
        let text = std::fs::read_to_string(&ours).unwrap();
        let (skip, rest) = text.split_once(DEBIANS).unwrap();
        assert_eq!(skip.matches("GOTO=\"hotdump_skip\"").count(), 4);
        assert_eq!(rest.trim(), "LABEL=\"hotdump_skip\"");
        let names: Vec<_> =
            std::fs::read_dir(ours.parent().unwrap()).unwrap().map(|one| one.unwrap().file_name()).collect();
        assert_eq!(names, [RULES[0]]);
        std::fs::write(root.join(THEIRS[1]).join(RULES[0]), "# other\n").unwrap();
        assert_eq!(state(root), State::Outdated);
        call(root, true, false).unwrap();
        assert_eq!(state(root), State::Installed);
        // The distribution's package may be gone by then.
        std::fs::remove_dir_all(root.join(THEIRS[1])).unwrap();
        call(root, false, true).unwrap();
        assert!(!ours.exists());
        call(root, false, true).unwrap();
        call(root, true, false).unwrap();
        assert!(!ours.exists(), "nothing to override");
    }

    #[test]
    fn what_is_not_ours_stays() {
        let (root, ours) = debian();
        std::fs::create_dir_all(ours.parent().unwrap()).unwrap();
        std::fs::write(&ours, "# mine\n").unwrap();
        assert_eq!(state(root.path()), State::Foreign);
        for (install, remove) in [(true, false), (false, true)] {
            let error = call(root.path(), install, remove).unwrap_err().to_string();
            assert!(error.contains("50-kdump-tools.rules is not hotdump's"), "{error}");
            assert_eq!(std::fs::read_to_string(&ours).unwrap(), "# mine\n");
        }
    }

    #[test]
    fn what_is_skipped_is_what_our_own_rules_skip() {
        let rules = include_str!("../../../dist/98-hotdump.rules");
        for test in [
            "ATTRS{crash_hotplug}==\"1\"",
            "ATTR{[misc/hotdump]follows_memory}==\"1\"",
            "ATTR{[misc/hotdump]follows_cpus}==\"1\"",
        ] {
            assert!(rules.contains(test) && SKIP.contains(test), "{test}");
        }
    }
}
