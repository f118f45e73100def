//! One round, told to a person.

use std::fmt::Display;

use anyhow::Result;
use lab::arch::Arch;
use lab::cache::KernelLine;
use lab::guest::Crashed;
use lab::lab::Lab;
use lab::machine::MIB;
use lab::product::By;

/// Load, add memory and a CPU, panic, capture, check, on Debian's 6.12 for `arch`.
///
/// # Errors
/// If anything is not as it should be, the dump above all.
pub(crate) fn run(lab: &Lab, arch: Arch) -> Result<()> {
    let outcome = round(lab, arch);
    lab.clean_up("demo", outcome.is_ok());
    if outcome.is_err() {
        eprintln!("the guest's files: {}", lab.paths("demo").dir.display());
    }
    outcome
}

fn round(lab: &Lab, arch: Arch) -> Result<()> {
    let kernels = match arch {
        Arch::X86_64 => KernelLine::V6_12,
        Arch::Ppc64 => KernelLine::Ppc64V6_12,
    };
    let mut guest = lab.guest("demo", kernels)?.boot()?;
    let before = guest.state()?;
    guest.make_initramfs()?;
    let loaded = guest.load(By::Load, &["--hotplug"])?;
    guest.add_memory(256 * MIB)?;
    guest.add_memory(256 * MIB)?;
    let new_cpu = guest.add_cpu()?;
    let verified = guest.run(["hotdump", "verify"])?;
    guest.say("hotdump verify");
    let after = guest.state()?;
    guest.fill()?;
    let crashed = guest.crash(new_cpu)?;

    let machine = |state: &lab::guest::State| {
        format!(
            "{} MiB in {} blocks, {} CPUs",
            state.online_bytes() / MIB,
            state.online_blocks.len(),
            state.online_cpus.len()
        )
    };
    println!();
    line("kernel", &before.release);
    line("machine at boot", machine(&before));
    line("loaded", loaded.ran.stdout.trim());
    line("machine after hotplug", machine(&after));
    line("hotdump verify", verified.ran.stdout.trim().replace('\n', "\n                         "));
    line("panic on", format!("CPU {new_cpu}, which was not there at boot"));
    line("from panic to reboot", format!("{:.1} s", crashed.took.as_secs_f64()));
    verified.ok()?;
    judge(&crashed)
}

fn judge(crashed: &Crashed) -> Result<()> {
    let report = crashed.report()?;
    let memory = &report["memory"];
    let mib = |pages: &serde_json::Value| pages.as_u64().unwrap_or_default() * 4096 / MIB;
    let (data, holes) = (mib(&memory["data_pages"]), mib(&memory["zero_pages"]));
    let seconds = report["seconds"]["total"].as_f64().unwrap_or_default();
    line("dump", format!("{data} MiB of data, {holes} MiB of zeros left as holes, {seconds:.1} s"));
    let (core, findings) = crashed.compare()?;
    line("pages compared", findings.pages);
    line("in hot-added memory", findings.hot_pages);
    line("wrong / missing", format!("{} / {}", findings.wrong, findings.missing));
    line("CPU notes", format!("{} of {}", core.cpus().len(), crashed.before.online_cpus.len()));
    let verdict = crashed.is_complete(&core, &findings);
    line("verdict", if verdict.is_ok() { "the dump is complete" } else { "THE DUMP IS NOT COMPLETE" });
    verdict
}

fn line(name: &str, value: impl Display) {
    println!("{name:>22}   {value}");
}
