//! Mapped windows of a file, the one place with `unsafe` in this crate.
//!
//! `/proc/vmcore` remaps all of a window at mmap time, so a hole in it shows as a failed mmap. What shows later is a page
//! that the memory controller cannot read any more: the kernel then sends SIGBUS with the page's address. Left alone that
//! kills the process, and where the process is init, the capture kernel. Here the handler puts a page of zeros in its place
//! and notes it down; the read goes on. (Reading such a page by read(2) would stop the capture kernel itself: its copy of
//! old memory does not recover from machine checks. So windows come first and read(2) is only what is fallen back on.)
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use rustix::mm::{MapFlags, ProtFlags};

use crate::PAGE;

/// The most that one window maps: larger ones were measured slower on /proc/vmcore, as were smaller than 1 MiB.
pub(crate) const MAX_WINDOW: usize = 4 << 20;

const WORDS: usize = MAX_WINDOW / PAGE / 64;

/// The window that the handler looks after: its first byte and its length; 0 and 0 while there is none.
static START: AtomicUsize = AtomicUsize::new(0);
static LEN: AtomicUsize = AtomicUsize::new(0);
/// A bit for each page of the window that raised SIGBUS.
static BAD: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
/// Held by the window that exists, since the statics above describe just one.
static ONLY_ONE: Mutex<()> = Mutex::new(());
static HANDLER: Once = Once::new();
/// The running kernel's page size, in bytes: a page that cannot be read is a page of that size. 64 KiB on some machines.
static SYSTEM_PAGE: AtomicUsize = AtomicUsize::new(PAGE);

/// A part of a file mapped for reading. Only one exists at a time; a second [`Window::map`] waits.
#[derive(Debug)]
pub struct Window {
    start: *mut c_void,
    len: usize,
    _only_one: MutexGuard<'static, ()>,
}

impl Window {
    /// Maps `len` bytes (at most 4 MiB) from `offset`, a multiple of the page size.
    pub(crate) fn map(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        if len == 0 || len > MAX_WINDOW {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        HANDLER.call_once(install_handler);
        let only_one = ONLY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that Rust knows of.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, offset)?
        };
        for word in &BAD {
            word.store(0, Ordering::Relaxed);
        }
        START.store(start as usize, Ordering::Relaxed);
        LEN.store(len, Ordering::Release);
        Ok(Self { start, len, _only_one: only_one })
    }

    /// The window's bytes. A page that turns out bad while it is read becomes zeros.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `len` bytes long, readable, and lives until drop. The memory behind /proc/vmcore belongs to
        // a kernel that has stopped: nothing writes to it. A page swapped for zeros by the handler changes its bytes once;
        // readers of this module compare and copy bytes and draw no conclusion from reading one twice.
        unsafe { std::slice::from_raw_parts(self.start.cast::<u8>(), self.len) }
    }

    /// Whether the window's page number `page` could not be read. To be asked after its bytes were read.
    #[must_use]
    pub fn is_bad(&self, page: usize) -> bool {
        BAD.get(page / 64).is_some_and(|word| word.load(Ordering::Acquire) & (1 << (page % 64)) != 0)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        LEN.store(0, Ordering::Release);
        START.store(0, Ordering::Relaxed);
        // SAFETY: start and len are those of the mapping made in `map`; `bytes` borrows self, so no slice outlives this.
        let unmapped = unsafe { rustix::mm::munmap(self.start, self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of a window: {unmapped:?}");
    }
}

/// Takes SIGBUS over for the whole process, once.
fn install_handler() {
    SYSTEM_PAGE.store(rustix::param::page_size(), Ordering::Relaxed);
    // SAFETY: all zeros is a valid sigaction: no flags, empty mask, default handler; the fields that matter are set below.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) = on_bus_error;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is whole, and on_bus_error calls only what a signal handler may.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
}

/// Async-signal-safe: atomics and two system calls.
extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo, and si_addr is set for SIGBUS.
    let address = unsafe { (*info).si_addr() } as usize;
    if !patch(address) {
        // Not ours: with the default action back in place the same access ends the process, as it would have.
        // SAFETY: sets a signal's default action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Puts zeros in place of the system's page at `address` if it lies in the window, and notes down all of [`PAGE`] bytes in it.
fn patch(address: usize) -> bool {
    let len = LEN.load(Ordering::Acquire);
    let start = START.load(Ordering::Relaxed);
    let unit = SYSTEM_PAGE.load(Ordering::Relaxed);
    let Some(into) = address.checked_sub(start).filter(|into| *into < len) else { return false };
    let into = into - into % unit;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED;
    let place = (start + into) as *mut c_void;
    // SAFETY: the page lies inside the mapping that the window owns, and stays readable.
    if unsafe { rustix::mm::mmap_anonymous(place, unit, ProtFlags::READ, flags) }.is_err() {
        return false;
    }
    for page in into / PAGE..(into + unit) / PAGE {
        if let Some(word) = BAD.get(page / 64) {
            word.fetch_or(1 << (page % 64), Ordering::Release);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file cut short under its mapping raises SIGBUS just as a bad page does.
    #[test]
    fn a_page_that_raises_sigbus_reads_as_zeros_and_is_named() {
        let unit = rustix::param::page_size();
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; 3 * unit], 0).unwrap();
        let window = Window::map(&file, 0, 3 * unit).unwrap();
        file.set_len(unit as u64).unwrap();

        let sums: Vec<u32> =
            window.bytes().chunks(unit).map(|page| page.iter().map(|byte| u32::from(*byte)).sum()).collect();

        assert_eq!(sums, [7 * unit as u32, 0, 0]);
        let bad: Vec<usize> = (0..4 * unit / PAGE).filter(|page| window.is_bad(*page)).collect();
        assert_eq!(bad, (unit / PAGE..3 * unit / PAGE).collect::<Vec<_>>());
        drop(window);
        let whole = Window::map(&file, 0, unit).unwrap();
        assert!(whole.bytes().iter().all(|byte| *byte == 7));
        assert!(!whole.is_bad(unit / PAGE), "a new window starts without bad pages");
    }

    #[test]
    fn windows_of_no_or_too_much_length_are_refused() {
        let file = tempfile::tempfile().unwrap();
        for len in [0, MAX_WINDOW + 1] {
            assert_eq!(Window::map(&file, 0, len).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
