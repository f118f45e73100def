//! What outlives images.

use abi::{FOLLOW_CPUS, FOLLOW_MEMORY, Reason, Status};
use elfcorehdr::PhysRange;

use crate::arming::Step;
use crate::image::{Comer, Image, Live, Memory};
use crate::nodes::Nodes;

/// The module's state: the image, if there is one, and what happened so far. Who uses it sees to it that nobody else
/// does at the same time.
#[derive(Debug)]
pub struct State<'m, L> {
    image: Option<Image<'m, L>>,
    armed: bool,
    settled: bool,
    reason: Reason,
    header: abi::Range,
    identity: [u8; 16],
    /// Memory that was about to be used when last heard of: the kernel may not list it as used yet.
    coming: Option<PhysRange>,
    /// All events, followed or not.
    events: u64,
    /// Loads that came to their end.
    loads: u64,
    /// Beginnings and ends of loads, and lettings go.
    breaks: u64,
    memory_events: u64,
    cpu_events: u64,
    stores: u64,
    trees_built: u64,
    reconciled: u64,
    last_ns: u64,
    slowest_ns: u64,
    last_time: u64,
}

/// What tells, later, that nothing came between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    events: u64,
    breaks: u64,
}

impl<L> Default for State<'_, L> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'m, L> State<'m, L> {
    /// Nothing is followed, nothing happened yet.
    pub const fn new() -> Self {
        Self {
            image: None,
            armed: false,
            settled: false,
            reason: Reason::None,
            header: abi::Range { start: 0, end: 0 },
            identity: [0; 16],
            coming: None,
            events: 0,
            loads: 0,
            breaks: 0,
            memory_events: 0,
            cpu_events: 0,
            stores: 0,
            trees_built: 0,
            reconciled: 0,
            last_ns: 0,
            slowest_ns: 0,
            last_time: 0,
        }
    }

    /// Whether an image is followed, if perhaps not up to date yet.
    pub fn is_armed(&self) -> bool {
        self.armed
    }

    /// Why nothing is followed.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The image.
    pub fn image(&self) -> Option<&Image<'m, L>> {
        self.image.as_ref()
    }

    /// Takes out an image that is not followed any more.
    pub fn take_dead(&mut self) -> Option<Image<'m, L>> {
        if self.armed { None } else { self.image.take() }
    }

    /// This moment.
    pub fn moment(&self) -> Moment {
        Moment { events: self.events, breaks: self.breaks }
    }

    /// Loads, by anybody, that came to their end since the module is there.
    pub fn loads(&self) -> u64 {
        self.loads
    }

    /// Memory that was about to be used when last heard of: the kernel may use it, and not list it as used yet.
    pub fn coming(&self) -> Option<PhysRange> {
        self.coming
    }

    /// A load came to its end: what is loaded now is not what was armed. Whether an image was let go over it.
    pub fn loaded(&mut self) -> bool {
        self.loads = self.loads.wrapping_add(1);
        self.disarm(Reason::OtherLoad)
    }

    /// Lets go of the image: nothing is written to it any more. Whether there was one.
    pub fn disarm(&mut self, reason: Reason) -> bool {
        // Somebody else's load counts even where nothing is armed: an arming that is under way must not go on.
        self.breaks = self.breaks.wrapping_add(1);
        let was_armed = core::mem::take(&mut self.armed);
        self.settled = false;
        if was_armed {
            self.reason = reason;
        }
        was_armed
    }
}

impl<'m, L: Live> State<'m, L> {
    /// Follows `image` from now on, and takes it, unless another image was loaded since `then`, or one is followed.
    ///
    /// # Errors
    /// Why not; `image` stays the caller's.
    pub fn arm(
        &mut self,
        image: &mut Option<Image<'m, L>>,
        header: abi::Range,
        identity: [u8; 16],
        then: Moment,
    ) -> Result<(), Reason> {
        if self.armed || self.image.is_some() {
            return Err(Reason::AlreadyArmed);
        }
        if self.breaks != then.breaks {
            return Err(Reason::OtherLoad);
        }
        self.image = image.take();
        (self.armed, self.settled, self.reason) = (self.image.is_some(), false, Reason::None);
        (self.header, self.identity) = (header, identity);
        Ok(())
    }

    /// Takes a step of bringing the image up to date. `Ok(false)` if something happened since `then`.
    ///
    /// # Errors
    /// Why it is not followed any more.
    pub fn reconcile(&mut self, then: Moment, step: Step) -> Result<bool, Reason> {
        self.toward(then, |image, coming| image.reconcile(step, coming))
    }

