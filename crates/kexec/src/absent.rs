//! Where the registers of a CPU that is absent will be saved once it has come.
//!
//! The kernel sets the save areas of all possible CPUs aside at boot, but tells the place only of those that are present.
//! The others can be worked out from the kernel's own variables: `crash_notes` is an offset that is the same for all CPUs,
//! `__per_cpu_offset` is what each CPU adds to it. A header that points there holds the registers of a CPU that was added
//! after the load, without anybody updating it.

use elfcorehdr::{Note, PhysAddr};
use host::{Host, Kcore};

/// Places of all save areas, in the order of `possible`, if they can be worked out for certain: the kernel's variables can
/// be read, what comes out for every CPU that is present is what the kernel says (`known`), and what comes out for the
/// others lies in the memory of the dump.
pub(crate) fn notes(host: &Host, possible: &[u32], known: &[Option<Note>]) -> Option<Vec<Note>> {
    let kcore = host.kcore().ok()?;
    let variables = Variables { kcore };
    let direct_map = variables.kcore.direct_map_offset()?;
    let [crash_notes, offsets] = host.symbols(["crash_notes", "__per_cpu_offset"]).ok()?;
    let (crash_notes, offsets) = (variables.word(crash_notes?)?, offsets?);
    let size = known.iter().flatten().next()?.size;
    let memory = host.expected_ram().ok()?;
    let pairs = possible.iter().zip(known);
    pairs
        .map(|(cpu, told)| {
            let offset = variables.word(offsets.checked_add(u64::from(*cpu) * 8)?)?;
            let paddr = PhysAddr(crash_notes.wrapping_add(offset).checked_sub(direct_map)?);
            let note = Note { paddr, size };
            let inside = memory.contains_range(elfcorehdr::PhysRange::from_len(paddr, size)?);
            (inside && told.is_none_or(|told| told == note)).then_some(note)
        })
        .collect()
}

/// The running kernel's variables.
struct Variables {
    kcore: Kcore,
}

impl Variables {
    /// The 8 bytes at the virtual address `vaddr`, which has to be mapped.
    fn word(&self, vaddr: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.kcore.read_phys(self.kcore.paddr_of(vaddr)?, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    const TEXT: u64 = 0xffff_ffff_8100_0000;
    const DIRECT: u64 = 0xffff_8880_0000_0000;
    /// What `crash_notes` holds, and the physical places of the CPUs' areas without it.
    const CRASH_NOTES: u64 = 0x1_8000;
    const AREAS: [u64; 3] = [0x3e00_0000, 0x3e20_0000, 0x3e40_0000];

    /// A machine whose kernel lies at 16 MiB, with the two variables in its first 64 bytes.
    fn machine(root: &Path, crash_notes: u64) -> Host {
        let phdr = |vaddr: u64, paddr: u64, offset: u64, size: u64| {
            let words = [7 << 32 | 1, offset, vaddr, paddr, size, size, 4096];
            words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect::<Vec<u8>>()
        };
        let mut kcore = b"\x7fELF\x02\x01\x01".to_vec();
        kcore.resize(16, 0);
        kcore.extend([4, 0, 62, 0, 1, 0, 0, 0]);
        kcore.resize(32, 0);
        kcore.extend(64u64.to_le_bytes());
        kcore.resize(52, 0);
        kcore.extend([64, 0, 56, 0, 2, 0]);
        kcore.resize(64, 0);
        kcore.extend(phdr(TEXT, 0x100_0000, 4096, 0x1000));
        kcore.extend(phdr(DIRECT + 0x10_0000, 0x10_0000, 4096, 0xf0_0000));
        kcore.resize(4096, 0);
        kcore.extend(crash_notes.to_le_bytes());
        kcore.extend(AREAS.iter().flat_map(|area| (DIRECT + area).to_le_bytes()));
        kcore.resize(8192, 0);
        fs::create_dir_all(root.join("proc")).unwrap();
        fs::create_dir_all(root.join("sys/kernel")).unwrap();
        fs::write(root.join("proc/kcore"), kcore).unwrap();
        let symbols = format!("{TEXT:x} d crash_notes\n{:x} D __per_cpu_offset\n", TEXT + 8);
        fs::write(root.join("proc/kallsyms"), symbols).unwrap();
        fs::write(root.join("proc/iomem"), "00100000-3fffffff : System RAM\n").unwrap();
        for (file, text) in [("kexec_crash_loaded", "0"), ("kexec_loaded", "0"), ("kexec_crash_size", "0")] {
            fs::write(root.join("sys/kernel").join(file), text).unwrap();
        }
        Host::at(root)
    }

    fn note(cpu: usize) -> Note {
        Note { paddr: PhysAddr(AREAS[cpu] + CRASH_NOTES), size: 356 }
    }

    #[test]
    fn places_are_worked_out_where_all_that_is_known_agrees() {
        let root = tempfile::tempdir().unwrap();
        let host = machine(root.path(), CRASH_NOTES);
        let known = [Some(note(0)), Some(note(1)), None];
        assert_eq!(notes(&host, &[0, 1, 2], &known), Some(vec![note(0), note(1), note(2)]));
    }

    #[test]
    fn nothing_is_guessed() {
        let root = tempfile::tempdir().unwrap();
        let host = machine(root.path(), CRASH_NOTES);
        let moved = Note { paddr: PhysAddr(note(1).paddr.0 + 4), ..note(1) };
        for (what, possible, known) in [
            ("a CPU that is elsewhere", vec![0, 1, 2], vec![Some(note(0)), Some(moved), None]),
            ("no CPU to compare with", vec![0, 1], vec![None, None]),
            ("a CPU outside of the table", vec![0, 600], vec![Some(note(0)), None]),
        ] {
            assert_eq!(notes(&host, &possible, &known), None, "{what}");
        }
        let far = machine(root.path(), 0x4000_0000);
        assert_eq!(notes(&far, &[0, 2], &[None, None]), None, "outside of memory");
        fs::remove_file(root.path().join("proc/kallsyms")).unwrap();
        assert_eq!(notes(&host, &[0, 2], &[Some(note(0)), None]), None, "no symbols");
    }
}
