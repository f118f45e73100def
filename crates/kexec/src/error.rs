//! Why a plan could not be made. Nothing of the machine was changed when one of these is returned.

use elfcorehdr::{BuildError, PhysAddr, PhysRange};
use host::HostError;
use thiserror::Error;

use crate::arch::{KERNEL_FILE, MACHINE};

/// Why a kernel cannot be loaded on this machine as it is.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A fact of the machine could not be read.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The kernel file is not one that can be loaded.
    #[error("kernel: {0}")]
    Image(#[from] ImageError),
    /// The machine would refuse the system call.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Something does not fit into the reservation.
    #[error(
        "the crash reservation {reservation} is too small: no room for {what} ({size} MiB{limit}); the image needs about \
         {need} MiB of it, it has {have} MiB: {remedy}",
        size = mib(*.size), limit = Limit(*.below), need = mib(*.need), have = mib(.reservation.len()),
        remedy = remedy(*.need, .reservation.len())
    )]
    TooSmall {
        /// Where the image has to go.
        reservation: PhysRange,
        /// The piece that found no place.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// The address that it has to end below, where there is one.
        below: Option<PhysAddr>,
        /// Bytes that all pieces take together.
        need: u64,
    },
    /// A kernel that cannot be moved to where the reservation is.
    #[error(
        "kernel: it is not relocatable and wants {wanted}, which the crash reservation {reservation} does not hold: use a \
         kernel with CONFIG_RELOCATABLE"
    )]
    NotRelocatable {
        /// Where the image has to go.
        reservation: PhysRange,
        /// Where this kernel runs.
        wanted: PhysRange,
    },
    /// A kernel that cannot run above 4 GiB, where the reservation is.
    #[error(
        "kernel: it cannot be loaded above 4 GiB (XLF_CAN_BE_LOADED_ABOVE_4G is not set), the crash reservation is \
         {reservation}: use crashkernel= without ,high"
    )]
    Above4G {
        /// Where the image has to go.
        reservation: PhysRange,
    },
    /// The machine shows no device tree, which the capture kernel could not boot without.
    #[error(
        "there is no device tree (/sys/firmware/devicetree/base), without which a PowerPC kernel cannot boot: is /sys mounted?"
    )]
    NoDeviceTree,
    /// The capture kernel's device tree cannot be made of the machine's, or of the one that the user gave.
    #[error("device tree: {0}")]
    Tree(#[from] TreeFault),
    /// A device tree was given and kernels of this architecture take none.
    #[error("--dtb: kernels of this machine ({MACHINE}) take no device tree: leave it out")]
    TakesNoTree,
    /// The running kernel uses 5-level page tables, which the kernel to load does not know.
    #[error(
        "kernel: it does not know 5-level page tables (XLF_5LEVEL is not set), which the running kernel uses: boot with \
         no5lvl or use a newer kernel"
    )]
    FiveLevel,
    /// The command line, with what is added to it, is longer than the kernel takes.
    #[error("command line: {length} bytes with elfcorehdr=, this kernel takes {limit}: shorten it by {}", .length.saturating_sub(*.limit))]
    CmdlineTooLong {
        /// Its length in bytes.
        length: usize,
        /// The kernel's limit (cmdline_size).
        limit: usize,
    },
    /// A command line that cannot be passed.
    #[error("command line: {0}")]
    Cmdline(#[from] crate::cmdline::CmdlineError),
    /// The crash header could not be written.
    #[error(transparent)]
    Header(#[from] BuildError),
    /// The machine has more memory ranges or CPUs than the header that the kernel keeps up to date holds.
    #[error(
        "elfcorehdr needs {need} bytes now, the kernel keeps {room} up to date: its limits on CPUs and memory ranges are \
         too low for this machine (CONFIG_CRASH_MAX_MEMORY_RANGES), load with another --keep"
    )]
    HeaderRoom {
        /// Bytes that the header takes now.
        need: usize,
        /// Bytes that the kernel's handler may write.
        room: u64,
    },
    /// More than the running kernel lets an image take.
    #[error(
        "the image takes {} MiB, the running kernel lets it take half of its own memory, {} MiB: use a smaller initrd or \
         a smaller crashkernel=", mib(*.bytes), .limit >> 20
    )]
    HalfOfMemory {
        /// Bytes that the segments take in memory.
        bytes: u64,
        /// Bytes that they may take.
        limit: u64,
    },
    /// The limits that the user set leave nothing of the reservation.
    #[error("--mem-min and --mem-max leave nothing of the crash reservation {reservation}")]
    EmptyWindow {
        /// Where the image has to go.
        reservation: PhysRange,
    },
    /// A file to load could not be read.
    #[error("cannot read the {what}: {source}")]
    Unreadable {
        /// Which one.
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file to load holds nothing, which the kernel refuses.
    #[error("the {what} is empty")]
    Empty {
        /// Which one.
        what: &'static str,
    },
    /// No random numbers for the image's identity.
    #[error("cannot read /dev/urandom: {0}")]
    Random(#[source] std::io::Error),
}

/// Why the running kernel would refuse to load, found without asking it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The process has no CAP_SYS_BOOT.
    #[error("this process may not load kernels (CAP_SYS_BOOT): run as root")]
    Capability,
    /// kernel.kexec_load_disabled is set, which only a reboot undoes.
    #[error("loading kernels is switched off until the next boot (kernel.kexec_load_disabled=1)")]
    Disabled,
    /// kernel.kexec_load_limit_panic has run out.
    #[error(
        "the number of crash kernels that may be loaded is used up (kernel.kexec_load_limit_panic=0), reboot to load again"
    )]
    LimitReached,
    /// The kernel is locked down and takes only signed kernels by kexec_file_load.
    #[error(
        "the running kernel is locked down ({0}) and takes no image by kexec_load: use kexec_file_load with a signed kernel"
    )]
    Lockdown(&'static str),
    /// The kernel is locked down and does not trust the signature of the kernel to load.
    #[error(
        "the running kernel is locked down ({0}) and trusts no signature on this kernel: use your distribution's signed kernel, and \
         see that its key is enrolled (Secure Boot)"
    )]
    Untrusted(&'static str),
    /// No memory was reserved at boot.
    #[error(
        "Memory for crashkernel is not reserved: boot with crashkernel=256M (or as large as your distribution advises)"
    )]
    NoReservation,
    /// The kernel cannot keep the crash header up to date.
    #[error(
        "the kernel needs CONFIG_CRASH_HOTPLUG to keep the image current (there is no /sys/kernel/crash_elfcorehdr_size: it is older \
         than Linux 6.6, or built without): use hotdump's kernel module, or load again when CPUs or memory come or go"
    )]
    NoCrashHotplug,
}

