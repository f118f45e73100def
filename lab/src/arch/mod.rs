//! What differs between the architectures: names, packages, the virtual machine, what a dump's notes look like. Each has
//! a file of its own with the same things in it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use object::elf::Machine;

use crate::machine::Hardware;

mod ppc64;
mod x86_64;

/// An architecture that hotdump runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// The PC.
    X86_64,
    /// 64-bit PowerPC, little-endian: pseries.
    Ppc64,
}

/// What there is to say of an architecture.
struct Facts {
    name: &'static str,
    rust_target: &'static str,
    linker: &'static str,
    cross_packages: &'static [&'static str],
    guest_packages: &'static [&'static str],
    qemu: &'static str,
    user_emulator: &'static str,
    debian: &'static str,
    image: &'static str,
    dynamic_linker: &'static str,
    libraries: &'static str,
    console: &'static str,
    capture_cmdline: &'static str,
    crashkernel: &'static str,
    block: u64,
    memory: u64,
    least_memory: (u64, &'static str),
    cpu_place: &'static str,
    machine: fn(&Hardware, &mut Command),
    elf_machine: Machine,
    /// Places in the general registers of NT_PRSTATUS: instruction pointer, stack pointer.
    registers: (usize, usize),
}

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 2] = [Arch::X86_64, Arch::Ppc64];

    const fn facts(self) -> &'static Facts {
        match self {
            Arch::X86_64 => &x86_64::FACTS,
            Arch::Ppc64 => &ppc64::FACTS,
        }
    }

    /// The architecture of this [name](Arch::name).
    pub fn of_name(name: &str) -> Result<Arch> {
        let known = Arch::ALL.map(Arch::name).join(", ");
        let found = Arch::ALL.into_iter().find(|arch| arch.name() == name);
        found.with_context(|| format!("architecture {name} is not supported: {known} are"))
    }

    /// The architecture of this machine.
    pub const fn native() -> Arch {
        if cfg!(target_arch = "powerpc64") { Arch::Ppc64 } else { Arch::X86_64 }
    }

    /// Its name, as `uname -m` prints it.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Rust's name for programs on Linux there.
    pub const fn rust_target(self) -> &'static str {
        self.facts().rust_target
    }

    /// The compiler of C that links programs for it where it is not this machine's.
    pub const fn linker(self) -> &'static str {
        self.facts().linker
    }

    /// Debian's packages that it takes to build for it on another machine.
    pub const fn cross_packages(self) -> &'static [&'static str] {
        self.facts().cross_packages
    }

    /// Debian's packages that it takes to have guests of it, QEMU first.
    pub const fn guest_packages(self) -> &'static [&'static str] {
        self.facts().guest_packages
    }

    /// QEMU's program for it.
    pub const fn qemu(self) -> &'static str {
        self.facts().qemu
    }

    /// Debian's name for it.
    pub const fn debian(self) -> &'static str {
        self.facts().debian
    }

    /// How the names of its kernel images begin.
    pub const fn image(self) -> &'static str {
        self.facts().image
    }

    /// Where the dynamic linker is, in Debian's packages and in a guest.
    pub const fn dynamic_linker(self) -> &'static str {
        self.facts().dynamic_linker
    }

    /// Where the libraries are, in Debian's packages and in a guest.
    pub const fn libraries(self) -> &'static str {
        self.facts().libraries
    }

    /// What the names of Debian's cross compilers for it end in.
    pub fn compiler_suffix(self) -> &'static str {
        self.facts().linker.trim_end_matches("-gcc")
    }

    /// The kernel's console at the first serial port.
    pub const fn console(self) -> &'static str {
        self.facts().console
    }

    /// What stock tools' users put on a capture kernel's command line.
    pub const fn capture_cmdline(self) -> &'static str {
        self.facts().capture_cmdline
    }

    /// A value of `crashkernel=` that is enough.
    pub const fn crashkernel(self) -> &'static str {
        self.facts().crashkernel
    }

    /// Bytes in a block of memory, the least that can be added.
    pub const fn block(self) -> u64 {
        self.facts().block
    }

    /// Bytes of memory that a machine has at boot.
    pub const fn memory(self) -> u64 {
        self.facts().memory
    }

    /// The least memory that a round is seen to work with, in bytes, and the reservation in it as `crashkernel=` has it.
    pub const fn least_memory(self) -> (u64, &'static str) {
        self.facts().least_memory
    }

    /// What QEMU counts the places for CPUs by.
    pub const fn cpu_place(self) -> &'static str {
        self.facts().cpu_place
    }

    /// The machine of its ELF files.
    pub const fn elf_machine(self) -> Machine {
        self.facts().elf_machine
    }

    /// Puts into QEMU's command line what machine and processor are.
    pub(crate) fn machine(self, hardware: &Hardware, command: &mut Command) {
        (self.facts().machine)(hardware, command);
    }

    /// Places of instruction pointer and stack pointer in the general registers of NT_PRSTATUS, counted in registers.
    pub(crate) const fn registers(self) -> (usize, usize) {
        self.facts().registers
    }

    /// The program that runs its static programs on another machine.
    pub const fn user_emulator(self) -> &'static str {
        self.facts().user_emulator
    }

    /// A command that runs one of its programs on this machine.
    pub fn command(self, program: &Path) -> Command {
        if self == Arch::native() {
            return Command::new(program);
        }
        let mut command = Command::new(self.user_emulator());
        command.arg(program);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::Arch;

    #[test]
    fn architectures_by_name() {
        for arch in Arch::ALL {
            assert_eq!(Arch::of_name(arch.name()).unwrap(), arch);
        }
        assert!(Arch::of_name("ppc64").unwrap_err().to_string().contains("x86_64, ppc64le are"));
    }
}
