//! Recorded machines (see fixtures/README.md), fact by fact.

use elfcorehdr::Machine::{Ppc64, X86_64};
use elfcorehdr::{Note, PhysAddr, PhysRange};
use host::{
    CrashHotplug, EfiRuntimeRegion, FirmwareKind, Host, HostError, KernelText, KexecState, Lockdown,
    ModuleSwitches, Reservations, SerialPort,
};
use std::fs;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn x86(name: &str) -> Host {
    Host::recorded(fixture(name), X86_64)
}

fn ppc64(name: &str) -> Host {
    Host::recorded(fixture(name), Ppc64)
}

fn range(start: u64, end: u64) -> PhysRange {
    PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap()
}

fn note(paddr: u64, size: u64) -> Note {
    Note { paddr: PhysAddr(paddr), size }
}

struct Machine {
    name: &'static str,
    release: &'static str,
    crashkernel: &'static str,
    present: &'static [u32],
    notes: &'static [u64],
    vmcoreinfo: u64,
    ram: Vec<PhysRange>,
    expected: Vec<PhysRange>,
    reservations: Reservations,
    crash_size: u64,
    elfcorehdr_size: Option<u64>,
    crash_hotplug: Option<bool>,
    load_limit_known: bool,
    text: KernelText,
    direct_map: u64,
    rsdp: Option<u64>,
}

