//! Writes to a target as a dump would be written, and takes it away again.

use std::fs;
use std::io::{self, Read as _, Write as _};

use crate::capture::{Place, drop_cache};

/// The file that is written.
const NAME: &str = "target-check";
/// Its length: more than a block of any filesystem, and of any layer below.
const LENGTH: usize = 1 << 20;

/// Writes a file in `place`, here or on a server, reads it back where that is here, and removes it with its directory.
///
/// # Errors
/// The system's error, what the server says, or that the disk gave back something else.
pub(super) fn write(place: Place) -> io::Result<()> {
    let written = write_file(&place);
    let removed = place.discard(&[NAME]);
    written.and(removed)
}

fn write_file(place: &Place) -> io::Result<()> {
    let bytes: Vec<u8> = (0..LENGTH / 4).flat_map(|number| (number as u32).to_le_bytes()).collect();
    let mut file = place.create_file(NAME)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    place.publish(NAME)?;
    drop_cache(&file);
    let mut back = Vec::new();
    fs::File::open(place.path(NAME))?.read_to_end(&mut back)?;
    if back != bytes {
        return Err(io::Error::other("the disk gave back something else than was written"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn nothing_is_left_of_a_probe() {
        let root = tempfile::tempdir().unwrap();
        let time = "2026-11-22T15:32:10Z".parse().unwrap();
        let place = Place::create(root.path(), Path::new("/crash"), time).unwrap();
        let dir = place.dir().to_owned();
        assert!(dir.is_dir());
        write(place).unwrap();
        assert!(!dir.exists());
        assert_eq!(fs::read_dir(root.path().join("crash")).unwrap().count(), 0);
    }

    #[test]
    fn a_place_that_takes_nothing_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let time = "2026-11-22T15:32:10Z".parse().unwrap();
        let place = Place::create(root.path(), Path::new(""), time).unwrap();
        fs::create_dir(place.path(NAME)).unwrap();
        write(place).unwrap_err();
    }
}
