//! The ELF core file: headers, notes, and the memory in it by physical address.

use std::io;

use elfcorehdr::{Machine, PhysAddr};
use object::elf::{self, FileHeader64, ProgramHeader64};
use object::{LittleEndian as LE, pod};

use crate::arch::{self, Arch, Mapping, PRSTATUS_PID, PRSTATUS_REGISTERS};
use crate::source::{ReadAt, VirtAddr};
use crate::vmcoreinfo::{InfoError, VmcoreInfo};

/// Program header tables beyond this many bytes are refused: 65534 entries of 56 bytes, ELF's most without extensions.
const MAX_ENTRIES: u16 = 0xfffe;
/// A vmcoreinfo note larger than this is refused. Kernels write at most one page.
const MAX_VMCOREINFO: u64 = 1 << 20;
/// Note names longer than this are not ours ("CORE", "VMCOREINFO", "VMCOREDD").
const MAX_NAME: u64 = 64;
/// A note's header: three 32-bit numbers.
const NOTE_HEADER: u64 = 12;

/// Why a core could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// The source cannot be read there.
    #[error("cannot read {len} bytes at offset {offset:#x} of the core: {source}")]
    Read {
        /// File offset, in bytes.
        offset: u64,
        /// How many bytes were asked for.
        len: usize,
        /// The system's error.
        source: io::Error,
    },
    /// Not the file expected.
    #[error(
        "not an ELF core of a 64-bit little-endian kernel: {field} at offset {offset:#x} is {found:#x}, wanted {wanted}"
    )]
    Header {
        /// The header's field, by its name in the ELF specification.
        field: &'static str,
        /// Its file offset, in bytes.
        offset: u64,
        /// Its value.
        found: u64,
        /// What it must be.
        wanted: &'static str,
    },
    /// A physical address that no LOAD covers.
    #[error(
        "physical address {address} is not in the core ({wanted} bytes wanted): the memory was not listed in the crash header, or the core is cut short"
    )]
    NotInCore {
        /// The first address that is missing.
        address: PhysAddr,
        /// How many bytes from there were asked for.
        wanted: usize,
    },
    /// A virtual address that the kernel's page tables do not map.
    #[error(
        "virtual address {address} is not mapped: entry {entry:#x} of the level {level} page table is not present"
    )]
    NotMapped {
        /// The address asked for.
        address: VirtAddr,
        /// Page table level: 5 or 4 at the top, 1 at the bottom.
        level: u8,
        /// The entry found.
        entry: u64,
    },
    /// A virtual address outside the linear map, which is all that is read of a ppc64 kernel that does not tell of what kind its page
    /// tables are.
    #[error("virtual address {address} is not in the linear map, which starts at 0xc000000000000000")]
    NotLinear {
        /// The address asked for.
        address: VirtAddr,
    },
    /// No vmcoreinfo note.
    #[error("the core has no VMCOREINFO note: without it neither symbols nor page tables are known")]
    NoVmcoreInfo,
    /// vmcoreinfo lacks something.
    #[error(transparent)]
    Info(#[from] InfoError),
}

/// A stretch of the file as a program header describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Physical address of the first byte.
    pub paddr: PhysAddr,
    /// Kernel virtual address of the first byte, 0 where the header has none.
    pub vaddr: VirtAddr,
    /// File offset of the first byte.
    pub offset: u64,
    /// Bytes that the file holds: the lesser of p_filesz and p_memsz.
    pub size: u64,
}

impl Segment {
    /// The file offset of `address`, and the bytes from there to the segment's end.
    fn locate(&self, address: PhysAddr) -> Option<(u64, u64)> {
        let into = address.0.checked_sub(self.paddr.0)?;
        let left = self.size.checked_sub(into).filter(|left| *left > 0)?;
        Some((self.offset.checked_add(into)?, left))
    }

    /// The physical address of the byte at file offset `offset`.
    fn address_of(&self, offset: u64) -> Option<PhysAddr> {
        let into = offset.checked_sub(self.offset).filter(|into| *into < self.size)?;
        self.paddr.0.checked_add(into).map(PhysAddr)
    }
}

