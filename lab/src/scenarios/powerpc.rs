//! The rounds of the other architecture, on PowerPC: stories that stand elsewhere, with its kernels.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::judged::judged;
use super::module::{LOAD, Panic, boot, follow, plan, stores};
use super::personality;
use super::rounds::{Round, control_on, without_free_pages};
use super::scenarios;
use super::stores::{every, panic_after, some};
use super::storm::Storm;
use crate::cache::KernelLine::{self, Ppc64V6_1, Ppc64V6_12, Ppc64V6_12Pages64K};
use crate::debian::{output, run};
use crate::guest::Guest;
use crate::lab::{Lab, Plan};
use crate::machine::MIB;
use crate::product::By;

scenarios! {
    on Ppc64;
    ppc64le_load_6_12: "PowerPC, 6.12's own handler: two DIMMs and a core added, a DIMM removed, the new core panics",
    ; long:
    ppc64le_control: "PowerPC, kexec-tools and a busybox capture on 6.12: the lab itself can be trusted",
    ppc64le_load_6_12_cpu0: "the same as ppc64le_load_6_12, CPU 0 panics",
    ppc64le_load_6_12_64k: "the same as ppc64le_load_6_12 with pages of 64 KiB",
    ppc64le_module_6_1: "PowerPC, the module on 6.1: two DIMMs and a core added, a DIMM removed, the new core panics",
    ppc64le_module_6_1_cpu0: "the same as ppc64le_module_6_1, CPU 0 panics",
    ppc64le_module_6_12: "the same on 6.12, whose own handler is left out; the new core panics",
    ppc64le_module_6_12_cpu0: "the same, CPU 0 panics",
    ppc64le_module_6_12_64k: "the same as ppc64le_module_6_12 with pages of 64 KiB",
    ppc64le_personality: "PowerPC, kexec command lines mean to hotdump what they mean to kexec-tools",
    ppc64le_tree: "PowerPC, the module on 6.1: a panic after each step to a device tree with a CPU more",
    ppc64le_stores: "PowerPC, a panic after a middle store of each kind of change to memory",
    ppc64le_stores_full: "the same after every single store; HOTDUMP_LAB_CHANGE=grow: only of that kind of change",
    ppc64le_storm: "PowerPC, the module on 6.1: 100 random events while a program loads, unloads and verifies",
    ppc64le_filtered: "PowerPC, 6.12 at level 17: free pages out, every page of a user's program in",
    ppc64le_filtered_hash: "the same where the CPU translates addresses by a hash table",
    ppc64le_filtered_hash_64k: "the same with pages of 64 KiB",
    ppc64le_judged_6_12: "PowerPC, 6.12 panics under load: drgn and crash find the same in its dump of level 31 as in the raw one",
}

fn ppc64le_control(lab: &Lab, name: &str) -> Result<()> {
    control_on(lab, name, Ppc64V6_12)
}

/// By the kernel's own handler.
fn native(lab: &Lab, name: &str, kernel: KernelLine, on_new_cpu: bool) -> Result<()> {
    Round { kernel, by: By::Load, dimms: 2, remove: true, on_new_cpu }.run(lab, name)
}

fn ppc64le_load_6_12(lab: &Lab, name: &str) -> Result<()> {
    native(lab, name, Ppc64V6_12, true)
}

fn ppc64le_load_6_12_cpu0(lab: &Lab, name: &str) -> Result<()> {
    native(lab, name, Ppc64V6_12, false)
}

fn ppc64le_load_6_12_64k(lab: &Lab, name: &str) -> Result<()> {
    native(lab, name, Ppc64V6_12Pages64K, true)
}

fn ppc64le_module_6_1(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, Ppc64V6_1, Panic::OnTheNewOne)
}

fn ppc64le_module_6_1_cpu0(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, Ppc64V6_1, Panic::On(0))
}

fn ppc64le_module_6_12(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, Ppc64V6_12, Panic::OnTheNewOne)
}

fn ppc64le_module_6_12_cpu0(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, Ppc64V6_12, Panic::On(0))
}

fn ppc64le_module_6_12_64k(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, Ppc64V6_12Pages64K, Panic::OnTheNewOne)
}

fn ppc64le_stores(lab: &Lab, name: &str) -> Result<()> {
    panic_after(lab, name, Ppc64V6_1, some)
}

fn ppc64le_stores_full(lab: &Lab, name: &str) -> Result<()> {
    panic_after(lab, name, Ppc64V6_1, every)
}

