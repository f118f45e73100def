//! What the crash header says of this machine, and where it goes.

use std::borrow::Cow;

use elfcorehdr::{Contents, Load, Note, PhysRange};
use host::Host;

use crate::absent;
use crate::arch;
use crate::error::{PlanError, Refusal};
use crate::layout::Space;
use crate::plan::{Keeper, Segment, SegmentKind, Warning};

/// A crash header with its place, and the zeros that it points to.
pub(crate) struct CrashHeader {
    place: PhysRange,
    bytes: Vec<u8>,
    absent_notes: Option<PhysRange>,
    backup: Option<PhysRange>,
    cpu_notes: usize,
    absent_cpus: Vec<u32>,
    memory: Vec<PhysRange>,
}

impl CrashHeader {
    /// Where the header is, with its room to grow.
    pub(crate) fn place(&self) -> PhysRange {
        self.place
    }

    /// Number of CPUs with a note.
    pub(crate) fn cpu_notes(&self) -> usize {
        self.cpu_notes
    }

    /// CPUs whose notes point to zeros.
    pub(crate) fn absent_cpus(&self) -> &[u32] {
        &self.absent_cpus
    }

    /// The memory that the dump will hold.
    pub(crate) fn memory(&self) -> &[PhysRange] {
        &self.memory
    }

    /// Where purgatory copies low memory, where a dump is to hold that.
    pub(crate) fn backup(&self) -> Option<PhysRange> {
        self.backup
    }

    /// Memory that the capture kernel must not use: it reads the header, the notes and the copy of low memory out of it.
    pub(crate) fn hidden(&self) -> impl Iterator<Item = PhysRange> {
        [self.place].into_iter().chain(self.absent_notes).chain(self.backup)
    }

    /// The segments.
    pub(crate) fn segments<'a>(&self) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        let zeros = |kind| move |place| Segment { kind, place, data: Cow::Borrowed(&[]) };
        let notes = self.absent_notes.map(zeros(SegmentKind::AbsentNotes));
        let backup = self.backup.map(zeros(SegmentKind::Backup));
        let header = Segment {
            kind: SegmentKind::Elfcorehdr,
            place: self.place,
            data: Cow::Owned(self.bytes.clone()),
        };
        notes.into_iter().chain(backup).chain([header])
    }
}

/// Makes the header of the machine as it is now and takes its place at the top of `space`.
///
/// The place has the room that `keeper` may fill, or just the size that the header has now.
pub(crate) fn crash_header(
    host: &Host,
    keeper: Keeper,
    space: &mut Space,
    warnings: &mut Vec<Warning>,
) -> Result<CrashHeader, PlanError> {
    let memory: Vec<PhysRange> = host.expected_ram()?.iter().collect();
    let low = host.low_memory();
    let backup = if arch::KEEPS_LOW_MEMORY {
        Some(space.take_high(SegmentKind::Backup.name(), low.len(), arch::SEGMENT_ALIGN, None)?)
    } else {
        None
    };
    let copied = backup.map(|place| (low, place));
    let loads = loads(host, copied, &memory, warnings)?;
    let possible = host.cpus()?.possible;
    let need = elfcorehdr::size_for(possible.len().saturating_add(1).saturating_add(loads.len()));
    let room = match keeper {
        Keeper::Nobody => need as u64,
        Keeper::Kernel => {
            let reported = host.kexec()?.elfcorehdr_size.ok_or(Refusal::NoCrashHotplug)?;
            elfcorehdr::room_for(reported, arch::SEGMENT_ALIGN)
        }
        Keeper::Module => module_room(loads.len(), possible.len()),
    };
    if need as u64 > room {
        return Err(PlanError::HeaderRoom { need, room });
    }
    let place = space.take_high(SegmentKind::Elfcorehdr.name(), room, arch::SEGMENT_ALIGN, None)?;
    let notes = Notes::new(host, &possible, space)?;
    let mut bytes = vec![0; need];
    let contents = Contents {
        machine: arch::MACHINE,
        cpu_notes: &notes.notes,
        vmcoreinfo: host.vmcoreinfo()?,
        loads: &loads,
    };
    elfcorehdr::build(&contents, &mut bytes)?;
    let (cpu_notes, absent_notes, absent_cpus) = (notes.notes.len(), notes.zeros, notes.absent);
    Ok(CrashHeader { place, bytes, absent_notes, backup, cpu_notes, absent_cpus, memory })
}

