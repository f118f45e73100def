//! The plan of a crash image: what goes where, checked as far as it can be before the system call.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;
use std::fs::File;
use std::io::Read as _;

use elfcorehdr::{PhysAddr, PhysRange, RangeVec};
use host::{Host, Reservations};
use purgatory::{Digest, IDENTITY_OFFSET, Params, Region, Rtas, Slot, TREE_OFFSET, digest};
use serde::{Deserialize, Serialize};

use crate::arch;
use crate::error::{PlanError, Refusal};
use crate::header::{CrashHeader, crash_header};
use crate::layout::Space;
use crate::precheck;
use crate::purgatory as ours;
use crate::syscall::{self, Call, KEXEC_ON_CRASH, SegmentRef, SyscallError, Target};

/// What to load by kexec_load.
#[derive(Clone, Copy, Debug)]
pub struct CrashRequest<'a> {
    /// The kernel file's bytes. They are passed to the system call as they are: map the file rather than read it.
    pub kernel: &'a [u8],
    /// The initrd file's bytes, likewise.
    pub initrd: Option<&'a [u8]>,
    /// The command line, whole but for `elfcorehdr=` (see [`crate::cmdline`]).
    pub cmdline: &'a str,
    /// Who shall keep the crash header up to date.
    pub keeper: Keeper,
    /// Lowest address to use, where the user set one.
    pub mem_min: Option<PhysAddr>,
    /// Lowest address *not* to use, where the user set one.
    pub mem_max: Option<PhysAddr>,
    /// A flattened device tree to pass on in place of the machine's, where the user gave one. Only PowerPC's kernels take one.
    pub tree: Option<&'a [u8]>,
    /// Digests of kernel and initrd from an earlier plan of the same bytes; empty ones are filled in. They are most of what a
    /// plan costs.
    pub digests: &'a Digests,
}

/// Digests of one kernel and one initrd, each taken at the first plan that wants it. Never to be used with other bytes: purgatory
/// would refuse the image.
#[derive(Debug, Default)]
pub struct Digests {
    kernel: OnceCell<Digest>,
    initrd: OnceCell<Digest>,
}

impl Digests {
    /// The digest of `segment`, a known one where it is of the kernel or the initrd.
    fn of(&self, segment: &Segment<'_>) -> Digest {
        let known = match segment.kind {
            SegmentKind::Kernel => &self.kernel,
            SegmentKind::Initrd => &self.initrd,
            _ => return digest(&segment.data),
        };
        *known.get_or_init(|| digest(&segment.data))
    }
}

/// Who keeps the crash header up to date while CPUs and memory come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeper {
    /// Nobody: whoever sees a change has to load again.
    #[default]
    Nobody,
    /// The running kernel (CONFIG_CRASH_HOTPLUG).
    Kernel,
    /// hotdump's kernel module, once it is armed.
    Module,
}

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentKind {
    /// The kernel.
    Kernel,
    /// The initrd.
    Initrd,
    /// Boot parameters, command line and what belongs to them; on PowerPC a device tree.
    BootData,
    /// The place for the next boot data, where they follow the machine: zeros.
    SpareBootData,
    /// Where purgatory copies low memory.
    Backup,
    /// Zeros that the notes of absent CPUs point to.
    AbsentNotes,
    /// The program that runs between the kernels.
    Purgatory,
    /// The crash header.
    Elfcorehdr,
}

impl SegmentKind {
    /// A word for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::BootData => "boot data",
            Self::SpareBootData => "spare",
            Self::Backup => "backup",
            Self::AbsentNotes => "absent CPUs",
            Self::Purgatory => "purgatory",
            Self::Elfcorehdr => "elfcorehdr",
        }
    }
}

/// One piece of the image.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    /// What it holds.
    pub kind: SegmentKind,
    /// Where it goes; whole pages.
    pub place: PhysRange,
    /// What is copied to the start of `place`; zeros fill the rest.
    pub data: Cow<'a, [u8]>,
}

/// Something that will probably go wrong, but need not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "warning", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Warning {
    /// The capture kernel will hardly have the memory to run.
    LittleMemory {
        /// Bytes that the capture kernel has.
        have: u64,
        /// Bytes that it probably needs.
        need: u64,
    },
    /// The running kernel hides where it lies: the dump will have no entry for the kernel's text, which gdb wants.
    NoKernelText,
    /// /proc/kcore does not tell the direct map's place: virtual addresses in the dump's memory entries are 0.
    NoDirectMap,
    /// No boot parameters could be read: the capture kernel gets neither screen nor ACPI root pointer from us.
    NoBootParams,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LittleMemory { have, need } => write!(
                f,
                "the capture kernel will have {} MiB and probably needs {} MiB: use a smaller initrd or a larger crashkernel=",
                have >> 20,
                need.div_ceil(1 << 20)
            ),
            Self::NoKernelText => f.write_str("the running kernel hides its addresses: the dump will lack an entry for its text"),
            Self::NoDirectMap => f.write_str("/proc/kcore cannot be read: the dump's memory will lack virtual addresses"),
            Self::NoBootParams => f.write_str("the running kernel shows no boot parameters: the capture kernel gets no screen and no ACPI root pointer"),
        }
    }
}

