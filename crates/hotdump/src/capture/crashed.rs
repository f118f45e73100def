//! The crashed kernel as its memory image shows it: who it was, what it said last.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use elfcorehdr::{PhysAddr, PhysRange, RangeVec};
use host::Host;
use vmcore::{AddressSpace, Core, Frame, Log, LogStats, Selection, VmcoreInfo, unlisted_memory};

/// Lines of the log that are printed when they cannot be saved.
const TAIL: usize = 60;
/// What the first megabyte holds is never in a dump as it was: loaders give copies of it.
const FIRST_MEGABYTE: u64 = 1 << 20;

/// Why there is no image to save.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// It cannot be opened.
    #[error(
        "cannot open {path}: {source}. A kernel has it only when it was started by a crash, with elfcorehdr= on its command line"
    )]
    Open {
        /// The image.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("{path}: {source}")]
    Core {
        /// The image.
        path: String,
        /// What is wrong with it.
        source: vmcore::CoreError,
    },
}

/// The memory image of the crashed kernel.
pub(crate) struct Crashed {
    /// The image.
    pub(crate) core: Core<File>,
    /// What the kernel says of itself; none where the image has it not.
    info: Option<VmcoreInfo>,
    /// Memory in which this kernel itself runs, so that reading it would read the wrong thing.
    overwritten: RangeVec,
}

impl Crashed {
    /// Opens the image. `is_live` says that it is the memory of this very machine.
    pub(crate) fn open(path: &Path, is_live: bool) -> Result<Self, OpenError> {
        let name = || path.display().to_string();
        let file = File::open(path).map_err(|source| OpenError::Open { path: name(), source })?;
        let core = Core::open(file).map_err(|source| OpenError::Core { path: name(), source })?;
        let info = core.vmcoreinfo().ok();
        let overwritten = if is_live { own_memory() } else { RangeVec::default() };
        Ok(Self { core, info, overwritten })
    }

    /// Whether this kernel runs in the memory at `address`.
    pub(crate) fn is_overwritten(&self, address: PhysAddr) -> bool {
        address.0 >= FIRST_MEGABYTE && self.overwritten.contains(address)
    }

    /// Takes the pages in which this kernel runs out of `selection`.
    pub(crate) fn leave_out_overwritten(&self, selection: &mut Selection) {
        for range in self.overwritten.iter().filter(|range| range.start().0 >= FIRST_MEGABYTE) {
            let frame = |address| Frame::holding(address, selection.page_size);
            selection.remove_range(frame(range.start())..frame(range.end()));
        }
    }

    /// Bytes of the image in which this kernel itself runs; 0 unless its command line is wrong.
    pub(crate) fn overwritten_bytes(&self) -> u64 {
        let loads = self.core.loads().iter();
        let ranges = loads.filter_map(|load| {
            let start = load.paddr.max(PhysAddr(FIRST_MEGABYTE));
            let end = load.paddr.checked_add(load.size)?;
            PhysRange::new(start, end)
        });
        ranges.map(|range| self.overwritten.within(range).map(|part| part.len()).sum::<u64>()).sum()
    }

    /// Memory that was added to the crashed kernel after its crash header was written, so that the image lacks it. Empty where that
    /// cannot be told.
    pub(crate) fn unlisted(&self) -> Vec<PhysRange> {
        unlisted_memory(&self.core).unwrap_or_default()
    }

    /// Prints the kernel log into `out`.
    ///
    /// # Errors
    /// Why the log cannot be found, or what `out` returned.
    pub(crate) fn write_log(&self, out: &mut impl Write) -> Result<LogStats, LogFailure> {
        let info = self.info.as_ref().ok_or(vmcore::LogError::Memory(vmcore::CoreError::NoVmcoreInfo))?;
        let space = AddressSpace::new(&self.core, info).map_err(vmcore::LogError::from)?;
        Ok(Log::open(&space, info)?.write_dmesg(out)?)
    }

    /// What the kernel says of itself.
    pub(crate) fn info(&self) -> Option<&VmcoreInfo> {
        self.info.as_ref()
    }

    /// The crashed kernel's release.
    pub(crate) fn release(&self) -> Option<&str> {
        self.info.as_ref()?.release()
    }
}

