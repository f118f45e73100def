//! 64-bit PowerPC, little-endian.

use elfcorehdr::Machine;

use super::Arch;

/// A capture kernel has its exception vectors in the first 64 KiB, and boots only on a CPU that its device tree lists.
pub const PPC64: Arch = Arch { machine: Machine::Ppc64, copied: 0x1_0000, has_tree: true };
