//! Dumps that go to a server, and what is left when it is gone; and to disks with more on them than an ext4 filesystem.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::scenarios;
use crate::cache::KernelLine::V6_12;
use crate::dump::Dump;
use crate::guest::{Crashed, Guest};
use crate::lab::{Lab, Plan};
use crate::machine::MIB;
use crate::product::{By, CAPTURE};
use crate::server::{HOST, Server};

scenarios! {
    ;
    long:
    target_nfs: "the dump goes to an NFS server, 6.12",
    target_ssh: "the dump goes to an SSH server that does nothing but take files, 6.12",
    target_lvm: "the dump goes to an LVM volume, 6.12",
    target_raid: "the dump goes to a software RAID 1 of two partitions that each look like the whole, 6.12",
    target_raid_half: "one half of that is lost at the crash: the capture goes on with the other, once half of its wait is over",
    target_xfs: "the dump goes to an xfs filesystem, 6.12",
    target_btrfs: "the dump goes to a subvolume of a btrfs filesystem, 6.12",
    target_nfs_test: "`hotdump test` crashes a machine whose dumps go to an NFS server, asks the server after the reboot, and says where it is gone",
    target_ssh_test: "the same with an SSH server",
    target_nfs_gone: "the NFS server is gone when the machine crashes: the log is saved on its own disk",
    target_ssh_gone: "the same with an SSH server",
}

/// What is added before the crash.
const DIMM: u64 = 256 * MIB;
const OLD_MEMORY: u64 = 160 * MIB;
/// Every page is compared, so all are asked for.
const ALL_PAGES: [&str; 2] = ["--dump-level", "0"];

fn target_nfs(lab: &Lab, name: &str) -> Result<()> {
    let server = Server::nfs(lab, name)?;
    let mut guest = boot(nfs_client(lab, name)?)?;
    prepare_nfs(&mut guest, server.port, CAPTURE)?;
    checked(&mut guest, 0)?;
    guest.load(By::Load, &["--hotplug"])?;
    guest.add_memory(DIMM)?;
    guest.verify_says_complete()?;
    guest.fill_at_most(DIMM + OLD_MEMORY)?;
    let crashed = guest.crash(0)?;
    crashed.received(&server.directory)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()
}

fn target_nfs_gone(lab: &Lab, name: &str) -> Result<()> {
    let server = Server::nfs(lab, name)?;
    let mut guest = boot(nfs_client(lab, name)?)?;
    prepare_nfs(&mut guest, server.port, CAPTURE)?;
    crash_without(guest, server)
}

fn target_ssh_gone(lab: &Lab, name: &str) -> Result<()> {
    let server = Server::ssh(lab, name)?;
    let mut guest = boot(ssh_client(lab, name, &server)?)?;
    prepare_ssh(&mut guest, server.port, CAPTURE)?;
    crash_without(guest, server)
}

/// The server goes before the crash.
fn crash_without(mut guest: Guest, server: Server) -> Result<()> {
    guest.load(By::Load, &["--hotplug", "--append", "hotdump.target-wait-seconds=10"])?;
    drop(server);
    checked(&mut guest, 2)?;
    log_is_local(guest.crash(0)?)
}

fn target_ssh(lab: &Lab, name: &str) -> Result<()> {
    let server = Server::ssh(lab, name)?;
    let mut guest = boot(ssh_client(lab, name, &server)?)?;
    prepare_ssh(&mut guest, server.port, CAPTURE)?;
    checked(&mut guest, 0)?;
    guest.load(By::Load, &["--hotplug"])?;
    guest.add_memory(DIMM)?;
    guest.fill_at_most(DIMM + OLD_MEMORY)?;
    let crashed = guest.crash(0)?;
    crashed.received(&server.directory)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()
}

fn target_nfs_test(lab: &Lab, name: &str) -> Result<()> {
    let server = Server::nfs(lab, name)?;
    let mut guest = boot(nfs_client(lab, name)?)?;
    guest.shell(STATE)?.ok()?;
    prepare_nfs(&mut guest, server.port, KEPT)?;
    rehearse(guest, server, "modprobe nfsv4")
}

