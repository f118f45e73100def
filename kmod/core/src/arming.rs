//! From a loader's request to an image that is followed.

use abi::{Arm, FOLLOW_CPUS, FOLLOW_MEMORY, Reason};
use elfcorehdr::{Header, Machine, PhysAddr, PhysRange};

use crate::{Cpu, Excluded};

/// Pages are this large.
const PAGE: u64 = 4096;

/// Most bytes that a header has room for: all slots that one can count, in whole pages.
const MAX_HEADER: u64 = (elfcorehdr::size_for(elfcorehdr::MAX_ENTRIES) as u64).next_multiple_of(PAGE);

/// A request that makes sense as far as it can be seen without looking at the image.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Where the header is; whole pages.
    pub header: PhysRange,
    /// Where the identity is.
    pub identity_at: PhysRange,
    /// RAM that a dump shall not hold.
    pub excluded: Excluded,
}

/// Holds a request against the rules.
///
/// # Errors
/// Why it cannot be.
pub fn check(request: &Arm) -> Result<Request, Reason> {
    if request.version != abi::VERSION || request.size as usize != size_of::<Arm>() {
        return Err(Reason::Version);
    }
    if request.follow & !(FOLLOW_MEMORY | FOLLOW_CPUS) != 0 {
        return Err(Reason::BadRequest);
    }
    if request.follow == 0 {
        return Err(Reason::SwitchedOff);
    }
    let (start, end) = (PhysAddr(request.header.start), PhysAddr(request.header.end));
    let header = PhysRange::new(start, end).filter(|header| header.len() <= MAX_HEADER && !header.is_empty());
    let header = header.filter(|header| header.start().is_aligned(PAGE) && header.end().is_aligned(PAGE));
    let header = header.ok_or(Reason::Misaligned)?;
    let identity_at = PhysRange::from_len(PhysAddr(request.identity_at), request.identity.len() as u64);
    // It is read in two words.
    let identity_at = identity_at.filter(|at| at.start().is_aligned(8)).ok_or(Reason::Misaligned)?;
    if identity_at.overlaps(header) {
        return Err(Reason::Overlap);
    }
    let excluded = request.excluded.get(..request.excluded_count as usize).and_then(Excluded::new);
    Ok(Request { header, identity_at, excluded: excluded.ok_or(Reason::BadRequest)? })
}

/// Whether the notes of these CPUs, the possible ones in order, can be followed in `header`: it has a note for each, and
/// what the loader knows of them agrees with what we found. A note that the loader could not know points into the
/// reservation; `in_reservation` tells.
pub fn may_follow_cpus(header: &[u8], cpus: &[Cpu], in_reservation: impl Fn(PhysRange) -> bool) -> bool {
    let Ok(header) = Header::parse(header) else { return false };
    // The last one is vmcoreinfo's.
    if header.notes().count() != cpus.len().saturating_add(1) {
        return false;
    }
    let mut confirmed = 0;
    for (note, cpu) in header.notes().zip(cpus) {
        if note.paddr.0 == cpu.note {
            confirmed += 1;
        } else if !PhysRange::from_len(note.paddr, note.size).is_some_and(&in_reservation) {
            return false;
        }
    }
    confirmed > 0 && cpus.iter().all(|cpu| cpu.note != 0)
}

/// What brings a header up to the machine, piece by piece: memory that it must name, and what it must not.
#[derive(Clone, Debug)]
pub struct Steps<'a> {
    ram: core::slice::Iter<'a, abi::Range>,
    past: PhysAddr,
    pending: Option<PhysRange>,
    over: bool,
}

/// One of the [`Steps`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The dump holds this, without what is excluded.
    Add(PhysRange),
    /// The dump holds nothing of this.
    Remove(PhysRange),
}

impl<'a> Steps<'a> {
    /// For a machine whose RAM is `ram`, lowest first.
    pub fn new(ram: &'a [abi::Range]) -> Self {
        Self { ram: ram.iter(), past: PhysAddr(0), pending: None, over: false }
    }
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if let Some(range) = self.pending.take() {
            return Some(Step::Add(range));
        }
        if self.over {
            return None;
        }
        let limit = PhysAddr(Machine::X86_64.phys_limit());
        let gap_from = self.past;
        let gap_to = match self.ram.next() {
            Some(range) => {
                self.pending = PhysRange::new(PhysAddr(range.start), PhysAddr(range.end));
                self.past = PhysAddr(range.end);
                PhysAddr(range.start)
            }
            None => {
                self.over = true;
                limit
            }
        };
        match PhysRange::new(gap_from, gap_to).filter(|gap| !gap.is_empty()) {
            Some(gap) => Some(Step::Remove(gap)),
            None => self.next(),
        }
    }
}
