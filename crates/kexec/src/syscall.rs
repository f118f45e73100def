//! The kexec system calls. All unsafe code of this crate is here.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use elfcorehdr::{PhysAddr, PhysRange};
use host::Host;
use thiserror::Error;

use crate::error::Refusal;
use crate::precheck;

/// kexec_load: the image is for a crash.
pub(crate) const KEXEC_ON_CRASH: u64 = 0x1;
/// kexec_load from 6.10: all segments that hotplug concerns may be rewritten.
pub(crate) const KEXEC_CRASH_HOTPLUG_SUPPORT: u64 = 0x8;

const KEXEC_FILE_UNLOAD: u64 = 0x1;
const KEXEC_FILE_ON_CRASH: u64 = 0x2;
const KEXEC_FILE_NO_INITRAMFS: u64 = 0x4;

/// Both calls answer EBUSY while another load or the crash-hotplug handler runs; loads take seconds on slow machines.
const BUSY_WAIT: Duration = Duration::from_millis(50);
const BUSY_TRIES: u32 = 200;

/// A system call that loads kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// User space makes the segments.
    KexecLoad,
    /// The kernel makes the segments, and may check signatures.
    KexecFileLoad,
}

impl Call {
    /// The call's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::KexecLoad => "kexec_load",
            Self::KexecFileLoad => "kexec_file_load",
        }
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Which of the two images that a kernel can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one that a crash boots.
    Crash,
    /// The one that [`execute`] boots.
    Normal,
}

/// A system call that failed. Where it was to load a crash kernel, the one that was loaded before may be gone:
/// `kexec_crash_loaded` tells.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SyscallError {
    /// EPERM or EACCES, with the reason where the machine shows it.
    #[error("{call} failed: {source}{}", Because(why))]
    NotPermitted {
        /// The call.
        call: Call,
        /// The reason found.
        why: Option<Refusal>,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel image's signature is missing, unknown or wrong.
    #[error(
        "{call} failed: {source}: the kernel image is not signed by a key that the running kernel trusts"
    )]
    Signature {
        /// The call.
        call: Call,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another load, or the handling of a hotplug event, did not end in the time given.
    #[error("{call} failed: {source}: another program is loading a kernel; tried {tries} times over {} s", waited.as_secs())]
    Busy {
        /// The call.
        call: Call,
        /// How often it was tried.
        tries: u32,
        /// How long in all.
        waited: Duration,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// EADDRNOTAVAIL: outside the crash reservation.
    #[error("{call} failed: {source}: outside the crash reservation, or nothing is reserved (crashkernel=)")]
    OutsideReservation {
        /// The call.
        call: Call,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// ENOMEM: also when the reservation has no room for the kernel's own pages.
    #[error(
        "{call} failed: {source}: the crash reservation, or memory, is too small: boot with a larger crashkernel="
    )]
    NoMemory {
        /// The call.
        call: Call,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// ENOEXEC: the kernel does not take this image.
    #[error("{call} failed: {source}: the running kernel does not take this kernel image")]
    NotAKernel {
        /// The call.
        call: Call,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// EINVAL: flags that the running kernel does not know, or an argument that it does not take.
    #[error("{call} failed: {source}: the running kernel does not take these arguments (flags {flags:#x})")]
    Invalid {
        /// The call.
        call: Call,
        /// The flags passed.
        flags: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// ENOSYS: the running kernel has no such call.
    #[error("{call} failed: {source}: the running kernel was built without it")]
    NoSuchCall {
        /// The call.
        call: Call,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("{call} failed: {source}")]
    Other {
        /// The call.
        call: Call,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl SyscallError {
    /// What the kernel said.
    pub fn io_error(&self) -> &io::Error {
        match self {
            Self::NotPermitted { source, .. }
            | Self::Signature { source, .. }
            | Self::Busy { source, .. }
            | Self::OutsideReservation { source, .. }
            | Self::NoMemory { source, .. }
            | Self::NotAKernel { source, .. }
            | Self::Invalid { source, .. }
            | Self::NoSuchCall { source, .. }
            | Self::Other { source, .. } => source,
        }
    }

    fn new(call: Call, flags: u64, source: io::Error, why: impl FnOnce() -> Option<Refusal>) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { call, why: why(), source },
            Some(
                libc::EKEYREJECTED
                | libc::ENOKEY
                | libc::EBADMSG
                | libc::ENODATA
                | libc::ENOPKG
                | libc::ELIBBAD,
            ) => Self::Signature { call, source },
            Some(libc::EADDRNOTAVAIL) => Self::OutsideReservation { call, source },
            Some(libc::ENOMEM) => Self::NoMemory { call, source },
            Some(libc::ENOEXEC) => Self::NotAKernel { call, source },
            Some(libc::EINVAL) => Self::Invalid { call, flags, source },
            Some(libc::ENOSYS) => Self::NoSuchCall { call, source },
            Some(libc::EBUSY) => {
                Self::Busy { call, tries: BUSY_TRIES, waited: BUSY_WAIT * (BUSY_TRIES - 1), source }
            }
            _ => Self::Other { call, source },
        }
    }
}

/// The reason behind "not permitted", where one was found.
struct Because<'a>(&'a Option<Refusal>);

impl std::fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(why) => write!(f, ": {why}"),
            None => f.write_str(": a security module, or the running kernel's signature policy, forbids it"),
        }
    }
}

