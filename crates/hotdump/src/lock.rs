//! One load or unload at a time.
//!
//! The kernel answers a second load that runs at the same moment with EBUSY; and of two that follow each other closely
//! the record must be that of the later one.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::record::{RecordError, make_dir};

/// How long a load waits for another: some loads' time, on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The lock, held until dropped or until the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// The lock could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error(
        "{}: process {holder} is loading or unloading an image and did not end in {waited} s: wait for it or end it",
        path.display()
    )]
    Held { path: PathBuf, holder: String, waited: u64 },
    #[error(transparent)]
    File(#[from] RecordError),
}

impl Lock {
    /// Takes the lock in `dir`, waiting for at most `patience`.
    ///
    /// # Errors
    /// Another process kept it, or the file could not be opened.
    pub(crate) fn take(dir: &Path, patience: Duration) -> Result<Self, LockError> {
        const PAUSE: Duration = Duration::from_millis(50);
        let path = dir.join("lock");
        let fault = |doing| RecordError::new(&path, doing);
        make_dir(dir).map_err(fault("making the lock's directory (root is needed)"))?;
        let mut options = File::options();
        let open = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = open.map_err(fault("opening the lock (root is needed)"))?;
        let begun = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < patience => std::thread::sleep(PAUSE),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    let holder = holder.trim().to_owned();
                    return Err(LockError::Held { path, holder, waited: patience.as_secs() });
                }
                Err(errno) => return Err(fault("taking the lock")(errno.into()).into()),
            }
        }
        sign(&mut file).map_err(fault("writing this process into the lock"))?;
        Ok(Self { _file: file })
    }
}

/// Says who holds the lock, for the one who waits in vain.
fn sign(file: &mut File) -> io::Result<()> {
    file.rewind()?;
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_waits_and_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path(), Duration::ZERO).unwrap();
        let error = Lock::take(dir.path(), Duration::from_millis(60)).unwrap_err().to_string();
        let holder = format!("process {} is loading", std::process::id());
        assert!(error.contains(&holder), "{error}");
        drop(first);
        Lock::take(dir.path(), Duration::ZERO).unwrap();
    }

    #[test]
    fn the_second_gets_it_when_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path(), Duration::ZERO).unwrap();
        let path = dir.path().to_owned();
        let second = std::thread::spawn(move || Lock::take(&path, Duration::from_secs(10)).map(|_| ()));
        std::thread::sleep(Duration::from_millis(80));
        drop(first);
        second.join().unwrap().unwrap();
    }
}
