//! The kernel's own symbol table (kallsyms) out of its memory, so that addresses on a stack get names.
//!
//! vmcoreinfo says where its parts lie since 6.0. How addresses are coded has changed over the years and vmcoreinfo does not tell:
//! each way is tried, and one counts only where symbols that vmcoreinfo names come out at the addresses that it gives. A
//! table that cannot be proved so gives no names at all, since a wrong name is worse than none.

use std::ops::Range;

use crate::elf::CoreError;
use crate::source::{VirtAddr, VirtualMemory};
use crate::vmcoreinfo::{InfoError, VmcoreInfo};

/// More symbols than this are damage. Kernels have some 200,000.
const MAX_SYMBOLS: u32 = 1 << 22;
/// A name's place in the list is kept for each so many symbols.
const STRIDE: usize = 256;
/// Compressed names are read in pieces of this many bytes.
const PIECE: u64 = 1 << 16;
/// The table of tokens is about 1 KiB.
const TOKENS_SIZE: usize = 1 << 14;
/// Longer names are damage (KSYM_NAME_LEN).
const MAX_NAME: usize = 512;
/// Symbols that vmcoreinfo names on all kernels that are read, and that kallsyms has too.
const PROOFS: [&str; 4] = ["_stext", "init_uts_ns", "prb", "node_online_map"];
/// Fewer proofs than this are chance.
const NEEDED_PROOFS: usize = 2;

/// Why the symbols cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SymbolError {
    /// vmcoreinfo does not say where they are.
    #[error("cannot find the kernel's symbols: {0}")]
    Info(#[from] InfoError),
    /// Their memory cannot be read.
    #[error("cannot read the kernel's symbols: {0}")]
    Memory(#[from] CoreError),
    /// The table makes no sense.
    #[error("the kernel's symbol table is damaged: {field} is {found}, at most {most} makes sense")]
    Damaged {
        /// Which part.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// The most it can be.
        most: u64,
    },
    /// No way to read the addresses agrees with vmcoreinfo.
    #[error(
        "the kernel's symbol table is in a form that is not known: its addresses are not those that vmcoreinfo gives"
    )]
    Unproved,
}

/// A symbol that covers an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbol {
    /// Its name.
    pub name: String,
    /// How far into it the address is, in bytes.
    pub offset: u64,
    /// From its start to the next symbol's, in bytes.
    pub size: u64,
}

/// The symbols of the kernel itself; those of its modules are not among them.
#[derive(Debug)]
pub struct Symbols<'a, M> {
    memory: &'a M,
    names: VirtAddr,
    tokens: Tokens,
    /// Of all symbols, in the order of the table.
    addresses: Vec<u64>,
    /// Where the name of each [`STRIDE`]th symbol starts, from `names`.
    marks: Vec<u64>,
    /// From `_stext` to `_etext`: where functions are.
    text: Range<u64>,
}

/// What stands for what in compressed names.
#[derive(Debug)]
struct Tokens {
    table: Vec<u8>,
    index: Vec<u16>,
}

/// How addresses are coded.
#[derive(Debug, Clone, Copy)]
enum Coding {
    /// Unsigned distances from a base.
    FromBase(u64),
    /// Absolute where not negative (per-CPU variables), else down from a base (CONFIG_KALLSYMS_ABSOLUTE_PERCPU, until 6.14).
    NegativeFromBase(u64),
    /// Signed distances from the place of each entry (since 7.0; the table's address).
    FromPlace(u64),
}

impl Coding {
    fn address(self, number: usize, entry: u32) -> u64 {
        let signed = i64::from(entry.cast_signed());
        match self {
            Self::FromBase(base) => base.wrapping_add(u64::from(entry)),
            Self::NegativeFromBase(_) if signed >= 0 => u64::from(entry),
            Self::NegativeFromBase(base) => base.wrapping_sub(1).wrapping_add_signed(-signed),
            Self::FromPlace(table) => table.wrapping_add(number as u64 * 4).wrapping_add_signed(signed),
        }
    }
}