fn machines() -> Vec<Machine> {
    let text = |paddr, vaddr, size| KernelText { paddr: PhysAddr(paddr), vaddr, size };
    let low_ram = range(0x1000, 0x9_fc00);
    vec![
        Machine {
            name: "debian-6.1",
            release: "6.1.0-50-amd64",
            crashkernel: "crashkernel=256M",
            present: &[0, 1],
            notes: &[0x3fa3_a400, 0x3fab_a400],
            vmcoreinfo: 0x11e_6000,
            ram: vec![low_ram, range(0x10_0000, 0x3ffd_f000)],
            expected: vec![range(0x10_0000, 0x2f00_0000), range(0x3f00_0000, 0x3ffd_f000)],
            reservations: Reservations { main: range(0x2f00_0000, 0x3f00_0000), low: None },
            crash_size: 256 << 20,
            elfcorehdr_size: None,
            crash_hotplug: None,
            load_limit_known: false,
            text: text(0x1a60_0000, 0xffff_ffff_9fc0_0000, 0x343_0000),
            direct_map: 0xff14_57d9_8000_0000,
            rsdp: Some(0xf_5140),
        },
        Machine {
            name: "debian-6.12-hotplug",
            release: "6.12.95+deb12-amd64",
            crashkernel: "crashkernel=256M",
            present: &[0, 1, 2],
            notes: &[0x3fa3_d800, 0x3fab_d800, 0x3fb3_d800],
            vmcoreinfo: 0x3fac_2000,
            ram: vec![low_ram, range(0x10_0000, 0x3ffd_f000), range(0x1_0000_0000, 0x1_2000_0000)],
            expected: vec![
                range(0x10_0000, 0x2f00_0000),
                range(0x3f00_0000, 0x3ffd_f000),
                range(0x1_0000_0000, 0x1_2000_0000),
            ],
            reservations: Reservations { main: range(0x2f00_0000, 0x3f00_0000), low: None },
            crash_size: 256 << 20,
            elfcorehdr_size: Some(917_616),
            crash_hotplug: Some(false),
            load_limit_known: true,
            text: text(0x1a80_0000, 0xffff_ffff_ab80_0000, 0x2c3_0000),
            direct_map: 0xff32_23c4_0000_0000,
            rsdp: Some(0xf_5140),
        },
        Machine {
            name: "debian-6.12-uefi",
            release: "6.12.95+deb12-amd64",
            crashkernel: "crashkernel=256M",
            present: &[0, 1],
            notes: &[0x7d23_d800, 0x7d2b_d800],
            vmcoreinfo: 0x7d99_6000,
            ram: vec![
                range(0x1000, 0xa_0000),
                range(0x10_0000, 0x80_6000),
                range(0x80_8000, 0x81_0000),
                range(0x90_0000, 0x7d86_7000),
                range(0x7d87_0000, 0x7ea8_a000),
                range(0x7eb8_c000, 0x7f4e_c000),
                range(0x7f7f_e000, 0x7fed_c000),
            ],
            expected: vec![
                range(0x10_0000, 0x80_6000),
                range(0x80_8000, 0x81_0000),
                range(0x90_0000, 0x6b00_0000),
                range(0x7b00_0000, 0x7d86_7000),
                range(0x7d87_0000, 0x7ea8_a000),
                range(0x7eb8_c000, 0x7f4e_c000),
                range(0x7f7f_e000, 0x7fed_c000),
            ],
            reservations: Reservations { main: range(0x6b00_0000, 0x7b00_0000), low: None },
            crash_size: 256 << 20,
            elfcorehdr_size: Some(917_616),
            crash_hotplug: Some(false),
            load_limit_known: true,
            text: text(0x32a0_0000, 0xffff_ffff_8160_0000, 0x2c3_0000),
            direct_map: 0xff11_519d_8000_0000,
            rsdp: Some(0x7f77_d014),
        },
        Machine {
            name: "debian-7.2-high",
            release: "7.2.13+deb14-amd64",
            crashkernel: "crashkernel=256M,high",
            present: &[0, 1],
            notes: &[0x1_e9a3_a800, 0x1_e9ab_a800],
            vmcoreinfo: 0x1_009a_8000,
            ram: vec![low_ram, range(0x10_0000, 0x7ffd_f000), range(0x1_0000_0000, 0x2_0000_0000)],
            expected: vec![
                range(0x10_0000, 0x6f00_0000),
                range(0x7f00_0000, 0x7ffd_f000),
                range(0x1_0000_0000, 0x1_ef00_0000),
                range(0x1_ff00_0000, 0x2_0000_0000),
            ],
            reservations: Reservations {
                main: range(0x1_ef00_0000, 0x1_ff00_0000),
                low: Some(range(0x6f00_0000, 0x7f00_0000)),
            },
            crash_size: 512 << 20,
            elfcorehdr_size: Some(917_616),
            crash_hotplug: Some(false),
            load_limit_known: true,
            text: text(0x1_e5a0_0000, 0xffff_ffff_a460_0000, 0x323_0000),
            direct_map: 0xff43_31d3_c000_0000,
            rsdp: Some(0xf_53a0),
        },
    ]
}

#[test]
fn facts_of_each_machine() {
    for machine in machines() {
        let name = machine.name;
        let host = x86(name);
        assert_eq!(host.kernel_release().unwrap(), machine.release, "{name}");
        let cmdline = host.cmdline().unwrap();
        assert!(cmdline.split(' ').any(|word| word == machine.crashkernel), "{name}: {cmdline}");
        assert_eq!(host.boot_id().unwrap().len(), 36, "{name}");
        assert_eq!(host.lockdown().unwrap(), Lockdown::None, "{name}");
        assert_eq!(host.kexec_load_disabled().unwrap(), Some(false), "{name}");
        assert_eq!(host.kexec_load_limit_panic().unwrap(), None, "{name}");
        assert_eq!(host.serial_console().unwrap(), Some(SerialPort { io_port: 0x3f8 }), "{name}");
        assert_eq!(host.acpi_rsdp().unwrap(), machine.rsdp.map(PhysAddr), "{name}");
        assert_eq!(host.boot_params().unwrap().len(), 4096, "{name}");
    }
}

