//! Loading by kexec_file_load: the checks that the kernel would fail on, before it frees the loaded image.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;

use host::Host;

use crate::arch;
use crate::cmdline::CmdlineError;
use crate::error::{PlanError, Refusal};
use crate::plan;
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

/// Bytes of a file that hold all its headers.
const START: usize = 64 << 10;

/// Makes the checks for a load by kexec_file_load. Changes nothing; reads the start of the kernel file.
///
/// A signature is not checked here: which keys the running kernel trusts it alone knows, and [`FileLoadPlan::load`] asks it.
///
/// # Errors
/// What is wrong with the files, the command line or the machine, and what to do.
pub fn plan_file_load<'a>(host: &Host, request: FileLoadRequest<'a>) -> Result<FileLoadPlan<'a>, PlanError> {
    precheck::permitted(host, Call::KexecFileLoad, request.target)?;
    let need = check_files(host, &request)?;
    precheck::half_of_memory(need)?;
    let cmdline = CString::new(request.cmdline).map_err(|error| CmdlineError::Nul(error.nul_position()))?;
    Ok(FileLoadPlan { request, cmdline })
}

/// Checks the files and the command line, and gives the bytes that the image takes in memory.
fn check_files(host: &Host, request: &FileLoadRequest<'_>) -> Result<u64, PlanError> {
    let (start, size) = read_start(request.kernel, "kernel")?;
    let image = arch::Image::parse_start(&start, size)?;
    let crash = request.target == Target::Crash;
    let room = if crash { ELFCOREHDR_ROOM } else { 0 };
    let length = request.cmdline.len().saturating_add(1).saturating_add(room);
    if length > image.cmdline_limit() {
        return Err(PlanError::CmdlineTooLong { length, limit: image.cmdline_limit() });
    }
    let initrd = request.initrd.map(|file| read_start(file, "initrd")).transpose()?.map(|(_, size)| size);
    if crash {
        let reservations = host.reservations()?.ok_or(Refusal::NoReservation)?;
        let mut space = plan::usable(host, (None, None), reservations.main)?;
        image.place(&mut space)?;
        if let Some(size) = initrd {
            space.take_high("initrd", size, arch::SEGMENT_ALIGN, None)?;
        }
        let header = host.kexec()?.elfcorehdr_size.unwrap_or(0);
        space.take_high(
            "elfcorehdr",
            elfcorehdr::room_for(header, arch::SEGMENT_ALIGN),
            arch::SEGMENT_ALIGN,
            None,
        )?;
        space.require_free("the running kernel's own pages", arch::control_pages(host)?)?;
    }
    Ok(image.memory_size().saturating_add(initrd.unwrap_or(0)))
}

impl FileLoadPlan<'_> {
    /// Loads the image. A crash image that was loaded before is gone once the kernel has begun, whether the rest succeeds
    /// or not; so the kernel is asked first, without harm to that one, whether it takes the file and its signature.
    ///
    /// # Errors
    /// What the kernel said, with the reason where the machine shows it.
    pub fn load(&self, host: &Host) -> Result<(), SyscallError> {
        // Asking counts against the limit on normal images, where there is one.
        if self.request.target == Target::Crash && matches!(host.kexec_load_limit_reboot(), Ok(None)) {
            syscall::verify_kernel_file(host, self.request.kernel)?;
        }
        syscall::kexec_file_load(
            host,
            self.request.kernel,
            self.request.initrd,
            &self.cmdline,
            self.request.target,
        )
    }
}

/// The start of a file, enough for all headers, and the file's size. The place that the descriptor stands at is left alone:
/// it belongs to the caller. A file that cannot be read would fail in the system call, when the old image is gone.
fn read_start(file: BorrowedFd<'_>, what: &'static str) -> Result<(Vec<u8>, u64), PlanError> {
    let unreadable = |source| PlanError::Unreadable { what, source };
    let file = File::from(file.try_clone_to_owned().map_err(unreadable)?);
    let size = file.metadata().map_err(unreadable)?.len();
    if size == 0 {
        return Err(PlanError::Empty { what });
    }
    let mut start = vec![0; usize::try_from(size).map_or(START, |size| size.min(START))];
    file.read_exact_at(&mut start, 0).map_err(unreadable)?;
    Ok((start, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{SAMPLE_MACHINES, sample_kernel};
    use std::fs;
    use std::os::fd::AsFd;

    fn machine() -> Host {
        Host::at(format!("{}/../host/tests/fixtures/{}", env!("CARGO_MANIFEST_DIR"), SAMPLE_MACHINES[0]))
    }

    /// What the checks say of a kernel and an initrd of these sizes and this command line.
    fn check(kernel: &[u8], initrd: u64, cmdline: &str, target: Target) -> Result<u64, PlanError> {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        fs::write(path("kernel"), kernel).unwrap();
        File::create(path("initrd")).unwrap().set_len(initrd).unwrap();
        let (kernel, initrd) = (File::open(path("kernel")).unwrap(), File::open(path("initrd")).unwrap());
        let request =
            FileLoadRequest { kernel: kernel.as_fd(), initrd: Some(initrd.as_fd()), cmdline, target };
        check_files(&machine(), &request)
    }

    #[test]
    fn good_files_pass() {
        let kernel = sample_kernel(3 * START);
        let size = arch::Image::parse(&kernel).unwrap().memory_size();
        assert_eq!(check(&kernel, 4096, "a", Target::Crash).unwrap(), size + 4096);
        assert_eq!(check(&kernel, 600 << 20, "a", Target::Normal).unwrap(), size + (600 << 20));
    }

    #[test]
    fn what_the_kernel_would_refuse_is_found() {
        let kernel = sample_kernel(3 * START);
        let text = |answer: Result<u64, PlanError>| answer.unwrap_err().to_string();
        let script = format!("not a {}: the file is a script", arch::KERNEL_FILE.0);
        assert!(text(check(b"#!/bin/sh", 1, "", Target::Crash)).contains(&script));
        assert!(text(check(&kernel[..2 * START], 1, "", Target::Crash)).contains("truncated"));
        assert_eq!(text(check(&kernel, 0, "", Target::Crash)), "the initrd is empty");
        assert!(text(check(&kernel, 600 << 20, "", Target::Crash)).contains("no room for initrd"));
        let long = "x".repeat(2030);
        assert!(
            text(check(&kernel, 1, &long, Target::Crash))
                .contains("2061 bytes with elfcorehdr=, this kernel takes 2047")
        );
        assert!(check(&kernel, 1, &long, Target::Normal).is_ok());
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let directory = File::open(folder.path()).unwrap();
        let request =
            FileLoadRequest { kernel: directory.as_fd(), initrd: None, cmdline: "", target: Target::Crash };
        let error = check_files(&machine(), &request).unwrap_err();
        assert!(error.to_string().starts_with("cannot read the kernel: "), "{error}");
    }
}
