//! `hotdump verify`: would a dump taken now be complete?

mod compare;
mod kimage;
mod locate;
mod metrics;
#[cfg(test)]
mod sample;
mod sight;
mod tree;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use elfcorehdr::PhysRange;
use host::{Host, HostError, Reservations};
use kexec::Keeper;
use serde::Serialize;

use crate::exit;
use crate::keeping::Keeping;
use crate::record::{self, Record};
use crate::text::{Range, counted, print, print_json};
use crate::whole::{self, Readers};
use compare::{Comparison, CpuFact, Facts, Finding, compare};
use locate::Found;
use sight::Sight;

pub(crate) use locate::{Headers, Memory};
pub(crate) use sight::{Source, look, segments};

const ABOUT: &str = "\
A complete dump holds all memory that is in use and the registers of every CPU that is present. On PowerPC it also takes a \
device tree in the image that lists every CPU: on another the capture kernel does not boot. Memory that is plugged in and \
offline (/sys/devices/system/memory) holds nothing: a header may name it, as the kernel's own handler does, or leave it out, \
as hotdump's module does.

The header is read out of the kernel's memory (/proc/kcore), by the kernel's own list of what is loaded; where that is closed or \
hides its place, through the kernel module, which follows the header in force. Both are held against each other where both \
can be had. The answer says which way it was (source in JSON).

Whether a dump would still be complete after the next change is another question, answered beside it: who keeps the image \
current (kept_by, kept_current), and a PROBLEM where the image was loaded to be kept current and is not (problems). The \
exit code is about now.

With --prometheus FILE the answer is written as metrics too: hotdump_verdict for each verdict, of which one is 1, hotdump_kept_current, \
hotdump_findings by kind, and hotdump_checked_timestamp_seconds, by which an alert knows that nobody checks any more. The file is written \
whole and then given its name; everybody may read it, and it holds no address. What cannot be told is left out.";

/// Options of `hotdump verify`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = ABOUT)]
pub(crate) struct Args {
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    /// Print nothing; the exit code is the answer
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Write the answer as metrics too, for node_exporter's textfile collector (a name that ends in .prom)
    #[arg(long, value_name = "FILE")]
    prometheus: Option<PathBuf>,
}

/// The answer of one check.
#[derive(Debug, Default, Serialize)]
struct Answer {
    verdict: Verdict,
    /// Who keeps the image current, whatever the verdict of this moment; none where no image is loaded, or
    /// where it cannot be told.
    kept_by: Option<Keeper>,
    /// Whether every change of CPUs and memory from now on is taken care of without another load.
    kept_current: Option<bool>,
    /// Who keeps it current, for people.
    #[serde(skip)]
    keeping: Option<String>,
    /// What must not be: the module follows another image than the one in force, or not the one that it was to follow.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
    /// Why there is no answer, or what weakens it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    remarks: Vec<String>,
    /// The headers looked at: one, unless the one in force could not be told from leftovers.
    headers: Vec<Checked>,
    /// Whether the image in force is surely none that hotdump loaded.
    #[serde(skip)]
    is_foreign: bool,
}

/// An answer in short, for who keeps the image current by loading it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Whether a dump taken now would be complete.
    pub(crate) verdict: Verdict,
    /// Whether kernel or module take care of every change; none if that cannot be told.
    pub(crate) kept_current: Option<bool>,
    /// Whether the image in force is surely none that hotdump loaded.
    pub(crate) is_foreign: bool,
    /// What keeps the verdict from being "complete", and who keeps the image current, in words.
    pub(crate) words: String,
}

/// How the loaded image stands.
pub(crate) fn standing(host: &Host) -> Standing {
    let answer = check(host);
    let words =
        answer.shortcomings().into_iter().chain(answer.keeping.clone()).collect::<Vec<_>>().join("; ");
    let Answer { verdict, kept_current, is_foreign, .. } = answer;
    Standing { verdict, kept_current, is_foreign, words }
}

