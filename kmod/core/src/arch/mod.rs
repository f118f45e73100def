//! What differs between architectures: a table for each, so that tests can go through all of them.

use elfcorehdr::Machine;

mod ppc64;
mod x86_64;

pub use ppc64::PPC64;
pub use x86_64::X86_64;

/// What an architecture asks of a crash image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// Its crash headers.
    pub machine: Machine,
    /// Bytes of memory, from address 0 on, that are copied aside before the capture kernel runs: the header may have one entry
    /// for them, which is read from the image. 0 where there is no such thing.
    pub copied: u64,
    /// Whether its capture kernels take a device tree, which lists the CPUs.
    pub has_tree: bool,
}

/// The architecture that this is compiled for.
#[cfg(target_arch = "x86_64")]
pub const NATIVE: Arch = X86_64;
/// The architecture that this is compiled for.
#[cfg(target_arch = "powerpc64")]
pub const NATIVE: Arch = PPC64;
