//! Loading a crash image: read, plan, one system call, look at what came of it, write it down.
//!
//! Used by `hotdump load` and by the kexec personality. Everything that can fail for a reason that can be seen
//! beforehand fails in making a [`Plan`], with the machine as it was.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use abi::Reason;
use elfcorehdr::PhysAddr;
use host::{CrashHotplug, Host, Lockdown};
use kexec::{
    Call, CrashPlan, CrashRequest, Digests, FileLoadPlan, FileLoadRequest, Followed, Keeper, Module,
    ModuleError, PlanError, PlanFacts, Refusal, SyscallError, Target, Warning, plan_crash, plan_file_load,
};

use crate::exit;
use crate::keeping::keeps_current;
use crate::lock::LockError;
use crate::record::{Identity, Record};
use crate::unpack::unpack;

/// Which system call to load by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum SyscallChoice {
    /// kexec_load where the kernel allows it, else kexec_file_load
    #[default]
    Auto,
    /// kexec_load only
    Load,
    /// kexec_file_load only
    File,
}

/// What to load, and how.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    /// A flattened device tree in place of the machine's.
    pub(crate) dtb: Option<PathBuf>,
    /// Whole, but for `elfcorehdr=`.
    pub(crate) cmdline: String,
    pub(crate) keeper: Keeper,
    pub(crate) mem_min: Option<PhysAddr>,
    pub(crate) mem_max: Option<PhysAddr>,
}

const GONE: &str = "\nThe image that was loaded before is gone: a crash now would leave no dump";

/// Why an image was not loaded, or not as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot read the {what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot load {}: {source}", kernel.display())]
    Plan { kernel: PathBuf, source: PlanError },
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("{source}{}", if *disarmed { GONE } else { "" })]
    Syscall { source: SyscallError, disarmed: bool },
    #[error(
        "the image is loaded, but not kept current ({found}): load again whenever CPUs or memory come or go"
    )]
    NotCurrent { found: String },
    #[error("{0}")]
    CannotKeep(String),
    #[error("{0}")]
    NoModule(ModuleError),
    #[error("the image is loaded, but not followed: {0}; load again whenever CPUs or memory come or go")]
    NotFollowed(ModuleError),
}

impl LoadError {
    /// The exit code of `hotdump load`.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Lock(LockError::Held { .. }) => exit::BUSY,
            Self::Syscall { disarmed: true, .. } => exit::DISARMED,
            Self::NotCurrent { .. } | Self::NotFollowed(_) => exit::NOT_CURRENT,
            _ => exit::FAILED,
        }
    }
}

/// More than any kernel has unpacked; a file that unpacks to more is damaged.
const MOST_KERNEL: u64 = 1 << 30;

/// The files of an image, open, and in memory where kexec_load wants them there.
///
/// They are read rather than mapped: a file that changes or shrinks under a mapping between the digest and the system
/// call would leave the machine with an image that purgatory refuses, or with none.
#[derive(Debug)]
pub(crate) struct Files {
    kernel: Opened,
    initrd: Option<Opened>,
    dtb: Option<Opened>,
}

#[derive(Debug)]
struct Opened {
    what: &'static str,
    path: PathBuf,
    file: File,
}

impl Opened {
    fn open(what: &'static str, path: &Path) -> Result<Self, LoadError> {
        let fault = |source| LoadError::File { what, path: path.to_owned(), source };
        let file = File::open(path).map_err(fault)?;
        if file.metadata().map_err(fault)?.is_dir() {
            return Err(fault(io::ErrorKind::IsADirectory.into()));
        }
        Ok(Self { what, path: path.to_owned(), file })
    }

