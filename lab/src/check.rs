//! Holds a dump against what the guest's memory is known to have held.
//!
//! Reads the ELF core with the `object` crate and not with hotdump's own reader: a mistake in how hotdump writes must
//! not be hidden by the same mistake in how it reads.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use lab_agent::Manifest;
use lab_agent::pattern::{PAGE, write_page};
use object::elf;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, ReadCache};

use crate::arch::Arch;
use crate::kdump::{self, Parts};

/// A crash dump in ELF form.
pub struct Core {
    file: File,
    segments: Vec<Segment>,
    cpus: Vec<Registers>,
    has_vmcoreinfo: bool,
}

/// Of what a CPU left behind, the part that cannot be nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The process that ran there.
    pub pid: u32,
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
}

impl Registers {
    /// Reads them from an NT_PRSTATUS note (`struct elf_prstatus`: the registers start at byte 112).
    fn read(prstatus: &[u8], arch: Arch) -> Option<Registers> {
        let word = |at: usize| prstatus.get(at..)?.first_chunk().copied().map(u64::from_le_bytes);
        let pid = u32::from_le_bytes(*prstatus.get(32..)?.first_chunk()?);
        let (ip, sp) = arch.registers();
        Some(Registers { pid, ip: word(112 + ip * 8)?, sp: word(112 + sp * 8)? })
    }
}

/// The physical ranges that a crash header (elfcorehdr) has a capture kernel read, in the order of its entries.
pub fn memory_of_header(header: &[u8]) -> Result<Vec<Range<u64>>> {
    let file = elf::FileHeader64::<Endianness>::parse(header).context("the crash header is no ELF file")?;
    let endian = file.endian()?;
    let programs = file.program_headers(endian, header)?.iter();
    let loads = programs.filter(|program| program.p_type(endian) == elf::PT_LOAD);
    let range = |offset: u64, size| Some(offset..offset.checked_add(size)?);
    let ranges = loads.map(|program| range(program.p_offset(endian), program.p_memsz(endian)));
    ranges.collect::<Option<_>>().context("an entry of the crash header wraps around")
}

#[derive(Clone, Debug)]
struct Segment {
    memory: Range<u64>,
    offset: u64,
}