fn target_ssh_test(lab: &Lab, name: &str) -> Result<()> {
    let server = Server::ssh(lab, name)?;
    let mut guest = boot(ssh_client(lab, name, &server)?)?;
    guest.shell(STATE)?.ok()?;
    prepare_ssh(&mut guest, server.port, KEPT)?;
    rehearse(guest, server, "true")
}

/// Has what hotdump keeps over a reboot lie on the guest's own disk.
const STATE: &str = "mkdir -p /mnt/state /var/lib && ln -s /mnt/state /var/lib/hotdump";
/// The capture initramfs where it outlives the reboot.
const KEPT: &str = "/mnt/state/initrd.img";

/// Crashes a guest whose dumps go to `server` by `hotdump test`, and has that tell how it came out: after the reboot, for which `more` is
/// run, without the dump, and without the server.
fn rehearse(mut guest: Guest, server: Server, more: &str) -> Result<()> {
    guest.run(["hotdump", "test"])?.says("NOT TESTED")?.exits(4)?;
    let loaded = guest.run(["hotdump", "load", "--hotplug", "--initrd", KEPT])?;
    guest.say(loaded.ok()?.trim());
    guest.add_memory(DIMM)?;
    guest.fill_at_most(DIMM + OLD_MEMORY)?;
    let crashed = guest.crash_by_running("hotdump test --really-crash --yes")?;
    crashed.received(&server.directory)?;
    crashed.complete()?;
    let log = crashed.dump()?.text("vmcore-dmesg.txt")?;
    ensure!(log.contains("hotdump: test crash "), "the test itself did not crash the machine");

    let mut guest = crashed.boot_again()?;
    guest.shell(&format!("{UP} && {STATE} && {more}"))?.ok()?;
    let came = guest.run(["hotdump", "test"])?;
    guest.say(came.ok()?);
    came.says("PASSED: ")?.says("/labguest/")?;
    guest.shell("! grep /run/hotdump /proc/mounts && ! ls /run/hotdump/check-stage")?.ok()?;
    fs::remove_dir_all(&crashed.dump()?.dir)?;
    let missing = guest.run(["hotdump", "test"])?;
    guest.say(&missing);
    missing.says("FAILED: ")?.exits(2)?;
    drop(server);
    let gone = guest.run(["hotdump", "test"])?;
    guest.say(&gone);
    gone.says("NOT SEEN: ")?.exits(3).map(drop)
}

fn ssh_client<'a>(lab: &'a Lab, name: &str, server: &Server) -> Result<Plan<'a>> {
    let plan = lab.guest(name, V6_12)?.network();
    let plan = plan.programs(&lab.sources.cache.servers()?, &["/usr/bin/ssh", "/usr/bin/ssh-keygen"])?;
    let [key, known_hosts] = server.key();
    Ok(plan.file("/root/key", 0o600, &key).file("/root/known_hosts", 0o600, &known_hosts))
}

fn prepare_ssh(guest: &mut Guest, port: u16, output: &str) -> Result<()> {
    let target = format!("ssh://root@{HOST}:{port}");
    let files = ["--sshkey", "/root/key", "--known-hosts", "/root/known_hosts", "--local-log", "/mnt/log"];
    let argv = ["hotdump", "initramfs", "--output", output, "--path", "/srv/dumps", "--target", &target];
    let made = guest.run(argv.into_iter().chain(files).chain(ALL_PAGES))?;
    guest.say(made.ok()?.lines().take(4).collect::<Vec<_>>().join("; "));
    Ok(())
}

