//! hotdump as scenarios use it in a guest, and what a whole dump of its making is.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::check::{Core, Findings};
use crate::files::DUMP_LABEL;
use crate::guest::{Crashed, Guest, Outcome};
use crate::lab::BUSYBOX_CAPTURE;

/// Where [`Guest::make_initramfs`] puts the capture initramfs.
pub const CAPTURE: &str = "/boot/initrd-capture.img";

/// The line that the kernel logs in a crash by sysrq.
pub const PANIC_LINE: &str = "Kernel panic - not syncing: sysrq triggered crash";

/// The system call to load by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// kexec_load.
    Load,
    /// kexec_file_load.
    FileLoad,
}

impl Guest {
    /// Has hotdump write the capture initramfs for the dump disk.
    pub fn make_initramfs(&mut self) -> Result<()> {
        // Every page is compared: all are asked for, in the format that the lab's own reader of cores knows.
        self.make_initramfs_with(&["--dump-level", "0", "--format", "elf"])
    }

    /// The same, with further options.
    pub fn make_initramfs_with(&mut self, more: &[&str]) -> Result<()> {
        let target = format!("LABEL={DUMP_LABEL}");
        let command = ["hotdump", "initramfs", "--target", &target, "--path", "/crash", "--output", CAPTURE];
        let made = self.run(command.iter().chain(more).copied())?;
        made.ok()?;
        self.say(format!("hotdump initramfs: {:.2} s", made.took().as_secs_f64()));
        Ok(())
    }

    /// Loads by hotdump with the initramfs that [`Guest::make_initramfs`] made, or with that of busybox where that is
    /// in the guest. `more` are further arguments.
    pub fn load(&mut self, by: By, more: &[&str]) -> Result<Outcome> {
        let command = self.load_command(by, more)?;
        let loaded = self.run(command)?;
        loaded.ok()?;
        let told = if more.contains(&"--json") { "loaded" } else { loaded.ran.stdout.trim() };
        self.say(format!("hotdump load: {:.2} s: {told}", loaded.took().as_secs_f64()));
        Ok(loaded)
    }

    /// The command by which [`Guest::load`] loads.
    pub fn load_command(&mut self, by: By, more: &[&str]) -> Result<Vec<String>> {
        let initrd = if self.has(BUSYBOX_CAPTURE)? { BUSYBOX_CAPTURE } else { CAPTURE };
        let by = match by {
            By::Load => "load",
            By::FileLoad => "file",
        };
        let argv = ["hotdump", "load", "--syscall", by, "--initrd", initrd];
        Ok(argv.iter().chain(more).map(|word| word.to_string()).collect())
    }

    /// Whether the guest has a file.
    pub fn has(&mut self, path: &str) -> Result<bool> {
        Ok(self.run(["test", "-e", path])?.ran.code == Some(0))
    }

    /// `hotdump verify` must say that a dump taken now would be complete.
    pub fn verify_says_complete(&mut self) -> Result<()> {
        let verified = self.run(["hotdump", "verify"])?;
        self.say(format!("hotdump verify: {}", verified.ok()?.trim()));
        Ok(())
    }

    /// `hotdump verify` must say that memory is missing; gives the ranges that it names.
    pub fn verify_names_missing_memory(&mut self) -> Result<Vec<std::ops::Range<u64>>> {
        let verified = self.run(["hotdump", "verify", "--json"])?;
        let answer: Value = serde_json::from_str(verified.exits(2)?).with_context(|| verified.to_string())?;
        let headers = answer["headers"].as_array().into_iter().flatten();
        let findings = headers.filter_map(|header| header["findings"].as_array()).flatten();
        let missing = findings.filter(|finding| finding["kind"] == "memory_missing");
        let ranges = missing.map(|finding| hex(&finding["range"]["start"])..hex(&finding["range"]["end"]));
        let ranges: Vec<_> = ranges.collect();
        ensure!(!ranges.is_empty(), "verify names no missing memory:\n{verified}");
        let verified = self.run(["hotdump", "verify"])?;
        self.say(format!("hotdump verify (exit code 2): {}", verified.exits(2)?.trim()));
        Ok(ranges)
    }
}

impl Crashed {
    /// Takes the dump, compares it with the manifest, and sees that it [is complete](Crashed::is_complete).
    pub fn complete(&self) -> Result<()> {
        let (core, findings) = self.compare()?;
        self.is_complete(&core, &findings)
    }

    /// The dump must hold every page of the manifest, all hot-added memory, a note for every CPU that was online, and
    /// vmcoreinfo.
    pub fn is_complete(&self, core: &Core, findings: &Findings) -> Result<()> {
        findings.all_right()?;
        for range in &self.hot_added {
            let missing = core.missing_from(range);
            ensure!(missing.is_empty(), "the dump lacks hot-added memory: {missing:x?} of {range:x?}");
        }
        ensure!(
            self.hot_added.is_empty() || findings.hot_pages > 0,
            "no page of the pattern is in hot-added memory"
        );
        self.has_notes(core)
    }

    /// The dump must have the registers of every CPU that was online, and vmcoreinfo.
    pub fn has_notes(&self, core: &Core) -> Result<()> {
        let (cpus, online) = (core.cpus(), &self.before.online_cpus);
        ensure!(cpus.len() == online.len(), "{} CPU notes, online were {online:?}", cpus.len());
        for (cpu, registers) in online.iter().zip(cpus) {
            ensure!(registers.ip != 0 && registers.sp != 0, "CPU {cpu} left {registers:x?}");
            // Where the agent panicked it is the process that its CPU ran, and no other did.
            if let Some(panicked) = self.panicked_on {
                ensure!(
                    (*cpu == panicked) == (registers.pid == 1),
                    "CPU {panicked} panicked, CPU {cpu} left {registers:x?}"
                );
            }
        }
        ensure!(core.has_vmcoreinfo(), "the dump has no vmcoreinfo note");
        Ok(())
    }

    /// The capture must have been hotdump's and tell of success: report, log with the panic, nothing unfinished.
    pub fn saved_by_hotdump(&self) -> Result<()> {
        self.report().map(drop)
    }

    /// Like [`Crashed::saved_by_hotdump`], and gives the report.
    pub fn report(&self) -> Result<Value> {
        let dump = self.dump()?;
        ensure!(!dump.has("vmcore.incomplete"), "{} holds {:?}", dump.origin, dump.names);
        let log = dump.text("vmcore-dmesg.txt")?;
        ensure!(log.contains(PANIC_LINE), "the saved log does not have the line {PANIC_LINE:?}");
        let report: Value = serde_json::from_str(&dump.text("report.json")?).context("report.json")?;
        ensure!(report["status"] == "saved", "report.json says {report}");
        Ok(report)
    }
}

/// A number that JSON has as text in hex; 0 if it is not one.
pub(crate) fn hex(value: &Value) -> u64 {
    let digits = value.as_str().and_then(|text| text.strip_prefix("0x"));
    digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default()
}