/// A crash image, ready to be loaded by kexec_load.
#[derive(Debug)]
pub struct CrashPlan<'a> {
    facts: PlanFacts,
    segments: Vec<Segment<'a>>,
}

/// What a plan says, for programs.
#[derive(Clone, Debug, Serialize)]
pub struct PlanFacts {
    /// Tells this image from every other; purgatory holds it too.
    #[serde(serialize_with = "as_hex")]
    pub identity: [u8; 16],
    /// The reservation that the image goes to.
    pub reservation: PhysRange,
    /// The reservation below 4 GiB, where there is one besides.
    pub low_reservation: Option<PhysRange>,
    /// The segments, lowest first.
    pub segments: Vec<SegmentFacts>,
    /// Where the crash header is, with its room to grow.
    pub elfcorehdr: PhysRange,
    /// The two places for device trees, the one in force first, where the image is for the module to keep current and the
    /// architecture has such trees.
    pub trees: Option<[PhysRange; 2]>,
    /// Where the capture kernel is entered.
    pub kernel_entry: PhysAddr,
    /// Where purgatory is entered.
    pub purgatory_entry: PhysAddr,
    /// Where purgatory's parameter block is.
    pub purgatory_params: PhysAddr,
    /// I/O port of the serial console that purgatory writes to.
    pub serial_port: Option<u16>,
    /// The command line as the capture kernel gets it.
    pub cmdline: String,
    /// Who keeps the header up to date.
    pub keeper: Keeper,
    /// Memory that the dump leaves out.
    pub spared: Vec<PhysRange>,
    /// Number of CPUs with a note.
    pub cpu_notes: usize,
    /// Absent CPUs whose save areas could not be worked out: their notes point to zeros until the header is updated.
    pub absent_cpus: Vec<u32>,
    /// Memory that the dump will hold.
    pub memory: Vec<PhysRange>,
    /// Memory that the capture kernel runs in, low memory included.
    pub capture_memory: Vec<PhysRange>,
    /// What will probably go wrong.
    pub warnings: Vec<Warning>,
}

impl PlanFacts {
    /// Where the image has the address of the device tree in force: in purgatory's parameter block.
    pub fn tree_at(&self) -> PhysAddr {
        PhysAddr(self.purgatory_params.0.saturating_add(TREE_OFFSET as u64))
    }

    /// Where the image carries its identity: in purgatory's parameter block.
    pub fn identity_at(&self) -> PhysAddr {
        PhysAddr(self.purgatory_params.0.saturating_add(IDENTITY_OFFSET as u64))
    }
}

/// What a plan says of a segment.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentFacts {
    /// What it holds.
    pub kind: SegmentKind,
    /// Where it goes.
    pub place: PhysRange,
    /// Bytes that are copied there.
    pub bytes: usize,
    /// Whether purgatory checks it.
    pub checked: bool,
}

fn as_hex<S: serde::Serializer>(bytes: &[u8; 16], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{:032x}", u128::from_be_bytes(*bytes)))
}

/// Plans the loading of a crash kernel by kexec_load: every check that can be made is made. Changes nothing.
///
/// # Errors
/// What is wrong with the kernel, the command line or the machine, and what to do.
pub fn plan_crash<'a>(host: &Host, request: &CrashRequest<'a>) -> Result<CrashPlan<'a>, PlanError> {
    precheck::permitted(host, Call::KexecLoad, Target::Crash)?;
    let plan = plan_image(host, request)?;
    precheck::half_of_memory(plan.segments.iter().map(|segment| segment.place.len()).sum())?;
    Ok(plan)
}

