//! Bad input: each mistake has its message, and the image that was loaded before still boots.

use anyhow::{Result, ensure};

use super::scenarios;
use crate::cache::KernelLine::V6_12;
use crate::guest::Guest;
use crate::lab::Lab;
use crate::machine::MIB;
use crate::product::By;

scenarios! {
    bad_input: "bad files, two loads at once, kill -9, kexec_load_disabled; the old image boots",
    lockdown: "a locked down kernel; the old image boots",
    no_reservation: "no crash reservation",
    small_reservation: "a crash reservation that is too small",
}

/// What is tried, with which exit code and which words it must fail.
struct Mistake {
    arguments: &'static [&'static str],
    code: i32,
    says: &'static str,
}

const fn mistake(arguments: &'static [&'static str], code: i32, says: &'static str) -> Mistake {
    Mistake { arguments, code, says }
}

/// Arguments of `hotdump load`; the files are made by [`make_bad_files`].
const MISTAKES: [Mistake; 12] = [
    mistake(&["--no-initrd", "--kernel", "/tmp/zeros"], 1, "not a bzImage: "),
    mistake(&["--no-initrd", "--kernel", "/tmp/empty"], 1, "/tmp/empty: "),
    mistake(&["--no-initrd", "--kernel", "/tmp/half"], 1, "truncated: "),
    mistake(&["--no-initrd", "--kernel", "/tmp/start"], 1, "truncated: "),
    mistake(&["--no-initrd", "--kernel", "/tmp/ppc64le"], 1, "it is a kernel for"),
    mistake(&["--no-initrd", "--kernel", "/tmp/arm64"], 1, "it is a kernel for"),
    mistake(
        &["--no-initrd", "--kernel", "/tmp/none"],
        1,
        "cannot read the crash kernel /tmp/none: No such file",
    ),
    mistake(&["--initrd", "/tmp/none"], 1, "cannot read the initramfs /tmp/none: No such file"),
    mistake(&["--initrd", "/tmp"], 1, "cannot read the initramfs /tmp: "),
    mistake(&["--initrd", "/proc/self/mem"], 1, "cannot read the initramfs /proc/self/mem: "),
    mistake(&["--no-initrd", "--mem-max", "0x100000"], 1, "leave nothing of the crash reservation"),
    mistake(&["--nonsense"], 1, "--nonsense"),
];

fn make_bad_files(guest: &mut Guest) -> Result<()> {
    guest.shell("head -c 1000000 /dev/zero > /tmp/zeros; : > /tmp/empty")?.ok()?;
    guest
        .shell("head -c 3000000 /boot/vmlinuz-* > /tmp/half; head -c 600 /boot/vmlinuz-* > /tmp/start")?
        .ok()?;
    // The first bytes of a vmlinux for 64-bit little-endian PowerPC: e_type 2 at 16, e_machine 21 at 18.
    let mut elf = [0; 4096];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    (elf[16], elf[18], elf[20], elf[52], elf[54]) = (2, 21, 1, 64, 56);
    guest.write("/tmp/ppc64le", 0o644, &elf)?;
    // An arm64 Image has its magic at byte 56.
    let mut image = [0; 4096];
    image[56..60].copy_from_slice(b"ARM\x64");
    guest.write("/tmp/arm64", 0o644, &image)
}

/// Loads an image that must outlive all that follows.
fn guest_with_image(lab: &Lab, name: &str) -> Result<Guest> {
    let mut guest = lab.guest(name, V6_12)?.boot()?;
    guest.make_initramfs()?;
    guest.load(By::Load, &["--hotplug"])?;
    Ok(guest)
}

fn still_loaded(guest: &mut Guest, after: &str) -> Result<()> {
    let loaded = guest.read_text("/sys/kernel/kexec_crash_loaded")?;
    ensure!(loaded == "1", "after {after} no crash image is loaded");
    Ok(())
}

fn old_image_boots(mut guest: Guest) -> Result<()> {
    guest.verify_says_complete()?;
    guest.fill_at_most(64 * MIB)?;
    let crashed = guest.crash(0)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()
}

