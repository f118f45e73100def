//! `hotdump load` and `hotdump unload`.

mod job;
mod keep;

use std::path::{Path, PathBuf};

use clap::builder::{TypedValueParser as _, ValueParser};
use elfcorehdr::PhysAddr;
use host::{CrashHotplug, Host};
use kexec::cmdline::{Overrides, Source, bounces_little, crash_cmdline};
use kexec::{Call, Keeper, PlanFacts, Target, Warning};
use serde::Serialize;

use crate::exit;
use crate::lock::{self, Lock};
use crate::prepared;
use crate::record::{self, Record};
use crate::text::{print, print_json, tell};

use job::confirm_hotplug;
use keep::Choice;
pub(crate) use keep::{Keep, Means};

pub(crate) use job::{Contents, Files, Job, LoadError, Plan, SyscallChoice, unload};

/// Options of `hotdump load`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The crash kernel, for kexec_load also packed by gzip, xz or zstd [default: /boot/vmlinuz-RELEASE of the running
    /// kernel, or vmlinux-RELEASE]
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
    /// Do not add nr_cpus=1 reset_devices irqpoll acpi_no_memhotplug, and swiotlb=4096 where all of the reservation lies
    /// below 4 GiB and no memory can be encrypted (PowerPC: maxcpus=1 reset_devices irqpoll noirqdistrib)
    #[arg(long)]
    no_defaults: bool,
    /// Which system call to load by
    #[arg(long, value_enum, default_value_t)]
    syscall: SyscallChoice,
    /// Who keeps the image current on CPU and memory hotplug
    #[arg(long, value_name = "HOW", value_enum, default_value = "auto", conflicts_with = "hotplug")]
    keep: Keep,
    /// An older way to say --keep: --hotplug is --keep native
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        default_missing_value = "always",
        num_args = 0..=1,
        require_equals = true
    )]
    hotplug: Option<HotplugChoice>,
    /// A flattened device tree to pass on in place of the machine's (PowerPC, kexec_load only)
    #[arg(long, value_name = "FILE")]
    dtb: Option<PathBuf>,
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

/// Who keeps the image current, in other words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum HotplugChoice {
    /// --keep reload
    Never,
    /// --keep auto
    Auto,
    /// --keep native
    Always,
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
    because: Option<&'a str>,
    kernel: &'a Path,
    initrd: Option<&'a Path>,
    cmdline: &'a str,
    /// Who keeps it current.
    keeper: Keeper,
    /// Why it is this one; none where it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    keeper_because: Option<&'a str>,
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
    load(args, &mut None)
}

/// As [`run`], with what an earlier load read, which is read again only where it has changed, and kept for the next.
pub(crate) fn load(args: &Args, known: &mut Option<Contents>) -> anyhow::Result<u8> {
    let host = Host::live();
    let mut means = Means::of(&host, args.by_file(&host))?;
    let choice = means.choose(args.keep())?;
    let mut job = args.job(&host, choice.keeper)?;
    let files = Files::open(&job)?;
    // A plan is made for the machine as it is, so nobody may change what is loaded between plan and load.
    let _lock = if args.dry_run { None } else { Some(take_lock()?) };
    let error = match args.attempt(&host, &job, (&files, known), &means, &choice) {
        Ok(code) => return Ok(code),
        Err(error) => error,
    };
    let choice = args.second_choice(&mut means, error)?;
    job.keeper = choice.keeper;
    Ok(args.attempt(&host, &job, (&files, known), &means, &choice)?)
}

