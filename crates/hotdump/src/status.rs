//! `hotdump status`: what is loaded, where, and by whom.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use host::{Host, Reservations};
use kexec::{Module, ModuleError};
use serde::Serialize;

use crate::exit;
use crate::record::{self, Record};
use crate::text::{Range, counted, print, print_json, size};
use crate::verify;

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
    /// Whether the loaded image is that one: `None` where it cannot be told.
    last_load_in_force: Option<bool>,
    /// Whether the kernel keeps the loaded image's header current by itself.
    crash_hotplug: Hotplug,
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
    used_slots: u32,
    free_slots: u32,
}

impl From<abi::Status> for Follower {
    fn from(status: abi::Status) -> Self {
        let armed = status.armed != 0;
        let reason = match abi::Reason::from_code(status.reason) {
            _ if armed => None,
            Some(reason) => Some(reason.text().to_owned()),
            None => Some(format!("reason {}", status.reason)),
        };
        Self {
            armed,
            reason,
            memory: status.follow & abi::FOLLOW_MEMORY != 0,
            cpus: status.follow & abi::FOLLOW_CPUS != 0,
            memory_events: status.memory_events,
            cpu_events: status.cpu_events,
            stores: status.stores,
            reconciled: status.reconciled,
            last_event_ns: status.last_ns,
            slowest_event_ns: status.slowest_ns,
            last_event_time: status.last_time,
            used_slots: status.used_slots,
            free_slots: status.free_slots,
        }
    }
}

impl Follower {
    fn lines(&self) -> Vec<String> {
        let events = format!(
            "  {}, {}, {}; the last took {} us, the slowest {} us",
            counted(self.memory_events as usize, "memory event"),
            counted(self.cpu_events as usize, "CPU event"),
            counted(self.stores as usize, "store"),
            self.last_event_ns / 1000,
            self.slowest_event_ns / 1000
        );
        match &self.reason {
            Some(reason) => vec![format!("module: follows no image: {reason}"), events],
            None => vec![
                format!("module: follows the image: CPUs {}, memory {}", word(self.cpus), word(self.memory)),
                events,
                format!("  header slots: {} used, {} free", self.used_slots, self.free_slots),
            ],
        }
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
        status.loaded = kexec.map(|kexec| kexec.crash_loaded);
        if let Some(hotplug) = status.noted(host.crash_hotplug()) {
            status.crash_hotplug = Hotplug { cpu: hotplug.cpu, memory: hotplug.memory };
        }
        status.module = status.noted(module()).flatten();
        let reservations = status.noted(host.reservations()).flatten();
        status.reservation = reservations
            .map(|Reservations { main, low }| Reserved { main: main.into(), low: low.map(Range::from) });
        if status.loaded == Some(true) {
            status.read_image(host);
        }
        status
    }

    fn read_image(&mut self, host: &Host) {
        let record = self.noted(Record::read(record::DIR)).flatten();
        self.last_load = record.filter(|record| record.is_of_this_boot(host));
        let Some(kcore) = self.noted(host.kcore()) else { return };
        if let Some(record) = self.last_load.as_ref().filter(|record| record.identity.is_some()) {
            self.last_load_in_force = Some(record.is_in_memory(host, &kcore));
        }
        if let Some(header) = self.noted(verify::header_in_force(host, &kcore)).flatten() {
            self.header =
                Some(Header { place: header.place.into(), used: header.used, room: header.place.len() });
            if let Some(recorded) = self.last_load.as_ref().and_then(|record| record.header)
                && recorded.start() != header.place.start()
            {
                self.last_load_in_force = Some(false);
            }
        }
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
        } else if self.loaded == Some(true) {
            lines.push("  loaded by another program".to_owned());
        }
        lines.push(format!(
            "kept current: CPUs {}, memory {}",
            yes(self.crash_hotplug.cpu),
            yes(self.crash_hotplug.memory)
        ));
        lines.extend(self.module.iter().flat_map(Follower::lines));
        match &self.reservation {
            Some(Reserved { main, low: None }) => lines.push(format!("reservation: {main}")),
            Some(Reserved { main, low: Some(low) }) => lines.push(format!("reservation: {main}, low {low}")),
            None if self.remarks.is_empty() => lines.push("reservation: none (crashkernel=)".to_owned()),
            None => {}
        }
        if let Some(header) = &self.header {
            lines.push(format!(
                "header: at {}, {} used of {}",
                header.place.0.start(),
                size(header.used),
                size(header.room)
            ));
        }
        lines.extend(self.remarks.iter().map(|remark| format!("note: {remark}")));
        lines.push(String::new());
        lines.join("\n")
    }

    fn image_lines(&self, record: &Record) -> Vec<String> {
        let ago = SystemTime::now()
            .duration_since(UNIX_EPOCH + Duration::from_secs(record.time))
            .map_or_else(|_| String::new(), |age| format!(", {} s ago", age.as_secs()));
        let trust = match self.last_load_in_force {
            Some(true) => "",
            Some(false) => " (another program has loaded another image since)",
            None => " (whether it is still the one loaded cannot be told)",
        };
        let initrd = record.initrd.as_ref().map_or("none".to_owned(), |path| path.display().to_string());
        vec![
            format!("  last load by hotdump: {}{ago}{trust}", record.syscall),
            format!("  kernel: {}", record.kernel.display()),
            format!("  initramfs: {initrd}"),
            format!("  command line: {}", record.cmdline),
        ]
    }
}

/// What the module does; `None` where it is not loaded.
fn module() -> Result<Option<Follower>, ModuleError> {
    Module::open()?.map(|module| module.status().map(Follower::from)).transpose()
}

fn word(fact: bool) -> &'static str {
    if fact { "yes" } else { "no" }
}

fn yes(fact: Option<bool>) -> &'static str {
    match fact {
        Some(true) => "yes",
        Some(false) => "no",
        None => "no (this kernel cannot)",
    }
}
