//! The main job on each kernel, by each way.

use anyhow::{Context, Result, ensure};

use super::scenarios;
use crate::cache::KernelLine::{self, V6_1, V6_12, V7};
use crate::check::Core;
use crate::guest::Crashed;
use crate::lab::{BUSYBOX_CAPTURE, Lab, Plan};
use crate::machine::{GIB, MIB};
use crate::product::By;

scenarios! {
    control: "kexec-tools and a busybox capture on 6.12: the lab itself can be trusted",
    load_6_12: "kexec_load --hotplug on 6.12, two DIMMs and a CPU added, that CPU panics",
    file_6_12: "kexec_file_load on 6.12, a DIMM and a CPU added",
    load_7: "kexec_load --hotplug on 7.x, a DIMM and a CPU added",
    file_7: "kexec_file_load on 7.x, a DIMM and a CPU added, that CPU panics",
    uefi: "6.12 booted by UEFI",
    high: "a reservation above 4 GiB",
    busybox: "a busybox initramfs in place of hotdump's",
    defaults: "6.12, a DIMM and a CPU added, nothing said of the dump: level 31 by kdump and zstd, every page of a user's program out",
    filtered: "the same at level 17: free pages out, every page of a user's program in",
    stale_6_1: "6.1 has no crash hotplug: the added memory is missing, and verify had named it",
    ; long:
    filtered_zlib: "the same as filtered, by zlib",
    filtered_lzo: "the same as filtered, by LZO, whose encoder is hotdump's own",
}

/// What is added at a time.
const DIMM: u64 = 256 * MIB;

/// How much of the pattern goes into memory that was there at boot. The added memory, above 4 GiB, is filled first.
const OLD_MEMORY: u64 = 160 * MIB;

/// kexec-tools loads, a shell script captures.
fn control(lab: &Lab, name: &str) -> Result<()> {
    control_on(lab, name, V6_12)
}

/// The same on a kernel that has a handler of its own.
pub(super) fn control_on(lab: &Lab, name: &str, kernel: KernelLine) -> Result<()> {
    let mut guest = lab.guest(name, kernel)?.busybox_capture().boot()?;
    let append = kernel.arch().capture_cmdline();
    let image = guest.kernel.image_name();
    let line = format!("kexec -p /boot/{image} --initrd={BUSYBOX_CAPTURE} --hotplug --append='{append}'");
    guest.shell(&line)?.ok()?;
    guest.add_memory(DIMM)?;
    guest.add_cpu()?;
    guest.fill()?;
    guest.crash(1)?.complete()
}

/// All is left out that can be.
fn defaults(lab: &Lab, name: &str) -> Result<()> {
    let (crashed, core) = dumped(lab.guest(name, V6_12)?, &[])?;
    let memory = crashed.report()?["memory"].clone();
    ensure!(
        memory["format"] == "kdump-compressed, zstd" && memory["dump_level"] == 31,
        "report.json says {memory}"
    );
    let manifest = crashed.manifest.as_ref().context("no memory was filled")?;
    let findings = core.compare(manifest, &crashed.hot_added)?;
    ensure!(findings.missing == findings.pages, "pages of a user's program are in the dump: {findings}");
    Ok(())
}

fn filtered(lab: &Lab, name: &str) -> Result<()> {
    without_free_pages(lab.guest(name, V6_12)?, "zstd")
}

fn filtered_zlib(lab: &Lab, name: &str) -> Result<()> {
    without_free_pages(lab.guest(name, V6_12)?, "zlib")
}

fn filtered_lzo(lab: &Lab, name: &str) -> Result<()> {
    without_free_pages(lab.guest(name, V6_12)?, "lzo")
}

/// Free pages are left out, others kept.
pub(super) fn without_free_pages(plan: Plan<'_>, codec: &str) -> Result<()> {
    let (crashed, core) = dumped(plan, &["--dump-level", "17", "--compression", codec])?;
    let memory: u64 = crashed.before.online_bytes();
    ensure!(core.held() < memory * 9 / 10, "of {memory} bytes of memory {} are in the dump", core.held());
    let manifest = crashed.manifest.as_ref().context("no memory was filled")?;
    core.compare(manifest, &crashed.hot_added)?.all_right()
}

/// A dump as `hotdump initramfs` with these options has it taken, in a capture kernel.
fn dumped(plan: Plan<'_>, options: &[&str]) -> Result<(Crashed, Core)> {
    let mut guest = plan.boot()?;
    guest.make_initramfs_with(options)?;
    guest.load(By::Load, &["--hotplug"])?;
    guest.add_memory(DIMM)?;
    let new_cpu = guest.add_cpu()?;
    guest.verify_says_complete()?;
    guest.fill_at_most(96 * MIB)?;
    let crashed = guest.crash(new_cpu)?;
    let report = crashed.report()?;
    crashed.tell.say(format!("memory: {}; seconds: {}", report["memory"], report["seconds"]));
    let core = Core::open(&crashed.dump()?.vmcore()?, crashed.arch)?;
    crashed.has_notes(&core)?;
    Ok((crashed, core))
}

/// The main job: load, add memory and a CPU, panic, capture, check.
pub(super) struct Round {
    pub(super) kernel: KernelLine,
    pub(super) by: By,
    pub(super) dimms: u64,
    /// Take the first of them out again.
    pub(super) remove: bool,
    /// Panic on the new CPU instead of the first.
    pub(super) on_new_cpu: bool,
}

