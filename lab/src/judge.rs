//! Whether people's debuggers find in a filtered dump what they find in the raw one: drgn and crash read both.
//!
//! drgn looks at the panicking thread's stack, every task with its stack, and every allocated object of every slab (`judge.py`); crash
//! is asked what it is asked first. All they say must be equal, and nothing unreadable.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::arch::Arch;
use crate::cache::Kernel;
use crate::debian::output;
use crate::kdump;
use crate::lab::Lab;
use crate::say::Teller;

/// What a filtered dump is written as, for `hotdump dump filter`.
pub const KDUMP: &[&str] = &["--compression", "zstd"];
const ELF: &[&str] = &["--format", "elf"];

const SCRIPT: &str = include_str!("judge.py");
const CUT: &str = include_str!("cut.py");

/// How often a dump is cut short.
const CUTS: u64 = 50;

/// What finds the places: the same in each run.
const SEED: u64 = 0x6375_7473;

/// What is asked of crash.
const QUESTIONS: [&str; 5] = ["sys", "bt", "ps", "kmem -i", "kmem -s"];

/// How long a debugger may take, in seconds, before it is ended.
const LIMIT: &str = "1800";

/// A lab's debuggers for dumps of one kernel.
pub struct Judge<'a> {
    lab: &'a Lab,
    arch: Arch,
    vmlinux: PathBuf,
    python: PathBuf,
    tell: Teller,
}

impl<'a> Judge<'a> {
    /// Fetches what is missing.
    ///
    /// # Errors
    /// If something cannot be had.
    pub fn new(lab: &'a Lab, kernel: &Kernel, tell: &Teller) -> Result<Self> {
        let say = |line: String| tell.say(line);
        let (vmlinux, python) = (lab.sources.cache.vmlinux(kernel, &say)?, lab.sources.cache.drgn()?);
        Ok(Self { lab, arch: kernel.line.arch(), vmlinux, python, tell: tell.clone() })
    }

    /// Filters the raw dump as far as can be, and has both read.
    ///
    /// # Errors
    /// If a debugger finds something in one that it does not find in the other, or something that it cannot read.
    pub fn filtered_is_as_good(&self, raw: &Path) -> Result<()> {
        let filtered = raw.with_extension("31");
        self.filter(raw, &filtered, 31, KDUMP)?;
        if self.arch == Arch::Ppc64 {
            // libkdumpfile, by which drgn reads kdump-compressed dumps, translates no addresses of PowerPC's kernels with pages of 4 KiB
            // (addrxlat/ppc64.c, map_linux_ppc64); an ELF core's headers tell drgn the linear map.
            let core = raw.with_extension("31.elf");
            self.filter(raw, &core, 31, ELF)?;
            self.drgn_agrees(raw, &core)?;
        } else {
            self.drgn_agrees(raw, &filtered)?;
        }
        self.crash_agrees(raw, &filtered)
    }

    /// Has drgn read both.
    ///
    /// # Errors
    /// As [`Judge::filtered_is_as_good`].
    pub fn drgn_agrees(&self, raw: &Path, filtered: &Path) -> Result<()> {
        let (before, after) = (self.by_drgn(raw)?, self.by_drgn(filtered)?);
        self.tell.say(format!("drgn, raw:      {before}"));
        self.tell.say(format!("drgn, filtered: {after}"));
        is_whole(&before).context("the raw dump")?;
        is_whole(&after).context("the filtered dump")?;
        ensure!(before == after, "drgn finds in the raw dump\n{before}\nand in the filtered one\n{after}");
        Ok(())
    }

    /// Cuts the filtered dump short at places by chance between its first page and its last, and has drgn and libkdumpfile read what is
    /// left; then at half of it, where drgn must find the tasks and the stack of the panic as in the whole one.
    ///
    /// # Errors
    /// If a cut one is not opened, or has pages that are not as they were, or lacks at half what it must have.
    pub fn cut_ones_are_read(&self, raw: &Path) -> Result<()> {
        let (whole, cut) = (raw.with_extension("31"), raw.with_extension("cut"));
        self.filter(raw, &whole, 31, KDUMP)?;
        fs::copy(&whole, &cut)?;
        let (first, end) = (kdump::first_page(&fs::File::open(&whole)?)?, fs::metadata(&whole)?.len());
        let mut chance = SEED;
        let mut places: Vec<u64> = (0..CUTS).map(|_| first + next(&mut chance) % (end - first)).collect();
        // One file serves for all, shorter each time.
        places.sort_unstable_by(|a, b| b.cmp(a));
        let (mut read, mut failed) = ([0; 2], Vec::new());
        for place in places {
            shorten(&cut, place)?;
            for (reader, read) in ["drgn", "kdumpfile"].into_iter().zip(&mut read) {
                match self.cut_is_read(reader, &whole, &cut) {
                    Ok(pages) => *read += pages,
                    Err(error) => failed.push(format!("cut at {place}: {error:#}")),
                }
            }
        }
        let [drgn, kdumpfile] = read;
        self.tell.say(format!(
            "{CUTS} cuts between {first} and {end}, {} readings of {} failed; read before the cut as from the whole dump: {drgn} pages by \
             drgn, {kdumpfile} by libkdumpfile",
            failed.len(),
            2 * CUTS
        ));
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        fs::copy(&whole, &cut)?;
        shorten(&cut, first + (end - first) / 2)?;
        let (before, after) = (self.by_drgn(&whole)?, self.by_drgn(&cut)?);
        self.tell.say(format!("drgn, whole:   {before}"));
        self.tell.say(format!("drgn, at half: {after}"));
        // Of traces some may end early: what unwinds them through modules is the kernel's in general.
        for [part, key] in
            [["panic", "stack"], ["tasks", "count"], ["tasks", "unreadable"], ["tasks", "memory"]]
        {
            let (before, after) = (&before[part][key], &after[part][key]);
            ensure!(
                before == after && !before.is_null(),
                "at half, {part}.{key} is {after} and not {before}"
            );
        }
        Ok(())
    }

