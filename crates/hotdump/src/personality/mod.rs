//! The face that answers to the name `kexec`: kexec-tools' options as distributions' kdump scripts use them, with the
//! same meaning, exit codes and the messages that scripts look for.
//!
//! Where it differs on purpose, `tests/personality_cases.toml` says so and why.

pub(crate) mod options;
mod request;

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use host::Host;
use kexec::cmdline::{Overrides, Source, crash_cmdline};
use kexec::{Call, ImageError, Keeper, PlanError, Refusal, SyscallError, Target};

use crate::load::{
    self, Contents, Files, Job, LoadError, Means, Plan, SyscallChoice, load_and_record, take_lock,
    unload_crash_image,
};
use crate::text::{print, tell};
use request::{Request, UsageError, Work};

/// Exit codes of kexec-tools 2.0.32.
mod code {
    pub(super) const OK: u8 = 0;
    /// Wrong usage, or a check before any work failed; for `--status`: loaded.
    pub(super) const FATAL: u8 = 1;
    pub(super) const LOADED: u8 = 1;
    /// `-s`, and the kernel has no kexec_file_load or does not take this image by it.
    pub(super) const NO_FILE_LOAD: u8 = 253;
    /// Load or unload failed, or no kernel was given.
    pub(super) const FAILED: u8 = 255;
}

/// A failure with its exit code. The text is printed as it is.
#[derive(Debug)]
struct Failure {
    code: u8,
    text: String,
    /// Whether the list of options is printed after it, on standard output.
    help: bool,
}

impl Failure {
    fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), help: false }
    }
}

impl From<UsageError> for Failure {
    fn from(error: UsageError) -> Self {
        Self { code: code::FATAL, text: error.to_string(), help: error.wants_help() }
    }
}

/// Does what the arguments (without the program's name) ask for; returns the exit code.
pub(crate) fn run(args: Vec<OsString>) -> u8 {
    // File names are taken as text; one that is not UTF-8 is not found, and named in the message.
    let args = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    match perform(args, &Host::live()) {
        Ok(code) => code,
        Err(failure) => {
            tell(&failure.text);
            // The list after a mistake is a courtesy.
            let _ = if failure.help { print(help()) } else { Ok(()) };
            failure.code
        }
    }
}

fn perform(args: Vec<String>, host: &Host) -> Result<u8, Failure> {
    let say =
        |text: String| print(text).map_err(|error| Failure::new(code::FATAL, format!("kexec: {error:#}")));
    match request::parse(args)? {
        Request::Help => say(help())?,
        Request::Version => say(format!("{VERSION}\n"))?,
        Request::PrintCkrSize => {
            let reservations =
                host.reservations().map_err(|error| Failure::new(code::FATAL, error.to_string()))?;
            say(format!("{}\n", reservations.map_or(0, |reservations| reservations.main.len())))?;
        }
        Request::Status { crash } => {
            let state = host.kexec().map_err(|error| Failure::new(code::FAILED, error.to_string()))?;
            let loaded = if crash { state.crash_loaded } else { state.loaded };
            return Ok(if loaded { code::LOADED } else { code::OK });
        }
        Request::Work(work) => work.perform(host)?,
    }
    Ok(code::OK)
}

/// Types of kernel that are loaded, by kexec-tools' names, and those that kexec-tools loads besides.
#[cfg(target_arch = "x86_64")]
const TYPES: [&str; 2] = ["bzImage", "bzImage64"];
#[cfg(target_arch = "x86_64")]
const OTHER_TYPES: [&str; 7] =
    ["multiboot2-x86", "elf-x86_64", "multiboot-x86", "elf-x86", "beoboot-x86", "nbi-x86", "uki"];
#[cfg(target_arch = "powerpc64")]
const TYPES: [&str; 1] = ["elf-ppc64"];
#[cfg(target_arch = "powerpc64")]
const OTHER_TYPES: [&str; 0] = [];

/// The first line of the help. Scripts look for the name in it.
const VERSION: &str =
    concat!("hotdump ", env!("CARGO_PKG_VERSION"), ", with the options of kexec-tools 2.0.32");

fn help() -> String {
    format!("{VERSION}\n{}", request::help())
}

