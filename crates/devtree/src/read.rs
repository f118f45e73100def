//! Reading a flattened tree, strictly.

use core::fmt;

use crate::layout::{
    HEADER_SIZE, LAST_COMPATIBLE, MAGIC, MAX_DEPTH, RESERVED_SIZE, TOKEN_SIZE, VERSION, field, token,
};

/// Why bytes are not a flattened tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeError {
    /// Byte of the tree at which it was seen.
    pub offset: usize,
    /// What is wrong there.
    pub fault: Fault,
}

/// What can be wrong with a flattened tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The bytes end here, inside the header or before the size that it says.
    Short,
    /// The first four bytes are not [`MAGIC`] but this.
    Magic(u32),
    /// Not a tree that a reader of version 17 can read: its version, and the oldest that it is compatible with.
    Version(u32, u32),
    /// A field of the header that names a place outside the tree: this.
    Outside(u32),
    /// A field of the header that names a place that is not a multiple of 4, or of 8 for the reserve map: this.
    Unaligned(u32),
    /// The reserve map has no end.
    ReserveMap,
    /// No token has this number.
    Token(u32),
    /// The structure block ends inside the token that begins here, or before the token for its end.
    Cut,
    /// A node's name has no end.
    NodeName,
    /// A property whose name, at this offset of the strings, is outside of them or has no end.
    PropertyName(u32),
    /// A property outside all nodes, or behind a node that lies in the same node.
    PropertyPlace,
    /// A node beside the root.
    SecondRoot,
    /// A node at a depth of more than [`MAX_DEPTH`].
    TooDeep,
    /// The end of a node that has not begun.
    NotBegun,
    /// The end of the structure block while a node is open, or without any node.
    NotEnded,
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device tree: at byte {:#x}: ", self.offset)?;
        match self.fault {
            Fault::Short => f.write_str("the bytes end"),
            Fault::Magic(found) => write!(f, "the magic is {found:#x}, wanted {MAGIC:#x}"),
            Fault::Version(version, compatible) => {
                write!(f, "version {version}, compatible with {compatible}: this reader knows {VERSION}")
            }
            Fault::Outside(found) => write!(f, "{found:#x} is outside the tree"),
            Fault::Unaligned(found) => write!(f, "{found:#x} is not aligned"),
            Fault::ReserveMap => f.write_str("the reserve map has no end"),
            Fault::Token(found) => write!(f, "{found:#x} is no token"),
            Fault::Cut => f.write_str("the structure block ends too early"),
            Fault::NodeName => f.write_str("the node's name has no end"),
            Fault::PropertyName(found) => {
                write!(f, "the property's name at {found:#x} is not in the strings block")
            }
            Fault::PropertyPlace => f.write_str("a property outside a node, or behind a node in its node"),
            Fault::SecondRoot => f.write_str("a second root"),
            Fault::TooDeep => write!(f, "nodes are more than {MAX_DEPTH} deep"),
            Fault::NotBegun => f.write_str("the end of a node that did not begin"),
            Fault::NotEnded => f.write_str("the end of the structure block inside a node"),
        }
    }
}

impl core::error::Error for TreeError {}

/// A stretch of memory that the kernel must keep out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Physical address of its first byte.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// A flattened tree that was found whole: every offset lies inside, every name ends, nodes are properly nested.
#[derive(Clone, Copy, Debug)]
pub struct Tree<'a> {
    total_size: usize,
    boot_cpu: u32,
    reserve_map: &'a [u8],
    structure: &'a [u8],
    strings: &'a [u8],
}

/// Where the blocks of a tree lie that was found whole, without its bytes: who has these to themselves need not look again
/// whether they are a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    total_size: usize,
    reserve_map: usize,
    /// The structure block: where it starts, and where its last token does.
    structure: (usize, usize),
    /// The strings: where they start, and their size.
    strings: (usize, usize),
}