/// What a CPU's NT_PRSTATUS note says of it at the crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuState {
    /// The task that ran on the CPU.
    pub pid: u32,
    /// Instruction pointer.
    pub ip: VirtAddr,
    /// Stack pointer.
    pub sp: VirtAddr,
    /// Its registers by the names that the kernel prints, those that the note holds whole.
    pub registers: Vec<(&'static str, u64)>,
}

/// A note: where it lies in the file.
struct Note {
    name: Vec<u8>,
    kind: u32,
    desc_offset: u64,
    desc_size: u64,
}

/// An opened core.
#[derive(Debug)]
pub struct Core<S> {
    source: S,
    size: u64,
    arch: &'static Arch,
    notes: Vec<Segment>,
    loads: Vec<Segment>,
    /// The loads in the order of their file offsets.
    by_offset: Vec<Segment>,
}

impl<S: ReadAt> Core<S> {
    /// Reads and checks the headers of a core.
    ///
    /// # Errors
    /// [`CoreError::Read`] where the source fails, [`CoreError::Header`] where it is no ELF core of a
    /// machine that is known.
    pub fn open(source: S) -> Result<Self, CoreError> {
        let size = source.size().map_err(|source| CoreError::Read { offset: 0, len: 0, source })?;
        let (arch, headers) = program_headers(&source)?;
        let mut core =
            Self { source, size, arch, notes: Vec::new(), loads: Vec::new(), by_offset: Vec::new() };
        for header in headers {
            let segment = Segment {
                paddr: PhysAddr(header.p_paddr.get(LE)),
                vaddr: VirtAddr(header.p_vaddr.get(LE)),
                offset: header.p_offset.get(LE),
                size: header.p_filesz.get(LE).min(header.p_memsz.get(LE)),
            };
            match header.p_type.get(LE) {
                // Some writers leave a note's p_memsz at 0.
                elf::PT_NOTE => core.notes.push(Segment { size: header.p_filesz.get(LE), ..segment }),
                elf::PT_LOAD => core.loads.push(segment),
                _ => {}
            }
        }
        core.by_offset.clone_from(&core.loads);
        core.by_offset.sort_by_key(|load| load.offset);
        Ok(core)
    }

    /// The source that the core was opened on.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// The machine whose memory it is.
    pub fn machine(&self) -> Machine {
        self.arch.machine
    }

