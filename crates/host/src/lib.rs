//! The live machine as kdump sees it.
//!
//! [`Host`] reads what the kernel says of the machine from `/proc` and `/sys`: who owns which physical memory, the
//! crash reservations, the CPUs and where their registers are saved, the firmware's memory map, what is loaded. All
//! paths lie below one root directory, so that a recorded machine can stand for the live one. Nothing is cached:
//! each call looks anew.
#![forbid(unsafe_code)]

mod console;
mod cpus;
mod devicetree;
mod error;
mod files;
mod firmware;
mod iomem;
mod kcore;
mod memory;
mod state;

pub use console::SerialPort;
pub use cpus::Cpus;
pub use devicetree::{DeviceNode, DeviceProperty, Rtas};
pub use error::HostError;
pub use firmware::{Efi, EfiRuntimeRegion, FirmwareKind, FirmwareRange, SetupData};
pub use iomem::{Iomem, Resource};
pub use kcore::Kcore;
pub use state::{CrashHotplug, KexecState, Lockdown, ModuleSwitches};

use elfcorehdr::{Machine, Note, PhysAddr, PhysRange, RangeVec};
use error::Fault;
use files::{Root, decimal, hex, switch};
use iomem::IomemFault;
use memory::BlockState;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

/// The architecture that this program is built for.
const NATIVE: Machine = if cfg!(target_arch = "powerpc64") { Machine::Ppc64 } else { Machine::X86_64 };

/// Memory from address 0 that crash headers leave out. x86: the first megabyte, which firmware and early boot code use, and
/// where the capture kernel itself starts. PowerPC: the first 64 KiB, where the capture kernel puts its exception vectors;
/// purgatory copies them aside.
const fn low_memory(machine: Machine) -> PhysRange {
    let end = match machine {
        Machine::Ppc64 => 64 << 10,
        _ => 1 << 20,
    };
    match PhysRange::new(PhysAddr(0), PhysAddr(end)) {
        Some(range) => range,
        None => unreachable!(),
    }
}

/// The crash reservations (`crashkernel=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservations {
    /// Where a crash kernel is loaded.
    pub main: PhysRange,
    /// A second one below 4 GiB, for devices that reach no higher, where `main` lies above.
    pub low: Option<PhysRange>,
}

/// The running kernel's image in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelText {
    /// Physical address of `_text`.
    pub paddr: PhysAddr,
    /// Virtual address of `_text`.
    pub vaddr: u64,
    /// Bytes to the image's end.
    pub size: u64,
}

/// A machine: the live one, or a recording.
#[derive(Clone, Debug)]
pub struct Host {
    root: Root,
    machine: Machine,
}

impl Host {
    /// The machine that this program runs on.
    pub fn live() -> Self {
        Self::at("/")
    }

