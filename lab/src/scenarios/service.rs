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
use crate::userland::{DEBS, GRUB};

scenarios! {
    with packages;
    ;
    long:
    service_6_1: "a whole Debian 12: packages installed, reboot, upgrade, memory and a CPU added, panic, reboot: no command typed; the module by DKMS",
    service_6_12: "the same on Debian 13, kept current by the kernel's own handler: without hotdump-dkms",
    service_grub: "a whole Debian 13 without a reservation: what the package leaves in grub's configuration is in force after a reboot by grub",
    service_reload: "the same on Debian 13 with keep = \"reload\": hotdump watch loads again",
}

fn service_6_1(lab: &Lab, name: &str) -> Result<()> {
    service(lab, name, V6_1, "module", &["hotdump", "hotdump-dkms"], "")
}

fn service_6_12(lab: &Lab, name: &str) -> Result<()> {
    service(lab, name, V6_12, "kernel", &["hotdump"], "")
}

fn service_reload(lab: &Lab, name: &str) -> Result<()> {
    service(lab, name, V6_12, "nobody", &["hotdump"], "keep = \"reload\"")
}

/// What makes a boot loader of Debian's grub that QEMU starts as it starts a kernel: it looks for the configuration on the machine's disk.
const GRUB_LOADER: &str = "set -e; cd /root
printf '%s\n' 'search --no-floppy --label lab-dumps --set=root' 'set prefix=($root)/boot/grub' 'configfile /boot/grub/grub.cfg' > early.cfg
grub-mkimage -O i386-pc -p /boot/grub -c early.cfg -o core.img biosdisk ext2 part_msdos part_gpt linux normal search search_label \
    search_fs_uuid configfile echo test true regexp loadenv gzio serial terminal minicmd sleep all_video gfxterm
cat /usr/lib/grub/i386-pc/lnxboot.img core.img > loader";

/// As docs/guide.md has it: the package's `crashkernel=` goes into grub's configuration, and is in force from the next boot on.
fn service_grub(lab: &Lab, name: &str) -> Result<()> {
    let debs = [lab.deb("hotdump")?];
    let plan = lab.guest(name, V6_12)?.memory(GIB).no_crashkernel();
    let mut guest = plan.debian_with(Some(GRUB), &debs)?.boot()?;
    up(&mut guest)?;
    // What an installed machine has. The console is the lab's.
    let settings = "printf '%s\n' GRUB_TIMEOUT=0 GRUB_TERMINAL=serial 'GRUB_CMDLINE_LINUX=\"console=ttyS0 panic=-1\"' >> /etc/default/grub";
    finished(&mut guest, &format!("{settings}; mkdir -p /boot/grub; update-grub"))?;
    finished(&mut guest, GRUB_LOADER)?;
    let loader = guest.read("/root/loader")?;
    install(&mut guest, &debs)?;
    guest.shell("grep crashkernel= /boot/grub/grub.cfg")?.says("crashkernel=512M-:256M")?;
    guest.shell("echo 'dump-level = 0' >> /etc/hotdump/hotdump.toml")?.ok()?;
    let mut guest = guest.reboot_by(&loader)?;
    up(&mut guest)?;
    let cmdline = guest.read_text("/proc/cmdline")?;
    guest.say(&cmdline);
    ensure!(cmdline.contains(" crashkernel=512M-:256M") && cmdline.contains("BOOT_IMAGE="), "{cmdline}");
    kept_by(&mut guest, "kernel")?;
    guest.add_memory(256 * MIB)?;
    becomes_current(&mut guest, "kernel")?;
    guest.fill_at_most(512 * MIB)?;
    let crashed = guest.crash(0)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()?;
    let mut guest = crashed.boot_again()?;
    up(&mut guest)?;
    guest.run(["hotdump", "dumps", "list"])?.says("sysrq triggered crash").map(drop)
}

/// Installs `packages` on a kernel of `line`, with a line of configuration, upgrades them, and lives through a crash; `keeper` is who
/// must keep the image current.
fn service(
    lab: &Lab,
    name: &str,
    line: KernelLine,
    keeper: &str,
    packages: &[&str],
    configured: &str,
) -> Result<()> {
    let before = packages.iter().map(|package| lab.earlier_deb(package)).collect::<Result<Vec<_>>>()?;
    let after = packages.iter().map(|package| lab.deb(package)).collect::<Result<Vec<_>>>()?;
    let mut guest = lab.guest(name, line)?.memory(GIB).debian(&[&*before, &*after].concat())?.boot()?;
    up(&mut guest)?;
    install(&mut guest, &before)?;
    // Every page is compared.
    let lines = format!("dump-level = 0\n{configured}");
    guest.shell(&format!("echo '{lines}' >> /etc/hotdump/hotdump.toml; hotdump config check"))?.ok()?;
    let mut guest = guest.reboot()?;
    up(&mut guest)?;
    let status = status(&mut guest)?;
    ensure!(status["loaded"] == true, "the service has loaded nothing: {status}");
    walk(
        &mut guest,
        &["hotdump config check", "hotdump config show", "systemctl status hotdump", "hotdump status"],
    )?;
    kept_by(&mut guest, keeper)?;
    upgrade(&mut guest, &after)?;
    kept_by(&mut guest, keeper)?;
    guest.add_memory(256 * MIB)?;
    let new = guest.add_cpu()?;
    becomes_current(&mut guest, keeper)?;
    kept_by(&mut guest, keeper)?;
    guest.fill_at_most(640 * MIB)?;
    guest.verify_says_complete()?;
    let crashed = guest.crash(new)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()?;
    let mut guest = crashed.boot_again()?;
    up(&mut guest)?;
    guest.verify_says_complete()?;
    guest.run(["hotdump", "dumps", "list"])?.says("sysrq triggered crash")?;
    walk(
        &mut guest,
        &[
            "hotdump dumps list",
            "hotdump dumps show",
            "hotdump dumps check",
            "ls /var/crash/*/",
            "hotdump dump info /var/crash/*/vmcore",
        ],
    )?;
    for_root_alone(&mut guest)?;
    purge(&mut guest)
}