/// As [`plan_crash`], but for what only this process and the live machine can tell.
fn plan_image<'a>(host: &Host, request: &CrashRequest<'a>) -> Result<CrashPlan<'a>, PlanError> {
    let reservations = host.reservations()?.ok_or(Refusal::NoReservation)?;
    let image = arch::Image::parse(request.kernel)?;
    let random = random()?;
    let draft = Draft::new(host, request, &image, reservations, &random)?;
    let kernel_entry = image.entry(draft.kernel);
    let payload = image.into_payload();
    let kernel_start: Vec<u8> = payload.iter().take(ours::KERNEL_START).copied().collect();
    let mut segments = draft.segments(request, payload);
    let serial_port = host.serial_console()?.map(|serial| serial.io_port);
    let mut params =
        Params::new(random.identity, kernel_entry.0, draft.boot_place.start().0, serial_port.unwrap_or(0));
    draft.tell_of_trees(host, &mut params)?;
    let base = draft.purgatory.start();
    let program = ours::image(base, &with_regions(params, &segments, request), &kernel_start);
    segments.push(Segment {
        kind: SegmentKind::Purgatory,
        place: draft.purgatory,
        data: Cow::Owned(program),
    });
    segments.sort_by_key(|segment| segment.place);
    let facts = PlanFacts {
        identity: random.identity,
        reservation: reservations.main,
        low_reservation: reservations.low,
        segments: segments.iter().map(|segment| SegmentFacts::of(segment, request.keeper)).collect(),
        elfcorehdr: draft.header.place(),
        trees: draft.spare.map(|spare| [draft.boot_place, spare]),
        kernel_entry,
        purgatory_entry: ours::entry(base),
        purgatory_params: ours::params_place(base),
        serial_port,
        keeper: request.keeper,
        spared: host.spared_ram()?.iter().collect(),
        cpu_notes: draft.header.cpu_notes(),
        absent_cpus: draft.header.absent_cpus().to_vec(),
        memory: draft.header.memory().to_vec(),
        capture_memory: draft.boot.capture_memory().to_vec(),
        cmdline: draft.cmdline,
        warnings: draft.warnings,
    };
    Ok(CrashPlan { facts, segments })
}

/// What goes where, before the bytes are put together.
struct Draft {
    header: CrashHeader,
    kernel: PhysRange,
    initrd: Option<PhysRange>,
    cmdline: String,
    boot: arch::BootData,
    boot_place: PhysRange,
    /// The place for the next boot data.
    spare: Option<PhysRange>,
    purgatory: PhysRange,
    warnings: Vec<Warning>,
}

impl Draft {
    /// Finds a place for every piece. The header goes first: where it is decides what the capture kernel is told.
    fn new(
        host: &Host,
        request: &CrashRequest<'_>,
        image: &arch::Image<'_>,
        reservations: Reservations,
        random: &Random,
    ) -> Result<Self, PlanError> {
        let mut warnings = Vec::new();
        let mut space = usable(host, (request.mem_min, request.mem_max), reservations.main)?;
        let header = crash_header(host, request.keeper, &mut space, &mut warnings)?;
        let kernel = image.place(&mut space)?;
        let initrd = match request.initrd {
            Some([]) => return Err(PlanError::Empty { what: "initrd" }),
            Some(bytes) => Some(image.place_initrd(&mut space, bytes.len() as u64)?),
            None => None,
        };
        let cmdline = full_cmdline(request.cmdline, header.place(), image.cmdline_limit())?;
        let hidden: RangeVec = header.hidden().collect();
        // The running kernel lends out what was reserved with crashkernel=,cma: the capture kernel may overwrite it.
        let lent = host.kexec()?.cma_ranges;
        let reserved: RangeVec =
            [reservations.main].into_iter().chain(reservations.low).chain(lent).collect();
        let told = Told {
            host,
            reserved: &reserved,
            hidden: &hidden,
            random,
            cmdline: &cmdline,
            tree: request.tree,
        };
        let boot = arch::BootData::new(&told, image, &mut warnings)?;
        let have = told.own().total_len();
        let mut take =
            |kind: SegmentKind, size| space.take_high(kind.name(), size, arch::SEGMENT_ALIGN, None);
        let boot_place = take(SegmentKind::BootData, boot.size())?;
        let switched = arch::BOOT_DATA_FOLLOWS_CPUS && request.keeper == Keeper::Module;
        let spare = switched.then(|| take(SegmentKind::SpareBootData, boot.size())).transpose()?;
        let purgatory = take(SegmentKind::Purgatory, ours::MEMORY_SIZE)?;
        space.require_free("the running kernel's own pages", arch::control_pages(host)?)?;
        let need = running_size(image.memory_size(), request.initrd.unwrap_or_default());
        if have < need {
            warnings.push(Warning::LittleMemory { have, need });
        }
        Ok(Self { header, kernel, initrd, cmdline, boot, boot_place, spare, purgatory, warnings })
    }

