//! 64-bit PowerPC, little-endian: pseries.

use std::process::Command;

use object::elf::EM_PPC64;

use super::Facts;
use crate::machine::{Clock, Hardware, MIB};

pub(super) const FACTS: Facts = Facts {
    name: "ppc64le",
    rust_target: "powerpc64le-unknown-linux-gnu",
    linker: "powerpc64le-linux-gnu-gcc",
    cross_packages: &["gcc-powerpc64le-linux-gnu", "libc6-dev-ppc64el-cross"],
    guest_packages: &["qemu-system-ppc", "qemu-user-static", "device-tree-compiler"],
    qemu: "qemu-system-ppc64",
    user_emulator: "qemu-ppc64le-static",
    debian: "ppc64el",
    image: "vmlinux",
    dynamic_linker: "usr/lib64/ld64.so.2",
    libraries: "usr/lib/powerpc64le-linux-gnu",
    console: "hvc0",
    // Before 6.9 nr_cpus=1 fails where the crash was not on the CPU that booted.
    capture_cmdline: "console=hvc0 panic=-1 maxcpus=1 reset_devices irqpoll",
    crashkernel: "512M",
    block: 256 * MIB,
    memory: 1536 * MIB,
    least_memory: (1280 * MIB, "448M"),
    cpu_place: "core-id",
    machine,
    elf_machine: EM_PPC64,
    registers: (32, 1),
};

fn machine(hardware: &Hardware, command: &mut Command) {
    // TCG has no transactional memory.
    command.args(["-machine", "pseries,cap-htm=off,memory-backend=ram", "-cpu", "power9"]);
    match hardware.clock {
        Clock::Real => command.args(["-accel", "tcg,thread=multi"]),
        Clock::Instructions => command.args(["-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off"]),
    };
    let most = hardware.cpus + 2;
    command.args(["-smp", &format!("{},sockets=1,cores={most},threads=1,maxcpus={most}", hardware.cpus)]);
}