/// Whether a dump taken now would be complete, and what keeps it from being so, in words.
pub(crate) fn judgement(host: &Host) -> (Verdict, Vec<String>) {
    let answer = check(host);
    (answer.verdict, if answer.verdict == Verdict::Complete { Vec::new() } else { answer.shortcomings() })
}

/// In the order of severity: the worst of several counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Complete,
    #[default]
    Unknown,
    Stale,
    NotLoaded,
}

impl Verdict {
    fn exit_code(self) -> u8 {
        match self {
            Self::Complete => exit::OK,
            Self::Unknown => exit::UNKNOWN,
            Self::Stale => exit::STALE,
            Self::NotLoaded => exit::NOT_LOADED,
        }
    }
}

/// A header held against the machine.
#[derive(Debug, Serialize)]
struct Checked {
    place: Range,
    /// How it was read.
    source: Source,
    #[serde(flatten)]
    comparison: Comparison,
}

/// Checks the loaded image; returns the exit code.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let answer = check(&Host::live());
    if let Some(path) = &args.prometheus {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        whole::write(path, metrics::text(&answer, now).as_bytes(), Readers::All)
            .with_context(|| format!("cannot write the metrics to {}", path.display()))?;
    }
    if args.json {
        print_json(&answer)?;
    } else if !args.quiet {
        print(answer.text())?;
    }
    Ok(answer.verdict.exit_code())
}

/// Reads everything and answers; what cannot be read makes the answer "unknown".
fn check(host: &Host) -> Answer {
    let kexec = match host.kexec() {
        Ok(kexec) if kexec.crash_loaded => kexec,
        Ok(_) => {
            let remark = "no crash image is loaded: load one with `hotdump load`".to_owned();
            return Answer::without_header(Verdict::NotLoaded, remark);
        }
        Err(error) => return Answer::without_header(Verdict::Unknown, error.to_string()),
    };
    let look_at_keeping = || {
        let mut remarks = Vec::new();
        (Keeping::read(host, kexec.elfcorehdr_size.is_some(), &mut remarks), remarks)
    };
    let (keeping, remarks) = look_at_keeping();
    let wanted = Record::read(record::DIR).ok().flatten().filter(|record| record.is_of_this_boot(host));
    let mut answer = steady(|| {
        let before = (facts(host)?, look_at_keeping().0);
        let answer = try_check(host, &before.0, &before.1, wanted.as_ref())?;
        let after = (facts(host)?, look_at_keeping().0);
        Ok((answer, before == after))
    })
    .unwrap_or_else(|error| {
        Answer::without_header(Verdict::Unknown, error).kept(&keeping, wanted.map(|record| record.keeper))
    });
    answer.remarks.extend(remarks);
    answer
}

/// Asks until two answers in a row, a pause apart, find the same wrong, and nothing changed while the second was given. A
/// header that is read before an event and a machine that is looked at after it do not fit together, and nothing is
/// wrong; nor is it in the instant in which the kernel tells of an event and has not yet put it down where we read.
/// Where it never stops changing, what two answers in a row find still counts; else the answer is "unknown".
fn steady(ask: impl Fn() -> Result<(Answer, bool), String>) -> Result<Answer, String> {
    const TRIES: usize = 8;
    const PAUSE: Duration = Duration::from_millis(30);
    let mut before = Vec::new();
    for left in (0..TRIES).rev() {
        let (answer, is_steady) = ask()?;
        let found = answer.shortcomings();
        // Whatever came between, it is as it must be.
        let is_fine = answer.verdict == Verdict::Complete;
        let lasts = found.iter().any(|one| before.contains(one));
        if is_fine || lasts && (is_steady || left == 0) {
            return Ok(answer);
        }
        before = found;
        std::thread::sleep(PAUSE);
    }
    Err("CPUs or memory, or the loaded image, changed whenever they were looked at: ask again".to_owned())
}

