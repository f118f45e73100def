//! Crash headers that lie: every field of the file header and of every entry.

use std::collections::BTreeSet;

use abi::Reason;
use anyhow::{Result, ensure};

use super::victim::Victim;

/// Bytes in an ELF-64 file header, and in a program header (gABI).
const EHDR: u64 = 64;
const PHDR: u64 = 56;
/// Byte in a capture kernel's physical address space that no x86 machine has.
const BEYOND: u64 = 1 << 52;

/// What the module must make of a lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Must {
    /// Refuse the header, and name the byte of the lie.
    Refuse,
    /// Refuse the header, whatever byte it names: the lie makes another field wrong.
    RefuseSomewhere,
    /// Nobody reads the field: follow the header as it is.
    NotMind,
    /// Follow it, and leave a header that names the machine's memory.
    Mend,
}
use Must::{Mend, NotMind, Refuse, RefuseSomewhere};

/// A field by its ELF name, where it is, its size in bytes, what is put there instead of the number that is there.
struct Lie {
    field: &'static str,
    at: u64,
    size: usize,
    new: fn(u64) -> u64,
    must: Must,
}

const fn lie(field: &'static str, at: u64, size: usize, new: fn(u64) -> u64, must: Must) -> Lie {
    Lie { field, at, size, new, must }
}

const FILE_HEADER: &[Lie] = &[
    lie("e_ident magic", 0, 4, |old| old ^ 1, Refuse),
    lie("EI_CLASS", 4, 1, |_| 1, Refuse),
    lie("EI_DATA", 5, 1, |_| 2, Refuse),
    lie("EI_VERSION", 6, 1, |_| 0, Refuse),
    lie("EI_OSABI", 7, 1, |_| 3, NotMind),
    lie("e_ident's rest", 8, 8, |_| u64::MAX, NotMind),
    lie("e_type", 16, 2, |_| 2, Refuse),
    lie("e_machine", 18, 2, |_| 21, Refuse),
    lie("e_version", 20, 4, |_| 2, Refuse),
    lie("e_entry", 24, 8, |_| u64::MAX, NotMind),
    lie("e_phoff", 32, 8, |old| old + PHDR, Refuse),
    lie("e_shoff", 40, 8, |_| u64::MAX, NotMind),
    lie("e_flags", 48, 4, |_| u64::MAX, NotMind),
    lie("e_ehsize", 52, 2, |_| 52, Refuse),
    lie("e_phentsize", 54, 2, |_| 32, Refuse),
    lie("e_phnum", 56, 2, |_| 0, Refuse),
    lie("e_phnum", 56, 2, |_| 1, Refuse),
    lie("e_phnum", 56, 2, |_| 0xffff, Refuse),
    lie("e_phnum", 56, 2, |_| 0xfff0, RefuseSomewhere),
    lie("e_phnum", 56, 2, |old| old - 1, RefuseSomewhere),
    lie("e_phnum", 56, 2, |old| old + 1, NotMind),
    lie("e_shentsize", 58, 2, |_| 1, NotMind),
    lie("e_shnum", 60, 2, |_| 1, NotMind),
    lie("e_shstrndx", 62, 2, |_| 1, NotMind),
];

const NOTE: &[Lie] = &[
    lie("p_type", 0, 4, |_| 0, RefuseSomewhere),
    lie("p_type", 0, 4, |_| 1, RefuseSomewhere),
    lie("p_type", 0, 4, |_| 0x6474_e551, RefuseSomewhere),
    lie("p_flags", 4, 4, |_| 7, NotMind),
    lie("p_offset", 8, 8, |_| BEYOND, RefuseSomewhere),
    lie("p_offset", 8, 8, |_| u64::MAX, RefuseSomewhere),
    lie("p_vaddr", 16, 8, |_| u64::MAX, NotMind),
    lie("p_paddr", 24, 8, |_| u64::MAX, Mend),
    lie("p_filesz", 32, 8, |old| old + 4, Refuse),
    lie("p_filesz", 32, 8, |_| 0, Refuse),
    lie("p_memsz", 40, 8, |_| 0, Refuse),
    lie("p_memsz", 40, 8, |_| 11, Refuse),
    lie("p_memsz", 40, 8, |_| 5 << 20, Refuse),
    lie("p_memsz", 40, 8, |_| u64::MAX, Refuse),
    lie("p_align", 48, 8, |_| 3, NotMind),
];

const MEMORY: &[Lie] = &[
    lie("p_type", 0, 4, |_| 0, RefuseSomewhere),
    lie("p_type", 0, 4, |_| 4, RefuseSomewhere),
    lie("p_type", 0, 4, |_| 7, Refuse),
    lie("p_flags", 4, 4, |_| 0, NotMind),
    lie("p_offset", 8, 8, |_| BEYOND, RefuseSomewhere),
    lie("p_offset", 8, 8, |_| u64::MAX, RefuseSomewhere),
    lie("p_vaddr", 16, 8, |_| u64::MAX, Mend),
    lie("p_paddr", 24, 8, |old| old + 4096, Refuse),
    lie("p_paddr", 24, 8, |_| BEYOND, Refuse),
    lie("p_paddr", 24, 8, |_| u64::MAX, Refuse),
    lie("p_filesz", 32, 8, |old| old + 4096, Refuse),
    lie("p_filesz", 32, 8, |_| 0, Refuse),
    lie("p_memsz", 40, 8, |_| 0, Refuse),
    lie("p_memsz", 40, 8, |old| old + 4096, RefuseSomewhere),
    lie("p_memsz", 40, 8, |_| BEYOND, RefuseSomewhere),
    lie("p_align", 48, 8, |_| 3, NotMind),
];