/// One segment for kexec_load: `data` goes to the start of `place`, zeros fill the rest.
pub(crate) struct SegmentRef<'a> {
    pub(crate) place: PhysRange,
    pub(crate) data: &'a [u8],
}

/// `struct kexec_segment` of <linux/kexec.h>.
#[repr(C)]
struct RawSegment {
    buf: *const u8,
    bufsz: usize,
    mem: usize,
    memsz: usize,
}

/// Loads `segments` by kexec_load, to be entered at `entry`.
pub(crate) fn kexec_load(
    host: &Host,
    entry: PhysAddr,
    segments: &[SegmentRef<'_>],
    flags: u64,
) -> Result<(), SyscallError> {
    let raw: Vec<RawSegment> = segments
        .iter()
        .map(|segment| RawSegment {
            buf: segment.data.as_ptr(),
            bufsz: segment.data.len(),
            mem: segment.place.start().0 as usize,
            memsz: segment.place.len() as usize,
        })
        .collect();
    // The high half holds the architecture; 0 stands for the running kernel's own (KEXEC_ARCH_DEFAULT).
    let target = if flags & KEXEC_ON_CRASH != 0 { Target::Crash } else { Target::Normal };
    call(host, Call::KexecLoad, target, flags, || {
        // SAFETY: the kernel reads `raw.len()` segments and, of each, `bufsz` bytes at `buf`, which `segments` borrows; it
        // writes to no memory of this process. What it does to the machine is the caller's plan.
        unsafe { libc::syscall(libc::SYS_kexec_load, entry.0 as usize, raw.len(), raw.as_ptr(), flags) }
    })
}

/// Loads a kernel by kexec_file_load.
pub(crate) fn kexec_file_load(
    host: &Host,
    kernel: BorrowedFd<'_>,
    initrd: Option<BorrowedFd<'_>>,
    cmdline: &CStr,
    target: Target,
) -> Result<(), SyscallError> {
    let mut flags = 0;
    if target == Target::Crash {
        flags |= KEXEC_FILE_ON_CRASH;
    }
    if initrd.is_none() {
        flags |= KEXEC_FILE_NO_INITRAMFS;
    }
    raw_file_load(host, kernel, initrd, cmdline, target, flags)
}

/// Has the running kernel read and verify a kernel file as for kexec_file_load, and loads nothing: what is loaded stays.
///
/// The call is for a normal image, since one for a crash image frees the old one first. It promises an initrd and names none:
/// the kernel verifies the kernel file before it looks for the initrd and fails (kimage_file_prepare_segments in
/// kernel/kexec_file.c, 5.10 to 7.2), so EBADF says that the kernel file was taken.
pub(crate) fn verify_kernel_file(host: &Host, kernel: BorrowedFd<'_>) -> Result<(), SyscallError> {
    match raw_file_load(host, kernel, None, c"", Target::Normal, 0) {
        Err(error) if error.io_error().raw_os_error() == Some(libc::EBADF) => Ok(()),
        outcome => outcome,
    }
}

fn raw_file_load(
    host: &Host,
    kernel: BorrowedFd<'_>,
    initrd: Option<BorrowedFd<'_>>,
    cmdline: &CStr,
    target: Target,
    flags: u64,
) -> Result<(), SyscallError> {
    let initrd = initrd.map_or(-1, |file| file.as_raw_fd());
    let cmdline = cmdline.to_bytes_with_nul();
    call(host, Call::KexecFileLoad, target, flags, || {
        // SAFETY: the kernel reads the two files and `cmdline.len()` bytes, NUL included, at `cmdline`, which outlives the
        // call; it writes to no memory of this process.
        unsafe {
            libc::syscall(
                libc::SYS_kexec_file_load,
                kernel.as_raw_fd(),
                initrd,
                cmdline.len(),
                cmdline.as_ptr(),
                flags,
            )
        }
    })
}

/// Unloads what is loaded as `target`; nothing loaded is fine.
///
/// # Errors
/// As the system call fails: not permitted, busy, or not in this kernel.
pub fn unload(host: &Host, target: Target, by: Call) -> Result<(), SyscallError> {
    match by {
        Call::KexecLoad => {
            let flags = if target == Target::Crash { KEXEC_ON_CRASH } else { 0 };
            kexec_load(host, PhysAddr(0), &[], flags)
        }
        Call::KexecFileLoad => {
            let crash = if target == Target::Crash { KEXEC_FILE_ON_CRASH } else { 0 };
            let flags = KEXEC_FILE_UNLOAD | crash;
            call(host, by, target, flags, || {
                // SAFETY: with KEXEC_FILE_UNLOAD the kernel looks at nothing but the flags.
                unsafe { libc::syscall(libc::SYS_kexec_file_load, -1, -1, 0, std::ptr::null::<u8>(), flags) }
            })
        }
    }
}

/// Passes a structure of the module's interface to the module and takes its answer.
pub(crate) fn module_arm(device: BorrowedFd<'_>, request: &mut abi::Arm) -> io::Result<()> {
    // SAFETY: the module reads and writes one `Arm` at the pointer, which the ioctl's number tells the size of.
    let answer =
        unsafe { libc::ioctl(device.as_raw_fd(), u64::from(abi::IOCTL_ARM) as _, request as *mut abi::Arm) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the module let go of the image.
pub(crate) fn module_disarm(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: this ioctl takes no argument.
    let answer = unsafe { libc::ioctl(device.as_raw_fd(), u64::from(abi::IOCTL_DISARM) as _) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks the module what it does.
pub(crate) fn module_status(device: BorrowedFd<'_>) -> io::Result<abi::Status> {
    let mut status = abi::Status::default();
    // SAFETY: the module writes one `Status` at the pointer, which the ioctl's number tells the size of.
    let answer =
        unsafe { libc::ioctl(device.as_raw_fd(), u64::from(abi::IOCTL_STATUS) as _, &raw mut status) };
    if answer == 0 { Ok(status) } else { Err(io::Error::last_os_error()) }
}

/// Boots what is loaded as [`Target::Normal`], at once: nothing is synced or unmounted.
///
/// # Errors
/// Returns only where the kernel refuses: nothing loaded (EINVAL), not permitted.
pub fn execute() -> Result<std::convert::Infallible, io::Error> {
    rustix::system::reboot(rustix::system::RebootCommand::Kexec)?;
    Err(io::Error::other("reboot(LINUX_REBOOT_CMD_KEXEC) returned without an error and without a reboot"))
}

/// Makes a call until it does not answer EBUSY, or patience ends.
fn call(
    host: &Host,
    call: Call,
    target: Target,
    flags: u64,
    make: impl Fn() -> libc::c_long,
) -> Result<(), SyscallError> {
    let mut tries = 1;
    loop {
        if make() == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EBUSY) && tries < BUSY_TRIES {
            tries += 1;
            thread::sleep(BUSY_WAIT);
            continue;
        }
        return Err(SyscallError::new(call, flags, error, || precheck::reason(host, call, target)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart() {
        let classify =
            |errno| SyscallError::new(Call::KexecFileLoad, 0, io::Error::from_raw_os_error(errno), || None);
        assert!(matches!(classify(libc::EPERM), SyscallError::NotPermitted { .. }));
        for errno in [libc::EKEYREJECTED, libc::ENOKEY, libc::EBADMSG, libc::ENODATA] {
            assert!(matches!(classify(errno), SyscallError::Signature { .. }), "{errno}");
        }
        assert!(matches!(classify(libc::EBUSY), SyscallError::Busy { .. }));
        assert!(matches!(classify(libc::EADDRNOTAVAIL), SyscallError::OutsideReservation { .. }));
        assert!(matches!(classify(libc::ENOMEM), SyscallError::NoMemory { .. }));
        assert!(matches!(classify(libc::ENOEXEC), SyscallError::NotAKernel { .. }));
        assert!(matches!(classify(libc::EINVAL), SyscallError::Invalid { .. }));
        assert!(matches!(classify(libc::ENOSYS), SyscallError::NoSuchCall { .. }));
        assert!(matches!(classify(libc::EIO), SyscallError::Other { .. }));
    }

    #[test]
    fn texts_start_as_scripts_grep_them() {
        let error = SyscallError::new(Call::KexecLoad, 0, io::Error::from_raw_os_error(libc::EPERM), || {
            Some(Refusal::Disabled)
        });
        let text = error.to_string();
        assert!(text.starts_with("kexec_load failed: Operation not permitted"), "{text}");
        assert!(text.contains("kexec_load_disabled"), "{text}");
    }

    #[test]
    fn busy_calls_are_tried_again() {
        use std::cell::Cell;
        let tries = Cell::new(0);
        let answer = call(&Host::at("/nonexistent"), Call::KexecLoad, Target::Crash, 0, || {
            tries.set(tries.get() + 1);
            if tries.get() < 3 {
                // SAFETY: errno is this thread's own.
                unsafe { *libc::__errno_location() = libc::EBUSY };
                return -1;
            }
            0
        });
        assert!(answer.is_ok());
        assert_eq!(tries.get(), 3);
    }
}