#[test]
fn memory_of_each_machine() {
    for machine in machines() {
        let name = machine.name;
        let host = x86(name);
        let iomem = host.iomem().unwrap();
        assert_eq!(iomem.ram().as_slice(), machine.ram, "{name}");
        assert_eq!(host.expected_ram().unwrap().as_slice(), machine.expected, "{name}");
        assert_eq!(host.reservations().unwrap(), Some(machine.reservations), "{name}");
        assert_eq!(host.kernel_text().unwrap(), Some(machine.text), "{name}");
        assert_eq!(iomem.kernel_code().unwrap().start(), machine.text.paddr, "{name}");
        assert_eq!(host.kcore().unwrap().direct_map_offset(), Some(machine.direct_map), "{name}");
        let memmap = host.firmware_memmap().unwrap();
        assert!(memmap.is_sorted_by_key(|entry| entry.range), "{name}");
        for ram in machine.expected {
            let firmware = memmap.iter().filter(|entry| entry.kind == FirmwareKind::SystemRam);
            let covered: elfcorehdr::RangeVec = firmware.map(|entry| entry.range).collect();
            assert!(covered.contains_range(ram), "{name}: the firmware knows of {ram}");
        }
    }
}

#[test]
fn cpus_of_each_machine() {
    for machine in machines() {
        let name = machine.name;
        let host = x86(name);
        let cpus = host.cpus().unwrap();
        assert_eq!(cpus.possible, [0, 1, 2, 3], "{name}");
        assert_eq!(
            (cpus.present.as_slice(), cpus.online.as_slice()),
            (machine.present, machine.present),
            "{name}"
        );
        let notes: Vec<Option<Note>> =
            cpus.possible.iter().map(|cpu| host.crash_notes(*cpu).unwrap()).collect();
        let mut wanted: Vec<Option<Note>> =
            machine.notes.iter().map(|paddr| Some(note(*paddr, 368))).collect();
        wanted.resize(4, None);
        assert_eq!(notes, wanted, "{name}: absent CPUs have no notes");
        assert_eq!(
            host.vmcoreinfo().unwrap(),
            note(machine.vmcoreinfo, 0x1024),
            "{name}: its size is in hex"
        );
    }
}

#[test]
fn kexec_of_each_machine() {
    for machine in machines() {
        let name = machine.name;
        let host = x86(name);
        let state = KexecState {
            crash_loaded: false,
            loaded: false,
            crash_size: machine.crash_size,
            elfcorehdr_size: machine.elfcorehdr_size,
            cma_ranges: vec![],
        };
        assert_eq!(host.kexec().unwrap(), state, "{name}");
        let hotplug = CrashHotplug { cpu: machine.crash_hotplug, memory: machine.crash_hotplug };
        assert_eq!(host.crash_hotplug().unwrap(), hotplug, "{name}");
        let limit = fixture(name).join("proc/sys/kernel/kexec_load_limit_panic");
        assert_eq!(limit.exists(), machine.load_limit_known, "{name}");
    }
}

#[test]
fn efi_leaves_its_tables() {
    let host = x86("debian-6.12-uefi");
    let efi = host.efi().unwrap().unwrap();
    assert_eq!(efi.fw_vendor, PhysAddr(0x7f52_aa18));
    assert_eq!(efi.runtime, PhysAddr(0x7f5e_bb98));
    assert_eq!(efi.config_table, PhysAddr(0x7f5e_bc98));
    assert_eq!(efi.runtime_map.len(), 8);
    let flash = EfiRuntimeRegion {
        kind: 11,
        phys_addr: PhysAddr(0xffc0_0000),
        virt_addr: 0xffff_fffe_ffc0_0000,
        num_pages: 0x400,
        attribute: 0x8000_0000_0000_0001,
    };
    assert_eq!(efi.runtime_map[0], flash);
    let setup_data: Vec<(u32, usize)> =
        host.setup_data().unwrap().into_iter().map(|entry| (entry.kind, entry.data.len())).collect();
    assert_eq!(setup_data, [(3, 64), (3, 64)], "two option ROMs");

    let bios = x86("debian-6.1");
    assert_eq!(bios.efi().unwrap(), None);
    assert_eq!(bios.setup_data().unwrap(), []);
}

