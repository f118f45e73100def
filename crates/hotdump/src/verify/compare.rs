//! Holds a crash header against the machine: a pure function from bytes and facts to findings.

use elfcorehdr::{Header, Note, PhysRange, RangeVec};
use serde::Serialize;

use crate::text::Range;

/// What the machine is like now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Memory that a complete dump holds: what is in use.
    pub(crate) expected: RangeVec,
    /// All memory there is, and that a header may name: the crash reservations, the first megabyte and offline memory too.
    pub(crate) ram: RangeVec,
    /// Every present CPU.
    pub(crate) cpus: Vec<CpuFact>,
    /// Where the kernel's vmcoreinfo note lies.
    pub(crate) vmcoreinfo: Option<Note>,
}

/// A present CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuFact {
    pub(crate) number: u32,
    pub(crate) online: bool,
    /// Where its registers are saved in a crash.
    pub(crate) note: Note,
    /// Its number in the device tree, on machines that boot their kernels with one.
    pub(crate) hardware: Option<u32>,
}

/// What a header says and where it is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Comparison {
    /// Notes in the header, vmcoreinfo's with them.
    pub(crate) notes: usize,
    /// Memory entries in the header.
    pub(crate) memory_entries: usize,
    /// Bytes of different memory that the entries name.
    pub(crate) memory_bytes: u64,
    /// Each difference; none: a dump taken now would be complete.
    pub(crate) findings: Vec<Finding>,
}

/// One difference between the header and the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Finding {
    /// Memory of the machine that the header does not have.
    MemoryMissing { range: Range },
    /// Memory in the header that the machine no longer has.
    MemoryGone { range: Range },
    /// A CPU whose registers would not be in the dump.
    CpuWithoutNote { cpu: u32, online: bool },
    /// The header has no note for the kernel's vmcoreinfo; without it no tool can read the dump.
    VmcoreinfoMissing { address: String },
    /// A CPU on which the capture kernel would not boot: its device tree does not list it.
    CpuNotInTree { cpu: u32 },
    /// Not a device tree that a capture kernel would take.
    UnreadableTree { reason: String },
    /// Not a header that a capture kernel would take.
    Unreadable { reason: String },
}

/// Compares the header at the start of `bytes` with the machine.
pub(crate) fn compare(bytes: &[u8], facts: &Facts) -> Comparison {
    let header = match Header::parse(bytes) {
        Ok(header) => header,
        Err(error) => {
            let reason = error.to_string();
            let findings = vec![Finding::Unreadable { reason }];
            return Comparison { notes: 0, memory_entries: 0, memory_bytes: 0, findings };
        }
    };
    // Under the names that the dump gives it. A loader may copy some memory aside and let the header read the copy.
    let named: RangeVec = header.loads().filter_map(|load| load.range()).collect();
    let read: RangeVec =
        header.loads().filter_map(|load| PhysRange::from_len(load.offset, load.size)).collect();
    let notes: Vec<Note> = header.notes().collect();

    let mut findings = Vec::new();
    findings.extend(
        facts.expected.difference(&named).map(|range| Finding::MemoryMissing { range: range.into() }),
    );
    findings.extend(read.difference(&facts.ram).map(|range| Finding::MemoryGone { range: range.into() }));
    findings.extend(
        facts
            .cpus
            .iter()
            .filter(|cpu| !notes.iter().any(|note| covers(note, &cpu.note)))
            .map(|cpu| Finding::CpuWithoutNote { cpu: cpu.number, online: cpu.online }),
    );
    if let Some(wanted) = facts.vmcoreinfo
        && !notes.iter().any(|note| covers(note, &wanted))
    {
        findings.push(Finding::VmcoreinfoMissing { address: wanted.paddr.to_string() });
    }
    Comparison {
        notes: notes.len(),
        memory_entries: header.loads().count(),
        memory_bytes: named.total_len(),
        findings,
    }
}

/// Whether a capture kernel that reads `note` gets all that this kernel writes at `wanted`.
fn covers(note: &Note, wanted: &Note) -> bool {
    note.paddr == wanted.paddr && note.size >= wanted.size
}