/// Makes every check and reads and digests everything that [`load`] by the same `args` would, so that it need not.
pub(crate) fn prepare(args: &Args, known: &mut Option<Contents>) -> anyhow::Result<()> {
    let host = Host::live();
    let means = Means::of(&host, args.by_file(&host))?;
    let job = args.job(&host, means.choose(args.keep())?.keeper)?;
    let files = Files::open(&job)?;
    if means.by_file.is_some() {
        Plan::by_file(&host, &job, &files, Target::Crash)?;
    } else {
        Plan::by_load(&host, &job, Contents::read_again(known, &files)?)?;
    }
    Ok(())
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
    /// Refuses what makes no sense for loads that come by themselves.
    ///
    /// # Errors
    /// `--dry-run` or `--json` was given.
    pub(crate) fn loads_for_real(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.dry_run && !self.json, "--dry-run and --json are for `hotdump load`");
        Ok(())
    }

    /// Fills in the defaults from the machine.
    fn job(&self, host: &Host, keeper: Keeper) -> anyhow::Result<Job> {
        let kernel = match &self.kernel {
            Some(kernel) => kernel.clone(),
            None => default_kernel(&host.kernel_release()?),
        };
        let initrd = match &self.initrd {
            Some(initrd) => Some(initrd.clone()),
            None if self.no_initrd => None,
            None => Some(default_initrd(&host.kernel_release()?)?),
        };
        let running = host.cmdline()?;
        let source = self.command_line.as_deref().map_or(Source::Running(&running), Source::Given);
        let remove: Vec<&str> = self.remove.iter().map(String::as_str).collect();
        let overrides = Overrides {
            remove: &remove,
            append: self.append.as_deref(),
            no_defaults: self.no_defaults,
            small_bounce: bounces_little(host),
        };
        Ok(Job {
            kernel,
            initrd,
            dtb: self.dtb.clone(),
            cmdline: crash_cmdline(source, &overrides)
                .map_err(|error| anyhow::anyhow!("command line: {error}"))?,
            keeper,
            mem_min: self.mem_min,
            mem_max: self.mem_max,
        })
    }

    /// Why the image is to be loaded by kexec_file_load; none: by kexec_load.
    fn by_file(&self, host: &Host) -> Option<String> {
        match self.syscall {
            SyscallChoice::Auto => job::only_file_load(host).map(str::to_owned),
            SyscallChoice::Load => None,
            SyscallChoice::File => Some("--syscall file was given".to_owned()),
        }
    }

    /// Who is asked to keep the image current.
    fn keep(&self) -> Keep {
        match self.hotplug {
            None => self.keep,
            Some(HotplugChoice::Never) => Keep::Reload,
            Some(HotplugChoice::Auto) => Keep::Auto,
            Some(HotplugChoice::Always) => Keep::Native,
        }
    }

    /// Plans and loads, unless this is a dry run.
    fn attempt(
        &self,
        host: &Host,
        job: &Job,
        (files, known): (&Files, &mut Option<Contents>),
        means: &Means,
        choice: &Choice,
    ) -> Result<u8, LoadError> {
        if means.by_file.is_some() {
            let plan = Plan::by_file(host, job, files, Target::Crash)?;
            return self.carry_out(host, job, &plan, means, choice);
        }
        let plan = Plan::by_load(host, job, Contents::read_again(known, files)?)?;
        self.carry_out(host, job, &plan, means, choice)
    }

    /// What to try where the first attempt failed with `error`: kexec_file_load where it did not come to a load and the
    /// system call is left to us; the kernel's own handler where the module refused the image and the keeper is left to us.
    ///
    /// # Errors
    /// The same `error`, where nothing is left.
    fn second_choice(&self, means: &mut Means, error: LoadError) -> Result<Choice, LoadError> {
        match error {
            LoadError::NotFollowed(why) if self.keep() == Keep::Auto && means.kernel_can => {
                tell(format_args!("hotdump: warning: {why}: loading again, for the kernel's own handler"));
                let because = Some("hotdump.ko refused this image".to_owned());
                Ok(Choice { keeper: Keeper::Kernel, because })
            }
            error if self.syscall == SyscallChoice::Auto && job::may_try_file_load(&error) => {
                means.by_file = Some(error.to_string());
                means.choose(self.keep())
            }
            error => Err(error),
        }
    }

    /// Loads by `plan`, unless this is a dry run, and tells.
    fn carry_out(
        &self,
        host: &Host,
        job: &Job,
        plan: &Plan<'_>,
        means: &Means,
        choice: &Choice,
    ) -> Result<u8, LoadError> {
        for warning in plan.warnings() {
            tell(format_args!("hotdump: warning: {warning}"));
        }
        if !self.json && (self.dry_run || self.verbose) {
            warn_unless(print(plan.describe()));
        }
        let done = if self.dry_run { Ok(None) } else { load_and_record(host, job, plan) };
        let (crash_hotplug, keeper, because) = match done {
            Ok(crash_hotplug) => (crash_hotplug, choice.keeper, choice.because.clone()),
            Err(error) if self.keep() == Keep::Auto => {
                let (keeper, because) = puts_up_with(error, choice.keeper, means.kernel_can)?;
                tell(format_args!("hotdump: warning: {because}"));
                (None, keeper, Some(because))
            }
            Err(error) => return Err(error),
        };
        let report = Report {
            loaded: !self.dry_run,
            syscall: plan.call(),
            because: means.by_file.as_deref().filter(|_| self.syscall == SyscallChoice::Auto),
            kernel: &job.kernel,
            initrd: job.initrd.as_deref(),
            cmdline: &job.cmdline,
            keeper,
            keeper_because: because.as_deref(),
            crash_hotplug: crash_hotplug.map(Hotplug::from),
            plan: plan.facts(),
            warnings: plan.warnings(),
        };
        report.print(self.json);
        Ok(exit::OK)
    }
}

