//! Machines that panic amid work, and whose dumps people's debuggers read: raw, and with all left out that can be.

use anyhow::{Context, Result, ensure};

use super::scenarios;
use crate::cache::KernelLine::{self, V6_1, V6_12, V7};
use crate::check::Core;
use crate::files::DUMP_LABEL;
use crate::judge::{Judge, KDUMP};
use crate::lab::Lab;
use crate::machine::{GIB, MIB};
use crate::product::By;

scenarios! {
    ;
    long:
    judged_6_1: "6.1 panics under load: drgn and crash find the same in its dump of level 31 as in the raw one",
    judged_6_12: "the same on 6.12",
    judged_7: "the same on 7.x",
    huge_6_1: "6.1, a huge page of 1 GiB from boot on, most of its page structures given back: level 8 leaves it out, and drgn finds the same",
    huge_6_12: "the same on 6.12",
    huge_7: "the same on 7.x, whose huge pages are without most structures before there are any",
}

/// How much of memory is a program's that does nothing.
const IDLE: u64 = 64 * MIB;

/// Work of many kinds: programs that sleep, programs that come and go, files of the initramfs that are read, files of ext4 that are
/// written and read again, pipes.
const WORK: &str = "
mkdir -p /mnt /tmp && mount -t tmpfs tmpfs /tmp && mount -t ext4 $(findfs LABEL=@) /mnt && mkdir /mnt/work || exit 1
exec > /dev/null 2>&1 < /dev/null
for i in $(seq 100); do sleep 10000 & done
(while :; do find /usr /boot /sys -type f 2> /dev/null | sort | md5sum; done) &
(while :; do cat /boot/* | gzip | md5sum; done) &
(n=0; while :; do n=$(((n + 1) % 200)); dd if=/dev/urandom of=/mnt/work/$n bs=16k count=16; md5sum /mnt/work/*; done) &
(while :; do for i in $(seq 50); do mkdir -p /tmp/d/$i && cp /etc/passwd /tmp/d/$i/; done; rm -r /tmp/d; done) &
sleep 20
";

/// Crashes a guest under load, and has its dump judged.
pub(super) fn judged(lab: &Lab, name: &str, kernel: KernelLine) -> Result<()> {
    let mut guest = lab.guest(name, kernel)?.boot()?;
    let tell = guest.tell().clone();
    let judge = Judge::new(lab, &guest.kernel, &tell)?;
    guest.make_initramfs()?;
    guest.load(By::Load, &[])?;
    guest.fill_at_most(IDLE)?;
    guest.shell(&WORK.replace('@', DUMP_LABEL))?.ok()?;
    let crashed = guest.crash(1)?;
    crashed.complete()?;
    judge.filtered_is_as_good(&crashed.dump()?.vmcore()?)
}

fn judged_6_1(lab: &Lab, name: &str) -> Result<()> {
    judged(lab, name, V6_1)
}

fn judged_6_12(lab: &Lab, name: &str) -> Result<()> {
    judged(lab, name, V6_12)
}

fn judged_7(lab: &Lab, name: &str) -> Result<()> {
    judged(lab, name, V7)
}

/// Has a user's huge page left out at the level for that.
fn huge(lab: &Lab, name: &str, kernel: KernelLine) -> Result<()> {
    let words = "hugetlb_free_vmemmap=on hugepagesz=1G hugepages=1";
    let mut guest = lab.guest(name, kernel)?.memory(4 * GIB).cmdline(words).boot()?;
    let tell = guest.tell().clone();
    let judge = Judge::new(lab, &guest.kernel, &tell)?;
    guest.make_initramfs()?;
    guest.load(By::Load, &[])?;
    guest
        .shell("dmesg | grep -i -e hugetlb -e vmemmap; cat /proc/sys/vm/hugetlb_optimize_vmemmap")?
        .says("1.00 GiB")?;
    guest.fill_huge(GIB, 64 * MIB)?;
    let crashed = guest.crash(1)?;
    crashed.complete()?;
    let raw = crashed.dump()?.vmcore()?;
    let filtered = raw.with_extension("8");
    judge.filter(&raw, &filtered, 8, KDUMP)?;
    judge.drgn_agrees(&raw, &filtered)?;
    let [before, after] = [&raw, &filtered].map(|dump| Core::open(dump, crashed.arch));
    let (before, after) = (before?, after?);
    let gone = before.held() - after.held();
    // Programs of the guest have little beside it.
    ensure!((GIB..GIB + GIB / 8).contains(&gone), "{gone} bytes are left out");
    let manifest = crashed.manifest.as_ref().context("no memory was filled")?;
    let findings = after.compare(manifest, &[])?;
    ensure!(findings.missing == findings.pages, "of the huge page something is in the dump: {findings}");
    Ok(())
}

fn huge_6_1(lab: &Lab, name: &str) -> Result<()> {
    huge(lab, name, V6_1)
}

fn huge_6_12(lab: &Lab, name: &str) -> Result<()> {
    huge(lab, name, V6_12)
}

fn huge_7(lab: &Lab, name: &str) -> Result<()> {
    huge(lab, name, V7)
}