    /// Says where low memory is copied to, where device trees may lie, and how to reset a machine that has such things.
    fn tell_of_trees(&self, host: &Host, params: &mut Params) -> Result<(), PlanError> {
        params.backup = self.header.backup().map_or(0, |backup| backup.start().0);
        if arch::BOOT_DATA_FOLLOWS_CPUS {
            let places = [Some(self.boot_place), self.spare];
            params.slots = places.map(|place| {
                place.map_or(Slot::default(), |place| Slot { start: place.start().0, size: place.len() })
            });
        }
        if let Some(rtas) = host.rtas()?
            && let Some(system_reboot) = rtas.system_reboot
        {
            params.rtas = Rtas { entry: rtas.entry.0, base: rtas.base.0, system_reboot };
        }
        Ok(())
    }

    /// All segments but purgatory, which has to know them.
    fn segments<'a>(&self, request: &CrashRequest<'a>, kernel: Cow<'a, [u8]>) -> Vec<Segment<'a>> {
        let initrd = self.initrd.zip(request.initrd);
        let initrd_facts = initrd.map(|(place, bytes)| (place.start(), bytes.len()));
        let boot = self.boot.bytes(self.boot_place.start(), initrd_facts);
        let mut segments = vec![
            Segment { kind: SegmentKind::Kernel, place: self.kernel, data: kernel },
            Segment { kind: SegmentKind::BootData, place: self.boot_place, data: Cow::Owned(boot) },
        ];
        segments.extend(initrd.map(|(place, bytes)| Segment {
            kind: SegmentKind::Initrd,
            place,
            data: Cow::Borrowed(bytes),
        }));
        segments.extend(self.spare.map(|place| Segment {
            kind: SegmentKind::SpareBootData,
            place,
            data: Cow::Borrowed(&[]),
        }));
        segments.extend(self.header.segments());
        segments
    }
}

/// `params` with a digest of every segment that is to be checked: the only pass over the data on this side of the call.
fn with_regions(mut params: Params, segments: &[Segment<'_>], request: &CrashRequest<'_>) -> Params {
    for segment in segments.iter().filter(|segment| is_checked(segment, request.keeper)) {
        let (start, size) = (segment.place.start().0, segment.data.len() as u64);
        let region = Region::new(segment.kind.name(), start, size, request.digests.of(segment));
        // There are fewer kinds of segments than slots.
        let _ = params.push(region);
    }
    params
}

impl SegmentFacts {
    fn of(segment: &Segment<'_>, keeper: Keeper) -> Self {
        Self {
            kind: segment.kind,
            place: segment.place,
            bytes: segment.data.len(),
            checked: is_checked(segment, keeper),
        }
    }
}

/// Whether purgatory checks `segment`. A header that is kept up to date changes, and so does a device tree; purgatory cannot
/// check itself; zeros of absent CPUs are not worth refusing a dump for; a backup is made by purgatory.
fn is_checked(segment: &Segment<'_>, keeper: Keeper) -> bool {
    let kept = keeper != Keeper::Nobody;
    match segment.kind {
        SegmentKind::Kernel | SegmentKind::Initrd => !segment.data.is_empty(),
        SegmentKind::BootData => !(segment.data.is_empty() || kept && arch::BOOT_DATA_FOLLOWS_CPUS),
        SegmentKind::Elfcorehdr => !kept,
        SegmentKind::AbsentNotes
        | SegmentKind::Purgatory
        | SegmentKind::SpareBootData
        | SegmentKind::Backup => false,
    }
}

/// The part of the reservation that an image may lie in: inside the user's limits, where a kernel reaches it before it switches
/// its MMU on, and not where firmware lies.
pub(crate) fn usable(
    host: &Host,
    (min, max): (Option<PhysAddr>, Option<PhysAddr>),
    reservation: PhysRange,
) -> Result<Space, PlanError> {
    // A machine whose reservation starts above that end has no such limit.
    let reach = host.real_mode_end()?.filter(|end| *end > reservation.start());
    let max = max.into_iter().chain(reach).min();
    let mut space = Space::new(reservation, arch::SEGMENT_ALIGN, min, max)?;
    space.avoid(&host.firmware_memory()?);
    Ok(space)
}

/// Memory that a capture kernel wants beside its image and initrd: its data structures, drivers, and the program that
/// saves the dump. Debian's kernel with a small initramfs came up with less in QEMU.
const WORKING_MEMORY: u64 = 64 << 20;
/// How much larger an initrd becomes when it is unpacked, at most commonly.
const UNPACKED: u64 = 3;

/// Bytes that a capture kernel probably needs to run, itself taking `kernel`, with this initrd.
fn running_size(kernel: u64, initrd: &[u8]) -> u64 {
    let packed = initrd.len() as u64;
    let cpio = initrd.starts_with(b"07070");
    let unpacked = if cpio { packed } else { packed.saturating_mul(UNPACKED) };
    kernel.saturating_add(packed).saturating_add(unpacked).saturating_add(WORKING_MEMORY)
}

/// What boot data are made of, besides the kernel that they are for.
pub(crate) struct Told<'a> {
    /// The machine.
    pub(crate) host: &'a Host,
    /// All memory that the running kernel does not use: the reservations, and what it lends out.
    pub(crate) reserved: &'a RangeVec,
    /// What of it the capture kernel must leave as it is: it reads from there.
    pub(crate) hidden: &'a RangeVec,
    /// Random bytes.
    pub(crate) random: &'a Random,
    /// The command line, whole.
    pub(crate) cmdline: &'a str,
    /// The user's flattened device tree.
    pub(crate) tree: Option<&'a [u8]>,
}

