//! A directory of dumps: what lies there, the oldest first, and what may go.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Names in a dump's directory.
pub(crate) const REPORT: &str = "report.json";
pub(crate) const WHOLE: &str = "vmcore";
pub(crate) const INCOMPLETE: &str = "vmcore.incomplete";
pub(crate) const MANIFEST: &str = "manifest.json";

/// One dump.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Entry {
    /// Its directory's name: when the capture started.
    pub(crate) name: String,
    /// Its directory.
    pub(crate) path: PathBuf,
    /// How the capture came out, as its report says: `saved`, `partial`, `in-progress` (it died), `nothing`; `unknown` without one.
    pub(crate) status: String,
    /// The memory's file; none where there is none.
    pub(crate) file: Option<PathBuf>,
    /// Bytes on disk that all of the dump's files take.
    pub(crate) disk_bytes: u64,
    /// The crashed kernel's release.
    pub(crate) kernel_release: Option<String>,
    /// The line of its log that says why it crashed.
    pub(crate) panic: Option<String>,
}

/// What is read of a report; older reports have less.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Told {
    status: Option<String>,
    kernel_release: Option<String>,
    panic: Option<String>,
}

impl Entry {
    fn read(path: PathBuf, name: String) -> Self {
        let report = fs::read(path.join(REPORT)).ok();
        let told: Told = report.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let file = [WHOLE, INCOMPLETE].map(|name| path.join(name)).into_iter().find(|file| file.is_file());
        Self {
            disk_bytes: disk_bytes(&path),
            name,
            path,
            status: told.status.unwrap_or_else(|| "unknown".to_owned()),
            file,
            kernel_release: told.kernel_release,
            panic: told.panic,
        }
    }
}

/// The dumps in `dir`, the oldest first. What is not named as hotdump names dumps is none.
///
/// # Errors
/// `dir` cannot be read.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // A link may lead anywhere: it is no dump.
        if let Some(key) = key(&name)
            && entry.file_type()?.is_dir()
        {
            found.push((key, Entry::read(entry.path(), name)));
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found.into_iter().map(|(_, entry)| entry).collect())
}

/// The names among `names` that are those of dumps, the oldest first.
pub(crate) fn dumps_among(names: Vec<String>) -> Vec<String> {
    let mut dumps: Vec<_> = names.into_iter().filter_map(|name| Some((key(&name)?, name))).collect();
    dumps.sort();
    dumps.into_iter().map(|(_, name)| name).collect()
}

/// Where a dump's name stands among others: its digits, then its number within the second. None for other names.
fn key(name: &str) -> Option<(String, u32)> {
    let (time, rest) = name.split_at_checked(19)?;
    let form = |(at, char): (usize, char)| match at {
        4 | 7 | 10 => char == '-',
        13 | 16 => char == ':' || char == '.',
        _ => char.is_ascii_digit(),
    };
    if !time.chars().enumerate().all(form) {
        return None;
    }
    let number = if rest.is_empty() { 1 } else { rest.strip_prefix('-')?.parse().ok()? };
    Some((time.chars().filter(char::is_ascii_digit).collect(), number))
}

/// Bytes that the files right in `dir` take on disk.
fn disk_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.blocks() * 512).sum()
}

/// Removes a dump: first gives its files another name, so that one half removed is not taken for whole.
///
/// # Errors
/// The system's error.
pub(crate) fn remove(entry: &Entry) -> io::Result<()> {
    let going = entry.path.with_file_name(format!(".{}.removing", entry.name));
    fs::rename(&entry.path, &going)?;
    fs::remove_dir_all(&going)
}

/// What is kept of older dumps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Retention {
    /// So many dumps, the newest.
    pub(crate) keep: Option<u32>,
    /// Bytes on the filesystem that are to be free.
    pub(crate) free: Option<u64>,
}

