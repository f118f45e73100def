//! x86_64: bzImage, boot_params, the 64-bit boot protocol (Documentation/arch/x86/boot.rst).
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, unused_imports, reason = "compiled for its tests, nobody calls it there")
)]

mod boot_data;
mod control_pages;
mod image;

use crate::syscall::KEXEC_CRASH_HOTPLUG_SUPPORT;

pub(crate) use boot_data::BootData;
pub(crate) use control_pages::control_pages;
pub(crate) use image::BzImage as Image;
#[cfg(test)]
pub(crate) use image::sample as sample_kernel;

/// Size of a page, in bytes.
const PAGE: u64 = 4096;

/// What segments are aligned to and rounded up to: whole pages.
pub(crate) const SEGMENT_ALIGN: u64 = PAGE;

/// Whether boot data changes when CPUs come: no, the capture kernel boots on whichever CPU crashed.
pub(crate) const BOOT_DATA_FOLLOWS_CPUS: bool = false;

/// Whether low memory is copied aside for the dump.
pub(crate) const KEEPS_LOW_MEMORY: bool = false;

/// kexec_load, x86 from 6.6: the elfcorehdr segment may be rewritten.
const KEXEC_UPDATE_ELFCOREHDR: u64 = 0x4;

/// Flags of kexec_load that let the running kernel change what CPUs and memory that come or go concern, newest first. 6.10 and
/// later know the first; those before (from 6.6 on) only the second.
pub(crate) const HOTPLUG_FLAGS: &[u64] = &[KEXEC_CRASH_HOTPLUG_SUPPORT, KEXEC_UPDATE_ELFCOREHDR];

/// What a capture kernel is told unless the command line says otherwise, see [`crate::cmdline::DEFAULTS`].
pub(crate) const CMDLINE_DEFAULTS: &[&str] = &["nr_cpus=1", "reset_devices", "irqpoll", "acpi_no_memhotplug"];

/// See [`crate::cmdline::SMALL_BOUNCE`].
pub(crate) const SMALL_BOUNCE: &[&str] = &["swiotlb=4096"];

/// See [`crate::cmdline::bounce_buffers`]: 64 MiB is the kernel's own number (IO_TLB_DEFAULT_SIZE).
pub(crate) const fn bounce_buffers(small: bool) -> u64 {
    if small { 4096 * 2048 } else { 64 << 20 }
}

/// What a kernel file should be, and what distributions call it.
pub(crate) const KERNEL_FILE: (&str, &str) = ("bzImage", "/boot/vmlinuz-<release>");

/// The machine of the crash header.
pub(crate) const MACHINE: elfcorehdr::Machine = elfcorehdr::Machine::X86_64;

/// Bytes of a CPU's notes where no CPU says: two note headers with the name "CORE", and struct elf_prstatus (336 bytes).
pub(crate) const CRASH_NOTES_SIZE: u64 = 2 * (12 + 8) + 336;

/// Machines that were recorded for the tests of crate `host`; the second has a kernel that keeps images current.
#[cfg(test)]
pub(crate) const SAMPLE_MACHINES: &[&str] =
    &["debian-6.1", "debian-6.12-hotplug", "debian-6.12-uefi", "debian-7.2-high"];
/// Where [`sample_kernel`] is entered, from its start.
#[cfg(test)]
pub(crate) const SAMPLE_ENTRY: u64 = 0x200;

const MIB: u64 = 1 << 20;
const FOUR_GIB: u64 = 1 << 32;
