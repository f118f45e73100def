//! hotdump as an administrator has it: installed from our packages in a whole Debian, and no command typed after that.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::scenarios;
use crate::cache::KernelLine::{self, V6_1, V6_12};
use crate::guest::{Guest, patience};
use crate::lab::Lab;
use crate::machine::{GIB, MIB};
use crate::userland::DEBS;

scenarios! {
    ;
    long:
    service_6_1: "a whole Debian 12: packages installed, reboot, memory and a CPU added, panic, reboot: no command typed; the module by DKMS",
    service_6_12: "the same on Debian 13, kept current by the kernel's own handler: without hotdump-dkms",
    service_reload: "the same on Debian 12 without the module: udev has the service load again",
}

fn service_6_1(lab: &Lab, name: &str) -> Result<()> {
    service(lab, name, V6_1, "module", &["hotdump", "hotdump-dkms"])
}

fn service_6_12(lab: &Lab, name: &str) -> Result<()> {
    service(lab, name, V6_12, "kernel", &["hotdump"])
}

fn service_reload(lab: &Lab, name: &str) -> Result<()> {
    service(lab, name, V6_1, "reload", &["hotdump"])
}

/// Installs `packages` on a kernel of `line` and lives through a crash; `keeper` is who must keep the image current.
fn service(lab: &Lab, name: &str, line: KernelLine, keeper: &str, packages: &[&str]) -> Result<()> {
    let debs: Vec<PathBuf> = packages.iter().map(|package| lab.deb(package)).collect::<Result<_>>()?;
    let mut guest = lab.guest(name, line)?.memory(GIB).debian(&debs)?.boot()?;
    up(&mut guest)?;
    install(&mut guest)?;
    // Every page is compared.
    guest.shell("echo 'dump-level = 0' >> /etc/hotdump/hotdump.toml")?.ok()?;
    let mut guest = guest.reboot()?;
    up(&mut guest)?;
    let status = status(&mut guest)?;
    ensure!(status["loaded"] == true, "the service has loaded nothing: {status}");
    guest.add_memory(256 * MIB)?;
    let new = guest.add_cpu()?;
    settled(&mut guest)?;
    guest.verify_says_complete()?;
    let verified: Value = serde_json::from_str(guest.run(["hotdump", "verify", "--json"])?.ok()?)?;
    guest.say(format!("kept current by {} (wanted: {keeper})", verified["kept_by"]));
    guest.fill_at_most(640 * MIB)?;
    guest.verify_says_complete()?;
    let mut crashed = guest.crash(new)?;
    // The agent is not process 1 here, by which the CPU's registers would be told.
    crashed.panicked_on = None;
    crashed.complete()?;
    crashed.saved_by_hotdump()?;
    let mut guest = crashed.boot_again()?;
    up(&mut guest)?;
    guest.verify_says_complete()?;
    let there = guest.run(["hotdump", "dumps", "list"])?;
    guest.say(there.ok()?);
    there.says("sysrq triggered crash")?;
    guest.shell("test $(stat -c %a /var/crash/*/vmcore) = 600")?.ok()?;
    purge(&mut guest)
}

/// Installs the packages. DKMS builds the module in the guest meanwhile.
pub(super) fn install(guest: &mut Guest) -> Result<()> {
    let start = Instant::now();
    finished(guest, &format!("dpkg --install {DEBS}/*.deb"))?;
    guest.say(format!("packages installed: {:.1} s", start.elapsed().as_secs_f64()));
    Ok(())
}

/// Runs a line of shell that takes longer than a program may that the agent runs. Gives what it printed.
pub(super) fn finished(guest: &mut Guest, line: &str) -> Result<String> {
    const TOLD: &str = "/run/lab-told";
    let (start, limit) = (Instant::now(), patience(600));
    guest.write("/run/lab-line", 0o700, format!("{line}\n").as_bytes())?;
    let run = format!("rm -f {TOLD}; (sh /run/lab-line; echo exit code $?) > {TOLD} 2>&1 < /dev/null &");
    guest.shell(&run)?.ok()?;
    loop {
        let told = guest.read_text(TOLD)?;
        if let Some((_, told)) = told.rsplit_once("exit code ") {
            ensure!(told == "0", "{line}: {}", guest.read_text(TOLD)?);
            return guest.read_text(TOLD);
        }
        ensure!(start.elapsed() < limit, "{line} is not done after {} s: {told}", limit.as_secs());
        sleep(Duration::from_secs(1));
    }
}

/// Waits until the guest is all up, and sees that every unit of it is well.
pub(super) fn up(guest: &mut Guest) -> Result<()> {
    let state = guest.shell("systemctl is-system-running --wait")?;
    let failed = guest
        .shell("systemctl --failed --no-legend; journalctl --no-pager --unit 'hotdump*' | tail -n 30")?;
    ensure!(state.ran.stdout.trim() == "running", "{state}\n{failed}");
    Ok(())
}

/// Waits until udev has handled what came, and no job of systemd's is left.
fn settled(guest: &mut Guest) -> Result<()> {
    let line = "udevadm settle; while systemctl list-jobs --no-legend | grep -q .; do sleep 0.2; done";
    guest.shell(line)?.ok().map(drop)
}

pub(super) fn status(guest: &mut Guest) -> Result<Value> {
    let told = guest.run(["hotdump", "status", "--json"])?;
    serde_json::from_str(&told.ran.stdout).with_context(|| told.to_string())
}

/// What is removed leaves the machine as it was; dumps stay.
fn purge(guest: &mut Guest) -> Result<()> {
    guest.shell("dpkg --purge $(dpkg-query -f '${Package}\\n' -W 'hotdump*')")?.ok()?;
    let left = guest.shell(
        "find / -xdev -iname '*hotdump*' ! -path '/proc/*' ! -path '/root/*' ! -path '/var/log/*' ! -path '/var/crash/*'; cat /sys/kernel/kexec_crash_loaded",
    )?;
    ensure!(left.ok()?.trim() == "0", "what a purge leaves: {left}");
    guest.shell("ls /var/crash/*/vmcore")?.ok()?;
    up(guest)
}