impl Core {
    /// Opens a core of a machine of this architecture and reads its headers.
    pub fn open(path: &Path, arch: Arch) -> Result<Core> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let mut start = [0; 8];
        if file.read_exact_at(&mut start, 0).is_ok() && start == kdump::SIGNATURE {
            return Core::of_kdump(&file, &path.with_extension("memory"), arch, Parts::All);
        }
        let size = file.metadata()?.len();
        let cache = ReadCache::new(file.try_clone()?);
        let header =
            elf::FileHeader64::<Endianness>::parse(&cache).context("the dump is no 64-bit ELF file")?;
        let endian = header.endian()?;
        ensure!(header.e_type(endian) == elf::ET_CORE, "the dump's e_type is {}", header.e_type(endian));
        ensure!(
            header.e_machine(endian) == arch.elf_machine(),
            "the dump's e_machine is {}",
            header.e_machine(endian)
        );
        let mut core = Core { file, segments: Vec::new(), cpus: Vec::new(), has_vmcoreinfo: false };
        for program in header.program_headers(endian, &cache)? {
            match program.p_type(endian) {
                elf::PT_LOAD => core.segments.extend(segment(program, endian, size)?),
                elf::PT_NOTE => core.read_notes(program, endian, &cache, arch)?,
                _ => {}
            }
        }
        core.segments.sort_by_key(|segment| segment.memory.start);
        Ok(core)
    }

    /// Opens a kdump-compressed dump that was not written to its end.
    pub fn open_partial(path: &Path, arch: Arch) -> Result<Core> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        Core::of_kdump(&file, &path.with_extension("memory"), arch, Parts::Some)
    }

    /// Unpacks a kdump-compressed dump into the file `memory`.
    fn of_kdump(file: &File, memory: &Path, arch: Arch, parts: Parts) -> Result<Core> {
        let dump = kdump::unpack(file, memory, parts)?;
        let segments = dump.held.iter().map(|held| Segment { memory: held.clone(), offset: held.start });
        let mut core = Core {
            file: File::open(memory)?,
            segments: segments.collect(),
            cpus: Vec::new(),
            has_vmcoreinfo: false,
        };
        for (name, kind, content) in kdump::notes(&dump.notes) {
            core.take_note(name, elf::NoteType(u32::try_from(kind)?), content, arch)?;
        }
        Ok(core)
    }

    fn read_notes(
        &mut self,
        program: &elf::ProgramHeader64<Endianness>,
        endian: Endianness,
        cache: &ReadCache<File>,
        arch: Arch,
    ) -> Result<()> {
        let Some(mut notes) = program.notes(endian, cache)? else { return Ok(()) };
        while let Some(note) = notes.next()? {
            self.take_note(note.name(), note.n_type(endian), note.desc(), arch)?;
        }
        Ok(())
    }

    fn take_note(&mut self, name: &[u8], kind: elf::NoteType, content: &[u8], arch: Arch) -> Result<()> {
        match (name, kind) {
            (b"CORE", elf::NT_PRSTATUS) => {
                self.cpus.push(Registers::read(content, arch).context("a CPU's note is too short")?);
            }
            (b"VMCOREINFO", _) => self.has_vmcoreinfo = true,
            _ => {}
        }
        Ok(())
    }

    /// What the CPUs left, in their order.
    pub fn cpus(&self) -> &[Registers] {
        &self.cpus
    }

    /// How much memory the dump holds, in bytes.
    pub fn held(&self) -> u64 {
        self.segments.iter().map(|segment| segment.memory.end - segment.memory.start).sum()
    }

    /// Whether the crashed kernel's vmcoreinfo is there.
    pub fn has_vmcoreinfo(&self) -> bool {
        self.has_vmcoreinfo
    }

    /// Where the dump holds the bytes at `address`, and how many of them follow each other there.
    fn place(&self, address: u64) -> Option<(u64, u64)> {
        let segment = self.segments.iter().find(|segment| segment.memory.contains(&address))?;
        let inside = address - segment.memory.start;
        Some((segment.offset + inside, segment.memory.end - address))
    }

    /// The parts of `range` that no segment holds.
    pub fn missing_from(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = match self.place(at) {
                Some((_, length)) => at + length,
                None => {
                    let next = self
                        .segments
                        .iter()
                        .map(|segment| segment.memory.start)
                        .filter(|start| *start > at)
                        .min();
                    let end = next.unwrap_or(range.end).min(range.end);
                    missing.push(at..end);
                    end
                }
            };
            at = end;
        }
        missing
    }

    /// Nothing of what was `removed` may be there.
    pub fn lacks(&self, removed: &[Range<u64>]) -> Result<()> {
        for gone in removed {
            ensure!(
                self.missing_from(gone) == [gone.clone()],
                "the dump has parts of {gone:x?}, which was removed"
            );
        }
        Ok(())
    }

    /// Reads every page of the manifest and compares it byte by byte.
    pub fn compare(&self, manifest: &Manifest, hot_added: &[Range<u64>]) -> Result<Findings> {
        let mut findings = Findings::default();
        for run in &manifest.runs {
            let mut done = 0;
            while done < run.count {
                let count = self.compare_piece(
                    manifest.seed,
                    run.frame + done,
                    run.page + done,
                    run.count - done,
                    &mut findings,
                )?;
                done += count;
            }
        }
        findings.hot_pages = hot_added.iter().map(|added| manifest.pages_in(added)).sum();
        Ok(findings)
    }

    /// Compares as many pages from `frame` on as lie behind each other in the dump, and gives their number.
    fn compare_piece(
        &self,
        seed: u64,
        frame: u64,
        page: u64,
        most: u64,
        findings: &mut Findings,
    ) -> Result<u64> {
        const MOST: u64 = 256;
        let address = frame * PAGE as u64;
        let room = self.place(address).filter(|(_, length)| *length >= PAGE as u64);
        let Some((offset, length)) = room else {
            findings.pages += 1;
            findings.miss(address..address + PAGE as u64);
            return Ok(1);
        };
        let count = most.min(MOST).min(length / PAGE as u64);
        let mut found = vec![0; usize::try_from(count)? * PAGE];
        self.file
            .read_exact_at(&mut found, offset)
            .with_context(|| format!("reading the dump at {offset:#x}"))?;
        let mut expected = vec![0; PAGE];
        for (number, found) in (0..).zip(found.chunks_exact(PAGE)) {
            write_page(seed, page + number, &mut expected);
            if expected != found {
                findings.differ(address + number * PAGE as u64, &expected, found);
            }
        }
        findings.pages += count;
        Ok(count)
    }
}

/// The part of a program header that the file really holds.
fn segment(
    program: &elf::ProgramHeader64<Endianness>,
    endian: Endianness,
    size: u64,
) -> Result<Option<Segment>> {
    let (start, offset, length) =
        (program.p_paddr(endian), program.p_offset(endian), program.p_filesz(endian));
    let end = offset.checked_add(length).filter(|end| *end <= size);
    ensure!(
        end.is_some(),
        "the segment of {start:#x} lies beyond the dump's end: {offset:#x} + {length:#x} > {size:#x}"
    );
    let Some(memory_end) = start.checked_add(length) else { bail!("the segment of {start:#x} wraps around") };
    Ok((length > 0).then_some(Segment { memory: start..memory_end, offset }))
}

/// A byte that is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its physical address.
    pub address: u64,
    /// What the guest had written there.
    pub expected: u8,
    /// What the dump has there.
    pub found: u8,
}

