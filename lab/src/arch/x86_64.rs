//! The PC.

use std::process::Command;

use object::elf::EM_X86_64;

use super::Facts;
use crate::machine::{Clock, GIB, Hardware, MIB};

pub(super) const FACTS: Facts = Facts {
    name: "x86_64",
    rust_target: "x86_64-unknown-linux-gnu",
    linker: "x86_64-linux-gnu-gcc",
    cross_packages: &["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
    guest_packages: &["qemu-system-x86", "ovmf"],
    qemu: "qemu-system-x86_64",
    user_emulator: "qemu-x86_64-static",
    debian: "amd64",
    image: "vmlinuz",
    dynamic_linker: "usr/lib64/ld-linux-x86-64.so.2",
    libraries: "usr/lib/x86_64-linux-gnu",
    console: "ttyS0",
    capture_cmdline: "console=ttyS0 panic=-1 nr_cpus=1 reset_devices irqpoll acpi_no_memhotplug",
    crashkernel: "256M",
    block: 128 * MIB,
    memory: GIB,
    least_memory: (704 * MIB, "192M"),
    cpu_place: "socket-id",
    machine,
    elf_machine: EM_X86_64,
    registers: (16, 19),
};

fn machine(hardware: &Hardware, command: &mut Command) {
    match hardware.clock {
        // The serial number, vmport and hypervisor=off make 6.9 and later believe in a hypervisor. Without one they
        // count no CPUs that could be added.
        Clock::Real => {
            command.args(["-machine", "q35,vmport=on,memory-backend=ram", "-cpu", "max,hypervisor=off"]);
            command.args(["-smbios", "type=1,serial=VMware-56", "-accel", "tcg,thread=multi"]);
        }
        // With vmport QEMU 10.0 ends here ("Bad icount read").
        Clock::Instructions => {
            command.args(["-machine", "q35,memory-backend=ram", "-cpu", "max"]);
            command.args(["-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off"]);
        }
    }
    let most = hardware.cpus + 2;
    command.args(["-smp", &format!("{},sockets={most},cores=1,threads=1,maxcpus={most}", hardware.cpus)]);
}