impl<'a, M: VirtualMemory> Symbols<'a, M> {
    /// Finds the symbols, and proves that they are read rightly.
    ///
    /// # Errors
    /// [`SymbolError`]; kernels before 6.0 do not say where they are.
    pub fn open(memory: &'a M, info: &VmcoreInfo) -> Result<Self, SymbolError> {
        let count = memory.read_u32(info.symbol("kallsyms_num_syms")?)?;
        if count > MAX_SYMBOLS || count == 0 {
            return Err(SymbolError::Damaged {
                field: "kallsyms_num_syms",
                found: count.into(),
                most: MAX_SYMBOLS.into(),
            });
        }
        let offsets = info.symbol("kallsyms_offsets")?;
        let mut entries = vec![0; count as usize * 4];
        memory.read_virt(offsets, &mut entries)?;
        let entries: Vec<u32> = entries
            .chunks_exact(4)
            .map(|word| word.first_chunk().map_or(0, |word| u32::from_le_bytes(*word)))
            .collect();
        let mut symbols = Self {
            memory,
            names: info.symbol("kallsyms_names")?,
            tokens: Tokens::read(memory, info)?,
            addresses: Vec::new(),
            marks: Vec::new(),
            text: 0..0,
        };
        let proofs = symbols.walk(entries.len())?;
        let base = info.symbol("kallsyms_relative_base").and_then(|place| {
            memory.read_u64(place).map_err(|_| InfoError::Missing("SYMBOL(kallsyms_relative_base)".into()))
        });
        let codings = match base {
            Ok(base) => vec![Coding::FromBase(base), Coding::NegativeFromBase(base)],
            Err(_) => vec![Coding::FromPlace(offsets.0)],
        };
        let proved = |coding: &Coding| {
            let holds = |(name, number): &(String, usize)| {
                info.symbol(name).is_ok_and(|place| {
                    entries.get(*number).is_some_and(|entry| coding.address(*number, *entry) == place.0)
                })
            };
            proofs
                .iter()
                .filter(|proof| PROOFS.contains(&proof.0.as_str()))
                .filter(|proof| holds(proof))
                .count()
        };
        let coding = codings
            .into_iter()
            .find(|coding| proved(coding) >= NEEDED_PROOFS)
            .ok_or(SymbolError::Unproved)?;
        symbols.addresses =
            entries.iter().enumerate().map(|(number, entry)| coding.address(number, *entry)).collect();
        let place = |wanted: &str| {
            let found = proofs.iter().find(|(name, _)| name == wanted);
            found.and_then(|(_, number)| symbols.addresses.get(*number)).copied()
        };
        symbols.text = place("_stext").zip(place("_etext")).map_or(0..0, |(start, end)| start..end);
        Ok(symbols)
    }

    /// Goes through all names once: keeps marks, and gives the numbers of those that prove the table and bound the text.
    fn walk(&mut self, count: usize) -> Result<Vec<(String, usize)>, SymbolError> {
        let mut found = Vec::new();
        let mut marks = Vec::with_capacity(count.div_ceil(STRIDE));
        let mut names = Names::new(self.memory, self.names, &self.tokens, 0);
        for number in 0..count {
            if number % STRIDE == 0 {
                marks.push(names.at);
            }
            let name = names.next()?;
            if name == b"_etext" || PROOFS.iter().any(|proof| proof.as_bytes() == name) {
                found.push((String::from_utf8_lossy(name).into_owned(), number));
            }
        }
        self.marks = marks;
        Ok(found)
    }

    /// The name of symbol number `wanted`.
    fn name(&self, wanted: usize) -> Result<String, SymbolError> {
        let mark = self.marks.get(wanted / STRIDE).copied().unwrap_or(0);
        let mut names = Names::new(self.memory, self.names, &self.tokens, mark);
        for _ in 0..wanted % STRIDE {
            names.next()?;
        }
        Ok(String::from_utf8_lossy(names.next()?).into_owned())
    }

    /// Where the kernel's functions are.
    pub(crate) fn text(&self) -> Range<u64> {
        self.text.clone()
    }

    /// Whether the kernel's functions lie at `address`.
    #[must_use]
    pub fn is_text(&self, address: VirtAddr) -> bool {
        self.text.contains(&address.0)
    }

    /// The function that covers `address`; none outside the kernel's functions.
    #[must_use]
    pub fn function(&self, address: VirtAddr) -> Option<Symbol> {
        if !self.is_text(address) {
            return None;
        }
        let mut best: Option<(u64, usize)> = None;
        let mut next = self.text.end;
        // The table is in the order of addresses, but nothing proves that: all of it is looked at.
        for (number, start) in self.addresses.iter().enumerate() {
            if *start > address.0 {
                next = next.min(*start);
            } else if *start >= self.text.start && best.is_none_or(|(best, _)| *start > best) {
                best = Some((*start, number));
            }
        }
        let (start, number) = best?;
        let name = self.name(number).ok()?;
        Some(Symbol { name, offset: address.0 - start, size: next - start })
    }

    /// The addresses of the symbols called `wanted`; none for one that is not there exactly once. Reads all names.
    #[must_use]
    pub fn find<const N: usize>(&self, wanted: [&str; N]) -> [Option<VirtAddr>; N] {
        let mut names = Names::new(self.memory, self.names, &self.tokens, 0);
        let mut found = [(0, None); N];
        for address in &self.addresses {
            let Ok(name) = names.next() else { break };
            if let Some(which) = wanted.iter().position(|wanted| wanted.as_bytes() == name) {
                found[which] = (found[which].0 + 1, Some(VirtAddr(*address)));
            }
        }
        found.map(|(count, address)| address.filter(|_| count == 1))
    }
}