/// What the comparison found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Pages of the manifest.
    pub pages: u64,
    /// Those of them that lie in hot-added memory.
    pub hot_pages: u64,
    /// Pages that the dump holds with another content.
    pub wrong: u64,
    /// The first byte of each of the first wrong pages.
    pub first_wrong: Vec<Difference>,
    /// Pages of the manifest that the dump does not hold.
    pub missing: u64,
    /// The same as ranges of physical addresses, in the manifest's order.
    pub missing_ranges: Vec<Range<u64>>,
}

impl Findings {
    fn miss(&mut self, page: Range<u64>) {
        self.missing += 1;
        match self.missing_ranges.last_mut() {
            Some(last) if last.end == page.start => last.end = page.end,
            _ => self.missing_ranges.push(page),
        }
    }

    fn differ(&mut self, address: u64, expected: &[u8], found: &[u8]) {
        const SHOWN: usize = 8;
        self.wrong += 1;
        let first =
            (address..).zip(expected.iter().zip(found)).find(|(_, (expected, found))| expected != found);
        if let (Some((address, (&expected, &found))), true) = (first, self.first_wrong.len() < SHOWN) {
            self.first_wrong.push(Difference { address, expected, found });
        }
    }

    /// Every page must be there as it was.
    pub fn all_right(&self) -> Result<()> {
        ensure!(self.wrong == 0 && self.missing == 0, "{self}");
        Ok(())
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages compared, {} of them in hot-added memory: ", self.pages, self.hot_pages)?;
        write!(f, "{} wrong, {} missing", self.wrong, self.missing)?;
        for Difference { address, expected, found } in &self.first_wrong {
            write!(f, "\n  at {address:#x}: {found:#04x} instead of {expected:#04x}")?;
        }
        for range in self.missing_ranges.iter().take(8) {
            write!(f, "\n  missing: [{:#x}, {:#x})", range.start, range.end)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const FIRST: u64 = 0x10_0000;

    /// A core with one segment: pages 0, 1, 2 of pattern 5 at `FIRST`, the second with one bit flipped.
    fn sample() -> (tempdir::Dir, Core) {
        let mut bytes = Vec::new();
        bytes.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        for (value, size) in
            [(4, 2), (62, 2), (1, 4), (0, 8), (64, 8), (0, 8), (0, 4), (64, 2), (56, 2), (1, 2), (0, 6)]
        {
            bytes.extend(u64::to_le_bytes(value).iter().take(size));
        }
        let length = 3 * PAGE as u64;
        for (value, size) in
            [(1, 4), (7, 4), (0x1000, 8), (0, 8), (FIRST, 8), (length, 8), (length, 8), (0, 8)]
        {
            bytes.extend(u64::to_le_bytes(value).iter().take(size));
        }
        bytes.resize(0x1000, 0);
        for index in 0..3 {
            let mut page = vec![0; PAGE];
            write_page(5, index, &mut page);
            if index == 1 {
                page[9] ^= 4;
            }
            bytes.extend(page);
        }
        let dir = tempdir::Dir::new();
        let path = dir.0.join("core");
        File::create(&path).unwrap().write_all(&bytes).unwrap();
        let core = Core::open(&path, Arch::X86_64).unwrap();
        (dir, core)
    }

    mod tempdir {
        use std::sync::atomic::{AtomicU32, Ordering};

        pub(super) struct Dir(pub(super) std::path::PathBuf);

        impl Dir {
            pub(super) fn new() -> Dir {
                static NEXT: AtomicU32 = AtomicU32::new(0);
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                let path = std::env::temp_dir().join(format!("lab-check-{}-{number}", std::process::id()));
                std::fs::create_dir(&path).unwrap();
                Dir(path)
            }
        }

        impl Drop for Dir {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
    }

    #[test]
    fn finds_the_flipped_bit_and_the_missing_page() {
        let (_dir, core) = sample();
        let mut manifest = Manifest { seed: 5, runs: Vec::new() };
        for index in 0..4 {
            manifest.push(FIRST / PAGE as u64 + index, index);
        }
        let second = FIRST + PAGE as u64;
        let added = second..second + 2 * PAGE as u64;
        let findings = core.compare(&manifest, std::slice::from_ref(&added)).unwrap();
        assert_eq!((findings.pages, findings.hot_pages, findings.wrong, findings.missing), (4, 2, 1, 1));
        let difference = findings.first_wrong[0];
        assert_eq!(difference.address, second + 9);
        assert_eq!(difference.expected ^ difference.found, 4);
        let end = FIRST + 3 * PAGE as u64;
        let fourth = end..end + PAGE as u64;
        assert_eq!(findings.missing_ranges, std::slice::from_ref(&fourth));
        assert!(findings.all_right().is_err());
    }

    #[test]
    fn says_what_no_segment_holds() {
        let (_dir, core) = sample();
        let end = FIRST + 3 * PAGE as u64;
        assert!(core.missing_from(&(FIRST..end)).is_empty());
        assert_eq!(
            core.missing_from(&(FIRST - 0x1000..end + 0x1000)),
            [FIRST - 0x1000..FIRST, end..end + 0x1000]
        );
    }
}
