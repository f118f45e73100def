//! What can go wrong while looking at the machine.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A fact of the machine that could not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostError {
    /// A file that should be there could not be read.
    #[error("cannot read {}: {source}{}", path.display(), advice(source, hint))]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
        /// What it means if the file does not exist, or empty.
        hint: &'static str,
    },
    /// The kernel shows zeros in place of addresses to readers without privilege.
    #[error("{} shows {shown} in place of addresses: run as root, with CAP_SYS_ADMIN", path.display())]
    NeedRoot {
        /// The file.
        path: PathBuf,
        /// What stands there.
        shown: &'static str,
    },
    /// A file's contents are not of the form known.
    #[error("{}{}: found {found:?}, wanted {wanted}", path.display(), Line(*line))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, from 1, where the file has lines.
        line: Option<usize>,
        /// What stands there (cut short where long).
        found: String,
        /// What should stand there.
        wanted: &'static str,
    },
    /// Physical memory that the kernel does not give out.
    #[error("{} does not hold all of the {len:#x} bytes of physical memory at {start:#x}", path.display())]
    NotInKcore {
        /// The file.
        path: PathBuf,
        /// First physical address asked for.
        start: u64,
        /// Number of bytes asked for.
        len: u64,
    },
}

fn advice(source: &io::Error, hint: &&'static str) -> String {
    match source.kind() {
        io::ErrorKind::NotFound if !hint.is_empty() => format!(" ({hint})"),
        io::ErrorKind::PermissionDenied => {
            " (run as root; a kernel in lockdown refuses even that)".to_owned()
        }
        _ => String::new(),
    }
}

struct Line(Option<usize>);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, ", line {line}"))
    }
}

/// What a pure parser found wrong; the reader adds the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) line: Option<usize>,
    pub(crate) found: String,
    pub(crate) wanted: &'static str,
}

/// Longest piece of a file that an error quotes, in characters.
const QUOTE: usize = 80;

impl Fault {
    pub(crate) fn new(found: &str, wanted: &'static str) -> Self {
        Self { line: None, found: found.chars().take(QUOTE).collect(), wanted }
    }

    pub(crate) fn at_line(self, line: usize) -> Self {
        Self { line: Some(line), ..self }
    }

    pub(crate) fn in_file(self, path: &Path) -> HostError {
        HostError::Malformed {
            path: path.to_owned(),
            line: self.line,
            found: self.found,
            wanted: self.wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_where_what_and_what_to_do() {
        let read = |kind: io::ErrorKind, hint| HostError::Read {
            path: "/proc/kcore".into(),
            source: kind.into(),
            hint,
        };
        let long = "x".repeat(200);
        let cases = [
            (
                read(io::ErrorKind::NotFound, "this kernel has none"),
                "cannot read /proc/kcore: entity not found (this kernel has none)".to_owned(),
            ),
            (
                read(io::ErrorKind::PermissionDenied, "this kernel has none"),
                "cannot read /proc/kcore: permission denied (run as root; a kernel in lockdown refuses even that)"
                    .to_owned(),
            ),
            (read(io::ErrorKind::TimedOut, "unused"), "cannot read /proc/kcore: timed out".to_owned()),
            (
                Fault::new(&long, "0 or 1").at_line(7).in_file(Path::new("/f")),
                format!("/f, line 7: found {:?}, wanted 0 or 1", &long[..80]),
            ),
            (Fault::new("2", "0 or 1").in_file(Path::new("/f")), "/f: found \"2\", wanted 0 or 1".to_owned()),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
        }
    }
}