impl Tokens {
    fn read(memory: &impl VirtualMemory, info: &VmcoreInfo) -> Result<Self, SymbolError> {
        let mut index = vec![0; 512];
        memory.read_virt(info.symbol("kallsyms_token_index")?, &mut index)?;
        let index: Vec<u16> = index
            .chunks_exact(2)
            .map(|half| half.first_chunk().map_or(0, |half| u16::from_le_bytes(*half)))
            .collect();
        let last = usize::from(index.iter().copied().max().unwrap_or(0));
        if last >= TOKENS_SIZE {
            return Err(SymbolError::Damaged {
                field: "kallsyms_token_index",
                found: last as u64,
                most: TOKENS_SIZE as u64,
            });
        }
        // No token is longer than a name.
        let mut table = vec![0; last + MAX_NAME];
        memory.read_virt(info.symbol("kallsyms_token_table")?, &mut table)?;
        Ok(Self { table, index })
    }

    fn expand(&self, token: u8, into: &mut Vec<u8>) {
        let start = self.index.get(usize::from(token)).map_or(0, |start| usize::from(*start));
        let rest = self.table.get(start..).unwrap_or_default();
        into.extend(rest.iter().take_while(|byte| **byte != 0));
    }
}

/// Compressed names one after the other.
struct Names<'a, M> {
    memory: &'a M,
    base: VirtAddr,
    tokens: &'a Tokens,
    /// Where the next name starts, from `base`.
    at: u64,
    piece: Vec<u8>,
    piece_at: u64,
    name: Vec<u8>,
}

impl<'a, M: VirtualMemory> Names<'a, M> {
    fn new(memory: &'a M, base: VirtAddr, tokens: &'a Tokens, at: u64) -> Self {
        Self { memory, base, tokens, at, piece: Vec::new(), piece_at: 0, name: Vec::new() }
    }

    fn byte(&mut self) -> Result<u8, SymbolError> {
        loop {
            let within = self.at.checked_sub(self.piece_at).and_then(|at| usize::try_from(at).ok());
            if let Some(byte) = within.and_then(|within| self.piece.get(within)) {
                self.at += 1;
                return Ok(*byte);
            }
            let address = VirtAddr(self.base.0.wrapping_add(self.at));
            // What follows the list may not be mapped: no further than its page where a whole piece cannot be read.
            let page = crate::PAGE as u64 - address.0 % crate::PAGE as u64;
            let mut piece = vec![0; (PIECE - address.0 % PIECE) as usize];
            if self.memory.read_virt(address, &mut piece).is_err() {
                piece.truncate(page as usize);
                self.memory.read_virt(address, &mut piece)?;
            }
            self.piece = piece;
            self.piece_at = self.at;
        }
    }