impl Outline {
    /// Reads the tree that starts at the first of `bytes`; what lies behind its end is not looked at.
    ///
    /// # Errors
    /// What is wrong, and where. Accepted is version 17, or a later one that says it is compatible.
    pub fn parse(bytes: &[u8]) -> Result<Self, TreeError> {
        let number = |at| number(bytes, at).ok_or(TreeError { offset: bytes.len(), fault: Fault::Short });
        let magic = number(0)?;
        if magic != MAGIC {
            return Err(TreeError { offset: 0, fault: Fault::Magic(magic) });
        }
        let (version, compatible) = (number(field::VERSION)?, number(field::LAST_COMPATIBLE)?);
        if version < VERSION || compatible > VERSION {
            let fault = Fault::Version(version, compatible);
            return Err(TreeError { offset: field::VERSION, fault });
        }
        let total_size = number(field::TOTAL_SIZE)?;
        let total = bytes.get(..size(total_size));
        let total = total.ok_or(TreeError { offset: bytes.len(), fault: Fault::Short })?;
        let block = |at_field, size_field| {
            let at = number(at_field)?;
            let found = total.get(size(at)..).filter(|_| size(at) >= HEADER_SIZE);
            let found = found.ok_or(TreeError { offset: at_field, fault: Fault::Outside(at) })?;
            let Some(size_field) = size_field else { return Ok((size(at), found)) };
            let length = number(size_field)?;
            let found = found.get(..size(length));
            let found = found.ok_or(TreeError { offset: size_field, fault: Fault::Outside(length) })?;
            Ok((size(at), found))
        };
        for (at_field, alignment) in [(field::STRUCTURE, 4), (field::RESERVE_MAP, 8)] {
            let at = number(at_field)?;
            if at % alignment != 0 {
                return Err(TreeError { offset: at_field, fault: Fault::Unaligned(at) });
            }
        }
        let (map_at, reserve_map) = block(field::RESERVE_MAP, None)?;
        let (structure_at, structure) = block(field::STRUCTURE, Some(field::STRUCTURE_SIZE))?;
        let (strings_at, strings) = block(field::STRINGS, Some(field::STRINGS_SIZE))?;
        let tree = Tree {
            total_size: total.len(),
            boot_cpu: number(crate::BOOT_CPU_OFFSET)?,
            reserve_map,
            structure,
            strings,
        };
        tree.check_reserve_map().map_err(|fault| TreeError { offset: map_at, fault })?;
        let last = tree
            .check_structure()
            .map_err(|(at, fault)| TreeError { offset: structure_at.wrapping_add(at), fault })?;
        Ok(Self {
            total_size: total.len(),
            reserve_map: map_at,
            structure: (structure_at, last),
            strings: (strings_at, strings.len()),
        })
    }

    /// Where the structure block starts.
    pub(crate) fn structure(&self) -> usize {
        self.structure.0
    }

    /// The tree in `bytes`, which must be those that were read. Others make a tree of no sense, and no panic.
    pub fn tree<'a>(&self, bytes: &'a [u8]) -> Tree<'a> {
        let total = bytes.get(..self.total_size).unwrap_or_default();
        let from = |at| total.get(at..).unwrap_or_default();
        let block = |(at, size)| from(at).get(..size).unwrap_or_default();
        let (structure, last) = self.structure;
        Tree {
            total_size: self.total_size,
            boot_cpu: number(total, crate::BOOT_CPU_OFFSET).unwrap_or_default(),
            reserve_map: from(self.reserve_map),
            structure: block((structure, last.wrapping_add(TOKEN_SIZE))),
            strings: block(self.strings),
        }
    }
}

