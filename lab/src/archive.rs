//! Initramfs archives (cpio, format newc), entry by entry.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use cpio::NewcBuilder;
use cpio::newc::{ModeFileType, trailer};

/// An archive in the making. Paths are those in the guest, without a slash in front; directories come by themselves.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds a directory and those above it.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let part = path.get(..end).unwrap_or(path);
            if !part.is_empty() && self.directories.insert(part.to_owned()) {
                self.add(part, ModeFileType::Directory, 0o755, &[])?;
            }
        }
        Ok(())
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.parents(path)?;
        self.add(path, ModeFileType::Regular, mode, content)
    }

    /// Adds a copy of the host's file `from`.
    pub fn copy(&mut self, path: &str, mode: u32, from: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        self.file(path, mode, &content)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, to: &str) -> Result<()> {
        self.parents(path)?;
        self.add(path, ModeFileType::Symlink, 0o777, to.as_bytes())
    }

    /// Ends the archive and writes it to `target`.
    pub fn write(self, target: &Path) -> Result<()> {
        let bytes = trailer(self.bytes)?;
        fs::write(target, bytes).with_context(|| format!("writing {}", target.display()))
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        path.rsplit_once('/').map_or(Ok(()), |(parent, _)| self.directory(parent))
    }

    fn add(&mut self, path: &str, kind: ModeFileType, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let length =
            u32::try_from(content.len()).with_context(|| format!("{path} is too large for an archive"))?;
        let builder = NewcBuilder::new(path).ino(self.entries).mode(mode).set_mode_file_type(kind);
        let mut writer = builder.write(std::mem::take(&mut self.bytes), length);
        writer.write_all(content)?;
        self.bytes = writer.finish()?;
        Ok(())
    }
}
