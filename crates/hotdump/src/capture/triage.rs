//! What a crash looks like at first sight, out of the image and on disk before any memory is copied: `triage.json` for programs,
//! `triage.txt` for people.
//!
//! Nothing in it is guessed: what cannot be had is left out, and said in `problems`.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

use elfcorehdr::Machine;
use serde::Serialize;
use vmcore::{
    AddressSpace, Core, CpuState, ReadAt, Symbol, Symbols, VirtAddr, VirtualMemory as _, VmcoreInfo, Walk,
    backtrace, walk_of,
};

use super::crashed::LastWords;
use super::place::Place;
use super::report::sync_directory;
use crate::text::size;

pub(crate) const JSON: &str = "triage.json";
pub(crate) const TEXT: &str = "triage.txt";

/// struct new_utsname: names of 65 bytes, these of them in this order.
const NAME: u64 = 65;
const NODENAME: u64 = 1;
const VERSION: u64 = 3;
const MACHINE: u64 = 4;
/// Masks of CPUs are read so far: 8192 CPUs.
const MASK_WORDS: u64 = 128;

/// What a stack's entries are worth, by how it was walked.
const SCANNED: &str = "scanned: words on the stack that are return addresses; some may be left over from calls that have returned";
const CHAINED: &str = "walked by the chain of frames";

/// All of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Triage {
    /// The version of hotdump that wrote it.
    hotdump: &'static str,
    /// When the kernel crashed, UTC.
    crashed: Option<String>,
    kernel: Kernel,
    /// The line of the log that says why it crashed.
    panic: Option<String>,
    /// CPUs whose state is in the image.
    cpus: usize,
    /// The CPU that crashed; none where that is not certain.
    crashed_cpu: Option<CrashedCpu>,
    memory: Memory,
    /// What could not be had, and why.
    problems: Vec<String>,
}

/// Who crashed.
#[derive(Debug, Default, Serialize)]
struct Kernel {
    release: Option<String>,
    version: Option<String>,
    build_id: Option<String>,
    machine: Option<String>,
    nodename: Option<String>,
    /// The taint flags, as /proc/sys/kernel/tainted has them.
    tainted: Option<u64>,
}

