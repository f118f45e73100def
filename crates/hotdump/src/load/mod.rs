//! `hotdump load` and `hotdump unload`.

mod job;

use std::path::{Path, PathBuf};

use clap::builder::{TypedValueParser as _, ValueParser};
use elfcorehdr::PhysAddr;
use host::{CrashHotplug, Host};
use kexec::cmdline::{Overrides, Source, crash_cmdline};
use kexec::{Call, Keeper, Module, PlanFacts, Target, Warning};
use serde::Serialize;

use crate::exit;
use crate::lock::{self, Lock};
use crate::record::{self, Record};
use crate::text::{print, print_json, tell};

use job::confirm_hotplug;
pub(crate) use job::{Contents, Files, Job, LoadError, Plan, SyscallChoice, unload};

/// Options of `hotdump load`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The crash kernel [default: /boot/vmlinuz-RELEASE of the running kernel]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Its initramfs [default: /var/lib/hotdump/initrd-RELEASE.img, written by `hotdump initramfs`]
    #[arg(long, value_name = "FILE", conflicts_with = "no_initrd")]
    initrd: Option<PathBuf>,
    /// Load without an initramfs: the kernel has all that it needs
    #[arg(long)]
    no_initrd: bool,
    /// The crash kernel's command line [default: the running kernel's, without what must not be in it]
    #[arg(long, value_name = "STRING", conflicts_with = "reuse_cmdline", allow_hyphen_values = true)]
    command_line: Option<String>,
    /// Use the running kernel's command line, without what must not be in it (the default, said aloud)
    #[arg(long)]
    reuse_cmdline: bool,
    /// Append this to the command line
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    append: Option<String>,
    /// Remove this parameter from the command line (may be given again)
    #[arg(long, value_name = "NAME")]
    remove: Vec<String>,
    /// Do not add nr_cpus=1 reset_devices irqpoll acpi_no_memhotplug
    #[arg(long)]
    no_defaults: bool,
    /// Which system call to load by
    #[arg(long, value_enum, default_value_t)]
    syscall: SyscallChoice,
    /// Have the kernel keep the image current on CPU and memory hotplug (Linux 6.6 and later), and check that it does
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        default_missing_value = "always",
        num_args = 0..=1,
        require_equals = true
    )]
    hotplug: HotplugChoice,
    /// Who keeps the image current on CPU and memory hotplug
    #[arg(long, value_name = "HOW", value_enum, conflicts_with = "hotplug")]
    keep: Option<Keep>,
    /// Lowest address to load to (kexec_load only)
    #[arg(long, value_name = "ADDRESS", value_parser = address_parser())]
    mem_min: Option<PhysAddr>,
    /// Lowest address not to load to (kexec_load only)
    #[arg(long, value_name = "ADDRESS", value_parser = address_parser())]
    mem_max: Option<PhysAddr>,
    /// Check and plan everything, print the plan, load nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the plan too
    #[arg(long, short)]
    verbose: bool,
    /// Print what was loaded as JSON
    #[arg(long)]
    json: bool,
}

/// When to ask the kernel to keep the image current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum HotplugChoice {
    /// The image stays as it was loaded
    #[default]
    Never,
    /// Where the kernel can; a warning where it then does not
    Auto,
    /// Fail where the kernel cannot or does not
    Always,
}

/// Who keeps the image current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Keep {
    /// The best that this machine allows: module, native or reload; says which, and why
    Auto,
    /// The kernel (Linux 6.6 and later), with a time at each event in which a crash leaves no dump
    Native,
    /// The kernel module hotdump.ko
    Module,
    /// Nobody: udev rules, or whoever sees a change, load again
    Reload,
}

/// Options of `hotdump unload`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct UnloadArgs {
    /// By which system call: where one is not there, the other may be
    #[arg(long, value_enum, default_value_t)]
    syscall: SyscallChoice,
}

/// What came of a load, for people and programs.
#[derive(Debug, Serialize)]
struct Report<'a> {
    loaded: bool,
    syscall: Call,
    /// Why this system call; none where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<String>,
    kernel: &'a Path,
    initrd: Option<&'a Path>,
    cmdline: &'a str,
    /// Who keeps it current.
    keeper: Keeper,
    /// Why it is this one; none where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    keeper_because: Option<&'static str>,
    /// What the keeper says after the load.
    crash_hotplug: Option<Hotplug>,
    plan: Option<&'a PlanFacts>,
    warnings: &'a [Warning],
}

#[derive(Debug, Serialize)]
struct Hotplug {
    cpu: Option<bool>,
    memory: Option<bool>,
}

impl From<CrashHotplug> for Hotplug {
    fn from(CrashHotplug { cpu, memory }: CrashHotplug) -> Self {
        Self { cpu, memory }
    }
}

