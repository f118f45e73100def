//! Bits that change in reserved memory after the load: purgatory must never enter a corrupt kernel.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::scenarios;
use crate::cache::KernelLine::V6_12;
use crate::guest::Guest;
use crate::lab::Lab;
use crate::machine::MIB;
use crate::product::{By, hex};

scenarios! {
    flipped_kernel: "a bit flipped in the loaded kernel: purgatory says so and resets",
    flipped_initrd: "a bit flipped in the loaded initramfs: purgatory says so and resets",
    changed_header: "a changed crash header does not keep the capture kernel from booting",
}

/// A guest whose memory the host can change, with an image loaded; and what `hotdump load` tells of that.
fn loaded(lab: &Lab, name: &str) -> Result<(Guest, Value)> {
    let mut guest = lab.guest(name, V6_12)?.memory_in_file().boot()?;
    guest.make_initramfs()?;
    let told = guest.load(By::Load, &["--hotplug", "--json"])?;
    let told = serde_json::from_str(told.ok()?)?;
    Ok((guest, told))
}

/// Where a piece of the image begins, and how many bytes were put there.
fn segment(told: &Value, kind: &str) -> Result<(u64, u64)> {
    let segments =
        told["plan"]["segments"].as_array().context("no segments in the report of hotdump load")?;
    let found = segments.iter().find(|segment| segment["kind"] == kind);
    let found = found.with_context(|| format!("no segment {kind} in {segments:?}"))?;
    let bytes = found["bytes"].as_u64().context("a segment without a size")?;
    Ok((hex(&found["place"]["start"]), bytes))
}

fn flip_is_noticed(lab: &Lab, name: &str, kind: &str) -> Result<()> {
    let (guest, told) = loaded(lab, name)?;
    let (start, bytes) = segment(&told, kind)?;
    guest.flip_bit(start + bytes / 2, 3)?;
    let crashed = guest.crash(0)?;
    let console = crashed.console()?;
    let line = console.lines().find(|line| line.contains("hotdump purgatory: "));
    let line = line.context("purgatory said nothing on the console")?;
    crashed.tell.say(line);
    ensure!(line.contains(&format!("{kind} changed since it was loaded")), "purgatory said: {line}");
    ensure!(console.matches("Linux version ").count() == 1, "the capture kernel was entered");
    ensure!(crashed.dump().is_err(), "there is a dump");
    Ok(())
}

fn flipped_kernel(lab: &Lab, name: &str) -> Result<()> {
    flip_is_noticed(lab, name, "kernel")
}

fn flipped_initrd(lab: &Lab, name: &str) -> Result<()> {
    flip_is_noticed(lab, name, "initrd")
}

fn changed_header(lab: &Lab, name: &str) -> Result<()> {
    let (mut guest, told) = loaded(lab, name)?;
    let (header, _) = segment(&told, "elfcorehdr")?;
    guest.fill_at_most(64 * MIB)?;
    // e_flags at byte 48, which means nothing on x86.
    guest.flip_bit(header + 48, 0)?;
    let crashed = guest.crash(0)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()
}