#[cfg(test)]
mod tests {
    use elfcorehdr::{Load, PhysAddr};
    use proptest::prelude::*;

    use super::super::sample::build;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn range(start_mib: u64, end_mib: u64) -> PhysRange {
        PhysRange::new(PhysAddr(start_mib * MIB), PhysAddr(end_mib * MIB)).unwrap()
    }

    fn note(paddr: u64) -> Note {
        Note { paddr: PhysAddr(paddr), size: 0x200 }
    }

    fn cpu(number: u32, online: bool) -> CpuFact {
        CpuFact { number, online, note: note(0x10_0000 + u64::from(number) * 0x1000), hardware: None }
    }

    const VMCOREINFO: u64 = 0x20_0000;

    /// A machine of 2 CPUs and 1 GiB, with [256, 512) MiB reserved.
    fn machine() -> Facts {
        Facts {
            expected: [range(1, 256), range(512, 1024)].into_iter().collect(),
            ram: [range(0, 1024)].into_iter().collect(),
            cpus: vec![cpu(0, true), cpu(1, true)],
            vmcoreinfo: Some(note(VMCOREINFO)),
        }
    }

    fn header(cpus: &[u32], vmcoreinfo: u64, loads: &[PhysRange]) -> Vec<u8> {
        let notes: Vec<Note> = cpus.iter().map(|number| cpu(*number, true).note).collect();
        let loads: Vec<Load> = loads
            .iter()
            .map(|range| Load { paddr: range.start(), vaddr: 0, offset: range.start(), size: range.len() })
            .collect();
        build(&notes, note(vmcoreinfo), &loads)
    }

    fn missing(start_mib: u64, end_mib: u64) -> Finding {
        Finding::MemoryMissing { range: range(start_mib, end_mib).into() }
    }

    fn gone(start_mib: u64, end_mib: u64) -> Finding {
        Finding::MemoryGone { range: range(start_mib, end_mib).into() }
    }

    #[test]
    fn differences_are_told_one_by_one() {
        let whole = &[range(1, 256), range(512, 1024)][..];
        let table: &[(&str, Vec<u8>, Vec<Finding>)] = &[
            ("true to the machine", header(&[0, 1], VMCOREINFO, whole), vec![]),
            ("notes for CPUs to come", header(&[0, 1, 2, 3], VMCOREINFO, whole), vec![]),
            (
                "the kernel's text named twice",
                header(&[0, 1], VMCOREINFO, &[range(16, 48), range(1, 256), range(512, 1024)]),
                vec![],
            ),
            (
                "one entry over all, the reservation too",
                header(&[0, 1], VMCOREINFO, &[range(0, 1024)]),
                vec![],
            ),
            (
                "a block added",
                header(&[0, 1], VMCOREINFO, &[range(1, 256), range(512, 896)]),
                vec![missing(896, 1024)],
            ),
            (
                "a block in the middle",
                header(&[0, 1], VMCOREINFO, &[range(1, 128), range(192, 256), range(512, 1024)]),
                vec![missing(128, 192)],
            ),
            (
                "a block gone",
                header(&[0, 1], VMCOREINFO, &[range(1, 256), range(512, 1152)]),
                vec![gone(1024, 1152)],
            ),
            (
                "one gone, one added",
                header(&[0, 1], VMCOREINFO, &[range(1, 256), range(640, 1024), range(2048, 2176)]),
                vec![missing(512, 640), gone(2048, 2176)],
            ),
            (
                "a CPU added",
                header(&[0], VMCOREINFO, whole),
                vec![Finding::CpuWithoutNote { cpu: 1, online: true }],
            ),
            (
                "another kernel's vmcoreinfo",
                header(&[0, 1], 0x30_0000, whole),
                vec![Finding::VmcoreinfoMissing { address: "0x200000".to_owned() }],
            ),
        ];
        for (what, header, expected) in table {
            assert_eq!(&compare(header, &machine()).findings, expected, "{what}");
        }
    }

