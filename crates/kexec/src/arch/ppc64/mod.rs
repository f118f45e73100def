//! 64-bit PowerPC, little-endian: vmlinux, a flattened device tree, the entry that kexec and firmware share
//! (Documentation/arch/powerpc/bootwrapper.rst, arch/powerpc/kernel/head_64.S).
#![cfg_attr(
    not(target_arch = "powerpc64"),
    allow(dead_code, unused_imports, reason = "compiled for its tests, nobody calls it there")
)]

mod boot_data;
mod control_pages;
mod image;

use crate::syscall::KEXEC_CRASH_HOTPLUG_SUPPORT;

pub(crate) use boot_data::BootData;
pub(crate) use control_pages::control_pages;
pub(crate) use image::Vmlinux as Image;
#[cfg(test)]
pub(crate) use image::sample as sample_kernel;

/// What segments are aligned to and rounded up to. Kernels have pages of 4 KiB or of 64 KiB, and the capture kernel need not
/// have those of the running one.
pub(crate) const SEGMENT_ALIGN: u64 = 64 << 10;

/// The machine of the crash header.
pub(crate) const MACHINE: elfcorehdr::Machine = elfcorehdr::Machine::Ppc64;

/// Bytes of a CPU's notes where no CPU says: two note headers, the name "CORE", and struct elf_prstatus (504 bytes).
pub(crate) const CRASH_NOTES_SIZE: u64 = 2 * 12 + 8 + 504;

/// Whether boot data changes when CPUs come: yes, a capture kernel boots only on a CPU that its device tree lists.
pub(crate) const BOOT_DATA_FOLLOWS_CPUS: bool = true;

/// Whether low memory is copied aside for the dump: the capture kernel puts its exception vectors there.
pub(crate) const KEEPS_LOW_MEMORY: bool = true;

/// Flags of kexec_load that let the running kernel change what CPUs and memory that come or go concern (from 6.11 on).
pub(crate) const HOTPLUG_FLAGS: &[u64] = &[KEXEC_CRASH_HOTPLUG_SUPPORT];

/// What a capture kernel is told unless the command line says otherwise, see [`crate::cmdline::DEFAULTS`]. Not `nr_cpus=1`:
/// before 6.9 that counts only the lowest-numbered CPU, and any can be the one that crashed.
pub(crate) const CMDLINE_DEFAULTS: &[&str] = &["maxcpus=1", "reset_devices", "irqpoll", "noirqdistrib"];

/// See [`crate::cmdline::SMALL_BOUNCE`].
pub(crate) const SMALL_BOUNCE: &[&str] = &[];

/// See [`crate::cmdline::bounce_buffers`].
pub(crate) const fn bounce_buffers(_: bool) -> u64 {
    0
}

/// What a kernel file should be, and what distributions call it.
pub(crate) const KERNEL_FILE: (&str, &str) =
    ("vmlinux", "/boot/vmlinux-<release> or /boot/vmlinuz-<release>");

/// Machines that were recorded for the tests of crate `host`; the second has a kernel that keeps images current.
#[cfg(test)]
pub(crate) const SAMPLE_MACHINES: &[&str] = &["debian-6.1-ppc64", "debian-6.12-ppc64"];
/// Where [`sample_kernel`] is entered, from its start.
#[cfg(test)]
pub(crate) const SAMPLE_ENTRY: u64 = 0;
