//! `hotdump status`: what is loaded, where, and by whom.

use elfcorehdr::{Header as CrashHeader, PhysAddr, PhysRange};
use host::{CrashHotplug, Host, Reservations};
use kexec::Keeper;
use serde::Serialize;

use crate::exit;
use crate::keeping::{self, Keeping};
use crate::record::{self, Identity, Record};
use crate::text::{Range, ago, counted, duration, moment, print, print_json, size};
use crate::verify::{self, Source};

/// Options of `hotdump status`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// All that can be said. What is `None` could not be read, or does not apply; `remarks` has the reasons.
#[derive(Debug, Default, Serialize)]
struct Status {
    loaded: Option<bool>,
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
    remarks: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
struct Hotplug {
    cpu: Option<bool>,
    memory: Option<bool>,
}

/// The kernel module.
#[derive(Debug, Serialize)]
struct Follower {
    /// Whether it follows an image, and that is up to date.
    armed: bool,
    /// Why it follows none.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    memory: bool,
    cpus: bool,
    /// The random name of the image that it follows, or last followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    /// Where that image's header is, with its room.
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Range>,
    memory_events: u64,
    cpu_events: u64,
    /// Stores to crash headers.
    stores: u64,
    /// Changes that the machine went through between planning and arming.
    reconciled: u64,
    last_event_ns: u64,
    slowest_event_ns: u64,
    /// In seconds since 1970; 0 if there was none.
    last_event_time: u64,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_event: Option<String>,
    used_slots: u32,
    free_slots: u32,
    /// Where the device tree in force is, where that image has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    tree: Option<PhysAddr>,
    /// Device trees written for CPUs that came.
    trees_built: u64,
}

impl From<&abi::Status> for Follower {
    fn from(status: &abi::Status) -> Self {
        let armed = status.armed != 0;
        let header = PhysRange::new(PhysAddr(status.header.start), PhysAddr(status.header.end));
        let followed = header.filter(|header| !header.is_empty());
        Self {
            armed,
            reason: (!armed).then(|| keeping::reason(status)),
            memory: status.follow & abi::FOLLOW_MEMORY != 0,
            cpus: status.follow & abi::FOLLOW_CPUS != 0,
            identity: followed.map(|_| Identity::name(status.identity)),
            header: followed.map(Range::from),
            memory_events: status.memory_events,
            cpu_events: status.cpu_events,
            stores: status.stores,
            reconciled: status.reconciled,
            last_event_ns: status.last_ns,
            slowest_event_ns: status.slowest_ns,
            last_event_time: status.last_time,
            last_event: (status.last_time != 0).then(|| moment(status.last_time)),
            used_slots: status.used_slots,
            free_slots: status.free_slots,
            tree: (status.tree != 0).then_some(PhysAddr(status.tree)),
            trees_built: status.trees_built,
        }
    }
}

impl Follower {
    fn lines(&self) -> Vec<String> {
        let mut lines = vec![match &self.reason {
            Some(reason) => format!("module: follows no image: {reason}"),
            None => {
                let follows = match (self.memory, self.cpus) {
                    (true, true) => "memory and CPUs",
                    (true, false) => "memory, not CPUs",
                    (false, true) => "CPUs, not memory",
                    (false, false) => "neither memory nor CPUs",
                };
                let header =
                    self.header.map_or_else(String::new, |header| format!(" of the header at {header}"));
                format!(
                    "module: follows {follows}; slots{header}: {} used, {} free",
                    self.used_slots, self.free_slots
                )
            }
        }];
        lines.push(format!(
            "  {}, {}, {} since it was loaded; {} taken in at arming",
            counted(self.memory_events as usize, "memory event"),
            counted(self.cpu_events as usize, "CPU event"),
            counted(self.stores as usize, "store"),
            counted(self.reconciled as usize, "earlier change"),
        ));
        lines.extend(self.tree.map(|tree| {
            format!(
                "  the device tree in force is at {tree}; {} written",
                counted(self.trees_built as usize, "tree")
            )
        }));
        lines.extend(self.last_event.as_ref().map(|last| {
            format!(
                "  last event: {last}{}, took {}; the slowest took {}",
                ago(self.last_event_time),
                duration(self.last_event_ns),
                duration(self.slowest_event_ns)
            )
        }));
        lines
    }
}

#[derive(Debug, Serialize)]
struct Reserved {
    main: Range,
    low: Option<Range>,
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

/// Prints the status; returns the exit code.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let status = Status::read(&Host::live());
    if args.json {
        print_json(&status)?;
    } else {
        print(status.text())?;
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
        let kernel_can = kexec.is_some_and(|kexec| kexec.elfcorehdr_size.is_some());
        let keeping = Keeping::read(host, kernel_can, &mut status.remarks);
        let CrashHotplug { cpu, memory } = keeping.nodes;
        status.crash_hotplug = Hotplug { cpu, memory };
        status.module = keeping.module.as_ref().map(Follower::from);
        let reservations = status.noted(host.reservations()).flatten();
        status.reservation = reservations
            .map(|Reservations { main, low }| Reserved { main: main.into(), low: low.map(Range::from) });
        if status.loaded == Some(true) {
            status.read_image(host, reservations, &keeping);
        }
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

    /// The value, or a remark why there is none.
    fn noted<T, E: std::fmt::Display>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.remarks.push(error.to_string())).ok()
    }