impl Round {
    pub(super) fn run(self, lab: &Lab, name: &str) -> Result<()> {
        let mut plan = lab.guest(name, self.kernel)?;
        if self.remove {
            plan = plan.cmdline("memhp_default_state=online_movable");
        }
        let mut guest = plan.boot()?;
        guest.make_initramfs()?;
        guest.load(self.by, if self.by == By::Load { &["--hotplug"] } else { &[] })?;
        let dimms = (0..self.dimms).map(|_| guest.add_memory(DIMM)).collect::<Result<Vec<_>>>()?;
        let new_cpu = guest.add_cpu()?;
        guest.verify_says_complete()?;
        let removed = match dimms.first().filter(|_| self.remove) {
            Some(first) => guest.remove_memory(first, DIMM)?,
            None => Vec::new(),
        };
        guest.verify_says_complete()?;
        guest.fill_at_most(self.dimms * DIMM + OLD_MEMORY)?;
        let crashed = guest.crash(if self.on_new_cpu { new_cpu } else { 0 })?;
        let (core, findings) = crashed.compare()?;
        crashed.is_complete(&core, &findings)?;
        core.lacks(&removed)?;
        crashed.saved_by_hotdump()
    }
}

fn load_6_12(lab: &Lab, name: &str) -> Result<()> {
    Round { kernel: V6_12, by: By::Load, dimms: 2, remove: false, on_new_cpu: true }.run(lab, name)
}

fn file_6_12(lab: &Lab, name: &str) -> Result<()> {
    Round { kernel: V6_12, by: By::FileLoad, dimms: 1, remove: false, on_new_cpu: false }.run(lab, name)
}

fn load_7(lab: &Lab, name: &str) -> Result<()> {
    Round { kernel: V7, by: By::Load, dimms: 1, remove: false, on_new_cpu: false }.run(lab, name)
}

fn file_7(lab: &Lab, name: &str) -> Result<()> {
    Round { kernel: V7, by: By::FileLoad, dimms: 1, remove: false, on_new_cpu: true }.run(lab, name)
}

fn uefi(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = lab.guest(name, V6_12)?.uefi().boot()?;
    guest.run(["test", "-d", "/sys/firmware/efi"])?.ok()?;
    guest.make_initramfs()?;
    guest.load(By::Load, &["--hotplug"])?;
    guest.add_memory(DIMM)?;
    guest.verify_says_complete()?;
    guest.fill_at_most(DIMM + OLD_MEMORY)?;
    let crashed = guest.crash(1)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()?;
    ensure!(
        crashed.console()?.matches("efi: EFI v").count() == 2,
        "the capture kernel did not see the EFI firmware"
    );
    Ok(())
}

fn high(lab: &Lab, name: &str) -> Result<()> {
    // Of 3 GiB this machine has one above the 4 GiB line. Movable memory is what programs get first.
    let plan = lab.guest(name, V6_12)?.memory(3 * GIB).cmdline("memhp_default_state=online_movable");
    let mut guest = plan.crashkernel("256M,high").boot()?;
    let reserved = guest.shell("grep 'Crash kernel' /proc/iomem")?;
    let above = reserved.ok()?.lines().any(|line| line.find('-').is_some_and(|digits| digits > 8));
    ensure!(above, "no reservation above 4 GiB:\n{reserved}");
    guest.make_initramfs()?;
    guest.load(By::Load, &["--hotplug"])?;
    guest.add_memory(DIMM)?;
    guest.verify_says_complete()?;
    guest.fill_at_most(DIMM + OLD_MEMORY)?;
    let crashed = guest.crash(0)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()
}

fn busybox(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = lab.guest(name, V6_12)?.busybox_capture().boot()?;
    guest.load(By::Load, &["--hotplug"])?;
    guest.add_memory(DIMM)?;
    guest.add_cpu()?;
    guest.verify_says_complete()?;
    guest.fill_at_most(DIMM + OLD_MEMORY)?;
    guest.crash(0)?.complete()
}

fn stale_6_1(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = lab.guest(name, V6_1)?.boot()?;
    guest.make_initramfs()?;
    guest.load(By::Load, &[])?;
    guest.verify_says_complete()?;
    guest.add_memory(DIMM)?;
    let named = guest.verify_names_missing_memory()?;
    guest.fill_at_most(DIMM + OLD_MEMORY)?;
    let crashed = guest.crash(0)?;
    let (core, findings) = crashed.compare()?;
    ensure!(
        named == crashed.hot_added,
        "verify named {named:x?}, what was added is {:x?}",
        crashed.hot_added
    );
    ensure!(findings.wrong == 0, "{findings}");
    ensure!(findings.missing == findings.hot_pages && findings.missing > 0, "{findings}");
    // What verify named before, the capture has to say.
    let console = crashed.console()?;
    for range in &crashed.hot_added {
        let said = format!("the crash header is out of date: {} MiB", (range.end - range.start) / MIB);
        ensure!(console.contains(&said), "the console does not say {said:?}");
        ensure!(core.missing_from(range) == [range.clone()], "the dump holds parts of {range:x?}");
    }
    crashed.has_notes(&core)
}