    fn stamp(&self) -> Result<Stamp, LoadError> {
        let fault = |source| LoadError::File { what: self.what, path: self.path.clone(), source };
        let metadata = self.file.metadata().map_err(fault)?;
        Ok(Stamp {
            file: (metadata.dev(), metadata.ino(), metadata.len()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn read(&self) -> Result<Vec<u8>, LoadError> {
        let fault = |source| LoadError::File { what: self.what, path: self.path.clone(), source };
        let mut bytes = Vec::new();
        let size = self.file.metadata().map_err(fault)?.len();
        // One allocation of the right size; a file that grew meanwhile is still read whole.
        bytes.reserve_exact(usize::try_from(size).unwrap_or(0).saturating_add(1));
        (&self.file).read_to_end(&mut bytes).map_err(fault)?;
        Ok(bytes)
    }

    /// As kexec-tools, which undo gzip and xz of any kernel.
    fn read_unpacked(&self) -> Result<Vec<u8>, LoadError> {
        let fault = |source| LoadError::File { what: self.what, path: self.path.clone(), source };
        unpack(self.read()?, MOST_KERNEL).map_err(fault)
    }
}

impl Files {
    /// Opens both files, so that a missing one is told before anything else is done.
    pub(crate) fn open(job: &Job) -> Result<Self, LoadError> {
        Ok(Self {
            kernel: Opened::open("crash kernel", &job.kernel)?,
            initrd: job.initrd.as_deref().map(|path| Opened::open("initramfs", path)).transpose()?,
            dtb: job.dtb.as_deref().map(|path| Opened::open("device tree", path)).transpose()?,
        })
    }

    /// What the files are now: kernel, initramfs, device tree.
    fn stamps(&self) -> Result<Vec<Option<Stamp>>, LoadError> {
        let files = [Some(&self.kernel), self.initrd.as_ref(), self.dtb.as_ref()];
        files.into_iter().map(|file| file.map(Opened::stamp).transpose()).collect()
    }
}

/// The files' contents, for kexec_load, and what plans have found out about them.
#[derive(Debug)]
pub(crate) struct Contents {
    kernel: Vec<u8>,
    initrd: Option<Vec<u8>>,
    dtb: Option<Vec<u8>>,
    digests: Digests,
    /// What the files were when they were read.
    stamps: Vec<Option<Stamp>>,
}

/// What tells a file from another, and from itself after a change: device, inode, size, and the times of the last change in
/// seconds and nanoseconds, the second one not to be set by anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64, u64),
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Contents {
    pub(crate) fn read(files: &Files) -> Result<Self, LoadError> {
        Ok(Self {
            // Before the bytes: a file that changes meanwhile is another one afterwards.
            stamps: files.stamps()?,
            kernel: files.kernel.read_unpacked()?,
            initrd: files.initrd.as_ref().map(Opened::read).transpose()?,
            dtb: files.dtb.as_ref().map(Opened::read).transpose()?,
            digests: Digests::default(),
        })
    }

    /// What `known` holds, where the files are still what they were when it was read; else they are read.
    pub(crate) fn read_again<'a>(known: &'a mut Option<Self>, files: &Files) -> Result<&'a Self, LoadError> {
        let stamps = files.stamps()?;
        let contents = match known.take().filter(|contents| contents.stamps == stamps) {
            Some(contents) => contents,
            None => Self::read(files)?,
        };
        Ok(known.insert(contents))
    }
}

/// Checks made, nothing changed yet: one system call is left.
#[derive(Debug)]
pub(crate) enum Plan<'a> {
    Load(Box<CrashPlan<'a>>),
    File(FileLoadPlan<'a>),
}

impl<'a> Plan<'a> {
    /// Plans a crash image by kexec_load.
    pub(crate) fn by_load(host: &Host, job: &'a Job, contents: &'a Contents) -> Result<Self, LoadError> {
        let request = CrashRequest {
            kernel: &contents.kernel,
            initrd: contents.initrd.as_deref(),
            cmdline: &job.cmdline,
            keeper: job.keeper,
            mem_min: job.mem_min,
            mem_max: job.mem_max,
            tree: contents.dtb.as_deref(),
            digests: &contents.digests,
        };
        plan_crash(host, &request).map(|plan| Self::Load(Box::new(plan))).map_err(|source| job.failed(source))
    }

    /// Plans an image by kexec_file_load.
    pub(crate) fn by_file(
        host: &Host,
        job: &'a Job,
        files: &'a Files,
        target: Target,
    ) -> Result<Self, LoadError> {
        let request = FileLoadRequest {
            kernel: files.kernel.file.as_fd(),
            initrd: files.initrd.as_ref().map(|initrd| initrd.file.as_fd()),
            cmdline: &job.cmdline,
            target,
        };
        let plan = || {
            let plan = plan_file_load(host, request)?;
            // kexec_file_load has no flag for it: kernels that can keep the header current do.
            if job.keeper == Keeper::Kernel && host.kexec()?.elfcorehdr_size.is_none() {
                return Err(Refusal::NoCrashHotplug.into());
            }
            Ok(plan)
        };
        plan().map(Self::File).map_err(|source| job.failed(source))
    }

    /// Which system call it is for.
    pub(crate) fn call(&self) -> Call {
        match self {
            Self::Load(_) => Call::KexecLoad,
            Self::File(_) => Call::KexecFileLoad,
        }
    }

    /// What will probably go wrong.
    pub(crate) fn warnings(&self) -> &[Warning] {
        match self {
            Self::Load(plan) => plan.warnings(),
            Self::File(_) => &[],
        }
    }

    /// The plan's details; the kernel makes its own for kexec_file_load.
    pub(crate) fn facts(&self) -> Option<&PlanFacts> {
        match self {
            Self::Load(plan) => Some(plan.facts()),
            Self::File(_) => None,
        }
    }

    /// The plan for people, each line ended.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Load(plan) => plan.describe().to_string(),
            Self::File(_) => "the running kernel works the segments out (kexec_file_load)\n".to_owned(),
        }
    }

    /// Makes the system call.
    pub(crate) fn load(&self, host: &Host, target: Target) -> Result<(), LoadError> {
        let loaded = || {
            let state = host.kexec().ok();
            state.map(|state| if target == Target::Crash { state.crash_loaded } else { state.loaded })
        };
        let before = loaded();
        let result = match self {
            Self::Load(plan) => plan.load(host),
            Self::File(plan) => plan.load(host),
        };
        result.map_err(|source| LoadError::Syscall {
            source,
            disarmed: before == Some(true) && loaded() != Some(true),
        })
    }

    /// The record of this load; `None` if the machine does not tell which boot this is.
    pub(crate) fn record(&self, host: &Host, job: &Job) -> Option<Record> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let facts = self.facts();
        let identity =
            facts.map(|facts| Identity { name: Identity::name(facts.identity), at: facts.identity_at() });
        Some(Record {
            boot_id: host.boot_id().ok()?,
            syscall: self.call(),
            identity,
            header: facts.map(|facts| facts.elfcorehdr),
            kernel: absolute(&job.kernel),
            initrd: job.initrd.as_deref().map(absolute),
            cmdline: job.cmdline.clone(),
            keeper: job.keeper,
            time,
        })
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

impl Job {
    fn failed(&self, source: PlanError) -> LoadError {
        LoadError::Plan { kernel: self.kernel.clone(), source }
    }
}

/// Whether `auto` has to take kexec_file_load, and why.
pub(crate) fn only_file_load(host: &Host) -> Option<&'static str> {
    match host.lockdown() {
        Ok(Lockdown::Integrity | Lockdown::Confidentiality) => Some("the kernel is locked down"),
        _ => None,
    }
}

/// Whether kexec_load failed in a way in which kexec_file_load may not: the call does not exist, or a policy forbids it
/// that may allow the other. In both cases the image loaded before is still there.
pub(crate) fn may_try_file_load(error: &LoadError) -> bool {
    let LoadError::Syscall { source, disarmed: false } = error else { return false };
    matches!(source, SyscallError::NoSuchCall { .. } | SyscallError::NotPermitted { why: None, .. })
}

/// Unloads what is loaded as `target`. kexec_load's way is tried first where the choice is free: it is allowed wherever
/// loading by it is, and kexec_file_load's where it is not.
pub(crate) fn unload(host: &Host, target: Target, by: SyscallChoice) -> Result<(), LoadError> {
    let by_call = |call| {
        kexec::unload(host, target, call).map_err(|source| LoadError::Syscall { source, disarmed: false })
    };
    match by {
        SyscallChoice::Load => by_call(Call::KexecLoad),
        SyscallChoice::File => by_call(Call::KexecFileLoad),
        SyscallChoice::Auto => match by_call(Call::KexecLoad) {
            Err(error) if is_refused_call(&error) => by_call(Call::KexecFileLoad),
            outcome => outcome,
        },
    }
}

/// Whether the kernel does not have, or does not allow, this call.
fn is_refused_call(error: &LoadError) -> bool {
    let LoadError::Syscall { source, .. } = error else { return false };
    matches!(source, SyscallError::NoSuchCall { .. } | SyscallError::NotPermitted { .. })
}

/// The module, which must be there.
pub(crate) fn module() -> Result<Module, LoadError> {
    Module::open().and_then(|module| module.ok_or(ModuleError::NotThere)).map_err(LoadError::NoModule)
}

/// Has the module follow the image that was just loaded.
pub(crate) fn arm(module: &Module, facts: &PlanFacts) -> Result<CrashHotplug, LoadError> {
    const PAUSE: Duration = Duration::from_millis(200);
    let armed = while_restless(|| module.arm(facts), || std::thread::sleep(PAUSE));
    let Followed { memory, cpus } = armed.map_err(LoadError::NotFollowed)?;
    let hotplug = CrashHotplug { cpu: Some(cpus), memory: Some(memory) };
    if keeps_current(hotplug) {
        return Ok(hotplug);
    }
    let missing = match (memory, cpus) {
        (true, _) => "CPUs",
        (false, true) => "memory",
        (false, false) => "memory nor CPUs",
    };
    let found = format!("the module does not follow {missing}: see its parameters and the kernel log");
    Err(LoadError::NotCurrent { found })
}

/// Tries again while the module says that memory or CPUs come and go too fast to begin, for a bounded time: a machine
/// that scales does so in bursts.
fn while_restless<T>(arm: impl Fn() -> Result<T, ModuleError>, pause: impl Fn()) -> Result<T, ModuleError> {
    const TRIES: usize = 10;
    for _ in 1..TRIES {
        match arm() {
            Err(ModuleError::Refused { reason: Reason::Restless, .. }) => pause(),
            outcome => return outcome,
        }
    }
    arm()
}

/// Reads back whether the kernel keeps the image current, as `--hotplug` asks for.
///
/// The kernel answers "0" also while something else holds its kexec lock, so a "0" is asked again for a while.
pub(crate) fn confirm_hotplug(host: &Host) -> Result<CrashHotplug, LoadError> {
    const TRIES: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(50);
    let mut last = CrashHotplug::default();
    for _ in 0..TRIES {
        last = host.crash_hotplug().unwrap_or_default();
        if keeps_current(last) {
            return Ok(last);
        }
        if last.memory.is_none() && last.cpu.is_none() {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    let shown = |value: Option<bool>| value.map_or("nothing", |on| if on { "1" } else { "0" });
    Err(LoadError::NotCurrent {
        found: format!("crash_hotplug says {} for CPUs, {} for memory", shown(last.cpu), shown(last.memory)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restless_machine_is_waited_for_but_not_forever() {
        use std::cell::Cell;
        let refused = |reason| ModuleError::Refused { reason, found: 0, source: io::Error::other("") };
        for (restless, reason_then, tries, armed) in [
            (0, None, 1, true),
            (3, None, 4, true),
            (99, None, 10, false),
            (2, Some(Reason::OtherLoad), 3, false),
        ] {
            let (tried, paused) = (Cell::new(0), Cell::new(0));
            let arm = || {
                tried.set(tried.get() + 1);
                match reason_then {
                    _ if tried.get() <= restless => Err(refused(Reason::Restless)),
                    Some(reason) => Err(refused(reason)),
                    None => Ok(()),
                }
            };
            let outcome = while_restless(arm, || paused.set(paused.get() + 1));
            assert_eq!((tried.get(), paused.get(), outcome.is_ok()), (tries, tries - 1, armed), "{restless}");
        }
    }

    #[test]
    fn hotplug_is_read_back_from_the_machine() {
        let root = tempfile::tempdir().unwrap();
        let set = |kind: &str, value: &str| {
            let dir = root.path().join("sys/devices/system").join(kind);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("crash_hotplug"), value).unwrap();
        };
        let host = Host::at(root.path());
        let error = confirm_hotplug(&host).unwrap_err();
        assert!(
            error.to_string().contains("crash_hotplug says nothing for CPUs, nothing for memory"),
            "{error}"
        );
        assert_eq!(error.exit_code(), exit::NOT_CURRENT);
        set("cpu", "1\n");
        set("memory", "0\n");
        assert!(confirm_hotplug(&host).unwrap_err().to_string().contains("1 for CPUs, 0 for memory"));
        set("memory", "1\n");
        confirm_hotplug(&host).unwrap();
    }

    #[test]
    fn files_that_cannot_be_read_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("vmlinuz");
        std::fs::write(&kernel, b"k").unwrap();
        let job = |kernel: &Path, initrd: &Path| Job {
            kernel: kernel.to_owned(),
            initrd: Some(initrd.to_owned()),
            dtb: None,
            cmdline: String::new(),
            keeper: Keeper::Nobody,
            mem_min: None,
            mem_max: None,
        };
        for (job, expected) in [
            (job(&dir.path().join("none"), &kernel), "cannot read the crash kernel"),
            (job(dir.path(), &kernel), "cannot read the crash kernel"),
            (job(&kernel, &dir.path().join("none")), "cannot read the initramfs"),
            (job(&kernel, dir.path()), "cannot read the initramfs"),
        ] {
            let error = Files::open(&job).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
            assert_eq!(error.exit_code(), exit::FAILED);
        }
        Contents::read(&Files::open(&job(&kernel, &kernel)).unwrap()).unwrap();
        let initrd = dir.path().join("initrd");
        std::fs::write(&initrd, b"first").unwrap();
        let mut known = None;
        let mut read = || {
            let files = Files::open(&job(&kernel, &initrd)).unwrap();
            let contents = Contents::read_again(&mut known, &files).unwrap();
            (contents.initrd.clone().unwrap(), contents.kernel.as_ptr())
        };
        let first = read();
        assert_eq!(read(), first, "not read again");
        // Another file by the same name, as it is replaced whole.
        std::fs::write(dir.path().join("new"), b"other").unwrap();
        std::fs::rename(dir.path().join("new"), &initrd).unwrap();
        assert_eq!(read().0, b"other");
        // Packed, and cut: the unpacker's word for it.
        std::fs::write(&kernel, b"\x1f\x8b\x08\0").unwrap();
        let error = Contents::read(&Files::open(&job(&kernel, &kernel)).unwrap()).unwrap_err();
        assert!(error.to_string().contains("cannot read the crash kernel"), "{error}");
    }
}
