//! 64-bit x86.

use elfcorehdr::Machine;

use super::Arch;

/// A capture kernel finds its CPUs by itself. Its header leaves out all low memory.
pub const X86_64: Arch = Arch { machine: Machine::X86_64, copied: 0, has_tree: false };
