//! Between the core and the C shim: the declarations of kmod/shim/core.h, and what has to be unsafe for them.
#![expect(unsafe_code, reason = "the shim is C, and the image is memory that others can see")]

use core::cell::UnsafeCell;
use core::panic::PanicInfo;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU32, Ordering, fence};

use abi::{Arm, FOLLOW_CPUS, Reason, Status};
use elfcorehdr::update::{Index, Node, Store, Width};
use elfcorehdr::{PhysAddr, PhysRange};

use crate::arch::{self, Arch};
use crate::arming::{self, Kernel, Refused, Request};
use crate::{Comer, Cpu, Image, Live, Memory, Nodes, Parts, State, Trees};

unsafe extern "C" {
    fn hd_map(start: u64, size: u64) -> *mut u8;
    fn hd_unmap(mapped: *mut u8);
    fn hd_alloc(size: u64) -> *mut u8;
    fn hd_free(allocated: *mut u8);
    safe fn hd_page_size() -> u64;
    safe fn hd_in_reservation(start: u64, end: u64) -> u32;
    safe fn hd_image_loaded() -> u32;
    fn hd_ram(ranges: *mut abi::Range, room: u64) -> i64;
    fn hd_cpus(cpus: *mut Cpu, room: u64) -> i64;
    fn hd_nodes(size: *mut u64) -> *const u8;
    safe fn hd_nodes_done();
    safe fn hd_hardware(cpu: u32) -> u32;
    fn hd_gone(reason: u32, is_stale: u32, text: *const u8, size: u64);
    safe fn hd_lock() -> u64;
    fn hd_unlock(flags: u64);
    safe fn hd_direct_map() -> u64;
    safe fn hd_now() -> u64;
    safe fn hd_time() -> u64;
    safe fn hd_stored();
    /// Only where it is not 0 is there anything to be done after a store.
    safe static hd_panic_after_store: AtomicU32;
    /// Exists nowhere. A panic that is not optimised out keeps the handler below, and the module does not link.
    safe fn hd_core_must_not_panic() -> !;
}

#[panic_handler]
fn panicked(_: &PanicInfo<'_>) -> ! {
    hd_core_must_not_panic()
}

/// Memory of the kernel's, zeroed, of `len` values for which zeros are one.
struct Allocated<T> {
    first: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its memory; any thread may use and free it.
unsafe impl<T: Send> Send for Allocated<T> {}

/// Types for which zeros are a value.
///
/// # Safety
/// They are.
unsafe trait Zeroable: Copy {}
// SAFETY: numbers.
unsafe impl Zeroable for u8 {}
// SAFETY: nothing but numbers.
unsafe impl Zeroable for Node {}
// SAFETY: nothing but numbers.
unsafe impl Zeroable for Cpu {}
// SAFETY: nothing but numbers.
unsafe impl Zeroable for abi::Range {}

impl<T: Zeroable> Allocated<T> {
    fn new(len: usize) -> Result<Self, Refused> {
        // One byte more: vzalloc refuses a size of 0.
        let size = len.checked_mul(size_of::<T>()).and_then(|size| size.checked_add(1));
        let size = size.ok_or(Reason::NoMemory)? as u64;
        // SAFETY: any size may be asked for; the memory is page-aligned and zeroed.
        let first = NonNull::new(unsafe { hd_alloc(size) }.cast()).ok_or(Reason::NoMemory)?;
        Ok(Self { first, len })
    }

    fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: the memory is ours, holds `len` values, and `self` is borrowed as long as the slice.
        unsafe { core::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }

