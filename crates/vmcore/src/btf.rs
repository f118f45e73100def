//! BTF: what the kernel itself says of its types, out of the memory of a crashed one.
//!
//! It is a header, a row of types (each a name, a kind, a size, and what belongs to the kind) and a table of names
//! (`Documentation/bpf/btf.rst`). Read here are structures, unions and enumerations; of other kinds only the length counts. It is looked
//! through from the start for each name that is asked for: no index of a hundred thousand types takes memory that a capture kernel lacks.

use crate::elf::CoreError;
use crate::kallsyms::Symbols;
use crate::source::{VirtAddr, VirtualMemory};
use crate::vmcoreinfo::VmcoreInfo;

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
/// Up to where it has what is read here.
const HEADER: usize = 24;
/// Of each type: where its name is; kind, number of members, and whether these say the size of bit fields; its size or another type.
const TYPE: usize = 12;
const MEMBER: usize = 12;

/// Kinds that are looked into.
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;

/// More than this is no kernel's: they have some 5 MiB.
const MAX_SIZE: u64 = 16 << 20;
/// Unnamed structures in one another further down than this are damage.
const MAX_DEPTH: u32 = 8;
/// So many members are looked at for one that is asked for: damaged ones can hold themselves many times over.
const MAX_MEMBERS: usize = 1 << 16;

/// What is wrong with it, or keeps it from being found.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// Neither vmcoreinfo nor the kernel's symbols say where it is.
    #[error("the kernel has no BTF, or does not say where")]
    NotFound,
    /// It cannot be read.
    #[error("the kernel's BTF cannot be read: {0}")]
    Memory(#[from] CoreError),
    /// A part of it is not what it must be.
    #[error("the kernel's BTF is damaged: {field} is {found:#x}")]
    Damaged {
        /// Which part.
        field: &'static str,
        /// What it says.
        found: u64,
    },
}

const fn damaged(field: &'static str, found: u64) -> BtfError {
    BtfError::Damaged { field, found }
}

/// The types of a kernel.
#[derive(Debug, Clone)]
pub struct Btf {
    types: Vec<u8>,
    names: Vec<u8>,
    /// Where in `types` every [`STRIDE`]th type begins; the first is the one with number 1.
    marks: Vec<usize>,
}

/// So many types are gone through one by one to find one by its number.
const STRIDE: usize = 64;

/// One type as it lies there.
#[derive(Debug, Clone, Copy)]
struct Type {
    name: usize,
    kind: u32,
    members: usize,
    has_bit_sizes: bool,
    size: u32,
    /// Where its members begin.
    at: usize,
    /// Where the next type begins.
    next: usize,
}

/// A structure or union.
#[derive(Debug, Clone, Copy)]
pub struct Structure<'a> {
    btf: &'a Btf,
    inner: Type,
}

impl Btf {
    /// Finds it in a crashed kernel's memory: where vmcoreinfo says, else where the kernel's symbols do.
    ///
    /// # Errors
    /// [`BtfError`].
    pub fn find<M: VirtualMemory>(
        memory: &M,
        info: &VmcoreInfo,
        symbols: Option<&Symbols<'_, M>>,
    ) -> Result<Self, BtfError> {
        let told = [info.symbol("__start_BTF").ok(), info.symbol("__stop_BTF").ok()];
        let places = match (told, symbols) {
            ([Some(_), Some(_)], _) => told,
            (_, Some(symbols)) => symbols.find(["__start_BTF", "__stop_BTF"]),
            _ => told,
        };
        let [Some(start), Some(stop)] = places else { return Err(BtfError::NotFound) };
        let size = stop.0.checked_sub(start.0).filter(|size| *size <= MAX_SIZE);
        let size = size.ok_or_else(|| damaged("its end", stop.0))?;
        Self::read(memory, start, size)
    }

    fn read(memory: &impl VirtualMemory, start: VirtAddr, size: u64) -> Result<Self, BtfError> {
        let mut header = [0; HEADER];
        if size < HEADER as u64 {
            return Err(damaged("its size", size));
        }
        memory.read_virt(start, &mut header)?;
        let parts = Parts::of(&header, size)?;
        let part = |(at, len): (u64, u64)| {
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            memory.read_virt(VirtAddr(start.0.wrapping_add(at)), &mut bytes).map(|()| bytes)
        };
        Self::of_parts(part(parts.types)?, part(parts.names)?)
    }

