//! What hotdump's kernel module and the loader say to each other: ioctls on [`DEVICE`] and their structures.
//!
//! Both ends compile these definitions; the C part of the module gets them as a header that [`c_header()`] writes, with
//! assertions on every size and offset. Every structure starts with [`VERSION`] and its own size, so that ends of
//! different age tell each other instead of misreading. All addresses are physical; numbers are of the machine's own
//! byte order; no structure has padding.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod header;
mod reason;

pub use header::c_header;
pub use reason::Reason;

/// Version of this interface. Both ends must have the same.
pub const VERSION: u32 = 3;

/// The module's device. Reading it gives the bytes of the armed crash header as they are in reserved memory.
///
/// Whoever loads an image opens the device *before*, and arms through that file: the module refuses where more than one
/// load came to its end since the file was opened, so it cannot take another program's image for the requester's.
pub const DEVICE: &str = "/dev/hotdump";

/// Variable of the `change` uevents that the device sends when an image is armed or let go: [`UEVENT_ARMED`] or
/// [`UEVENT_DISARMED`]. A udev rule for the latter is
/// `ACTION=="change", SUBSYSTEM=="misc", KERNEL=="hotdump", ENV{HOTDUMP}=="disarmed"`.
pub const UEVENT_STATE: &str = "HOTDUMP";
/// [`UEVENT_STATE`]: an image is followed from now on.
pub const UEVENT_ARMED: &str = "armed";
/// [`UEVENT_STATE`]: none is any more; [`UEVENT_REASON`] says why.
pub const UEVENT_DISARMED: &str = "disarmed";
/// Variable of the uevent: the [`Reason`]'s number, decimal.
pub const UEVENT_REASON: &str = "HOTDUMP_REASON";
/// Variable of the uevent: 1 where the image has to be loaded again ([`Reason::is_stale`]), else 0.
pub const UEVENT_STALE: &str = "HOTDUMP_STALE";

/// [`Arm::follow`]: memory that comes and goes.
pub const FOLLOW_MEMORY: u32 = 1;
/// [`Arm::follow`]: CPUs that come.
pub const FOLLOW_CPUS: u32 = 2;

/// Most ranges that [`Arm::excluded`] holds.
pub const MAX_EXCLUDED: usize = 16;

/// The ioctls' type letter.
const IOCTL_TYPE: u32 = b'H' as u32;

/// How an architecture forms the numbers of ioctls (`_IOC` of its uapi/asm/ioctl.h): 8 bits of number, 8 of type, then
/// the structure's size, then these.
#[derive(Clone, Copy)]
pub(crate) struct Directions {
    /// Bits below them.
    shift: u32,
    none: u32,
    /// The kernel writes to user space.
    read: u32,
    /// The kernel reads from user space.
    write: u32,
}

/// Those of x86, arm64 and most others (asm-generic/ioctl.h).
pub(crate) const GENERIC: Directions = Directions { shift: 30, none: 0, read: 2, write: 1 };
/// Those of PowerPC.
pub(crate) const POWERPC: Directions = Directions { shift: 29, none: 1, read: 2, write: 4 };
/// Those of the machine this is compiled for.
const NATIVE: Directions =
    if cfg!(any(target_arch = "powerpc64", target_arch = "powerpc")) { POWERPC } else { GENERIC };

impl Directions {
    const fn number(self, direction: u32, number: u32, size: usize) -> u32 {
        direction << self.shift | (size as u32) << 16 | IOCTL_TYPE << 8 | number
    }

    pub(crate) const fn arm(self) -> u32 {
        self.number(self.read | self.write, 1, size_of::<Arm>())
    }

    pub(crate) const fn disarm(self) -> u32 {
        self.number(self.none, 2, 0)
    }

    pub(crate) const fn status(self) -> u32 {
        self.number(self.read, 3, size_of::<Status>())
    }
}

/// Takes an [`Arm`]: follow the machine in this crash image. On an error [`Arm::reason`] says why.
pub const IOCTL_ARM: u32 = NATIVE.arm();
/// Takes nothing: stop following. The image stays loaded.
pub const IOCTL_DISARM: u32 = NATIVE.disarm();
/// Gives a [`Status`].
pub const IOCTL_STATUS: u32 = NATIVE.status();