/// Loads a crash image.
///
/// # Errors
/// [`LoadError`], which has its own exit code, or a report that could not be printed.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let host = Host::live();
    let job = args.job(&host)?;
    let files = Files::open(&job)?;
    // A plan is made for the machine as it is, so nobody may change what is loaded between plan and load.
    let _lock = if args.dry_run { None } else { Some(take_lock()?) };
    let because = args.only_file_load(&host);
    if job.keeper == Keeper::Module && (args.syscall == SyscallChoice::File || because.is_some()) {
        let because = because.map_or(String::new(), |because| format!(", and {because}"));
        anyhow::bail!("--keep module needs kexec_load{because}: use --keep native or --keep reload");
    }
    if args.syscall == SyscallChoice::File || because.is_some() {
        let plan = Plan::by_file(&host, &job, &files, Target::Crash)?;
        return Ok(args.carry_out(&host, &job, &plan, because.map(str::to_owned))?);
    }
    let contents = Contents::read(&files)?;
    let plan = Plan::by_load(&host, &job, &contents)?;
    match args.carry_out(&host, &job, &plan, None) {
        Err(error)
            if args.syscall == SyscallChoice::Auto
                && job.keeper != Keeper::Module
                && job::may_try_file_load(&error) =>
        {
            let plan = Plan::by_file(&host, &job, &files, Target::Crash)?;
            Ok(args.carry_out(&host, &job, &plan, Some(error.to_string()))?)
        }
        outcome => Ok(outcome?),
    }
}

/// Unloads the crash image.
///
/// # Errors
/// [`LoadError`]: the kernel refused, or another load holds the lock.
pub(crate) fn run_unload(args: &UnloadArgs) -> anyhow::Result<u8> {
    let _lock = take_lock()?;
    unload_crash_image(&Host::live(), args.syscall)?;
    Ok(exit::OK)
}

/// Unloads the crash image and forgets its record. The lock is the caller's.
pub(crate) fn unload_crash_image(host: &Host, by: SyscallChoice) -> Result<(), LoadError> {
    job::unload(host, Target::Crash, by)?;
    if let Err(error) = Record::remove(record::DIR) {
        tell(format_args!("hotdump: warning: {error}"));
    }
    Ok(())
}

pub(crate) fn take_lock() -> Result<Lock, LoadError> {
    Ok(Lock::take(Path::new(record::DIR), lock::PATIENCE)?)
}

/// Loads what `plan` says, sees that the kernel keeps it current where that was asked for, and writes it down.
pub(crate) fn load_and_record(
    host: &Host,
    job: &Job,
    plan: &Plan<'_>,
) -> Result<Option<CrashHotplug>, LoadError> {
    // Before the call, which takes the image that is loaded now.
    let module = if job.keeper == Keeper::Module { Some(job::module()?) } else { None };
    plan.load(host, Target::Crash)?;
    let confirmed = match (&module, plan.facts(), job.keeper) {
        (Some(module), Some(facts), _) => Some(job::arm(module, facts)),
        (_, _, Keeper::Kernel) => Some(confirm_hotplug(host)),
        _ => None,
    };
    // The image is loaded whatever the file system says: status and verify find it without the record too.
    if let Some(Err(error)) = plan.record(host, job).map(|record| record.write(record::DIR)) {
        tell(format_args!("hotdump: warning: {error}"));
    }
    confirmed.transpose()
}

impl Args {
    /// Fills in the defaults from the machine.
    fn job(&self, host: &Host) -> anyhow::Result<Job> {
        let kernel = match &self.kernel {
            Some(kernel) => kernel.clone(),
            None => PathBuf::from(format!("/boot/vmlinuz-{}", host.kernel_release()?)),
        };
        let initrd = match &self.initrd {
            Some(initrd) => Some(initrd.clone()),
            None if self.no_initrd => None,
            None => Some(default_initrd(&host.kernel_release()?)?),
        };
        let running = host.cmdline()?;
        let source = self.command_line.as_deref().map_or(Source::Running(&running), Source::Given);
        let remove: Vec<&str> = self.remove.iter().map(String::as_str).collect();
        let overrides =
            Overrides { remove: &remove, append: self.append.as_deref(), no_defaults: self.no_defaults };
        Ok(Job {
            kernel,
            initrd,
            cmdline: crash_cmdline(source, &overrides)
                .map_err(|error| anyhow::anyhow!("command line: {error}"))?,
            keeper: self.keeper(host)?.0,
            mem_min: self.mem_min,
            mem_max: self.mem_max,
        })
    }