/// A volume of a group on the dump disk, with a filesystem: with a journal, because the crash does not unmount it.
const VOLUME: &str = "modprobe dm_mod && disk=$(findfs LABEL=lab-dumps) && \
    conf='activation{udev_sync=0 udev_rules=0} devices{obtain_device_list_from_udev=0 external_device_info_source=\"none\"}' && \
    lvm pvcreate -ff -y --config \"$conf\" $disk && lvm vgcreate --config \"$conf\" lab-group $disk && \
    lvm lvcreate -y -Wn -Zn --config \"$conf\" -L 4G -n dumps lab-group && /sbin/mke2fs -q -t ext4 -j -L volume /dev/mapper/lab--group-dumps && \
    mkdir -p /mnt && mount -t ext4 /dev/mapper/lab--group-dumps /mnt";
/// Bytes that LVM keeps at the start of a disk.
const LVM_HEAD: u64 = MIB;

fn target_lvm(lab: &Lab, name: &str) -> Result<()> {
    let plan = lab.guest(name, V6_12)?.modules(&["dm_mod"]);
    let mut guest = plan.programs(&lab.sources.cache.storage()?, &["/sbin/lvm", "/sbin/mke2fs"])?.boot()?;
    guest.shell(VOLUME)?.ok()?;
    let crashed = crash_below_mnt(guest, |_| Ok(()))?;
    crashed.left_at(LVM_HEAD)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()
}

/// Where the halves of the dump disk begin that [`HALVES`] makes, in bytes.
const HALF: [u64; 2] = [MIB, 4097 * MIB];
/// Makes two partitions of the dump disk, `${disk}1` and `${disk}2`. The filesystem that the whole disk was would be found on it yet.
const HALVES: &str = "disk=/dev/$(basename $(dirname $(grep -lx dump /sys/block/*/serial))) && \
    dd if=/dev/zero of=$disk bs=1M count=1 2> /dev/null && \
    printf 'label: gpt\\nstart=1MiB, size=4GiB\\nstart=4097MiB, size=4GiB\\n' | sfdisk -q $disk";
/// Makes a mirror of both halves. Its superblocks are at their ends: each half has a filesystem from its first byte on, as the mirror has.
const MIRROR: &str = "modprobe raid1 && mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.0 --assume-clean ${disk}1 ${disk}2 && \
    /sbin/mke2fs -q -t ext4 -j -L mirror /dev/md0 && mkdir -p /mnt && mount -t ext4 /dev/md0 /mnt";

fn target_raid(lab: &Lab, name: &str) -> Result<()> {
    let crashed = crash_below_mnt(mirrored(lab, name)?, |_| Ok(()))?;
    ensure!(
        crashed.console()?.contains(": /dev/md0, ext4"),
        "the dump went to something else than the mirror"
    );
    crashed.left_at(HALF[0])?;
    crashed.complete()?;
    crashed.saved_by_hotdump()?;
    // What is written to a mirror is on both of its halves.
    let other = Dump::take_at(&crashed.paths.dump_disk(), HALF[1], &crashed.paths.dir.join("other"))?;
    crate::debian::run(Command::new("cmp").arg(crashed.dump()?.vmcore()?).arg(other.vmcore()?))?;
    Ok(fs::remove_dir_all(other.dir)?)
}

/// Clears what tells the second half to be one, at its end. md writes that anew whenever writing begins and ends.
const LOSE_HALF: &str = "mount -o remount,ro /mnt && until grep -qx clean /sys/block/md0/md/array_state; do sleep 0.1; done && \
    disk=/dev/$(basename $(dirname $(grep -lx dump /sys/block/*/serial))) && \
    dd if=/dev/zero of=${disk}2 bs=4096 seek=1048560 count=16 2> /dev/null && sync && ! mdadm --examine ${disk}2";

fn target_raid_half(lab: &Lab, name: &str) -> Result<()> {
    let crashed = crash_below_mnt(mirrored(lab, name)?, |guest| guest.shell(LOSE_HALF)?.ok().map(drop))?;
    let console = crashed.console()?;
    for said in
        ["waiting for UUID=", ", but not started", "active with 1 out of 2 mirrors", ": /dev/md0, ext4"]
    {
        ensure!(console.contains(said), "the console does not say {said:?}");
    }
    crashed.left_at(HALF[0])?;
    crashed.complete()?;
    crashed.saved_by_hotdump()
}

