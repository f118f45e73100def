//! Single stores, and the order of them that makes an entry, unmakes it or gives it another size.

use super::UpdateError;
use crate::layout::{self, ehdr, phdr, slot_offset};
use crate::parse::Slot;
use crate::{Load, Note, PHDR_SIZE, PhysAddr};

/// Size of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 2 bytes.
    Two,
    /// 8 bytes.
    Eight,
}

impl Width {
    /// Bytes that the store writes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Eight => 8,
        }
    }
}

/// One store into a header: naturally aligned where the header is, so that it happens whole or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Byte of the header where it starts.
    pub offset: u32,
    /// How many bytes it writes.
    pub width: Width,
    /// What it writes, little-endian; of this number as many low bytes as it is wide.
    pub value: u64,
}

impl Store {
    /// The aligned word of 8 bytes in which it lies, as it is afterwards; `word` is as it was before.
    #[must_use]
    pub fn applied_to(self, mut word: [u8; 8]) -> [u8; 8] {
        match (self.width, word.get_mut(self.offset as usize & 6..)) {
            (Width::Two, Some([low, high, ..])) => [*low, *high] = (self.value as u16).to_le_bytes(),
            _ => word = self.value.to_le_bytes(),
        }
        word
    }

    /// Does this store in `header`, a copy in memory. Nothing is written where it does not fit.
    pub fn write_to(self, header: &mut [u8]) -> Result<(), UpdateError> {
        let have = header.len();
        let start = self.offset as usize;
        let need = start.saturating_add(self.width.bytes());
        let place = header.get_mut(start..).ok_or(UpdateError::TooShort { need, have })?;
        let is_written = match self.width {
            Width::Two => place.first_chunk_mut().map(|bytes| *bytes = (self.value as u16).to_le_bytes()),
            Width::Eight => place.first_chunk_mut().map(|bytes| *bytes = self.value.to_le_bytes()),
        };
        is_written.ok_or(UpdateError::TooShort { need, have })
    }
}

/// Most stores that one [`super::Plan`] holds: a new entry with its slot (7), and the end of an old one (7).
pub const MAX_STORES: usize = 14;

/// Stores in the order in which they must be done.
#[derive(Debug)]
pub(super) struct Stores {
    list: [Store; MAX_STORES],
    count: usize,
}

impl Default for Stores {
    fn default() -> Self {
        Self { list: [Store { offset: 0, width: Width::Eight, value: 0 }; MAX_STORES], count: 0 }
    }
}

impl Stores {
    pub(super) fn as_slice(&self) -> &[Store] {
        self.list.get(..self.count).unwrap_or_default()
    }

    /// None.
    pub(super) fn clear(&mut self) {
        self.count = 0;
    }

    /// Writes `load` into `slot`, which is free; `new_count` where the header must count one more slot for it.
    ///
    /// The addresses come before the type, because makedumpfile takes the difference of the two from any memory entry,
    /// even an empty one. `p_offset` comes after the type: the device-dump code of /proc/vmcore moves everything behind
    /// by a page if a free slot's `p_offset` is not page-aligned. The size comes last, in memory first, so that the file
    /// never seems to hold more than the memory. A slot that is not counted yet is not seen at all until it is whole.
    pub(super) fn fill(
        &mut self,
        header: &[u8],
        slot: u16,
        load: &Load,
        new_count: Option<u16>,
    ) -> Result<(), UpdateError> {
        let (base, old) = read(header, slot)?;
        if !old.is_zero() {
            return Err(UpdateError::SlotNotZero { slot: slot.into() });
        }
        let fields = [
            (phdr::VADDR, load.vaddr),
            (phdr::PADDR, load.paddr.0),
            (phdr::TYPE, u64::from(layout::PT_LOAD) | (u64::from(layout::PF_RWX) << 32)),
            (phdr::OFFSET, load.offset.0),
            (phdr::MEMSZ, load.size),
            (phdr::FILESZ, load.size),
        ];
        self.fields(base, old, fields);
        if let Some(count) = new_count {
            self.push(Store { offset: ehdr::PHNUM as u32, width: Width::Two, value: count.into() });
        }
        Ok(())
    }

    /// Makes the memory entry in `slot` a free slot: the way of [`Stores::fill`] backwards.
    pub(super) fn free(&mut self, header: &[u8], slot: u16) -> Result<(), UpdateError> {
        let (base, old) = read(header, slot)?;
        let fields =
            [phdr::FILESZ, phdr::MEMSZ, phdr::OFFSET, phdr::TYPE, phdr::PADDR, phdr::VADDR, phdr::ALIGN]
                .map(|field| (field, 0));
        self.fields(base, old, fields);
        Ok(())
    }

    /// Moves the end of the memory entry in `slot` so that it has `size` bytes. The file never seems to hold more than
    /// the memory.
    pub(super) fn resize(&mut self, header: &[u8], slot: u16, size: u64) -> Result<(), UpdateError> {
        let (base, old) = read(header, slot)?;
        let mut fields = [(phdr::MEMSZ, size), (phdr::FILESZ, size)];
        if size < old.field(phdr::MEMSZ) {
            fields.reverse();
        }
        self.fields(base, old, fields);
        Ok(())
    }

    /// Points the note in `slot` at another area. A capture kernel reads `p_offset` alone, so that store is the change;
    /// `p_paddr` is for people and tools.
    pub(super) fn point(&mut self, header: &[u8], slot: u16, paddr: PhysAddr) -> Result<(), UpdateError> {
        let (base, old) = read(header, slot)?;
        self.fields(base, old, [(phdr::PADDR, paddr.0), (phdr::OFFSET, paddr.0)]);
        Ok(())
    }

    /// Stores to the fields that do not hold their value yet.
    #[inline]
    fn fields<const COUNT: usize>(&mut self, base: u32, old: Slot<'_>, fields: [(usize, u64); COUNT]) {
        for (field, value) in fields {
            if old.field(field) != value {
                self.push(Store { offset: base + field as u32, width: Width::Eight, value });
            }
        }
    }

    fn push(&mut self, store: Store) {
        // Plans are made of at most one `fill` and one `clear`, or of less: they always fit.
        if let Some(place) = self.list.get_mut(self.count) {
            *place = store;
            self.count += 1;
        }
    }
}

/// A slot and the byte where it starts.
fn read(header: &[u8], slot: u16) -> Result<(u32, Slot<'_>), UpdateError> {
    let base = slot_offset(slot.into()).unwrap_or(usize::MAX);
    let (need, have) = (base.saturating_add(PHDR_SIZE), header.len());
    let bytes =
        header.get(base..).and_then(|rest| rest.first_chunk()).ok_or(UpdateError::TooShort { need, have })?;
    // A slot number has 16 bits, so the header's bytes are counted in 22.
    Ok((base as u32, Slot(bytes)))
}

/// The memory entry in `slot`.
pub(super) fn read_load(header: &[u8], slot: u16) -> Result<Load, UpdateError> {
    let (_, found) = read(header, slot)?;
    let settled = found.kind() == layout::PT_LOAD && found.field(phdr::FILESZ) == found.field(phdr::MEMSZ);
    if settled { Ok(found.load()) } else { Err(UpdateError::NotIndexed { slot: slot.into() }) }
}

/// The note in `slot`.
pub(super) fn read_note(header: &[u8], slot: u16) -> Result<Note, UpdateError> {
    let (_, found) = read(header, slot)?;
    if found.kind() == layout::PT_NOTE {
        Ok(found.note())
    } else {
        Err(UpdateError::NotIndexed { slot: slot.into() })
    }
}
