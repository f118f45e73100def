//! Calls to a device, with good arguments and with bad ones.
#![expect(unsafe_code, reason = "ioctls and mappings with pages that cannot be touched")]

use std::ffi::c_void;
use std::os::fd::AsFd;
use std::ptr;

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::param::page_size;

/// An argument's place: a page, and behind it one that cannot be touched. The argument ends where the first page
/// ends, so that whoever reads or writes past it is refused.
pub(crate) struct Window {
    pages: *mut c_void,
    at: usize,
    len: usize,
    past: usize,
}

impl Window {
    /// For `bytes`, the last `past` of which lie in the page that cannot be touched.
    pub(crate) fn new(bytes: &[u8], past: usize) -> Result<Window> {
        let len = bytes.len();
        let inside = len.checked_sub(past).filter(|inside| *inside <= page_size() && past <= page_size());
        let at =
            page_size() - inside.with_context(|| format!("{len} bytes with {past} beyond a page's end"))?;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let pages = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                2 * page_size(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        let mut window = Window { pages, at, len, past };
        window.put(bytes);
        // SAFETY: the second page of the mapping, to which there is no reference.
        unsafe { mprotect(window.pages.byte_add(page_size()), page_size(), MprotectFlags::empty()) }?;
        Ok(window)
    }

    /// Replaces the argument; what is longer than it, or lies beyond the page's end, is left out.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        let inside = bytes.len().min(self.len - self.past);
        // SAFETY: `at + inside` is at most a page, which is ours alone and writable: no call is under way.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.pages.byte_add(self.at).cast(), inside) }
    }

    /// The argument as it is now, as far as it can be read.
    pub(crate) fn get(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len - self.past];
        // SAFETY: `at + len - past` is a page, which is ours alone and readable.
        unsafe {
            ptr::copy_nonoverlapping(self.pages.byte_add(self.at).cast(), bytes.as_mut_ptr(), bytes.len());
        }
        bytes
    }

    /// Lets nobody write to it any more.
    pub(crate) fn seal(self) -> Result<Sealed> {
        // SAFETY: the first page of the mapping; `put` is gone with the window.
        unsafe { mprotect(self.pages, page_size(), MprotectFlags::READ) }?;
        Ok(Sealed(self))
    }

    /// Makes an ioctl with this argument.
    pub(crate) fn call(&mut self, device: impl AsFd, number: u32) -> Result<(), Errno> {
        // SAFETY: the kernel reads and writes what the argument points to: the mapping is there for nothing else, and
        // a call that reaches beyond it is refused.
        unsafe { ioctl(device, Call { number, argument: self.pages.byte_add(self.at) }) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone. That it cannot be undone would harm nobody.
        let _ = unsafe { munmap(self.pages, 2 * page_size()) };
    }
}

/// A [`Window`] that can only be read.
pub(crate) struct Sealed(Window);

impl Sealed {
    /// Makes an ioctl with this argument.
    pub(crate) fn call(&mut self, device: impl AsFd, number: u32) -> Result<(), Errno> {
        self.0.call(device, number)
    }
}

/// Makes an ioctl whose argument is an address at which the agent has nothing: of the first page or the kernel's half.
pub(crate) fn call_nowhere(device: impl AsFd, number: u32, address: u64) -> Result<Result<(), Errno>> {
    ensure!(
        address < page_size() as u64 || address >> 63 == 1,
        "the agent may have something at {address:#x}"
    );
    let argument = ptr::without_provenance_mut(usize::try_from(address)?);
    // SAFETY: nothing is mapped at the address, now or later, that a program could use.
    Ok(unsafe { ioctl(device, Call { number, argument }) })
}

struct Call {
    number: u32,
    argument: *mut c_void,
}

// SAFETY: number and argument are what they are; who makes the call answers for them.
unsafe impl Ioctl for Call {
    type Output = ();
    const IS_MUTATING: bool = true;

    #[allow(clippy::useless_conversion, reason = "how wide it is depends on the architecture")]
    fn opcode(&self) -> Opcode {
        self.number.into()
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    /// FIONREAD (asm-generic/ioctls.h, PowerPC's asm/ioctls.h): writes an `int`, for a file how many bytes are left in it.
    const FIONREAD: u32 = if cfg!(target_arch = "powerpc64") { 0x4004_667f } else { 0x541b };

    #[test]
    fn an_argument_ends_where_memory_ends() {
        let file = File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
        let size = u32::try_from(file.metadata().unwrap().len()).unwrap();
        let mut whole = Window::new(&[0xff; 4], 0).unwrap();
        assert_eq!(whole.call(&file, FIONREAD), Ok(()));
        assert_eq!(whole.get(), size.to_ne_bytes());
        assert_eq!(Window::new(&[0; 4], 1).unwrap().call(&file, FIONREAD), Err(Errno::FAULT));
        assert_eq!(Window::new(&[0; 4], 0).unwrap().seal().unwrap().call(&file, FIONREAD), Err(Errno::FAULT));
        assert_eq!(call_nowhere(&file, FIONREAD, 0).unwrap(), Err(Errno::FAULT));
        assert_eq!(call_nowhere(&file, FIONREAD, u64::MAX).unwrap(), Err(Errno::FAULT));
    }

    #[test]
    fn what_has_no_place_is_refused() {
        assert!(Window::new(&[0; 4], 5).is_err());
        assert!(Window::new(&vec![0; page_size() + 1], 0).is_err());
        assert!(call_nowhere(File::open("/dev/null").unwrap(), FIONREAD, 0x40_0000).is_err());
    }
}
