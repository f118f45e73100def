//! x86_64: bzImage, boot_params, the 64-bit boot protocol (Documentation/arch/x86/boot.rst).

mod boot_data;
mod bzimage;
mod control_pages;
mod e820;
mod efi;

pub(crate) use boot_data::BootData;
pub(crate) use bzimage::BzImage as Image;
#[cfg(test)]
pub(crate) use bzimage::sample as sample_kernel;
pub(crate) use control_pages::control_pages;

/// Size of a page, in bytes.
pub(crate) const PAGE: u64 = 4096;

/// The machine of the crash header.
pub(crate) const MACHINE: elfcorehdr::Machine = elfcorehdr::Machine::X86_64;

/// Bytes of a CPU's notes where no CPU says: two note headers with the name "CORE", and struct elf_prstatus (336 bytes).
pub(crate) const CRASH_NOTES_SIZE: u64 = 2 * (12 + 8) + 336;

const MIB: u64 = 1 << 20;
const FOUR_GIB: u64 = 1 << 32;
