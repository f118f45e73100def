//! `hotdump estimate`: how much memory to reserve for the capture kernel (`crashkernel=`).
//!
//! The truth is what a capture on this machine took: every capture writes that into its report. Where there is none yet, the
//! parts that are known are added up.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::bail;
use host::Host;
use kexec::cmdline::{bounce_buffers, bounces_little};
use serde::{Deserialize, Serialize};

use crate::capture::usage::MemoryUse;
use crate::dumps::store::{self, REPORT};
use crate::exit;
use crate::prepared::{self, Prepared};
use crate::screen::{Color, Screen, Tone};
use crate::text::{print, print_json, size};

const ABOUT: &str = "\
A capture writes into its report.json the most memory that it took. The newest such report in --directory is what the estimate rests on; \
without one it adds up what is known: the kernel's image, its initramfs, page structures, bounce buffers, bitmaps for the filter, and a \
measured sum for drivers and the program. It says which of the two it was. A quarter, and at least 32 MiB, are added for what \
differs from crash to crash, and the sum is rounded up to 16 MiB.

After a change of the reservation crash the machine once (`hotdump test --really-crash`), and ask again.

Exit codes:
  0  enough is reserved
  1  wrong usage, or it could not be found out
  2  too little is reserved, or nothing";

/// The exit code where too little is reserved.
const TOO_LITTLE: u8 = 2;
/// What drivers, the kernel's tables and the program take while it saves, on top of what is computed. A capture kernel 6.12 with virtio
/// disk and network took 166 MiB of 256: 22 for the initramfs, 64 for bounce buffers, 4 for page structures, 39 for its image by its own
/// count, and 8 of the rest for the program.
const REST: u64 = 40 << 20;
/// Bytes of one page, and of the structure that the kernel keeps for it.
const PAGE: u64 = 4096;
const PAGE_STRUCT: u64 = 64;
/// The filter keeps two sets of page frames, a bit for each frame.
const BITMAPS: u64 = 2;
/// What reservations are made in multiples of.
const GRAIN: u64 = 16 << 20;
const LEAST_MARGIN: u64 = 32 << 20;

/// Options of `hotdump estimate`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = ABOUT)]
pub(crate) struct Args {
    /// The capture initramfs [default: /var/lib/hotdump/initrd-RELEASE.img]
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The directory that holds the dumps [default: that of the initramfs's target, where it is mounted]
    #[arg(long, short = 'D', value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    /// When to colour
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Color,
}

/// What the estimate rests on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "by")]
enum Basis {
    /// What a capture took.
    Report {
        /// Its report.
        file: PathBuf,
        /// What it says.
        memory_use: MemoryUse,
    },
    /// Sizes alone.
    Sizes {
        /// The kernel's image in memory.
        kernel: u64,
    },
}

/// A part of the estimate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Part {
    what: String,
    bytes: u64,
}

/// The answer. All in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Estimate {
    basis: Basis,
    /// What makes it up.
    parts: Vec<Part>,
    /// The sum of the parts.
    needed: u64,
    /// With a margin, in whole multiples of what the kernel reserves: for `crashkernel=`.
    recommended: u64,
    /// What is reserved now; 0 if nothing is.
    reserved: u64,
    /// Whether that is as much as recommended.
    enough: bool,
}

/// What is looked at on the machine. All in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    /// The running machine's memory.
    memory: u64,
    reserved: u64,
    kernel: u64,
    /// The initramfs, packed and unpacked.
    packed: u64,
    unpacked: u64,
    /// Bounce buffers for devices.
    bounce: u64,
    /// Whether pages are left out of dumps.
    filters: bool,
}

/// What is read of a report.
#[derive(Debug, Deserialize)]
struct Told {
    memory_use: Option<MemoryUse>,
    memory: Option<ToldMemory>,
}

#[derive(Debug, Deserialize)]
struct ToldMemory {
    /// Bytes of the crashed machine's memory that were looked at.
    done: u64,
}