/// Tells each lie of the tables to the module, one at a time.
pub(super) fn each_field(victim: &mut Victim) -> Result<()> {
    let header = Header(victim.header()?);
    let count = header.number(56, 2);
    let mut teller = Teller { victim, header, told: 0, wrong: Vec::new() };
    for lie in FILE_HEADER {
        teller.tell("the file header", 0, lie)?;
    }
    for slot in 0..count {
        let at = EHDR + slot * PHDR;
        let (what, lies) = match teller.header.number(at, 4) {
            4 => ("note", NOTE),
            _ => ("memory", MEMORY),
        };
        for lie in lies {
            teller.tell(&format!("slot {slot} ({what})"), at, lie)?;
        }
        teller.tell_of_memory(slot)?;
    }
    // What lies behind the table must be free.
    let (end, size) = (EHDR + count * PHDR, teller.header.0.len() as u64);
    for at in [end, end + 3 * PHDR + 8, size - 8] {
        teller.tell("the header", 0, &lie("the spare room", at, 8, |_| 1, RefuseSomewhere))?;
    }
    let Teller { told, wrong, .. } = teller;
    ensure!(wrong.is_empty(), "{} of {told} lies: \n{}", wrong.len(), wrong.join("\n"));
    victim.guest.say(format!("{told} lies in the header: each refused, of no account, or mended"));
    Ok(())
}

/// Tells lies, and takes down what comes of them that should not.
struct Teller<'a> {
    victim: &'a mut Victim,
    /// The true header.
    header: Header,
    told: u32,
    wrong: Vec<String>,
}

impl Teller<'_> {
    /// Lies in one field of what starts at `base`.
    fn tell(&mut self, place: &str, base: u64, lie: &Lie) -> Result<()> {
        let at = base + lie.at;
        let (old, mut lying) = (self.header.number(at, lie.size), self.header.clone());
        lying.put(at, lie.size, (lie.new)(old));
        // A field may hold just that.
        if lying.0 == self.header.0 {
            return Ok(());
        }
        let new = lying.number(at, lie.size);
        self.judge(&format!("{} of {place} is {new:#x} instead of {old:#x}", lie.field), &lying, at, lie.must)
    }

    /// Lies of a memory entry that no single field shows: what is named is not what there is.
    fn tell_of_memory(&mut self, slot: u64) -> Result<()> {
        let at = EHDR + slot * PHDR;
        let header = &self.header;
        // The kernel's text, in its own part of the address space, is named a second time and never changed.
        if header.number(at, 4) != 1 || header.number(at + 16, 8) >= 0xffff_ffff_8000_0000 {
            return Ok(());
        }
        let (start, size) = (header.number(at + 8, 8), header.number(at + 40, 8));
        // Shorter by a page at the end or at the start, and longer.
        for (start, size) in [(start, size - 4096), (start + 4096, size - 4096), (start, size + 4096)] {
            let mut lying = self.header.clone();
            for (field, value) in [(8, start), (24, start), (32, size), (40, size)] {
                lying.put(at + field, 8, value);
            }
            self.judge(&format!("slot {slot} names {size:#x} bytes at {start:#x}"), &lying, at, Mend)?;
        }
        Ok(())
    }

    /// Puts the lie into the header, arms, and sees what comes of it. The header is the true one afterwards.
    fn judge(&mut self, what: &str, lying: &Header, at: u64, must: Must) -> Result<()> {
        self.told += 1;
        let start = self.victim.valid.header.start;
        self.victim.poke(start, &lying.0)?;
        if let Err(error) = self.outcome(lying, at, must) {
            self.wrong.push(format!("{what}: {error:#}"));
        }
        self.victim.disarm()?;
        self.victim.poke(start, &self.header.0)
    }

    fn outcome(&mut self, lying: &Header, at: u64, must: Must) -> Result<()> {
        let request = self.victim.valid;
        match must {
            Refuse => return self.victim.is_refused(&request, Reason::BadHeader, Some(at.try_into()?)),
            RefuseSomewhere => return self.victim.is_refused(&request, Reason::BadHeader, None),
            NotMind | Mend => self.victim.arm_well()?,
        }
        let after = Header(self.victim.header()?);
        if must == NotMind {
            ensure!(after.0 == lying.0, "the header was written to");
            return Ok(());
        }
        let (named, there) = (after.pages(), self.header.pages());
        let (missing, more) = (there.difference(&named).count(), named.difference(&there).count());
        ensure!(missing == 0 && more == 0, "{missing} pages are missing, {more} too many");
        Ok(())
    }
}

/// A header's bytes.
#[derive(Clone)]
pub(super) struct Header(pub(super) Vec<u8>);

impl Header {
    /// The little-endian number of `size` bytes at `at`.
    pub(super) fn number(&self, at: u64, size: usize) -> u64 {
        let bytes = usize::try_from(at).ok().and_then(|at| self.0.get(at..at + size));
        let bytes = bytes.unwrap_or_default().iter().rev();
        bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Puts a number of `size` bytes to `at`.
    pub(super) fn put(&mut self, at: u64, size: usize, number: u64) {
        let place = usize::try_from(at).ok().and_then(|at| self.0.get_mut(at..at + size));
        if let Some(place) = place {
            place.copy_from_slice(&number.to_le_bytes()[..size]);
        }
    }

    /// The page frames that a capture kernel takes from it.
    fn pages(&self) -> BTreeSet<u64> {
        let entries = (0..self.number(56, 2)).map(|slot| EHDR + slot * PHDR);
        let memory = entries.filter(|at| self.number(*at, 4) == 1);
        let ranges = memory.map(|at| (self.number(at + 8, 8), self.number(at + 40, 8)));
        ranges.flat_map(|(start, size)| start / 4096..(start + size).div_ceil(4096)).collect()
    }
}