/// The kernel puts hot-added memory into the firmware's map, so a map for the capture kernel cannot be copied blindly.
#[test]
fn hot_added_memory_shows_in_the_firmware_map() {
    let memmap = x86("debian-6.12-hotplug").firmware_memmap().unwrap();
    let last = memmap.iter().rfind(|entry| entry.kind == FirmwareKind::SystemRam).unwrap();
    assert_eq!(last.range, range(0x1_0000_0000, 0x1_2000_0000));
}

#[test]
fn without_privilege() {
    let host = x86("unprivileged");
    let wanted = "/proc/iomem shows zeros in place of addresses: run as root, with CAP_SYS_ADMIN";
    for error in [host.iomem().map(drop), host.reservations().map(drop), host.expected_ram().map(drop)] {
        let error = error.unwrap_err();
        assert!(matches!(error, HostError::NeedRoot { .. }));
        assert!(error.to_string().ends_with(wanted), "{error}");
    }
}

/// A machine made up of a few files.
fn made_up(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let host = Host::recorded(root.path(), X86_64);
    (root, host)
}

#[test]
fn machines_that_lack_things() {
    let (_root, host) = made_up(&[]);
    assert_eq!(host.lockdown().unwrap(), Lockdown::Absent);
    assert_eq!(host.kexec_load_disabled().unwrap(), None);
    assert_eq!(host.kexec_load_limit_panic().unwrap(), None);
    assert_eq!(host.crash_hotplug().unwrap(), CrashHotplug::default());
    assert_eq!(host.crash_notes(0).unwrap(), None);
    assert_eq!(host.firmware_memmap().unwrap(), []);
    assert_eq!(
        (host.acpi_rsdp().unwrap(), host.efi().unwrap(), host.serial_console().unwrap()),
        (None, None, None)
    );
    for (error, file) in [
        (host.iomem().map(drop), "/proc/iomem"),
        (host.kcore().map(drop), "/proc/kcore"),
        (host.kexec().map(drop), "/sys/kernel/kexec_crash_loaded"),
        (host.vmcoreinfo().map(drop), "/sys/kernel/vmcoreinfo"),
        (host.boot_params().map(drop), "/sys/kernel/boot_params/data"),
    ] {
        let text = error.unwrap_err().to_string();
        assert!(text.contains(file) && text.ends_with(')'), "names the file and gives advice: {text}");
    }
}

#[test]
fn reservations_of_all_numbers() {
    let ram = "00100000-3ffdefff : System RAM\n";
    let crash = |ranges: &[&str]| {
        let lines = ranges.iter().map(|range| format!("  {range} : Crash kernel\n"));
        let text: String = [ram.to_owned()].into_iter().chain(lines).collect();
        made_up(&[("proc/iomem", &text)])
    };
    assert_eq!(crash(&[]).1.reservations().unwrap(), None);
    let three = crash(&["200000-2fffff", "400000-4fffff", "600000-6fffff"]);
    let error = three.1.reservations().unwrap_err().to_string();
    assert!(
        error.ends_with("found \"3 \\\"Crash kernel\\\" ranges\", wanted at most a low and a high one"),
        "{error}"
    );
}

/// Memory lent to the capture kernel (crashkernel=...,cma) is not in the dump.
#[test]
fn lent_memory_is_not_expected() {
    let (_root, host) = made_up(&[
        (
            "proc/iomem",
            "00001000-0009fbff : System RAM\n00100000-3fffffff : System RAM\n  2f000000-3effffff : Crash kernel\n",
        ),
        ("sys/kernel/kexec/crash_loaded", "1\n"),
        ("sys/kernel/kexec/loaded", "0\n"),
        ("sys/kernel/kexec/crash_size", "268435456\n"),
        ("sys/kernel/kexec/crash_cma_ranges", "10000000-17ffffff\n"),
    ]);
    assert!(host.kexec().unwrap().crash_loaded);
    let wanted =
        [range(0x10_0000, 0x1000_0000), range(0x1800_0000, 0x2f00_0000), range(0x3f00_0000, 0x4000_0000)];
    assert_eq!(host.expected_ram().unwrap().as_slice(), wanted);
}

