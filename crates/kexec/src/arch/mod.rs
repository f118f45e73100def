//! What differs by architecture. Each gives, under these names: `Image` (a kernel image: parse, place, entry), `BootData`
//! (what the kernel is told), `control_pages` (what the running kernel needs of the reservation), `PAGE`, `MACHINE` and
//! `CRASH_NOTES_SIZE`.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) use x86_64::sample_kernel;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{BootData, CRASH_NOTES_SIZE, Image, MACHINE, PAGE, control_pages};
