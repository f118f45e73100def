//! Where a dump goes.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::flattened::{END_MARK, file_header, record_header};

/// What a dump is written to: bytes at offsets, in any order, from any thread. What was never written reads as zeros.
pub trait Sink: Sync {
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The system's error; part of `bytes` may be written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes sure that `len` bytes from `offset`, which nothing was written to, can be written later even on a full disk.
    ///
    /// # Errors
    /// The system's error.
    fn reserve(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes sure that all that was written so far outlasts a loss of power, as far as that can be made sure of here.
    ///
    /// # Errors
    /// The system's error: some of what was written may be lost.
    fn sync(&self) -> io::Result<()>;

    /// Makes the dump end at `len`, which nothing was written beyond, and completes it.
    ///
    /// # Errors
    /// The system's error.
    fn finish(&self, len: u64) -> io::Result<()>;
}

/// Zeros are written in pieces of this many bytes where the file system cannot reserve.
const PIECE: usize = 1 << 18;

/// An empty file.
impl Sink for File {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(self, FallocateFlags::empty(), offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            other => return other.map_err(io::Error::from),
        }
        let zeros = vec![0; PIECE];
        let mut at = 0;
        while at < len {
            let now = (len - at).min(PIECE as u64);
            self.write_all_at(&zeros[..now as usize], offset + at)?;
            at += now;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        match rustix::fs::fdatasync(self) {
            // A pipe or a device that keeps nothing. Not EROFS: by that a filesystem says that it gave up after an error.
            Err(Errno::INVAL | Errno::NOTSUP) => Ok(()),
            other => other.map_err(io::Error::from),
        }
    }

    fn finish(&self, len: u64) -> io::Result<()> {
        // Grows only: a reservation may reach further than the last byte written.
        if self.metadata()?.len() < len { self.set_len(len) } else { Ok(()) }
    }
}

/// A pipe or another stream, in makedumpfile's flattened format: each write is a record that says where it belongs.
/// `makedumpfile -R` makes a file of it, `hotdump` and others read it as it is.
#[derive(Debug)]
pub struct Flattened<W> {
    out: Mutex<W>,
}

impl<W: Write> Flattened<W> {
    /// Starts the stream.
    ///
    /// # Errors
    /// The system's error.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&file_header())?;
        Ok(Self { out: Mutex::new(out) })
    }
}

impl<W: Write + Send> Sink for Flattened<W> {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // A record of no bytes would be read as damage.
        if bytes.is_empty() {
            return Ok(());
        }
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(&record_header(offset, bytes.len() as u64))?;
        out.write_all(bytes)
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }

    fn finish(&self, _len: u64) -> io::Result<()> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(&END_MARK)?;
        out.flush()
    }
}