    /// Has one of both read a dump that is cut short, and gives how many pages it read.
    fn cut_is_read(&self, reader: &str, whole: &Path, cut: &Path) -> Result<u64> {
        let script = cut.with_file_name("cut.py");
        fs::write(&script, CUT)?;
        // libkdumpfile's own module comes with Debian's Python.
        let python = if reader == "drgn" { &self.python } else { Path::new("/usr/bin/python3") };
        let told = output(Command::new(python).arg(&script).arg(reader).arg(whole).arg(cut))
            .with_context(|| format!("{reader} does not read it"))?;
        let told: Value = serde_json::from_str(&told).with_context(|| told.clone())?;
        ensure!(told["wrong"] == 0, "{reader}: {told}");
        if told["untranslated"] != 0 {
            let len = fs::metadata(cut)?.len();
            self.tell.say(format!(
                "cut at {len}: page tables are not all there; {reader} says so at its first read"
            ));
        }
        told["before"].as_u64().with_context(|| format!("{reader}: {told}"))
    }

    /// Writes a raw dump at a dump level, kdump-compressed ([`KDUMP`]) or as another format.
    ///
    /// # Errors
    /// If not as much is left out as the level says.
    pub fn filter(&self, raw: &Path, filtered: &Path, level: u8, format: &[&str]) -> Result<()> {
        let program = self.lab.sources.dist.join(self.arch.name()).join("hotdump");
        let mut filter = self.arch.command(&program);
        filter.args(["dump", "filter", "--json", "--force"]).args(format);
        let told = output(filter.arg("-d").arg(level.to_string()).arg(raw).arg(filtered))?;
        let report: Value = serde_json::from_str(&told).with_context(|| told.clone())?;
        let is_good = report["dump_level"] == level && report["bad_pages"] == 0;
        ensure!(is_good, "hotdump dump filter says {report}");
        // Each of these kernels has BTF.
        let confirmed = report["layout_facts_confirmed"].as_u64().unwrap_or_default();
        ensure!(confirmed >= 12, "the kernel's BTF confirms {confirmed} facts: {report}");
        self.tell.say(format!(
            "raw {} bytes; level {level} {format:?}: {} bytes, {} pages of data, {} of zeros, {} left out; BTF confirms {confirmed} facts",
            fs::metadata(raw)?.len(),
            report["size"],
            report["data_pages"],
            report["zero_pages"],
            report["excluded_pages"]
        ));
        Ok(())
    }

    /// What drgn finds in a dump.
    ///
    /// # Errors
    /// If it does not open it.
    pub fn by_drgn(&self, dump: &Path) -> Result<Value> {
        let script = dump.with_file_name("judge.py");
        fs::write(&script, SCRIPT)?;
        let mut drgn = Command::new("timeout");
        drgn.arg(LIMIT).arg(&self.python).arg(&script).arg(&self.vmlinux).arg(dump);
        // Its own look for debugging information elsewhere would ask servers.
        let told = output(drgn.env("DEBUGINFOD_URLS", ""))?;
        serde_json::from_str(&told).with_context(|| told.clone())
    }

    /// Asks crash the same of both dumps. Kernels that it does not know it does not open, raw or not.
    fn crash_agrees(&self, raw: &Path, filtered: &Path) -> Result<()> {
        let Some(before) = self.by_crash(raw)? else {
            self.tell.say("crash does not open the raw dump: it is not asked of the other");
            return Ok(());
        };
        let after = self.by_crash(filtered)?;
        let after = after.with_context(|| format!("crash does not open {}", filtered.display()))?;
        for (question, (before, after)) in QUESTIONS.iter().zip(before.iter().zip(&after)) {
            ensure!(!before.trim().is_empty(), "crash says nothing to {question:?}");
            ensure!(before == after, "crash says to {question:?}, raw:\n{before}\nfiltered:\n{after}");
            self.tell.say(format!("crash says the same to {question:?}: {} lines", before.lines().count()));
        }
        Ok(())
    }