    /// Why only kexec_file_load will do, where the choice is free.
    fn only_file_load(&self, host: &Host) -> Option<&'static str> {
        match self.syscall {
            SyscallChoice::Auto => job::only_file_load(host),
            _ => None,
        }
    }

    /// Who shall keep the image current, and why, where that was left to us.
    fn keeper(&self, host: &Host) -> anyhow::Result<(Keeper, Option<&'static str>)> {
        let kernel_can = || Ok::<_, host::HostError>(host.kexec()?.elfcorehdr_size.is_some());
        Ok(match (self.keep, self.hotplug) {
            (Some(Keep::Native), _) | (None, HotplugChoice::Always) => (Keeper::Kernel, None),
            (Some(Keep::Module), _) => (Keeper::Module, None),
            (Some(Keep::Reload), _) | (None, HotplugChoice::Never) => (Keeper::Nobody, None),
            (None, HotplugChoice::Auto) => {
                (if kernel_can()? { Keeper::Kernel } else { Keeper::Nobody }, None)
            }
            (Some(Keep::Auto), _) => {
                let by_file = self.syscall == SyscallChoice::File || self.only_file_load(host).is_some();
                let (keeper, because) = best_keeper(by_file, Module::open()?.is_some(), kernel_can()?);
                (keeper, Some(because))
            }
        })
    }

    fn load_unless_dry(
        &self,
        host: &Host,
        job: &Job,
        plan: &Plan<'_>,
    ) -> Result<Option<CrashHotplug>, LoadError> {
        if self.dry_run { Ok(None) } else { load_and_record(host, job, plan) }
    }

    /// Loads by `plan`, unless this is a dry run, and tells.
    fn carry_out(
        &self,
        host: &Host,
        job: &Job,
        plan: &Plan<'_>,
        because: Option<String>,
    ) -> Result<u8, LoadError> {
        for warning in plan.warnings() {
            tell(format_args!("hotdump: warning: {warning}"));
        }
        if !self.json && (self.dry_run || self.verbose) {
            warn_unless(print(plan.describe()));
        }
        let crash_hotplug = match self.load_unless_dry(host, job, plan) {
            Err(error @ LoadError::NotCurrent { .. }) if self.hotplug == HotplugChoice::Auto => {
                tell(format_args!("hotdump: warning: {error}"));
                None
            }
            outcome => outcome?,
        };
        let report = Report {
            loaded: !self.dry_run,
            syscall: plan.call(),
            because,
            kernel: &job.kernel,
            initrd: job.initrd.as_deref(),
            cmdline: &job.cmdline,
            keeper: job.keeper,
            keeper_because: self.keeper(host).ok().and_then(|(_, because)| because),
            crash_hotplug: crash_hotplug.map(Hotplug::from),
            plan: plan.facts(),
            warnings: plan.warnings(),
        };
        report.print(self.json);
        Ok(exit::OK)
    }
}

impl Report<'_> {
    /// A report that cannot be printed does not undo a load, so it is no failure here.
    fn print(&self, json: bool) {
        warn_unless(if json { print_json(self) } else { print(format_args!("{self}\n")) });
    }
}

impl std::fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let done = if self.loaded { "loaded" } else { "would load" };
        write!(f, "{done} {} ", self.kernel.display())?;
        match self.initrd {
            Some(initrd) => write!(f, "with {} ", initrd.display())?,
            None => f.write_str("without an initramfs ")?,
        }
        write!(f, "by {}", self.syscall)?;
        if let Some(because) = &self.because {
            write!(f, " ({because})")?;
        }
        match (self.keeper, self.crash_hotplug.is_some()) {
            (Keeper::Kernel, true) => f.write_str("; the kernel keeps it current")?,
            (Keeper::Module, true) => f.write_str("; the module keeps it current")?,
            (Keeper::Nobody, _) if self.keeper_because.is_some() => {
                f.write_str("; nobody keeps it current")?
            }
            _ => {}
        }
        self.keeper_because.map_or(Ok(()), |because| write!(f, " ({because})"))
    }
}

/// The best keeper for an image that is loaded by kexec_file_load or not, on a machine whose module is loaded or not,
/// and whose kernel can or cannot; and why.
fn best_keeper(by_file: bool, module_loaded: bool, kernel_can: bool) -> (Keeper, &'static str) {
    match (by_file, module_loaded, kernel_can) {
        (false, true, _) => (Keeper::Module, "hotdump.ko is loaded"),
        (false, false, true) => (Keeper::Kernel, "hotdump.ko is not loaded"),
        (true, _, true) => (Keeper::Kernel, "hotdump.ko needs kexec_load"),
        (false, false, false) => {
            (Keeper::Nobody, "the kernel cannot and hotdump.ko is not loaded: load again at every change")
        }
        (true, _, false) => {
            (Keeper::Nobody, "the kernel cannot and hotdump.ko needs kexec_load: load again at every change")
        }
    }
}

fn warn_unless(printed: anyhow::Result<()>) {
    if let Err(error) = printed {
        tell(format_args!("hotdump: warning: {error:#}"));
    }
}

/// The initramfs made for this kernel.
fn default_initrd(release: &str) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(format!("/var/lib/hotdump/initrd-{release}.img"));
    anyhow::ensure!(
        path.exists(),
        "there is no {}: write it with `hotdump initramfs --output {0}`, or name another with --initrd, or say \
         --no-initrd",
        path.display()
    );
    Ok(path)
}

/// Addresses as people write them: decimal, or hexadecimal after 0x.
fn address_parser() -> ValueParser {
    ValueParser::new(clap::builder::StringValueParser::new().try_map(|text| address(&text)))
}

fn address(text: &str) -> Result<PhysAddr, std::num::ParseIntError> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map(PhysAddr)
}
