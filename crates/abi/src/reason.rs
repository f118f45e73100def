//! Why the module does not follow an image.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why the module refused an image, or let go of it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Reason { $($(#[$doc])* $name = $code,)* }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            /// The variant's name.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name),)* }
            }

            /// The reason as both ends tell it.
            pub const fn text(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// There is none: nothing was ever armed, or all is well.
    None = 0, "no image was armed yet";
    /// The loader let go.
    Asked = 1, "the loader disarmed it";
    /// The module is being unloaded.
    Unloading = 2, "the module is being unloaded";
    /// Somebody loads or unloads a crash image.
    OtherLoad = 3, "a crash image is being loaded or unloaded";
    /// Bytes are not those that were last written.
    Changed = 4, "somebody else changed the crash header: load again";
    /// The identity is not there (any more).
    NotOurs = 5, "the crash image does not carry the identity it was armed with: load again";
    /// No free slot for a range.
    Full = 6, "the crash header has no free slot left: load again with more room";
    /// A change that cannot be worked out.
    Update = 7, "the crash header cannot take this change: load again";
    /// The structure is of another version.
    Version = 8, "loader and module speak different versions: install the module that belongs to this hotdump";
    /// No crash image is loaded.
    NotLoaded = 9, "no crash image is loaded";
    /// Addresses are not in a crash reservation.
    OutsideReservation = 10, "the image does not lie in the crash kernel's reservation";
    /// Addresses do not start or end where they must.
    Misaligned = 11, "the crash header or a device tree is not whole pages or no size for one, or the image's identity or the word that names the \
         tree not whole words";
    /// What the request names lies in one another.
    Overlap = 12, "the crash header, the image's identity, its device trees and the word that names the tree overlap";
    /// The header does not parse.
    BadHeader = 13, "the crash header is not one that a capture kernel takes";
    /// Another image is armed.
    AlreadyArmed = 14, "another image is armed: disarm or unload it first";
    /// The kernel has no memory to spare.
    NoMemory = 15, "the kernel has no memory for it";
    /// The place where loads are seen could not be hooked.
    NoHook = 16, "this kernel lets the module not see loads of other programs";
    /// CPUs and memory came and went all the time.
    Restless = 17, "CPUs or memory come and go too fast to begin: try again";
    /// What is to be followed, or the list of what a dump leaves out, makes no sense.
    BadRequest = 18, "the request asks for nothing that is known, or its list of ranges is out of order";
    /// Following is switched off by the module's parameters.
    SwitchedOff = 19, "switched off by the module's parameters";
    /// The kernel is locked down.
    Lockdown = 20, "the kernel is locked down";
    /// A dump would hold the image itself.
    NotExcluded = 21, "the crash image is not among the memory that a dump leaves out";
    /// The device tree in force does not parse, or is not the one that the word names.
    BadTree = 22, "the crash image's device tree is not one that a capture kernel takes, or not the one it would take";
    /// The device tree with the machine's CPUs does not fit its place.
    TreeFull = 23, "the device tree with all CPUs does not fit its place: load again with more room";
}

impl Reason {
    /// The reason with this code.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| *reason as u32 == code)
    }

    /// Whether the module let go because of what it found, or could not do, at a change of the machine: the image may
    /// still be loaded, its header is whole, but lacks that change. Only a new load helps.
    pub fn is_stale(self) -> bool {
        matches!(self, Self::Changed | Self::NotOurs | Self::Full | Self::Update | Self::TreeFull)
    }
}