    #[test]
    fn offline_memory_may_be_named_and_need_not() {
        // [896, 1024) MiB is offline, [1024, 1152) was taken out.
        let facts = Facts { expected: [range(1, 256), range(512, 896)].into_iter().collect(), ..machine() };
        let table: &[(&[PhysRange], &[Finding])] = &[
            (&[range(1, 256), range(512, 896)], &[]),
            (&[range(1, 256), range(512, 1024)], &[]),
            (&[range(1, 256), range(512, 960)], &[]),
            (&[range(1, 256), range(512, 832)], &[missing(832, 896)]),
            (&[range(1, 256), range(512, 1152)], &[gone(1024, 1152)]),
        ];
        for (loads, expected) in table {
            let found = compare(&header(&[0, 1], VMCOREINFO, loads), &facts).findings;
            assert_eq!(found, *expected, "{loads:?}");
        }
    }

    #[test]
    fn an_offline_cpu_is_told_as_such() {
        let facts = Facts { cpus: vec![cpu(0, true), cpu(1, false)], ..machine() };
        let found = compare(&header(&[0], VMCOREINFO, &[range(1, 256), range(512, 1024)]), &facts).findings;
        assert_eq!(found, [Finding::CpuWithoutNote { cpu: 1, online: false }]);
    }

    #[test]
    fn memory_read_from_a_copy_counts_by_the_name_the_dump_gives_it() {
        // As loaders do that copy the first 640 KiB aside: named 0, read from the reservation.
        let copied = Load { paddr: PhysAddr(0), vaddr: 0, offset: PhysAddr(300 * MIB), size: 640 << 10 };
        let loads: Vec<Load> = [range(1, 256), range(512, 1024)]
            .map(|range| Load { paddr: range.start(), vaddr: 0, offset: range.start(), size: range.len() })
            .into_iter()
            .chain([copied])
            .collect();
        let notes = [cpu(0, true).note, cpu(1, true).note];
        assert_eq!(compare(&build(&notes, note(VMCOREINFO), &loads), &machine()).findings, []);
    }

    #[test]
    fn a_note_that_is_too_short_is_no_note() {
        let mut facts = machine();
        facts.cpus[1].note.size = 0x201;
        let found = compare(&header(&[0, 1], VMCOREINFO, &[range(0, 1024)]), &facts).findings;
        assert_eq!(found, [Finding::CpuWithoutNote { cpu: 1, online: true }]);
    }

    #[test]
    fn a_header_that_does_not_parse_is_a_finding_in_the_parser_s_words() {
        let mut bytes = header(&[0, 1], VMCOREINFO, &[range(0, 1024)]);
        bytes[56] = 0;
        let findings = compare(&bytes, &machine()).findings;
        assert!(
            matches!(findings.as_slice(), [Finding::Unreadable { reason }] if reason.contains("e_phnum")),
            "{findings:?}"
        );
    }

    /// Blocks of 1 MiB out of the first 64, as a set of ranges.
    fn blocks(mask: u64) -> RangeVec {
        (0..64).filter(|bit| mask >> bit & 1 == 1).map(|bit| range(bit, bit + 1)).collect()
    }

    proptest! {
        #[test]
        fn what_is_missing_and_gone_is_exact(had in 1_u64.., has in any::<u64>(), offline in any::<u64>()) {
            let loads: Vec<PhysRange> = blocks(had).iter().collect();
            let facts = Facts {
                expected: blocks(has & !offline),
                ram: blocks(has),
                cpus: vec![cpu(0, true)],
                vmcoreinfo: None,
            };
            let findings = compare(&header(&[0], VMCOREINFO, &loads), &facts).findings;
            let mut missing = RangeVec::new();
            let mut gone = RangeVec::new();
            for finding in findings {
                match finding {
                    Finding::MemoryMissing { range } => missing.extend([range.0]),
                    Finding::MemoryGone { range } => gone.extend([range.0]),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert_eq!(missing, blocks(has & !offline & !had));
            prop_assert_eq!(gone, blocks(had & !has));
        }

        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(!compare(&bytes, &machine()).findings.is_empty());
        }

        #[test]
        fn a_damaged_header_never_panics(at in 0_usize..400, value in any::<u8>()) {
            let mut bytes = header(&[0, 1], VMCOREINFO, &[range(1, 256), range(512, 1024)]);
            let at = at % bytes.len();
            bytes[at] = value;
            compare(&bytes, &machine());
        }
    }
}
