//! From a loader's request to an image that is followed.

use abi::{Arm, FOLLOW_CPUS, FOLLOW_MEMORY, Reason};
use elfcorehdr::{Header, Machine, PhysAddr, PhysRange};

use crate::arch::Arch;
use crate::{Cpu, Excluded, Image, Live, Moment, Nodes, State};

/// Most bytes that a header has room for: all slots that one can count, in whole pages of the largest kind, 64 KiB.
const MAX_HEADER: u64 = (elfcorehdr::size_for(elfcorehdr::MAX_ENTRIES) as u64).next_multiple_of(0x1_0000);

/// Most bytes that a device tree has room for. Machines of 2,000 CPUs have 2 MiB; two copies of it are allocated.
const MAX_TREE: u64 = 16 << 20;

// Numbers of Linux's errors, the same on all architectures that we know.
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const EBUSY: i32 = 16;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;

/// Why an image was not armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The kernel's number for the error.
    pub errno: i32,
    /// The reason as the loader gets it.
    pub reason: Reason,
    /// What was found in its place; 0 if there is nothing to tell.
    pub found: u32,
}

impl From<Reason> for Refused {
    fn from(reason: Reason) -> Self {
        let errno = match reason {
            Reason::AlreadyArmed | Reason::OtherLoad => EBUSY,
            Reason::NotLoaded => ENODEV,
            Reason::NoMemory => ENOMEM,
            Reason::Restless => EAGAIN,
            _ => EINVAL,
        };
        Self { errno, reason, found: 0 }
    }
}

/// What arming needs of the kernel. All may sleep but [`Kernel::locked`].
pub trait Kernel<'m> {
    /// The image in reserved memory.
    type Live: Live;
    /// A list of memory.
    type Ram: AsRef<[abi::Range]>;

    /// What the machine's architecture asks of an image.
    fn arch(&self) -> &'static Arch;
    /// Size of the kernel's pages in bytes, a power of two.
    fn page_size(&self) -> u64;
    /// Whether all of a range lies in a crash reservation.
    fn in_reservation(&self, range: PhysRange) -> bool;
    /// Whether a crash image is loaded.
    fn is_loaded(&self) -> bool;
    /// Maps the image, reads its header, and gets all memory that following it will need.
    ///
    /// # Errors
    /// Why it cannot be followed.
    fn open(&self, request: &Request) -> Result<Image<'m, Self::Live>, Refused>;
    /// The machine's memory that is in use, lowest first.
    ///
    /// # Errors
    /// There is no memory for the list.
    fn ram(&self) -> Result<Self::Ram, Refused>;
    /// Gives `work` the nodes of `/cpus`; none where the architecture has no device tree. May sleep, and `work` not.
    ///
    /// # Errors
    /// There is no memory for them.
    fn nodes<R>(&self, work: impl FnOnce(Nodes<'_>) -> R) -> Result<R, Refused>;
    /// Runs `work` on the state while nobody else can. It must not sleep.
    fn locked<R>(&self, work: impl FnOnce(&mut State<'m, Self::Live>) -> R) -> R;
    /// Frees what an image held that is not followed any more.
    fn drop_dead(&self);
}

/// Follows the image that `request` names. `wanted` is what may be followed at all, `loads_before` what
/// [`State::loads`] was when the requester, still to load, opened the device. Gives what is followed.
///
/// Nothing is written before all that is named is checked. Bringing the header up to the machine comes last, and may yet be
/// given up: the header is full, the machine does not come to rest, another load comes. What was stored by then stays,
/// each time a whole header that is no further from the machine than the one before.
///
/// # Errors
/// Why it is not.
pub fn arm<'m, K: Kernel<'m>>(
    kernel: &K,
    request: &Arm,
    wanted: u32,
    loads_before: u64,
) -> Result<u32, Refused> {
    let checked = check(request, wanted, kernel.arch(), kernel.page_size())?;
    kernel.drop_dead();
    // From here on every load or unload is noticed, so what is found now stays true or the arming fails.
    let begin = |state: &mut State<'m, K::Live>| match state.loads().wrapping_sub(loads_before) {
        _ if state.is_armed() => Err(Reason::AlreadyArmed),
        0 | 1 => Ok(state.moment()),
        _ => Err(Reason::OtherLoad),
    };
    let start = kernel.locked(begin)?;
    if !checked.parts().all(|part| kernel.in_reservation(part)) {
        return Err(Reason::OutsideReservation.into());
    }
    if checked.written().any(|part| checked.excluded.pieces(part).next().is_some()) {
        return Err(Reason::NotExcluded.into());
    }
    if !kernel.is_loaded() {
        return Err(Reason::NotLoaded.into());
    }
    // What is left in it is dropped here: that may sleep.
    let mut image = Some(kernel.open(&checked)?);
    kernel.locked(|state| state.arm(&mut image, request.header, request.identity, start))?;
    if let Err(refused) = catch_up(kernel) {
        kernel.locked(|state| state.disarm(refused.reason));
        kernel.drop_dead();
        return Err(refused);
    }
    Ok(kernel.locked(|state| state.follows()))
}

/// Brings the header up to the machine: what happened since it was planned, and what happens meanwhile.
fn catch_up<'m, K: Kernel<'m>>(kernel: &K) -> Result<(), Refused> {
    /// One more is needed for each event that comes between: more than any machine has in the time.
    const TRIES: usize = 64;
    for _ in 0..TRIES {
        let then = kernel.locked(|state| state.moment());
        let ram = kernel.ram()?;
        if reconcile(kernel, ram.as_ref(), then)? && kernel.locked(|state| state.settle(then)) {
            return Ok(());
        }
    }
    Err(Reason::Restless.into())
}

/// `Ok(false)` if something happened since `then`.
fn reconcile<'m, K: Kernel<'m>>(kernel: &K, ram: &[abi::Range], then: Moment) -> Result<bool, Refused> {
    let (cpus, coming) = kernel.locked(|state| (state.image().map_or(0, Image::cpus), state.coming()));
    let steps =
        Steps::new(ram, kernel.arch().machine).chain(coming.map(Step::Add)).chain((0..cpus).map(Step::Point));
    for step in steps {
        if !kernel.locked(|state| state.reconcile(then, step))? {
            return Ok(false);
        }
    }
    if !kernel.arch().has_tree {
        return Ok(true);
    }
    Ok(kernel.nodes(|nodes| kernel.locked(|state| state.reconcile_nodes(then, nodes)))??)
}

/// A request that makes sense as far as it can be seen without looking at the image.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Where the header is; whole pages.
    pub header: PhysRange,
    /// Where the identity is.
    pub identity_at: PhysRange,
    /// The identity, as two words of memory.
    pub identity: [u64; 2],
    /// The device trees; `None` where the architecture has none.
    pub trees: Option<Trees>,
    /// RAM that a dump shall not hold.
    pub excluded: Excluded,
    /// What is to be followed.
    pub follow: u32,
}

/// Where an image's device trees are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trees {
    /// The word that holds the address of the tree in force.
    pub pointer: PhysRange,
    /// The two places, of equal size; whole pages. First the one in force when the image was loaded.
    pub places: [PhysRange; 2],
}

