//! The rounds, each a story.

use anyhow::{Result, ensure};

use crate::cache::KernelLine;
use crate::lab::Lab;
use crate::machine::MIB;

/// kexec-tools and a capture initramfs of busybox: what proves that the lab can be trusted.
pub fn control(lab: &Lab) -> Result<()> {
    let mut guest = lab.guest("control", KernelLine::V6_12)?.busybox_capture().boot()?;
    guest.shell("kexec -p /boot/vmlinuz-* --initrd=/boot/capture-busybox.cpio --hotplug --append='console=ttyS0 nr_cpus=1 reset_devices irqpoll acpi_no_memhotplug panic=-1'")?.ok()?;
    guest.add_memory(256 * MIB)?;
    guest.add_memory(256 * MIB)?;
    guest.add_cpu()?;
    guest.fill(128 * MIB)?;
    let crashed = guest.crash(1)?;
    let (core, findings) = crashed.compare()?;
    findings.all_right()?;
    ensure!(core.cpu_notes() == crashed.before.online_cpus.len(), "{} CPU notes", core.cpu_notes());
    Ok(())
}
