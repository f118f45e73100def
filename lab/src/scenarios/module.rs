//! The kernel module, on kernels that cannot keep a crash header current, or are not asked to.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::scenarios;
use crate::cache::KernelLine::{self, V6_1, V6_12, V7};
use crate::check::memory_of_header;
use crate::guest::Guest;
use crate::lab::{Lab, Plan};
use crate::machine::MIB;
use crate::product::By;

scenarios! {
    module_6_1: "the module on 6.1: two DIMMs and a CPU added, a DIMM removed, the new CPU panics",
    module_6_1_cpu0: "the same, CPU 0 panics",
    module_6_12: "the same on 6.12, whose own handler is left out; the new CPU panics",
    module_7: "the same on 7.x, the new CPU panics",
    module_foreign: "the module lets go of its image before another load or an unload, and touches nothing then",
    module_switches: "what the module no longer follows, switched off or removed, verify names",
    ; long:
    module_6_1_cpu1: "the same as module_6_1, CPU 1 panics",
    module_6_12_cpu0: "the same as module_6_12, CPU 0 panics",
    module_6_12_cpu1: "the same, CPU 1 panics",
}

/// How hotdump loads for the module.
pub(super) const LOAD: &[&str] = &["--keep", "module"];

/// Where the module is in a guest.
pub(super) const MODULE: &str = "/hotdump.ko";

/// What is added at a time.
const DIMM: u64 = 256 * MIB;

/// How much of the pattern goes into memory that was there at boot.
const OLD_MEMORY: u64 = 96 * MIB;

/// The kernel's parameter that leaves added memory to whoever brings it online.
pub(super) const LEAVE_OFFLINE: &str = "memhp_default_state=offline";

/// Describes a guest that has the module, and memory that can be taken out again.
pub(super) fn plan<'a>(lab: &'a Lab, name: &str, line: KernelLine) -> Result<Plan<'a>> {
    let kernel = lab.kernel(line)?;
    let module = lab.module(&kernel)?;
    // Only memory that holds nothing of the kernel's own can be taken out again.
    Ok(lab.guest(name, line)?.file(MODULE, 0o644, &module).cmdline("memhp_default_state=online_movable"))
}

/// Boots a guest with the module in its kernel and a capture initramfs.
pub(super) fn boot(plan: Plan<'_>) -> Result<Guest> {
    let mut guest = plan.boot()?;
    guest.run(["insmod", MODULE])?.ok()?;
    guest.make_initramfs()?;
    Ok(guest)
}

/// What `hotdump status` says of the module.
pub(super) fn status(guest: &mut Guest) -> Result<Value> {
    let answer = guest.run(["hotdump", "status", "--json"])?;
    let answer: Value = serde_json::from_str(&answer.ran.stdout).with_context(|| answer.to_string())?;
    Ok(answer["module"].clone())
}

/// How many stores to crash headers the module has made.
pub(super) fn stores(guest: &mut Guest) -> Result<u64> {
    status(guest)?["stores"].as_u64().context("status tells of no stores")
}

/// The module must follow no image, and say why by these words.
fn let_go(guest: &mut Guest, why: &str) -> Result<()> {
    let now = status(guest)?;
    ensure!(now["armed"] == false, "the module still follows: {now}");
    ensure!(now["reason"].as_str().is_some_and(|reason| reason.contains(why)), "{why:?} was expected: {now}");
    Ok(())
}

/// What `crash_hotplug` says for CPUs and for memory.
fn nodes(guest: &mut Guest) -> Result<[String; 2]> {
    let mut node = |kind| guest.read_text(&format!("/sys/devices/system/{kind}/crash_hotplug"));
    Ok([node("cpu")?, node("memory")?])
}

/// The kernel must have warned of nothing.
pub(super) fn no_warning(guest: &mut Guest) -> Result<()> {
    let log = guest.run(["dmesg"])?.ran.stdout;
    for word in ["WARNING:", "BUG:", "Call Trace", "Oops", "scheduling while atomic"] {
        ensure!(!log.contains(word), "the kernel's log has {word:?}:\n{log}");
    }
    Ok(())
}

