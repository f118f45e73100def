//! The module while the machine sleeps, and while it is itself unloaded and loaded again and again.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::module::{LOAD, MODULE, boot, plan, status};
use super::scenarios;
use super::storm::clean_log;
use crate::cache::KernelLine::V6_1;
use crate::guest::{Guest, patience};
use crate::lab::Lab;
use crate::machine::{GIB, MIB};
use crate::product::By;

scenarios! {
    reinsert: "the module is unloaded and loaded 20 times while memory and CPUs come and go",
    ; long:
    reinsert_full: "the same 200 times",
    sleep_6_1: "the module on 6.1 follows on after the machine went halfway to sleep to disk, and slept in memory",
}

const DIMM: u64 = 256 * MIB;

fn sleep_6_1(lab: &Lab, name: &str) -> Result<()> {
    // For sleep to disk there must be as much free memory as there is used, the reservation counted: a copy is made.
    let mut guest = boot(plan(lab, name, V6_1)?.memory(3 * GIB / 2))?;
    guest.load(By::Load, LOAD)?;
    guest.add_memory(DIMM)?;
    // All of hibernation but the writing: devices and the other CPUs are stopped for it, and started again.
    for stage in ["devices", "core"] {
        guest.shell(&format!("echo {stage} > /sys/power/pm_test && echo disk > /sys/power/state"))?.ok()?;
        still_follows(&mut guest, &format!("sleep to disk until {stage}"))?;
    }
    guest.shell("echo none > /sys/power/pm_test")?.ok()?;
    let added = guest.add_memory(DIMM)?;
    guest.remove_memory(&added, DIMM)?;
    still_follows(&mut guest, "what came after sleep to disk")?;
    guest.fill_at_most(DIMM / 2)?;
    sleep_in_memory(&mut guest)?;
    still_follows(&mut guest, "sleep in memory")?;
    // A guest that slept in memory hears nothing of memory that QEMU 10.0.2 plugs in, and with a CPU that was plugged in
    // it does not wake up: it is a block that is there that goes and comes.
    let old = guest.at_boot.online_blocks.clone();
    let block = guest.state()?.online_blocks.into_iter().find(|block| !old.contains(block));
    let block = block.context("no added memory is online")?;
    for online in [false, true] {
        guest.set_block(block, online)?;
        still_follows(&mut guest, "a memory block that changed after sleep in memory")?;
    }
    clean_log(&guest)?;
    guest.fill_at_most(2 * DIMM)?;
    let crashed = guest.crash(1)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()
}

/// Has the guest sleep in memory (ACPI S3), and wakes it.
fn sleep_in_memory(guest: &mut Guest) -> Result<()> {
    let kind = guest.read_text("/sys/power/mem_sleep")?;
    ensure!(kind.contains("[deep]"), "the guest's machine knows no S3: {kind}");
    // The agent sleeps, too, and its port loses what comes before it is awake: the console tells when that is.
    guest.shell("(sleep 1; echo mem > /sys/power/state; echo $? > /tmp/slept) > /dev/null 2>&1 &")?.ok()?;
    let start = Instant::now();
    wait_until(start, "asleep", || {
        let state: Value = guest.qmp.query("query-status", &json!({}))?;
        Ok(state["status"] == "suspended")
    })?;
    guest.say(format!("asleep after {:.1} s", start.elapsed().as_secs_f64()));
    guest.qmp.execute("system_wakeup", &json!({}))?;
    wait_until(start, "awake", || Ok(guest.console()?.contains("PM: suspend exit")))?;
    wait_until(start, "at work", || guest.has("/tmp/slept"))?;
    let code = guest.read_text("/tmp/slept")?;
    ensure!(code == "0", "the kernel refuses to sleep: exit code {code}");
    guest.say(format!("awake after {:.1} s", start.elapsed().as_secs_f64()));
    Ok(())
}

/// Waits until something is true of the machine; patience counts from `start`.
fn wait_until(start: Instant, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let limit = patience(60);
    while !holds()? {
        ensure!(start.elapsed() < limit, "the machine is not {what} after {} s", limit.as_secs());
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The module must follow the image, and a dump taken now be complete.
fn still_follows(guest: &mut Guest, after: &str) -> Result<()> {
    let told = status(guest)?;
    ensure!(told["armed"] == true, "after {after} the module follows no more: {told}");
    guest.verify_says_complete().with_context(|| format!("after {after}"))
}

/// Loads and unloads the module as often as the argument says, every tenth time while it follows an image.
const AGAIN: &[u8] = b"\
#!/bin/sh
n=0
while [ $n -lt $1 ]; do
    insmod /hotdump.ko || exit 1
    if [ $((n % 10)) = 0 ]; then
        hotdump load --syscall load --keep module --initrd /boot/initrd-capture.img > /tmp/said 2>&1 || exit 2
    fi
    rmmod hotdump || exit 3
    n=$((n + 1))
done
";

/// Takes a memory block and a CPU offline and brings them back, until there is a file /tmp/stop.
const EVENTS: &[u8] = b"\
#!/bin/sh
toggle() {
    n=0
    until [ -e /tmp/stop ]; do
        echo $2 > $1 && echo $3 > $1 && n=$((n + 1))
    done
    echo $n > /tmp/count-$4
}
toggle /sys/devices/system/memory/memory32/state offline online_movable memory &
toggle /sys/devices/system/cpu/cpu1/online 0 1 cpu &
wait
";

fn reinsert(lab: &Lab, name: &str) -> Result<()> {
    again(lab, name, 20)
}

fn reinsert_full(lab: &Lab, name: &str) -> Result<()> {
    again(lab, name, 200)
}

fn again(lab: &Lab, name: &str, times: u32) -> Result<()> {
    let mut guest = plan(lab, name, V6_1)?.boot()?;
    guest.make_initramfs()?;
    guest.add_memory(DIMM)?;
    guest.write("/tmp/events", 0o755, EVENTS)?;
    guest.write("/tmp/again", 0o755, AGAIN)?;
    guest.shell("/tmp/events < /dev/null > /dev/null 2>&1 &")?.ok()?;
    guest.run(["/tmp/again", &times.to_string()])?.ok()?;
    guest
        .shell("touch /tmp/stop; until [ -e /tmp/count-memory -a -e /tmp/count-cpu ]; do sleep 0.1; done")?
        .ok()?;
    for kind in ["memory", "cpu"] {
        let count = guest.read_text(&format!("/tmp/count-{kind}"))?;
        ensure!(count.parse::<u32>()? > 0, "nothing happened to {kind}");
        guest.say(format!("{times} times loaded and unloaded, {kind} gone and back {count} times meanwhile"));
    }
    guest.run(["insmod", MODULE])?.ok()?;
    guest.load(By::Load, LOAD)?;
    guest.add_memory(DIMM)?;
    still_follows(&mut guest, "all that")?;
    clean_log(&guest)
}