impl Request {
    /// All that the request names of the image.
    fn parts(&self) -> impl Iterator<Item = PhysRange> + Clone {
        let pointer = self.trees.map(|trees| trees.pointer);
        self.written().chain([self.identity_at]).chain(pointer)
    }

    /// What of it is followed and written in whole.
    fn written(&self) -> impl Iterator<Item = PhysRange> + Clone {
        let trees = self.trees.map(|trees| trees.places);
        core::iter::once(self.header).chain(trees.into_iter().flatten())
    }
}

/// Holds a request against the rules; `wanted` is what may be followed at all, `page` the size of the kernel's pages in
/// bytes.
///
/// # Errors
/// Why it cannot be.
pub fn check(request: &Arm, wanted: u32, arch: &Arch, page: u64) -> Result<Request, Reason> {
    if request.version != abi::VERSION || request.size as usize != size_of::<Arm>() {
        return Err(Reason::Version);
    }
    if request.follow & !(FOLLOW_MEMORY | FOLLOW_CPUS) != 0 {
        return Err(Reason::BadRequest);
    }
    let follow = request.follow & wanted;
    if follow == 0 {
        return Err(Reason::SwitchedOff);
    }
    let header = pages(request.header, MAX_HEADER, page)?;
    let identity_at = words(request.identity_at, request.identity.len() as u64)?;
    let trees = check_trees(request, arch, page)?;
    let excluded = request.excluded.get(..request.excluded_count as usize).and_then(Excluded::new);
    let excluded = excluded.ok_or(Reason::BadRequest)?;
    let (low, high) = request.identity.split_at(8);
    let word = |bytes: &[u8]| bytes.first_chunk().copied().map_or(0, u64::from_ne_bytes);
    let checked = Request { header, identity_at, identity: [word(low), word(high)], trees, excluded, follow };
    let mut parts = checked.parts();
    while let Some(part) = parts.next() {
        if parts.clone().any(|other| other.overlaps(part)) {
            return Err(Reason::Overlap);
        }
    }
    Ok(checked)
}

fn check_trees(request: &Arm, arch: &Arch, page: u64) -> Result<Option<Trees>, Reason> {
    let names_none = request.tree_pointer == 0 && request.trees == [abi::Range::default(); 2];
    match (arch.has_tree, names_none) {
        (false, true) => return Ok(None),
        (true, false) => {}
        _ => return Err(Reason::BadRequest),
    }
    let [first, second] = request.trees;
    let places = [pages(first, MAX_TREE, page)?, pages(second, MAX_TREE, page)?];
    if first.end - first.start != second.end - second.start {
        return Err(Reason::Misaligned);
    }
    Ok(Some(Trees { pointer: words(request.tree_pointer, 8)?, places }))
}

/// A range of whole pages, with at least one and at most `limit` bytes.
fn pages(range: abi::Range, limit: u64, page: u64) -> Result<PhysRange, Reason> {
    let range = PhysRange::new(PhysAddr(range.start), PhysAddr(range.end));
    let range = range.filter(|range| !range.is_empty() && range.len() <= limit);
    range
        .filter(|range| range.start().is_aligned(page) && range.end().is_aligned(page))
        .ok_or(Reason::Misaligned)
}

/// A range of words of 8 bytes.
fn words(start: u64, len: u64) -> Result<PhysRange, Reason> {
    let range = PhysRange::from_len(PhysAddr(start), len);
    range.filter(|range| range.start().is_aligned(8)).ok_or(Reason::Misaligned)
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
    machine: Machine,
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
    /// The note in this slot, one of a CPU, points at that CPU's save area.
    Point(usize),
}

impl<'a> Steps<'a> {
    /// For a machine of this kind whose RAM is `ram`, lowest first.
    pub fn new(ram: &'a [abi::Range], machine: Machine) -> Self {
        Self { machine, ram: ram.iter(), past: PhysAddr(0), pending: None, over: false }
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
        let limit = PhysAddr(self.machine.phys_limit());
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