/// The CPU that crashed.
#[derive(Debug, Serialize)]
struct CrashedCpu {
    /// Its number; none where there is only one note.
    number: Option<u32>,
    /// The task that ran on it.
    pid: u32,
    /// What it was at.
    ip: Address,
    /// By the names that the kernel prints.
    #[serde(serialize_with = "as_map")]
    registers: Vec<(&'static str, Hex)>,
    /// What the entries below are worth.
    stack: &'static str,
    /// Return addresses, the innermost first.
    backtrace: Vec<Entry>,
}

/// Pairs as an object, in their order.
fn as_map<S: serde::Serializer>(pairs: &[(&str, Hex)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

/// An address in code.
#[derive(Debug, Serialize)]
struct Address {
    address: Hex,
    /// `name+offset/size`; none where names are not to be had for certain.
    function: Option<String>,
}

/// An address on the stack.
#[derive(Debug, Serialize)]
struct Entry {
    /// Where on the stack.
    place: Hex,
    #[serde(flatten)]
    address: Address,
}

/// The machine's memory, in bytes.
#[derive(Debug, Default, Serialize)]
struct Memory {
    /// In the image.
    in_image: u64,
    /// Pieces that it is in.
    ranges: usize,
    /// What the kernel had to give out.
    total: Option<u64>,
    /// What of that was free.
    free: Option<u64>,
}

/// A number that is shown in hex.
#[derive(Debug, Clone, Copy)]
struct Hex(u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Triage {
    /// Looks at the image. Reads little of it: the kernel's symbols, a stack, some variables.
    pub(crate) fn of<S: ReadAt>(core: &Core<S>, info: Option<&VmcoreInfo>, words: &LastWords) -> Self {
        let mut triage = Self {
            hotdump: env!("CARGO_PKG_VERSION"),
            panic: words.reason().map(str::to_owned),
            memory: Memory {
                in_image: core.loads().iter().map(|load| load.size).fold(0, u64::saturating_add),
                ranges: core.loads().len(),
                ..Memory::default()
            },
            ..Self::default()
        };
        let cpus = core.cpus().unwrap_or_default();
        triage.cpus = cpus.len();
        let Some(info) = info else {
            triage.problems.push(vmcore::CoreError::NoVmcoreInfo.to_string());
            return triage;
        };
        triage.take_info(info);
        match AddressSpace::new(core, info) {
            Ok(space) => triage.look(core.machine(), &space, info, &cpus, words),
            Err(error) => triage.problems.push(error.to_string()),
        }
        triage
    }

    /// What vmcoreinfo says outright.
    fn take_info(&mut self, info: &VmcoreInfo) {
        self.kernel.release = info.release().map(str::to_owned);
        self.kernel.build_id = info.get("BUILD-ID").map(str::to_owned);
        let time = info
            .get("CRASHTIME")
            .and_then(|seconds| jiff::Timestamp::from_second(seconds.parse().ok()?).ok());
        self.crashed = time.map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    }

    /// What is to be read out of memory.
    fn look<S: ReadAt>(
        &mut self,
        machine: Machine,
        space: &AddressSpace<'_, S>,
        info: &VmcoreInfo,
        cpus: &[CpuState],
        words: &LastWords,
    ) {
        let name = |number: u64| uts_name(space, info, number);
        self.kernel.nodename = name(NODENAME);
        self.kernel.version = name(VERSION);
        self.kernel.machine = name(MACHINE);
        let symbols = match Symbols::open(space, info) {
            Ok(symbols) => Some(symbols),
            Err(error) => {
                self.problems.push(format!("addresses are without names: {error}"));
                None
            }
        };
        let names = ["panic_cpu", "__cpu_online_mask", "_totalram_pages", "vm_zone_stat", "tainted_mask"];
        let places = symbols.as_ref().map(|symbols| symbols.find(names)).unwrap_or_default();
        let [panic_cpu, online, total, free, tainted] = places;
        let word = |place: Option<VirtAddr>| space.read_u64(place?).ok();
        self.kernel.tainted = word(tainted);
        let page = info.get("PAGESIZE").and_then(|size| size.parse::<u64>().ok());
        let bytes = |pages: Option<u64>| {
            pages?.checked_mul(page?).filter(|bytes| *bytes <= self.memory.in_image.saturating_mul(2))
        };
        let free = free.zip(info.number("NR_FREE_PAGES").ok());
        let (total, free) = (
            bytes(word(total)),
            bytes(word(free.and_then(|(stat, which)| stat.checked_add(which.checked_mul(8)?)))),
        );
        self.memory.total = total;
        self.memory.free = free;

        let number = panic_cpu.and_then(|place| space.read_u32(place).ok());
        let online = online.map(|place| online_cpus(space, place, cpus.len()));
        match crashed_note(cpus, number, online.as_deref(), words.pid()) {
            Some((number, cpu)) => {
                let address = |address: VirtAddr, symbol: Option<Symbol>| Address {
                    address: Hex(address.0),
                    function: symbol
                        .map(|found| format!("{}+{:#x}/{:#x}", found.name, found.offset, found.size)),
                };
                let entries = backtrace(machine, space, info, symbols.as_ref(), cpu);
                if entries.is_empty() {
                    self.problems.push(format!("no return address is found on the stack at {}", cpu.sp));
                }
                self.crashed_cpu = Some(CrashedCpu {
                    number,
                    pid: cpu.pid,
                    ip: address(cpu.ip, symbols.as_ref().and_then(|symbols| symbols.function(cpu.ip))),
                    registers: cpu.registers.iter().map(|(name, value)| (*name, Hex(*value))).collect(),
                    stack: match walk_of(machine) {
                        Walk::Scan => SCANNED,
                        Walk::Chain => CHAINED,
                    },
                    backtrace: entries
                        .into_iter()
                        .map(|entry| Entry {
                            place: Hex(entry.place.0),
                            address: address(entry.address, entry.symbol),
                        })
                        .collect(),
                });
            }
            None => self.problems.push("it is not certain which CPU crashed".to_owned()),
        }
    }

    /// Writes both files into `place`, synced.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn write(&self, place: &Place, words: &LastWords) -> io::Result<()> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        let text = self.text(words);
        for (name, bytes) in [(JSON, json.as_slice()), (TEXT, text.as_bytes())] {
            let mut file = place.create_file(name)?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        sync_directory(&place.path(TEXT))
    }

    /// As people read it.
    fn text(&self, words: &LastWords) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                let _ = writeln!(out, "{name:<9} {value}");
            }
        };
        line("panic", Some(self.panic.clone().unwrap_or_else(|| "the log does not say why".to_owned())));
        line("crashed", self.crashed.clone());
        let kernel = &self.kernel;
        let parts = [&kernel.release, &kernel.version, &kernel.machine];
        line("kernel", Some(parts.into_iter().flatten().cloned().collect::<Vec<_>>().join(" ")));
        line("host", kernel.nodename.clone());
        line(
            "tainted",
            kernel.tainted.map(|flags| if flags == 0 { "no".to_owned() } else { format!("yes ({flags})") }),
        );
        let known = [("", self.memory.total), ("free ", self.memory.free)];
        let known: String = known
            .iter()
            .filter_map(|(name, bytes)| bytes.map(|bytes| format!(", {name}{}", size(bytes))))
            .collect();
        line(
            "memory",
            Some(format!(
                "{} in the image{}",
                size(self.memory.in_image),
                known.replacen(", ", "; the kernel had ", 1)
            )),
        );
        line("CPUs", Some(self.cpus.to_string()));
        if let Some(cpu) = &self.crashed_cpu {
            let number = cpu.number.map_or_else(String::new, |number| format!(" {number}"));
            let _ = writeln!(
                out,
                "\nThe CPU that crashed:{number}, with task {}, at {}",
                cpu.pid,
                shown(&cpu.ip)
            );
            for four in cpu.registers.chunks(3) {
                let four: Vec<_> = four.iter().map(|(name, value)| format!("{name:>8} {value}")).collect();
                let _ = writeln!(out, "{}", four.join(" "));
            }
            let _ = writeln!(out, "\nIts stack, {}:", cpu.stack);
            for entry in &cpu.backtrace {
                let _ = writeln!(out, "  {}", shown(&entry.address));
            }
        }
        if !self.problems.is_empty() {
            let _ = writeln!(out, "\nWhat could not be had:");
            for problem in &self.problems {
                let _ = writeln!(out, "  {problem}");
            }
        }
        let _ = writeln!(out, "\nThe end of the log:");
        for line in words.tail() {
            let _ = writeln!(out, "  {line}");
        }
        out
    }
}

fn shown(address: &Address) -> String {
    match &address.function {
        Some(function) => format!("{} {function}", address.address),
        None => address.address.to_string(),
    }
}

/// One of the names that `uname` prints.
fn uts_name<S: ReadAt>(space: &AddressSpace<'_, S>, info: &VmcoreInfo, number: u64) -> Option<String> {
    let names = info.symbol("init_uts_ns").ok()?.checked_add(info.offset("uts_namespace.name").ok()?)?;
    let mut bytes = [0; NAME as usize];
    space.read_virt(names.checked_add(number * NAME)?, &mut bytes).ok()?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(bytes.get(..end)?).ok()?;
    (!text.is_empty() && !text.contains(char::is_control)).then(|| text.to_owned())
}

/// The numbers of the CPUs in a mask, as far as it takes to find `count` of them and one more.
fn online_cpus<S: ReadAt>(space: &AddressSpace<'_, S>, mask: VirtAddr, count: usize) -> Vec<u32> {
    let mut cpus = Vec::new();
    for word in 0..MASK_WORDS {
        let bits = mask.checked_add(word * 8).and_then(|at| space.read_u64(at).ok()).unwrap_or(0);
        cpus.extend((0..64).filter(|bit| bits >> bit & 1 != 0).map(|bit| word as u32 * 64 + bit));
        // What lies behind the mask is not known: it ends where the notes do.
        if cpus.len() >= count {
            break;
        }
    }
    cpus
}

/// Which of the notes is that of the CPU that crashed, and the CPU's number.
///
/// Notes are in the order of CPUs, those of CPUs that were offline left out. So the note's place follows from the number in
/// `panic_cpu` and the mask of CPUs that were online, where there are as many of these as notes. Else the log's last "CPU: .. PID: .."
/// names the task, which counts where it ran on one CPU only.
fn crashed_note<'a>(
    cpus: &'a [CpuState],
    number: Option<u32>,
    online: Option<&[u32]>,
    pid: Option<u32>,
) -> Option<(Option<u32>, &'a CpuState)> {
    if let [only] = cpus {
        return Some((number, only));
    }
    let place = |number: u32| {
        let online = online.filter(|online| online.len() == cpus.len())?;
        online.iter().position(|cpu| *cpu == number)
    };
    if let Some((number, cpu)) = number.and_then(|number| Some((number, cpus.get(place(number)?)?))) {
        return Some((Some(number), cpu));
    }
    let mut of_task = cpus.iter().filter(|cpu| Some(cpu.pid) == pid);
    match (of_task.next(), of_task.next()) {
        (Some(cpu), None) => Some((number, cpu)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(pid: u32) -> CpuState {
        CpuState { pid, ip: VirtAddr(0), sp: VirtAddr(0), registers: Vec::new() }
    }

    #[test]
    fn the_crashed_cpus_note_is_found_or_nothing_is_said() {
        let three = [cpu(0), cpu(0), cpu(77)];
        let case = |cpus: &'static [u32], number, online: Option<&[u32]>, pid| {
            let cpus: Vec<_> = cpus.iter().map(|pid| cpu(*pid)).collect();
            crashed_note(&cpus, number, online, pid).map(|(number, cpu)| (number, cpu.pid))
        };
        assert_eq!(
            crashed_note(&three, Some(2), Some(&[0, 1, 2]), None).map(|(_, cpu)| cpu),
            Some(&three[2])
        );
        // CPU 1 was offline.
        assert_eq!(case(&[5, 6, 7], Some(2), Some(&[0, 2, 3]), None), Some((Some(2), 6)));
        assert_eq!(case(&[5, 6, 7], Some(2), Some(&[0, 1, 2, 3]), None), None, "one did not save its note");
        assert_eq!(case(&[5, 6, 7], Some(2), Some(&[0, 1, 2, 3]), Some(6)), Some((Some(2), 6)));
        assert_eq!(case(&[0, 0, 7], None, None, Some(0)), None, "an idle task of two");
        assert_eq!(case(&[0, 0, 7], None, None, None), None);
        assert_eq!(case(&[9], None, None, None), Some((None, 9)));
        assert_eq!(case(&[], Some(0), Some(&[0]), Some(1)), None);
    }

    #[test]
    fn numbers_are_hex_in_json_and_what_is_missing_is_said() {
        let triage = Triage {
            crashed_cpu: Some(CrashedCpu {
                number: Some(2),
                pid: 7,
                ip: Address { address: Hex(0x1234), function: Some("panic+0x4/0x10".into()) },
                registers: vec![("rip", Hex(0x1234))],
                stack: SCANNED,
                backtrace: vec![Entry {
                    place: Hex(8),
                    address: Address { address: Hex(0x99), function: None },
                }],
            }),
            problems: vec!["addresses are without names: why".into()],
            ..Triage::default()
        };
        let json = serde_json::to_value(&triage).unwrap();
        assert_eq!(json["crashed_cpu"]["ip"]["function"], "panic+0x4/0x10");
        assert_eq!(json["crashed_cpu"]["registers"]["rip"], "0x0000000000001234");
        assert_eq!(json["crashed_cpu"]["backtrace"][0]["address"], "0x0000000000000099");
        let mut words = LastWords::default();
        words.write_all(b"[    1.000000] the last line\n").unwrap();
        let text = triage.text(&words);
        for part in [
            "0x0000000000000099\n",
            "some may be left over",
            "without names: why",
            "] the last line",
            "rip 0x0",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
