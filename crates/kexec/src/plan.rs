//! The plan of a crash image: what goes where, checked as far as it can be before the system call.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::Read as _;

use elfcorehdr::{PhysAddr, PhysRange, RangeVec};
use host::Host;
use purgatory::{Params, Region, digest};
use serde::Serialize;

use crate::arch;
use crate::error::{PlanError, Refusal};
use crate::header::crash_header;
use crate::layout::Space;
use crate::precheck;
use crate::purgatory as ours;
use crate::syscall::{
    self, Call, KEXEC_CRASH_HOTPLUG_SUPPORT, KEXEC_ON_CRASH, KEXEC_UPDATE_ELFCOREHDR, SegmentRef,
    SyscallError,
};

/// What to load by kexec_load.
#[derive(Clone, Copy, Debug)]
pub struct CrashRequest<'a> {
    /// The kernel file's bytes. They are passed to the system call as they are: map the file rather than read it.
    pub kernel: &'a [u8],
    /// The initrd file's bytes, likewise.
    pub initrd: Option<&'a [u8]>,
    /// The command line, whole but for `elfcorehdr=` (see [`crate::cmdline`]).
    pub cmdline: &'a str,
    /// Whether the running kernel shall keep the crash header up to date.
    pub hotplug: bool,
    /// Lowest address to use, where the user set one.
    pub mem_min: Option<PhysAddr>,
    /// Lowest address *not* to use, where the user set one.
    pub mem_max: Option<PhysAddr>,
}

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentKind {
    /// The kernel.
    Kernel,
    /// The initrd.
    Initrd,
    /// Boot parameters, command line and what belongs to them.
    BootData,
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
    /// CPUs that could be added later would have no registers in the dump, unless the header is updated then.
    CpusWithoutNotes {
        /// Their numbers.
        cpus: Vec<u32>,
    },
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
            Self::CpusWithoutNotes { cpus } => write!(
                f,
                "registers of CPUs {cpus:?}, absent now, would not be in the dump if they were added: load again then, or use --hotplug"
            ),
            Self::NoBootParams => f.write_str("the running kernel shows no boot parameters: the capture kernel gets no screen and no ACPI root pointer"),
        }
    }
}

