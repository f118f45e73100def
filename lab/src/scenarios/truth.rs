//! What `hotdump verify` says of an image, in every state that one can be in.

use std::ops::Range;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::module::{MODULE, plan};
use super::scenarios;
use crate::cache::KernelLine::V6_12;
use crate::check::memory_of_header;
use crate::guest::{Guest, patience};
use crate::lab::Lab;
use crate::machine::MIB;
use crate::product::{By, hex};

scenarios! {
    ; long:
    verify_truth: "verify's answer and exit code: no image, each keeper, after each kind of event, keeper gone, image of kexec-tools, no right to look",
}

/// What is plugged in and out: two blocks.
const DIMM: u64 = 256 * MIB;

/// Who may look at nothing.
const NOBODY: u32 = 65534;

/// kexec-tools' load.
const KEXEC: &str = "kexec -c -p /boot/vmlinuz-* --initrd=/boot/initrd-capture.img --append='console=ttyS0 nr_cpus=1 reset_devices'";

/// What there is to say of an image.
#[derive(Clone, Copy, Debug)]
struct Truth {
    verdict: &'static str,
    code: i32,
    kept_by: Option<&'static str>,
    kept_current: Option<bool>,
    /// Part of what must be told as a problem; none: there is none.
    problem: Option<&'static str>,
}

const NONE: Truth =
    Truth { verdict: "not_loaded", code: 4, kept_by: None, kept_current: None, problem: None };
const NATIVE: Truth =
    Truth { verdict: "complete", code: 0, kept_by: Some("kernel"), kept_current: Some(true), problem: None };
const BY_MODULE: Truth = Truth { kept_by: Some("module"), ..NATIVE };
const BY_NOBODY: Truth = Truth { kept_by: Some("nobody"), kept_current: Some(false), ..NATIVE };

impl Truth {
    /// The same after an event that nobody took care of.
    const fn stale(self) -> Truth {
        Truth { verdict: "stale", code: 2, ..self }
    }
}

fn verify_truth(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = plan(lab, name, V6_12)?.memory_in_file().boot()?;
    guest.make_initramfs()?;
    says(&mut guest, "no image", NONE)?;

    guest.load(By::Load, &["--keep", "native"])?;
    follows(&mut guest, "native", NATIVE, None)?;
    without_rights(&mut guest)?;

    let cpu = unkept(&mut guest)?;

    guest.run(["insmod", MODULE])?.ok()?;
    guest.load(By::Load, &["--keep", "module"])?;
    follows(&mut guest, "the module", BY_MODULE, Some(cpu))?;
    guest.run(["rmmod", "hotdump"])?.ok()?;
    let gone =
        Truth { problem: Some("loaded for the kernel module, which is not there any more"), ..BY_NOBODY };
    says(&mut guest, "the module is gone", gone)?;
    let dimm = guest.add_memory(DIMM)?;
    says(&mut guest, "the module is gone, memory added", gone.stale())?;
    guest.run(["insmod", MODULE])?.ok()?;
    let idle = Truth { problem: Some("loaded for the kernel module, which does not follow it"), ..BY_NOBODY };
    says(&mut guest, "the module is back and follows nothing", idle.stale())?;
    guest.load(By::Load, &["--keep", "module"])?;
    guest.shell("echo N > /sys/module/hotdump/parameters/memory")?.ok()?;
    says(&mut guest, "the module follows CPUs alone", Truth { kept_current: Some(false), ..BY_MODULE })?;
    guest.remove_memory(&dimm, DIMM)?;
    says(&mut guest, "the same, memory removed", Truth { kept_current: Some(false), ..BY_MODULE }.stale())?;
    guest.run(["rmmod", "hotdump"])?.ok()?;

    foreign(&mut guest)?;
    guest.run(["hotdump", "unload"])?.ok()?;
    says(&mut guest, "unloaded", NONE)
}

/// An image that somebody keeps current is so after every kind of event. A CPU is plugged in unless there is one already:
/// QEMU has room for two that ever were.
fn follows(guest: &mut Guest, who: &str, truth: Truth, cpu: Option<u32>) -> Result<()> {
    let after = |guest: &mut Guest, event: &str| says(guest, &format!("{who}, {event}"), truth);
    after(guest, "fresh")?;
    let dimm = guest.add_memory(DIMM)?;
    after(guest, "memory added")?;
    let block = newest_block(guest)?;
    guest.set_block(block, false)?;
    after(guest, "a block offline")?;
    guest.set_block(block, true)?;
    after(guest, "a block online")?;
    let cpu = match cpu {
        Some(cpu) => cpu,
        None => guest.add_cpu()?,
    };
    after(guest, "one CPU more")?;
    set_cpu(guest, cpu, 0)?;
    after(guest, "a CPU offline")?;
    set_cpu(guest, cpu, 1)?;
    after(guest, "a CPU online")?;
    remove_cpu(guest, cpu)?;
    after(guest, "a CPU removed")?;
    let removed = guest.remove_memory(&dimm, DIMM)?;
    if truth.kept_by == NATIVE.kept_by {
        // The kernel's handler looks at the list of memory before what goes is taken off it, and at the next event of memory again.
        says(guest, "native, memory removed", truth.stale())?;
        header_names(guest, &removed)?;
        guest.add_memory(DIMM)?;
        return after(guest, "memory added after that");
    }
    after(guest, "memory removed")
}