/// Removes the oldest dumps in `dir` until the rest is as `retention` has it, never the newest. `free_space` tells how many bytes are
/// free. Returns what was removed, and the first error.
pub(crate) fn retain(
    dir: &Path,
    retention: Retention,
    free_space: impl Fn() -> io::Result<u64>,
) -> (Vec<Entry>, Option<io::Error>) {
    let mut removed = Vec::new();
    let entries = match list(dir) {
        Ok(entries) => entries,
        Err(error) => return (removed, Some(error)),
    };
    let mut left = entries.len();
    for entry in entries {
        if left <= 1 {
            break;
        }
        let too_many = retention.keep.is_some_and(|keep| left > keep as usize);
        let too_full = match retention.free.map(|wanted| free_space().map(|free| free < wanted)) {
            Some(Err(error)) => return (removed, Some(error)),
            Some(Ok(too_full)) => too_full,
            None => false,
        };
        if !too_many && !too_full {
            break;
        }
        if let Err(error) = remove(&entry) {
            return (removed, Some(error));
        }
        left -= 1;
        removed.push(entry);
    }
    (removed, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with dumps of these names, of 4 KiB each.
    fn dumps(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join(WHOLE), [1; 4096]).unwrap();
        }
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        list(dir).unwrap().into_iter().map(|entry| entry.name).collect()
    }

    const FOUR: [&str; 4] =
        ["2026-11-22-15:32:10", "2026-11-22-15:32:10-2", "2026-11-22-15:32:10-10", "2026-11-23-00.00.00"];

    #[test]
    fn dumps_are_listed_by_age_and_nothing_else_is() {
        let dir =
            dumps(&[FOUR[2], FOUR[3], FOUR[0], FOUR[1], "202611221532", "2026-11-22-15:32:1x", "lost+found"]);
        std::os::unix::fs::symlink(dir.path().join(FOUR[0]), dir.path().join("2026-11-24-00:00:00")).unwrap();
        fs::write(dir.path().join("2026-11-25-00:00:00"), "a file").unwrap();
        assert_eq!(names(dir.path()), FOUR);
    }

    #[test]
    fn a_report_is_told_and_its_lack_too() {
        let dir = dumps(&FOUR[..2]);
        let report = r#"{"status": "partial", "kernel_release": "6.12", "panic": "BUG", "more": 1}"#;
        fs::write(dir.path().join(FOUR[0]).join(REPORT), report).unwrap();
        fs::write(dir.path().join(FOUR[1]).join(REPORT), "{").unwrap();
        let [first, second] = list(dir.path()).unwrap().try_into().unwrap();
        assert_eq!((first.status.as_str(), first.panic.as_deref()), ("partial", Some("BUG")));
        assert_eq!(second.status, "unknown");
        assert!(first.disk_bytes >= 4096 && first.file.unwrap().ends_with(WHOLE));
    }

    #[test]
    fn the_oldest_go_and_the_newest_never_does() {
        let full = || Ok(0);
        let roomy = || Ok(1 << 40);
        for (keep, free, space, left) in [
            (None, None, &full as &dyn Fn() -> io::Result<u64>, &FOUR[..]),
            (Some(2), None, &full, &FOUR[2..]),
            (Some(0), None, &full, &FOUR[3..]),
            (Some(9), None, &full, &FOUR[..]),
            (None, Some(1 << 30), &full, &FOUR[3..]),
            (None, Some(1 << 30), &roomy, &FOUR[..]),
            (Some(3), Some(1 << 30), &roomy, &FOUR[1..]),
        ] {
            let dir = dumps(&FOUR);
            let (removed, error) = retain(dir.path(), Retention { keep, free }, space);
            assert!(error.is_none(), "{error:?}");
            assert_eq!(names(dir.path()), left, "keep {keep:?}, free {free:?}");
            assert_eq!(removed.len(), 4 - left.len());
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), left.len(), "nothing half removed is left");
        }
    }

    #[test]
    fn room_is_made_only_as_far_as_it_takes() {
        let dir = dumps(&FOUR);
        // Each dump that goes gives 10 bytes.
        let free = || Ok(10 * (4 - list(dir.path())?.len() as u64));
        let (removed, _) = retain(dir.path(), Retention { keep: None, free: Some(15) }, free);
        assert_eq!(removed.len(), 2);
        let error = retain(dir.path(), Retention { keep: None, free: Some(1 << 40) }, || {
            Err(io::ErrorKind::Other.into())
        })
        .1;
        assert!(error.is_some());
        assert_eq!(names(dir.path()).len(), 2, "where it is not known whether room is needed nothing goes");
        assert!(retain(&dir.path().join("none"), Retention::default(), || Ok(0)).1.is_some());
    }
}