    /// How its kernel maps memory.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.arch.mapping
    }

    /// The core's size, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The memory in the core, in the order of its headers.
    pub fn loads(&self) -> &[Segment] {
        &self.loads
    }

    /// The physical address of the byte at a file offset; none outside memory (headers, notes).
    pub fn address_of(&self, offset: u64) -> Option<PhysAddr> {
        let after = self.by_offset.partition_point(|load| load.offset <= offset);
        self.by_offset.get(..after)?.last()?.address_of(offset)
    }

    /// Bytes that the headers promise beyond the end of the file; 0 for a whole core.
    pub fn missing_bytes(&self) -> u64 {
        let missing =
            |load: &Segment| load.offset.saturating_add(load.size).saturating_sub(self.size).min(load.size);
        self.loads.iter().map(missing).fold(0, u64::saturating_add)
    }

    /// Fills `buf` with the memory from physical address `address`.
    ///
    /// # Errors
    /// [`CoreError::NotInCore`] for memory that no LOAD covers, [`CoreError::Read`] for memory that cannot be read.
    pub fn read_phys(&self, address: PhysAddr, buf: &mut [u8]) -> Result<(), CoreError> {
        let mut address = address;
        let mut rest = buf;
        while !rest.is_empty() {
            let missing = CoreError::NotInCore { address, wanted: rest.len() };
            let Some((offset, left)) = self.loads.iter().find_map(|load| load.locate(address)) else {
                return Err(missing);
            };
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = rest.split_at_mut(now);
            self.read(offset, part)?;
            rest = after;
            address = PhysAddr(address.0.wrapping_add(now as u64));
        }
        Ok(())
    }

    /// Like [`read_phys`](Self::read_phys), through mapped windows where the source has them: on /proc/vmcore several times as fast.
    pub(crate) fn read_phys_mapped(&self, address: PhysAddr, buf: &mut [u8]) -> Result<(), CoreError> {
        let place = self.loads.iter().find_map(|load| load.locate(address));
        let Some((offset, _)) = place.filter(|(_, left)| *left >= buf.len() as u64) else {
            return self.read_phys(address, buf);
        };
        let within = offset % crate::PAGE as u64;
        let length = buf.len() + usize::try_from(within).unwrap_or(0);
        match self.source.map(offset - within, length) {
            Some(window) => {
                buf.copy_from_slice(&window.bytes()[length - buf.len()..]);
                let bad = (0..length.div_ceil(crate::PAGE)).find(|page| window.is_bad(*page));
                // Read anew: that names what cannot be read.
                bad.map_or(Ok(()), |_| self.read_phys(address, buf))
            }
            None => self.read_phys(address, buf),
        }
    }

    /// The first memory in the `len` bytes from `address`: where it starts, how many of them it has in one piece.
    pub(crate) fn next_piece(&self, address: PhysAddr, len: u64) -> Option<(PhysAddr, u64)> {
        let end = address.0.checked_add(len)?;
        let piece = |load: &Segment| {
            let start = load.paddr.0.max(address.0);
            let stop = load.paddr.0.saturating_add(load.size).min(end);
            (start < stop).then(|| (PhysAddr(start), stop - start))
        };
        self.loads.iter().filter_map(piece).min()
    }

    /// What the crashed kernel says of itself.
    ///
    /// # Errors
    /// [`CoreError::NoVmcoreInfo`], or a read that failed.
    pub fn vmcoreinfo(&self) -> Result<VmcoreInfo, CoreError> {
        let place = self.vmcoreinfo_place()?.ok_or(CoreError::NoVmcoreInfo)?;
        Ok(VmcoreInfo::parse(&self.read_vec(place.start, place.end - place.start)?))
    }

    /// The segments of notes, in the order of the headers: where in the file, and how long.
    pub(crate) fn note_segments(&self) -> &[Segment] {
        &self.notes
    }

    /// Where in the file the text of vmcoreinfo lies; none where there is no such note.
    pub(crate) fn vmcoreinfo_place(&self) -> Result<Option<std::ops::Range<u64>>, CoreError> {
        let note = self.find_note(|note| note.name == b"VMCOREINFO" && note.desc_size <= MAX_VMCOREINFO)?;
        Ok(note.map(|note| note.desc_offset..note.desc_offset.saturating_add(note.desc_size)))
    }

    /// The state of each CPU that wrote its note before the crash kernel started.
    ///
    /// # Errors
    /// A read that failed.
    pub fn cpus(&self) -> Result<Vec<CpuState>, CoreError> {
        let mut cpus = Vec::new();
        self.find_note(|note| {
            if note.name == b"CORE" && note.kind == elf::NT_PRSTATUS.0 {
                cpus.extend(self.cpu_state(note));
            }
            false
        })?;
        Ok(cpus)
    }

    fn cpu_state(&self, note: &Note) -> Option<CpuState> {
        let registers = &self.arch.registers;
        let needed = registers.ip.max(registers.sp) + 8;
        if note.desc_size < needed as u64 {
            return None;
        }
        let whole = (PRSTATUS_REGISTERS + registers.names.len() * 8).max(needed) as u64;
        let bytes = self.read_vec(note.desc_offset, note.desc_size.min(whole)).ok()?;
        let word = |at: usize| bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word));
        let pid = bytes.get(PRSTATUS_PID..)?.first_chunk().map(|pid| u32::from_le_bytes(*pid))?;
        let numbered = registers.names.iter().enumerate();
        Some(CpuState {
            pid,
            ip: VirtAddr(word(registers.ip)?),
            sp: VirtAddr(word(registers.sp)?),
            registers: numbered
                .filter_map(|(number, name)| Some((*name, word(PRSTATUS_REGISTERS + number * 8)?)))
                .collect(),
        })
    }

    /// The first note that `wanted` takes. A segment's notes end at one without a name, as the kernel has it.
    fn find_note(&self, mut wanted: impl FnMut(&Note) -> bool) -> Result<Option<Note>, CoreError> {
        for segment in &self.notes {
            let mut at = 0;
            while let Some((note, next)) = self.note_at(segment, at)? {
                if wanted(&note) {
                    return Ok(Some(note));
                }
                at = next;
            }
        }
        Ok(None)
    }

    /// The note `at` bytes into `segment`, and where the next one starts.
    fn note_at(&self, segment: &Segment, at: u64) -> Result<Option<(Note, u64)>, CoreError> {
        let padded = |size: u32| u64::from(size).next_multiple_of(4);
        let Some(left) = segment.size.checked_sub(at).filter(|left| *left > NOTE_HEADER) else {
            return Ok(None);
        };
        let Some(offset) = segment.offset.checked_add(at) else { return Ok(None) };
        let mut header = [0; NOTE_HEADER as usize];
        self.read(offset, &mut header)?;
        let word = |at: usize| header[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
        let (name_size, desc_size, kind) = (word(0), word(4), word(8));
        let size = NOTE_HEADER + padded(name_size) + padded(desc_size);
        if name_size == 0 || size > left {
            return Ok(None);
        }
        let name_offset = offset.saturating_add(NOTE_HEADER);
        let mut name = self.read_vec(name_offset, u64::from(name_size).min(MAX_NAME))?;
        while name.last() == Some(&0) {
            name.pop();
        }
        let desc_offset = name_offset.saturating_add(padded(name_size));
        Ok(Some((Note { name, kind, desc_offset, desc_size: u64::from(desc_size) }, at + size)))
    }

    /// Fills `buf` from a file offset.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), CoreError> {
        read(&self.source, offset, buf)
    }

    /// `len` bytes; the caller has bounded `len`.
    fn read_vec(&self, offset: u64, len: u64) -> Result<Vec<u8>, CoreError> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }
}

