//! 64-bit x86.

use super::Arch;

/// A capture kernel finds its CPUs by itself.
pub const X86_64: Arch = Arch { has_tree: false };
