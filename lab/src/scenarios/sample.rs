//! Raw dumps to measure with.

use anyhow::{Result, ensure};

use super::scenarios;
use super::service::{finished, install, up};
use crate::cache::KernelLine::V6_12;
use crate::check::Core;
use crate::lab::Lab;
use crate::machine::{GIB, MIB};

scenarios! {
    with packages;
    ;
    long:
    sample: "a raw dump of a whole Debian 13 of 1 GiB that has worked, for `cargo xtask bench dump`; HOTDUMP_LAB_KEEP=1 keeps it",
}

/// What programs leave in memory: files that were read, text, what does not shrink.
pub(super) const WORK: &str = "\
    find /usr -xdev -type f -exec cat {} + > /dev/null; \
    dd if=/dev/urandom of=/dev/shm/noise bs=1M count=64 status=none; \
    perl -e '$| = 1; push @a, sprintf(\"line %d of some text, %x\\n\", $_, $_ * 40503) for 1..1000000; print \"done\"; sleep' > /run/text & \
    while ! grep -q done /run/text; do sleep 1; done; sync";

fn sample(lab: &Lab, name: &str) -> Result<()> {
    let debs = [lab.deb("hotdump")?];
    let mut guest = lab.guest(name, V6_12)?.memory(GIB).debian(&debs)?.boot()?;
    up(&mut guest)?;
    install(&mut guest, &debs)?;
    guest.shell("printf 'dump-level = 0\\nformat = \"elf\"\\n' >> /etc/hotdump/hotdump.toml")?.ok()?;
    let mut guest = guest.reboot()?;
    up(&mut guest)?;
    finished(&mut guest, WORK)?;
    let crashed = guest.crash(0)?;
    let report = crashed.report()?;
    crashed.tell.say(format!("memory: {}; seconds: {}", report["memory"], report["seconds"]));
    let core = crashed.dump()?.vmcore()?;
    let held = Core::open(&core, crashed.arch)?.held();
    ensure!(held > 700 * MIB, "the dump holds {held} bytes");
    crashed.tell.say(core.display());
    Ok(())
}
