//! The answer as metrics, in Prometheus' text format (version 0.0.4), for node_exporter's textfile collector.
//!
//! Everybody may read the file: it has counts and sizes, and no physical address.

use std::fmt::Display;
use std::time::Duration;

use kexec::Keeper;

use super::{Answer, Finding, Verdict};

/// The verdicts by the names that they have in JSON.
const VERDICTS: [(Verdict, &str); 4] = [
    (Verdict::Complete, "complete"),
    (Verdict::Stale, "stale"),
    (Verdict::Unknown, "unknown"),
    (Verdict::NotLoaded, "not_loaded"),
];

const KEEPERS: [(Keeper, &str); 3] =
    [(Keeper::Kernel, "kernel"), (Keeper::Module, "module"), (Keeper::Nobody, "nobody")];

/// The kinds of findings by the names that they have in JSON.
const KINDS: [&str; 7] = [
    "memory_missing",
    "memory_gone",
    "cpu_without_note",
    "vmcoreinfo_missing",
    "cpu_not_in_tree",
    "unreadable_tree",
    "unreadable",
];

/// The file's text; `now` is counted from 1970. What cannot be told has no line.
pub(super) fn text(answer: &Answer, now: Duration) -> String {
    let mut page = Page(String::new());
    page.about("hotdump_verdict", "Whether a dump taken now would be complete: the verdict that is 1 holds.");
    for (verdict, name) in VERDICTS {
        page.labelled("hotdump_verdict", "verdict", name, u8::from(answer.verdict == verdict));
    }
    let loaded = match answer.verdict {
        Verdict::Complete | Verdict::Stale => Some(true),
        Verdict::NotLoaded => Some(false),
        Verdict::Unknown => None,
    };
    page.fact("hotdump_loaded", "Whether a crash image is loaded.", loaded);
    page.fact(
        "hotdump_kept_current",
        "Whether every change of CPUs and memory is taken care of without another load.",
        answer.kept_current,
    );
    if let Some(kept_by) = answer.kept_by {
        page.about("hotdump_kept_by", "Who keeps the image current: the one that is 1.");
        for (keeper, name) in KEEPERS {
            page.labelled("hotdump_kept_by", "keeper", name, u8::from(kept_by == keeper));
        }
    }
    page.about("hotdump_problems", "What is not as it was asked for at the load.");
    page.value("hotdump_problems", answer.problems.len());
    page.findings(answer);
    page.about("hotdump_checked_timestamp_seconds", "When this was found, in seconds since 1970.");
    page.value("hotdump_checked_timestamp_seconds", now.as_secs());
    page.0
}

/// Lines of metrics.
struct Page(String);

impl Page {
    fn about(&mut self, name: &str, help: &str) {
        self.0 += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
    }

    fn value(&mut self, name: &str, value: impl Display) {
        self.0 += &format!("{name} {value}\n");
    }

    fn labelled(&mut self, name: &str, label: &str, of: &str, value: impl Display) {
        self.0 += &format!("{name}{{{label}=\"{of}\"}} {value}\n");
    }

    fn fact(&mut self, name: &str, help: &str, fact: Option<bool>) {
        if let Some(fact) = fact {
            self.about(name, help);
            self.value(name, u8::from(fact));
        }
    }

    /// Of the headers that were looked at, if any was: how much is wrong. Where there are several, the one with most findings counts.
    fn findings(&mut self, answer: &Answer) {
        let Some(worst) = answer.headers.iter().max_by_key(|checked| checked.comparison.findings.len())
        else {
            return;
        };
        let findings = &worst.comparison.findings;
        self.about(
            "hotdump_findings",
            "Differences between the crash header and the machine, by their kind.",
        );
        for kind in KINDS {
            let count = findings.iter().filter(|finding| finding.kind() == kind).count();
            self.labelled("hotdump_findings", "kind", kind, count);
        }
        let missing = findings.iter().map(|finding| match finding {
            Finding::MemoryMissing { range } => range.0.len(),
            _ => 0,
        });
        self.about("hotdump_memory_missing_bytes", "Memory in use that a dump taken now would not hold.");
        self.value("hotdump_memory_missing_bytes", missing.sum::<u64>());
        self.about("hotdump_header_memory_bytes", "Memory that the crash header names.");
        self.value("hotdump_header_memory_bytes", worst.comparison.memory_bytes);
    }
}