fn try_check(
    host: &Host,
    facts: &Facts,
    keeping: &Keeping,
    record: Option<&Record>,
) -> Result<Answer, String> {
    let Some(Reservations { main, .. }) = host.reservations().map_err(text)? else {
        return Err(
            "the kernel says that an image is loaded but shows no crash reservation in /proc/iomem".into()
        );
    };
    let kcore = host.kcore();
    let sight = look(host, kcore.as_ref(), main, keeping.armed(), true)?;
    let header = sight.in_force().map(|found| found.range.start());
    let ours = record.filter(|record| {
        record.is_in_force(host, keeping.armed(), header, kcore.as_ref().ok()) != Some(false)
    });
    let trees = match &kcore {
        Ok(kcore) => sight::trees(host, kcore, main, keeping.armed()).map_err(text)?,
        Err(_) => Vec::new(),
    };
    let answer = judge(sight, facts, main, ours)
        .with(tree::findings(&trees, &facts.cpus))
        .kept(keeping, ours.map(|record| record.keeper));
    Ok(Answer { is_foreign: ours.is_none(), ..answer })
}

fn text(error: HostError) -> String {
    error.to_string()
}

/// Turns what was found into the answer. A header that is no more than a candidate, among several, is not preferred:
/// the worst of all counts.
fn judge(sight: Sight, facts: &Facts, reservation: PhysRange, record: Option<&Record>) -> Answer {
    let Sight { headers, source, problem } = sight;
    let problems: Vec<String> = problem.into_iter().collect();
    let (found, mut remarks) = match headers {
        Headers::InForce(found) => (vec![found], Vec::new()),
        Headers::NoneInForce => {
            let remark = "the loaded image has no crash header".to_owned();
            return Answer { problems, ..Answer::without_header(Verdict::Stale, remark) };
        }
        Headers::Candidates(found) => {
            let remarks = doubts(&found, reservation, record);
            (found, remarks)
        }
    };
    let checked: Vec<Checked> = found
        .iter()
        .map(|found| Checked { place: found.range.into(), source, comparison: compare(&found.bytes, facts) })
        .collect();
    let stale = checked.iter().any(|checked| !checked.comparison.findings.is_empty());
    let mut verdict = match checked.len() {
        0 => Verdict::Unknown,
        _ if stale => Verdict::Stale,
        _ => Verdict::Complete,
    };
    if facts.cpus.is_empty() {
        remarks.push("no CPU's crash notes are shown in /sys/devices/system/cpu".to_owned());
        verdict = verdict.max(Verdict::Unknown);
    }
    if !problems.is_empty() {
        // Whoever writes to a header that is not in force may write to what is.
        verdict = verdict.max(Verdict::Unknown);
    }
    Answer { verdict, problems, remarks, headers: checked, ..Answer::default() }
}

/// What weakens an answer where the kernel's list of segments could not be read.
fn doubts(found: &[Found], reservation: PhysRange, record: Option<&Record>) -> Vec<String> {
    let hidden =
        "the kernel hides its addresses (kernel.kptr_restrict?), so which header is in force cannot be read";
    match (found.len(), record) {
        (0, _) => vec![format!("{hidden}, and none lies in {}", Range(reservation))],
        (1, _) => Vec::new(),
        (count, Some(Record { header: Some(header), .. })) => vec![format!(
            "{hidden}: {} lie in the reservation; the last hotdump load placed its own at {}; the worst counts",
            counted(count, "header"),
            header.start()
        )],
        (count, _) => {
            vec![format!("{hidden}: {} lie in the reservation; the worst counts", counted(count, "header"))]
        }
    }
}

fn facts(host: &Host) -> Result<Facts, String> {
    let read = || {
        let cpus = host.cpus()?;
        let mut present = Vec::new();
        for number in cpus.present {
            if let Some(note) = host.crash_notes(number)? {
                let (online, hardware) = (cpus.online.contains(&number), host.cpu_hardware_number(number)?);
                present.push(CpuFact { number, online, note, hardware });
            }
        }
        Ok(Facts {
            expected: host.expected_ram()?.difference(&host.offline_ram()?).collect(),
            ram: host.iomem()?.ram(),
            cpus: present,
            vmcoreinfo: Some(host.vmcoreinfo()?),
        })
    };
    read().map_err(text)
}

impl Answer {
    fn without_header(verdict: Verdict, remark: String) -> Self {
        Self { verdict, remarks: vec![remark], ..Self::default() }
    }