/// Bytes for a header that the module lets grow: as many memory entries more as the kernel plans for its own handler
/// (CONFIG_CRASH_MAX_MEMORY_RANGES, 8192). They cost reserved memory only: the header counts an entry once it is used.
fn module_room(loads: usize, cpus: usize) -> u64 {
    const MORE_ENTRIES: usize = 8192;
    let entries = cpus.saturating_add(1).saturating_add(loads).saturating_add(MORE_ENTRIES);
    (elfcorehdr::size_for(entries.min(elfcorehdr::MAX_ENTRIES)) as u64).next_multiple_of(arch::SEGMENT_ALIGN)
}

/// The kernel's text, where it has a mapping of its own, or low memory, `copied` from here to there; then all memory. Thus the
/// first entry, which cannot go, is one that never has to.
fn loads(
    host: &Host,
    copied: Option<(PhysRange, PhysRange)>,
    memory: &[PhysRange],
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Load>, PlanError> {
    let mut loads = Vec::with_capacity(memory.len() + 1);
    if host.machine().kernel_image_vaddr().is_some() {
        match host.kernel_text()? {
            Some(text) => {
                loads.push(Load { paddr: text.paddr, vaddr: text.vaddr, offset: text.paddr, size: text.size })
            }
            None => warnings.push(Warning::NoKernelText),
        }
    }
    let direct_map = host.direct_map_offset();
    if direct_map.is_none() {
        warnings.push(Warning::NoDirectMap);
    }
    let load = |range: PhysRange, from: PhysRange| Load {
        paddr: range.start(),
        vaddr: direct_map.map_or(0, |offset| offset.wrapping_add(range.start().0)),
        offset: from.start(),
        size: range.len(),
    };
    loads.extend(copied.map(|(low, place)| load(low, place)));
    loads.extend(memory.iter().map(|range| load(*range, *range)));
    Ok(loads)
}

/// A note per possible CPU.
struct Notes {
    notes: Vec<Note>,
    absent: Vec<u32>,
    zeros: Option<PhysRange>,
}

impl Notes {
    /// The kernel tells where the registers of present CPUs are saved; those of absent ones are worked out where that can
    /// be done for certain. A note has to point to real memory, and one that is not filled to zeros: what is left points to
    /// zeros in an area of our own, which is taken from `space`.
    fn new(host: &Host, possible: &[u32], space: &mut Space) -> Result<Self, PlanError> {
        let known: Vec<Option<Note>> =
            possible.iter().map(|cpu| host.crash_notes(*cpu)).collect::<Result<_, _>>()?;
        if let Some(notes) = known.iter().copied().collect() {
            return Ok(Self { notes, absent: Vec::new(), zeros: None });
        }
        if let Some(notes) = absent::notes(host, possible, &known) {
            return Ok(Self { notes, absent: Vec::new(), zeros: None });
        }
        let size = known.iter().flatten().map(|note| note.size).max().unwrap_or(arch::CRASH_NOTES_SIZE);
        let zeros = space.take_high(SegmentKind::AbsentNotes.name(), size, arch::SEGMENT_ALIGN, None)?;
        let own = Note { paddr: zeros.start(), size };
        let absent =
            possible.iter().zip(&known).filter(|(_, note)| note.is_none()).map(|(cpu, _)| *cpu).collect();
        let notes = known.into_iter().map(|note| note.unwrap_or(own)).collect();
        Ok(Self { notes, absent, zeros: Some(zeros) })
    }
}
