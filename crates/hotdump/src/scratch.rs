//! A directory for this program alone, for as long as it takes.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// The directory; removed with all in it when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes the directory, anew if one that was killed left it behind.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn make(dir: &Path) -> io::Result<Self> {
        let _ = fs::remove_dir_all(dir);
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Ok(Self(dir.to_owned()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_private_empty_and_gone_afterwards() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        fs::create_dir_all(dir.join("left")).unwrap();
        let scratch = Scratch::make(&dir).unwrap();
        assert_eq!(scratch.path(), dir);
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::write(dir.join("key"), "secret").unwrap();
        drop(scratch);
        assert!(!dir.exists());
    }
}