/// Does what docs/guide.md has a newcomer do.
fn walk(guest: &mut Guest, lines: &[&str]) -> Result<()> {
    for line in lines {
        let done = guest.shell(line)?;
        done.ok()?;
        guest.say(format!("{done}"));
    }
    Ok(())
}

/// The image must be current and kept so by `keeper`; `hotdump watch` must run where that is nobody, and nowhere else.
fn kept_by(guest: &mut Guest, keeper: &str) -> Result<()> {
    let verified: Value = serde_json::from_str(guest.run(["hotdump", "verify", "--json"])?.ok()?)?;
    ensure!(verified["kept_by"] == keeper, "kept current by {}, not by {keeper}", verified["kept_by"]);
    let state =
        guest.shell("systemctl is-active hotdump-watch; ls /run/hotdump-watch > /dev/null && echo there")?;
    let wanted = if keeper == "nobody" { "active\nthere\n" } else { "inactive\n" };
    ensure!(state.ran.stdout == wanted, "hotdump watch: {state}");
    guest.say(format!(
        "kept current by {keeper}; hotdump-watch.service: {}",
        state.ran.stdout.lines().next().unwrap_or("?")
    ));
    Ok(())
}

/// Memory and CPUs have changed: the image must be current, at once or after hotdump watch has loaded again.
fn becomes_current(guest: &mut Guest, keeper: &str) -> Result<()> {
    if keeper == "nobody" {
        loads_again(guest)?;
    }
    settled(guest)?;
    guest.verify_says_complete()
}

/// Waits until hotdump watch has loaded again. It says so when it has looked at what it loaded: the image is current before that.
fn loads_again(guest: &mut Guest) -> Result<()> {
    let start = Instant::now();
    loop {
        let log = guest.shell("journalctl --unit hotdump-watch --output cat --no-pager")?;
        if log.says("loaded again in").is_ok() {
            guest.say(log.ok()?.trim());
            return Ok(());
        }
        ensure!(start.elapsed() < patience(60), "hotdump watch has not loaded again: {log}");
        sleep(Duration::from_millis(500));
    }
}

/// Upgrades the packages. The image that is loaded must be there all the time.
fn upgrade(guest: &mut Guest, packages: &[PathBuf]) -> Result<()> {
    guest.sample("/sys/kernel/kexec_crash_loaded")?;
    install(guest, packages)?;
    settled(guest)?;
    let samples = guest.sampled()?;
    let without = samples.without("1");
    guest.say(format!(
        "upgraded: looked {} times in {:.1} s, without an image: {without:?} ns",
        samples.count,
        samples.nanoseconds as f64 / 1e9
    ));
    ensure!(samples.count > 100 && without.is_empty(), "without an image: {samples:?}");
    guest.verify_says_complete()?;
    up(guest)
}

/// Dumps and what else is kept are for root alone, and nothing that others may read or run tells physical addresses.
fn for_root_alone(guest: &mut Guest) -> Result<()> {
    let kept = guest.shell("find /var/crash/* /var/lib/hotdump /run/hotdump -printf '%m %y %p\\n'")?;
    guest.say(kept.ok()?.trim());
    let wrong: Vec<&str> = kept
        .ran
        .stdout
        .lines()
        .filter(|line| !["600 f ", "700 d "].contains(&line.get(..6).unwrap_or_default()))
        .collect();
    ensure!(wrong.is_empty(), "for others than root: {wrong:?}");
    ensure!(kept.ran.stdout.contains("/vmcore\n"), "no dump is there: {kept}");
    // What DKMS leaves is of the module's build, a kernel's configuration among it, and not of this machine.
    let line = "for file in $(find /run /var/lib /var/crash /sys/class/misc/hotdump/ /sys/module/hotdump /dev -type f -readable 2> /dev/null \
        | grep -E 'hotdump|crash' | grep -v ^/var/lib/dkms/); do echo \"== $file\"; cat $file; done; hotdump status; hotdump status --json; hotdump verify --json; hotdump map; true";
    let others = guest.run_as(Some(65534), ["sh", "-c", line])?;
    let tells = |word: &str| {
        let digits = word.strip_prefix("0x").unwrap_or_default();
        digits.len() > 4
            && digits.chars().all(|digit| digit.is_ascii_hexdigit())
            && digits.chars().any(|digit| digit != '0')
    };
    let told = others.printed();
    let addresses: Vec<&str> =
        told.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| tells(word)).collect();
    ensure!(addresses.is_empty(), "others are told {addresses:?}: {others}");
    Ok(())
}

/// Installs packages, as files, by apt. DKMS builds the module in the guest meanwhile.
pub(super) fn install(guest: &mut Guest, packages: &[PathBuf]) -> Result<()> {
    let start = Instant::now();
    let names = packages.iter().filter_map(|path| path.file_name()?.to_str());
    let debs: String =
        names.filter(|name| name.ends_with(".deb")).map(|name| format!(" {DEBS}/{name}")).collect();
    finished(guest, &format!("DEBIAN_FRONTEND=noninteractive apt-get install --yes{debs}"))?;
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
pub(super) fn settled(guest: &mut Guest) -> Result<()> {
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