/// Estimates; returns the exit code.
///
/// # Errors
/// What could not be read.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let host = Host::live();
    let initrd = match &args.initrd {
        Some(initrd) => initrd.clone(),
        None => prepared::usual_path(&host.kernel_release()?),
    };
    let prepared = Prepared::read(&initrd)?;
    let iomem = host.iomem()?;
    let Some(kernel) = iomem.kernel_image() else {
        bail!("/proc/iomem does not show the kernel's image: ask again as root");
    };
    let sizes = Sizes {
        memory: iomem.ram().iter().map(|range| range.len()).sum(),
        reserved: host.kexec()?.crash_size,
        kernel: kernel.len(),
        packed: prepared.size,
        unpacked: prepared.unpacked,
        bounce: bounce_buffers(bounces_little(&host)),
        filters: prepared.config.dump_level.number() != 0,
    };
    let dumps = args.directory.clone().or_else(|| prepared.dumps());
    let estimate = match dumps.as_deref().and_then(last_report) {
        Some((file, memory_use, memory)) => by_report(file, memory_use, memory, sizes),
        None => by_sizes(sizes),
    };
    if args.json {
        print_json(&estimate)?;
    } else {
        print(estimate.text(args.color.is_wanted()))?;
    }
    Ok(if estimate.enough { exit::OK } else { TOO_LITTLE })
}

/// The newest report in `dir` that tells what its capture took, with that and the bytes of the machine's memory then.
fn last_report(dir: &Path) -> Option<(PathBuf, MemoryUse, u64)> {
    store::list(dir).ok()?.into_iter().rev().find_map(|dump| {
        let file = dump.path.join(REPORT);
        let told: Told = serde_json::from_slice(&fs::read(&file).ok()?).ok()?;
        // Without the whole of a capture kernel's memory there is nothing to hold a reservation against.
        let memory_use = told.memory_use.filter(|memory_use| memory_use.given.is_some())?;
        Some((file, memory_use, told.memory?.done))
    })
}

fn by_report(file: PathBuf, memory_use: MemoryUse, memory: u64, sizes: Sizes) -> Estimate {
    let given = memory_use.given.unwrap_or(memory_use.total);
    let saving = given.saturating_sub(memory_use.available_least);
    // While the kernel unpacks the initramfs it has it twice.
    let booting = given.saturating_sub(memory_use.available_at_start).saturating_add(sizes.packed);
    let mut parts = vec![if booting > saving {
        part("what it took to boot, with the initramfs packed and unpacked", booting)
    } else {
        part("the most that the last capture took, kernel and all", saving)
    }];
    let unpacked = sizes.unpacked.saturating_sub(memory_use.initramfs);
    // Files of the initramfs take whole pages; what a few of them differ in is no growth.
    if unpacked > 1 << 20 {
        parts.push(part("the initramfs has grown since", unpacked));
    }
    let grown = bitmaps(sizes, sizes.memory.saturating_sub(memory));
    if grown > 0 {
        parts.push(part("bitmaps for memory that was added since", grown));
    }
    Estimate::of(Basis::Report { file, memory_use }, parts, sizes.reserved)
}

fn by_sizes(sizes: Sizes) -> Estimate {
    // The packed initramfs is gone before the drivers and the program come.
    let (rest, what) = if sizes.packed > REST {
        (sizes.packed, "the initramfs, packed, until it is unpacked")
    } else {
        (REST, "drivers, the kernel's tables, the program")
    };
    let parts = vec![
        part("the kernel's image", sizes.kernel),
        part("the initramfs, unpacked", sizes.unpacked),
        part("bounce buffers for devices", sizes.bounce),
        part(what, rest),
        part("bitmaps for the filter", bitmaps(sizes, sizes.memory)),
    ];
    let parts: Vec<Part> = parts.into_iter().filter(|part| part.bytes > 0).collect();
    let so_far: u64 = parts.iter().map(|part| part.bytes).sum();
    // They are of the reservation itself, which will be about as large as what is asked for.
    let structs = recommended(so_far) / PAGE * PAGE_STRUCT;
    let parts = parts.into_iter().chain([part("page structures", structs)]).collect();
    Estimate::of(Basis::Sizes { kernel: sizes.kernel }, parts, sizes.reserved)
}