/// A guest that has a mirror of both halves of its dump disk mounted at /mnt.
fn mirrored(lab: &Lab, name: &str) -> Result<Guest> {
    let plan = lab.guest(name, V6_12)?.modules(&["raid1"]);
    let programs = ["/sbin/sfdisk", "/sbin/mdadm", "/sbin/mke2fs"];
    let mut guest = plan.programs(&lab.sources.cache.storage()?, &programs)?.boot()?;
    guest.shell(&format!("{HALVES} && {MIRROR}"))?.ok()?;
    Ok(guest)
}

fn target_xfs(lab: &Lab, name: &str) -> Result<()> {
    filesystem(lab, name, &["xfs"], "/sbin/mkfs.xfs", "mount -t xfs ${disk}1 /mnt")
}

fn target_btrfs(lab: &Lab, name: &str) -> Result<()> {
    let mount = "mount -t btrfs ${disk}1 /mnt && btrfs subvolume create /mnt/@dumps && umount /mnt && \
        mount -t btrfs -o subvol=@dumps ${disk}1 /mnt";
    // Those behind the first it asks for by their names as algorithms, which no table of needs has.
    let modules = ["btrfs", "blake2b_generic", "xxhash_generic", "sha256_ssse3"];
    filesystem(lab, name, &modules, "/sbin/mkfs.btrfs", mount)
}

/// The dump goes to a filesystem on the dump disk whose modules are `modules`, the first by its name; `make` makes it and `mount` mounts
/// it. The lab's own reader knows ext4 only: the guest boots again and copies what it finds.
fn filesystem(lab: &Lab, name: &str, modules: &[&'static str], make: &str, mount: &str) -> Result<()> {
    let [kind, ..] = modules else { bail!("a filesystem has a module") };
    let plan = lab.guest(name, V6_12)?.modules(modules);
    let programs = ["/sbin/sfdisk", "/sbin/mke2fs", "/bin/btrfs", make];
    let mut guest = plan.programs(&lab.sources.cache.storage()?, &programs)?.boot()?;
    let made = format!("{HALVES} && modprobe {kind} && mkdir -p /mnt && {make} -q ${{disk}}1 && {mount}");
    guest.shell(&made)?.ok()?;
    let crashed = crash_below_mnt(guest, |_| Ok(()))?;
    ensure!(crashed.console()?.contains(&format!(", {kind}")), "the dump went to something else than {kind}");
    let mut guest = crashed.boot_again()?;
    let copy = format!(
        "disk=/dev/$(basename $(dirname $(grep -lx dump /sys/block/*/serial))) && modprobe {kind} && mkdir -p /mnt /copy && \
         mount -t {kind} -o ro ${{disk}}1 /mnt && /sbin/mke2fs -q -t ext4 ${{disk}}2 && mount -t ext4 ${{disk}}2 /copy && \
         cp -r /mnt/* /copy && umount /copy && umount /mnt"
    );
    guest.shell(&copy)?.ok()?;
    drop(guest);
    crashed.left_at(HALF[1])?;
    crashed.complete()?;
    crashed.saved_by_hotdump()
}

/// Has dumps go to a directory below /mnt, by its path, as on a machine whose /var/crash lies there; adds memory to what is loaded, and
/// crashes after `last`.
fn crash_below_mnt(mut guest: Guest, last: impl FnOnce(&mut Guest) -> Result<()>) -> Result<Crashed> {
    let argv = ["hotdump", "initramfs", "--output", CAPTURE, "--path", "/mnt/crash", "--format", "elf"];
    let made = guest.run(argv.into_iter().chain(ALL_PAGES))?;
    guest.say(made.ok()?);
    checked(&mut guest, 0)?;
    guest.load(By::Load, &["--hotplug"])?;
    guest.add_memory(DIMM)?;
    guest.fill_at_most(DIMM + OLD_MEMORY)?;
    last(&mut guest)?;
    guest.crash(0)
}

fn nfs_client<'a>(lab: &'a Lab, name: &str) -> Result<Plan<'a>> {
    Ok(lab.guest(name, V6_12)?.network().modules(&["nfs", "nfsv4", "nfsv3"]))
}

