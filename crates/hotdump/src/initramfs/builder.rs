//! Has the distribution's own tools put the initramfs together: for targets that only they can bring up, such as encrypted ones.
//!
//! They find hooks of ours (dist/initramfs-tools, dist/dracut), which do nothing unless [`DIRECTORY`] names a directory with what the
//! capture needs.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::destination::Destination;
use super::program;
use crate::capture::{CONFIG_PATH, Config};
use crate::scratch::Scratch;

/// The environment variable that the hooks look at.
const DIRECTORY: &str = "HOTDUMP_CAPTURE_DIR";
/// Where that directory is, in memory: a key may be in it.
const PLACE: &str = "/run/hotdump/builder";
/// initramfs-tools' configuration, which is taken over but for what is said of modules.
const INITRAMFS_TOOLS: &str = "/etc/initramfs-tools";

/// Who puts the initramfs together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Builder {
    /// hotdump: small, with itself as init
    #[default]
    Own,
    /// Debian's mkinitramfs, which brings up what the system boots from, encrypted or not
    InitramfsTools,
    /// dracut, likewise
    Dracut,
}

/// What goes in besides the distribution's own.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) config: &'a Config,
    pub(super) destination: &'a Destination,
    /// Modules that were asked for.
    pub(super) modules: &'a [String],
}

/// Builds the initramfs for the kernel `release` by the distribution's tools, and returns its bytes.
///
/// # Errors
/// The tool is not there or fails; the hooks are not installed, so that the capture is not in what it made.
pub(super) fn build(builder: Builder, parts: &Parts<'_>, release: &str) -> anyhow::Result<Vec<u8>> {
    let place = Scratch::make(Path::new(PLACE)).with_context(|| format!("cannot make {PLACE}"))?;
    let dir = place.path().join("capture");
    write_parts(&dir, parts)?;
    let output = place.path().join("initrd");
    let mut command = match builder {
        Builder::Dracut => dracut(&output, release),
        _ => mkinitramfs(place.path(), &output, release)?,
    };
    let name = command.get_program().to_string_lossy().into_owned();
    let ran = command.env(DIRECTORY, &dir).output();
    let ran = ran.with_context(|| format!("cannot start {name}: is the package installed?"))?;
    if !ran.status.success() {
        bail!("{name} failed ({}): {}", ran.status, String::from_utf8_lossy(&ran.stderr).trim());
    }
    fs::read(&output).with_context(|| format!("{name} wrote no {}", output.display()))
}

fn dracut(output: &Path, release: &str) -> Command {
    let mut command = Command::new("dracut");
    command.args([
        "--quiet",
        "--force",
        "--hostonly",
        "--no-early-microcode",
        "--add",
        "hotdump",
        "--kver",
        release,
    ]);
    command.arg(output);
    command
}

fn mkinitramfs(place: &Path, output: &Path, release: &str) -> io::Result<Command> {
    let settings = place.join("settings");
    copy_tree(Path::new(INITRAMFS_TOOLS), &settings)?;
    // All drivers of all machines would not fit into the reservation.
    fs::create_dir_all(settings.join("conf.d"))?;
    fs::write(settings.join("conf.d/zz-hotdump"), "MODULES=dep\n")?;
    let mut command = Command::new("mkinitramfs");
    command.arg("-d").arg(settings).arg("-o").arg(output).arg(release);
    Ok(command)
}

/// Copies a directory with all in it.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// Writes what the hooks put in: all goes to the directory of the configuration.
fn write_parts(dir: &Path, parts: &Parts<'_>) -> anyhow::Result<()> {
    let Parts { config, destination, modules } = parts;
    DirBuilder::new().mode(0o700).create(dir)?;
    let write = |name: &str, bytes: &[u8]| {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(dir.join(name))?;
        file.write_all(bytes)
    };
    let name = |path: &str| Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let home = Path::new(CONFIG_PATH).parent().unwrap_or(Path::new("/"));
    write(&name(CONFIG_PATH), config.to_toml()?.as_bytes())?;
    // What lies elsewhere (/etc/passwd) the distribution's initramfs has of its own.
    for (path, _, data) in destination.files.iter().filter(|(path, ..)| Path::new(path).starts_with(home)) {
        write(&name(path), data)?;
    }
    let run = format!(
        "/usr/sbin/hotdump capture --final-action {} --failure-action {}\n",
        config.final_action, config.failure_action
    );
    write("run", run.as_bytes())?;
    let wanted = destination.wanted.iter().map(|module| (*module).to_owned());
    let modules = destination.modules.iter().chain(modules.iter()).cloned().chain(wanted);
    write("modules", modules.map(|module| module + "\n").collect::<String>().as_bytes())?;
    let mut programs = String::new();
    for name in &destination.programs {
        let path = program::find_command(name)
            .with_context(|| format!("the target needs the program {name}, which is not installed"))?;
        programs += &format!("{}\n", path.display());
    }
    write("programs", programs.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::capture::ssh;

    #[test]
    fn the_hooks_find_all_that_the_capture_needs_and_nobody_else_does() {
        let root = tempfile::tempdir().unwrap();
        let place = Scratch::make(&root.path().join("builder")).unwrap();
        let dir = place.path().join("capture");
        let destination = Destination {
            modules: vec!["ext4".into()],
            wanted: vec!["ipv6"],
            files: vec![(ssh::KEY, 0o600, b"secret".to_vec()), ("/etc/passwd", 0o644, Vec::new())],
            programs: vec!["sh"],
            ..Destination::default()
        };
        let config = Config { path: "/crash".into(), ..Config::default() };
        write_parts(&dir, &Parts { config: &config, destination: &destination, modules: &["nvme".into()] })
            .unwrap();
        let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!(Config::parse(&text("capture.toml")).unwrap(), config);
        assert_eq!(text("sshkey"), "secret");
        assert_eq!(text("modules"), "ext4\nnvme\nipv6\n");
        assert!(text("programs").ends_with("/sh\n"));
        assert_eq!(text("run"), "/usr/sbin/hotdump capture --final-action reboot --failure-action reboot\n");
        assert!(!dir.join("passwd").exists());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join("sshkey"))), (0o700, 0o600));
        drop(place);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_tree_is_copied_with_all_in_it() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/conf.d")).unwrap();
        fs::write(root.path().join("a/conf.d/x"), "MODULES=most\n").unwrap();
        copy_tree(&root.path().join("a"), &root.path().join("b")).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("b/conf.d/x")).unwrap(), "MODULES=most\n");
    }
}