    /// The next name, without the letter of its type.
    fn next(&mut self) -> Result<&[u8], SymbolError> {
        let mut len = usize::from(self.byte()?);
        // Since 6.1: a length of more than 127 takes two bytes.
        if len & 0x80 != 0 {
            len = len & 0x7f | usize::from(self.byte()?) << 7;
        }
        if len > MAX_NAME {
            return Err(SymbolError::Damaged {
                field: "the length of a name in kallsyms_names",
                found: len as u64,
                most: MAX_NAME as u64,
            });
        }
        self.name.clear();
        for _ in 0..len {
            let token = self.byte()?;
            self.tokens.expand(token, &mut self.name);
        }
        Ok(self.name.get(1..).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xffff_ffff_8100_0000;

    /// A kernel's memory at [`BASE`], and the vmcoreinfo that leads into it.
    struct Kernel {
        memory: Vec<u8>,
        info: String,
    }

    impl VirtualMemory for Kernel {
        fn read_virt(&self, address: VirtAddr, buf: &mut [u8]) -> Result<(), CoreError> {
            let at = address.0.checked_sub(BASE).map(|at| at as usize);
            let bytes = at.and_then(|at| self.memory.get(at..at + buf.len()));
            buf.copy_from_slice(bytes.ok_or(CoreError::NotMapped { address, level: 1, entry: 0 })?);
            Ok(())
        }
    }

    /// Symbols by their distance from the base, in the order of the table.
    const SYMBOLS: [(&str, u64); 6] = [
        ("_stext", 0),
        ("panic", 0x100),
        ("a_name_of_two_tokens", 0x180),
        ("_etext", 0x1000),
        ("init_uts_ns", 0x2000),
        ("prb", 0x3000),
    ];
    const OFFSETS: u64 = 0x4000;
    const NAMES: u64 = 0x5000;

    /// A kernel whose table has `entry(number, address)` for each symbol; one that says a base where there is one.
    fn kernel(base: Option<u64>, entry: impl Fn(u64, u64) -> u32) -> Kernel {
        let mut memory = vec![0; 0x10000];
        let mut put =
            |at: u64, bytes: &[u8]| memory[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        let mut names = Vec::new();
        for (number, (name, at)) in SYMBOLS.iter().enumerate() {
            put(OFFSETS + number as u64 * 4, &entry(number as u64, BASE + at).to_le_bytes());
            // Token 1 stands for "of_two", every other for its own letter.
            let coded = format!("T{}", name.replace("of_two", "\u{1}"));
            names.push(coded.len() as u8);
            names.extend(coded.as_bytes());
        }
        put(NAMES, &names);
        let (mut table, mut index) = (Vec::new(), Vec::new());
        for token in 0..=255u8 {
            index.extend((table.len() as u16).to_le_bytes());
            if token == 1 {
                table.extend(b"of_two");
            } else {
                table.push(token);
            }
            table.push(0);
        }
        put(0x6000, &table);
        put(0x7000, &index);
        put(0x8000, &(SYMBOLS.len() as u32).to_le_bytes());
        put(0x8008, &base.unwrap_or(0).to_le_bytes());
        let mut places = vec![
            ("kallsyms_num_syms", 0x8000),
            ("kallsyms_offsets", OFFSETS),
            ("kallsyms_names", NAMES),
            ("kallsyms_token_table", 0x6000),
            ("kallsyms_token_index", 0x7000),
            ("_stext", 0),
            ("init_uts_ns", 0x2000),
            ("prb", 0x3000),
        ];
        places.extend(base.map(|_| ("kallsyms_relative_base", 0x8008)));
        let info = places.iter().map(|(name, at)| format!("SYMBOL({name})={:x}\n", BASE + at)).collect();
        Kernel { memory, info }
    }

    fn open(kernel: &Kernel) -> Result<Symbols<'_, Kernel>, SymbolError> {
        Symbols::open(kernel, &VmcoreInfo::parse(kernel.info.as_bytes()))
    }

    #[test]
    fn each_way_to_code_addresses_is_read() {
        for (way, kernel) in [
            ("from a base", kernel(Some(BASE), |_, address| (address - BASE) as u32)),
            ("down from a base", kernel(Some(BASE), |_, address| (BASE - 1).wrapping_sub(address) as u32)),
            (
                "from its place",
                kernel(None, |number, address| address.wrapping_sub(BASE + OFFSETS + number * 4) as u32),
            ),
        ] {
            let symbols = open(&kernel).unwrap();
            let function = |at| {
                symbols.function(VirtAddr(BASE + at)).map(|found| (found.name, found.offset, found.size))
            };
            assert_eq!(function(0x17f), Some(("panic".into(), 0x7f, 0x80)), "{way}");
            assert_eq!(function(0x180), Some(("a_name_of_two_tokens".into(), 0, 0xe80)), "{way}");
            assert_eq!(function(0x1000), None, "{way}: behind the functions");
            assert_eq!(symbols.find(["prb", "no_such"]), [Some(VirtAddr(BASE + 0x3000)), None], "{way}");
        }
    }

    #[test]
    fn a_table_that_is_not_proved_gives_no_names() {
        for (what, kernel) in [
            ("shifted by one", kernel(Some(BASE), |_, address| (address - BASE + 1) as u32)),
            ("another base", kernel(Some(BASE + 0x10_0000), |_, address| (address - BASE) as u32)),
            ("no base said", kernel(None, |_, address| (address - BASE) as u32)),
        ] {
            assert!(matches!(open(&kernel), Err(SymbolError::Unproved)), "{what}");
        }
    }

    #[test]
    fn damage_is_named_and_ends() {
        let good = kernel(Some(BASE), |_, address| (address - BASE) as u32);
        let mut many = kernel(Some(BASE), |_, address| (address - BASE) as u32);
        many.memory[0x8000..0x8004].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = open(&many).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("kallsyms_num_syms is 4294967295"), "{error}");
        for at in (OFFSETS as usize..0x8010).step_by(3) {
            let mut memory = good.memory.clone();
            memory[at] ^= 0xff;
            let damaged = Kernel { memory, info: good.info.clone() };
            if let Ok(symbols) = open(&damaged) {
                let _ = (symbols.function(VirtAddr(BASE + 0x101)), symbols.find(["panic"]));
            }
        }
    }
}
