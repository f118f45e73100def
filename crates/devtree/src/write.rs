//! Writing a flattened tree into a given slice.

use core::fmt;

use crate::layout::{
    BOOT_CPU_OFFSET, HEADER_SIZE, LAST_COMPATIBLE, MAGIC, MAX_DEPTH, RESERVED_SIZE, TOKEN_SIZE, VERSION,
    field, token,
};
use crate::read::{Properties, Reserved, Tree, aligned};

/// Why a tree could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// The slice is full.
    Full,
    /// A name with a NUL in it; a property, or a node other than the root, without a name; a root with one.
    Name,
    /// A property outside all nodes, or behind a node that lies in the same node; a node beside the root; an end of
    /// what did not begin; the end of the tree while a node is open, or without any node.
    Place,
    /// Nodes more than [`MAX_DEPTH`] deep.
    TooDeep,
    /// The tree to copy has no node `/cpus`.
    NoCpus,
    /// Reserved memory at address 0 of size 0: it would end the reserve map.
    Reserved,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "device tree: no room for more",
            Self::Name => "device tree: a name that is empty, or has a zero byte in it",
            Self::Place => "device tree: a property or node where none can be",
            Self::TooDeep => "device tree: nodes are too deep",
            Self::NoCpus => "device tree: it has no node /cpus",
            Self::Reserved => "device tree: an empty entry for the reserve map",
        })
    }
}

impl core::error::Error for WriteError {}

/// A tree that is being written.
///
/// The blocks are laid down in the order in which libfdt wants them to change a tree later: header, reserve map,
/// structure, strings, free space. New strings are kept backwards at the end of the slice until the structure's size
/// is known; so their offsets are known from the start.
#[derive(Debug)]
pub struct Writer<'b, 'n> {
    out: &'b mut [u8],
    /// The structure block: where it starts, and where the next token goes.
    structure: usize,
    end: usize,
    /// Strings of the tree that is copied; they come first.
    base: &'n [u8],
    /// Bytes of strings that are kept at the end of `out`.
    added: usize,
    /// Nodes that are open, and that were when the writer was handed out.
    depth: usize,
    floor: usize,
    takes_properties: bool,
    has_root: bool,
    /// Properties of a node that is likely to have the same ones as the nodes to come: where their names are is
    /// known.
    sample: Option<Properties<'n>>,
    following: Option<Properties<'n>>,
}

impl<'b, 'n> Writer<'b, 'n> {
    /// Begins a tree in `out`. `boot_cpu` is the hardware number of the CPU that boots; `reserved` becomes the
    /// reserve map.
    ///
    /// # Errors
    /// [`WriteError::Full`], [`WriteError::Reserved`].
    pub fn new(
        out: &'b mut [u8],
        boot_cpu: u32,
        reserved: impl IntoIterator<Item = Reserved>,
    ) -> Result<Self, WriteError> {
        Self::with_strings(out, boot_cpu, reserved, &[])
    }

    /// Begins a copy of `tree`, none of its nodes copied yet.
    pub(crate) fn copying(tree: &Tree<'n>, out: &'b mut [u8]) -> Result<Self, WriteError> {
        Self::with_strings(out, tree.boot_cpu(), tree.reserved(), tree.strings())
    }

    fn with_strings(
        out: &'b mut [u8],
        boot_cpu: u32,
        reserved: impl IntoIterator<Item = Reserved>,
        base: &'n [u8],
    ) -> Result<Self, WriteError> {
        // Offsets have 32 bits.
        let length = out.len().min(u32::MAX as usize);
        let out = out.get_mut(..length).unwrap_or_default();
        let mut writer = Self {
            out,
            structure: HEADER_SIZE,
            end: HEADER_SIZE,
            base,
            added: 0,
            depth: 0,
            floor: 0,
            takes_properties: false,
            has_root: false,
            sample: None,
            following: None,
        };
        writer.room_for(0)?;
        for entry in reserved {
            if entry == (Reserved { address: 0, size: 0 }) {
                return Err(WriteError::Reserved);
            }
            writer.reserve(entry)?;
        }
        writer.reserve(Reserved { address: 0, size: 0 })?;
        writer.structure = writer.end;
        writer.put(BOOT_CPU_OFFSET, &boot_cpu.to_be_bytes());
        Ok(writer)
    }

