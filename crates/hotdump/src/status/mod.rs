//! `hotdump status`: one screen on what is loaded, whether it is current, and where dumps go.

mod module;
mod shown;

use std::path::{Path, PathBuf};

use elfcorehdr::Header as CrashHeader;
use host::{CrashHotplug, Host, Reservations};
use kexec::Keeper;
use serde::Serialize;

use crate::dumps::store::{self, Entry};
use crate::exit;
use crate::keeping::Keeping;
use crate::prepared::{self, Prepared};
use crate::record::{self, Record};
use crate::rehearsal::LastTest;
use crate::screen::Color;
use crate::text::{Range, print, print_json};
use crate::verify::{self, Source, Verdict};
use module::Follower;

/// Options of `hotdump status`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    /// When to colour
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Color,
}

/// All that can be said. What is `None` could not be read, or does not apply; `remarks` has the reasons.
#[derive(Debug, Default, Serialize)]
struct Status {
    loaded: Option<bool>,
    /// Whether a dump taken now would be complete.
    verdict: Verdict,
    /// What keeps the verdict from being "complete", in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    findings: Vec<String>,
    /// What hotdump's last load of this boot wrote down, while an image is loaded.
    last_load: Option<Record>,
    /// Whether hotdump loaded nothing in this boot.
    #[serde(skip)]
    by_another: bool,
    /// Whether the loaded image is that one: `None` where it cannot be told.
    last_load_in_force: Option<bool>,
    /// Who keeps the loaded image current; none where no image is loaded, or where it cannot be told.
    kept_by: Option<Keeper>,
    /// Whether every change of CPUs and memory is taken care of.
    kept_current: Option<bool>,
    /// What the files `crash_hotplug` say: the kernel's own, or, on kernels without a handler, the module's.
    crash_hotplug: Hotplug,
    /// Who keeps it current, for people.
    #[serde(skip)]
    keeping: Option<String>,
    /// What must not be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
    /// What the kernel module does, where it is loaded.
    module: Option<Follower>,
    reservation: Option<Reserved>,
    header: Option<Header>,
    /// The initramfs that the dump will be saved by, and where it will go.
    capture: Option<Capture>,
    /// The newest dump on this machine.
    last_dump: Option<Entry>,
    /// The last `hotdump test --really-crash`.
    last_test: Option<LastTest>,
    remarks: Vec<String>,
    /// What to do, where something is wrong.
    next_step: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Hotplug {
    cpu: Option<bool>,
    memory: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Reserved {
    main: Range,
    low: Option<Range>,
    /// Bytes of `main` that the loaded image takes; the rest is what the capture kernel has to work with.
    used: Option<u64>,
}

/// The header in force.
#[derive(Debug, Serialize)]
struct Header {
    place: Range,
    /// How it was read.
    source: Source,
    /// Bytes up to the end of its last entry.
    used: u64,
    /// Bytes that its segment has.
    room: u64,
}

/// A capture initramfs.
#[derive(Debug, Serialize)]
struct Capture {
    initramfs: PathBuf,
    /// In bytes, on disk.
    size: u64,
    /// In bytes, in the capture kernel's memory.
    unpacked: u64,
    /// The target, its filesystem's type and the directory there.
    target: String,
    /// That directory on the running system, where the target is mounted here.
    directory: Option<PathBuf>,
}

/// Prints the status; returns the exit code.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let status = Status::read(&Host::live());
    if args.json {
        print_json(&status)?;
    } else {
        print(status.text(args.color.is_wanted()))?;
    }
    Ok(match status.loaded {
        Some(true) => exit::OK,
        Some(false) => exit::NOT_LOADED,
        None => exit::UNKNOWN,
    })
}

impl Status {
    fn read(host: &Host) -> Self {
        let mut status = Self::default();
        let kexec = status.noted(host.kexec());
        status.loaded = kexec.as_ref().map(|kexec| kexec.crash_loaded);
        let reserves = kexec.as_ref().map(|kexec| kexec.crash_size > 0);
        let kernel_can = kexec.is_some_and(|kexec| kexec.elfcorehdr_size.is_some());
        let keeping = Keeping::read(host, kernel_can, &mut status.remarks);
        let CrashHotplug { cpu, memory } = keeping.nodes;
        status.crash_hotplug = Hotplug { cpu, memory };
        status.module = keeping.module.as_ref().map(Follower::from);
        let reservations = status.noted(host.reservations()).flatten();
        status.reservation = reservations.map(|Reservations { main, low }| Reserved {
            main: main.into(),
            low: low.map(Range::from),
            used: None,
        });
        if status.loaded == Some(true) {
            status.read_image(host, reservations, &keeping);
            (status.verdict, status.findings) = verify::judgement(host);
            // What is said as a problem is not said again.
            status.findings.retain(|finding| !status.problems.contains(finding));
        } else if status.loaded == Some(false) {
            status.verdict = Verdict::NotLoaded;
        }
        status.read_capture(host);
        status.last_test = LastTest::read(host);
        status.next_step = status.next_step(reserves);
        status
    }

