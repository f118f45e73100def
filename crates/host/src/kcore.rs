//! `/proc/kcore`: the live kernel's memory as an ELF core file.

use crate::KernelText;
use crate::error::{Fault, HostError};
use elfcorehdr::{Machine, PhysAddr, PhysRange};
use object::elf::{FileHeader64, PT_LOAD, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, endian};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Physical address of entries that have none (vmalloc space, the page array): -1, in all kernels since 4.11.
const NO_PADDR: u64 = u64::MAX;

const WANTED: &str = "a 64-bit little-endian ELF core file with its program headers";

/// A stretch of kernel virtual memory whose physical place is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    phys: PhysRange,
    vaddr: u64,
    offset: u64,
    /// Whether it is a mapping of the kernel's image of its own, beside the direct map of all memory.
    image: bool,
}

impl Segment {
    fn paddr_of(&self, vaddr: u64) -> Option<PhysAddr> {
        let offset = vaddr.checked_sub(self.vaddr).filter(|offset| *offset < self.phys.len())?;
        self.phys.start().checked_add(offset)
    }
}

/// An open `/proc/kcore` with the map of its segments as it was when it was opened.
#[derive(Debug)]
pub struct Kcore {
    path: PathBuf,
    file: File,
    segments: Vec<Segment>,
}

impl Kcore {
    /// Reads the headers of `file`, never its contents.
    pub(crate) fn new(path: PathBuf, file: File) -> Result<Self, HostError> {
        let table = match read_headers(&file) {
            Ok(table) => table,
            Err(source) => return Err(HostError::Read { path, source, hint: "" }),
        };
        let segments = parse_segments(&table).map_err(|fault| fault.in_file(&path))?;
        Ok(Self { path, file, segments })
    }

    /// Fills `buf` with the physical memory at `start`. Memory that the kernel does not give out at all is an error;
    /// offline or broken pages read as zeros (fs/proc/kcore.c).
    pub fn read_phys(&self, start: PhysAddr, buf: &mut [u8]) -> Result<(), HostError> {
        let outside =
            || HostError::NotInKcore { path: self.path.clone(), start: start.0, len: buf.len() as u64 };
        let whole = PhysRange::from_len(start, buf.len() as u64).ok_or_else(outside)?;
        let mut pieces = Vec::new();
        let mut next = whole.start();
        while next < whole.end() {
            let segment =
                self.segments.iter().find(|segment| segment.phys.contains(next)).ok_or_else(outside)?;
            let end = segment.phys.end().min(whole.end());
            let offset = segment.offset.checked_add(next.0 - segment.phys.start().0).ok_or_else(outside)?;
            pieces.push((offset, end.0 - next.0));
            next = end;
        }
        let mut rest = buf;
        for (offset, len) in pieces {
            let Some((piece, after)) =
                usize::try_from(len).ok().and_then(|len| rest.split_at_mut_checked(len))
            else {
                break;
            };
            let read = self.file.read_exact_at(piece, offset);
            read.map_err(|source| HostError::Read { path: self.path.clone(), source, hint: "" })?;
            rest = after;
        }
        Ok(())
    }

    /// What to add to a physical address to get its virtual address in the kernel's direct map of all memory.
    pub fn direct_map_offset(&self) -> Option<u64> {
        let mapped = self.segments.iter().find(|segment| !segment.image)?;
        mapped.vaddr.checked_sub(mapped.phys.start().0)
    }

    /// Where the kernel's variable at the virtual address `vaddr` lies in memory; `None` where that is not mapped.
    pub fn paddr_of(&self, vaddr: u64) -> Option<PhysAddr> {
        self.segments.iter().find_map(|segment| segment.paddr_of(vaddr))
    }

    /// The running kernel's image, `_text` to `_end`; `None` where it has no mapping of its own (PowerPC).
    pub fn kernel_text(&self) -> Option<KernelText> {
        let text = self.segments.iter().find(|segment| segment.image)?;
        Some(KernelText { paddr: text.phys.start(), vaddr: text.vaddr, size: text.phys.len() })
    }
}

