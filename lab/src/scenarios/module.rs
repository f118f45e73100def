//! The kernel module, on kernels that cannot keep a crash header current, or are not asked to.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::scenarios;
use crate::cache::KernelLine::{self, V6_1, V6_12};
use crate::guest::{Crashed, Guest};
use crate::lab::{Lab, Plan};
use crate::machine::MIB;
use crate::product::By;

scenarios! {
    module_6_1: "the module on 6.1: two DIMMs and a CPU added, a DIMM removed, the new CPU panics",
    module_6_1_cpu0: "the same, CPU 0 panics",
    module_6_12: "the same on 6.12, whose own handler is left out",
    module_stores_add: "the module on 6.1, and a panic after each store of an added block: every dump is good",
    module_stores_remove: "the same for a block that is removed",
    module_foreign: "the module on 6.1 lets go of its image before another program's load takes it",
}

/// Where the module is in a guest.
pub(super) const MODULE: &str = "/hotdump.ko";

/// Describes a guest that has the module, and memory that can be taken out again.
pub(super) fn plan<'a>(lab: &'a Lab, name: &str, line: KernelLine) -> Result<Plan<'a>> {
    let kernel = lab.sources.cache.kernel(line)?;
    let module = lab.module(&kernel.release)?;
    // Only memory that holds nothing of the kernel's own can be taken out again.
    Ok(lab.guest(name, line)?.file(MODULE, 0o644, &module).cmdline("memhp_default_state=online_movable"))
}

/// Boots a guest with the module in its kernel.
fn boot(lab: &Lab, name: &str, line: KernelLine) -> Result<Guest> {
    let mut guest = plan(lab, name, line)?.boot()?;
    guest.run(["insmod", MODULE])?.ok()?;
    Ok(guest)
}

/// What `hotdump status` says of the module.
pub(super) fn status(guest: &mut Guest) -> Result<Value> {
    let answer = guest.run(["hotdump", "status", "--json"])?;
    let answer: Value = serde_json::from_str(&answer.ran.stdout).with_context(|| answer.to_string())?;
    Ok(answer["module"].clone())
}

/// The kernel must have warned of nothing.
pub(super) fn no_warning(guest: &mut Guest) -> Result<()> {
    let log = guest.run(["dmesg"])?.ran.stdout;
    for word in ["WARNING:", "BUG:", "Call Trace", "Oops", "scheduling while atomic"] {
        ensure!(!log.contains(word), "the kernel's log has {word:?}:\n{log}");
    }
    Ok(())
}

fn follow(lab: &Lab, name: &str, line: KernelLine, crash_on_new_cpu: bool) -> Result<()> {
    let mut guest = boot(lab, name, line)?;
    guest.make_initramfs()?;
    let loaded = guest.load(By::Load, &["--keep", "module"])?;
    loaded.says("the module keeps it current")?;
    // Where the kernel has these files they speak of its own handler.
    for kind in if line == V6_1 { &["cpu", "memory"][..] } else { &[] } {
        let node = guest.read_text(&format!("/sys/devices/system/{kind}/crash_hotplug"))?;
        ensure!(node == "1", "{kind}/crash_hotplug does not say 1");
    }
    guest.verify_says_complete()?;
    let first = guest.add_memory(256 * MIB)?;
    guest.verify_says_complete()?;
    guest.add_memory(256 * MIB)?;
    let new_cpu = guest.add_cpu()?;
    guest.verify_says_complete()?;
    guest.remove_memory(&first, 256 * MIB)?;
    guest.verify_says_complete()?;
    let status = status(&mut guest)?;
    guest.say(format!("module: {status}"));
    ensure!(status["armed"] == true, "the module let go: {status}");
    no_warning(&mut guest)?;
    guest.fill()?;
    let crashed = guest.crash(if crash_on_new_cpu { new_cpu } else { 0 })?;
    crashed.complete()?;
    crashed.saved_by_hotdump()?;
    Ok(())
}