/// Defines a structure of the interface and the table that the C header is written from.
macro_rules! structure {
    ($(#[$doc:meta])* $name:ident $c:literal { $($(#[$field_doc:meta])* $field:ident: $kind:ty, $c_kind:literal $c_array:literal;)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name { $($(#[$field_doc])* pub $field: $kind,)* }

        impl $name {
            pub(crate) const SHAPE: header::Shape = header::Shape {
                name: $c,
                size: size_of::<$name>(),
                fields: &[$(header::Field {
                    name: stringify!($field),
                    kind: $c_kind,
                    array: $c_array,
                    offset: core::mem::offset_of!($name, $field),
                },)*],
            };
        }

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$kind>())*, "padding");
    };
}

structure! {
    /// Physical memory from `start` up to, not including, `end`.
    Range "hotdump_range" {
        /// First address.
        start: u64, "__u64" "";
        /// First address past the range.
        end: u64, "__u64" "";
    }
}

structure! {
    /// A crash image, as loaded, for [`IOCTL_ARM`].
    Arm "hotdump_arm" {
        /// [`VERSION`].
        version: u32, "__u32" "";
        /// Size of this structure in bytes.
        size: u32, "__u32" "";
        /// Where the crash header is, with its room to grow. Whole pages of the running kernel, 4 KiB at the least.
        header: Range, "struct hotdump_range" "";
        /// Where the image carries its identity.
        identity_at: u64, "__u64" "";
        /// The image's random name.
        identity: [u8; 16], "__u8" "[16]";
        /// What to follow: [`FOLLOW_MEMORY`], [`FOLLOW_CPUS`]. Answer: what of it is followed.
        follow: u32, "__u32" "";
        /// Number of ranges in `excluded`.
        excluded_count: u32, "__u32" "";
        /// RAM that a dump shall not hold: low memory, the reservations. Lowest first; the header lies in one of them.
        excluded: [Range; MAX_EXCLUDED], "struct hotdump_range" "[HOTDUMP_MAX_EXCLUDED]";
        /// Where purgatory keeps the physical address of the device tree in force, 8 bytes at a multiple of 8; 0 on
        /// architectures whose capture kernels take no tree.
        tree_pointer: u64, "__u64" "";
        /// The two places for device trees, each with its room to grow: the one in force first, then the spare one,
        /// whose content does not matter. Whole pages, of equal size. Empty where `tree_pointer` is 0.
        trees: [Range; 2], "struct hotdump_range" "[2]";
        /// Answer: a [`Reason`] where arming failed.
        reason: u32, "__u32" "";
        /// Answer: what was found in its place, if the reason has something to tell; else 0.
        found: u32, "__u32" "";
    }
}

structure! {
    /// What the module does and did, for [`IOCTL_STATUS`].
    Status "hotdump_status" {
        /// [`VERSION`].
        version: u32, "__u32" "";
        /// Size of this structure in bytes.
        size: u32, "__u32" "";
        /// 1 while an image is followed.
        armed: u32, "__u32" "";
        /// Why none is followed: a [`Reason`].
        reason: u32, "__u32" "";
        /// What is followed: [`FOLLOW_MEMORY`], [`FOLLOW_CPUS`].
        follow: u32, "__u32" "";
        /// Slots of the header that are in use.
        used_slots: u32, "__u32" "";
        /// Slots of the header that are free, those behind its end included.
        free_slots: u32, "__u32" "";
        /// 0.
        reserved: u32, "__u32" "";
        /// Where the followed header is.
        header: Range, "struct hotdump_range" "";
        /// The followed image's random name.
        identity: [u8; 16], "__u8" "[16]";
        /// Memory events that a followed image took, since the module was loaded.
        memory_events: u64, "__u64" "";
        /// CPU events that a followed image took, since the module was loaded.
        cpu_events: u64, "__u64" "";
        /// Stores to the header since the module was loaded.
        stores: u64, "__u64" "";
        /// Changes that the machine had gone through between planning and arming.
        reconciled: u64, "__u64" "";
        /// Nanoseconds that the last of these events took, with the wait for others.
        last_ns: u64, "__u64" "";
        /// Nanoseconds that the slowest of these events took.
        slowest_ns: u64, "__u64" "";
        /// When the last of these events was, in seconds since 1970; 0 if there was none.
        last_time: u64, "__u64" "";
        /// Physical address of the followed image's device tree in force; 0 where it has none.
        tree: u64, "__u64" "";
        /// Device trees written since the module was loaded.
        trees_built: u64, "__u64" "";
    }
}