impl Told<'_> {
    /// Reserved memory that the capture kernel may use.
    pub(crate) fn own(&self) -> RangeVec {
        self.reserved.difference(self.hidden).collect()
    }
}

/// The command line with `elfcorehdr=` in front: behind `--` the kernel would not read it.
fn full_cmdline(cmdline: &str, elfcorehdr: PhysRange, limit: usize) -> Result<String, PlanError> {
    let full = format!("elfcorehdr={:#x} {cmdline}", elfcorehdr.start());
    let full = full.trim_end().to_owned();
    if full.len() > limit {
        return Err(PlanError::CmdlineTooLong { length: full.len(), limit });
    }
    match full.find('\0') {
        Some(at) => Err(crate::cmdline::CmdlineError::Nul(at).into()),
        None => Ok(full),
    }
}

/// Random bytes of a plan.
pub(crate) struct Random {
    /// Tells this image from every other.
    pub(crate) identity: [u8; 16],
    /// For the capture kernel's random number generator.
    pub(crate) seed: [u8; 32],
}

fn random() -> Result<Random, PlanError> {
    let mut random = Random { identity: [0; 16], seed: [0; 32] };
    let mut source = File::open("/dev/urandom").map_err(PlanError::Random)?;
    source
        .read_exact(&mut random.identity)
        .and_then(|()| source.read_exact(&mut random.seed))
        .map_err(PlanError::Random)?;
    Ok(random)
}

impl<'a> CrashPlan<'a> {
    /// What the plan says, for programs.
    pub fn facts(&self) -> &PlanFacts {
        &self.facts
    }

    /// The segments, lowest first.
    pub fn segments(&self) -> &[Segment<'a>] {
        &self.segments
    }

    /// Where the crash header is, with its room to grow.
    pub fn elfcorehdr(&self) -> PhysRange {
        self.facts.elfcorehdr
    }

    /// Random bytes that tell this image from every other.
    pub fn identity(&self) -> [u8; 16] {
        self.facts.identity
    }

    /// What will probably go wrong.
    pub fn warnings(&self) -> &[Warning] {
        &self.facts.warnings
    }

    /// The plan for people, several lines.
    pub fn describe(&self) -> impl fmt::Display + '_ {
        Description(self)
    }

    /// Loads the image. The one that was loaded before is gone once the kernel has taken the arguments, whether the rest
    /// succeeds or not.
    ///
    /// # Errors
    /// What the kernel said, with the reason where the machine shows it.
    pub fn load(&self, host: &Host) -> Result<(), SyscallError> {
        let segments: Vec<SegmentRef<'_>> = self
            .segments
            .iter()
            .map(|segment| SegmentRef { place: segment.place, data: &segment.data })
            .collect();
        let flags = if self.facts.keeper == Keeper::Kernel { arch::HOTPLUG_FLAGS } else { &[0] };
        // An unknown flag is refused before the old image is touched, so asking costs nothing.
        let (last, newer) = flags.split_last().unwrap_or((&0, &[]));
        let load =
            |flag| syscall::kexec_load(host, self.facts.purgatory_entry, &segments, KEXEC_ON_CRASH | flag);
        for flag in newer {
            match load(*flag) {
                Err(SyscallError::Invalid { .. }) => {}
                answer => return answer,
            }
        }
        load(*last)
    }
}