    fn reserve(&mut self, entry: Reserved) -> Result<(), WriteError> {
        self.room_for(RESERVED_SIZE)?;
        self.put(self.end, &entry.address.to_be_bytes());
        self.put(self.end.wrapping_add(8), &entry.size.to_be_bytes());
        self.end = self.end.wrapping_add(RESERVED_SIZE);
        Ok(())
    }

    /// Begins a node in the node that is open. `name` includes the unit address; it is empty for the root.
    ///
    /// # Errors
    /// [`WriteError::Full`], [`WriteError::Name`], [`WriteError::Place`], [`WriteError::TooDeep`].
    pub fn begin_node(&mut self, name: &[u8]) -> Result<(), WriteError> {
        let is_root = self.depth == 0;
        if is_root && self.has_root {
            return Err(WriteError::Place);
        }
        if name.contains(&0) || name.is_empty() != is_root {
            return Err(WriteError::Name);
        }
        if self.depth >= MAX_DEPTH {
            return Err(WriteError::TooDeep);
        }
        let padded = aligned(name.len().saturating_add(1));
        self.room_for(padded.saturating_add(TOKEN_SIZE))?;
        self.token(token::BEGIN_NODE);
        self.padded(name, padded);
        self.depth = self.depth.wrapping_add(1);
        (self.takes_properties, self.has_root) = (true, true);
        self.following = self.sample.clone();
        Ok(())
    }

    /// Adds a property to the node that is open.
    ///
    /// # Errors
    /// [`WriteError::Full`], [`WriteError::Name`], [`WriteError::Place`].
    pub fn property(&mut self, name: &[u8], value: &[u8]) -> Result<(), WriteError> {
        if !self.takes_properties {
            return Err(WriteError::Place);
        }
        if name.is_empty() || name.contains(&0) {
            return Err(WriteError::Name);
        }
        let padded = aligned(value.len());
        self.room_for(padded.saturating_add(3 * TOKEN_SIZE))?;
        let name = self.name(name, padded.saturating_add(3 * TOKEN_SIZE))?;
        self.token(token::PROPERTY);
        self.token(value.len() as u32);
        self.token(name);
        self.padded(value, padded);
        Ok(())
    }

    /// Ends the node that is open.
    ///
    /// # Errors
    /// [`WriteError::Full`], [`WriteError::Place`].
    pub fn end_node(&mut self) -> Result<(), WriteError> {
        if self.depth <= self.floor {
            return Err(WriteError::Place);
        }
        self.room_for(TOKEN_SIZE)?;
        self.token(token::END_NODE);
        (self.depth, self.takes_properties) = (self.depth.wrapping_sub(1), false);
        Ok(())
    }

    /// Ends the tree and gives its size in bytes.
    ///
    /// # Errors
    /// [`WriteError::Place`].
    pub fn finish(mut self) -> Result<usize, WriteError> {
        self.end_tree()
    }

    /// Ends the tree with all the rest of the slice as free space, zeroed: its total size is the slice's. Gives the
    /// bytes that are in use.
    ///
    /// # Errors
    /// [`WriteError::Place`].
    pub fn finish_with_room(mut self) -> Result<usize, WriteError> {
        let used = self.end_tree()?;
        if let Some(free) = self.out.get_mut(used..) {
            free.fill(0);
        }
        self.put(field::TOTAL_SIZE, &(self.out.len() as u32).to_be_bytes());
        Ok(used)
    }

    fn end_tree(&mut self) -> Result<usize, WriteError> {
        if self.depth != 0 || !self.has_root {
            return Err(WriteError::Place);
        }
        // There is always room left for this token and the strings.
        self.token(token::END);
        let (strings, added) = (self.end, self.end.wrapping_add(self.base.len()));
        self.put(strings, self.base);
        let total = added.wrapping_add(self.added);
        let kept = self.out.len().wrapping_sub(self.added);
        if let Some(backwards) = self.out.get_mut(kept..) {
            backwards.reverse();
        }
        // From lower to higher: the two places may overlap.
        for at in 0..self.added {
            if let Some(byte) = self.out.get(kept.wrapping_add(at)).copied() {
                self.put(added.wrapping_add(at), &[byte]);
            }
        }
        for (place, value) in [
            (0, MAGIC as usize),
            (field::TOTAL_SIZE, total),
            (field::STRUCTURE, self.structure),
            (field::STRINGS, strings),
            (field::RESERVE_MAP, HEADER_SIZE),
            (field::VERSION, VERSION as usize),
            (field::LAST_COMPATIBLE, LAST_COMPATIBLE as usize),
            (field::STRINGS_SIZE, total.wrapping_sub(strings)),
            (field::STRUCTURE_SIZE, strings.wrapping_sub(self.structure)),
        ] {
            self.put(place, &(value as u32).to_be_bytes());
        }
        Ok(total)
    }