    /// The values, for as long as the caller sees to it that `self` lives.
    ///
    /// # Safety
    /// The slice must not be used after `self` is dropped, and no other one of it be made.
    unsafe fn leak(&mut self) -> &'static mut [T] {
        // SAFETY: as for `as_mut`; the lifetime is the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl<T> AsRef<[T]> for Allocated<T> {
    fn as_ref(&self) -> &[T] {
        // SAFETY: the memory is ours, holds `len` values, and `self` is borrowed as long as the slice.
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> Drop for Allocated<T> {
    fn drop(&mut self) {
        // SAFETY: it came from hd_alloc and nobody has it any more.
        unsafe { hd_free(self.first.as_ptr().cast()) }
    }
}

/// Reserved memory, mapped writable.
struct Mapped {
    first: NonNull<u8>,
    len: usize,
}

impl Mapped {
    fn new(range: PhysRange) -> Result<Self, Refused> {
        // SAFETY: the range was found to lie in a reservation, which is RAM that nobody else uses.
        let first = unsafe { hd_map(range.start().0, range.len()) };
        let first = NonNull::new(first).ok_or(Reason::NoMemory)?;
        Ok(Self { first, len: range.len() as usize })
    }

    /// The 8 bytes at a multiple of 8; 0 outside.
    fn word(&self, offset: usize) -> u64 {
        match self.place(offset) {
            // SAFETY: `place` gives aligned places in the mapping. Volatile: whoever loads an image writes there.
            Some(place) => unsafe { ptr::read_volatile(place) },
            None => 0,
        }
    }

    /// A copy of it all, which is whole words.
    fn copy(&self) -> Result<Allocated<u8>, Refused> {
        let mut copy = Allocated::<u8>::new(self.len)?;
        for (at, bytes) in copy.as_mut().chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&self.word(at * 8).to_ne_bytes());
        }
        Ok(copy)
    }

    /// Whether it begins with these bytes, whole words.
    fn has(&self, bytes: &[u8]) -> bool {
        let words = bytes.as_chunks::<8>().0;
        let Some(place) = self.words(0, words.len()) else { return false };
        // SAFETY: there are so many words in the mapping. Volatile: whoever loads an image writes there.
        let word = |index| unsafe { place.add(index).read_volatile() };
        words.iter().enumerate().all(|(index, wanted)| word(index) == u64::from_ne_bytes(*wanted))
    }

    /// The word at a multiple of 8.
    fn place(&self, offset: usize) -> Option<*mut u64> {
        self.words(offset, 1)
    }

    /// The first of `count` words, at a multiple of 8, that are all in the mapping.
    fn words(&self, offset: usize, count: usize) -> Option<*mut u64> {
        let room = self.len.checked_sub(offset)? / 8;
        // SAFETY: so many words lie in the mapping.
        (count <= room && offset & 7 == 0).then(|| unsafe { self.first.as_ptr().add(offset).cast() })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it came from hd_map and nobody has it any more.
        unsafe { hd_unmap(self.first.as_ptr()) }
    }
}

/// An image in memory, with all that was allocated for following it.
struct Reserved {
    header: Mapped,
    identity_at: Mapped,
    identity: [u64; 2],
    trees: Option<MappedTrees>,
    // What the image's slices point into; it is dropped with the image, of which this is a part.
    _shadow: Allocated<u8>,
    _nodes: Allocated<Node>,
    _cpus: Allocated<Cpu>,
}

/// The places of its device trees.
struct MappedTrees {
    pointer: Mapped,
    places: [Mapped; 2],
    _shadows: [Allocated<u8>; 2],
}

impl Live for Reserved {
    fn header_has(&self, bytes: &[u8]) -> bool {
        self.header.has(bytes)
    }

    fn store(&mut self, store: Store, written: [u8; 8]) -> bool {
        let offset = store.offset as usize;
        let Some(place) = self.header.place(offset & !7) else { return false };
        // SAFETY: aligned and in the mapping. Volatile: whoever loads an image writes there.
        if unsafe { place.read_volatile() } != u64::from_ne_bytes(written) {
            return false;
        }
        match store.width {
            // SAFETY: aligned and in the mapping, which is writable; one instruction each.
            Width::Eight => unsafe { place.write_volatile(store.value.to_le()) },
            // SAFETY: as above; two bytes at an even offset in the word.
            Width::Two => unsafe {
                place.cast::<u8>().add(offset & 6).cast::<u16>().write_volatile((store.value as u16).to_le());
            },
        }
        stored();
        true
    }

    fn tree_pointer(&self) -> u64 {
        self.trees.as_ref().map_or(0, |trees| u64::from_le(trees.pointer.word(0)))
    }

    fn set_tree_pointer(&mut self, address: u64) {
        let Some(place) = self.trees.as_ref().and_then(|trees| trees.pointer.place(0)) else { return };
        // SAFETY: aligned and in the mapping, which is writable; one instruction.
        unsafe { place.write_volatile(address.to_le()) };
        stored();
    }

