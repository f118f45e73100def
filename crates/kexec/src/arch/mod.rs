//! What differs by architecture. Each folder gives, under these names:
//!
//! | name | what |
//! | --- | --- |
//! | `Image` | a kernel image: parse, place, entry, payload |
//! | `BootData` | what the kernel is told: boot parameters, or a device tree |
//! | `control_pages` | what the running kernel needs of the reservation for itself |
//! | `SEGMENT_ALIGN` | what segments are aligned to: whole pages, however large the running kernel's and the capture kernel's are |
//! | `MACHINE`, `CRASH_NOTES_SIZE` | what the crash header says |
//! | `KEEPS_LOW_MEMORY` | whether purgatory copies low memory aside, so that a dump holds it |
//! | `BOOT_DATA_FOLLOWS_CPUS` | whether CPUs that come change the boot data: then it has a spare place, and no digest while it is kept current |
//! | `HOTPLUG_FLAGS` | how kexec_load is told that the running kernel keeps the image current |
//! | `CMDLINE_DEFAULTS` | what every capture kernel is told |
//! | `SMALL_BOUNCE`, `bounce_buffers` | how a capture kernel is told to set aside few bounce buffers, and how many bytes it sets aside so and else |
//! | `KERNEL_FILE` | what kernel files are called |
//!
//! What needs nothing of the native machine is compiled for the tests of every architecture.

#[cfg(any(target_arch = "powerpc64", test))]
mod ppc64;
#[cfg(any(target_arch = "x86_64", test))]
mod x86_64;

#[cfg(target_arch = "powerpc64")]
use ppc64 as native;
#[cfg(target_arch = "x86_64")]
use x86_64 as native;

pub(crate) use native::{
    BOOT_DATA_FOLLOWS_CPUS, BootData, CMDLINE_DEFAULTS, CRASH_NOTES_SIZE, HOTPLUG_FLAGS, Image,
    KEEPS_LOW_MEMORY, KERNEL_FILE, MACHINE, SEGMENT_ALIGN, SMALL_BOUNCE, bounce_buffers, control_pages,
};
#[cfg(test)]
pub(crate) use native::{SAMPLE_ENTRY, SAMPLE_MACHINES, sample_kernel};
