//! Reading a crash header, strictly.

use crate::layout::{self, EHDR_SIZE, MAX_ENTRIES, Machine, PHDR_SIZE, ehdr, phdr};
use crate::rules::{EntryFault, check_load, check_note};
use crate::{Load, Note, PhysAddr};
use core::fmt;

/// Why bytes are not a crash header that a capture kernel, and the tools that read its dump, would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Byte in the header where the field lies.
    pub offset: usize,
    /// The field by its ELF name.
    pub field: &'static str,
    /// What it holds.
    pub found: u64,
    /// What it should hold.
    pub wanted: Wanted,
}

/// What a field of a crash header should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wanted {
    /// Exactly this.
    Exactly(u64),
    /// This or more.
    AtLeast(u64),
    /// This or less.
    AtMost(u64),
    /// The number of an architecture that this crate knows.
    KnownMachine,
    /// A type of entry that belongs here.
    Type(&'static str),
    /// An entry that keeps the rules for its kind.
    Entry(EntryFault),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "elfcorehdr: {} at byte {:#x} is {:#x}, ", self.field, self.offset, self.found)?;
        match self.wanted {
            Wanted::Exactly(value) => write!(f, "wanted {value:#x}"),
            Wanted::AtLeast(value) => write!(f, "wanted {value:#x} or more"),
            Wanted::AtMost(value) => write!(f, "wanted {value:#x} or less"),
            Wanted::KnownMachine => {
                f.write_str("wanted")?;
                Machine::ALL.iter().enumerate().try_for_each(|(index, machine)| {
                    let between = if index == 0 { "" } else { " or" };
                    write!(f, "{between} {:#x} ({machine})", machine.number())
                })
            }
            Wanted::Type(which) => write!(f, "wanted {which}"),
            Wanted::Entry(fault) => write!(f, "but {fault}"),
        }
    }
}

impl core::error::Error for ParseError {}

/// A crash header that keeps all the rules.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    machine: Machine,
    table: &'a [[u8; PHDR_SIZE]],
    notes: usize,
}

impl<'a> Header<'a> {
    /// Reads a header that starts at the first of `bytes`; what lies behind its table (room to grow) is not looked
    /// at.
    ///
    /// Accepted is a settled header as a capture kernel and the tools behind it want it: notes from slot 0 on
    /// without a gap, none of them empty; at least one memory entry, sizes in file and memory equal; free slots all
    /// zero; the table at byte 64.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let (head, rest) = bytes.split_first_chunk::<EHDR_SIZE>().ok_or(ParseError {
            offset: bytes.len(),
            field: "length",
            found: bytes.len() as u64,
            wanted: Wanted::AtLeast(EHDR_SIZE as u64),
        })?;
        let machine = check_file_header(head)?;
        let count = check_count(head)?;
        let (slots, _) = rest.as_chunks::<PHDR_SIZE>();
        let table = slots.get(..count).ok_or(ParseError {
            offset: bytes.len(),
            field: "length",
            found: bytes.len() as u64,
            wanted: Wanted::AtLeast(crate::size_for(count) as u64),
        })?;
        let notes = check_table(machine, table)?;
        Ok(Self { machine, table, notes })
    }

    /// Architecture of the machine described.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// Slots that the header counts (`e_phnum`), free ones included.
    pub fn phnum(&self) -> usize {
        self.table.len()
    }

    /// Bytes of the header up to the end of its last counted slot.
    pub fn size(&self) -> usize {
        crate::size_for(self.table.len())
    }

    /// All slots that the header counts.
    pub(crate) fn slots(&self) -> impl DoubleEndedIterator<Item = Slot<'a>> + ExactSizeIterator + use<'a> {
        self.table.iter().map(Slot)
    }

    /// The notes, by slot. The builder puts one a CPU first and vmcoreinfo last.
    pub fn notes(&self) -> impl Iterator<Item = Note> + Clone + use<'a> {
        self.table.iter().take(self.notes).map(|slot| Slot(slot).note())
    }

    /// The memory entries, by slot, without free slots.
    pub fn loads(&self) -> impl Iterator<Item = Load> + Clone + use<'a> {
        let slots = self.table.iter().skip(self.notes).map(Slot);
        slots.filter(|slot| slot.kind() == layout::PT_LOAD).map(|slot| slot.load())
    }

    /// The memory entries that are not read from where the dump says the memory was: memory that was copied aside before
    /// the capture kernel ran. Each with the byte in the header of its `p_paddr`.
    pub fn copied(&self) -> impl Iterator<Item = (usize, Load)> + Clone + use<'a> {
        let slots = self.table.iter().map(Slot).enumerate().skip(self.notes);
        let loads = slots.filter(|(_, slot)| slot.kind() == layout::PT_LOAD);
        let loads = loads.map(|(index, slot)| (crate::size_for(index) + phdr::PADDR, slot.load()));
        loads.filter(|(_, load)| load.paddr != load.offset)
    }
}