/// Lets something happen to memory. The module must change the header over it, and that must be all right then.
fn followed<T>(guest: &mut Guest, event: impl FnOnce(&mut Guest) -> Result<T>) -> Result<T> {
    let before = stores(guest)?;
    let value = event(guest)?;
    let made = stores(guest)? - before;
    ensure!(made > 0, "the module stored nothing");
    guest.say(format!("the module made {made} stores"));
    guest.verify_says_complete()?;
    Ok(value)
}

/// Which CPU panics.
#[derive(Clone, Copy)]
pub(super) enum Panic {
    On(u32),
    OnTheNewOne,
}

/// Two memory modules and a CPU come, one memory module goes, and a CPU panics.
pub(super) fn follow(lab: &Lab, name: &str, line: KernelLine, panic: Panic) -> Result<()> {
    let mut guest = boot(plan(lab, name, line)?)?;
    guest.load(By::Load, LOAD)?.says("the module keeps it current")?;
    // Where the kernel has a handler of its own the files speak of that: it leaves this image alone.
    let answer = if line.has_handler() { "0" } else { "1" };
    ensure!(nodes(&mut guest)? == [answer, answer], "crash_hotplug says {:?}", nodes(&mut guest)?);
    guest.verify_says_complete()?;
    let first = followed(&mut guest, |guest| guest.add_memory(DIMM))?;
    followed(&mut guest, |guest| guest.add_memory(DIMM))?;
    let new_cpu = guest.add_cpu()?;
    guest.verify_says_complete()?;
    let removed = followed(&mut guest, |guest| guest.remove_memory(&first, DIMM))?;
    let now = status(&mut guest)?;
    guest.say(format!("module: {now}"));
    ensure!(now["armed"] == true && now["cpu_events"] == 1, "the module does not follow: {now}");
    guest.shell("dd if=/dev/hotdump of=/tmp/header bs=4096 count=1")?.ok()?;
    let named = memory_of_header(&guest.read("/tmp/header")?)?;
    let overlap = |one: &Range<u64>, other: &Range<u64>| one.start < other.end && other.start < one.end;
    let stale: Vec<_> =
        removed.iter().filter(|gone| named.iter().any(|named| overlap(gone, named))).collect();
    ensure!(!removed.is_empty() && stale.is_empty(), "{stale:x?} of {removed:x?} is still in the header");
    no_warning(&mut guest)?;
    guest.fill_at_most(DIMM + OLD_MEMORY)?;
    let crashed = guest.crash(match panic {
        Panic::On(cpu) => cpu,
        Panic::OnTheNewOne => new_cpu,
    })?;
    let (core, findings) = crashed.compare()?;
    crashed.is_complete(&core, &findings)?;
    crashed.saved_by_hotdump()?;
    core.lacks(&removed)
}

fn module_6_1(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, V6_1, Panic::OnTheNewOne)
}

fn module_6_1_cpu0(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, V6_1, Panic::On(0))
}

fn module_6_1_cpu1(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, V6_1, Panic::On(1))
}

fn module_6_12(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, V6_12, Panic::OnTheNewOne)
}

fn module_6_12_cpu0(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, V6_12, Panic::On(0))
}

fn module_6_12_cpu1(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, V6_12, Panic::On(1))
}

fn module_7(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, V7, Panic::OnTheNewOne)
}

/// What lets go of the image that the module follows: another load, or an unload.
const TAKERS: [&str; 4] = [
    "/usr/sbin/kexec -c -p /boot/vmlinuz-* --append='console=ttyS0 nr_cpus=1'",
    "hotdump load --syscall file --initrd /boot/initrd-capture.img",
    "/usr/sbin/kexec -p -u",
    "hotdump unload",
];

/// The kernel's log says so when somebody else takes the image.
const LET_GO: &str = "hotdump: follows the crash image no longer: a crash image is being loaded or unloaded";