/// Brings a guest's network up and mounts its disk at /mnt.
const UP: &str = "hostname labguest && modprobe virtio_net && ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && \
    mkdir -p /mnt && mount $(findfs LABEL=lab-dumps) /mnt";

/// Boots a guest, brings its network up and mounts its disk.
fn boot(plan: Plan) -> Result<Guest> {
    let mut guest = plan.boot()?;
    guest.shell(UP)?.ok()?;
    Ok(guest)
}

fn prepare_nfs(guest: &mut Guest, port: u16, output: &str) -> Result<()> {
    let (target, options) = (format!("nfs:{HOST}:/srv/dumps"), format!("port={port}"));
    let more = ["--nfs-options", &options, "--local-log", "/mnt/log"];
    let argv = ["hotdump", "initramfs", "--output", output, "--path", "/crash", "--target", &target];
    let made = guest.run(argv.into_iter().chain(more).chain(ALL_PAGES))?;
    guest.say(made.ok()?.lines().take(4).collect::<Vec<_>>().join("; "));
    Ok(())
}

/// `hotdump target check` must end with this exit code, and leave nothing mounted.
fn checked(guest: &mut Guest, code: i32) -> Result<()> {
    let checked = guest.run(["hotdump", "target", "check", "--initrd", CAPTURE])?;
    guest.say(checked.printed());
    checked.exits(code)?;
    guest.shell("! grep /run/hotdump /proc/mounts")?.ok().map(drop)
}

/// The capture must have given the server up, said so, and saved the log on the guest's own disk.
fn log_is_local(crashed: Crashed) -> Result<()> {
    let dump = crashed.dump()?;
    ensure!(dump.origin.starts_with("/log/"), "the log is in {}", dump.origin);
    ensure!(!dump.has("vmcore") && !dump.has("vmcore.incomplete"), "there is a dump: {:?}", dump.names);
    let log = dump.text("vmcore-dmesg.txt")?;
    ensure!(log.contains(crate::product::PANIC_LINE), "the log does not say why");
    let report: serde_json::Value = serde_json::from_str(&dump.text("report.json")?)?;
    ensure!(report["status"] == "partial" && report["local_log"] == dump.origin, "report.json says {report}");
    let console = crashed.console()?;
    for said in
        ["did not answer within 10 s", "saving the kernel log on this machine instead", "hotdump: restarting"]
    {
        ensure!(console.contains(said), "the console does not say {said:?}");
    }
    Ok(())
}

impl Crashed {
    /// Takes the dump out of a filesystem that begins at `offset` of the dump disk.
    fn left_at(&self, offset: u64) -> Result<()> {
        let dump = Dump::take_at(&self.paths.dump_disk(), offset, &self.paths.dir.join("dump"))?;
        self.tell.say(format!("found {}: {:?}", dump.origin, dump.names));
        self.dump.set(dump).ok().context("the dump was taken before")
    }

    /// Takes the one dump that lies somewhere in a directory of the host; nothing of it may be on the guest's own disk.
    fn received(&self, directory: &std::path::Path) -> Result<()> {
        let own = Dump::take(&self.paths.dump_disk(), &self.paths.dir.join("dump"));
        ensure!(own.is_err(), "there is a dump on the guest's own disk too: {own:?}");
        let dump = Dump::find(directory)?;
        let files = dump.names.iter().map(|name| dump.dir.join(name));
        for file in files {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(&file)?.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "{} has the mode {mode:o}", file.display());
        }
        self.tell.say(format!("received {}: {:?}", dump.origin, dump.names));
        self.dump.set(dump).ok().context("the dump was taken before")
    }
}
