//! The status as people read it.

use kexec::Keeper;

use super::{Reserved, Status};
use crate::record::Record;
use crate::screen::{Screen, Tone};
use crate::text::{ago, size};
use crate::verify::Verdict;

/// Findings and remarks that are shown; JSON and `hotdump verify` have all.
const MOST: usize = 4;

impl Status {
    /// One screen: the answer first, then what it rests on, then what to do.
    pub(super) fn text(&self, coloured: bool) -> String {
        let mut screen = Screen::new(coloured);
        let (word, tone, meaning) = self.headline();
        screen.told(word, tone, meaning);
        for problem in &self.problems {
            screen.told("PROBLEM", Tone::Bad, problem);
        }
        match &self.last_load {
            Some(record) => self.show_load(record, &mut screen),
            None if self.by_another => screen.row("loaded", "by another program"),
            None => {}
        }
        let current = match self.verdict {
            Verdict::Complete => Some("yes"),
            Verdict::Stale => Some("no: a dump would not match the machine"),
            Verdict::Unknown if self.loaded == Some(true) => Some("cannot be told"),
            _ => None,
        };
        if let Some(current) = current {
            screen.row("current", current);
        }
        show_some(&self.findings, "", "`hotdump verify` has all", &mut screen);
        if let Some(keeping) = &self.keeping {
            screen.row("kept", keeping.strip_prefix("kept ").unwrap_or(keeping));
        }
        match &self.module {
            Some(module) => module.show(&mut screen),
            None if self.kept_by == Some(Keeper::Kernel) => {
                screen.row("last event", "the kernel keeps no account of its updates");
            }
            None => {}
        }
        self.show_memory(&mut screen);
        self.show_capture(&mut screen);
        if let Some(test) = &self.last_test {
            screen.row("last test", &test.words());
        }
        show_some(&self.remarks, "note", "JSON has all", &mut screen);
        if let Some(step) = &self.next_step {
            screen.told("NEXT", Tone::Strong, step);
        }
        screen.text()
    }

    fn headline(&self) -> (&'static str, Tone, &'static str) {
        match (self.loaded, self.verdict) {
            (None, _) => ("UNKNOWN", Tone::Doubtful, "whether a crash image is loaded cannot be told"),
            (Some(false), _) | (_, Verdict::NotLoaded) => {
                ("NOT PROTECTED", Tone::Bad, "no crash image is loaded; a crash now would leave no dump")
            }
            (_, Verdict::Stale) => {
                ("STALE", Tone::Bad, "an image is loaded, and a dump taken now would not match the machine")
            }
            (_, Verdict::Unknown) => {
                ("LOADED", Tone::Doubtful, "whether a dump taken now would be complete cannot be told")
            }
            (_, Verdict::Complete) if !self.problems.is_empty() => {
                ("PROTECTED FOR NOW", Tone::Doubtful, "a dump taken now would be complete")
            }
            (_, Verdict::Complete) => {
                ("PROTECTED", Tone::Good, "a dump taken now would hold all memory and every CPU")
            }
        }
    }

    fn show_load(&self, record: &Record, screen: &mut Screen) {
        let trust = match self.last_load_in_force {
            Some(true) => "",
            Some(false) => " (another program has loaded another image since)",
            None => " (whether it is still the one loaded cannot be told)",
        };
        screen.row("loaded", &format!("by hotdump, by {}{}{trust}", record.syscall, ago(record.time)));
        screen.row("kernel", &record.kernel.display().to_string());
        screen.row("cmdline", &record.cmdline);
    }

    fn show_memory(&self, screen: &mut Screen) {
        match &self.reservation {
            Some(Reserved { main, low, used }) => {
                screen.row("reserved", &main.to_string());
                if let Some(used) = used {
                    let free = main.0.len().saturating_sub(*used);
                    let told = format!(
                        "{} taken by the image, {} free for the capture kernel",
                        size(*used),
                        size(free)
                    );
                    screen.row("", &told);
                }
                if let Some(low) = low {
                    screen.row("", &format!("and low, for devices: {low}"));
                }
            }
            None if self.remarks.is_empty() => screen.row("reserved", "nothing (crashkernel=)"),
            None => {}
        }
        if let Some(header) = &self.header {
            let place = header.place.0.start();
            screen.row(
                "header",
                &format!(
                    "at {place}, {} used of {}, {}",
                    size(header.used),
                    size(header.room),
                    header.source
                ),
            );
        }
    }

