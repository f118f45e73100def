//! A panic at the worst moment: while the kernel's own handler changes the crash header, while a new image replaces the
//! old, and while the module changes the header. The first two are on record here because nothing is saved then.

use anyhow::{Context, Result, ensure};

use super::module::{LOAD, MODULE, plan};
use super::scenarios;
use crate::cache::KernelLine::{self, V6_1, V6_12};
use crate::guest::{Crashed, Guest, block_line};
use crate::lab::Lab;
use crate::machine::MIB;
use crate::product::{By, CAPTURE};

scenarios! {
    contrast_module: "a panic in the middle of the module's change on 6.12, put there by a test module: a good dump",
    ; long:
    contrast_native: "for contrast, the same while 6.12's own handler follows added memory: nothing is saved",
    contrast_reload: "for contrast, a panic while kexec-tools loads over an image on 6.1: nothing is saved",
    contrast_reload_6_12: "the same as contrast_reload on 6.12",
}

/// Where the module that panics is in a guest.
const PANIC_AT: &str = "/panic_at.ko";

/// A memory block.
const BLOCK: u64 = 128 * MIB;
/// Memory that is filled with the pattern.
const SAMPLE: u64 = 64 * MIB;

/// Boots a guest with a capture initramfs, both modules at hand and a memory block more than at boot, which is offline.
/// Gives the line of shell by which the block comes online.
fn boot(lab: &Lab, name: &str, line: KernelLine) -> Result<(Guest, String)> {
    let panic_at = lab.test_module(&lab.kernel(line)?, "panic_at")?;
    let mut guest = plan(lab, name, line)?.file(PANIC_AT, 0o644, &panic_at).boot()?;
    guest.make_initramfs()?;
    guest.add_memory(BLOCK)?;
    let last = guest.state()?.online_blocks.last().copied().context("no memory block is online")?;
    guest.set_block(last, false)?;
    guest.fill_at_most(SAMPLE)?;
    Ok((guest, block_line(last, true)))
}

/// From now on the kernel panics when it has entered `symbol` more than `skip` times; an image is loaded and whole.
fn panic_at(guest: &mut Guest, symbol: &str, skip: u32) -> Result<()> {
    guest.verify_says_complete()?;
    guest.run(["insmod", PANIC_AT, &format!("symbol={symbol}"), &format!("skip={skip}")])?.ok().map(drop)
}

/// The panic must have come at `symbol`; gives what the console showed from there on.
fn after_panic(crashed: &Crashed, symbol: &str) -> Result<String> {
    let console = crashed.console()?;
    let panic = format!("Kernel panic - not syncing: panic_at: {symbol}");
    let (_, after) = console.split_once(&panic).with_context(|| format!("no {panic:?} on the console"))?;
    Ok(after.to_owned())
}

/// No capture kernel may have come up, and no dump been written: otherwise this record is out of date.
fn nothing_saved(crashed: &Crashed, symbol: &str, when: &str) -> Result<()> {
    let after = after_panic(crashed, symbol)?;
    ensure!(!after.contains("Linux version"), "a capture kernel came up after all:\n{after}");
    let missing = crashed.dump().map(|dump| dump.origin.clone());
    let why = missing.err().context("there is a dump after all")?;
    ensure!(why.to_string().contains("saved nothing"), "{why:#}");
    crashed.tell.say(format!(
        "panic at {symbol}, {when}: the image was whole before, no capture kernel came up, no dump"
    ));
    Ok(())
}

fn contrast_native(lab: &Lab, name: &str) -> Result<()> {
    const SYMBOL: &str = "arch_crash_handle_hotplug_event";
    let (mut guest, add_memory) = boot(lab, name, V6_12)?;
    guest.load(By::Load, &["--keep", "native"])?;
    panic_at(&mut guest, SYMBOL, 0)?;
    let crashed = guest.crash_by_running(&add_memory)?;
    nothing_saved(&crashed, SYMBOL, "while the kernel's own handler follows added memory")
}

fn contrast_reload(lab: &Lab, name: &str) -> Result<()> {
    reload(lab, name, V6_1)
}

fn contrast_reload_6_12(lab: &Lab, name: &str) -> Result<()> {
    reload(lab, name, V6_12)
}

fn reload(lab: &Lab, name: &str, line: KernelLine) -> Result<()> {
    const SYMBOL: &str = "kimage_load_segment";
    let (mut guest, _) = boot(lab, name, line)?;
    guest.load(By::Load, &["--keep", "reload"])?;
    // Some segments of the new image are in place, others are not.
    panic_at(&mut guest, SYMBOL, 2)?;
    let append = "console=ttyS0 panic=-1 nr_cpus=1 reset_devices irqpoll acpi_no_memhotplug";
    let kernel = format!("/boot/vmlinuz-{}", guest.kernel.release);
    let crashed =
        guest.crash_by_running(&format!("kexec -p {kernel} --initrd={CAPTURE} --append='{append}'"))?;
    nothing_saved(&crashed, SYMBOL, "while kexec-tools' new image replaces the old")
}

fn contrast_module(lab: &Lab, name: &str) -> Result<()> {
    // The module calls this after each store, while it is to panic after one: here, far more than it will do. An added block
    // takes seven.
    const SYMBOL: &str = "hd_stored";
    let (mut guest, add_memory) = boot(lab, name, V6_12)?;
    guest.run(["insmod", MODULE])?.ok()?;
    guest.load(By::Load, LOAD)?;
    guest.shell("echo 1000000 > /sys/module/hotdump/parameters/panic_after_store")?.ok()?;
    panic_at(&mut guest, SYMBOL, 3)?;
    let crashed = guest.crash_by_running(&add_memory)?;
    after_panic(&crashed, SYMBOL)?;
    let (core, findings) = crashed.compare()?;
    findings.all_right()?;
    crashed.has_notes(&core)?;
    crashed.tell.say(format!("panic at {SYMBOL}, in the middle of the module's change: a good dump"));
    Ok(())
}