fn bitmaps(sizes: Sizes, memory: u64) -> u64 {
    if sizes.filters { memory / PAGE / 8 * BITMAPS } else { 0 }
}

fn part(what: &str, bytes: u64) -> Part {
    Part { what: what.to_owned(), bytes }
}

fn recommended(needed: u64) -> u64 {
    needed.saturating_add((needed / 4).max(LEAST_MARGIN)).next_multiple_of(GRAIN)
}

impl Estimate {
    fn of(basis: Basis, parts: Vec<Part>, reserved: u64) -> Self {
        let needed = parts.iter().map(|part| part.bytes).sum();
        let recommended = recommended(needed);
        Self { basis, parts, needed, recommended, reserved, enough: reserved >= recommended }
    }

    fn text(&self, coloured: bool) -> String {
        let mut screen = Screen::new(coloured);
        let asked = format!("crashkernel={}M", self.recommended >> 20);
        match (self.enough, self.reserved) {
            (true, reserved) => {
                screen.told(
                    "ENOUGH",
                    Tone::Good,
                    &format!("{} are reserved, {asked} would do", size(reserved)),
                );
            }
            (false, 0) => {
                screen.told("NOTHING RESERVED", Tone::Bad, &format!("{asked} is what this machine needs"))
            }
            (false, reserved) => {
                screen.told(
                    "TOO LITTLE",
                    Tone::Bad,
                    &format!("{} are reserved, {asked} is what this machine needs", size(reserved)),
                );
            }
        }
        match &self.basis {
            Basis::Report { file, memory_use } => {
                screen.row("by", &format!("what the last capture took: {}", file.display()));
                let told = format!(
                    "its program took {} at most, its initramfs {}",
                    size(memory_use.program_peak),
                    size(memory_use.initramfs)
                );
                screen.row("", &told);
            }
            Basis::Sizes { .. } => {
                screen.row("by", "sizes alone: there is no report yet of what a capture took here")
            }
        }
        for (number, part) in self.parts.iter().enumerate() {
            screen
                .row(if number == 0 { "needs" } else { "" }, &format!("{} {}", size(part.bytes), part.what));
        }
        let margin = size(self.recommended - self.needed);
        screen.row("", &format!("together {}; {margin} more are the margin", size(self.needed)));
        if !self.enough {
            screen.told(
                "NEXT",
                Tone::Strong,
                &format!("put {asked} on the kernel's command line and boot again"),
            );
        }
        screen.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::WIDTH;

    const MIB: u64 = 1 << 20;

    const SIZES: Sizes = Sizes {
        memory: 64 << 30,
        reserved: 256 * MIB,
        kernel: 40 * MIB,
        packed: 6 * MIB,
        unpacked: 14 * MIB,
        bounce: 64 * MIB,
        filters: true,
    };

    fn took() -> MemoryUse {
        MemoryUse {
            given: Some(255 * MIB),
            total: 200 * MIB,
            available_at_start: 170 * MIB,
            available_least: 150 * MIB,
            program_peak: 9 * MIB,
            initramfs: 14 * MIB,
        }
    }

    fn by(memory_use: MemoryUse, memory: u64, sizes: Sizes) -> Estimate {
        by_report("/var/crash/x/report.json".into(), memory_use, memory, sizes)
    }

    #[test]
    fn what_a_capture_took_counts_with_what_has_grown_since() {
        let same = by(took(), SIZES.memory, SIZES);
        assert_eq!((same.needed, same.recommended, same.enough), (105 * MIB, 144 * MIB, true));
        let boot = by(MemoryUse { available_least: 169 * MIB, ..took() }, SIZES.memory, SIZES);
        assert_eq!(boot.needed, (255 - 170 + 6) * MIB, "to boot took more than to save");
        let more = by(took(), SIZES.memory / 2, Sizes { unpacked: 20 * MIB, ..SIZES });
        assert_eq!(more.needed, (105 + 6 + 2) * MIB, "{more:?}");
        let unfiltered = by(took(), 0, Sizes { filters: false, ..SIZES });
        assert_eq!(unfiltered.needed, 105 * MIB);
        assert!(!by(took(), SIZES.memory, Sizes { reserved: 143 * MIB, ..SIZES }).enough);
    }

    #[test]
    fn sizes_are_added_up_where_nothing_is_known() {
        let estimate = by_sizes(SIZES);
        let bytes: Vec<u64> = estimate.parts.iter().map(|part| part.bytes / MIB).collect();
        assert_eq!((bytes.as_slice(), estimate.recommended), (&[40, 14, 64, 40, 4, 3][..], 208 * MIB));
        let few = by_sizes(Sizes { bounce: 8 * MIB, ..SIZES });
        assert_eq!(few.recommended, 144 * MIB, "{few:?}");
        let none = by_sizes(Sizes { bounce: 0, ..SIZES });
        assert!(none.parts.iter().all(|part| !part.what.contains("bounce")), "{none:?}");
        let large = by_sizes(Sizes { packed: 60 * MIB, ..SIZES });
        assert!(
            large.parts.contains(&part("the initramfs, packed, until it is unpacked", 60 * MIB)),
            "{large:?}"
        );
        let huge = by_sizes(Sizes { memory: 16 << 40, ..SIZES });
        assert!(huge.needed > 1024 * MIB, "{huge:?}");
    }

    #[test]
    fn the_newest_report_that_tells_counts() {
        let dir = tempfile::tempdir().unwrap();
        let report = |name: &str, text: String| {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join(REPORT), text).unwrap();
        };
        assert_eq!(last_report(dir.path()), None);
        let told = |memory_use: &MemoryUse, done| {
            serde_json::json!({"status": "saved", "memory_use": memory_use, "memory": {"done": done, "more": 1}}).to_string()
        };
        report("2026-11-22-15:32:10", told(&took(), 5));
        report("2026-11-23-15:32:10", told(&MemoryUse { total: 7, ..took() }, 6));
        report("2026-11-24-15:32:10", told(&MemoryUse { given: None, ..took() }, 7));
        report("2026-11-25-15:32:10", "{\"status\": \"saved\"}".into());
        let (file, memory_use, memory) = last_report(dir.path()).unwrap();
        assert_eq!(
            (file, memory_use.total, memory),
            (dir.path().join("2026-11-23-15:32:10").join(REPORT), 7, 6)
        );
    }

    #[test]
    fn what_people_read() {
        let text = by(took(), SIZES.memory, Sizes { reserved: 128 * MIB, ..SIZES }).text(false);
        assert_eq!(
            text,
            "\
TOO LITTLE: 128 MiB are reserved, crashkernel=144M is what this machine needs
  by          what the last capture took: /var/crash/x/report.json
              its program took 9 MiB at most, its initramfs 14 MiB
  needs       105 MiB the most that the last capture took, kernel and all
              together 105 MiB; 39 MiB more are the margin
NEXT: put crashkernel=144M on the kernel's command line and boot again
"
        );
        let nothing = by_sizes(Sizes { reserved: 0, ..SIZES }).text(false);
        let wanted = by_sizes(SIZES).recommended / MIB;
        let first = format!("NOTHING RESERVED: crashkernel={wanted}M is what this machine needs\n");
        assert!(nothing.starts_with(&first), "{nothing}");
        let enough = by_sizes(SIZES).text(true);
        assert!(enough.starts_with("\x1b[1;32mENOUGH\x1b[0m: 256 MiB are reserved"), "{enough}");
        assert!(nothing.lines().all(|line| line.chars().count() <= WIDTH), "{nothing}");
    }
}