/// Who keeps an image current that is loaded, and not kept as it was to be, where the choice is left to us and nothing better
/// is to be had; and what is wrong.
///
/// # Errors
/// The same `error`, where it is another, or the kernel's own handler may do better than the module.
fn puts_up_with(error: LoadError, keeper: Keeper, kernel_can: bool) -> Result<(Keeper, String), LoadError> {
    match error {
        LoadError::NotCurrent { found } if keeper == Keeper::Module => {
            Ok((keeper, format!("only in part: {found}")))
        }
        LoadError::NotCurrent { found } => Ok((Keeper::Nobody, found)),
        LoadError::NotFollowed(why) if !kernel_can => Ok((Keeper::Nobody, why.to_string())),
        error => Err(error),
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
        if let Some(because) = self.because {
            write!(f, " ({because})")?;
        }
        f.write_str(match (self.keeper, self.loaded) {
            (Keeper::Kernel, true) => "; the kernel keeps it current",
            (Keeper::Kernel, false) => "; the kernel would keep it current",
            (Keeper::Module, true) => "; the module keeps it current",
            (Keeper::Module, false) => "; the module would keep it current",
            (Keeper::Nobody, true) => "; nobody keeps it current",
            (Keeper::Nobody, false) => "; nobody would keep it current",
        })?;
        self.keeper_because.map_or(Ok(()), |because| write!(f, " ({because})"))
    }
}

fn warn_unless(printed: anyhow::Result<()>) {
    if let Err(error) = printed {
        tell(format_args!("hotdump: warning: {error:#}"));
    }
}

/// The running kernel's file; by its usual name if there is none.
fn default_kernel(release: &str) -> PathBuf {
    let [usual, other] = ["vmlinuz", "vmlinux"].map(|name| PathBuf::from(format!("/boot/{name}-{release}")));
    if !usual.exists() && other.exists() { other } else { usual }
}

/// The initramfs made for this kernel.
fn default_initrd(release: &str) -> anyhow::Result<PathBuf> {
    let path = prepared::usual_path(release);
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

#[cfg(test)]
mod tests {
    use super::*;
    use kexec::ModuleError;

    #[test]
    fn what_auto_puts_up_with() {
        let part = || LoadError::NotCurrent { found: "the module does not follow CPUs".to_owned() };
        let refused = || LoadError::NotFollowed(ModuleError::NotThere);
        for (error, keeper, kernel_can, expected) in [
            (
                part(),
                Keeper::Module,
                true,
                Some((Keeper::Module, "only in part: the module does not follow CPUs")),
            ),
            (part(), Keeper::Kernel, true, Some((Keeper::Nobody, "the module does not follow CPUs"))),
            (refused(), Keeper::Module, false, Some((Keeper::Nobody, "the kernel module is not loaded"))),
            // The kernel's own handler is better than nobody: another load is worth it.
            (refused(), Keeper::Module, true, None),
            (LoadError::CannotKeep(String::new()), Keeper::Module, false, None),
        ] {
            let what = error.to_string();
            match (puts_up_with(error, keeper, kernel_can), expected) {
                (Ok((keeper, because)), Some((wanted, part))) => {
                    assert_eq!(keeper, wanted, "{what}");
                    assert!(because.starts_with(part), "{because}");
                }
                (outcome, expected) => assert!(outcome.is_err() && expected.is_none(), "{what}: {outcome:?}"),
            }
        }
    }

    #[test]
    fn hotplug_is_another_way_to_say_keep() {
        use clap::{Args as _, FromArgMatches as _};
        for (argument, keep) in [
            (None, Keep::Auto),
            (Some("--hotplug"), Keep::Native),
            (Some("--hotplug=always"), Keep::Native),
            (Some("--hotplug=auto"), Keep::Auto),
            (Some("--hotplug=never"), Keep::Reload),
            (Some("--keep=module"), Keep::Module),
        ] {
            let command = Args::augment_args(clap::Command::new("load"));
            let matches = command.try_get_matches_from(["load"].into_iter().chain(argument)).unwrap();
            assert_eq!(Args::from_arg_matches(&matches).unwrap().keep(), keep, "{argument:?}");
        }
    }
}