/// Why the log was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogFailure {
    /// It is not to be had from the image.
    #[error(transparent)]
    Read(#[from] vmcore::LogError),
    /// Its place takes it not.
    #[error("cannot write the kernel log: {0}")]
    Write(#[from] io::Error),
}

/// The memory that this kernel runs in, where that is to be seen and can be wrong: on x86_64 a DIMM of the crashed kernel may
/// come back through ACPI. A ppc64 kernel knows of all memory up to its own and keeps out of what its device tree reserves,
/// but lists all of it as its RAM.
fn own_memory() -> RangeVec {
    if !cfg!(target_arch = "x86_64") {
        return RangeVec::default();
    }
    Host::live().iomem().map(|iomem| iomem.ram()).unwrap_or_default()
}

/// Reads a log as it goes by: the last lines, and the line that says why the kernel crashed.
#[derive(Default)]
pub(crate) struct LastWords {
    line: Vec<u8>,
    tail: VecDeque<String>,
    reason: Option<(usize, String)>,
    pid: Option<u32>,
}

/// What lines say why a kernel crashed, the most telling first.
const REASONS: [&str; 6] = [
    "Kernel panic - not syncing",
    "sysrq: Trigger a crash",
    "BUG: ",
    "Oops: ",
    "general protection fault",
    "watchdog: ",
];

impl LastWords {
    /// The line that says why the kernel crashed, without its time.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.as_ref().map(|(_, line)| line.as_str())
    }

    /// The task that the last dump of registers is about: `CPU: 2 PID: 147 Comm: sh`, since 6.12 with `UID: 0` between.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> impl Iterator<Item = &str> {
        self.tail.iter().map(String::as_str)
    }

    fn take_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        let text = line.split_once("] ").map_or(line.as_str(), |(_, text)| text);
        // A later panic is the real one: a kernel may have gone on after the first.
        if let Some(rank) = REASONS.iter().position(|reason| text.starts_with(reason))
            && self.reason.as_ref().is_none_or(|(best, _)| rank <= *best)
        {
            self.reason = Some((rank, text.to_owned()));
        }
        if text.starts_with("CPU: ") && text.contains(" Comm: ") {
            let number = text.split_once(" PID: ").and_then(|(_, rest)| rest.split(' ').next());
            self.pid = number.and_then(|number| number.parse().ok());
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }
}

impl Write for LastWords {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            match byte {
                b'\n' => self.take_line(),
                // No line of the kernel's is longer than 64 KiB.
                _ if self.line.len() < 1 << 16 => self.line.push(*byte),
                _ => {}
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(log: &str) -> LastWords {
        let mut words = LastWords::default();
        // In pieces, as a writer gets them.
        log.as_bytes().chunks(7).for_each(|piece| words.write_all(piece).unwrap());
        words
    }

    #[test]
    fn the_most_telling_line_says_why() {
        for (log, want) in [
            ("[    1.0] all is well\n", None),
            (
                "[    1.0] BUG: kernel NULL pointer\n[    2.0] Oops: 0002 [#1]\n",
                Some("BUG: kernel NULL pointer"),
            ),
            (
                "[    1.0] sysrq: Trigger a crash\n[    1.1] Kernel panic - not syncing: sysrq triggered crash\n",
                Some("Kernel panic - not syncing: sysrq triggered crash"),
            ),
            ("[ 1] BUG: first\n[ 2] BUG: second\n", Some("BUG: second")),
            ("[ 1] user says Kernel panic - not syncing\n", None),
        ] {
            assert_eq!(listen(log).reason(), want, "{log}");
        }
    }

    #[test]
    fn the_last_dump_of_registers_names_the_task() {
        let log = "[ 1] CPU: 0 PID: 9 Comm: a\n[ 2] CPU: 2 UID: 0 PID: 147 Comm: sh Not tainted\n[ 3] CPU: features PID: 5\n";
        assert_eq!(listen(log).pid(), Some(147));
        assert_eq!(listen("[ 1] all is well\n").pid(), None);
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        let log: String = (0..TAIL + 5).map(|number| format!("[    1.000000] line {number}\n")).collect();
        let words = listen(&log);
        assert_eq!(words.tail().count(), TAIL);
        assert_eq!(words.tail().next(), Some("[    1.000000] line 5"));
    }
}