impl<'a> Tree<'a> {
    /// Reads the tree that starts at the first of `bytes`; what lies behind its end is not looked at.
    ///
    /// # Errors
    /// See [`Outline::parse`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TreeError> {
        Ok(Outline::parse(bytes)?.tree(bytes))
    }

    fn check_reserve_map(&self) -> Result<(), Fault> {
        let (entries, _) = self.reserve_map.as_chunks::<RESERVED_SIZE>();
        if entries.contains(&[0; RESERVED_SIZE]) { Ok(()) } else { Err(Fault::ReserveMap) }
    }

    /// Where the last token is.
    fn check_structure(&self) -> Result<usize, (usize, Fault)> {
        let (mut at, mut depth) = (0, 0usize);
        let (mut takes_properties, mut has_root) = (false, false);
        loop {
            let (found, next) = token_at(self.structure, at).map_err(|fault| (at, fault))?;
            let fault = match found {
                Token::Begin(_) if depth == 0 && has_root => Some(Fault::SecondRoot),
                Token::Begin(_) if depth >= MAX_DEPTH => Some(Fault::TooDeep),
                Token::End if depth == 0 => Some(Fault::NotBegun),
                Token::Property { .. } if !takes_properties => Some(Fault::PropertyPlace),
                Token::Property { name, .. } if self.string(name).is_none() => {
                    Some(Fault::PropertyName(name))
                }
                Token::Finish if depth != 0 || !has_root => Some(Fault::NotEnded),
                _ => None,
            };
            if let Some(fault) = fault {
                return Err((at, fault));
            }
            match found {
                Token::Begin(_) => (depth, takes_properties, has_root) = (depth.wrapping_add(1), true, true),
                Token::End => (depth, takes_properties) = (depth.wrapping_sub(1), false),
                Token::Finish => return Ok(at),
                Token::Property { .. } | Token::Nop => {}
            }
            at = next;
        }
    }

    /// Bytes of the tree, the free space at its end included.
    pub fn total_size(&self) -> usize {
        self.total_size
    }

    /// Hardware number of the CPU that boots.
    pub fn boot_cpu(&self) -> u32 {
        self.boot_cpu
    }

    /// The reserve map.
    pub fn reserved(&self) -> impl Iterator<Item = Reserved> + Clone + use<'a> {
        let (entries, _) = self.reserve_map.as_chunks::<RESERVED_SIZE>();
        entries.iter().take_while(|entry| **entry != [0; RESERVED_SIZE]).map(|entry| {
            let number =
                |at| entry.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
            Reserved { address: u64::from_be_bytes(number(0)), size: u64::from_be_bytes(number(8)) }
        })
    }

    /// The root.
    pub fn root(&self) -> Node<'a> {
        // The tree was found to have one.
        Children::new(*self, 0).next().unwrap_or(Node { tree: *self, name: &[], start: 0, inside: 0 })
    }

    /// The node at a path of full names, such as `/cpus/PowerPC,POWER9@0`; `/` is the root.
    pub fn node(&self, path: &str) -> Option<Node<'a>> {
        let names = path.as_bytes().split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        let mut node = self.root();
        for name in names {
            node = node.child(name)?;
        }
        Some(node)
    }

    /// The name at an offset of the strings block.
    fn string(&self, offset: u32) -> Option<&'a [u8]> {
        until_nul(self.strings.get(size(offset)..)?)
    }

    pub(crate) fn strings(&self) -> &'a [u8] {
        self.strings
    }

    /// Where the structure block's last token is: behind the root.
    pub(crate) fn last(&self) -> usize {
        self.structure.len().wrapping_sub(TOKEN_SIZE)
    }

    /// The structure block with its last token, and nothing behind it.
    pub(crate) fn structure(&self) -> &'a [u8] {
        self.structure
    }
}

/// A node of a tree.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    tree: Tree<'a>,
    name: &'a [u8],
    start: usize,
    inside: usize,
}

impl<'a> Node<'a> {
    /// Its name with the unit address, such as `PowerPC,POWER9@0`; empty for the root.
    pub fn name(&self) -> &'a [u8] {
        self.name
    }

    /// Its properties, in order.
    pub fn properties(&self) -> Properties<'a> {
        Properties { tree: self.tree, at: self.inside }
    }

    /// The value of one of its properties.
    pub fn property(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.properties().find(|property| property.name == name).map(|property| property.value)
    }

    /// The nodes in it, in order.
    pub fn children(&self) -> Children<'a> {
        Children::new(self.tree, self.inside)
    }

    /// The node in it that has this full name.
    pub fn child(&self, name: &[u8]) -> Option<Self> {
        self.children().find(|child| child.name == name)
    }

    /// Where its first token is in the structure block.
    pub(crate) fn start(&self) -> usize {
        self.start
    }

    /// Where the token of its end is in the structure block.
    pub(crate) fn end(&self) -> usize {
        let mut children = self.children();
        while children.next().is_some() {}
        children.at
    }

    /// Where the token behind its end is in the structure block.
    pub(crate) fn behind(&self) -> usize {
        self.end().wrapping_add(TOKEN_SIZE)
    }
}

/// A property of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Property<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its value, as it lies in the tree.
    pub value: &'a [u8],
    pub(crate) name_offset: u32,
}

/// The properties of a node.
#[derive(Clone, Debug)]
pub struct Properties<'a> {
    tree: Tree<'a>,
    at: usize,
}

impl<'a> Iterator for Properties<'a> {
    type Item = Property<'a>;

    fn next(&mut self) -> Option<Property<'a>> {
        loop {
            match token_at(self.tree.structure, self.at).ok()? {
                (Token::Nop, next) => self.at = next,
                (Token::Property { name: name_offset, value }, next) => {
                    self.at = next;
                    return Some(Property { name: self.tree.string(name_offset)?, value, name_offset });
                }
                _ => return None,
            }
        }
    }
}

/// The nodes in a node. At their end `at` is the token behind them.
#[derive(Clone, Debug)]
pub struct Children<'a> {
    tree: Tree<'a>,
    at: usize,
    /// Whether `at` is inside the node that was given last: what lies in that is passed by only when the next one is asked for.
    is_inside: bool,
}

