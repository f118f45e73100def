//! What outlives images.

use abi::{FOLLOW_CPUS, FOLLOW_MEMORY, Reason, Status};
use elfcorehdr::PhysRange;

use crate::image::{Image, Live, Memory};

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
    memory_events: u64,
    cpu_events: u64,
    loads: u64,
    stores: u64,
    reconciled: u64,
    last_ns: u64,
    slowest_ns: u64,
    last_time: u64,
}

/// What tells, later, that nothing came between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    events: u64,
    loads: u64,
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
            memory_events: 0,
            cpu_events: 0,
            loads: 0,
            stores: 0,
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
        Moment { events: self.memory_events.wrapping_add(self.cpu_events), loads: self.loads }
    }

    /// Lets go of the image: nothing is written to it any more. Whether there was one.
    pub fn disarm(&mut self, reason: Reason) -> bool {
        // Somebody else's load counts even where nothing is armed: an arming that is under way must not go on.
        self.loads = self.loads.wrapping_add(1);
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
        if self.loads != then.loads {
            return Err(Reason::OtherLoad);
        }
        self.image = image.take();
        (self.armed, self.settled, self.reason) = (self.image.is_some(), false, Reason::None);
        (self.header, self.identity) = (header, identity);
        Ok(())
    }

    /// Changes the image as part of bringing it up to date. `Ok(false)` if something happened since `then`.
    ///
    /// # Errors
    /// Why it is not followed any more.
    pub fn reconcile(
        &mut self,
        then: Moment,
        change: impl FnOnce(&mut Image<'m, L>) -> Result<u64, Reason>,
    ) -> Result<bool, Reason> {
        let now = self.moment();
        let image = self.image.as_mut().filter(|_| self.armed).ok_or(self.reason)?;
        if now != then {
            return Ok(false);
        }
        match image.check().and_then(|()| change(image)) {
            Ok(stores) => {
                self.stores += stores;
                self.reconciled += u64::from(stores != 0);
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
        self.memory_events = self.memory_events.wrapping_add(1);
        self.event(|image| image.memory(what, range))
    }

    /// Takes the event that a CPU comes. Whether the image was let go.
    pub fn cpu(&mut self, cpu: u32) -> bool {
        self.cpu_events = self.cpu_events.wrapping_add(1);
        self.event(|image| image.cpu(cpu))
    }

    fn event(&mut self, take: impl FnOnce(&mut Image<'m, L>) -> Result<u64, Reason>) -> bool {
        let Some(image) = self.image.as_mut().filter(|_| self.armed) else { return false };
        match take(image) {
            Ok(stores) => {
                self.stores = self.stores.wrapping_add(stores);
                false
            }
            Err(reason) => self.disarm(reason),
        }
    }

    /// Notes how long an event took, in nanoseconds, and when it was, in seconds since 1970.
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
        }
    }
}
