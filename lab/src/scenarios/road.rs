//! The whole road, from the panic to the dump on disk, beside Debian's own kdump service in the same guest.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::sample::WORK;
use super::scenarios;
use super::service::{finished, install, status, up};
use crate::cache::KernelLine::V6_12;
use crate::guest::Guest;
use crate::lab::Lab;
use crate::machine::GIB;
use crate::userland::KDUMP_TOOLS;

scenarios! {
    with packages;
    ;
    long:
    road: "a whole Debian 13 of 4 GiB: from the panic to the restart with the dump on disk, by Debian's kdump-tools and by hotdump, each as it comes",
}

/// The reservation, and those that are tried for Debian's own service where that is not enough for it.
const RESERVATIONS: [&str; 4] = ["128M", "192M", "256M", "512M"];
/// How much of Debian's time hotdump may take.
const MOST: f64 = 0.5;

/// One way to save a crash, and what came of it.
struct Road {
    program: &'static str,
    crashkernel: &'static str,
    /// From the panic to the end of the machine, which restarts then.
    seconds: f64,
    /// Bytes of the dump.
    size: u64,
}

fn road(lab: &Lab, name: &str) -> Result<()> {
    // Debian's systemd sets the chipset's watchdog, which Debian's capture does not feed: it would end that one after 30 s.
    let plan = lab.guest(name, V6_12)?.memory(4 * GIB).crashkernel(RESERVATIONS[0]);
    let plan = plan.cmdline("modprobe.blacklist=iTCO_wdt");
    let debs = [lab.deb("hotdump")?];
    let guest = plan.debian_with(Some(KDUMP_TOOLS), &debs)?.boot()?;
    let (guest, theirs) = by_debian(guest)?;
    let ours = by_hotdump(guest, &debs)?;
    println!("| program | crashkernel= | panic to restart, s | dump, MB |\n|---|---|---|---|");
    for Road { program, crashkernel, seconds, size } in [&theirs, &ours] {
        println!("| {program} | {crashkernel} | {seconds:.1} | {:.1} |", *size as f64 / 1e6);
    }
    let share = ours.seconds / theirs.seconds;
    println!("time: {share:.2} of Debian's");
    ensure!(share <= MOST, "hotdump takes {share:.2} of the time of Debian's kdump-tools, more than {MOST}");
    Ok(())
}

/// Switches Debian's kdump service on, as it comes.
pub(super) fn kdump_tools_on(guest: &mut Guest) -> Result<()> {
    guest.shell("sed -i 's/^USE_KDUMP=.*/USE_KDUMP=1/' /etc/default/kdump-tools")?.ok()?;
    let shown = finished(guest, "systemctl restart kdump-tools; kdump-config show")?;
    guest.say(shown);
    Ok(())
}

fn by_debian(mut guest: Guest) -> Result<(Guest, Road)> {
    kdump_tools_on(&mut guest)?;
    let [_, more @ ..] = RESERVATIONS;
    let mut more = more.into_iter();
    let mut crashkernel = RESERVATIONS[0];
    loop {
        let loaded = guest.read_text("/sys/kernel/kexec_crash_loaded")? == "1";
        ensure!(loaded, "kdump-tools has loaded nothing: {}", guest.shell("journalctl -u kdump-tools")?);
        finished(&mut guest, WORK)?;
        let crashed = guest.crash(0)?;
        let seconds = crashed.took.as_secs_f64();
        guest = crashed.boot_again()?;
        let size = guest.shell("stat -c %s /var/crash/*/dump.*")?.ran.stdout.trim().parse();
        if let Ok(size) = size {
            guest.shell("ls -l /var/crash/*; rm -r /var/crash/*")?.ok()?;
            return Ok((guest, Road { program: "kdump-tools, makedumpfile", crashkernel, seconds, size }));
        }
        let last = crashed.console()?;
        let tail: Vec<&str> = last.lines().rev().take(60).collect();
        guest.say(format!(
            "crashkernel={crashkernel}: no dump; the console ends (last line first): {tail:#?}"
        ));
        crashkernel = more.next().context("no reservation is enough for kdump-tools")?;
        guest = guest.reboot_with_crashkernel(crashkernel)?;
        finished(&mut guest, "systemctl is-system-running --wait")?;
    }
}

fn by_hotdump(mut guest: Guest, debs: &[PathBuf]) -> Result<Road> {
    finished(&mut guest, "dpkg --purge kdump-tools")?;
    install(&mut guest, debs)?;
    let crashkernel = RESERVATIONS[0];
    let mut guest = guest.reboot_with_crashkernel(crashkernel)?;
    up(&mut guest)?;
    let status = status(&mut guest)?;
    ensure!(status["loaded"] == true, "the service has loaded nothing: {status}");
    finished(&mut guest, WORK)?;
    let crashed = guest.crash(0)?;
    let report = crashed.report()?;
    crashed.tell.say(format!("memory: {}; seconds: {}", report["memory"], report["seconds"]));
    let size = report["memory"]["size"].as_u64().context("the report has no size")?;
    let seconds = crashed.took.as_secs_f64();
    Ok(Road { program: "hotdump", crashkernel, seconds, size })
}