impl Work {
    fn perform(&self, host: &Host) -> Result<(), Failure> {
        for (option, why) in &self.ignored {
            tell(format_args!("kexec: --{option} has no effect: {why}"));
        }
        if self.load {
            self.check_machine(host)?;
        }
        if self.unload {
            self.unload(host)?;
        }
        if self.load {
            self.load(host)?;
        }
        if self.exec || self.shutdown {
            self.reboot(host)?;
        }
        Ok(())
    }

    /// What kexec-tools checks before it looks at the kernel.
    fn check_machine(&self, host: &Host) -> Result<(), Failure> {
        let unreadable = |error: host::HostError| Failure::new(code::FATAL, error.to_string());
        if self.crash && host.reservations().map_err(unreadable)?.is_none() {
            let text = "Memory for crashkernel is not reserved\n\
                Boot with crashkernel=256M (or as large as your distribution advises), then load the crash kernel";
            return Err(Failure::new(code::FATAL, text));
        }
        self.keeper(host)?;
        if self.reuse_initrd {
            let retained =
                host.cmdline().is_ok_and(|line| kexec::cmdline::value(&line, "retain_initrd").is_some());
            let text = if retained {
                "--reuseinitrd not implemented on this architecture"
            } else {
                "unrecoverable error: current boot didn't retain the initrd for reuse."
            };
            return Err(Failure::new(code::FATAL, text));
        }
        Ok(())
    }

    /// Who shall keep the image current: the kernel where it can, else the module where that is loaded. The module
    /// follows only what is loaded by kexec_load.
    fn keeper(&self, host: &Host) -> Result<Keeper, Failure> {
        if !self.hotplug {
            return Ok(Keeper::Nobody);
        }
        let by_file = (self.syscall == SyscallChoice::File).then(|| "-s was given".to_owned());
        let means = Means::of(host, by_file).map_err(|error| Failure::new(code::FATAL, error.to_string()))?;
        keeper_among(&means).map_err(|missing| {
            let text = format!(
                "Path /sys/kernel/crash_elfcorehdr_size does not exist, the kernel needs CONFIG_CRASH_HOTPLUG, or hotdump's \
                 module: {missing}"
            );
            Failure::new(code::FATAL, text)
        })
    }