    fn read_image(&mut self, host: &Host, reservations: Option<Reservations>, keeping: &Keeping) {
        let kcore = host.kcore();
        if let Some(reservations) = reservations {
            let sight = verify::look(host, kcore.as_ref(), reservations.main, keeping.armed(), false);
            if let Some(sight) = self.noted(sight) {
                self.header = sight.in_force().map(|found| Header {
                    place: found.range.into(),
                    source: sight.source,
                    used: CrashHeader::parse(&found.bytes).map_or(0, |header| header.size() as u64),
                    room: found.range.len(),
                });
                self.problems.extend(sight.problem);
            }
            let taken = kcore.as_ref().ok().and_then(|kcore| {
                let segments = verify::segments(host, kcore, reservations.main).ok()??;
                Some(segments.iter().map(|segment| segment.len()).sum())
            });
            if let Some(reserved) = &mut self.reservation {
                reserved.used = taken;
            }
        }
        let record = self.noted(Record::read(record::DIR));
        self.by_another = record.as_ref().is_some_and(Option::is_none);
        self.last_load = record.flatten().filter(|record| record.is_of_this_boot(host));
        let header = self.header.as_ref().map(|header| header.place.0.start());
        self.last_load_in_force = self
            .last_load
            .as_ref()
            .and_then(|record| record.is_in_force(host, keeping.armed(), header, kcore.as_ref().ok()));
        let wanted = self.last_load.as_ref().filter(|_| self.last_load_in_force != Some(false));
        self.problems.extend(keeping.broken(wanted.map(|record| record.keeper)));
        (self.kept_by, self.kept_current) = (keeping.keeper(), keeping.is_whole());
        self.keeping = Some(keeping.line());
    }

    /// Looks into the initramfs that was loaded, or else into the one that would be, and at the dumps that it left.
    fn read_capture(&mut self, host: &Host) {
        let loaded = self.last_load.as_ref().filter(|_| self.last_load_in_force != Some(false));
        let path = match loaded {
            Some(record) => record.initrd.clone(),
            None => host.kernel_release().ok().map(|release| prepared::usual_path(&release)),
        };
        let Some(path) = path.filter(|path| loaded.is_some() || path.exists()) else { return };
        let Some(prepared) = self.noted(Prepared::read(&path)) else { return };
        let directory = prepared.dumps();
        self.last_dump = directory.as_deref().and_then(newest);
        self.capture = Some(Capture {
            initramfs: path,
            size: prepared.size,
            unpacked: prepared.unpacked,
            target: prepared.shown_target(),
            directory,
        });
    }

    /// The value, or a remark why there is none.
    fn noted<T, E: std::fmt::Display>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.remarks.push(error.to_string())).ok()
    }

    /// What to do first, where something is wrong. `reserves` tells whether the kernel has memory reserved.
    fn next_step(&self, reserves: Option<bool>) -> Option<String> {
        let load = "`hotdump load`";
        let step = match (self.loaded, self.verdict) {
            (None, _) => "this kernel takes no crash kernel: boot one with CONFIG_KEXEC and CONFIG_CRASH_DUMP".to_owned(),
            (Some(false), _) if reserves == Some(false) => {
                "reserve memory: crashkernel=256M on the kernel's command line (`hotdump estimate` tells how much), then boot again"
                    .to_owned()
            }
            (Some(false), _) if self.capture.is_none() => {
                format!("write an initramfs by `hotdump initramfs --output {}`, then {load}", self.usual_path())
            }
            (Some(false), _) => format!("{load}; why the service has not: `systemctl status hotdump`"),
            (Some(true), Verdict::Stale) => load.to_owned(),
            (Some(true), _) if !self.problems.is_empty() => load.to_owned(),
            (Some(true), Verdict::Unknown) if !rustix::process::geteuid().is_root() => {
                "ask again as root: only root may see the header".to_owned()
            }
            (Some(true), _) if self.last_test.as_ref().is_some_and(LastTest::has_failed) => {
                "find out why the test's dump is not there: `hotdump target check`".to_owned()
            }
            (Some(true), _) => {
                let failed = self.last_dump.as_ref().filter(|dump| dump.status != "saved")?;
                format!("see what became of the last dump: `hotdump dumps --directory {} show`", parent(failed))
            }
        };
        Some(step)
    }

    fn usual_path(&self) -> String {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        prepared::usual_path(&release).display().to_string()
    }
}

/// The newest dump in `dir`.
fn newest(dir: &Path) -> Option<Entry> {
    store::list(dir).ok()?.pop()
}

fn parent(dump: &Entry) -> String {
    dump.path.parent().unwrap_or(&dump.path).display().to_string()
}
