//! The main job on each kernel, by each way.

use anyhow::{Result, ensure};

use super::scenarios;
use crate::cache::KernelLine::{self, V6_1, V6_12, V7};
use crate::lab::{BUSYBOX_CAPTURE, Lab};
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
    stale_6_1: "6.1 has no crash hotplug: the added memory is missing, and verify had named it",
}

/// kexec-tools loads, a shell script captures.
fn control(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = lab.guest(name, V6_12)?.busybox_capture().boot()?;
    let append = "console=ttyS0 panic=-1 nr_cpus=1 reset_devices irqpoll acpi_no_memhotplug";
    let line = format!("kexec -p /boot/vmlinuz-* --initrd={BUSYBOX_CAPTURE} --hotplug --append='{append}'");
    guest.shell(&line)?.ok()?;
    guest.add_memory(256 * MIB)?;
    guest.add_cpu()?;
    guest.fill()?;
    guest.crash(1)?.complete()?;
    Ok(())
}

/// The main job: load, add memory and a CPU, panic, capture, check.
fn round(lab: &Lab, name: &str, line: KernelLine, by: By, dimms: u32, crash_on_new_cpu: bool) -> Result<()> {
    let mut guest = lab.guest(name, line)?.boot()?;
    guest.make_initramfs()?;
    guest.load(by, if by == By::Load { &["--hotplug"] } else { &[] })?;
    for _ in 0..dimms {
        guest.add_memory(256 * MIB)?;
    }
    let new_cpu = guest.add_cpu()?;
    guest.verify_says_complete()?;
    guest.fill()?;
    let crashed = guest.crash(if crash_on_new_cpu { new_cpu } else { 0 })?;
    crashed.complete()?;
    crashed.saved_by_hotdump()?;
    Ok(())
}

fn load_6_12(lab: &Lab, name: &str) -> Result<()> {
    round(lab, name, V6_12, By::Load, 2, true)
}

fn file_6_12(lab: &Lab, name: &str) -> Result<()> {
    round(lab, name, V6_12, By::FileLoad, 1, false)
}

fn load_7(lab: &Lab, name: &str) -> Result<()> {
    round(lab, name, V7, By::Load, 1, false)
}

fn file_7(lab: &Lab, name: &str) -> Result<()> {
    round(lab, name, V7, By::FileLoad, 1, true)
}

fn uefi(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = lab.guest(name, V6_12)?.uefi().boot()?;
    guest.run(["test", "-d", "/sys/firmware/efi"])?.ok()?;
    guest.make_initramfs()?;
    guest.load(By::Load, &["--hotplug"])?;
    guest.add_memory(256 * MIB)?;
    guest.verify_says_complete()?;
    guest.fill()?;
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
    guest.add_memory(256 * MIB)?;
    guest.verify_says_complete()?;
    guest.fill_at_most(512 * MIB)?;
    let crashed = guest.crash(0)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()?;
    Ok(())
}

fn busybox(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = lab.guest(name, V6_12)?.busybox_capture().boot()?;
    guest.load(By::Load, &["--hotplug"])?;
    guest.add_memory(256 * MIB)?;
    guest.add_cpu()?;
    guest.verify_says_complete()?;
    guest.fill()?;
    guest.crash(0)?.complete()?;
    Ok(())
}

fn stale_6_1(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = lab.guest(name, V6_1)?.boot()?;
    guest.make_initramfs()?;
    guest.load(By::Load, &[])?;
    guest.verify_says_complete()?;
    guest.add_memory(256 * MIB)?;
    let named = guest.verify_names_missing_memory()?;
    guest.fill()?;
    let crashed = guest.crash(0)?;
    let (core, findings) = crashed.compare()?;
    ensure!(
        named == crashed.hot_added,
        "verify named {named:x?}, what was added is {:x?}",
        crashed.hot_added
    );
    ensure!(findings.wrong == 0, "{findings}");
    ensure!(findings.missing == findings.hot_pages && findings.missing > 0, "{findings}");
    for range in &crashed.hot_added {
        ensure!(core.missing_from(range) == [range.clone()], "the dump holds parts of {range:x?}");
    }
    crashed.has_notes(&core)
}