impl<'a> Children<'a> {
    fn new(tree: Tree<'a>, at: usize) -> Self {
        Self { tree, at, is_inside: false }
    }
}

impl<'a> Iterator for Children<'a> {
    type Item = Node<'a>;

    fn next(&mut self) -> Option<Node<'a>> {
        let structure = self.tree.structure;
        if core::mem::take(&mut self.is_inside) {
            self.at = behind(structure, self.at)?;
        }
        loop {
            match token_at(structure, self.at).ok()? {
                (Token::Nop | Token::Property { .. }, next) => self.at = next,
                (Token::Begin(name), inside) => {
                    let node = Node { tree: self.tree, name, start: self.at, inside };
                    (self.at, self.is_inside) = (inside, true);
                    return Some(node);
                }
                _ => return None,
            }
        }
    }
}

/// Where the node that `inside` lies in is behind its end.
fn behind(structure: &[u8], inside: usize) -> Option<usize> {
    let (mut at, mut open) = (inside, 1usize);
    while open > 0 {
        let (found, next) = token_at(structure, at).ok()?;
        match found {
            Token::Begin(_) => open = open.wrapping_add(1),
            Token::End => open = open.wrapping_sub(1),
            Token::Finish => return None,
            Token::Property { .. } | Token::Nop => {}
        }
        at = next;
    }
    Some(at)
}

/// A piece of the structure block.
#[derive(Clone, Copy)]
enum Token<'a> {
    Begin(&'a [u8]),
    End,
    Property { name: u32, value: &'a [u8] },
    Nop,
    Finish,
}

/// The token at `at`, and where the next one is.
fn token_at(structure: &[u8], at: usize) -> Result<(Token<'_>, usize), Fault> {
    let rest = structure.get(at..).and_then(<[u8]>::split_first_chunk);
    let (kind, rest) = rest.ok_or(Fault::Cut)?;
    let behind = at.wrapping_add(TOKEN_SIZE);
    match u32::from_be_bytes(*kind) {
        token::BEGIN_NODE => {
            let name = until_nul(rest).ok_or(Fault::NodeName)?;
            // With the NUL.
            let next = aligned(behind.wrapping_add(name.len()).wrapping_add(1));
            Ok((Token::Begin(name), next))
        }
        token::END_NODE => Ok((Token::End, behind)),
        token::PROPERTY => {
            let (&[a, b, c, d, name @ ..], rest) = rest.split_first_chunk::<8>().ok_or(Fault::Cut)?;
            let length = size(u32::from_be_bytes([a, b, c, d]));
            let value = rest.get(..length).ok_or(Fault::Cut)?;
            let next = aligned(behind.wrapping_add(8).wrapping_add(length));
            Ok((Token::Property { name: u32::from_be_bytes(name), value }, next))
        }
        token::NOP => Ok((Token::Nop, behind)),
        token::END => Ok((Token::Finish, behind)),
        kind => Err(Fault::Token(kind)),
    }
}

/// What is before the first NUL. Trees are full of names: eight bytes are looked at at a time.
fn until_nul(bytes: &[u8]) -> Option<&[u8]> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let (words, rest) = bytes.as_chunks::<8>();
    // Of a word without a zero byte, taking one from each byte sets no top bit that was clear (Bit Twiddling Hacks, "Determine
    // if a word has a zero byte"); the lowest that is set otherwise is the first zero byte's.
    let zero = |word: &[u8; 8]| {
        let word = u64::from_le_bytes(*word);
        word.wrapping_sub(ONES) & !word & (ONES << 7)
    };
    let found = words.iter().enumerate().find_map(|(index, word)| match zero(word) {
        0 => None,
        found => Some(index.wrapping_mul(8).wrapping_add(found.trailing_zeros() as usize / 8)),
    });
    let length = found.or_else(|| {
        let in_rest = rest.iter().position(|&byte| byte == 0)?;
        Some(words.len().wrapping_mul(8).wrapping_add(in_rest))
    });
    bytes.get(..length?)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|number| u32::from_be_bytes(*number))
}

/// Sizes in a tree have 32 bits, as few as a `usize` has anywhere that this runs.
fn size(number: u32) -> usize {
    number as usize
}

/// Up to the next multiple of 4.
pub(crate) fn aligned(offset: usize) -> usize {
    offset.wrapping_add(3) & !3
}

const _: () = assert!(LAST_COMPATIBLE <= VERSION && size_of::<usize>() >= 4);