    /// What crash answers to the questions; none if it does not open the dump. What it says of that is beside the dump.
    fn by_crash(&self, dump: &Path) -> Result<Option<Vec<String>>> {
        let beside = |what: String| PathBuf::from(format!("{}.{what}", dump.display()));
        let answer = |number: usize| beside(format!("answer{number}"));
        for number in 0..QUESTIONS.len() {
            // What an earlier run left answers nothing.
            let _ = fs::remove_file(answer(number));
        }
        let asked = QUESTIONS.iter().enumerate();
        let asked: String =
            asked.map(|(number, asked)| format!("{asked} > {}\n", answer(number).display())).collect();
        let questions = dump.with_file_name("questions");
        fs::write(&questions, asked + "quit\n")?;
        let mut crash = self.lab.sources.cache.crash(self.arch, &|_| ())?;
        crash.args(["-s", "-i"]).arg(&questions).arg(&self.vmlinux).arg(dump);
        // Without a home it reads nobody's settings.
        crash.env("TERM", "dumb").env("HOME", "/nonexistent").stdin(Stdio::null());
        let ended = crash.output().with_context(|| format!("starting {crash:?}"))?;
        fs::write(beside("crash".into()), [ended.stdout, ended.stderr].concat())?;
        if !ended.status.success() {
            return Ok(None);
        }
        let read = |number| {
            let path = answer(number);
            let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            Ok(without_file(&String::from_utf8_lossy(&text)))
        };
        (0..QUESTIONS.len()).map(read).collect::<Result<_>>().map(Some)
    }
}

/// Cuts a file short.
fn shorten(file: &Path, place: u64) -> Result<()> {
    Ok(fs::File::options().write(true).open(file)?.set_len(place)?)
}

/// The next number by chance (Steele's SplitMix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// Crash's answer without the line that names the file.
fn without_file(answer: &str) -> String {
    let lines = answer.lines().filter(|line| !line.trim_start().starts_with("DUMPFILE:"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// What drgn found must be whole: the panic's stack, tasks with their stacks, objects in slabs, and nothing unreadable.
fn is_whole(found: &Value) -> Result<()> {
    let stack = found["panic"]["stack"].as_array().context("no stack of the thread that panicked")?;
    let has = |name: &str| stack.iter().any(|frame| frame.as_str().is_some_and(|frame| frame.contains(name)));
    ensure!(has("panic") && has("sysrq"), "the stack of the thread that panicked is {stack:?}");
    let number = |part: &str, key: &str| {
        found[part][key].as_u64().with_context(|| format!("no {part}.{key}: {found}"))
    };
    for part in ["tasks", "slab"] {
        let unreadable = number(part, "unreadable")?;
        ensure!(unreadable == 0, "of {part} {unreadable} are unreadable: {}", found["missed"]);
    }
    let (tasks, frames, objects) =
        (number("tasks", "count")?, number("tasks", "frames")?, number("slab", "objects")?);
    ensure!(tasks >= 50 && frames > 3 * tasks && objects > 10_000, "too little is found: {found}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found() -> Value {
        json!({
            "panic": { "pid": 1, "stack": ["panic", "sysrq_handle_crash", "write_sysrq_trigger"] },
            "tasks": { "count": 200, "frames": 1200, "unreadable": 0 },
            "slab": { "objects": 100_000, "unreadable": 0 },
            "missed": [],
        })
    }

    #[test]
    fn what_is_not_whole_is_named() {
        is_whole(&found()).unwrap();
        for (part, key, value, told) in [
            ("panic", "stack", json!(["0x1234"]), "0x1234"),
            ("panic", "stack", json!(null), "no stack"),
            ("tasks", "unreadable", json!(1), "tasks 1"),
            ("tasks", "count", json!(20), "too little"),
            ("tasks", "frames", json!(200), "too little"),
            ("slab", "unreadable", json!(7), "slab 7"),
            ("slab", "objects", json!(null), "no slab.objects"),
        ] {
            let mut broken = found();
            broken[part][key] = value;
            let error = is_whole(&broken).unwrap_err().to_string();
            assert!(error.contains(told), "{part}.{key}: {error}");
        }
    }

    #[test]
    fn the_line_with_the_file_is_left_out() {
        let sys = "      KERNEL: vmlinux\n    DUMPFILE: vmcore  [PARTIAL DUMP]\n        CPUS: 2\n";
        assert_eq!(without_file(sys), "      KERNEL: vmlinux\n        CPUS: 2\n");
    }
}