fn module_foreign(lab: &Lab, name: &str) -> Result<()> {
    let small = plan(lab, name, V6_1)?.memory_in_file().dimm(128 * MIB);
    let mut guest = boot(small.cmdline(LEAVE_OFFLINE))?;
    let [block] = guest.offline_blocks()?[..] else { bail!("one block should be offline") };
    for (number, taker) in (1..).zip(TAKERS) {
        guest.load(By::Load, LOAD)?;
        guest.shell(taker)?.ok()?;
        guest.say(taker);
        let_go(&mut guest, "loaded or unloaded")?;
        let log = guest.run(["dmesg"])?.ran.stdout;
        let told = log.matches(LET_GO).count();
        ensure!(told == number, "the kernel's log tells of it {told} times instead of {number}:\n{log}");
        // What is in the reservation now, if anything, is not the module's: an event leaves every byte as it is.
        let (before, stored) = (guest.reserved_memory()?, status(&mut guest)?);
        guest.set_block(block, true)?;
        guest.set_block(block, false)?;
        let now = status(&mut guest)?;
        for count in ["memory_events", "stores"] {
            ensure!(now[count] == stored[count], "the module took an event that was none of its own: {now}");
        }
        ensure!(guest.reserved_memory()? == before, "something in the reservation has changed");
    }
    // Ours again, up to the machine, without being asked for the module.
    guest.load(By::Load, &["--keep", "auto"])?.says("hotdump.ko is loaded")?;
    followed(&mut guest, |guest| guest.set_block(block, true))?;
    no_warning(&mut guest)
}

fn module_switches(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = boot(plan(lab, name, V6_1)?.dimm(4 * 128 * MIB).cmdline(LEAVE_OFFLINE))?;
    let [first, second, third, fourth] = guest.offline_blocks()?[..] else {
        bail!("four blocks should be offline")
    };
    guest.load(By::Load, LOAD)?;
    // Each switch by itself; with both off there is nothing to follow.
    for (switch, left) in [("memory", ["1", "0"]), ("cpus", ["0", "0"])] {
        guest.shell(&format!("echo N > /sys/module/hotdump/parameters/{switch}"))?.ok()?;
        ensure!(nodes(&mut guest)? == left, "{switch} off: crash_hotplug says {:?}", nodes(&mut guest)?);
        if switch == "memory" {
            missed(&mut guest, first)?;
        }
    }
    let_go(&mut guest, "switched off")?;
    // Switched on again, they count from the next load on.
    guest.shell("cd /sys/module/hotdump/parameters && echo Y > memory && echo Y > cpus")?.ok()?;
    ensure!(nodes(&mut guest)? == ["0", "0"], "crash_hotplug says {:?} before a load", nodes(&mut guest)?);
    guest.load(By::Load, LOAD)?;
    ensure!(nodes(&mut guest)? == ["1", "1"], "crash_hotplug says {:?} after a load", nodes(&mut guest)?);
    followed(&mut guest, |guest| guest.set_block(second, true))?;
    // Without the module the image stays, and grows stale.
    guest.run(["rmmod", "hotdump"])?.ok()?;
    for kind in ["cpu", "memory"] {
        let node = format!("/sys/devices/system/{kind}/crash_hotplug");
        ensure!(!guest.has(&node)?, "{node} stays without the module");
    }
    ensure!(guest.read_text("/sys/kernel/kexec_crash_loaded")? == "1", "the image went with the module");
    guest.verify_says_complete()?;
    missed(&mut guest, third)?;
    // Loaded again it follows nothing until something is loaded for it.
    guest.run(["insmod", MODULE])?.ok()?;
    let_go(&mut guest, "no image was armed yet")?;
    guest.load(By::Load, LOAD)?;
    followed(&mut guest, |guest| guest.set_block(fourth, true))?;
    no_warning(&mut guest)
}

/// Brings a memory block online, which nobody follows: verify must name it, and nothing else.
fn missed(guest: &mut Guest, block: u64) -> Result<()> {
    guest.set_block(block, true)?;
    let size = guest.at_boot.block_size;
    let expected = block * size..(block + 1) * size;
    let named = guest.verify_names_missing_memory()?;
    ensure!(named == std::slice::from_ref(&expected), "verify names {named:x?} instead of {expected:x?}");
    Ok(())
}
