//! A watchdog of the machine's hardware runs on when the machine crashes.

use anyhow::{Context, Result, ensure};

use super::scenarios;
use crate::cache::KernelLine::V6_12;
use crate::guest::Guest;
use crate::lab::Lab;
use crate::product::By;

scenarios! {
    ; long:
    watchdog: "a watchdog that runs does not end a capture that takes longer than it waits",
    watchdog_contrast: "it does where the capture initramfs lacks its driver",
}

/// The watchdog of QEMU's chipset. Its driver takes it for one that the firmware has started, and the kernel feeds it; unfed it
/// resets the machine after a minute.
const DRIVERS: [&str; 2] = ["lpc_ich", "iTCO_wdt"];

/// In place of a save that takes so long. The command is parted into words at its spaces, and the shell at what IFS stands for.
const LONG_SAVE: [&str; 2] = ["--command", "/usr/bin/busybox ash -c sleep${IFS}90;echo>{output}"];

fn watchdog(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = boot(lab, name)?;
    load_drivers(&mut guest)?;
    guest.make_initramfs_with(&LONG_SAVE)?;
    guest.load(By::Load, &[])?;
    let crashed = guest.crash(0)?;
    ensure!(crashed.took.as_secs() >= 90, "the capture did not take long: {:?}", crashed.took);
    crashed.saved_by_hotdump()
}

fn watchdog_contrast(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = boot(lab, name)?;
    guest.make_initramfs_with(&LONG_SAVE)?;
    load_drivers(&mut guest)?;
    guest.load(By::Load, &[])?;
    let error = guest.crash(0).err().context("the watchdog did nothing: what is the driver for?")?;
    ensure!(error.to_string().contains("a watchdog ended the machine"), "{error:#}");
    Ok(())
}

fn boot(lab: &Lab, name: &str) -> Result<Guest> {
    lab.guest(name, V6_12)?.modules(&DRIVERS).boot()
}

fn load_drivers(guest: &mut Guest) -> Result<()> {
    for driver in DRIVERS {
        guest.run(["modprobe", driver])?.ok()?;
    }
    let identity = guest.read_text("/sys/class/watchdog/watchdog0/identity")?;
    ensure!(identity == "iTCO_wdt", "the watchdog is {identity}");
    Ok(())
}