fn ppc64le_storm(lab: &Lab, name: &str) -> Result<()> {
    Storm { line: Ppc64V6_1, events: 100, seed: 5 }.run(lab, name)
}

fn ppc64le_filtered(lab: &Lab, name: &str) -> Result<()> {
    without_free_pages(lab.guest(name, Ppc64V6_12)?, "zstd")
}

/// Without radix translation, as on POWER8.
fn by_hash<'a>(lab: &'a Lab, name: &str, kernel: KernelLine) -> Result<Plan<'a>> {
    Ok(lab.guest(name, kernel)?.cmdline("disable_radix"))
}

fn ppc64le_filtered_hash(lab: &Lab, name: &str) -> Result<()> {
    without_free_pages(by_hash(lab, name, Ppc64V6_12)?, "zstd")
}

fn ppc64le_filtered_hash_64k(lab: &Lab, name: &str) -> Result<()> {
    without_free_pages(by_hash(lab, name, Ppc64V6_12Pages64K)?, "zstd")
}

fn ppc64le_judged_6_12(lab: &Lab, name: &str) -> Result<()> {
    judged(lab, name, Ppc64V6_12)
}

fn ppc64le_personality(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = personality::boot(lab.guest(name, Ppc64V6_12)?.busybox_capture())?;
    let own = guest.read("/sys/firmware/fdt")?;
    guest.write(personality::TREE, 0o600, &version_17(&own, &lab.paths(name).dir.join("tree.dtb"))?)?;
    personality::run_cases(&mut guest, &["ppc64"])
}

/// Where the guest has a device tree that lacks a CPU.
const STALE_TREE: &str = "/stale.dtb";

/// A new CPU brings a new device tree, which is written beside the one in force before that is changed for it. Here the CPU
/// has come between plan and arming: QEMU's system reset, which stops CPUs at a panic, also starts one that is
/// plugged in and was never started, and what that does then is nobody's doing.
fn ppc64le_tree(lab: &Lab, name: &str) -> Result<()> {
    let begin = || -> Result<Guest> {
        let mut guest = boot(plan(lab, name, Ppc64V6_1)?)?;
        let tree = tree_without_cpu(&guest.read("/sys/firmware/fdt")?, &lab.paths(name).dir)?;
        guest.write(STALE_TREE, 0o600, &tree)?;
        guest.fill_at_most(64 * MIB)?;
        Ok(guest)
    };
    let mut guest = begin()?;
    guest.load(By::Load, &[LOAD, &["--dtb", STALE_TREE]].concat())?;
    guest.verify_says_complete()?;
    let steps = stores(&mut guest)?;
    ensure!(steps > 1, "a new CPU took {steps} steps");
    drop(guest);
    for step in 1..=steps {
        let told = format!("step {step} of {steps}");
        let mut guest = begin()?;
        guest.shell(&format!("echo {step} > /sys/module/hotdump/parameters/panic_after_store"))?.ok()?;
        // On a CPU that both trees have.
        let load = format!("taskset 1 {}", guest.load_command(By::Load, LOAD)?.join(" "));
        let crashed = guest.crash_by_running(&format!("{load} --dtb {STALE_TREE}"))?;
        let console = crashed.console()?;
        ensure!(console.contains("as many stores as panic_after_store asked for"), "{told}: another panic");
        crashed.complete().with_context(|| told.clone())?;
        crashed.tell.say(format!("{told}: a good dump"));
    }
    Ok(())
}

/// A tree in the version that `--dtb` takes, also as the file `to`.
fn version_17(tree: &[u8], to: &Path) -> Result<Vec<u8>> {
    let own = to.with_extension("own");
    fs::write(&own, tree)?;
    run(Command::new("dtc").args(["-q", "-I", "dtb", "-O", "dtb", "-V", "17", "-o"]).arg(to).arg(&own))?;
    Ok(fs::read(to)?)
}

/// The guest's own tree without its second CPU, in the version that `--dtb` takes.
fn tree_without_cpu(tree: &[u8], dir: &Path) -> Result<Vec<u8>> {
    let stale = dir.join("stale.dtb");
    version_17(tree, &stale)?;
    let cpus = output(Command::new("fdtget").arg("-l").arg(&stale).arg("/cpus"))?;
    let second = cpus.lines().filter(|node| node.starts_with("PowerPC,")).nth(1);
    let second = second.with_context(|| format!("the guest's tree has no second CPU: {cpus}"))?;
    run(Command::new("fdtput").arg("-r").arg(&stale).arg(format!("/cpus/{second}")))?;
    Ok(fs::read(stale)?)
}