    /// Adds what is wrong with the image besides its header.
    fn with(mut self, findings: Vec<Finding>) -> Self {
        if let Some(header) = self.headers.first_mut()
            && !findings.is_empty()
        {
            header.comparison.findings.extend(findings);
            self.verdict = self.verdict.max(Verdict::Stale);
        }
        self
    }

    /// Adds who keeps the image current; `wanted` is who was to, by the last load.
    fn kept(mut self, keeping: &Keeping, wanted: Option<Keeper>) -> Self {
        self.kept_by = keeping.keeper();
        self.kept_current = keeping.is_whole();
        self.problems.extend(keeping.broken(wanted));
        self.keeping = Some(keeping.line());
        self
    }

    /// What keeps the verdict from being "complete", in words.
    fn shortcomings(&self) -> Vec<String> {
        let findings = self.headers.iter().flat_map(|checked| &checked.comparison.findings);
        let findings: Vec<String> = findings.map(ToString::to_string).collect();
        if findings.is_empty() {
            self.problems.iter().chain(&self.remarks).cloned().collect()
        } else {
            findings
        }
    }

    /// For people: the verdict, then what it rests on.
    fn text(&self) -> String {
        let mut lines = vec![
            match self.verdict {
                Verdict::Complete => "complete: a dump taken now would hold all memory and every CPU",
                Verdict::Unknown => "unknown: whether a dump taken now would be complete cannot be told",
                Verdict::Stale => {
                    "stale: a dump taken now would not match the machine; load again with `hotdump load`"
                }
                Verdict::NotLoaded => "not loaded: a crash now would leave no dump",
            }
            .to_owned(),
        ];
        lines.extend(self.problems.iter().map(|problem| format!("  PROBLEM: {problem}")));
        lines.extend(self.keeping.iter().chain(&self.remarks).map(|line| format!("  {line}")));
        for checked in &self.headers {
            let Comparison { notes, memory_entries, memory_bytes, findings } = &checked.comparison;
            lines.push(format!(
                "  header at {}, {}: {}, {}, {} of memory",
                checked.place.0.start(),
                checked.source,
                counted(*notes, "note"),
                if *memory_entries == 1 {
                    "1 memory entry".to_owned()
                } else {
                    format!("{memory_entries} memory entries")
                },
                crate::text::size(*memory_bytes)
            ));
            lines.extend(findings.iter().map(|finding| format!("    {finding}")));
        }
        lines.push(String::new());
        lines.join("\n")
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MemoryMissing { range } => write!(f, "memory missing from it: {range}"),
            Self::MemoryGone { range } => write!(f, "memory in it that is gone: {range}"),
            Self::CpuWithoutNote { cpu, online } => {
                let state = if *online { "online" } else { "offline" };
                write!(f, "CPU {cpu} ({state}) has no note in it")
            }
            Self::VmcoreinfoMissing { address } => {
                write!(f, "no note for the kernel's vmcoreinfo at {address}")
            }
            Self::CpuNotInTree { cpu } => {
                write!(f, "CPU {cpu} is not in the device tree: a crash on it would leave no dump")
            }
            Self::UnreadableTree { reason } => {
                write!(f, "no capture kernel would take the device tree: {reason}")
            }
            Self::Unreadable { reason } => write!(f, "no capture kernel would take it: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use elfcorehdr::PhysAddr;

    use super::*;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap()
    }

    const RESERVATION: (u64, u64) = (0x3000_0000, 0x4000_0000);

    fn facts() -> Facts {
        let ram = range(0x10_0000, 0x5000_0000);
        Facts {
            expected: [ram].into_iter().collect(),
            ram: [ram].into_iter().collect(),
            cpus: vec![CpuFact { number: 0, online: true, note: sample::CPU_NOTE, hardware: None }],
            vmcoreinfo: Some(sample::VMCOREINFO),
        }
    }

    /// A header that has memory up to `end`, at `at` in the reservation.
    fn found(at: u64, end: u64) -> Found {
        Found { range: range(at, at + 0x1000), bytes: sample::header(end - sample::START.0) }
    }

    fn sight(headers: Headers) -> Sight {
        Sight { headers, source: Source::Kcore, problem: None }
    }

    fn judged(headers: Headers) -> (Verdict, Vec<String>) {
        let answer = judge(sight(headers), &facts(), range(RESERVATION.0, RESERVATION.1), None);
        (answer.verdict, answer.remarks)
    }

    #[test]
    fn the_worst_of_several_headers_counts_and_is_said() {
        let (true_one, stale) = (found(0x3000_0000, 0x5000_0000), found(0x3800_0000, 0x4000_0000));
        assert_eq!(judged(Headers::InForce(true_one.clone())), (Verdict::Complete, vec![]));
        assert_eq!(judged(Headers::InForce(stale.clone())).0, Verdict::Stale);
        assert_eq!(judged(Headers::Candidates(vec![true_one.clone()])), (Verdict::Complete, vec![]));
        let (verdict, remarks) = judged(Headers::Candidates(vec![true_one, stale]));
        assert_eq!(verdict, Verdict::Stale);
        assert!(remarks[0].ends_with("2 headers lie in the reservation; the worst counts"), "{remarks:?}");
    }

    #[test]
    fn no_header_is_never_fine() {
        assert_eq!(judged(Headers::NoneInForce).0, Verdict::Stale);
        let (verdict, remarks) = judged(Headers::Candidates(vec![]));
        assert_eq!(verdict, Verdict::Unknown);
        assert!(remarks[0].contains("none lies in [0x30000000, 0x40000000) (256 MiB)"), "{remarks:?}");
    }

    #[test]
    fn a_machine_that_hides_its_cpus_is_not_fine() {
        let facts = Facts { cpus: vec![], ..facts() };
        let reservation = range(RESERVATION.0, RESERVATION.1);
        let whole =
            judge(sight(Headers::InForce(found(0x3000_0000, 0x5000_0000))), &facts, reservation, None);
        assert_eq!(whole.verdict, Verdict::Unknown);
        let stale =
            judge(sight(Headers::InForce(found(0x3000_0000, 0x4000_0000))), &facts, reservation, None);
        assert_eq!(stale.verdict, Verdict::Stale);
    }

    #[test]
    fn the_text_names_what_is_missing() {
        let answer = judge(
            sight(Headers::InForce(found(0x3000_0000, 0x4800_0000))),
            &facts(),
            range(RESERVATION.0, RESERVATION.1),
            None,
        );
        assert_eq!(
            answer.kept(&Keeping::default(), None).text(),
            "stale: a dump taken now would not match the machine; load again with `hotdump load`\n  \
             kept current: by nobody: load again when CPUs or memory come or go\n  \
             header at 0x30000000, read from /proc/kcore: 2 notes, 1 memory entry, 1.1 GiB of memory\n    \
             memory missing from it: [0x48000000, 0x50000000) (128 MiB)\n"
        );
    }

    #[test]
    fn a_module_that_follows_no_longer_is_a_problem_and_the_dump_still_complete() {
        let reason = abi::Reason::OtherLoad as u32;
        let module = Some(abi::Status { reason, ..abi::Status::default() });
        let keeping = Keeping { module, ..Keeping::default() };
        let sight = sight(Headers::InForce(found(0x3000_0000, 0x5000_0000)));
        let answer = judge(sight, &facts(), range(RESERVATION.0, RESERVATION.1), None)
            .kept(&keeping, Some(Keeper::Module));
        assert_eq!((answer.verdict, answer.kept_current), (Verdict::Complete, Some(false)));
        assert_eq!(
            answer.text(),
            "complete: a dump taken now would hold all memory and every CPU\n  \
             PROBLEM: the image was loaded for the kernel module, which does not follow it: a crash image is being loaded \
             or unloaded: load again\n  \
             kept current: by nobody: load again when CPUs or memory come or go\n  \
             header at 0x30000000, read from /proc/kcore: 2 notes, 1 memory entry, 1.2 GiB of memory\n"
        );
        let json = serde_json::to_value(&answer).unwrap();
        assert_eq!(
            [&json["verdict"], &json["kept_by"], &json["headers"][0]["source"]],
            ["complete", "nobody", "kcore"]
        );
        assert_eq!(json["kept_current"], false);
        assert!(json["problems"][0].as_str().unwrap().contains("does not follow it"), "{json}");
    }

    #[test]
    fn a_module_that_follows_another_header_makes_the_answer_unsure() {
        let seen = Sight {
            problem: Some("the module follows another".to_owned()),
            ..sight(Headers::InForce(found(0x3000_0000, 0x5000_0000)))
        };
        let answer = judge(seen, &facts(), range(RESERVATION.0, RESERVATION.1), None);
        assert_eq!(answer.verdict, Verdict::Unknown);
        assert!(answer.text().contains("\n  PROBLEM: the module follows another\n"), "{}", answer.text());
    }

    #[test]
    fn what_is_wrong_must_last() {
        use std::cell::Cell;
        // The end of the memory that the header names, and whether nothing changed meanwhile.
        const WHOLE: u64 = 0x5000_0000;
        const SHORT: u64 = 0x4000_0000;
        const SHORTER: u64 = 0x3fff_0000;
        type Case = (&'static [(u64, bool)], usize, Result<Verdict, &'static str>);
        let cases: [Case; 7] = [
            (&[(WHOLE, false)], 1, Ok(Verdict::Complete)),
            (&[(SHORT, true)], 2, Ok(Verdict::Stale)),
            // The kernel had told of the event and not yet put it down.
            (&[(SHORT, true), (WHOLE, true)], 2, Ok(Verdict::Complete)),
            (&[(SHORT, false), (SHORTER, true), (WHOLE, true)], 3, Ok(Verdict::Complete)),
            (&[(SHORT, true), (SHORTER, true), (SHORTER, true)], 3, Ok(Verdict::Stale)),
            // It never stops changing.
            (&[(SHORT, false)], 8, Ok(Verdict::Stale)),
            (
                &[
                    (SHORT, true),
                    (SHORTER, true),
                    (SHORT, true),
                    (SHORTER, true),
                    (SHORT, true),
                    (SHORTER, true),
                    (SHORT, true),
                    (SHORTER, true),
                ],
                8,
                Err("ask again"),
            ),
        ];
        for (answers, tries, expected) in cases {
            let asked = Cell::new(0);
            let ask = || {
                let (end, is_steady) = answers[asked.get().min(answers.len() - 1)];
                asked.set(asked.get() + 1);
                let seen = sight(Headers::InForce(found(0x3000_0000, end)));
                let answer = judge(seen, &facts(), range(RESERVATION.0, RESERVATION.1), None);
                Ok((answer, is_steady))
            };
            let answer = steady(ask).map(|answer| answer.verdict);
            match expected {
                Ok(verdict) => assert_eq!(answer, Ok(verdict), "{answers:x?}"),
                Err(part) => assert!(answer.unwrap_err().contains(part), "{answers:x?}"),
            }
            assert_eq!(asked.get(), tries, "{answers:x?}");
        }
    }

    #[test]
    fn a_machine_that_does_not_tell_is_unknown_and_one_without_an_image_not_loaded() {
        let root = tempfile::tempdir().unwrap();
        let answer = check(&Host::at(root.path()));
        assert_eq!(answer.verdict, Verdict::Unknown);
        assert!(answer.remarks[0].contains("kexec_crash_loaded"), "{:?}", answer.remarks);
        let kernel = root.path().join("sys/kernel");
        std::fs::create_dir_all(&kernel).unwrap();
        for (file, value) in
            [("kexec_crash_loaded", "0\n"), ("kexec_loaded", "0\n"), ("kexec_crash_size", "0\n")]
        {
            std::fs::write(kernel.join(file), value).unwrap();
        }
        assert_eq!(check(&Host::at(root.path())).verdict, Verdict::NotLoaded);
        std::fs::write(kernel.join("kexec_crash_loaded"), "1\n").unwrap();
        assert_eq!(check(&Host::at(root.path())).verdict, Verdict::Unknown);
    }
}
