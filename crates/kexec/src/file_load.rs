//! Loading by kexec_file_load: the checks that the kernel would fail on, before it frees the loaded image.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::BorrowedFd;

use host::Host;

use crate::arch;
use crate::cmdline::CmdlineError;
use crate::error::{PlanError, Refusal};
use crate::layout::Space;
use crate::precheck;
use crate::syscall::{self, Call, SyscallError, Target};

/// What to load by kexec_file_load.
#[derive(Clone, Copy, Debug)]
pub struct FileLoadRequest<'a> {
    /// The kernel file, open for reading, at its start.
    pub kernel: BorrowedFd<'a>,
    /// The initrd file, likewise.
    pub initrd: Option<BorrowedFd<'a>>,
    /// The command line, without `elfcorehdr=`, which the kernel adds.
    pub cmdline: &'a str,
    /// Which image it is to be.
    pub target: Target,
}

/// An image that passed the checks.
#[derive(Debug)]
pub struct FileLoadPlan<'a> {
    request: FileLoadRequest<'a>,
    cmdline: CString,
}

/// Room that the kernel wants in the command line for `elfcorehdr=` (arch/x86/kernel/kexec-bzimage64.c).
const ELFCOREHDR_ROOM: usize = 30;

/// Makes the checks for a load by kexec_file_load. Changes nothing; reads the kernel file once.
///
/// A signature is not checked here: which keys the running kernel trusts is not to be seen from outside.
///
/// # Errors
/// What is wrong with the files, the command line or the machine, and what to do.
pub fn plan_file_load<'a>(host: &Host, request: FileLoadRequest<'a>) -> Result<FileLoadPlan<'a>, PlanError> {
    precheck::permitted::<PlanError>(host, Call::KexecFileLoad)?;
    let cmdline = CString::new(request.cmdline).map_err(|error| CmdlineError::Nul(error.nul_position()))?;
    let kernel = read(request.kernel, "kernel")?;
    let image = arch::Image::parse(&kernel)?;
    let room = if request.target == Target::Crash { ELFCOREHDR_ROOM } else { 0 };
    let length = request.cmdline.len().saturating_add(1).saturating_add(room);
    if length > image.cmdline_limit() {
        return Err(PlanError::CmdlineTooLong { length, limit: image.cmdline_limit() });
    }
    let initrd = request.initrd.map(|file| size(file, "initrd")).transpose()?;
    if request.target == Target::Crash {
        let reservations = host.reservations()?.ok_or(Refusal::NoReservation)?;
        let mut space = Space::new(reservations.main, None, None)?;
        image.place(&mut space)?;
        if let Some(size) = initrd {
            space.take_high("initrd", size, arch::PAGE, None)?;
        }
        let header = host.kexec()?.elfcorehdr_size.unwrap_or(0);
        space.take_high("elfcorehdr", elfcorehdr::room_for(header, arch::PAGE), arch::PAGE, None)?;
        space.require_free("the running kernel's own pages", arch::control_pages(host)?)?;
    }
    Ok(FileLoadPlan { request, cmdline })
}

impl FileLoadPlan<'_> {
    /// Loads the image. A crash image that was loaded before is gone once the kernel has begun, whether the rest succeeds
    /// or not.
    ///
    /// # Errors
    /// What the kernel said, with the reason where the machine shows it.
    pub fn load(&self, host: &Host) -> Result<(), SyscallError> {
        syscall::kexec_file_load(
            host,
            self.request.kernel,
            self.request.initrd,
            &self.cmdline,
            self.request.target,
        )
    }
}

/// A file's bytes. The place that the descriptor stands at is left alone: it belongs to the caller.
fn read(file: BorrowedFd<'_>, what: &'static str) -> Result<Vec<u8>, PlanError> {
    let unreadable = |source| PlanError::Unreadable { what, source };
    let file = File::from(file.try_clone_to_owned().map_err(unreadable)?);
    let mut bytes = Vec::new();
    let mut at = 0;
    let mut piece = vec![0; 1 << 20];
    loop {
        let count = std::os::unix::fs::FileExt::read_at(&file, &mut piece, at).map_err(unreadable)?;
        match piece.get(..count) {
            None | Some([]) => return Ok(bytes),
            Some(read) => bytes.extend_from_slice(read),
        }
        at += count as u64;
    }
}

fn size(file: BorrowedFd<'_>, what: &'static str) -> Result<u64, PlanError> {
    let unreadable = |source| PlanError::Unreadable { what, source };
    let file = File::from(file.try_clone_to_owned().map_err(unreadable)?);
    // A file that can be sized but not read would fail in the system call, when the old image is gone.
    let mut byte = [0];
    std::os::unix::fs::FileExt::read_at(&file, &mut byte, 0).map_err(unreadable)?;
    Ok(file.metadata().map_err(unreadable)?.len())
}
