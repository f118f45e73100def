//! What an administrator looks at: status, target check, estimate, and a test that crashes the machine.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::scenarios;
use super::service::{finished, install, settled, up};
use crate::cache::KernelLine::{self, V6_1, V6_12};
use crate::guest::{Crashed, Guest};
use crate::lab::{Lab, Plan};
use crate::machine::{GIB, MIB};
use crate::product::{By, CAPTURE, PANIC_LINE};
use crate::say::Teller;
use crate::userland::{DEBUGGERS, DRACUT, More};

scenarios! {
    with packages;
    ;
    long:
    estimate: "as little is reserved as `hotdump estimate` asks for, by sizes and then by the report of a capture: dumps are whole",
    distribution_initramfs: "a whole Debian 12 whose mkinitramfs puts the capture initramfs together",
    dracut_initramfs: "the same by dracut",
    reading_6_1: "a whole Debian 12 with crash and drgn: they read the dump of its crash as docs/guide.md has it",
    reading_6_12: "the same on Debian 13",
    rehearsal: "a whole Debian 12: status, target check, `hotdump test --really-crash`, and after the reboot the test says that the dump arrived",
}

/// Where a report of another guest's capture is put.
const REPORTS: &str = "/root/reports";

fn estimate(lab: &Lab, name: &str) -> Result<()> {
    let plan = || lab.guest(name, V6_12);
    let mut guest = plan()?.boot()?;
    guest.make_initramfs()?;
    let (by_sizes, _) = asked(&mut guest, &[])?;
    ensure!(by_sizes["basis"]["by"] == "sizes", "there is no report, and the estimate is {by_sizes}");
    drop(guest);

    let (crashed, report) = reserved(plan()?, &by_sizes)?;
    let text = crashed.dump()?.text("report.json")?;
    drop(crashed);
    // The next guest's files take the place of this one's; the report is named as a capture would name it.
    let place = format!("{REPORTS}/2026-11-22-15:32:10");
    let mut guest = plan()?.boot()?;
    guest.run(["mkdir", "-p", &place])?.ok()?;
    guest.write(&format!("{place}/report.json"), 0o600, text.as_bytes())?;
    guest.make_initramfs()?;
    let (by_report, code) = asked(&mut guest, &["--directory", REPORTS])?;
    ensure!(by_report["basis"]["by"] == "report", "the estimate does not rest on the report: {by_report}");
    ensure!(code == 0, "256 MiB are reserved, and the estimate is {by_report}");
    let told = guest.run(["hotdump", "estimate", "--initrd", CAPTURE, "--directory", REPORTS])?;
    guest.say(told.ok()?);
    ensure!(
        by_report["recommended"].as_u64() <= by_sizes["recommended"].as_u64(),
        "what was measured is more than what was computed: {} in {report}",
        by_report["recommended"]
    );
    drop(guest);
    reserved(plan()?, &by_report).map(drop)
}