struct Description<'a>(&'a CrashPlan<'a>);

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = &self.0.facts;
        writeln!(f, "crash reservation {} ({} MiB)", facts.reservation, facts.reservation.len() >> 20)?;
        if let Some(low) = facts.low_reservation {
            writeln!(f, "low reservation   {low} ({} MiB)", low.len() >> 20)?;
        }
        for segment in &facts.segments {
            writeln!(
                f,
                "{:<11} {}: {:#x} bytes, {:#x} in memory{}",
                segment.kind.name(),
                segment.place,
                segment.bytes,
                segment.place.len(),
                if segment.checked { ", checked" } else { "" }
            )?;
        }
        writeln!(
            f,
            "purgatory is entered at {}, the kernel at {}",
            facts.purgatory_entry, facts.kernel_entry
        )?;
        let absent = facts.absent_cpus.len();
        writeln!(
            f,
            "elfcorehdr: {} CPUs ({absent} with zeros for registers), {} memory ranges:",
            facts.cpu_notes,
            facts.memory.len()
        )?;
        for range in &facts.memory {
            writeln!(f, "  {range}")?;
        }
        writeln!(f, "the capture kernel's memory:")?;
        for range in &facts.capture_memory {
            writeln!(f, "  {range}")?;
        }
        writeln!(f, "command line: {}", facts.cmdline)?;
        facts.warnings.iter().try_for_each(|warning| writeln!(f, "warning: {warning}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{SAMPLE_ENTRY, SAMPLE_MACHINES as MACHINES, sample_kernel};
    use elfcorehdr::Header;
    use proptest::prelude::*;

    /// Machines that were recorded for the tests of crate `host`.
    fn machine(name: &str) -> Host {
        Host::at(format!("{}/../host/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR")))
    }

    /// A request whose digests nobody knows.
    fn request<'a>(kernel: &'a [u8], initrd: Option<&'a [u8]>) -> CrashRequest<'a> {
        CrashRequest {
            digests: Box::leak(Box::default()),
            kernel,
            initrd,
            cmdline: "console=ttyS0",
            keeper: Keeper::Nobody,
            mem_min: None,
            mem_max: None,
            tree: None,
        }
    }

    fn segment<'p, 'a>(plan: &'p CrashPlan<'a>, kind: SegmentKind) -> &'p Segment<'a> {
        plan.segments.iter().find(|segment| segment.kind == kind).unwrap()
    }

    fn check_rules(plan: &CrashPlan<'_>) {
        let facts = plan.facts();
        assert!(plan.segments.len() <= 16, "KEXEC_SEGMENT_MAX");
        for (index, segment) in plan.segments.iter().enumerate() {
            assert!(facts.reservation.contains_range(segment.place), "{segment:?}");
            let pages = [segment.place.start(), segment.place.end()];
            assert!(pages.iter().all(|end| end.is_aligned(arch::SEGMENT_ALIGN)));
            let firmware = machine(MACHINES[0]).firmware_memory().unwrap();
            assert!(firmware.iter().all(|taken| !taken.overlaps(segment.place)), "{segment:?}");
            assert!(segment.data.len() as u64 <= segment.place.len());
            assert!(plan.segments[..index].iter().all(|other| !other.place.overlaps(segment.place)));
            let magic = segment.data.starts_with(b"\x7fELF");
            assert_eq!(magic, segment.kind == SegmentKind::Elfcorehdr, "how the kernel finds the header");
        }
        let kinds = [SegmentKind::Elfcorehdr, SegmentKind::AbsentNotes, SegmentKind::Backup];
        for hidden in plan.segments.iter().filter(|segment| kinds.contains(&segment.kind)) {
            assert!(facts.capture_memory.iter().all(|range| !range.overlaps(hidden.place)));
        }
    }

    #[test]
    fn recorded_machines_get_plans_that_keep_the_rules() {
        let (kernel, initrd) = (sample_kernel(100_000), vec![7; 5_000_000]);
        for name in MACHINES {
            let plan = plan_image(&machine(name), &request(&kernel, Some(&initrd))).unwrap();
            check_rules(&plan);
            let header = Header::parse(&segment(&plan, SegmentKind::Elfcorehdr).data).unwrap();
            // Four possible CPUs and vmcoreinfo.
            assert_eq!(header.notes().count(), 5, "{name}");
            assert_eq!(
                header.loads().count(),
                1 + plan.facts().memory.len(),
                "{name}: the kernel's text or low memory, and all memory"
            );
            assert!(plan.warnings().is_empty(), "{name}: {:?}", plan.warnings());
        }
    }

    #[test]
    fn the_same_request_gets_the_same_places() {
        let kernel = sample_kernel(5000);
        let places = || {
            let plan = plan_image(&machine(MACHINES[0]), &request(&kernel, Some(&kernel))).unwrap();
            plan.segments.iter().map(|segment| (segment.kind, segment.place)).collect::<Vec<_>>()
        };
        assert_eq!(places(), places());
    }

    #[test]
    fn known_digests_are_taken_and_purgatory_is_told_the_same() {
        let (kernel, initrd) = (sample_kernel(5000), vec![1; 10_000]);
        let digests = Digests::default();
        let told = |initrd| {
            let request = CrashRequest { digests: &digests, ..request(&kernel, Some(initrd)) };
            let plan = plan_image(&machine(MACHINES[0]), &request).unwrap();
            let program = segment(&plan, SegmentKind::Purgatory);
            let at = (plan.facts().purgatory_params.0 - program.place.start().0) as usize;
            let params = Params::parse(program.data[at..].first_chunk().unwrap()).unwrap();
            let checked = |name| params.regions().iter().find(|region| region.name() == name).unwrap().digest;
            let [kernel, initrd] =
                [SegmentKind::Kernel, SegmentKind::Initrd].map(|kind| checked(kind.name()));
            let segment = |kind| digest(&segment(&plan, kind).data);
            assert_eq!(kernel, segment(SegmentKind::Kernel));
            (initrd, segment(SegmentKind::Initrd))
        };
        let (first, right) = told(&initrd);
        assert_eq!(first, right);
        // Other bytes with the same digests, which must not be: what purgatory is told shows that nothing was digested again.
        let (second, right) = told(&[2; 10_000]);
        assert_eq!(second, first);
        assert_ne!(second, right);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_capture_kernel_gets_both_reservations() {
        let kernel = sample_kernel(5000);
        let plan = plan_image(&machine("debian-7.2-high"), &request(&kernel, None)).unwrap();
        let text: Vec<String> = plan.facts().capture_memory.iter().map(|range| range.to_string()).collect();
        assert_eq!(text, ["[0x0, 0x9fc00)", "[0x6f000000, 0x7f000000)", "[0x1ef000000, 0x1feffe000)"]);
        assert!(plan.facts().segments.iter().all(|segment| segment.place.start().0 >= 0x1_ef00_0000));
    }

    #[test]
    fn purgatory_is_told_what_to_check() {
        let (kernel, initrd) = (sample_kernel(5000), vec![1; 10_000]);
        let host = machine(MACHINES[1]);
        for keeper in [Keeper::Nobody, Keeper::Kernel, Keeper::Module] {
            let plan =
                plan_image(&host, &CrashRequest { keeper, ..request(&kernel, Some(&initrd)) }).unwrap();
            let program = segment(&plan, SegmentKind::Purgatory);
            let at = (plan.facts().purgatory_params.0 - program.place.start().0) as usize;
            let params = Params::parse(program.data[at..].first_chunk().unwrap()).unwrap();
            assert_eq!(params.identity, plan.identity());
            assert_eq!(params.entry, segment(&plan, SegmentKind::Kernel).place.start().0 + SAMPLE_ENTRY);
            assert_eq!(params.boot_params, segment(&plan, SegmentKind::BootData).place.start().0);
            assert_eq!(params.serial_port, if cfg!(target_arch = "x86_64") { 0x3f8 } else { 0 });
            let mut names: Vec<&str> = params.regions().iter().map(|region| region.name()).collect();
            names.sort_unstable();
            let header: &[&str] = if keeper == Keeper::Nobody { &["elfcorehdr"] } else { &[] };
            let kept = keeper != Keeper::Nobody && arch::BOOT_DATA_FOLLOWS_CPUS;
            let boot: &[&str] = if kept { &[] } else { &["boot data"] };
            assert_eq!(names, [boot, header, &["initrd", "kernel"]].concat());
            for region in params.regions() {
                let segment =
                    plan.segments.iter().find(|segment| segment.place.start().0 == region.start).unwrap();
                assert_eq!(region.size as usize, segment.data.len());
                assert_eq!(region.digest, digest(&segment.data));
            }
        }
    }

    #[test]
    fn with_hotplug_the_header_has_the_room_that_the_kernel_says() {
        let kernel = sample_kernel(5000);
        let with = |name| {
            plan_image(&machine(name), &CrashRequest { keeper: Keeper::Kernel, ..request(&kernel, None) })
        };
        let host = machine(MACHINES[1]);
        let reported = host.kexec().unwrap().elfcorehdr_size.unwrap();
        let plan = with(MACHINES[1]).unwrap();
        assert!(plan.elfcorehdr().len() >= reported + 64);
        check_rules(&plan);
        let error = with(MACHINES[0]).unwrap_err();
        assert!(matches!(error, PlanError::Refused(Refusal::NoCrashHotplug)), "{error}");
        assert!(error.to_string().contains("the kernel needs CONFIG_CRASH_HOTPLUG"), "scripts look for it");
    }

    /// What purgatory copies aside is in the header, and module and purgatory are told of the same two trees.
    #[cfg(target_arch = "powerpc64")]
    #[test]
    fn low_memory_and_trees_have_their_places() {
        let kernel = sample_kernel(5000);
        for keeper in [Keeper::Nobody, Keeper::Kernel, Keeper::Module] {
            let request = CrashRequest { keeper, ..request(&kernel, None) };
            let plan = plan_image(&machine(MACHINES[1]), &request).unwrap();
            check_rules(&plan);
            let facts = plan.facts();
            let program = segment(&plan, SegmentKind::Purgatory);
            let at = (facts.purgatory_params.0 - program.place.start().0) as usize;
            let params = Params::parse(program.data[at..].first_chunk().unwrap()).unwrap();
            let backup = segment(&plan, SegmentKind::Backup).place;
            assert_eq!((params.backup, backup.len()), (backup.start().0, purgatory::BACKUP_SIZE));
            let header = Header::parse(&segment(&plan, SegmentKind::Elfcorehdr).data).unwrap();
            let first = header.loads().next().unwrap();
            assert_eq!(
                (first.paddr.0, first.vaddr, first.offset),
                (0, 0xc000_0000_0000_0000, backup.start())
            );
            let tree = segment(&plan, SegmentKind::BootData);
            assert_eq!(tree.data[..4], [0xd0, 0x0d, 0xfe, 0xed], "how the kernel finds the tree");
            assert_eq!(params.slot(params.boot_params).unwrap().start, tree.place.start().0);
            let rtas = purgatory::Rtas {
                entry: 0x2fff_f000,
                base: 0x2fff_f000,
                system_reboot: params.rtas.system_reboot,
            };
            assert_eq!(params.rtas, rtas);
            let spare = plan.segments.iter().find(|segment| segment.kind == SegmentKind::SpareBootData);
            assert_eq!(spare.is_some(), keeper == Keeper::Module);
            assert_eq!(facts.trees, spare.map(|spare| [tree.place, spare.place]));
            assert_eq!(params.slots[1].start, spare.map_or(0, |spare| spare.place.start().0));
            assert_eq!(facts.tree_at().0 % 8, 0);
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let (kernel, initrd) = (sample_kernel(5000), vec![0; 600 << 20]);
        let error =
            plan_image(&machine(MACHINES[0]), &request(&kernel, Some(&initrd))).unwrap_err().to_string();
        assert!(error.contains("too small: no room for initrd (600 MiB)"), "{error}");
        let long = "x".repeat(2100);
        let error =
            plan_image(&machine(MACHINES[0]), &CrashRequest { cmdline: &long, ..request(&kernel, None) });
        assert!(matches!(error, Err(PlanError::CmdlineTooLong { length: 2122, limit: 2047 })), "{error:?}");
    }

    #[test]
    fn a_machine_without_a_reservation_gets_no_plan() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("proc")).unwrap();
        std::fs::write(root.path().join("proc/iomem"), "00001000-0009fbff : System RAM\n").unwrap();
        let kernel = sample_kernel(5000);
        let error = plan_image(&Host::at(root.path()), &request(&kernel, None)).unwrap_err();
        assert!(error.to_string().starts_with("Memory for crashkernel is not reserved"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn any_sizes_and_limits_give_a_plan_that_keeps_the_rules_or_an_error(
            machine_index in 0..MACHINES.len(),
            code in 2048usize..200_000,
            initrd in proptest::option::of(1usize..3_000_000),
            keeper in prop::sample::select(vec![Keeper::Nobody, Keeper::Kernel, Keeper::Module]),
            min in proptest::option::of(0u64..0x2_0000_0000),
            max in proptest::option::of(0u64..0x2_0000_0000),
        ) {
            let kernel = sample_kernel(code);
            let initrd = initrd.map(|size| vec![3; size]);
            let host = machine(MACHINES[machine_index]);
            let request = CrashRequest {
                keeper,
                mem_min: min.map(PhysAddr),
                mem_max: max.map(PhysAddr),
                ..request(&kernel, initrd.as_deref())
            };
            if let Ok(plan) = plan_image(&host, &request) {
                check_rules(&plan);
                for segment in plan.segments() {
                    prop_assert!(segment.place.start().0 >= min.unwrap_or(0));
                    prop_assert!(segment.place.end().0 <= max.unwrap_or(u64::MAX));
                }
            }
        }
    }
}