impl Finding {
    /// Its kind, as JSON has it.
    fn kind(&self) -> &'static str {
        match self {
            Self::MemoryMissing { .. } => "memory_missing",
            Self::MemoryGone { .. } => "memory_gone",
            Self::CpuWithoutNote { .. } => "cpu_without_note",
            Self::VmcoreinfoMissing { .. } => "vmcoreinfo_missing",
            Self::CpuNotInTree { .. } => "cpu_not_in_tree",
            Self::UnreadableTree { .. } => "unreadable_tree",
            Self::Unreadable { .. } => "unreadable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::Comparison;
    use super::super::{Checked, Source};
    use super::*;
    use crate::text::Range;
    use elfcorehdr::{PhysAddr, PhysRange};

    fn range(start: u64, len: u64) -> Range {
        PhysRange::from_len(PhysAddr(start), len).unwrap().into()
    }

    /// One finding of every kind.
    fn every_finding() -> Vec<Finding> {
        vec![
            Finding::MemoryMissing { range: range(0x1_2340_0000, 128 << 20) },
            Finding::MemoryGone { range: range(0x2_2340_0000, 4096) },
            Finding::CpuWithoutNote { cpu: 1, online: true },
            Finding::VmcoreinfoMissing { address: "0x12345000".to_owned() },
            Finding::CpuNotInTree { cpu: 2 },
            Finding::UnreadableTree { reason: "at 0x7000".to_owned() },
            Finding::Unreadable { reason: "at 0x8000".to_owned() },
        ]
    }

    fn answer(verdict: Verdict, findings: Vec<Finding>) -> Answer {
        let comparison = Comparison { notes: 2, memory_entries: 1, memory_bytes: 1 << 30, findings };
        Answer {
            verdict,
            kept_by: Some(Keeper::Module),
            kept_current: Some(true),
            headers: vec![Checked { place: range(0x3000_0000, 0x1000), source: Source::Kcore, comparison }],
            remarks: vec!["of the header at 0x30000000".to_owned()],
            ..Answer::default()
        }
    }

    #[test]
    fn a_complete_answer_is_metrics() {
        let text = text(&answer(Verdict::Complete, vec![]), Duration::from_millis(1_795_374_000_900));
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "hotdump_verdict{verdict=\"complete\"} 1",
                "hotdump_verdict{verdict=\"stale\"} 0",
                "hotdump_verdict{verdict=\"unknown\"} 0",
                "hotdump_verdict{verdict=\"not_loaded\"} 0",
                "hotdump_loaded 1",
                "hotdump_kept_current 1",
                "hotdump_kept_by{keeper=\"kernel\"} 0",
                "hotdump_kept_by{keeper=\"module\"} 1",
                "hotdump_kept_by{keeper=\"nobody\"} 0",
                "hotdump_problems 0",
                "hotdump_findings{kind=\"memory_missing\"} 0",
                "hotdump_findings{kind=\"memory_gone\"} 0",
                "hotdump_findings{kind=\"cpu_without_note\"} 0",
                "hotdump_findings{kind=\"vmcoreinfo_missing\"} 0",
                "hotdump_findings{kind=\"cpu_not_in_tree\"} 0",
                "hotdump_findings{kind=\"unreadable_tree\"} 0",
                "hotdump_findings{kind=\"unreadable\"} 0",
                "hotdump_memory_missing_bytes 0",
                "hotdump_header_memory_bytes 1073741824",
                "hotdump_checked_timestamp_seconds 1795374000",
            ]
        );
    }

    #[test]
    fn every_kind_of_finding_is_counted_and_no_address_is_told() {
        let text = text(&answer(Verdict::Stale, every_finding()), Duration::ZERO);
        for kind in KINDS {
            assert!(text.contains(&format!("hotdump_findings{{kind=\"{kind}\"}} 1\n")), "{kind}: {text}");
        }
        assert!(text.contains("hotdump_memory_missing_bytes 134217728\n"), "{text}");
        for told in ["0x", "1234", "2234", "30000000"] {
            assert!(!text.contains(told), "{told} is in {text}");
        }
    }

    #[test]
    fn what_cannot_be_told_has_no_line() {
        let unknown = text(&Answer::default(), Duration::ZERO);
        assert!(unknown.contains("hotdump_verdict{verdict=\"unknown\"} 1\n"), "{unknown}");
        for name in ["hotdump_loaded", "hotdump_kept", "hotdump_findings", "hotdump_memory"] {
            assert!(!unknown.contains(name), "{name}: {unknown}");
        }
        let none = Answer { verdict: Verdict::NotLoaded, ..Answer::default() };
        assert!(text(&none, Duration::ZERO).contains("\nhotdump_loaded 0\n"));
    }

    /// The tables here are those of the JSON, whose names `serde` makes.
    #[test]
    fn names_are_those_of_the_json() {
        for (verdict, name) in VERDICTS {
            assert_eq!(serde_json::to_value(verdict).unwrap(), name);
        }
        for (keeper, name) in KEEPERS {
            assert_eq!(serde_json::to_value(keeper).unwrap(), name);
        }
        for finding in every_finding() {
            assert_eq!(serde_json::to_value(&finding).unwrap()["kind"], finding.kind());
        }
    }
}