    /// Hands the writer to somebody who may write nodes into the node that is open, and nothing else. `sample` is a
    /// node that is likely to have the same properties.
    pub(crate) fn lend<E: From<WriteError>>(
        &mut self,
        depth: usize,
        sample: Option<Properties<'n>>,
        fill: impl FnOnce(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        (self.depth, self.floor, self.has_root) = (depth, depth, true);
        (self.sample, self.takes_properties) = (sample, false);
        fill(self)?;
        if self.depth != depth {
            return Err(WriteError::Place.into());
        }
        (self.depth, self.floor, self.sample) = (0, 0, None);
        Ok(())
    }

    /// Copies tokens of the tree that is copied.
    pub(crate) fn copy(&mut self, tokens: &[u8]) -> Result<(), WriteError> {
        self.room_for(tokens.len())?;
        self.put(self.end, tokens);
        self.end = self.end.wrapping_add(tokens.len());
        Ok(())
    }

    /// Where the name of a property is in the strings block; it is added if it is nowhere, where besides it and
    /// `more` bytes fit.
    fn name(&mut self, name: &[u8], more: usize) -> Result<u32, WriteError> {
        if let Some(offset) = self.sampled(name) {
            return Ok(offset);
        }
        let kept = self.out.len().wrapping_sub(self.added);
        let added = self.out.get(kept..).unwrap_or_default();
        let known = find(self.base.iter(), name)
            .or_else(|| Some(self.base.len().wrapping_add(find(added.iter().rev(), name)?)));
        if let Some(offset) = known {
            return Ok(offset as u32);
        }
        let size = name.len().saturating_add(1);
        self.room_for(size.saturating_add(more))?;
        let offset = self.base.len().wrapping_add(self.added);
        for &byte in name.iter().chain(&[0]) {
            self.added = self.added.wrapping_add(1);
            self.put(self.out.len().wrapping_sub(self.added), &[byte]);
        }
        Ok(offset as u32)
    }

    /// Where the sample has the name: mostly right behind the one that was asked for last.
    fn sampled(&mut self, name: &[u8]) -> Option<u32> {
        let following = self.following.as_mut()?;
        let mut rest = following.clone();
        if let Some(found) = rest.find(|property| property.name == name) {
            *following = rest;
            return Some(found.name_offset);
        }
        let found = self.sample.clone()?.find(|property| property.name == name)?;
        Some(found.name_offset)
    }

    fn token(&mut self, number: u32) {
        self.put(self.end, &number.to_be_bytes());
        self.end = self.end.wrapping_add(TOKEN_SIZE);
    }

    /// Writes `bytes` and zeros behind them, `padded` in all.
    fn padded(&mut self, bytes: &[u8], padded: usize) {
        self.put(self.end, bytes);
        for at in bytes.len()..padded {
            self.put(self.end.wrapping_add(at), &[0]);
        }
        self.end = self.end.wrapping_add(padded);
    }

    /// Whether there is room for so many bytes besides what is always needed at the end.
    fn room_for(&self, bytes: usize) -> Result<(), WriteError> {
        let needed = [bytes, TOKEN_SIZE, self.base.len(), self.added];
        let needed = needed.into_iter().fold(self.end, usize::saturating_add);
        if needed <= self.out.len() { Ok(()) } else { Err(WriteError::Full) }
    }

    /// Writes `bytes` at a place for which there was room.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.out.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) {
            place.copy_from_slice(bytes);
        }
    }
}

/// Offset of `name` in a strings block: only whole strings, with the NUL that ends them.
fn find<'x>(strings: impl Iterator<Item = &'x u8>, name: &[u8]) -> Option<usize> {
    let (mut start, mut same) = (0, Some(0usize));
    for (at, &byte) in strings.enumerate() {
        if byte != 0 {
            same = same.filter(|&same| name.get(same) == Some(&byte)).map(|same| same.wrapping_add(1));
        } else if same == Some(name.len()) {
            return Some(start);
        } else {
            (start, same) = (at.wrapping_add(1), Some(0));
        }
    }
    None
}