    fn show_capture(&self, screen: &mut Screen) {
        let Some(capture) = &self.capture else {
            if let Some(Record { initrd: Some(initrd), .. }) = &self.last_load {
                screen.row("initramfs", &initrd.display().to_string());
            }
            return;
        };
        let (packed, unpacked) = (size(capture.size), size(capture.unpacked));
        screen.row("initramfs", &format!("{}, {packed}, {unpacked} unpacked", capture.initramfs.display()));
        screen.row("target", &capture.target);
        let Some(directory) = &capture.directory else {
            return screen.row("last dump", "the target is not mounted here");
        };
        let shown = directory.display();
        match &self.last_dump {
            None => screen.row("last dump", &format!("none in {shown}")),
            Some(dump) => {
                let why = dump.panic.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                let told =
                    format!("{} in {shown}, {}, {}{why}", dump.name, dump.status, size(dump.disk_bytes));
                screen.row("last dump", &told);
            }
        }
    }
}

/// The first few of `lines`, and how many more there are.
fn show_some(lines: &[String], label: &str, rest: &str, screen: &mut Screen) {
    for line in lines.iter().take(MOST) {
        screen.row(label, line);
    }
    if let Some(more) = lines.len().checked_sub(MOST).filter(|more| *more > 0) {
        screen.row("", &format!("and {more} more; {rest}"));
    }
}

#[cfg(test)]
mod tests {
    use elfcorehdr::{PhysAddr, PhysRange};
    use kexec::Call;

    use super::super::module::Follower;
    use super::super::module::tests::{TO_COME, status as followed};
    use super::super::{Capture, Header};
    use super::*;
    use crate::dumps::store::Entry;
    use crate::screen::WIDTH;
    use crate::text::Range;
    use crate::verify::Source;

    fn range(start: u64, end: u64) -> Range {
        PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap().into()
    }

    fn dump(status: &str) -> Entry {
        Entry {
            name: "2026-11-22-15:32:10".into(),
            path: "/var/crash/2026-11-22-15:32:10".into(),
            status: status.into(),
            file: None,
            disk_bytes: 300 << 20,
            kernel_release: None,
            panic: Some("Kernel panic - not syncing: sysrq triggered crash".into()),
        }
    }

    /// A machine on which all is as it must be.
    fn fine() -> Status {
        Status {
            loaded: Some(true),
            verdict: Verdict::Complete,
            last_load: Some(Record {
                boot_id: String::new(),
                syscall: Call::KexecLoad,
                identity: None,
                header: None,
                kernel: "/boot/vmlinuz-6.12.0-5-amd64".into(),
                initrd: Some("/var/lib/hotdump/initrd-6.12.0-5-amd64.img".into()),
                cmdline: "root=/dev/vda1 console=ttyS0 nr_cpus=1 reset_devices irqpoll acpi_no_memhotplug"
                    .into(),
                keeper: Keeper::Module,
                time: TO_COME,
            }),
            last_load_in_force: Some(true),
            kept_by: Some(Keeper::Module),
            kept_current: Some(true),
            keeping: Some("kept current: by the kernel module (CPUs yes, memory yes)".into()),
            module: Some(Follower::from(&abi::Status { last_time: TO_COME, ..followed() })),
            reservation: Some(Reserved {
                main: range(0x3000_0000, 0x4000_0000),
                low: None,
                used: Some(40 << 20),
            }),
            header: Some(Header {
                place: range(0x3eff_0000, 0x3f00_0000),
                source: Source::Kcore,
                used: 1_792,
                room: 64 << 10,
            }),
            capture: Some(Capture {
                initramfs: "/var/lib/hotdump/initrd-6.12.0-5-amd64.img".into(),
                size: 5 << 20,
                unpacked: 12 << 20,
                target: "UUID=11111111-1111-1111-1111-111111111111, ext4, directory /var/crash".into(),
                directory: Some("/var/crash".into()),
            }),
            last_dump: Some(dump("saved")),
            ..Status::default()
        }
    }