    /// The types of one that is wholly in memory, as `/sys/kernel/btf/vmlinux` is.
    ///
    /// # Errors
    /// [`BtfError::Damaged`].
    pub fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        let header = bytes.first_chunk().ok_or_else(|| damaged("its size", bytes.len() as u64))?;
        let parts = Parts::of(header, bytes.len() as u64)?;
        let part = |(at, len): (u64, u64)| {
            let range = usize::try_from(at).ok().zip(usize::try_from(at + len).ok());
            range.and_then(|(from, to)| bytes.get(from..to)).unwrap_or_default().to_vec()
        };
        Self::of_parts(part(parts.types), part(parts.names))
    }

    fn of_parts(types: Vec<u8>, names: Vec<u8>) -> Result<Self, BtfError> {
        let mut btf = Self { types, names, marks: Vec::new() };
        let mut at = 0;
        let mut number = 0;
        while at < btf.types.len() {
            if number % STRIDE == 0 {
                btf.marks.push(at);
            }
            at = btf.type_at(at)?.next;
            number += 1;
        }
        Ok(btf)
    }

    /// The type that begins there, which has all its bytes.
    fn type_at(&self, at: usize) -> Result<Type, BtfError> {
        let word = |index: usize| word(&self.types, at.checked_add(index * 4)?);
        let cut = || damaged("where a type begins", at as u64);
        let (name, info, size) =
            (word(0).ok_or_else(cut)?, word(1).ok_or_else(cut)?, word(2).ok_or_else(cut)?);
        let (kind, members) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let len = match kind {
            // Integers, variables, marks of declarations.
            1 | 14 | 17 => 4,
            // Pointers, forward declarations, other names, qualifiers, functions, floats, marks of types.
            2 | 7..=12 | 16 | 18 => 0,
            // Arrays.
            3 => 12,
            // Sections of data, enumerations of 64 bits.
            STRUCT | UNION | 15 | 19 => members * MEMBER,
            // Enumerations, prototypes.
            ENUM | 13 => members * 8,
            _ => return Err(damaged("a type's kind", kind.into())),
        };
        let next = at + TYPE + len;
        if next > self.types.len() {
            return Err(cut());
        }
        Ok(Type {
            name: name as usize,
            kind,
            members,
            has_bit_sizes: info >> 31 != 0,
            size,
            at: at + TYPE,
            next,
        })
    }

    /// All types, in their order.
    fn types(&self) -> impl Iterator<Item = Type> {
        let next = |before: &Type| self.type_at(before.next).ok();
        std::iter::successors(self.type_at(0).ok(), next)
    }

    /// The type of this number.
    fn numbered(&self, number: u32) -> Option<Type> {
        let index = (number as usize).checked_sub(1)?;
        let mut found = self.type_at(*self.marks.get(index / STRIDE)?).ok()?;
        for _ in 0..index % STRIDE {
            found = self.type_at(found.next).ok()?;
        }
        Some(found)
    }

    fn is_name(&self, at: usize, wanted: &str) -> bool {
        let rest = self.names.get(at..).unwrap_or_default();
        rest.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// The structure of this name.
    #[must_use]
    pub fn structure(&self, name: &str) -> Option<Structure<'_>> {
        let is_wanted = |one: &Type| one.kind == STRUCT && self.is_name(one.name, name);
        self.types().find(is_wanted).map(|inner| Structure { btf: self, inner })
    }

    /// The values of these names, of any enumeration; none for one that is not there.
    #[must_use]
    pub fn values<const N: usize>(&self, wanted: [&str; N]) -> [Option<i32>; N] {
        let mut found = [None; N];
        for one in self.types().filter(|one| one.kind == ENUM) {
            for member in 0..one.members {
                let at = one.at + member * 8;
                let (Some(name), Some(value)) = (word(&self.types, at), word(&self.types, at + 4)) else {
                    continue;
                };
                let is_it = |wanted: &str| self.is_name(name as usize, wanted);
                if let Some(which) = wanted.iter().position(|wanted| is_it(wanted)) {
                    found[which].get_or_insert(value.cast_signed());
                }
            }
        }
        found
    }
}

impl Structure<'_> {
    /// Its size, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inner.size.into()
    }

    /// Where a member begins, in bytes; one of unnamed structures and unions in it too. None for bit fields that begin within a byte.
    #[must_use]
    pub fn offset(&self, member: &str) -> Option<u64> {
        let bits = self.btf.bits(&self.inner, member, MAX_DEPTH, &mut 0)?;
        (bits % 8 == 0).then_some(bits / 8)
    }
}

impl Btf {
    /// Where a member begins, in bits. `seen` counts the members that were looked at.
    fn bits(&self, within: &Type, wanted: &str, depth: u32, seen: &mut usize) -> Option<u64> {
        (0..within.members).find_map(|member| {
            *seen += 1;
            if *seen > MAX_MEMBERS {
                return None;
            }
            let at = within.at + member * MEMBER;
            let name = word(&self.types, at)? as usize;
            let (number, offset) = (word(&self.types, at + 4)?, word(&self.types, at + 8)?);
            let bits = u64::from(if within.has_bit_sizes { offset & 0x00ff_ffff } else { offset });
            if self.is_name(name, wanted) {
                return Some(bits);
            }
            let is_unnamed = self.is_name(name, "");
            let inner = self.numbered(number).filter(|_| is_unnamed && depth > 0)?;
            let is_structure = inner.kind == STRUCT || inner.kind == UNION;
            if !is_structure {
                return None;
            }
            Some(bits + self.bits(&inner, wanted, depth - 1, seen)?)
        })
    }
}

/// Where types and names are, and how long, from the start.
struct Parts {
    types: (u64, u64),
    names: (u64, u64),
}

impl Parts {
    /// What the header of BTF of `size` bytes says.
    fn of(header: &[u8; HEADER], size: u64) -> Result<Self, BtfError> {
        let field = |at: usize| word(header, at).map_or(0, u64::from);
        let [low, high, version, _] = field(0).to_le_bytes().first_chunk().copied().unwrap_or_default();
        let magic = u16::from_le_bytes([low, high]);
        if magic != MAGIC {
            return Err(damaged("its first word", magic.into()));
        }
        if version != VERSION {
            return Err(damaged("its version", version.into()));
        }
        // Both are counted from the header's end.
        let header_size = field(4);
        let part = |name: &'static str, at: usize| {
            let (from, len) = (header_size + field(at), field(at + 4));
            if from + len <= size { Ok((from, len)) } else { Err(damaged(name, from + len)) }
        };
        Ok(Self { types: part("the end of its types", 8)?, names: part("the end of its names", 16)? })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes)
}