fn bad_input(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = guest_with_image(lab, name)?;
    make_bad_files(&mut guest)?;
    for syscall in ["load", "file"] {
        for Mistake { arguments, code, says } in &MISTAKES {
            // Only for kexec_load are addresses chosen and files read by the program.
            if syscall == "file"
                && (arguments.contains(&"--mem-max") || arguments.contains(&"/proc/self/mem"))
            {
                continue;
            }
            let all = ["hotdump", "load", "--syscall", syscall].into_iter().chain(arguments.iter().copied());
            guest.run(all)?.says(says)?.exits(*code)?;
            still_loaded(&mut guest, &arguments.join(" "))?;
        }
        let long = "x".repeat(3000);
        let all = ["hotdump", "load", "--syscall", syscall, "--no-initrd", "--append", &long];
        guest.run(all)?.says("command line: ")?.exits(1)?;
        still_loaded(&mut guest, "a long command line")?;
        let all = ["hotdump", "load", "--syscall", syscall, "--no-initrd"];
        guest.run_as(Some(65534), all)?.says("root")?.exits(1)?;
        still_loaded(&mut guest, "a load by nobody")?;
    }
    guest.say("every mistake has its message");
    guest.write("/tmp/at-once", 0o755, AT_ONCE)?;
    guest.run(["/tmp/at-once"])?.says("exit codes 0 0")?.ok()?;
    still_loaded(&mut guest, "two loads at once")?;
    guest.write("/tmp/killed", 0o755, KILLED)?;
    let killed = guest.run(["/tmp/killed"])?;
    killed.says("exit code 137")?.ok()?;
    still_loaded(&mut guest, "kill -9")?;
    guest.say("two loads at once, and loads that are killed, leave an image");
    guest.shell("echo 1 > /proc/sys/kernel/kexec_load_disabled")?.ok()?;
    for syscall in ["load", "file"] {
        let refused = guest.run(["hotdump", "load", "--syscall", syscall, "--no-initrd"])?;
        refused.says("kexec_load_disabled")?.exits(1)?;
        still_loaded(&mut guest, "kexec_load_disabled")?;
    }
    old_image_boots(guest)
}

const AT_ONCE: &[u8] = b"\
#!/bin/sh
load='hotdump load --hotplug --syscall load --initrd /boot/initrd-capture.img'
$load > /dev/null & first=$!
$load > /dev/null & second=$!
wait $first; one=$?
wait $second; two=$?
echo exit codes $one $two
";

/// Kills loads at different moments. Those that were not yet at the system call must leave the old image; a system call
/// under way is not interrupted.
const KILLED: &[u8] = b"\
#!/bin/sh
for wait in 0.02 0.05 0.1 0.2 0.3 0.4; do
    hotdump load --hotplug --syscall load --initrd /boot/initrd-capture.img > /dev/null & load=$!
    sleep $wait
    kill -9 $load
    wait $load
    echo exit code $?
    [ $(cat /sys/kernel/kexec_crash_loaded) = 1 ] || exit 1
done
";

fn lockdown(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = guest_with_image(lab, name)?;
    guest.shell("echo integrity > /sys/kernel/security/lockdown")?.ok()?;
    // By kexec_file_load the kernel wants a signature by a key that this guest, without Secure Boot, does not have.
    for syscall in ["load", "file", "auto"] {
        let refused = guest.run(["hotdump", "load", "--syscall", syscall, "--no-initrd"])?;
        refused.says("locked down (integrity)")?.exits(1)?;
        guest.say(refused.ran.stderr.trim());
        still_loaded(&mut guest, "lockdown")?;
    }
    old_image_boots(guest)
}

fn no_reservation(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = lab.guest(name, V6_12)?.no_crashkernel().boot()?;
    for syscall in ["load", "file"] {
        let refused = guest.run(["hotdump", "load", "--syscall", syscall, "--no-initrd"])?;
        refused.says("Memory for crashkernel is not reserved")?.exits(1)?;
    }
    guest.run(["hotdump", "verify"])?.says("no crash image is loaded")?.exits(4)?;
    guest.run(["hotdump", "status"])?.exits(4)?;
    Ok(())
}

fn small_reservation(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = lab.guest(name, V6_12)?.crashkernel("32M").boot()?;
    let refused = guest.run(["hotdump", "load", "--syscall", "load", "--no-initrd"])?;
    refused.says("is too small")?.says("boot with crashkernel=")?.exits(1)?;
    Ok(())
}