    #[test]
    fn one_screen_where_all_is_well() {
        let status = fine();
        assert_eq!(status.next_step(Some(true)), None);
        for (coloured, file) in [
            (false, snapbox::file!["../../tests/snapshots/pictures/status.txt"]),
            (true, snapbox::file!["../../tests/snapshots/pictures/status-in-colour.txt"]),
        ] {
            snapbox::assert_data_eq!(status.text(coloured), file.raw());
        }
    }

    #[test]
    fn nothing_loaded_comes_with_the_next_step() {
        let without = |reserves, capture| {
            let status =
                Status { loaded: Some(false), verdict: Verdict::NotLoaded, capture, ..Status::default() };
            let next_step = status.next_step(Some(reserves));
            Status { next_step, ..status }.text(false)
        };
        assert_eq!(
            without(false, None),
            "\
NOT PROTECTED: no crash image is loaded; a crash now would leave no dump
  reserved    nothing (crashkernel=)
NEXT: reserve memory: crashkernel=256M on the kernel's command line (`hotdump
estimate` tells how much), then boot again
"
        );
        assert!(
            without(true, None).contains(
                "NEXT: write an initramfs by `hotdump initramfs --output\n/var/lib/hotdump/initrd-"
            )
        );
        assert!(without(true, fine().capture).contains("NEXT: `hotdump load`; why the service has not"));
    }

    #[test]
    fn what_is_wrong_comes_first_and_in_red() {
        let findings = (0..6).map(|number| format!("memory missing from it: {number}")).collect();
        let problems =
            vec!["the image was loaded for the kernel module, which does not follow it: load again".into()];
        let stale = Status { verdict: Verdict::Stale, findings, problems, ..fine() };
        let stale = Status { next_step: stale.next_step(Some(true)), ..stale };
        let text = stale.text(false);
        assert!(
            text.starts_with(
                "STALE: an image is loaded, and a dump taken now would not match the machine\n\
                 PROBLEM: the image was loaded for the kernel module, which does not follow it:\n\
                 load again\n"
            ),
            "{text}"
        );
        assert!(text.contains(
            "              memory missing from it: 3\n              and 2 more; `hotdump verify` has all\n"
        ));
        assert!(text.ends_with("NEXT: `hotdump load`\n"), "{text}");
        assert!(stale.text(true).starts_with("\x1b[1;31mSTALE\x1b[0m: an image"));
        assert!(!text.contains('\x1b'));
        snapbox::assert_data_eq!(
            stale.text(true),
            snapbox::file!["../../tests/snapshots/pictures/status-stale-in-colour.txt"].raw()
        );
        let half = Status { verdict: Verdict::Complete, findings: Vec::new(), ..stale };
        assert!(half.text(false).starts_with("PROTECTED FOR NOW: a dump taken now would be complete\n"));
        let blind = Status { verdict: Verdict::Unknown, ..fine() };
        assert!(blind.text(false).contains("\n  current     cannot be told\n"));
    }

    #[test]
    fn a_dump_that_is_not_whole_is_the_next_step() {
        let status = Status { last_dump: Some(dump("partial")), ..fine() };
        let step = status.next_step(Some(true)).unwrap();
        assert_eq!(step, "see what became of the last dump: `hotdump dumps --directory /var/crash show`");
    }

    #[test]
    fn it_fits_a_screen_with_colour_and_without() {
        let text = fine().text(false);
        assert!(
            text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= WIDTH),
            "{text}"
        );
        let coloured = fine().text(true);
        assert_eq!(coloured.replace("\x1b[1;32m", "").replace("\x1b[0m", ""), text);
    }
}