/// Number at a field of a fixed-size structure, little-endian. Offsets are constants of [`layout`], so they fit.
fn number<const SIZE: usize>(structure: &[u8; SIZE], at: usize, bytes: usize) -> u64 {
    let mut value = [0; 8];
    value[..bytes].copy_from_slice(&structure[at..at + bytes]);
    u64::from_le_bytes(value)
}

fn check_file_header(head: &[u8; EHDR_SIZE]) -> Result<Machine, ParseError> {
    let exact: [(&'static str, usize, usize, u64); 8] = [
        ("e_ident magic", ehdr::MAGIC, 4, u64::from(u32::from_le_bytes(layout::MAGIC))),
        ("EI_CLASS", ehdr::CLASS, 1, u64::from(layout::ELFCLASS64)),
        ("EI_DATA", ehdr::DATA, 1, u64::from(layout::ELFDATA2LSB)),
        ("EI_VERSION", ehdr::IDENT_VERSION, 1, u64::from(layout::EV_CURRENT)),
        ("e_type", ehdr::TYPE, 2, u64::from(layout::ET_CORE)),
        ("e_version", ehdr::VERSION, 4, u64::from(layout::EV_CURRENT)),
        ("e_ehsize", ehdr::EHSIZE, 2, EHDR_SIZE as u64),
        ("e_phentsize", ehdr::PHENTSIZE, 2, PHDR_SIZE as u64),
    ];
    for (field, offset, bytes, value) in exact {
        let found = number(head, offset, bytes);
        if found != value {
            return Err(ParseError { offset, field, found, wanted: Wanted::Exactly(value) });
        }
    }
    let found = number(head, ehdr::PHOFF, 8);
    if found != EHDR_SIZE as u64 {
        let wanted = Wanted::Exactly(EHDR_SIZE as u64);
        return Err(ParseError { offset: ehdr::PHOFF, field: "e_phoff", found, wanted });
    }
    let found = number(head, ehdr::MACHINE, 2);
    u16::try_from(found).ok().and_then(Machine::from_number).ok_or(ParseError {
        offset: ehdr::MACHINE,
        field: "e_machine",
        found,
        wanted: Wanted::KnownMachine,
    })
}

fn check_count(head: &[u8; EHDR_SIZE]) -> Result<usize, ParseError> {
    let found = number(head, ehdr::PHNUM, 2);
    let wrong = |wanted| Err(ParseError { offset: ehdr::PHNUM, field: "e_phnum", found, wanted });
    match usize::try_from(found) {
        // A note and a memory entry are the least that makes a dump.
        Ok(count) if count < 2 => wrong(Wanted::AtLeast(2)),
        Ok(count) if count <= MAX_ENTRIES => Ok(count),
        _ => wrong(Wanted::AtMost(MAX_ENTRIES as u64)),
    }
}

/// Checks every slot; gives the number of notes.
fn check_table(machine: Machine, table: &[[u8; PHDR_SIZE]]) -> Result<usize, ParseError> {
    let is_note = |slot: &[u8; PHDR_SIZE]| Slot(slot).kind() == layout::PT_NOTE;
    let notes = table.iter().take_while(|slot| is_note(slot)).count();
    if notes == 0 {
        let found = table.first().map_or(0, |slot| u64::from(Slot(slot).kind()));
        let wanted = Wanted::Type("a note (PT_NOTE, 4): the notes start in slot 0");
        return Err(ParseError { offset: EHDR_SIZE + phdr::TYPE, field: "p_type", found, wanted });
    }
    for (index, slot) in table.iter().enumerate() {
        check_slot(machine, index, Slot(slot), index < notes)?;
    }
    if !table.iter().any(|slot| Slot(slot).kind() == layout::PT_LOAD) {
        let wanted = Wanted::AtLeast(notes as u64 + 1);
        let found = table.len() as u64;
        return Err(ParseError {
            offset: ehdr::PHNUM,
            field: "e_phnum without memory entries",
            found,
            wanted,
        });
    }
    Ok(notes)
}

fn check_slot(machine: Machine, index: usize, slot: Slot<'_>, among_notes: bool) -> Result<(), ParseError> {
    let base = crate::size_for(index);
    let wrong =
        |field, at, wanted| ParseError { offset: base + at, field, found: number(slot.0, at, 8), wanted };
    let entry = |fault: EntryFault| match fault {
        EntryFault::OutsideMachine { start, .. } if start != slot.field(phdr::OFFSET) => {
            wrong("p_paddr", phdr::PADDR, Wanted::Entry(fault))
        }
        EntryFault::OutsideMachine { .. } => wrong("p_offset", phdr::OFFSET, Wanted::Entry(fault)),
        _ => wrong("p_memsz", phdr::MEMSZ, Wanted::Entry(fault)),
    };
    match slot.kind() {
        layout::PT_NOTE if among_notes => check_note(machine, &slot.note()).map_err(entry)?,
        layout::PT_LOAD => check_load(machine, &slot.load()).map_err(entry)?,
        layout::PT_NULL => {
            return match slot.0.iter().position(|byte| *byte != 0) {
                None => Ok(()),
                Some(at) => Err(ParseError {
                    offset: base + at,
                    field: "free slot (PT_NULL)",
                    found: number(slot.0, at, 1),
                    wanted: Wanted::Exactly(0),
                }),
            };
        }
        kind => {
            let found = u64::from(kind);
            let wanted = Wanted::Type(if kind == layout::PT_NOTE {
                "memory (PT_LOAD, 1): notes come first, without a gap"
            } else {
                "a note (PT_NOTE, 4), memory (PT_LOAD, 1) or a free slot (PT_NULL, 0)"
            });
            return Err(ParseError { offset: base + phdr::TYPE, field: "p_type", found, wanted });
        }
    }
    let memsz = slot.field(phdr::MEMSZ);
    if slot.field(phdr::FILESZ) != memsz {
        return Err(wrong("p_filesz", phdr::FILESZ, Wanted::Exactly(memsz)));
    }
    Ok(())
}

/// One program header.
#[derive(Clone, Copy)]
pub(crate) struct Slot<'a>(pub(crate) &'a [u8; PHDR_SIZE]);

impl Slot<'_> {
    pub(crate) fn kind(self) -> u32 {
        let [a, b, c, d, ..] = *self.0;
        u32::from_le_bytes([a, b, c, d])
    }

    /// The aligned 8-byte word at `at`, a constant of [`phdr`].
    pub(crate) fn field(self, at: usize) -> u64 {
        number(self.0, at, 8)
    }

    pub(crate) fn is_zero(self) -> bool {
        *self.0 == [0; PHDR_SIZE]
    }

    /// The note as the capture kernel takes it: from `p_offset`, of `p_memsz` bytes.
    pub(crate) fn note(self) -> Note {
        Note { paddr: PhysAddr(self.field(phdr::OFFSET)), size: self.field(phdr::MEMSZ) }
    }

    pub(crate) fn load(self) -> Load {
        Load {
            paddr: PhysAddr(self.field(phdr::PADDR)),
            vaddr: self.field(phdr::VADDR),
            offset: PhysAddr(self.field(phdr::OFFSET)),
            size: self.field(phdr::MEMSZ),
        }
    }
}