/// What is wrong with a device tree that a capture kernel's is to be made of.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TreeFault {
    /// Bytes that are not a flattened tree.
    #[error("not a device tree blob ({0}): give one of version 17, as `dtc -O dtb` writes it")]
    NotATree(#[from] devtree::TreeError),
    /// A name that is not text.
    #[error("a name that is not text in node \"{0}\"")]
    Name(String),
    /// It cannot be flattened.
    #[error(transparent)]
    Unwritable(#[from] devtree::WriteError),
    /// Something that the tree of every 64-bit PowerPC machine has is not as it should be.
    #[error("{node}: wanted {wanted}, found {found}: is it the tree of a 64-bit PowerPC machine?")]
    Unfit {
        /// The node's path.
        node: &'static str,
        /// What it should have.
        wanted: &'static str,
        /// What it has.
        found: String,
    },
}

/// Why a file is not a kernel that can be loaded here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Some other kind of file.
    #[error(
        "not a {0}: {found}; give the {0} that your distribution installs as {1}", KERNEL_FILE.0, KERNEL_FILE.1
    )]
    NotAKernel {
        /// What it seems to be.
        found: String,
    },
    /// A kernel for machines of another kind.
    #[error("it is a kernel for {found}, this machine is {MACHINE}")]
    OtherArchitecture {
        /// The architecture that it is for.
        found: String,
    },
    /// The file ends before the kernel does.
    #[error("truncated: {field} needs {need} bytes, the file has {have}: copy it again")]
    Truncated {
        /// The part that is cut.
        field: &'static str,
        /// Bytes that the file should have at least.
        need: u64,
        /// Bytes that it has.
        have: u64,
    },
    /// A boot protocol without what is needed.
    #[error("boot protocol {major}.{minor:02} is too old, 2.12 (Linux 3.8) is needed: use a newer kernel")]
    ProtocolTooOld {
        /// Major number.
        major: u8,
        /// Minor number.
        minor: u8,
    },
    /// A kernel without a 64-bit entry.
    #[error(
        "it has no 64-bit entry (XLF_KERNEL_64 is not set in xloadflags {xloadflags:#x}): use a 64-bit kernel"
    )]
    Not64Bit {
        /// The flags found.
        xloadflags: u16,
    },
    /// A kernel that runs only where it was built for, which is where the crashed kernel is.
    #[error(
        "it is not relocatable (no \"run0\" at byte 0x5c of its image): use a kernel with CONFIG_RELOCATABLE"
    )]
    NotRelocatable,
    /// A field of the header with a value that no kernel has.
    #[error("header is damaged: {field} is {found:#x}, wanted {wanted}")]
    BadField {
        /// Its name in the boot protocol.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What a kernel has there.
        wanted: &'static str,
    },
}

/// Bytes in MiB, rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// What helps an image of `need` bytes into a reservation: one with room to run as well, in steps of 64 MiB. Where `have` bytes
/// would do, it is limits on the addresses that stand in the way.
fn remedy(need: u64, have: u64) -> String {
    let limits = if need <= have { "widen --mem-min and --mem-max where they are given, or " } else { "" };
    let size = need.saturating_mul(2).max(160 << 20).div_ceil(64 << 20).saturating_mul(64);
    format!("{limits}boot with crashkernel={size}M or more")
}

struct Limit(Option<PhysAddr>);

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |below| write!(f, ", below {below}"))
    }
}