fn module_6_1(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, V6_1, true)
}

fn module_6_1_cpu0(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, V6_1, false)
}

fn module_6_12(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, V6_12, true)
}

/// Memory that is filled with the pattern where a panic in the middle of a change is to be looked at.
const SAMPLE: u64 = 64 * MIB;

/// Boots, loads, and has the kernel panic after store `store` from now on.
fn until_store(lab: &Lab, name: &str, store: u32, dimm: bool) -> Result<(Guest, Option<String>)> {
    let mut guest = boot(lab, name, V6_1)?;
    guest.make_initramfs()?;
    guest.load(By::Load, &["--keep", "module"])?;
    // The pattern first: memory that goes must hold none of it.
    guest.fill_at_most(SAMPLE)?;
    let dimm = if dimm { Some(guest.add_memory(128 * MIB)?) } else { None };
    guest.shell(&format!("echo {store} > /sys/module/hotdump/parameters/panic_after_store"))?.ok()?;
    Ok((guest, dimm))
}

/// The dump must be whole, and from that panic.
fn good_dump(crashed: &Crashed) -> Result<()> {
    let console = crashed.console()?;
    ensure!(console.contains("as many stores as panic_after_store asked for"), "another panic");
    let (core, findings) = crashed.compare()?;
    findings.all_right()?;
    crashed.has_notes(&core)
}

/// A new entry behind the last: four fields, type, two sizes, and the count; alignment stays 0.
fn module_stores_add(lab: &Lab, name: &str) -> Result<()> {
    for store in 1..=7 {
        let (guest, _) = until_store(lab, name, store, false)?;
        let crashed = guest.crash_by_adding_memory(128 * MIB)?;
        good_dump(&crashed).with_context(|| format!("after store {store}"))?;
        crashed.tell.say(format!("after store {store} of an added block: a good dump"));
    }
    Ok(())
}

/// An entry that goes: its six fields that are not 0.
fn module_stores_remove(lab: &Lab, name: &str) -> Result<()> {
    for store in 1..=6 {
        let (guest, dimm) = until_store(lab, name, store, true)?;
        let crashed = guest.crash_by_removing_memory(&dimm.context("no memory module")?)?;
        good_dump(&crashed).with_context(|| format!("after store {store}"))?;
        crashed.tell.say(format!("after store {store} of a removed block: a good dump"));
    }
    Ok(())
}

fn module_foreign(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = boot(lab, name, V6_1)?;
    guest.make_initramfs()?;
    guest.load(By::Load, &["--keep", "module"])?;
    let append = "console=ttyS0 panic=-1 nr_cpus=1";
    let theirs = format!("/usr/sbin/kexec -p /boot/vmlinuz-* --append='{append}'");
    guest.shell(&theirs)?.ok()?;
    let now = status(&mut guest)?;
    ensure!(now["armed"] == false, "the module still follows: {now}");
    ensure!(now["reason"].as_str().is_some_and(|why| why.contains("loaded or unloaded")), "{now}");
    // What came is theirs alone: the module does not touch it.
    guest.add_memory(256 * MIB)?;
    guest.verify_names_missing_memory()?;
    // Ours again, up to the machine, and let go on unload and on rmmod.
    guest.load(By::Load, &["--keep", "auto"])?.says("hotdump.ko is loaded")?;
    guest.verify_says_complete()?;
    guest.run(["hotdump", "unload"])?.ok()?;
    ensure!(status(&mut guest)?["armed"] == false, "the module follows an image that was unloaded");
    guest.load(By::Load, &["--keep", "module"])?;
    guest.run(["rmmod", "hotdump"])?.ok()?;
    ensure!(
        !guest.has("/sys/devices/system/memory/crash_hotplug")?,
        "crash_hotplug stays without the module"
    );
    guest.run(["insmod", MODULE])?.ok()?;
    ensure!(status(&mut guest)?["armed"] == false, "the module follows from the start");
    no_warning(&mut guest)
}
