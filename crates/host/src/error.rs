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
    #[error("{} shows {shown} in place of addresses: run as root", path.display())]
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
    #[error("{} does not hold physical memory at {start:#x}, {len:#x} bytes", path.display())]
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
