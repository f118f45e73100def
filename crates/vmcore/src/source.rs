//! Where bytes come from.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::window::Window;

/// Bytes that can be read at any offset.
pub trait ReadAt {
    /// Fills `buf` from `offset` (bytes from the start).
    ///
    /// # Errors
    /// The system's error; `UnexpectedEof` where the source ends before `buf` is full.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// The number of bytes there are.
    ///
    /// # Errors
    /// The system's error.
    fn size(&self) -> io::Result<u64>;

    /// Maps `len` bytes from `offset` for reading, or nothing where that cannot be done.
    fn map(&self, offset: u64, len: usize) -> Option<Window> {
        let _ = (offset, len);
        None
    }
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn map(&self, offset: u64, len: usize) -> Option<Window> {
        Window::map(self, offset, len).ok()
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, buf)
    }

    fn size(&self) -> io::Result<u64> {
        self.as_slice().size()
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }

    fn map(&self, offset: u64, len: usize) -> Option<Window> {
        (**self).map(offset, len)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Box<T> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }

    fn map(&self, offset: u64, len: usize) -> Option<Window> {
        (**self).map(offset, len)
    }
}

/// A virtual address of the crashed kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtAddr(pub u64);

impl VirtAddr {
    /// The address `bytes` further on; none past the end of the address space.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Memory that is read by the crashed kernel's virtual addresses.
pub trait VirtualMemory {
    /// Fills `buf` from `address`.
    ///
    /// # Errors
    /// Why not: not mapped, not in the image, or unreadable.
    fn read_virt(&self, address: VirtAddr, buf: &mut [u8]) -> Result<(), crate::CoreError>;

    /// The 64-bit little-endian number at `address`.
    ///
    /// # Errors
    /// As [`read_virt`](Self::read_virt).
    fn read_u64(&self, address: VirtAddr) -> Result<u64, crate::CoreError> {
        let mut bytes = [0; 8];
        self.read_virt(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The 32-bit little-endian number at `address`.
    ///
    /// # Errors
    /// As [`read_virt`](Self::read_virt).
    fn read_u32(&self, address: VirtAddr) -> Result<u32, crate::CoreError> {
        let mut bytes = [0; 4];
        self.read_virt(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}