/// The file's start up to the end of its program headers.
fn read_headers(file: &File) -> io::Result<Vec<u8>> {
    const EHDR: u64 = size_of::<FileHeader64<LittleEndian>>() as u64;
    const PHDR: u64 = size_of::<ProgramHeader64<LittleEndian>>() as u64;
    let mut bytes = Vec::new();
    file.take(EHDR).read_to_end(&mut bytes)?;
    let Ok(header) = FileHeader64::<endian::Endianness>::parse(bytes.as_slice()) else {
        return Ok(bytes);
    };
    let Ok(endian) = header.endian() else {
        return Ok(bytes);
    };
    let table = u64::from(header.e_phnum(endian)) * PHDR;
    let end = header.e_phoff(endian).saturating_add(table);
    // The kernel puts the table right behind the file header; at most 65535 entries fit, 3.5 MiB.
    if end > EHDR + u64::from(u16::MAX) * PHDR {
        return Ok(bytes);
    }
    file.take(end - bytes.len() as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse_segments(bytes: &[u8]) -> Result<Vec<Segment>, Fault> {
    let fault = |error: object::read::Error| Fault::new(&error.to_string(), WANTED);
    let header = FileHeader64::<LittleEndian>::parse(bytes).map_err(fault)?;
    let endian = LittleEndian;
    let headers = header.program_headers(endian, bytes).map_err(fault)?;
    let machine = Machine::from_number(header.e_machine(endian).0);
    let image = machine.and_then(Machine::kernel_image_vaddr);
    let mut segments: Vec<Segment> = headers
        .iter()
        .filter(|entry| entry.p_type(endian) == PT_LOAD && entry.p_paddr(endian) != NO_PADDR)
        .filter_map(|entry| {
            let phys = PhysRange::from_len(PhysAddr(entry.p_paddr(endian)), entry.p_memsz(endian))?;
            let (vaddr, offset) = (entry.p_vaddr(endian), entry.p_offset(endian));
            Some(Segment { phys, vaddr, offset, image: image.is_some_and(|image| vaddr >= image) })
        })
        .filter(|segment| !segment.phys.is_empty())
        .collect();
    // The direct map before the kernel's own mapping of the same memory.
    segments.sort_by_key(|segment| (segment.image, segment.phys));
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use elfcorehdr::{Contents, Load, Machine, Note, build};
    use proptest::prelude::*;
    use std::io::Write;

    const DIRECT_MAP: u64 = 0xff14_57d9_8000_0000;

    /// A piece of the kernel's address space as /proc/kcore would show it, `data` of the file from `offset` on.
    fn load(vaddr: u64, paddr: u64, offset: u64, size: u64) -> Load {
        Load { paddr: PhysAddr(paddr), vaddr, offset: PhysAddr(offset), size }
    }

    /// The kernel's image twice, and two stretches of memory with nothing between them but a page that has no place.
    fn loads() -> [Load; 4] {
        [
            load(0xffff_ffff_9fc0_0000, 0x3000, 0x1000, 0x800),
            load(0xff73_300a_0000_0000, 0x10_0000, 0x7000, 0x1000),
            load(DIRECT_MAP + 0x3000, 0x3000, 0x1000, 0x2000),
            load(DIRECT_MAP + 0x5000, 0x5000, 0x4000, 0x1000),
        ]
    }

    fn headers() -> Vec<u8> {
        let note = Note { paddr: PhysAddr(0x200), size: 0x400 };
        let mut bytes = vec![0; 0x1000];
        let contents =
            Contents { machine: Machine::X86_64, cpu_notes: &[], vmcoreinfo: note, loads: &loads() };
        build(&contents, &mut bytes).unwrap();
        // The second one is vmalloc space: it has no physical address.
        let second = elfcorehdr::layout::slot_offset(2).unwrap() + elfcorehdr::layout::phdr::PADDR;
        bytes[second..second + 8].fill(0xff);
        bytes
    }

    /// The file: byte `n` behind the headers is `n / 256`, so that each 256 bytes can be told apart.
    fn kcore(bytes: &[u8]) -> Result<Kcore, HostError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        for at in (0x1000..0x8000).step_by(256) {
            file.write_all_at(&[(at / 256) as u8; 256], at).unwrap();
        }
        io::Seek::rewind(&mut file).unwrap();
        Kcore::new("/proc/kcore".into(), file)
    }

    #[test]
    fn physical_memory_is_found() {
        let kcore = kcore(&headers()).unwrap();
        // physical address, length, first and last byte read
        let cases = [
            (0x3000, 1, 0x10, 0x10),
            (0x37ff, 2, 0x17, 0x18),
            (0x4ff0, 0x20, 0x2f, 0x40),
            (0x5f00, 0x100, 0x4f, 0x4f),
        ];
        for (start, len, first, last) in cases {
            let mut bytes = vec![0; len];
            kcore.read_phys(PhysAddr(start), &mut bytes).unwrap();
            assert_eq!((bytes[0], bytes[len - 1]), (first, last), "{len:#x} bytes at {start:#x}");
        }
        kcore.read_phys(PhysAddr(0x9000), &mut []).unwrap();
        assert_eq!(kcore.direct_map_offset(), Some(DIRECT_MAP));
        let text = KernelText { paddr: PhysAddr(0x3000), vaddr: 0xffff_ffff_9fc0_0000, size: 0x800 };
        assert_eq!(kcore.kernel_text(), Some(text));
    }

    #[test]
    fn addresses_of_the_kernel_translate() {
        let kcore = kcore(&headers()).unwrap();
        for (vaddr, expected) in [
            (0xffff_ffff_9fc0_0000, Some(0x3000)),
            (0xffff_ffff_9fc0_07ff, Some(0x37ff)),
            (0xffff_ffff_9fc0_0800, None),
            (0xffff_ffff_9fbf_ffff, None),
            (DIRECT_MAP + 0x5000, Some(0x5000)),
            (0xff73_300a_0000_0000, None),
        ] {
            assert_eq!(kcore.paddr_of(vaddr), expected.map(PhysAddr), "{vaddr:#x}");
        }
    }

    #[test]
    fn memory_that_is_not_given_out() {
        let kcore = kcore(&headers()).unwrap();
        for (start, len) in [
            (0x2fff, 1),
            (0x2fff, 2),
            (0x5fff, 2),
            (0x6000, 1),
            (0x10_0000, 16),
            (u64::MAX, 1),
            (u64::MAX, 2),
        ] {
            let error = kcore.read_phys(PhysAddr(start), &mut vec![0; len]).unwrap_err();
            let text = format!(
                "/proc/kcore does not hold all of the {len:#x} bytes of physical memory at {start:#x}"
            );
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn files_that_are_no_core() {
        let whole = headers();
        let mut no_elf = whole.clone();
        no_elf[1] = b'X';
        let mut far_table = whole.clone();
        far_table[0x20..0x28].fill(0xff);
        for wrong in [&whole[..0], &whole[..63], &no_elf, &far_table] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(wrong).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            let error = Kcore::new("/proc/kcore".into(), file).unwrap_err();
            assert!(matches!(error, HostError::Malformed { .. }), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_headers_are_taken_or_refused(
            changes in prop::collection::vec((0usize..0x200, any::<u8>()), 0..8),
            start in prop_oneof![0x2f00..0x6100u64, any::<u64>()],
        ) {
            let mut bytes = headers();
            changes.into_iter().for_each(|(at, value)| bytes[at] = value);
            if let Ok(kcore) = kcore(&bytes) {
                let _ = kcore.read_phys(PhysAddr(start), &mut [0; 64]);
                let _ = (kcore.direct_map_offset(), kcore.kernel_text());
            }
        }
    }
}