fn read(source: &impl ReadAt, offset: u64, buf: &mut [u8]) -> Result<(), CoreError> {
    let len = buf.len();
    source.read_at(offset, buf).map_err(|source| CoreError::Read { offset, len, source })
}

fn program_headers(source: &impl ReadAt) -> Result<(&'static Arch, Vec<ProgramHeader64<LE>>), CoreError> {
    let mut bytes = [0; size_of::<FileHeader64<LE>>()];
    read(source, 0, &mut bytes)?;
    let Ok((header, _)) = pod::from_bytes::<FileHeader64<LE>>(&bytes) else {
        return Err(CoreError::Header {
            field: "e_ident",
            offset: 0,
            found: 0,
            wanted: "a whole ELF header",
        });
    };
    let arch = check_header(header)?;
    let count = usize::from(header.e_phnum.get(LE));
    let mut table = vec![0; count * size_of::<ProgramHeader64<LE>>()];
    read(source, header.e_phoff.get(LE), &mut table)?;
    let headers = pod::slice_from_bytes::<ProgramHeader64<LE>>(&table, count);
    Ok((arch, headers.map(|(headers, _)| headers.to_vec()).unwrap_or_default()))
}

/// Checks the fields that decide how all else is read, and gives the machine.
fn check_header(header: &FileHeader64<LE>) -> Result<&'static Arch, CoreError> {
    let machine = header.e_machine.get(LE).0;
    let magic = u32::from_be_bytes(header.e_ident.magic);
    let rules = [
        ("e_ident", 0, u64::from(magic), magic == 0x7f45_4c46, "0x7f454c46 (\\x7fELF)"),
        (
            "EI_CLASS",
            4,
            u64::from(header.e_ident.class.0),
            header.e_ident.class == elf::ELFCLASS64,
            "2 (64-bit)",
        ),
        (
            "EI_DATA",
            5,
            u64::from(header.e_ident.data.0),
            header.e_ident.data == elf::ELFDATA2LSB,
            "1 (little-endian)",
        ),
        ("e_type", 16, u64::from(header.e_type.get(LE).0), header.e_type.get(LE) == elf::ET_CORE, "4 (core)"),
        ("e_phentsize", 54, u64::from(header.e_phentsize.get(LE)), header.e_phentsize.get(LE) == 56, "56"),
        (
            "e_phnum",
            56,
            u64::from(header.e_phnum.get(LE)),
            (1..=MAX_ENTRIES).contains(&header.e_phnum.get(LE)),
            "1 to 65534",
        ),
    ];
    for (field, offset, found, holds, wanted) in rules {
        if !holds {
            return Err(CoreError::Header { field, offset, found, wanted });
        }
    }
    arch::find(machine).ok_or(CoreError::Header {
        field: "e_machine",
        offset: 18,
        found: u64::from(machine),
        wanted: "62 (x86_64) or 21 (ppc64)",
    })
}
