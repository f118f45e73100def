//! 64-bit PowerPC, little-endian.

use super::Arch;

/// A capture kernel boots only on a CPU that its device tree lists.
pub const PPC64: Arch = Arch { has_tree: true };