const BLOCK: u64 = 128 << 20;

/// A machine with blocks of 128 MiB, number and state of each, and other things beside them as sysfs has them. Its RAM
/// is 40 of such blocks.
fn with_blocks(blocks: &[(u64, &str)]) -> (tempfile::TempDir, Host) {
    let dir = "sys/devices/system/memory";
    let mut files = vec![
        ("proc/iomem".to_owned(), format!("00000000-{:08x} : System RAM\n", 40 * BLOCK - 1)),
        (format!("{dir}/block_size_bytes"), "8000000\n".to_owned()),
        (format!("{dir}/auto_online_blocks"), "offline\n".to_owned()),
        (format!("{dir}/power/control"), "auto\n".to_owned()),
    ];
    for (number, state) in blocks {
        files.push((format!("{dir}/memory{number}/state"), format!("{state}\n")));
    }
    made_up(&files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect::<Vec<_>>())
}

#[test]
fn blocks_that_are_offline() {
    // States of some of the 40 blocks, the others are online; and the offline RAM, in blocks.
    type Case<'a> = (&'a [(u64, &'a str)], &'a [(u64, u64)]);
    let cases: &[Case<'_>] = &[
        (&[], &[]),
        (&[(32, "offline")], &[(32, 33)]),
        (&[(9, "offline"), (10, "offline"), (12, "offline")], &[(9, 11), (12, 13)]),
        (&[(32, "going-offline")], &[(32, 33)]),
        // Its module is being taken out: the resource tree still lists what has no block any more.
        (&[(38, ""), (39, "")], &[(38, 40)]),
        // Beyond the RAM, as where a module has just been taken out.
        (&[(41, "offline")], &[]),
    ];
    for (special, expected) in cases {
        let plain = (0..40).filter(|number| !special.iter().any(|(one, _)| one == number));
        let mut blocks: Vec<_> = plain.map(|number| (number, "online")).collect();
        blocks.extend(special.iter().filter(|(_, state)| !state.is_empty()));
        let expected: Vec<_> =
            expected.iter().map(|(start, end)| range(start * BLOCK, end * BLOCK)).collect();
        assert_eq!(with_blocks(&blocks).1.offline_ram().unwrap().as_slice(), expected, "{special:?}");
    }
    let (_root, none) = made_up(&[("proc/iomem", "00001000-3fffffff : System RAM\n")]);
    assert!(none.offline_ram().unwrap().is_empty(), "a kernel without memory hotplug");
}

/// Two blocks were added at 4 GiB and the second taken offline again: the resource tree still lists it.
#[test]
fn an_offline_block_is_ram_to_the_resource_tree() {
    let host = x86("debian-6.1-offline");
    let block = range(0x1_0800_0000, 0x1_1000_0000);
    assert_eq!(host.offline_ram().unwrap().as_slice(), [block]);
    assert!(host.iomem().unwrap().ram().contains_range(block));
}

#[test]
fn blocks_that_make_no_sense_are_errors() {
    let (root, host) = with_blocks(&[(32, "online"), (u64::from(u32::MAX), "online")]);
    let file = |name: &str| root.path().join("sys/devices/system/memory").join(name);
    let wrong = |name: &str, text: &str, expected: &str| {
        let before = fs::read(file(name)).unwrap();
        fs::write(file(name), text).unwrap();
        let error = host.offline_ram().unwrap_err().to_string();
        assert!(error.ends_with(expected), "{error}");
        fs::write(file(name), before).unwrap();
    };
    wrong(
        "memory32/state",
        "asleep\n",
        "memory32/state: found \"asleep\", wanted online, going-offline or offline",
    );
    wrong("block_size_bytes", "0\n", "block_size_bytes: found \"0\", wanted a power of two in hex");
    let huge = "block_size_bytes: found \"4000000000000000\", wanted blocks that end below 2^64";
    wrong("block_size_bytes", "4000000000000000\n", huge);
    // Gone between listing and reading.
    fs::remove_file(file("memory32/state")).unwrap();
    assert_eq!(host.offline_ram().unwrap().as_slice(), [range(0, 40 * BLOCK)]);
}

#[test]
fn kernel_text_where_kcore_is_closed() {
    let iomem = fs::read_to_string(fixture("debian-6.1").join("proc/iomem")).unwrap();
    let kallsyms = fs::read_to_string(fixture("debian-6.1").join("proc/kallsyms")).unwrap();
    let (_root, host) = made_up(&[("proc/iomem", &iomem), ("proc/kallsyms", &kallsyms)]);
    let text = KernelText { paddr: PhysAddr(0x1a60_0000), vaddr: 0xffff_ffff_9fc0_0000, size: 0x340_0000 };
    assert_eq!(host.kernel_text().unwrap(), Some(text));
    let (_root, host) = made_up(&[("proc/iomem", &iomem), ("proc/kallsyms", "0000000000000000 T _text\n")]);
    assert_eq!(host.kernel_text().unwrap(), None, "kptr_restrict hides it");
    let (_root, host) = made_up(&[("proc/iomem", &iomem)]);
    assert_eq!(host.kernel_text().unwrap(), None, "no kallsyms");
}

#[test]
fn symbols_by_whole_name() {
    let kallsyms = "0000000000000000 A fixed\nffffffff9fc00000 T _text_poke\nffffffff9fc00040 T _text\n\n\
                    ffffffffc0000000 t in_module\t[virtio]\nffffffff9fd00000 D last";
    let (_root, host) = made_up(&[("proc/kallsyms", kallsyms)]);
    let found = host.symbols(["last", "_text", "in_module", "fixed", "_tex", "T"]).unwrap();
    let addresses = [0xffff_ffff_9fd0_0000, 0xffff_ffff_9fc0_0040, 0xffff_ffff_c000_0000].map(Some);
    assert_eq!(found[..3], addresses);
    assert_eq!(found[3..], [None; 3]);
}

#[test]
fn limits_and_lockdown() {
    let (_root, host) = made_up(&[
        ("proc/sys/kernel/kexec_load_limit_panic", "3\n"),
        ("proc/sys/kernel/kexec_load_limit_reboot", "-1\n"),
        ("proc/sys/kernel/kexec_load_disabled", "1\n"),
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n"),
    ]);
    assert_eq!(host.kexec_load_limit_panic().unwrap(), Some(3));
    assert_eq!(host.kexec_load_limit_reboot().unwrap(), None);
    assert_eq!(host.kexec_load_disabled().unwrap(), Some(true));
    assert_eq!(host.lockdown().unwrap(), Lockdown::Integrity);
}

#[test]
fn the_module_s_switches() {
    let dir = "sys/module/hotdump";
    type Files<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(Files<'_>, Option<(bool, bool)>)] = &[
        (&[], None),
        (&[("memory", "Y\n"), ("cpus", "Y\n")], Some((true, true))),
        (&[("memory", "N\n"), ("cpus", "Y\n")], Some((false, true))),
        (&[("panic_after_store", "0\n")], Some((false, false))),
    ];
    for (files, expected) in cases {
        let files: Vec<(String, &str)> =
            files.iter().map(|(name, text)| (format!("{dir}/parameters/{name}"), *text)).collect();
        let (_root, host) =
            made_up(&files.iter().map(|(path, text)| (path.as_str(), *text)).collect::<Vec<_>>());
        let expected = expected.map(|(memory, cpus)| ModuleSwitches { memory, cpus });
        assert_eq!(host.module_switches().unwrap(), expected, "{files:?}");
    }
    let (_root, host) = made_up(&[("sys/module/hotdump/parameters/memory", "1\n")]);
    assert!(host.module_switches().unwrap_err().to_string().ends_with("found \"1\", wanted Y or N"));
}

#[test]
fn serial_ports_in_memory_are_passed_over() {
    let consoles = "ttyS1  -W- (EC p a) 4:65\nttyS0  -W- (E  p a) 4:64\n";
    let (_root, host) = made_up(&[
        ("proc/consoles", consoles),
        ("sys/class/tty/ttyS1/io_type", "2\n"),
        ("sys/class/tty/ttyS1/port", "0x0\n"),
        ("sys/class/tty/ttyS0/io_type", "0\n"),
        ("sys/class/tty/ttyS0/port", "0x2F8\n"),
    ]);
    assert_eq!(host.serial_console().unwrap(), Some(SerialPort { io_port: 0x2f8 }));
}

/// The reservation is told by the device tree alone. The kernel's image lies in the linear map, and every CPU that can be
/// has its notes from the start.
#[test]
fn facts_of_ppc64_machines() {
    for (name, vmcoreinfo, rtas, notes) in [
        ("debian-6.1-ppc64", note(0x35e_0000, 0x1_0024), 0x2fff_0000, [0x7fc7_6c00, 0x7fe5_6c00]),
        ("debian-6.12-ppc64", note(0x3d7_c000, 0x1024), 0x2fff_f000, [0x7f6a_c000, 0x7f72_1000]),
    ] {
        let host = ppc64(name);
        assert_eq!(host.machine(), Ppc64);
        let reservations = Reservations { main: range(0x2000_0000, 0x4000_0000), low: None };
        assert_eq!(host.reservations().unwrap(), Some(reservations), "{name}");
        let expected = [range(0x1_0000, 0x2000_0000), range(0x4000_0000, 0xa000_0000)];
        assert_eq!(host.expected_ram().unwrap().as_slice(), expected, "{name}");
        assert_eq!(host.low_memory(), range(0, 0x1_0000));
        let firmware = range(rtas, rtas + 0x1000);
        assert_eq!(host.firmware_memory().unwrap().as_slice(), [firmware], "{name}");
        let cpus = host.cpus().unwrap();
        assert_eq!((cpus.possible, cpus.present), (vec![0, 1, 2, 3], vec![0, 1, 2]), "{name}");
        for (cpu, place) in [(0, notes[0]), (3, notes[1])] {
            assert_eq!(host.crash_notes(cpu).unwrap(), Some(note(place, 536)), "{name}: CPU {cpu}");
        }
        assert_eq!(host.cpu_hardware_number(2).unwrap(), Some(2), "{name}");
        assert_eq!(host.vmcoreinfo().unwrap(), vmcoreinfo, "{name}");
        let kcore = host.kcore().unwrap();
        assert_eq!(kcore.direct_map_offset(), Some(0xc000_0000_0000_0000), "{name}");
        assert_eq!(kcore.paddr_of(0xc000_0000_027d_5f08), Some(PhysAddr(0x27d_5f08)), "{name}");
        assert_eq!(kcore.paddr_of(0xc008_0000_0000_0000), None, "{name}: vmalloc space has no place");
        assert_eq!((kcore.kernel_text(), host.kernel_text().unwrap()), (None, None), "{name}");
        let tree = host.device_tree().unwrap().unwrap();
        assert_eq!(tree.child("chosen").unwrap().number("linux,crashkernel-base"), Some(0x2000_0000));
        let cpus = &tree.child("cpus").unwrap().children;
        let cores = cpus.iter().filter(|node| node.property("device_type") == Some(b"cpu\0"));
        assert_eq!(cores.count(), 3, "{name}: one was added");
    }
}