    /// The machine whose `/proc` and `/sys` lie below `root`, of the architecture that this program is built for.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self::recorded(root, NATIVE)
    }

    /// The machine that was recorded below `root`.
    pub fn recorded(root: impl Into<PathBuf>, machine: Machine) -> Self {
        Self { root: Root::new(root.into()), machine }
    }

    /// The machine's architecture.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// Who owns which physical addresses.
    pub fn iomem(&self) -> Result<Iomem, HostError> {
        const PATH: &str = "/proc/iomem";
        // Blanks at the start of the first line would count as nesting: the text is taken untrimmed.
        let bytes = self.root.bytes(PATH, "is /proc mounted?")?;
        Iomem::parse(&String::from_utf8_lossy(&bytes)).map_err(|fault| match fault {
            IomemFault::Hidden => HostError::NeedRoot { path: self.root.path(PATH), shown: "zeros" },
            IomemFault::Malformed(fault) => fault.in_file(&self.root.path(PATH)),
        })
    }

    /// The crash reservations; `None` if the machine was booted without. PowerPC's kernels say theirs in the device tree, and
    /// few of them in the resource tree too.
    pub fn reservations(&self) -> Result<Option<Reservations>, HostError> {
        match self.iomem()?.crash_reservations().as_slice() {
            [] => Ok(devicetree::crash_reservation(&self.root)?.map(|main| Reservations { main, low: None })),
            [main] => Ok(Some(Reservations { main: *main, low: None })),
            [low, main] => Ok(Some(Reservations { main: *main, low: Some(*low) })),
            more => {
                let found = format!("{} \"Crash kernel\" ranges", more.len());
                Err(Fault::new(&found, "at most a low and a high one")
                    .in_file(&self.root.path("/proc/iomem")))
            }
        }
    }

    /// The machine's CPUs.
    pub fn cpus(&self) -> Result<Cpus, HostError> {
        let list = |name: &str| {
            let path = format!("/sys/devices/system/cpu/{name}");
            self.root.parsed(&path, "is /sys mounted?", cpus::parse_list)
        };
        Ok(Cpus { possible: list("possible")?, present: list("present")?, online: list("online")? })
    }

    /// Where the registers of CPU `cpu` are saved in a crash. The kernel tells only for CPUs that are present:
    /// `None` for others.
    pub fn crash_notes(&self, cpu: u32) -> Result<Option<Note>, HostError> {
        let place = format!("/sys/devices/system/cpu/cpu{cpu}/crash_notes");
        let Some(paddr) = self.root.optional_parsed(&place, hex)? else {
            return Ok(None);
        };
        let size = self.root.parsed(&format!("{place}_size"), "", decimal)?;
        Ok(Some(Note { paddr: PhysAddr(paddr), size }))
    }

    /// The number that hardware and device tree have for CPU `cpu`; `None` where the kernel does not tell (x86), or the CPU is
    /// not present.
    pub fn cpu_hardware_number(&self, cpu: u32) -> Result<Option<u32>, HostError> {
        self.root.optional_parsed(&format!("/sys/devices/system/cpu/cpu{cpu}/physical_id"), |text| {
            text.parse().map_err(|_| Fault::new(text, "a decimal number of at most 32 bits"))
        })
    }

    /// Where the kernel's vmcoreinfo note lies.
    pub fn vmcoreinfo(&self) -> Result<Note, HostError> {
        self.root.parsed(
            "/sys/kernel/vmcoreinfo",
            "a kernel without CONFIG_VMCORE_INFO cannot be dumped",
            |text| {
                let (paddr, size) =
                    text.split_once(' ').ok_or_else(|| Fault::new(text, "an address and a size in hex"))?;
                Ok(Note { paddr: PhysAddr(hex(paddr)?), size: hex(size.trim())? })
            },
        )
    }

    /// The firmware's memory map, lowest range first; empty where the kernel does not show it. The kernel adds
    /// hot-added memory to it as `System RAM`.
    pub fn firmware_memmap(&self) -> Result<Vec<FirmwareRange>, HostError> {
        const PATH: &str = "/sys/firmware/memmap";
        let mut map = Vec::new();
        for number in self.root.numbered(PATH)? {
            let entry = format!("{PATH}/{number}");
            let text = |name| self.root.text(&format!("{entry}/{name}"), "");
            let parsed = firmware::parse_memmap_entry(&text("start")?, &text("end")?, &text("type")?);
            map.push(parsed.map_err(|fault| fault.in_file(&self.root.path(&entry)))?);
        }
        map.sort_by_key(|entry| entry.range);
        Ok(map)
    }

    /// The device tree that the running kernel shows, CPUs and memory that came or went included; `None` on machines
    /// without one. Takes root: some properties are for nobody else.
    pub fn device_tree(&self) -> Result<Option<DeviceNode>, HostError> {
        devicetree::read(&self.root)
    }

    /// The boot parameters that the running kernel was started with (x86: `struct boot_params`, 4096 bytes).
    pub fn boot_params(&self) -> Result<Vec<u8>, HostError> {
        self.root.bytes("/sys/kernel/boot_params/data", "this kernel does not show its boot parameters")
    }

    /// The entries of the boot parameters' setup_data list, by number.
    pub fn setup_data(&self) -> Result<Vec<SetupData>, HostError> {
        const PATH: &str = "/sys/kernel/boot_params/setup_data";
        let mut list = Vec::new();
        for number in self.root.numbered(PATH)? {
            let kind = self.root.parsed(&format!("{PATH}/{number}/type"), "", hex_u32)?;
            let data = self.root.bytes(&format!("{PATH}/{number}/data"), "")?;
            list.push(SetupData { kind, data });
        }
        Ok(list)
    }

    /// Memory that the machine was booted with, by the memory map in x86's boot parameters, which hotplug does not change; `None`
    /// where there is no such map.
    pub fn boot_ram(&self) -> Result<Option<RangeVec>, HostError> {
        const PATH: &str = "/sys/kernel/boot_params";
        if !self.root.exists(PATH) {
            return Ok(None);
        }
        Ok(firmware::ram_in_boot_params(&self.boot_params()?, &self.setup_data()?))
    }

    /// What EFI left for a next kernel; `None` on machines not booted by EFI, and where EFI's runtime services are
    /// off.
    pub fn efi(&self) -> Result<Option<Efi>, HostError> {
        const PATH: &str = "/sys/firmware/efi";
        if !self.root.exists(&format!("{PATH}/runtime-map")) {
            return Ok(None);
        }
        let address = |name| {
            self.root.parsed(&format!("{PATH}/{name}"), "EFI's runtime services are off", hex).map(PhysAddr)
        };
        let mut runtime_map = Vec::new();
        for number in self.root.numbered(&format!("{PATH}/runtime-map"))? {
            let field = |name| self.root.parsed(&format!("{PATH}/runtime-map/{number}/{name}"), "", hex);
            runtime_map.push(EfiRuntimeRegion {
                kind: self.root.parsed(&format!("{PATH}/runtime-map/{number}/type"), "", hex_u32)?,
                phys_addr: PhysAddr(field("phys_addr")?),
                virt_addr: field("virt_addr")?,
                num_pages: field("num_pages")?,
                attribute: field("attribute")?,
            });
        }
        Ok(Some(Efi {
            fw_vendor: address("fw_vendor")?,
            runtime: address("runtime")?,
            config_table: address("config_table")?,
            runtime_map,
        }))
    }

    /// Physical address of ACPI's root pointer, from the boot parameters (the kernel's own decompressor leaves there
    /// what it found in a BIOS machine's low memory) or from EFI; `None` where neither says.
    pub fn acpi_rsdp(&self) -> Result<Option<PhysAddr>, HostError> {
        let boot_params = files::absent_is_none(self.boot_params())?.unwrap_or_default();
        if let Some(address) = firmware::rsdp_in_boot_params(&boot_params) {
            return Ok(Some(address));
        }
        let systab = self.root.optional_parsed("/sys/firmware/efi/systab", firmware::rsdp_in_systab)?;
        Ok(systab.flatten())
    }

    /// Whether the CPU can encrypt memory, or it is a guest's whose memory is encrypted: AMD's SME and SEV, Intel's TDX, by
    /// the flags in /proc/cpuinfo. Whether it is in use cannot be told from there.
    pub fn may_encrypt_memory(&self) -> Result<bool, HostError> {
        let text = self.root.text("/proc/cpuinfo", "is /proc mounted?")?;
        Ok(cpus::may_encrypt_memory(&text))
    }

    /// The running kernel's command line.
    pub fn cmdline(&self) -> Result<String, HostError> {
        self.root.text("/proc/cmdline", "is /proc mounted?")
    }

    /// The running kernel's release, as `uname -r` prints it.
    pub fn kernel_release(&self) -> Result<String, HostError> {
        self.root.text("/proc/sys/kernel/osrelease", "is /proc mounted?")
    }

    /// A random name of this boot.
    pub fn boot_id(&self) -> Result<String, HostError> {
        self.root.text("/proc/sys/kernel/random/boot_id", "is /proc mounted?")
    }

    /// How far the kernel protects itself from root.
    pub fn lockdown(&self) -> Result<Lockdown, HostError> {
        let state = self.root.optional_parsed("/sys/kernel/security/lockdown", state::parse_lockdown)?;
        Ok(state.unwrap_or(Lockdown::Absent))
    }

    /// Whether loading was switched off until the next boot; `None` on kernels that cannot load at all.
    pub fn kexec_load_disabled(&self) -> Result<Option<bool>, HostError> {
        self.root.optional_parsed("/proc/sys/kernel/kexec_load_disabled", switch)
    }

    /// How many more crash kernels may be loaded; `None` without a limit (the kernel says -1, or is older than 6.3).
    pub fn kexec_load_limit_panic(&self) -> Result<Option<u64>, HostError> {
        self.kexec_load_limit("panic")
    }

    /// How many more kernels to boot by request may be loaded; `None` likewise.
    pub fn kexec_load_limit_reboot(&self) -> Result<Option<u64>, HostError> {
        self.kexec_load_limit("reboot")
    }

    fn kexec_load_limit(&self, kind: &str) -> Result<Option<u64>, HostError> {
        let path = format!("/proc/sys/kernel/kexec_load_limit_{kind}");
        let limit = self.root.optional_parsed(&path, |text| match text {
            "-1" => Ok(None),
            count => decimal(count).map(Some),
        })?;
        Ok(limit.flatten())
    }

    /// What is loaded and what was set aside for it.
    pub fn kexec(&self) -> Result<KexecState, HostError> {
        let hint = "this kernel has no kexec for crashes (CONFIG_KEXEC, CONFIG_CRASH_DUMP)";
        let elfcorehdr_size = self.kexec_file("crash_elfcorehdr_size", "crash_elfcorehdr_size");
        let cma_ranges = self.kexec_file("crash_cma_ranges", "kexec_crash_cma_ranges");
        Ok(KexecState {
            crash_loaded: self.root.parsed(
                &self.kexec_file("crash_loaded", "kexec_crash_loaded"),
                hint,
                switch,
            )?,
            loaded: self.root.parsed(&self.kexec_file("loaded", "kexec_loaded"), hint, switch)?,
            crash_size: self.root.parsed(
                &self.kexec_file("crash_size", "kexec_crash_size"),
                hint,
                decimal,
            )?,
            elfcorehdr_size: self.root.optional_parsed(&elfcorehdr_size, decimal)?,
            cma_ranges: self.root.optional_parsed(&cma_ranges, state::parse_cma_ranges)?.unwrap_or_default(),
        })
    }

    /// Where a kexec file lies: `/sys/kernel/kexec/<new>` if the kernel has it, else `/sys/kernel/<old>`.
    fn kexec_file(&self, new: &str, old: &str) -> String {
        let newer = format!("/sys/kernel/kexec/{new}");
        if self.root.exists(&newer) { newer } else { format!("/sys/kernel/{old}") }
    }

    /// Whether the kernel keeps the loaded image's crash header up to date by itself.
    pub fn crash_hotplug(&self) -> Result<CrashHotplug, HostError> {
        let of =
            |kind| self.root.optional_parsed(&format!("/sys/devices/system/{kind}/crash_hotplug"), switch);
        Ok(CrashHotplug { cpu: of("cpu")?, memory: of("memory")? })
    }

    /// What the kernel module hotdump.ko may follow; `None` where it is not loaded.
    pub fn module_switches(&self) -> Result<Option<ModuleSwitches>, HostError> {
        const PATH: &str = "/sys/module/hotdump";
        if !self.root.exists(PATH) {
            return Ok(None);
        }
        let switch = |name| {
            let value =
                self.root.optional_parsed(&format!("{PATH}/parameters/{name}"), state::parse_switch)?;
            Ok::<_, HostError>(value.unwrap_or(false))
        };
        Ok(Some(ModuleSwitches { memory: switch("memory")?, cpus: switch("cpus")? }))
    }

    /// The running kernel's image, from /proc/kcore or, where that is closed, from /proc/iomem and /proc/kallsyms;
    /// `None` where the kernel hides its addresses, and where its image has no mapping of its own (PowerPC).
    pub fn kernel_text(&self) -> Result<Option<KernelText>, HostError> {
        if self.machine.kernel_image_vaddr().is_none() {
            return Ok(None);
        }
        if let Ok(kcore) = self.kcore()
            && let Some(text) = kcore.kernel_text()
        {
            return Ok(Some(text));
        }
        let image = self.iomem()?.kernel_image();
        let [vaddr] = self.symbols(["_text"])?;
        Ok(image.zip(vaddr).map(|(image, vaddr)| KernelText {
            paddr: image.start(),
            vaddr,
            size: image.len(),
        }))
    }

    /// Addresses of symbols of the running kernel, read in one pass; `None` for each that it does not have or hides.
    pub fn symbols<const N: usize>(&self, names: [&str; N]) -> Result<[Option<u64>; N], HostError> {
        let mut found = [None; N];
        let Some((path, file)) = files::absent_is_none(self.root.open("/proc/kallsyms", ""))? else {
            return Ok(found);
        };
        // The file has some 200,000 lines, so it is neither taken whole nor a line at a time into new memory.
        let mut file = BufReader::new(file);
        let mut line = Vec::new();
        let mut left = N;
        while left > 0 {
            line.clear();
            let read = file.read_until(b'\n', &mut line);
            if read.map_err(|source| HostError::Read { path: path.clone(), source, hint: "" })? == 0 {
                break;
            }
            let Some((address, symbol)) = symbol_line(&line) else { continue };
            if let Some(index) = names.iter().position(|name| name.as_bytes() == symbol) {
                let address = std::str::from_utf8(address).ok().and_then(|address| hex(address).ok());
                found[index] = address.filter(|address| *address != 0);
                left -= 1;
            }
        }
        Ok(found)
    }

    /// All memory that a complete dump holds: what the kernel and firmware run on, without [low
    /// memory](Self::low_memory), the crash reservations, and memory that the capture kernel will use as its own.
    pub fn expected_ram(&self) -> Result<RangeVec, HostError> {
        let used: RangeVec = self.iomem()?.ram().iter().chain(self.firmware_memory()?.iter()).collect();
        Ok(used.difference(&self.spared_ram()?).collect())
    }

    /// Memory from address 0 that no plain entry of a crash header names: the capture kernel uses it, and where it is to be
    /// in the dump, purgatory copies it aside.
    pub fn low_memory(&self) -> PhysRange {
        low_memory(self.machine)
    }

    /// How PowerPC's firmware is called (RTAS); `None` on machines without it.
    pub fn rtas(&self) -> Result<Option<Rtas>, HostError> {
        devicetree::rtas(&self.root)
    }

    /// Where the memory ends that a PowerPC kernel can reach while its MMU is off: its first memory node. `None` on machines
    /// that have no such node.
    pub fn real_mode_end(&self) -> Result<Option<PhysAddr>, HostError> {
        devicetree::real_mode_end(&self.root)
    }

    /// Memory that PowerPC's firmware lies in (RTAS, OPAL) or has lent to devices, as the device tree tells: in use whatever
    /// else lies around it, be it the crash reservation. Empty on machines without a device tree.
    pub fn firmware_memory(&self) -> Result<RangeVec, HostError> {
        devicetree::firmware_memory(&self.root)
    }

    /// Memory that a dump does not hold though the kernel runs on it, see [`Host::expected_ram`].
    pub fn spared_ram(&self) -> Result<RangeVec, HostError> {
        let cma = self.kexec()?.cma_ranges;
        let reservations = self.reservations()?;
        let crash = reservations.into_iter().flat_map(|found| [found.main].into_iter().chain(found.low));
        Ok([self.low_memory()].into_iter().chain(crash).chain(cma).collect())
    }

    /// RAM that is not in use: it lies in no memory block that is online. A block may be offline, or on its way there; of a
    /// memory module that is taken out, the blocks go first, and the resource tree is the last to know. Such memory holds
    /// nothing, or in a moment will not: a dump may name it and need not. Empty on kernels without memory hotplug.
    pub fn offline_ram(&self) -> Result<RangeVec, HostError> {
        const PATH: &str = "/sys/devices/system/memory";
        // Listed before the blocks: what comes online meanwhile is no RAM yet here.
        let ram = self.iomem()?.ram();
        let numbers = self.root.numbered_after(PATH, "memory")?;
        if numbers.is_empty() {
            return Ok(RangeVec::new());
        }
        let size_file = format!("{PATH}/block_size_bytes");
        let size = self.root.parsed(&size_file, "", memory::parse_block_size)?;
        let mut online = Vec::new();
        for number in numbers {
            // Not the file `online`: reading it waits while the block comes or goes. A block may be gone by now.
            let state = format!("{PATH}/memory{number}/state");
            if self.root.optional_parsed(&state, memory::parse_state)? == Some(BlockState::Online) {
                let block = memory::block(number.into(), size);
                online.push(block.map_err(|fault| fault.in_file(&self.root.path(&size_file)))?);
            }
        }
        Ok(ram.difference(&online.into_iter().collect()).collect())
    }

    /// The live kernel's memory.
    pub fn kcore(&self) -> Result<Kcore, HostError> {
        let (path, file) =
            self.root.open("/proc/kcore", "this kernel has no /proc/kcore (CONFIG_PROC_KCORE)")?;
        Kcore::new(path, file)
    }

    /// What to add to a physical address to get its virtual address in the kernel's direct map of all memory; `None` where
    /// that differs from boot to boot and /proc/kcore does not tell.
    pub fn direct_map_offset(&self) -> Option<u64> {
        self.machine.linear_map().or_else(|| self.kcore().ok()?.direct_map_offset())
    }

    /// The serial port that the kernel writes its messages to, where it is reached by I/O instructions.
    pub fn serial_console(&self) -> Result<Option<SerialPort>, HostError> {
        let consoles = self.root.optional_text("/proc/consoles")?.unwrap_or_default();
        for name in console::serial_consoles(&consoles) {
            // Type 0 is UPIO_PORT; the others are memory, or no port at all.
            let by_io = self.root.optional_text(&format!("/sys/class/tty/{name}/io_type"))?;
            let port = self.root.optional_parsed(&format!("/sys/class/tty/{name}/port"), hex)?;
            if let (Some("0"), Some(port)) = (by_io.as_deref(), port)
                && let Ok(io_port) = u16::try_from(port)
                && io_port != 0
            {
                return Ok(Some(SerialPort { io_port }));
            }
        }
        Ok(None)
    }
}

/// Address and name in a line of /proc/kallsyms: `address type name`, for a module's symbols its name behind that.
fn symbol_line(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut words = line.split(u8::is_ascii_whitespace);
    let (address, _, name) = (words.next()?, words.next()?, words.next()?);
    Some((address, name))
}

fn hex_u32(text: &str) -> Result<u32, Fault> {
    u32::try_from(hex(text)?).map_err(|_| Fault::new(text, "a hexadecimal number of at most 32 bits"))
}