    fn tree_has(&self, place: usize, bytes: &[u8]) -> bool {
        let place = self.trees.as_ref().and_then(|trees| trees.places.get(place));
        place.is_some_and(|place| place.has(bytes))
    }

    fn write_tree(&mut self, place: usize, offset: usize, bytes: &[u8]) {
        let Some(mapped) = self.trees.as_ref().and_then(|trees| trees.places.get(place)) else { return };
        let words = bytes.as_chunks::<8>().0;
        let Some(place) = mapped.words(offset, words.len()) else { return };
        for (index, word) in words.iter().enumerate() {
            // SAFETY: aligned and in the mapping, which is writable: there are so many words.
            unsafe { place.add(index).write_volatile(u64::from_ne_bytes(*word)) };
        }
        stored();
    }

    fn is_loaded(&self) -> bool {
        hd_image_loaded() != 0
    }

    fn is_ours(&self) -> bool {
        [self.identity_at.word(0), self.identity_at.word(8)] == self.identity
    }
}

/// Keeps what was stored before all that is stored later.
fn stored() {
    fence(Ordering::SeqCst);
    if hd_panic_after_store.load(Ordering::Relaxed) != 0 {
        hd_stored();
    }
}

struct Global(UnsafeCell<State<'static, Reserved>>);

// SAFETY: only `locked` gets at what is inside, and it holds the shim's lock.
unsafe impl Sync for Global {}

static STATE: Global = Global(UnsafeCell::new(State::new()));

/// Runs `work` on the state while nobody else can. It must not sleep, nor come back here.
fn locked<R>(work: impl FnOnce(&mut State<'static, Reserved>) -> R) -> R {
    let flags = hd_lock();
    // SAFETY: the lock is held, and `work` cannot keep the reference.
    let result = work(unsafe { &mut *STATE.0.get() });
    // SAFETY: it is held by us, with these flags.
    unsafe { hd_unlock(flags) };
    result
}

/// The kernel, by way of the shim.
struct Shim;

impl Kernel<'static> for Shim {
    type Live = Reserved;
    type Ram = Allocated<abi::Range>;

    fn arch(&self) -> &'static Arch {
        &arch::NATIVE
    }

    fn page_size(&self) -> u64 {
        hd_page_size()
    }

    fn in_reservation(&self, range: PhysRange) -> bool {
        hd_in_reservation(range.start().0, range.end().0) != 0
    }

    fn is_loaded(&self) -> bool {
        hd_image_loaded() != 0
    }

    fn open(&self, request: &Request) -> Result<Image<'static, Reserved>, Refused> {
        let header = Mapped::new(request.header)?;
        let identity_at = Mapped::new(request.identity_at)?;
        let mut shadow = header.copy()?;
        let mut nodes = Allocated::<Node>::new(Index::nodes_for(header.len))?;
        let mut cpus = possible_cpus()?;
        let follow_cpus = request.follow & FOLLOW_CPUS != 0
            && arming::may_follow_cpus(shadow.as_mut(), cpus.as_mut(), |range| self.in_reservation(range));
        let (mapped_trees, trees) = open_trees(request.trees)?.unzip();
        // SAFETY: the slices go into the image; the memory goes into its `Reserved`, which is dropped with it.
        let (shadow_slice, nodes_slice, cpus_slice) = unsafe { (shadow.leak(), nodes.leak(), cpus.leak()) };
        let live = Reserved {
            header,
            identity_at,
            identity: request.identity,
            trees: mapped_trees,
            _shadow: shadow,
            _nodes: nodes,
            _cpus: cpus,
        };
        let parts = Parts {
            shadow: shadow_slice,
            nodes: nodes_slice,
            trees,
            excluded: request.excluded,
            direct_map: hd_direct_map(),
            follow: request.follow,
        };
        let mut image = Image::new(live, parts, &arch::NATIVE, |range| self.in_reservation(range))?;
        if follow_cpus {
            image.follow_cpus(cpus_slice);
        }
        Ok(image)
    }

