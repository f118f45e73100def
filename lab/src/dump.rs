//! What a capture left on the dump disk.

use std::error::Error;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ext4_view::{Ext4, Ext4Read, FileType};

/// Files of one dump, copied out of the disk image.
#[derive(Clone, Debug)]
pub struct Dump {
    /// Where the copies are.
    pub dir: PathBuf,
    /// Where they were on the disk.
    pub origin: String,
    /// Their names.
    pub names: Vec<String>,
}

/// A file from an offset on.
struct Part {
    file: File,
    offset: u64,
}

impl Ext4Read for Part {
    fn read(&mut self, start: u64, bytes: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        Ok(self.file.read_exact_at(bytes, self.offset + start)?)
    }
}

impl Dump {
    /// Copies the one dump on `disk` to `target`. An error if there is none, or more than one.
    pub fn take(disk: &Path, target: &Path) -> Result<Dump> {
        Dump::take_at(disk, 0, target)
    }

    /// The same for a file system that begins at `offset` of the disk.
    pub fn take_at(disk: &Path, offset: u64, target: &Path) -> Result<Dump> {
        let file = File::open(disk).with_context(|| format!("opening {}", disk.display()))?;
        let fs = Ext4::load(Box::new(Part { file, offset }))
            .with_context(|| format!("reading the file system on {}", disk.display()))?;
        let mut homes = Vec::new();
        find_dumps(&fs, "", &mut homes)?;
        ensure!(!homes.is_empty(), "no dump on the dump disk: the capture kernel saved nothing");
        ensure!(homes.len() == 1, "more than one dump on the dump disk: {homes:?}");
        let origin = homes.remove(0);
        let mut names = Vec::new();
        for entry in fs.read_dir(origin.as_str())? {
            let entry = entry?;
            let name = entry.file_name().as_str()?.to_owned();
            if entry.file_type()? == FileType::Regular {
                names.push(name);
            }
        }
        names.sort();
        drop(fs);
        copy_out(disk, offset, &origin, target)?;
        Ok(Dump { dir: target.into(), origin, names })
    }

    /// Finds the one dump below a directory of this machine. An error if there is none, or more than one.
    pub fn find(directory: &Path) -> Result<Dump> {
        let mut found = Vec::new();
        let mut to_do = vec![directory.to_owned()];
        while let Some(dir) = to_do.pop() {
            let mut names = Vec::new();
            for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
                let entry = entry?;
                match entry.file_type()? {
                    kind if kind.is_dir() => to_do.push(entry.path()),
                    _ => names.push(entry.file_name().to_string_lossy().into_owned()),
                }
            }
            names.sort();
            if names.iter().any(|name| name.starts_with("vmcore")) {
                found.push(Dump { origin: dir.display().to_string(), dir, names });
            }
        }
        ensure!(found.len() <= 1, "more than one dump below {}: {found:?}", directory.display());
        found.pop().with_context(|| format!("no dump below {}", directory.display()))
    }

    /// The complete memory image; an error if the capture did not finish it.
    pub fn vmcore(&self) -> Result<PathBuf> {
        ensure!(self.has("vmcore"), "{} holds {:?} but no finished vmcore", self.origin, self.names);
        Ok(self.dir.join("vmcore"))
    }

    /// Whether there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.names.iter().any(|have| have == name)
    }

    /// A text file of the dump.
    pub fn text(&self, name: &str) -> Result<String> {
        ensure!(self.has(name), "{} holds {:?} but no {name}", self.origin, self.names);
        Ok(String::from_utf8_lossy(&fs::read(self.dir.join(name))?).into_owned())
    }
}

/// By what a directory is told to be a dump's.
const DUMP_FILES: [&str; 3] = ["vmcore", "vmcore.incomplete", "vmcore-dmesg.txt"];

fn find_dumps(fs: &Ext4, dir: &str, homes: &mut Vec<String>) -> Result<()> {
    let mut holds_dump = false;
    for entry in fs.read_dir(if dir.is_empty() { "/" } else { dir })? {
        let entry = entry?;
        let name = entry.file_name().as_str()?.to_owned();
        match entry.file_type()? {
            FileType::Directory if name != "." && name != ".." && name != "lost+found" => {
                find_dumps(fs, &format!("{dir}/{name}"), homes)?;
            }
            FileType::Regular if DUMP_FILES.contains(&name.as_str()) => holds_dump = true,
            _ => {}
        }
    }
    if holds_dump {
        homes.push(dir.to_owned());
    }
    Ok(())
}

/// Copies the directory `from` out of a file system that begins at `offset` of the disk; what `to` was before is gone. By
/// e2fsprogs, because ext4-view 1.0 takes extents that nothing was written to (dumps cut short have them, for their descriptors) for
/// data, and too long ones.
fn copy_out(disk: &Path, offset: u64, from: &str, to: &Path) -> Result<()> {
    let device = format!("{}?offset={offset}", disk.display());
    let debugfs = |options: &[&str]| -> Result<String> {
        let mut command = Command::new("debugfs");
        let out = command.args(options).arg(&device).env("PATH", crate::cache::sbin_path()).output();
        let out = out.context("starting debugfs")?;
        // Its first line says its version, whatever happens; it fails with 0, too.
        let told = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "debugfs {options:?}: {told}");
        Ok(told.lines().filter(|line| !line.starts_with("debugfs ")).collect())
    };
    // What the journal has is not yet in its place where a machine was switched off. Says no more than that there is none of it.
    debugfs(&["-w", "-R", "journal_run"])?;
    let staged = to.with_extension("copying");
    crate::debian::recreate(&staged)?;
    let told = debugfs(&["-R", &format!("rdump \"{from}\" \"{}\"", staged.display())])?;
    ensure!(told.is_empty(), "copying {from} out of {}: {told}", disk.display());
    // It bears the directory's own name there.
    let name = Path::new(from).file_name().with_context(|| format!("{from:?} is no directory of dumps"))?;
    crate::debian::recreate(to)?;
    fs::remove_dir(to)?;
    fs::rename(staged.join(name), to)?;
    Ok(fs::remove_dir(staged)?)
}