    fn text(&self) -> String {
        let mut lines = vec![match self.loaded {
            Some(true) => "crash image: loaded".to_owned(),
            Some(false) => "crash image: none".to_owned(),
            None => "crash image: unknown".to_owned(),
        }];
        if let Some(record) = &self.last_load {
            lines.extend(self.image_lines(record));
        } else if self.by_another {
            lines.push("  loaded by another program".to_owned());
        }
        lines.extend(self.problems.iter().map(|problem| format!("PROBLEM: {problem}")));
        lines.extend(self.keeping.clone());
        lines.extend(self.module.iter().flat_map(Follower::lines));
        match &self.reservation {
            Some(Reserved { main, low: None }) => lines.push(format!("reservation: {main}")),
            Some(Reserved { main, low: Some(low) }) => lines.push(format!("reservation: {main}, low {low}")),
            None if self.remarks.is_empty() => lines.push("reservation: none (crashkernel=)".to_owned()),
            None => {}
        }
        if let Some(header) = &self.header {
            lines.push(format!(
                "header: at {}, {} used of {}, {}",
                header.place.0.start(),
                size(header.used),
                size(header.room),
                header.source
            ));
        }
        lines.extend(self.remarks.iter().map(|remark| format!("note: {remark}")));
        lines.push(String::new());
        lines.join("\n")
    }

