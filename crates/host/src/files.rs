//! Reading the small files that facts lie in.

use crate::error::{Fault, HostError};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// How long a file that is refused because the kernel's kexec lock is taken is tried again: the lock is held for a
/// few milliseconds a hotplug event, and for a whole load.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// What reading a file in sysfs gives whose device was taken out after it was opened (asm-generic/errno-base.h).
const ENODEV: i32 = 19;

/// The directory that stands for `/`.
#[derive(Clone, Debug)]
pub(crate) struct Root(PathBuf);

impl Root {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self(root)
    }

    /// The place below the root of the absolute path `path`.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    pub(crate) fn bytes(&self, path: &str, hint: &'static str) -> Result<Vec<u8>, HostError> {
        let path = self.path(path);
        patiently(|| fs::read(&path)).map_err(|source| HostError::Read { path, source, hint })
    }

    /// The file's text without white space at its ends.
    pub(crate) fn text(&self, path: &str, hint: &'static str) -> Result<String, HostError> {
        let bytes = self.bytes(path, hint)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The file's text; `None` if there is no such file.
    pub(crate) fn optional_text(&self, path: &str) -> Result<Option<String>, HostError> {
        absent_is_none(self.text(path, ""))
    }

    /// The file's text put through `parse`.
    pub(crate) fn parsed<T>(
        &self,
        path: &str,
        hint: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Result<T, HostError> {
        parse(&self.text(path, hint)?).map_err(|fault| fault.in_file(&self.path(path)))
    }

    /// The file's text put through `parse`; `None` if there is no such file.
    pub(crate) fn optional_parsed<T>(
        &self,
        path: &str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Result<Option<T>, HostError> {
        absent_is_none(self.parsed(path, "", parse))
    }

    pub(crate) fn open(&self, path: &str, hint: &'static str) -> Result<(PathBuf, File), HostError> {
        let path = self.path(path);
        match File::open(&path) {
            Ok(file) => Ok((path, file)),
            Err(source) => Err(HostError::Read { path, source, hint }),
        }
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Names in a directory and whether each is a directory itself, in the order of the names.
    pub(crate) fn entries(&self, path: &str) -> Result<Vec<(String, bool)>, HostError> {
        let path = self.path(path);
        let fail = |source| HostError::Read { path: path.clone(), source, hint: "" };
        let mut found = Vec::new();
        for entry in fs::read_dir(&path).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let is_directory = entry.file_type().map_err(fail)?.is_dir();
            let name = entry.file_name().into_string();
            let name =
                name.map_err(|odd| Fault::new(&odd.to_string_lossy(), "a name in UTF-8").in_file(&path))?;
            found.push((name, is_directory));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Names in a directory of numbered entries (`0`, `1`, ... as sysfs numbers tables), in the order of their
    /// numbers; empty if there is no such directory.
    pub(crate) fn numbered(&self, path: &str) -> Result<Vec<u32>, HostError> {
        self.numbered_after(path, "")
    }

    /// As [`Root::numbered`], of entries that have `prefix` before their numbers (`memory0`, `memory1`, ...).
    pub(crate) fn numbered_after(&self, path: &str, prefix: &str) -> Result<Vec<u32>, HostError> {
        let path = self.path(path);
        let fail = |source| HostError::Read { path: path.clone(), source, hint: "" };
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let name = entry.map_err(fail)?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u32>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

pub(crate) fn absent_is_none<T>(read: Result<T, HostError>) -> Result<Option<T>, HostError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(HostError::Read { source, .. })
            if source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(ENODEV) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Does `read` again while it fails for a lock that somebody else holds.
fn patiently<T>(read: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let start = Instant::now();
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && start.elapsed() < BUSY_PATIENCE => {
                thread::sleep(BUSY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// A decimal number.
pub(crate) fn decimal(text: &str) -> Result<u64, Fault> {
    digits(text, 10).ok_or_else(|| Fault::new(text, "a decimal number"))
}

/// A number in hex, with or without `0x`.
pub(crate) fn hex(text: &str) -> Result<u64, Fault> {
    let bare = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    digits(bare, 16).ok_or_else(|| Fault::new(text, "a hexadecimal number of at most 64 bits"))
}

/// A switch: `0` or `1`.
pub(crate) fn switch(text: &str) -> Result<bool, Fault> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(Fault::new(text, "0 or 1")),
    }
}

/// Digits only: `from_str_radix` alone would take a sign.
fn digits(text: &str, radix: u32) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        u64::from_str_radix(text, radix).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn numbers() {
        assert_eq!(decimal("268435456"), Ok(268_435_456));
        assert_eq!([hex("3fa3d800"), hex("0x3F8"), hex("0X10")], [Ok(0x3fa3_d800), Ok(0x3f8), Ok(16)]);
        assert_eq!([switch("0"), switch("1")], [Ok(false), Ok(true)]);
        for wrong in ["", "+1", "-1", " 1", "1 ", "0x", "0x0x1", "10000000000000000", "g"] {
            assert_eq!(hex(wrong), Err(Fault::new(wrong, "a hexadecimal number of at most 64 bits")));
        }
        for wrong in ["", "+1", "-1", "0x1", "1f", "18446744073709551616"] {
            assert_eq!(decimal(wrong), Err(Fault::new(wrong, "a decimal number")));
        }
        assert_eq!(switch("2"), Err(Fault::new("2", "0 or 1")));
    }

    #[test]
    fn a_taken_lock_is_waited_for() {
        let tries = Cell::new(0);
        let read = || {
            tries.set(tries.get() + 1);
            if tries.get() < 3 { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(tries.get()) }
        };
        assert_eq!(patiently(read).unwrap(), 3);
        let never = patiently::<()>(|| Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(never.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
