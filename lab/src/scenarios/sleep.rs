//! The module while it is unloaded and loaded again and again.

use anyhow::{Context, Result, ensure};

use super::module::{LOAD, MODULE, plan, status};
use super::storm::clean_log;
use super::{Scenario, scenarios};
use crate::cache::KernelLine::V6_1;
use crate::guest::Guest;
use crate::lab::Lab;
use crate::machine::MIB;
use crate::product::By;

scenarios! {
    reinsert: "the module is unloaded and loaded 20 times while memory and CPUs come and go",
}

/// What takes too long for every day.
pub(super) const LONG: &[Scenario] =
    &[Scenario { name: "reinsert_full", about: "the same 200 times", run: reinsert_full }];

const DIMM: u64 = 256 * MIB;

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