/// The answer of `hotdump estimate`, and its exit code.
fn asked(guest: &mut Guest, more: &[&str]) -> Result<(Value, i32)> {
    let argv = ["hotdump", "estimate", "--json", "--initrd", CAPTURE];
    let told = guest.run(argv.iter().chain(more).copied())?;
    let answer: Value = serde_json::from_str(&told.ran.stdout).with_context(|| told.to_string())?;
    guest.say(format!("estimate: {}", told.ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ")));
    Ok((answer, told.ran.code.context("it was killed")?))
}

/// A capture with as much reserved as an estimate asks for must be whole; gives its report.
fn reserved(plan: Plan, estimate: &Value) -> Result<(Crashed, Value)> {
    let bytes = estimate["recommended"].as_u64().context("the estimate recommends nothing")?;
    let mut guest = plan.crashkernel(&format!("{}M", bytes / MIB)).boot()?;
    guest.make_initramfs()?;
    guest.load(By::Load, &["--hotplug"])?;
    guest.add_memory(256 * MIB)?;
    guest_status(&mut guest)?;
    guest.fill_at_most(256 * MIB)?;
    let crashed = guest.crash(0)?;
    crashed.complete()?;
    let report = crashed.report()?;
    crashed.tell.say(format!("with {} MiB: {}", bytes / MIB, report["memory_use"]));
    Ok((crashed, report))
}

/// `hotdump status` must say that all is well; gives what it says.
fn guest_status(guest: &mut Guest) -> Result<String> {
    let told = guest.run(["hotdump", "status"])?;
    let text = told.ok()?.to_owned();
    ensure!(text.starts_with("PROTECTED: ") && !text.contains("NEXT"), "{told}");
    ensure!(text.lines().count() <= 24, "that is more than a screen: {told}");
    guest.say(&text);
    Ok(text)
}

fn distribution_initramfs(lab: &Lab, name: &str) -> Result<()> {
    by_distribution(lab, name, None, "initramfs-tools", "mkinitramfs")
}

fn dracut_initramfs(lab: &Lab, name: &str) -> Result<()> {
    by_distribution(lab, name, Some(DRACUT), "dracut", "dracut")
}

/// Crashes a Debian with `more` whose capture initramfs `builder` puts together, by the program `program`.
fn by_distribution(lab: &Lab, name: &str, more: Option<More>, builder: &str, program: &str) -> Result<()> {
    let debs = [lab.deb("hotdump")?];
    let plan = lab.guest(name, V6_1)?.memory(2 * GIB).crashkernel("512M");
    let mut guest = plan.debian_with(more, &debs)?.boot()?;
    up(&mut guest)?;
    install(&mut guest, &debs)?;
    let lines = format!("builder = \"{builder}\"\\nformat = \"elf\"\\ndump-level = 0\\n");
    guest.shell(&format!("printf '{lines}' > /etc/hotdump/hotdump.toml"))?.ok()?;
    let made = finished(&mut guest, "hotdump initramfs --output /var/lib/hotdump/initrd-$(uname -r).img")?;
    guest.say(&made);
    ensure!(made.contains(&format!("put together by {program}")), "{made}");
    finished(&mut guest, "hotdump load && hotdump target check")?;
    guest.fill_at_most(512 * MIB)?;
    let crashed = guest.crash(0)?;
    crashed.complete()?;
    // The chipset's watchdog, which the running system's kernel feeds, needs its driver here, too.
    let console = crashed.console()?;
    let (_, capture) = console.rsplit_once("Linux version ").context("no kernel on the console")?;
    ensure!(capture.contains(": initialized. heartbeat="), "the capture has no driver of the watchdog");
    let report = crashed.report()?;
    crashed.tell.say(format!("memory: {}", report["memory_use"]));
    Ok(())
}

fn reading_6_1(lab: &Lab, name: &str) -> Result<()> {
    reading(lab, name, V6_1)
}

fn reading_6_12(lab: &Lab, name: &str) -> Result<()> {
    reading(lab, name, V6_12)
}

/// The steps of docs/guide.md up to its last: the dump is read where it was saved. Of the debug symbols, whose package takes several GB,
/// the guest has the one file that both programs ask for.
fn reading(lab: &Lab, name: &str, line: KernelLine) -> Result<()> {
    let tell = Teller::new(name);
    let cache = &lab.sources.cache;
    let kernel = cache.userland(line, Some(DEBUGGERS), &|line| tell.say(line))?;
    let (deb, symbols) = (lab.deb("hotdump")?, cache.vmlinux(&kernel, &|line| tell.say(line))?);
    let given = [deb.clone(), symbols];
    let mut guest = lab.guest(name, line)?.memory(2 * GIB).debian_with(Some(DEBUGGERS), &given)?.boot()?;
    up(&mut guest)?;
    install(&mut guest, &[deb])?;
    guest.shell("printf 'dump-level = 23\\nkeep-dumps = 5\\n' > /etc/hotdump/hotdump.toml")?.ok()?;
    let place = "mkdir -p /usr/lib/debug/boot && ln -s /root/debs/$(uname -r) /usr/lib/debug/boot/vmlinux-$(uname -r)";
    guest.shell(place)?.ok()?;
    let mut guest = guest.reboot()?;
    up(&mut guest)?;
    guest.add_memory(256 * MIB)?;
    settled(&mut guest)?;
    if !line.has_handler() {
        finished(&mut guest, "systemctl reload hotdump")?;
    }
    guest.verify_says_complete()?;
    guest.fill_at_most(512 * MIB)?;
    let crashed = guest.crash(0)?;
    // Free memory is left out, that of programs is not.
    let (core, findings) = crashed.compare()?;
    findings.all_right()?;
    ensure!(findings.hot_pages > 0, "no page of the pattern is in hot-added memory");
    crashed.has_notes(&core)?;
    crashed.saved_by_hotdump()?;
    let mut guest = crashed.boot_again()?;
    up(&mut guest)?;
    guest.shell("cat /var/crash/*/triage.txt")?.says("sysrq_handle_crash")?;

    let by_crash =
        "printf 'log\\nbt\\nquit\\n' | crash /usr/lib/debug/boot/vmlinux-$(uname -r) /var/crash/*/vmcore";
    let told = finished(&mut guest, by_crash)?;
    guest.say(&told);
    let (log, stack) = told.split_once("\nPID: ").with_context(|| format!("crash shows no stack: {told}"))?;
    ensure!(log.contains(PANIC_LINE), "crash does not find the log: {told}");
    ensure!(stack.contains("sysrq_handle_crash at "), "crash does not find the stack: {told}");

    let by_drgn = "printf 'print(get_dmesg(prog).decode())\\nprint(prog.crashed_thread().stack_trace())\\n' | \
        drgn -c /var/crash/*/vmcore -s /usr/lib/debug/boot/vmlinux-$(uname -r)";
    let told = finished(&mut guest, by_drgn)?;
    guest.say(&told);
    ensure!(told.contains(PANIC_LINE), "drgn does not find the log: {told}");
    ensure!(told.contains(" sysrq_handle_crash ("), "drgn does not find the stack: {told}");
    Ok(())
}

fn rehearsal(lab: &Lab, name: &str) -> Result<()> {
    let debs = [lab.deb("hotdump")?];
    let mut guest = lab.guest(name, V6_1)?.memory(GIB).debian(&debs)?.boot()?;
    up(&mut guest)?;
    install(&mut guest, &debs)?;
    guest.run(["hotdump", "unload"])?.ok()?;
    guest.run(["hotdump", "test", "--really-crash"])?.says("not crashed")?.exits(1)?;
    let mut guest = guest.reboot()?;
    up(&mut guest)?;
    guest_status(&mut guest)?;
    let checked = guest.run(["hotdump", "target", "check"])?;
    guest.say(checked.ok()?);
    checked.says("READY: ")?;
    guest.run(["hotdump", "test"])?.says("NOT TESTED")?.exits(4)?;
    let told = guest.run(["hotdump", "estimate"])?;
    guest.say(told.ok()?);
    told.says("sizes alone")?;

    let crashed = guest.crash_by_running("hotdump test --really-crash --yes")?;
    crashed.saved_by_hotdump()?;
    let log = crashed.dump()?.text("vmcore-dmesg.txt")?;
    ensure!(log.contains("hotdump: test crash "), "the test itself did not crash the machine");
    let mut guest = crashed.boot_again()?;
    up(&mut guest)?;
    let came = guest.run(["hotdump", "test"])?;
    guest.say(came.ok()?);
    came.says("PASSED: ")?;
    let text = guest_status(&mut guest)?;
    ensure!(text.contains("the dump arrived:"), "{text}");
    let told = guest.run(["hotdump", "estimate"])?;
    guest.say(told.ok()?);
    told.says("what the last capture took")?;
    // A test whose dump went away has failed.
    guest.shell("rm -r /var/crash/*")?.ok()?;
    guest.run(["hotdump", "test"])?.says("FAILED: ")?.exits(2)?;
    // A directory that is hidden by another filesystem is found on its own.
    let line =
        "mount -t tmpfs none /var/crash && hotdump target check; code=$?; umount /var/crash; exit $code";
    let hidden = guest.shell(line)?;
    guest.say(hidden.ok()?);
    hidden.says("for this check")?;
    Ok(())
}