    fn ram(&self) -> Result<Allocated<abi::Range>, Refused> {
        // SAFETY: nothing is written to no room.
        let mut room = unsafe { hd_ram(ptr::null_mut(), 0) };
        // More may come between; then once more.
        loop {
            let mut ranges = Allocated::new(usize::try_from(room).unwrap_or(0).saturating_add(16))?;
            // SAFETY: there is room for so many.
            let found = unsafe { hd_ram(ranges.first.as_ptr(), ranges.len as u64) };
            let found_len = usize::try_from(found).unwrap_or(0);
            if found_len <= ranges.len {
                ranges.len = found_len;
                return Ok(ranges);
            }
            room = found;
        }
    }

    fn nodes<R>(&self, work: impl FnOnce(Nodes<'_>) -> R) -> Result<R, Refused> {
        with_nodes(true, work)
    }

    fn locked<R>(&self, work: impl FnOnce(&mut State<'static, Reserved>) -> R) -> R {
        locked(work)
    }

    fn drop_dead(&self) {
        let (dead, reason) = locked(|state| (state.take_dead(), state.reason()));
        if dead.is_some() {
            let text = reason.text();
            // SAFETY: the text is there for as many bytes.
            unsafe { hd_gone(reason as u32, u32::from(reason.is_stale()), text.as_ptr(), text.len() as u64) };
        }
    }
}

/// Follows the image that `request` names. `wanted` is what may be followed at all, `loads_before` what `hd_core_loads`
/// gave before the image was loaded.
///
/// # Safety
/// `request` points to a request that nobody else uses. May sleep; not to be run twice at a time.
#[unsafe(no_mangle)]
unsafe extern "C" fn hd_core_arm(request: *mut Arm, wanted: u32, loads_before: u64) -> i32 {
    // SAFETY: the caller's promise.
    let request = unsafe { &mut *request };
    match arming::arm(&Shim, request, wanted, loads_before) {
        Ok(follow) => {
            request.follow = follow;
            0
        }
        Err(refused) => {
            request.reason = refused.reason as u32;
            request.found = refused.found;
            -refused.errno
        }
    }
}

/// Maps the places of device trees and gets the memory for following them.
fn open_trees(trees: Option<arming::Trees>) -> Result<Option<(MappedTrees, Trees<'static>)>, Refused> {
    let Some(arming::Trees { pointer, places: [first, second] }) = trees else { return Ok(None) };
    let pointer = Mapped::new(pointer)?;
    let places = [Mapped::new(first)?, Mapped::new(second)?];
    let [in_force, _] = &places;
    let mut shadows = [in_force.copy()?, Allocated::new(in_force.len)?];
    let [copy, spare] = &mut shadows;
    // SAFETY: the slices go into the image; the memory goes into its `Reserved`, which is dropped with it.
    let slices = unsafe { [copy.leak(), spare.leak()] };
    Ok(Some((MappedTrees { pointer, places, _shadows: shadows }, Trees::new([first, second], slices))))
}

/// Gives `work` the nodes of `/cpus`, where there is a device tree and they are `wanted`; else none.
fn with_nodes<R>(wanted: bool, work: impl FnOnce(Nodes<'_>) -> R) -> Result<R, Refused> {
    if !arch::NATIVE.has_tree || !wanted {
        return Ok(work(Nodes::default()));
    }
    let mut size = 0;
    // SAFETY: the size is to be written.
    let first = NonNull::new(unsafe { hd_nodes(&mut size) }.cast_mut()).ok_or(Reason::NoMemory)?;
    // SAFETY: the shim gave so many bytes, which stay as they are until hd_nodes_done.
    let result = work(Nodes::new(unsafe { core::slice::from_raw_parts(first.as_ptr(), size as usize) }));
    hd_nodes_done();
    Ok(result)
}

/// The possible CPUs; none where the kernel does not tell where their notes are.
fn possible_cpus() -> Result<Allocated<Cpu>, Refused> {
    // SAFETY: nothing is written to no room.
    let count = unsafe { hd_cpus(ptr::null_mut(), 0) };
    let cpus = Allocated::<Cpu>::new(usize::try_from(count).unwrap_or(0))?;
    if cpus.len != 0 {
        // SAFETY: there is room for so many; the possible CPUs do not change.
        unsafe { hd_cpus(cpus.first.as_ptr(), cpus.len as u64) };
    }
    Ok(cpus)
}

/// Frees what an image held that is not followed any more, and says why.
///
/// May sleep; not to be run twice at a time, nor with `hd_core_arm` or `hd_core_read`.
#[unsafe(no_mangle)]
extern "C" fn hd_core_drop() {
    Shim.drop_dead();
}

/// Copies bytes of the followed header, as they are in reserved memory. Gives their number.
///
/// # Safety
/// `to` has `size` bytes. Not to be run at the same time as `hd_core_drop`.
#[unsafe(no_mangle)]
unsafe extern "C" fn hd_core_read(offset: u64, to: *mut u8, size: u64) -> i64 {
    let header = locked(|state| {
        let image = state.image().filter(|_| state.is_armed())?;
        let mapped = &image.live().header;
        Some((mapped.first, mapped.len))
    });
    let Some((first, len)) = header else { return -i64::from(Refused::from(Reason::NotLoaded).errno) };
    let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(len);
    let size = usize::try_from(size).unwrap_or(usize::MAX).min(len - offset);
    for at in 0..size {
        // SAFETY: below `len` of the mapping, which stays until hd_core_drop; below `size` of `to`.
        unsafe { to.add(at).write(first.as_ptr().add(offset + at).read_volatile()) };
    }
    size as i64
}

/// Lets go of the image; nothing is written to it any more. 1 if there was one.
#[unsafe(no_mangle)]
extern "C" fn hd_core_disarm(reason: u32) -> u32 {
    let reason = Reason::from_code(reason).unwrap_or(Reason::Asked);
    locked(|state| u32::from(state.disarm(reason)))
}

/// A load, by anybody, came to its end. 1 if an image was let go over it.
#[unsafe(no_mangle)]
extern "C" fn hd_core_loaded() -> u32 {
    locked(|state| u32::from(state.loaded()))
}

/// How many loads came to their end so far.
#[unsafe(no_mangle)]
extern "C" fn hd_core_loads() -> u64 {
    locked(|state| state.loads())
}

/// Memory comes or goes. 1 if the image was let go over it.
#[unsafe(no_mangle)]
extern "C" fn hd_core_memory(what: u32, start: u64, end: u64) -> u32 {
    let what = match what {
        0 => Memory::Comes,
        1 => Memory::Came,
        2 => Memory::Gone,
        3 => Memory::Stays,
        _ => return 0,
    };
    match PhysRange::new(PhysAddr(start), PhysAddr(end)) {
        Some(range) => timed(hd_now(), |state| state.memory(what, range)),
        None => 0,
    }
}

/// A CPU comes. 1 if the image was let go over it.
///
/// May sleep.
#[unsafe(no_mangle)]
extern "C" fn hd_core_cpu(cpu: u32) -> u32 {
    let start = hd_now();
    let hardware = if arch::NATIVE.has_tree { hd_hardware(cpu) } else { cpu };
    let wanted = arch::NATIVE.has_tree && locked(|state| state.needs_nodes(hardware));
    let taken = with_nodes(wanted, |nodes| timed(start, |state| state.cpu(&Comer { cpu, hardware, nodes })));
    // Without the nodes there is no tree with this CPU.
    taken.unwrap_or_else(|refused| locked(|state| u32::from(state.disarm(refused.reason))))
}

/// Takes an event that began at `start`, by [`hd_now`].
fn timed(start: u64, event: impl FnOnce(&mut State<'static, Reserved>) -> bool) -> u32 {
    let time = hd_time();
    locked(|state| {
        let taken = state.taken();
        let is_over = event(state);
        if state.taken() != taken {
            // The clocks of two CPUs can differ a little.
            state.took(hd_now().saturating_sub(start), time);
        }
        u32::from(is_over)
    })
}

/// Follows no longer what `follow` has. 1 if the image was let go over it.
#[unsafe(no_mangle)]
extern "C" fn hd_core_unfollow(follow: u32) -> u32 {
    locked(|state| u32::from(state.unfollow(follow)))
}

/// What is followed and up to date.
#[unsafe(no_mangle)]
extern "C" fn hd_core_follows() -> u32 {
    locked(|state| state.follows())
}

/// All that there is to tell.
///
/// # Safety
/// `status` is to be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn hd_core_status(status: *mut Status) {
    let found = locked(|state| state.status());
    // SAFETY: the caller's promise.
    unsafe { status.write(found) };
}