    fn image_lines(&self, record: &Record) -> Vec<String> {
        let trust = match self.last_load_in_force {
            Some(true) => "",
            Some(false) => " (another program has loaded another image since)",
            None => " (whether it is still the one loaded cannot be told)",
        };
        let initrd = record.initrd.as_ref().map_or("none".to_owned(), |path| path.display().to_string());
        vec![
            format!("  last load by hotdump: {}{}{trust}", record.syscall, ago(record.time)),
            format!("  kernel: {}", record.kernel.display()),
            format!("  initramfs: {initrd}"),
            format!("  command line: {}", record.cmdline),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> abi::Status {
        abi::Status {
            armed: 1,
            follow: abi::FOLLOW_MEMORY | abi::FOLLOW_CPUS,
            used_slots: 9,
            free_slots: 1200,
            header: abi::Range { start: 0x3eff_0000, end: 0x3f00_0000 },
            identity: [0xab; 16],
            memory_events: 4,
            cpu_events: 1,
            stores: 25,
            reconciled: 0,
            last_ns: 1_900,
            slowest_ns: 31_500,
            last_time: 1_795_374_000,
            ..abi::Status::default()
        }
    }

    /// Without what depends on the time of the day.
    fn lines(status: &abi::Status) -> Vec<String> {
        let age = ago(status.last_time);
        Follower::from(status).lines().into_iter().map(|line| line.replace(&age, "")).collect()
    }

    #[test]
    fn what_the_module_does_for_people() {
        assert_eq!(
            lines(&status()),
            [
                "module: follows memory and CPUs; slots of the header at [0x3eff0000, 0x3f000000) (64 KiB): 9 used, 1200 free",
                "  4 memory events, 1 CPU event, 25 stores since it was loaded; 0 earlier changes taken in at arming",
                "  last event: 2026-11-22T19:00:00Z, took 1.9 us; the slowest took 31 us",
            ]
        );
    }

    #[test]
    fn a_device_tree_is_told_of_where_there_is_one() {
        let told = lines(&abi::Status { tree: 0x2810_0000, trees_built: 2, ..status() });
        assert_eq!(told[2], "  the device tree in force is at 0x28100000; 2 trees written");
        let value = serde_json::to_value(Follower::from(&status())).unwrap();
        assert_eq!((value.get("tree"), &value["trees_built"]), (None, &serde_json::json!(0)));
    }

    #[test]
    fn what_of_it_the_module_follows() {
        for (follow, expected) in [
            (abi::FOLLOW_MEMORY, "module: follows memory, not CPUs; slots"),
            (abi::FOLLOW_CPUS, "module: follows CPUs, not memory; slots"),
            (0, "module: follows neither memory nor CPUs; slots"),
        ] {
            let told = lines(&abi::Status { follow, ..status() });
            assert!(told[0].starts_with(expected), "{told:?}");
        }
    }

    #[test]
    fn why_the_module_follows_nothing() {
        let reason = abi::Reason::OtherLoad as u32;
        let let_go = abi::Status { armed: 0, follow: 0, reason, ..status() };
        assert_eq!(lines(&let_go)[0], "module: follows no image: a crash image is being loaded or unloaded");
        let fresh = abi::Status::default();
        assert_eq!(
            lines(&fresh),
            [
                "module: follows no image: no image was armed yet",
                "  0 memory events, 0 CPU events, 0 stores since it was loaded; 0 earlier changes taken in at arming",
            ]
        );
        for reason in abi::Reason::ALL {
            let told = lines(&abi::Status { reason: *reason as u32, ..let_go });
            assert!(told[0].len() > "module: follows no image: ".len(), "{reason:?}: {told:?}");
        }
    }

    #[test]
    fn what_the_module_does_for_programs() {
        let json = serde_json::to_value(Follower::from(&status())).unwrap();
        assert_eq!(json["armed"], true);
        assert_eq!(json["identity"], "ab".repeat(16));
        assert_eq!(json["header"]["start"], "0x3eff0000");
        assert_eq!(json["last_event_time"], 1_795_374_000);
        assert_eq!(json["last_event"], "2026-11-22T19:00:00Z");
        assert_eq!(json.get("reason"), None);
        let none = serde_json::to_value(Follower::from(&abi::Status::default())).unwrap();
        assert_eq!(none["reason"], "no image was armed yet");
        assert_eq!((none.get("identity"), none.get("header"), none.get("last_event")), (None, None, None));
    }

    #[test]
    fn the_whole_text_has_problems_before_details() {
        let keeping = "kept current: by nobody";
        let status = Status {
            loaded: Some(true),
            by_another: true,
            problems: vec!["it is not followed".to_owned()],
            keeping: Some(keeping.to_owned()),
            module: Some(Follower::from(&abi::Status::default())),
            ..Status::default()
        };
        let text = status.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..4],
            ["crash image: loaded", "  loaded by another program", "PROBLEM: it is not followed", keeping]
        );
        assert!(lines[4].starts_with("module: follows no image"), "{text}");
    }
}
