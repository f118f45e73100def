//! Dumps that go to a server, and what is left when it is gone.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::scenarios;
use crate::cache::KernelLine::V6_12;
use crate::files::DUMP_LABEL;
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
    target_nfs_gone: "the NFS server is gone when the machine crashes: the log is saved on its own disk",
}

/// What is added before the crash.
const DIMM: u64 = 256 * MIB;
const OLD_MEMORY: u64 = 160 * MIB;
/// Every page is compared, so all are asked for.
const ALL_PAGES: [&str; 2] = ["--dump-level", "0"];
/// Where guests mount their own disk.
const DISK: &str = "/mnt";

fn target_nfs(lab: &Lab, name: &str) -> Result<()> {
    let server = Server::nfs(lab, name)?;
    let mut guest = boot(nfs_client(lab, name)?)?;
    prepare_nfs(&mut guest, server.port)?;
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
    let port = server.port;
    let mut guest = boot(nfs_client(lab, name)?)?;
    prepare_nfs(&mut guest, port)?;
    guest.load(By::Load, &["--hotplug", "--append", "hotdump.target-wait-seconds=10"])?;
    drop(server);
    checked(&mut guest, 2)?;
    log_is_local(guest.crash(0)?)
}

fn target_ssh(lab: &Lab, name: &str) -> Result<()> {
    let server = Server::ssh(lab, name)?;
    let plan = lab.guest(name, V6_12)?.network();
    let plan = plan.programs(&lab.sources.cache.servers()?, &["/usr/bin/ssh", "/usr/bin/ssh-keygen"])?;
    let [key, known_hosts] = server.key();
    let mut guest = boot(plan.file("/root/key", 0o600, &key).file("/root/known_hosts", 0o600, &known_hosts))?;
    let target = format!("ssh://root@{HOST}:{}", server.port);
    let files = ["--sshkey", "/root/key", "--known-hosts", "/root/known_hosts", "--local-log", "/mnt/log"];
    let argv = ["hotdump", "initramfs", "--output", CAPTURE, "--path", "/srv/dumps", "--target", &target];
    let made = guest.run(argv.into_iter().chain(files).chain(ALL_PAGES))?;
    guest.say(made.ok()?.lines().take(4).collect::<Vec<_>>().join("; "));
    checked(&mut guest, 0)?;
    guest.load(By::Load, &["--hotplug"])?;
    guest.add_memory(DIMM)?;
    guest.fill_at_most(DIMM + OLD_MEMORY)?;
    let crashed = guest.crash(0)?;
    crashed.received(&server.directory)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()
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
    // By the path, as on a machine whose /var lies there.
    let argv = [
        "hotdump",
        "initramfs",
        "--output",
        CAPTURE,
        "--path",
        "/mnt/crash",
        "--dump-level",
        "0",
        "--format",
        "elf",
    ];
    let made = guest.run(argv)?;
    guest.say(made.ok()?);
    checked(&mut guest, 0)?;
    guest.load(By::Load, &["--hotplug"])?;
    guest.add_memory(DIMM)?;
    guest.fill_at_most(DIMM + OLD_MEMORY)?;
    let crashed = guest.crash(0)?;
    crashed.left_at(LVM_HEAD)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()
}

fn nfs_client<'a>(lab: &'a Lab, name: &str) -> Result<Plan<'a>> {
    Ok(lab.guest(name, V6_12)?.network().modules(&["nfs", "nfsv4", "nfsv3"]))
}

/// Boots a guest, brings its network up and mounts its disk.
fn boot(plan: Plan) -> Result<Guest> {
    let mut guest = plan.boot()?;
    let line = format!(
        "hostname labguest && modprobe virtio_net && ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && \
         mount $(findfs LABEL={DUMP_LABEL}) {DISK}"
    );
    guest.shell(&format!("mkdir -p {DISK} && {line}"))?.ok()?;
    Ok(guest)
}

fn prepare_nfs(guest: &mut Guest, port: u16) -> Result<()> {
    let (target, options) = (format!("nfs:{HOST}:/srv/dumps"), format!("port={port}"));
    let more = ["--nfs-options", &options, "--local-log", "/mnt/log"];
    let argv = ["hotdump", "initramfs", "--output", CAPTURE, "--path", "/crash", "--target", &target];
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
        let dump = crate::dump::Dump::take_at(&self.paths.dump_disk(), offset, &self.paths.dir.join("dump"))?;
        self.tell.say(format!("found {}: {:?}", dump.origin, dump.names));
        self.dump.set(dump).ok().context("the dump was taken before")
    }

    /// Takes the one dump that lies somewhere in a directory of the host; nothing of it may be on the guest's own disk.
    fn received(&self, directory: &std::path::Path) -> Result<()> {
        let own = crate::dump::Dump::take(&self.paths.dump_disk(), &self.paths.dir.join("dump"));
        ensure!(own.is_err(), "there is a dump on the guest's own disk too: {own:?}");
        let dump = crate::dump::Dump::find(directory)?;
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