    fn toward(
        &mut self,
        then: Moment,
        work: impl FnOnce(&mut Image<'m, L>, Option<PhysRange>) -> Result<u64, Reason>,
    ) -> Result<bool, Reason> {
        let now = self.moment();
        let image = self.image.as_mut().filter(|_| self.armed).ok_or(self.reason)?;
        if now != then {
            return Ok(false);
        }
        let tree = image.tree();
        match work(image, self.coming) {
            Ok(stores) => {
                self.trees_built = self.trees_built.wrapping_add(u64::from(image.tree() != tree));
                self.stores = self.stores.wrapping_add(stores);
                self.reconciled = self.reconciled.wrapping_add(u64::from(stores != 0));
                Ok(true)
            }
            Err(reason) => {
                self.disarm(reason);
                Err(reason)
            }
        }
    }

    /// The image is up to date, if nothing happened since `then`. Whether that is so.
    pub fn settle(&mut self, then: Moment) -> bool {
        self.settled = self.armed && self.moment() == then;
        self.settled
    }

    /// Takes an event of memory. Whether the image was let go.
    pub fn memory(&mut self, what: Memory, range: PhysRange) -> bool {
        match what {
            Memory::Comes => self.coming = Some(range),
            Memory::Came | Memory::Gone => {
                self.coming = self.coming.filter(|coming| !coming.overlaps(range));
            }
            Memory::Stays => {}
        }
        self.event(FOLLOW_MEMORY, |image| image.memory(what, range))
    }

    /// Takes the event that a CPU comes. Whether the image was let go.
    pub fn cpu(&mut self, comer: &Comer<'_>) -> bool {
        self.event(FOLLOW_CPUS, |image| image.cpu(comer))
    }

    /// Whether that event will need the nodes of `/cpus`: the device tree of a followed image lacks this CPU.
    pub fn needs_nodes(&self, hardware: u32) -> bool {
        let image = self.image.as_ref().filter(|image| self.armed && image.follow() & FOLLOW_CPUS != 0);
        image.is_some_and(|image| image.lacks(hardware))
    }

    /// Brings the device tree up to the nodes of `/cpus`. `Ok(false)` if something happened since `then`.
    ///
    /// # Errors
    /// Why it is not followed any more.
    pub fn reconcile_nodes(&mut self, then: Moment, nodes: Nodes<'_>) -> Result<bool, Reason> {
        self.toward(then, |image, _| image.follow_nodes(nodes))
    }

    fn event(&mut self, kind: u32, take: impl FnOnce(&mut Image<'m, L>) -> Result<u64, Reason>) -> bool {
        self.events = self.events.wrapping_add(1);
        let image = self.image.as_mut().filter(|image| self.armed && image.follow() & kind != 0);
        let Some(image) = image else { return false };
        let count = if kind == FOLLOW_MEMORY { &mut self.memory_events } else { &mut self.cpu_events };
        *count = count.wrapping_add(1);
        let tree = image.tree();
        match take(image) {
            Ok(stores) => {
                self.trees_built = self.trees_built.wrapping_add(u64::from(image.tree() != tree));
                self.stores = self.stores.wrapping_add(stores);
                false
            }
            Err(reason) => self.disarm(reason),
        }
    }

    /// Events that a followed image took.
    pub fn taken(&self) -> u64 {
        self.memory_events.wrapping_add(self.cpu_events)
    }

    /// Notes how long such an event took, in nanoseconds, and when it was, in seconds since 1970.
    pub fn took(&mut self, ns: u64, time: u64) {
        self.last_ns = ns;
        self.slowest_ns = self.slowest_ns.max(ns);
        self.last_time = time;
    }

    /// Follows no longer what `follow` has. Whether the image was let go, because nothing is left to follow.
    pub fn unfollow(&mut self, follow: u32) -> bool {
        let Some(image) = self.image.as_mut().filter(|_| self.armed) else { return false };
        image.unfollow(follow);
        if image.follow() & (FOLLOW_CPUS | FOLLOW_MEMORY) != 0 {
            return false;
        }
        self.disarm(Reason::SwitchedOff)
    }

    /// What is followed and up to date.
    pub fn follows(&self) -> u32 {
        self.image.as_ref().filter(|_| self.settled).map_or(0, Image::follow)
    }

    /// All that there is to tell.
    pub fn status(&self) -> Status {
        let image = self.image.as_ref().filter(|_| self.armed);
        let (used, free) = image.map_or((0, 0), Image::slots);
        Status {
            version: abi::VERSION,
            size: size_of::<Status>() as u32,
            armed: u32::from(self.settled),
            reason: self.reason as u32,
            follow: self.follows(),
            used_slots: used as u32,
            free_slots: free as u32,
            reserved: 0,
            header: self.header,
            identity: self.identity,
            memory_events: self.memory_events,
            cpu_events: self.cpu_events,
            stores: self.stores,
            reconciled: self.reconciled,
            last_ns: self.last_ns,
            slowest_ns: self.slowest_ns,
            last_time: self.last_time,
            tree: image.map_or(0, Image::tree),
            trees_built: self.trees_built,
        }
    }
}
