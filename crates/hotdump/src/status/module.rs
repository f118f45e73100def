//! What the kernel module does.

use elfcorehdr::{PhysAddr, PhysRange};
use serde::Serialize;

use crate::keeping;
use crate::record::Identity;
use crate::screen::Screen;
use crate::text::{Range, ago, counted, duration, moment};

/// The kernel module.
#[derive(Debug, Serialize)]
pub(super) struct Follower {
    /// Whether it follows an image, and that is up to date.
    pub(super) armed: bool,
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
    pub(super) fn show(&self, screen: &mut Screen) {
        let told = match &self.reason {
            Some(reason) => format!("follows no image: {reason}"),
            None => {
                let follows = match (self.memory, self.cpus) {
                    (true, true) => "memory and CPUs",
                    (true, false) => "memory, not CPUs",
                    (false, true) => "CPUs, not memory",
                    (false, false) => "neither memory nor CPUs",
                };
                format!("follows {follows}; slots: {} used, {} free", self.used_slots, self.free_slots)
            }
        };
        screen.row("module", &told);
        screen.row(
            "",
            &format!(
                "{}, {}, {} since it was loaded; {} taken in at arming",
                counted(self.memory_events as usize, "memory event"),
                counted(self.cpu_events as usize, "CPU event"),
                counted(self.stores as usize, "store"),
                counted(self.reconciled as usize, "earlier change"),
            ),
        );
        if let Some(tree) = self.tree {
            let written = counted(self.trees_built as usize, "tree");
            screen.row("", &format!("the device tree in force is at {tree}; {written} written"));
        }
        let last = self.last_event.as_ref().map(|last| {
            format!(
                "{last}{}, took {}, the slowest {}",
                ago(self.last_event_time),
                duration(self.last_event_ns),
                duration(self.slowest_event_ns)
            )
        });
        screen.row("last event", last.as_deref().unwrap_or("none since the module was loaded"));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn status() -> abi::Status {
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

    /// Seconds since 1970 that are to come, so that nothing is said of how long ago they are.
    pub(in super::super) const TO_COME: u64 = 17_179_869_180;

    fn shown(status: &abi::Status) -> String {
        let mut screen = Screen::new(false);
        Follower::from(status).show(&mut screen);
        screen.text()
    }

    #[test]
    fn what_the_module_does_for_people() {
        assert_eq!(
            shown(&abi::Status { last_time: TO_COME, ..status() }),
            "  module      follows memory and CPUs; slots: 9 used, 1200 free
              4 memory events, 1 CPU event, 25 stores since it was loaded; 0
              earlier changes taken in at arming
  last event  2514-05-30T01:53:00Z, took 1.9 us, the slowest 31 us
"
        );
    }

    #[test]
    fn a_device_tree_is_told_of_where_there_is_one() {
        let told = shown(&abi::Status { tree: 0x2810_0000, trees_built: 2, ..status() });
        assert!(told.contains("  the device tree in force is at 0x28100000; 2 trees written\n"), "{told}");
        let value = serde_json::to_value(Follower::from(&status())).unwrap();
        assert_eq!((value.get("tree"), &value["trees_built"]), (None, &serde_json::json!(0)));
    }

    #[test]
    fn what_of_it_the_module_follows() {
        for (follow, expected) in [
            (abi::FOLLOW_MEMORY, "follows memory, not CPUs; slots"),
            (abi::FOLLOW_CPUS, "follows CPUs, not memory; slots"),
            (0, "follows neither memory nor CPUs; slots"),
        ] {
            let told = shown(&abi::Status { follow, ..status() });
            assert!(told.starts_with(&format!("  module      {expected}")), "{told}");
        }
    }

    #[test]
    fn why_the_module_follows_nothing() {
        let reason = abi::Reason::OtherLoad as u32;
        let let_go = abi::Status { armed: 0, follow: 0, reason, ..status() };
        let told = shown(&let_go);
        assert!(told.contains("follows no image: a crash image is being loaded or unloaded"), "{told}");
        assert_eq!(
            shown(&abi::Status::default()),
            "  module      follows no image: no image was armed yet
              0 memory events, 0 CPU events, 0 stores since it was loaded; 0
              earlier changes taken in at arming
  last event  none since the module was loaded
"
        );
        for reason in abi::Reason::ALL {
            let told = shown(&abi::Status { reason: *reason as u32, ..let_go });
            let first = told.lines().next().unwrap();
            assert!(first.len() > "  module      follows no image: ".len(), "{reason:?}: {told:?}");
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
}
