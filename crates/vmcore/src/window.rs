//! Mapped windows of a file, the one place with `unsafe` in this crate.
//!
//! `/proc/vmcore` remaps all of a window at mmap time, so a hole in it shows as a failed mmap. What shows later is a page
//! that the memory controller cannot read any more: the kernel then sends SIGBUS with the page's address. Left alone that
//! kills the process, and where the process is init, the capture kernel. Here the handler puts a page of zeros in its place
//! and notes it down; the read goes on. (Reading such a page by read(2) would stop the capture kernel itself: its copy of
//! old memory does not recover from machine checks. So windows come first and read(2) is only what is fallen back on.)
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fmt;
use std::fs::File;
use std::io;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use crate::PAGE;

/// The most that one window maps: larger ones were measured slower on /proc/vmcore, as were smaller than 1 MiB.
pub(crate) const MAX_WINDOW: usize = 4 << 20;

/// The processor's unit, in bytes.
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;

const WORDS: usize = MAX_WINDOW / PAGE / 64;

/// Windows that can exist at a time: one for each thread that writes a dump, and then some.
pub(crate) const MAX_WINDOWS: usize = 72;

/// What the handler knows of a window.
struct Slot {
    taken: AtomicBool,
    /// The window's first byte and its length; 0 and 0 while there is none.
    start: AtomicUsize,
    len: AtomicUsize,
    /// A bit for each page of the window that raised SIGBUS.
    bad: [AtomicU64; WORDS],
}

impl Slot {
    const fn free() -> Self {
        Self {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            bad: [const { AtomicU64::new(0) }; WORDS],
        }
    }
}

static SLOTS: [Slot; MAX_WINDOWS] = [const { Slot::free() }; MAX_WINDOWS];
static HANDLER: Once = Once::new();
/// The running kernel's page size, in bytes: a page that cannot be read is a page of that size. 64 KiB on some machines.
static SYSTEM_PAGE: AtomicUsize = AtomicUsize::new(PAGE);

/// A part of a file mapped for reading.
pub struct Window {
    start: *mut c_void,
    len: usize,
    slot: &'static Slot,
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("start", &self.start).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Window {
    /// Maps `len` bytes (at most 4 MiB) from `offset`, a multiple of the page size. `ResourceBusy` where [`MAX_WINDOWS`] exist already.
    pub(crate) fn map(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        if len == 0 || len > MAX_WINDOW {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        HANDLER.call_once(install_handler);
        let free = |slot: &&Slot| !slot.taken.swap(true, Ordering::Acquire);
        let slot = SLOTS.iter().find(free).ok_or(io::ErrorKind::ResourceBusy)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that Rust knows of.
        let mapped = unsafe {
            rustix::mm::mmap(ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, offset)
        };
        let start = match mapped {
            Ok(start) => start,
            Err(error) => {
                slot.taken.store(false, Ordering::Release);
                return Err(error.into());
            }
        };
        for word in &slot.bad {
            word.store(0, Ordering::Relaxed);
        }
        slot.start.store(start as usize, Ordering::Relaxed);
        slot.len.store(len, Ordering::Release);
        Ok(Self { start, len, slot })
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
        self.slot
            .bad
            .get(page / 64)
            .is_some_and(|word| word.load(Ordering::Acquire) & (1 << (page % 64)) != 0)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.slot.len.store(0, Ordering::Release);
        self.slot.start.store(0, Ordering::Relaxed);
        // SAFETY: start and len are those of the mapping made in `map`; `bytes` borrows self, so no slice outlives this.
        let unmapped = unsafe { rustix::mm::munmap(self.start, self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of a window: {unmapped:?}");
        self.slot.taken.store(false, Ordering::Release);
    }
}

/// Has the processor bring bytes into its cache while it does something else.
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(CACHE_LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which reads nothing that the program sees and raises no fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
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

/// Puts zeros in place of the system's page at `address` if it lies in a window, and notes down all of [`PAGE`] bytes in it.
fn patch(address: usize) -> bool {
    let unit = SYSTEM_PAGE.load(Ordering::Relaxed);
    let holds = |slot: &Slot| {
        let len = slot.len.load(Ordering::Acquire);
        let start = slot.start.load(Ordering::Relaxed);
        address.checked_sub(start).filter(|into| *into < len).map(|into| (start, into - into % unit))
    };
    let Some((slot, (start, into))) = SLOTS.iter().find_map(|slot| Some((slot, holds(slot)?))) else {
        return false;
    };
    let flags = MapFlags::PRIVATE | MapFlags::FIXED;
    let place = (start + into) as *mut c_void;
    // SAFETY: the page lies inside the mapping that the window owns, and stays readable. The thread that reads it is in this
    // handler, so the window is not dropped meanwhile.
    if unsafe { rustix::mm::mmap_anonymous(place, unit, ProtFlags::READ, flags) }.is_err() {
        return false;
    }
    for page in into / PAGE..(into + unit) / PAGE {
        if let Some(word) = slot.bad.get(page / 64) {
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

    #[test]
    fn windows_side_by_side_are_told_apart() {
        let unit = rustix::param::page_size();
        let files = [1u8, 2].map(|byte| {
            let file = tempfile::tempfile().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &vec![byte; 2 * unit], 0).unwrap();
            file
        });
        let windows = files.each_ref().map(|file| Window::map(file, 0, 2 * unit).unwrap());
        files[1].set_len(unit as u64).unwrap();
        let last = windows.each_ref().map(|window| window.bytes()[2 * unit - 1]);
        assert_eq!(last, [1, 0]);
        let page = unit / PAGE;
        assert_eq!(windows.each_ref().map(|window| window.is_bad(page)), [false, true]);
    }
}