/// The header in reserved memory, read from outside and not by hotdump, must name all of `ranges`.
fn header_names(guest: &mut Guest, ranges: &[Range<u64>]) -> Result<()> {
    let told = guest.run(["hotdump", "verify", "--json"])?;
    let answer: Value = serde_json::from_str(&told.ran.stdout)?;
    let place = hex(&answer["headers"][0]["place"]["start"]);
    let (start, reserved) = guest.reserved_memory()?;
    let header = place.checked_sub(start).and_then(|at| reserved.get(usize::try_from(at).ok()?..));
    let named = memory_of_header(header.context("the header is not in the reservation")?)?;
    for range in ranges {
        let is_in = named.iter().any(|named| named.start <= range.start && range.end <= named.end);
        ensure!(is_in, "the header names {named:x?}, and {range:x?} not");
    }
    Ok(())
}

/// An image that nobody keeps current is out of date as soon as it names memory that is not there, or lacks some that is in use.
/// CPUs may come and go: the header has the notes of all that there can be. Gives the CPU that it plugs in.
fn unkept(guest: &mut Guest) -> Result<u32> {
    let load = |guest: &mut Guest| guest.load(By::Load, &["--keep", "reload"]).map(drop);
    load(guest)?;
    says(guest, "nobody, fresh", BY_NOBODY)?;
    let cpu = guest.add_cpu()?;
    says(guest, "nobody, a CPU added", BY_NOBODY)?;
    set_cpu(guest, cpu, 0)?;
    says(guest, "nobody, a CPU offline", BY_NOBODY)?;
    set_cpu(guest, cpu, 1)?;
    says(guest, "nobody, a CPU online", BY_NOBODY)?;
    let dimm = guest.add_memory(DIMM)?;
    says(guest, "nobody, memory added", BY_NOBODY.stale())?;
    load(guest)?;
    says(guest, "nobody, loaded again", BY_NOBODY)?;
    let block = newest_block(guest)?;
    guest.set_block(block, false)?;
    says(guest, "nobody, a block offline", BY_NOBODY)?;
    guest.set_block(block, true)?;
    says(guest, "nobody, the block online again", BY_NOBODY)?;
    guest.remove_memory(&dimm, DIMM)?;
    says(guest, "nobody, memory removed", BY_NOBODY.stale())?;
    Ok(cpu)
}

/// Images of kexec-tools, over one of ours: what our load was to have is no matter any more.
fn foreign(guest: &mut Guest) -> Result<()> {
    guest.load(By::Load, &["--keep", "native"])?;
    guest.shell(KEXEC)?.ok()?;
    says(guest, "kexec-tools, fresh", BY_NOBODY)?;
    let dimm = guest.add_memory(DIMM)?;
    says(guest, "kexec-tools, memory added", BY_NOBODY.stale())?;
    guest.shell(&format!("{KEXEC} --hotplug"))?.ok()?;
    says(guest, "kexec-tools --hotplug", NATIVE)?;
    guest.remove_memory(&dimm, DIMM)?;
    says(guest, "kexec-tools --hotplug, memory removed", NATIVE.stale())?;
    let file = KEXEC.replace("kexec -c", "kexec -s");
    guest.shell(&file)?.ok()?;
    guest.add_memory(DIMM)?;
    says(guest, "kexec-tools by kexec_file_load, memory added", NATIVE)
}

/// Whoever may not look is not told that all is well.
fn without_rights(guest: &mut Guest) -> Result<()> {
    for option in ["--quiet", "--json"] {
        let told = guest.run_as(Some(NOBODY), ["hotdump", "verify", option])?;
        told.exits(3)?;
        ensure!(option == "--quiet" || told.says("\"unknown\"").is_ok(), "{told}");
    }
    guest.say("no right to look: unknown (exit code 3)");
    Ok(())
}

/// verify must say so: as JSON, and by its exit code however it is asked.
fn says(guest: &mut Guest, when: &str, truth: Truth) -> Result<()> {
    let told = guest.run(["hotdump", "verify", "--json"])?;
    let answer: Value = serde_json::from_str(told.exits(truth.code).with_context(|| when.to_owned())?)?;
    let Truth { verdict, kept_by, kept_current, .. } = truth;
    for (key, wanted) in
        [("verdict", json!(verdict)), ("kept_by", json!(kept_by)), ("kept_current", json!(kept_current))]
    {
        ensure!(answer[key] == wanted, "{when}: {key} should be {wanted}: {answer}");
    }
    let problems = answer["problems"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_right = match (problems, truth.problem) {
        ([], None) => true,
        ([one], Some(part)) => one.as_str().is_some_and(|one| one.contains(part)),
        _ => false,
    };
    ensure!(is_right, "{when}: of problems {:?} should be told: {answer}", truth.problem);
    guest.run(["hotdump", "verify", "--quiet"])?.exits(truth.code)?;
    guest.say(format!("{when}: {verdict} (exit code {})", truth.code));
    Ok(())
}

/// The block that was plugged in last.
fn newest_block(guest: &mut Guest) -> Result<u64> {
    guest.state()?.online_blocks.last().copied().context("no block is online")
}

fn set_cpu(guest: &mut Guest, cpu: u32, online: u8) -> Result<()> {
    guest.shell(&format!("echo {online} > /sys/devices/system/cpu/cpu{cpu}/online"))?.ok().map(drop)
}

/// Takes out the CPU that was plugged in and waits until it is gone.
fn remove_cpu(guest: &mut Guest, cpu: u32) -> Result<()> {
    guest.qmp.remove_device(&format!("cpu{cpu}"))?;
    let start = Instant::now();
    while guest.state()?.present_cpus.contains(&cpu) {
        ensure!(start.elapsed() < patience(60), "CPU {cpu} does not go");
        sleep(Duration::from_millis(200));
    }
    Ok(())
}