    fn unload(&self, host: &Host) -> Result<(), Failure> {
        let _lock = take_lock().map_err(|error| Failure::new(code::FAILED, error.to_string()))?;
        let by = |choice| match self.target() {
            Target::Crash => unload_crash_image(host, choice),
            Target::Normal => load::unload(host, Target::Normal, choice),
        };
        if self.syscall != SyscallChoice::Load {
            match by(SyscallChoice::File) {
                Err(error) if !has_no_file_load(&error) => {
                    let text = format!("kexec_file_load(unload) failed: {error}");
                    return Err(Failure::new(code::FAILED, text));
                }
                Err(error) if self.syscall == SyscallChoice::File => return Err(no_file_load(&error)),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
        by(SyscallChoice::Load)
            .map_err(|error| Failure::new(code::FAILED, format!("kexec unload failed: {error}")))
    }

    fn load(&self, host: &Host) -> Result<(), Failure> {
        let Some(kernel) = &self.kernel else {
            return Err(Failure { help: true, ..Failure::new(code::FAILED, "No kernel specified") });
        };
        let job = Job {
            kernel: kernel.clone(),
            initrd: self.initrd.clone(),
            dtb: self.dtb.clone(),
            cmdline: self.cmdline(host)?,
            keeper: self.keeper(host)?,
            mem_min: self.mem_min,
            mem_max: self.mem_max,
        };
        let files = Files::open(&job).map_err(|error| self.failure(error))?;
        let _lock = take_lock().map_err(|error| self.failure(error))?;
        let done = match (self.target(), self.syscall) {
            (Target::Normal, SyscallChoice::Load) => {
                let text = "kexec_load failed: only crash kernels are loaded by kexec_load: use -s with -l";
                return Err(Failure::new(code::FAILED, text));
            }
            (Target::Crash, SyscallChoice::Load) => return self.by_load(host, &job, &files),
            (Target::Crash, SyscallChoice::Auto) if job.keeper == Keeper::Module => {
                return self.by_load(host, &job, &files);
            }
            (target, SyscallChoice::File) => self.by_file(host, &job, &files, target),
            (Target::Normal, SyscallChoice::Auto) => self.by_file(host, &job, &files, Target::Normal),
            (Target::Crash, SyscallChoice::Auto) => match self.by_file(host, &job, &files, Target::Crash) {
                Err(error) if has_no_file_load(&error) => {
                    tell(format_args!("{error}\nTrying kexec_load"));
                    return self.by_load(host, &job, &files);
                }
                outcome => outcome,
            },
        };
        done.map_err(|error| self.failure(error))
    }

    fn by_load(&self, host: &Host, job: &Job, files: &Files) -> Result<(), Failure> {
        self.check_type()?;
        let load = || {
            let contents = Contents::read(files)?;
            let plan = Plan::by_load(host, job, &contents)?;
            self.tell(&plan);
            load_and_record(host, job, &plan)
        };
        load().map(drop).map_err(|error| self.failure(error))
    }

    /// Whether the type of kernel is one that is loaded here; by kexec_file_load the kernel finds out by itself.
    fn check_type(&self) -> Result<(), Failure> {
        let text = match self.kernel_type.as_deref() {
            None => return Ok(()),
            Some(kind) if TYPES.contains(&kind) => return Ok(()),
            Some(kind) if OTHER_TYPES.contains(&kind) => {
                format!("Wrong file type {kind}: only {} is supported", TYPES[0])
            }
            Some(kind) => format!("Unsupported kernel type {kind}"),
        };
        Err(Failure::new(code::FAILED, text))
    }

    fn by_file(&self, host: &Host, job: &Job, files: &Files, target: Target) -> Result<(), LoadError> {
        let plan = Plan::by_file(host, job, files, target)?;
        self.tell(&plan);
        match target {
            Target::Crash => load_and_record(host, job, &plan).map(drop),
            Target::Normal => plan.load(host, target),
        }
    }

    fn tell(&self, plan: &Plan<'_>) {
        if self.debug {
            tell(plan.describe().trim_end());
        } else {
            plan.warnings().iter().for_each(|warning| tell(format_args!("kexec: warning: {warning}")));
        }
    }

    /// The command line as it was asked for: scripts set what a capture kernel needs by themselves.
    fn cmdline(&self, host: &Host) -> Result<String, Failure> {
        let running = host.cmdline().map_err(|error| Failure::new(code::FATAL, error.to_string()))?;
        let base = if self.reuse_cmdline { running.as_str() } else { "" };
        let given = self.append.as_deref().unwrap_or_default();
        let missing =
            |name: &str| [base, given].iter().all(|line| kexec::cmdline::value(line, name).is_none());
        let append = match self.addition(&running, missing) {
            Some(addition) => format!("{given} {addition}"),
            None => given.to_owned(),
        };
        let source = if self.crash { Source::Running(base) } else { Source::Given(base) };
        let overrides = Overrides {
            remove: &["BOOT_IMAGE"],
            append: Some(&append),
            no_defaults: true,
            small_bounce: false,
        };
        crash_cmdline(source, &overrides)
            .map_err(|error| Failure::new(code::FAILED, format!("command line: {error}")))
    }

    /// What the command line gets on top. One parameter that scripts do not know of: without it ACPI hands hot-added memory of
    /// the crashed kernel to the capture kernel as its own, and the dump is lost.
    #[cfg(target_arch = "x86_64")]
    fn addition(&self, _: &str, missing: impl Fn(&str) -> bool) -> Option<String> {
        const NO_HOTPLUG: &str = "acpi_no_memhotplug";
        (self.crash && missing(NO_HOTPLUG)).then(|| NO_HOTPLUG.to_owned())
    }

    /// What the command line gets on top: the running kernel's `root=`, as kexec-tools do on PowerPC.
    #[cfg(target_arch = "powerpc64")]
    fn addition(&self, running: &str, missing: impl Fn(&str) -> bool) -> Option<String> {
        let root = kexec::cmdline::value(running, "root")?;
        (!self.no_old_root && missing("root")).then(|| format!("root={root}"))
    }

    fn target(&self) -> Target {
        if self.crash { Target::Crash } else { Target::Normal }
    }

    /// Executes the loaded kernel, at once or through the system's shutdown.
    fn reboot(&self, host: &Host) -> Result<(), Failure> {
        let unreadable = |error: host::HostError| Failure::new(code::FATAL, error.to_string());
        if !host.kexec().map_err(unreadable)?.loaded {
            return Err(Failure::new(code::FATAL, "Nothing has been loaded!"));
        }
        if self.shutdown {
            let error = Command::new("/sbin/shutdown").args(["-r", "now"]).exec();
            return Err(Failure::new(code::FAILED, format!("shutdown: {error}")));
        }
        if !self.no_sync {
            rustix::fs::sync();
        }
        match kexec::execute() {
            Ok(never) => match never {},
            Err(error) => Err(Failure::new(code::FAILED, format!("kexec failed: {error}"))),
        }
    }

    /// Words and exit code as kexec-tools' for the same fault, with our reason behind.
    fn failure(&self, error: LoadError) -> Failure {
        let by_load = self.syscall == SyscallChoice::Load;
        match &error {
            LoadError::File { path, source, .. } if self.kernel.as_ref() == Some(path) || by_load => {
                Failure::new(code::FATAL, format!("Cannot open `{}': {source}", path.display()))
            }
            LoadError::File { path, source, .. } => {
                let text = format!(
                    "Could not open initrd file {}:{source}\nCannot load {}",
                    path.display(),
                    self.kernel_name()
                );
                Failure::new(code::FAILED, text)
            }
            LoadError::Plan { source: PlanError::Image(ImageError::NotAKernel { .. }), .. } => Failure::new(
                code::FAILED,
                format!("Cannot determine the file type of {}\n{error}", self.kernel_name()),
            ),
            LoadError::Plan { source: PlanError::TooSmall { size, .. }, .. } => self.no_room(*size, &error),
            LoadError::Plan { source: PlanError::EmptyWindow { .. }, .. } => self.no_room(1, &error),
            LoadError::Plan { source: PlanError::Refused(refusal), .. } => self.refused(refusal),
            LoadError::Plan { .. } => {
                Failure::new(code::FAILED, format!("{error}\nCannot load {}", self.kernel_name()))
            }
            LoadError::Syscall { .. } if self.syscall == SyscallChoice::File && has_no_file_load(&error) => {
                no_file_load(&error)
            }
            LoadError::Syscall { .. }
            | LoadError::NotCurrent { .. }
            | LoadError::CannotKeep(_)
            | LoadError::NoModule(_)
            | LoadError::NotFollowed(_)
            | LoadError::Lock(_) => Failure::new(code::FAILED, error.to_string()),
        }
    }

    /// kexec-tools finds out by itself with `-c`, and fails in the system call otherwise: the codes differ.
    fn no_room(&self, size: u64, error: &LoadError) -> Failure {
        let code = if self.syscall == SyscallChoice::Load { code::FATAL } else { code::FAILED };
        Failure::new(code, format!("Could not find a free area of memory of {size:#x} bytes...\n{error}"))
    }

    /// The system call would fail: told in the words in which it would.
    fn refused(&self, refusal: &Refusal) -> Failure {
        let call = if self.syscall == SyscallChoice::Load { Call::KexecLoad } else { Call::KexecFileLoad };
        Failure::new(code::FAILED, format!("{call} failed: {refusal}"))
    }

    fn kernel_name(&self) -> String {
        self.kernel.as_ref().map_or_else(String::new, |kernel| kernel.display().to_string())
    }
}

/// Who keeps an image current for `--hotplug`.
///
/// # Errors
/// What is missing for the module, where the kernel has no handler of its own.
fn keeper_among(means: &Means) -> Result<Keeper, String> {
    match (means.kernel_can, &means.by_file, means.module.missing()) {
        (true, _, _) => Ok(Keeper::Kernel),
        (false, Some(why), _) => Err(format!("it follows only what is loaded by kexec_load, and {why}")),
        (false, None, Some(missing)) => Err(missing),
        (false, None, None) => Ok(Keeper::Module),
    }
}

/// Whether kexec_file_load is not there, or does not take this image: kexec-tools' `-a` then tries kexec_load. A refused
/// signature is not among these: it is final.
fn has_no_file_load(error: &LoadError) -> bool {
    let LoadError::Syscall { source, .. } = error else { return false };
    match source {
        SyscallError::NoSuchCall { .. } | SyscallError::Invalid { .. } | SyscallError::NotAKernel { .. } => {
            true
        }
        other => other.io_error().raw_os_error() == Some(rustix::io::Errno::NOTSUP.raw_os_error()),
    }
}

fn no_file_load(error: &LoadError) -> Failure {
    Failure::new(code::NO_FILE_LOAD, format!("{error}\nsyscall kexec_file_load not available."))
}
