//! Captures that something goes wrong in: what is saved must be usable, and what is not must be said.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::scenarios;
use crate::cache::KernelLine::V6_12;
use crate::check::{Core, Findings};
use crate::guest::{Crashed, Frozen, Guest};
use crate::lab::Lab;
use crate::machine::MIB;
use crate::product::{By, PANIC_LINE};

scenarios! {
    ;
    long:
    failures: "a full disk twice, a failing one, a machine switched off in the midst of saving: what was saved is usable, what was not is said",
    ceiling: "the capture kernel has 96 MiB",
}

/// How much memory programs fill. It does not shrink.
const FILL: u64 = 192 * MIB;
/// Room for the kernel's pages, not for those of programs.
const TOO_SMALL: u64 = 128 * MIB;
/// Not even for those.
const FAR_TOO_SMALL: u64 = 20 * MIB;
/// A dump is cut off once this much of it is said to be written, in percent.
const HALF: u64 = 50;

fn failures(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = lab.guest(name, V6_12)?.boot()?;
    guest.make_initramfs_with(&["--dump-level", "0"])?;
    guest.load(By::Load, &["--hotplug"])?;
    let frozen = guest.freeze()?;
    raised(&frozen)?;
    full(&frozen)?;
    failing(&frozen)?;
    switched_off(&frozen)
}

/// A level was asked for whose dump does not fit: another is taken, which does.
fn raised(frozen: &Frozen) -> Result<()> {
    let crashed = filled(frozen.clone().dump_disk(TOO_SMALL).thaw()?)?.crash(0)?;
    let report = crashed.report()?;
    let memory = &report["memory"];
    crashed.tell.say(format!("too small a disk: {}", report["memory"]));
    let level = memory["dump_level"].as_u64().context("the report has no level")?;
    ensure!(memory["dump_level_asked"] == 0 && level & 8 != 0, "report.json says {memory}");
    let why = memory["dump_level_reasons"][0].as_str().unwrap_or_default();
    ensure!(why.starts_with("a dump of level 0 needs about "), "report.json says {memory}");
    says(&crashed, "leaving more pages out")?;
    let core = Core::open(&crashed.dump()?.vmcore()?, crashed.arch)?;
    crashed.has_notes(&core)?;
    let findings = found(&crashed, &core)?;
    ensure!(findings.missing == findings.pages, "pages of programs are in the dump: {findings}");
    Ok(())
}

/// Nothing fits whole: what does is there.
fn full(frozen: &Frozen) -> Result<()> {
    let crashed = filled(frozen.clone().dump_disk(FAR_TOO_SMALL).thaw()?)?.crash(0)?;
    says(&crashed, "the dump may not fit; what fits will be readable")?;
    says(&crashed, "No space left on device")?;
    partial(&crashed, "far too small a disk").map(drop)
}

/// The disk takes no more from some place on.
fn failing(frozen: &Frozen) -> Result<()> {
    let crashed = filled(frozen.clone().failing_disk().thaw()?)?.crash(0)?;
    says(&crashed, "Input/output error")?;
    says(&crashed, "are given up; all others are readable")?;
    let findings = partial(&crashed, "a failing disk")?;
    let report: Value = serde_json::from_str(&crashed.dump()?.text("report.json")?).context("report.json")?;
    let lost = &report["memory"]["lost_pages"];
    ensure!(lost.as_u64().is_some_and(|pages| pages > 0), "report.json counts {lost} pages as lost");
    says(&crashed, &format!("{lost} pages lay there and are given up"))?;
    ensure!(findings.pages > findings.missing, "no page of programs is in the dump: {findings}");
    Ok(())
}

/// Nobody is there to say anything; what had reached the disk is usable.
fn switched_off(frozen: &Frozen) -> Result<()> {
    let guest = filled(frozen.thaw()?)?;
    let crashed = guest.crash_and_switch_off(0, |console| percent(console) >= Some(HALF))?;
    crashed.repair_disk()?;
    let core = open_partial(&crashed)?;
    let findings = found(&crashed, &core)?;
    crashed.tell.say(format!("switched off: {} MiB are in the dump; {findings}", core.held() / MIB));
    ensure!(findings.wrong == 0 && findings.pages > findings.missing, "{findings}");
    crashed.has_notes(&core)
}

/// How much the capture said to have written when it last said it.
fn percent(console: &str) -> Option<u64> {
    let line = console.lines().rev().find_map(|line| line.split_once("phase 2 of 3: "))?.1;
    line.split_once('%')?.0.trim().parse().ok()
}

fn filled(mut guest: Guest) -> Result<Guest> {
    guest.fill_at_most(FILL)?;
    Ok(guest)
}

/// The capture must have said that not all is saved, and the log and some pages must be: none of them wrong.
fn partial(crashed: &Crashed, what: &str) -> Result<Findings> {
    says(crashed, "NOT all of the crash is saved")?;
    let dump = crashed.dump()?;
    ensure!(dump.text("vmcore-dmesg.txt")?.contains(PANIC_LINE), "the log does not say why");
    let report: Value = serde_json::from_str(&dump.text("report.json")?).context("report.json")?;
    ensure!(report["status"] == "partial", "report.json says {report}");
    let core = open_partial(crashed)?;
    let findings = found(crashed, &core)?;
    crashed.tell.say(format!(
        "{what}: {} MiB are in the dump; {findings}; {}",
        core.held() / MIB,
        report["errors"]
    ));
    ensure!(findings.wrong == 0 && core.held() > 0, "{findings}");
    crashed.has_notes(&core)?;
    Ok(findings)
}

fn open_partial(crashed: &Crashed) -> Result<Core> {
    let dump = crashed.dump()?;
    ensure!(dump.has("vmcore.incomplete") && !dump.has("vmcore"), "{} holds {:?}", dump.origin, dump.names);
    Core::open_partial(&dump.dir.join("vmcore.incomplete"), crashed.arch)
}

fn found(crashed: &Crashed, core: &Core) -> Result<Findings> {
    core.compare(crashed.manifest.as_ref().context("no memory was filled")?, &crashed.hot_added)
}

fn says(crashed: &Crashed, text: &str) -> Result<()> {
    ensure!(crashed.console()?.contains(text), "the console does not say {text:?}");
    Ok(())
}

/// Little memory for a capture kernel: two thirds of it would be bounce buffers, if it took as many as kernels do by themselves.
fn ceiling(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = lab.guest(name, V6_12)?.crashkernel("96M").boot()?;
    guest.make_initramfs_with(&["--dump-level", "1"])?;
    guest.load(By::Load, &["--hotplug"])?;
    guest.verify_says_complete()?;
    let crashed = filled(guest)?.crash(0)?;
    let report = crashed.report()?;
    crashed.tell.say(format!("memory: {}; seconds: {}", report["memory"], report["seconds"]));
    let core = Core::open(&crashed.dump()?.vmcore()?, crashed.arch)?;
    crashed.is_complete(&core, &found(&crashed, &core)?)
}
