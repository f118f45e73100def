//! `hotdump verify`: would a dump taken now be complete?

mod compare;
mod kimage;
mod locate;
#[cfg(test)]
mod sample;

use elfcorehdr::PhysRange;
use host::{Host, HostError, Kcore, Reservations};
use serde::Serialize;

use crate::exit;
use crate::record::{self, Record};
use crate::text::{Range, counted, print, print_json};
use compare::{Comparison, CpuFact, Facts, Finding, compare};
use locate::{Found, Headers, ImagePointer};

pub(crate) use locate::Memory;

/// Options of `hotdump verify`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    /// Print nothing; the exit code is the answer
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
}

/// The answer of one check.
#[derive(Debug, Serialize)]
struct Answer {
    verdict: Verdict,
    /// Why there is no answer, or what weakens it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    remarks: Vec<String>,
    /// The headers looked at: one, unless the one in force could not be told from leftovers.
    headers: Vec<Checked>,
}

/// In the order of severity: the worst of several counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Complete,
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
    #[serde(flatten)]
    comparison: Comparison,
}

/// Checks the loaded image; returns the exit code.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let answer = check(&Host::live());
    if args.json {
        print_json(&answer)?;
    } else if !args.quiet {
        print(answer.text())?;
    }
    Ok(answer.verdict.exit_code())
}

/// The header that the kernel's own list of segments names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InForce {
    /// Its segment.
    pub(crate) place: PhysRange,
    /// Bytes up to the end of its last entry.
    pub(crate) used: u64,
}

/// Finds the header in force; `None` if the kernel hides its list, or none of the image's segments is a header.
///
/// # Errors
/// The kernel's memory could not be read.
pub(crate) fn header_in_force(host: &Host, kcore: &Kcore) -> Result<Option<InForce>, HostError> {
    let Some(reservations) = host.reservations()? else { return Ok(None) };
    let Some(pointer) = ImagePointer::of(host, kcore)? else { return Ok(None) };
    Ok(locate::in_force(kcore, pointer, reservations.main)?.map(|found| InForce {
        place: found.range,
        used: elfcorehdr::Header::parse(&found.bytes).map_or(0, |header| header.size() as u64),
    }))
}

/// Reads everything and answers; what cannot be read makes the answer "unknown".
fn check(host: &Host) -> Answer {
    try_check(host).unwrap_or_else(|error| Answer::without_header(Verdict::Unknown, error.to_string()))
}

fn try_check(host: &Host) -> Result<Answer, HostError> {
    if !host.kexec()?.crash_loaded {
        let remark = "no crash image is loaded: load one with `hotdump load`".to_owned();
        return Ok(Answer::without_header(Verdict::NotLoaded, remark));
    }
    let Some(Reservations { main, .. }) = host.reservations()? else {
        let remark = "the kernel says that an image is loaded but shows no crash reservation in /proc/iomem"
            .to_owned();
        return Ok(Answer::without_header(Verdict::Unknown, remark));
    };
    let facts = facts(host)?;
    let kcore = host.kcore()?;
    let headers = locate::headers(&kcore, ImagePointer::of(host, &kcore)?, main)?;
    let ours = Record::read(record::DIR).ok().flatten().filter(|record| record.is_in_memory(host, &kcore));
    Ok(judge(headers, &facts, main, ours.as_ref()))
}

/// Turns what was found into the answer. A header that is no more than a candidate, among several, is not preferred:
/// the worst of all counts.
fn judge(headers: Headers, facts: &Facts, reservation: PhysRange, record: Option<&Record>) -> Answer {
    let (found, mut remarks) = match headers {
        Headers::InForce(found) => (vec![found], Vec::new()),
        Headers::NoneInForce => {
            let remark = "the loaded image has no crash header".to_owned();
            return Answer::without_header(Verdict::Stale, remark);
        }
        Headers::Candidates(found) => {
            let remarks = doubts(&found, reservation, record);
            (found, remarks)
        }
    };
    let checked: Vec<Checked> = found
        .iter()
        .map(|found| Checked { place: found.range.into(), comparison: compare(&found.bytes, facts) })
        .collect();
    let stale = checked.iter().any(|checked| !checked.comparison.findings.is_empty());
    let verdict = match checked.len() {
        0 => Verdict::Unknown,
        _ if stale => Verdict::Stale,
        _ => Verdict::Complete,
    };
    if facts.cpus.is_empty() {
        remarks.push("no CPU's crash notes are shown in /sys/devices/system/cpu".to_owned());
        return Answer { verdict: verdict.max(Verdict::Unknown), remarks, headers: checked };
    }
    Answer { verdict, remarks, headers: checked }
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

fn facts(host: &Host) -> Result<Facts, HostError> {
    let cpus = host.cpus()?;
    let mut present = Vec::new();
    for number in cpus.present {
        if let Some(note) = host.crash_notes(number)? {
            present.push(CpuFact { number, online: cpus.online.contains(&number), note });
        }
    }
    Ok(Facts {
        expected: host.expected_ram()?.difference(&host.offline_ram()?).collect(),
        ram: host.iomem()?.ram(),
        cpus: present,
        vmcoreinfo: Some(host.vmcoreinfo()?),
    })
}

impl Answer {
    fn without_header(verdict: Verdict, remark: String) -> Self {
        Self { verdict, remarks: vec![remark], headers: Vec::new() }
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
        lines.extend(self.remarks.iter().map(|remark| format!("  {remark}")));
        for checked in &self.headers {
            let Comparison { notes, memory_entries, memory_bytes, findings } = &checked.comparison;
            lines.push(format!(
                "  header at {}: {}, {}, {} of memory",
                checked.place.0.start(),
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
            cpus: vec![CpuFact { number: 0, online: true, note: sample::CPU_NOTE }],
            vmcoreinfo: Some(sample::VMCOREINFO),
        }
    }

    /// A header that has memory up to `end`, at `at` in the reservation.
    fn found(at: u64, end: u64) -> Found {
        Found { range: range(at, at + 0x1000), bytes: sample::header(end - sample::START.0) }
    }

    fn judged(headers: Headers) -> (Verdict, Vec<String>) {
        let answer = judge(headers, &facts(), range(RESERVATION.0, RESERVATION.1), None);
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
        let whole = judge(Headers::InForce(found(0x3000_0000, 0x5000_0000)), &facts, reservation, None);
        assert_eq!(whole.verdict, Verdict::Unknown);
        let stale = judge(Headers::InForce(found(0x3000_0000, 0x4000_0000)), &facts, reservation, None);
        assert_eq!(stale.verdict, Verdict::Stale);
    }

    #[test]
    fn the_text_names_what_is_missing() {
        let answer = judge(
            Headers::InForce(found(0x3000_0000, 0x4800_0000)),
            &facts(),
            range(RESERVATION.0, RESERVATION.1),
            None,
        );
        assert_eq!(
            answer.text(),
            "stale: a dump taken now would not match the machine; load again with `hotdump load`\n  \
             header at 0x30000000: 2 notes, 1 memory entry, 1.1 GiB of memory\n    \
             memory missing from it: [0x48000000, 0x50000000) (128 MiB)\n"
        );
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