/// A crash image, ready to be loaded by kexec_load.
#[derive(Debug)]
pub struct CrashPlan<'a> {
    facts: PlanFacts,
    segments: Vec<Segment<'a>>,
    entry: PhysAddr,
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
    /// Whether the running kernel is asked to keep the header up to date.
    pub hotplug: bool,
    /// Number of CPUs with a note.
    pub cpu_notes: usize,
    /// Memory that the dump will hold.
    pub memory: Vec<PhysRange>,
    /// Memory that the capture kernel runs in, low memory included.
    pub capture_memory: Vec<PhysRange>,
    /// What will probably go wrong.
    pub warnings: Vec<Warning>,
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
    precheck::permitted::<PlanError>(host, Call::KexecLoad)?;
    let reservations = host.reservations()?.ok_or(Refusal::NoReservation)?;
    let (reservation, low) = (reservations.main, reservations.low);
    let image = arch::Image::parse(request.kernel)?;
    let mut warnings = Vec::new();
    let mut space = Space::new(reservation, request.mem_min, request.mem_max)?;

    let header = crash_header(host, request.hotplug, &mut space, &mut warnings)?;
    let hidden: RangeVec = header.hidden().collect();
    let kernel = image.place(&mut space)?;
    let initrd = match request.initrd {
        Some(bytes) => Some(image.place_initrd(&mut space, bytes.len() as u64)?),
        None => None,
    };
    let cmdline = full_cmdline(request.cmdline, header.place(), image.cmdline_limit())?;
    let mut own: RangeVec = [reservation].into_iter().chain(low).collect();
    // A Vec-backed set is never full.
    let _ = own.subtract(&hidden);
    let random = random()?;
    let boot = arch::BootData::new(host, &image, &own, &random, &cmdline, &mut warnings)?;
    let boot_place = space.take_high("boot data", boot.size(), arch::PAGE, None)?;
    let purgatory_place = space.take_high("purgatory", ours::MEMORY_SIZE, arch::PAGE, None)?;
    space.require_free("the running kernel's own pages", arch::control_pages(host)?)?;

    let boot_bytes = boot.bytes(
        boot_place.start(),
        initrd.map(|place| (place.start(), request.initrd.map_or(0, <[u8]>::len))),
    );
    let mut segments =
        vec![Segment { kind: SegmentKind::Kernel, place: kernel, data: Cow::Borrowed(image.payload()) }];
    if let (Some(place), Some(bytes)) = (initrd, request.initrd) {
        segments.push(Segment { kind: SegmentKind::Initrd, place, data: Cow::Borrowed(bytes) });
    }
    segments.push(Segment { kind: SegmentKind::BootData, place: boot_place, data: Cow::Owned(boot_bytes) });
    segments.extend(header.segments());

    let serial_port = host.serial_console()?.map(|serial| serial.io_port);
    let kernel_entry = image.entry(kernel);
    let mut params =
        Params::new(random.identity, kernel_entry.0, boot_place.start().0, serial_port.unwrap_or(0));
    for segment in segments.iter().filter(|segment| is_checked(segment, request.hotplug)) {
        let region = Region::new(
            segment.kind.name(),
            segment.place.start().0,
            segment.data.len() as u64,
            digest(&segment.data),
        );
        // There is a slot for every segment that the kernel would take.
        let _ = params.push(region);
    }
    segments.push(Segment {
        kind: SegmentKind::Purgatory,
        place: purgatory_place,
        data: Cow::Owned(ours::image(purgatory_place.start(), &params)),
    });
    segments.sort_by_key(|segment| segment.place);

    let have = own.total_len();
    let need = image.running_size(request.initrd.unwrap_or_default());
    if have < need {
        warnings.push(Warning::LittleMemory { have, need });
    }
    let facts = PlanFacts {
        identity: random.identity,
        reservation,
        low_reservation: low,
        segments: segments
            .iter()
            .map(|segment| SegmentFacts {
                kind: segment.kind,
                place: segment.place,
                bytes: segment.data.len(),
                checked: is_checked(segment, request.hotplug),
            })
            .collect(),
        elfcorehdr: header.place(),
        kernel_entry,
        purgatory_entry: ours::entry(purgatory_place.start()),
        purgatory_params: ours::params_place(purgatory_place.start()),
        serial_port,
        cmdline,
        hotplug: request.hotplug,
        cpu_notes: header.cpu_notes(),
        memory: header.memory().to_vec(),
        capture_memory: boot.capture_memory().to_vec(),
        warnings,
    };
    Ok(CrashPlan { entry: facts.purgatory_entry, facts, segments })
}

/// Whether purgatory checks `segment`. A header that the kernel keeps up to date changes; purgatory cannot check itself;
/// zeros of absent CPUs are not worth refusing a dump for.
fn is_checked(segment: &Segment<'_>, hotplug: bool) -> bool {
    match segment.kind {
        SegmentKind::Kernel | SegmentKind::Initrd | SegmentKind::BootData => !segment.data.is_empty(),
        SegmentKind::Elfcorehdr => !hotplug,
        SegmentKind::AbsentNotes | SegmentKind::Purgatory => false,
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
        if !self.facts.hotplug {
            return syscall::kexec_load(host, self.entry, &segments, KEXEC_ON_CRASH);
        }
        // Kernels from 6.10 know the first flag; those before (6.6 on x86) only the second. An unknown flag is refused
        // before the old image is touched, so asking costs nothing.
        let newer =
            syscall::kexec_load(host, self.entry, &segments, KEXEC_ON_CRASH | KEXEC_CRASH_HOTPLUG_SUPPORT);
        match newer {
            Err(SyscallError::Invalid { .. }) => {
                syscall::kexec_load(host, self.entry, &segments, KEXEC_ON_CRASH | KEXEC_UPDATE_ELFCOREHDR)
            }
            answer => answer,
        }
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
        writeln!(f, "elfcorehdr: {} CPUs, {} memory ranges:", facts.cpu_notes, facts.memory.len())?;
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
