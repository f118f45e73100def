//! A guest with a loaded image, whose memory the host reads and writes, and calls to its kernel module.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use abi::{Arm, FOLLOW_CPUS, FOLLOW_MEMORY, IOCTL_ARM, IOCTL_DISARM, IOCTL_STATUS, Reason, Status};
use anyhow::{Context, Result, bail, ensure};
use lab_agent::{Answer, Argument, Called, Request, Tally};
use serde_json::Value;

use crate::guest::{Guest, patience};
use crate::product::{By, hex};

/// The guest, the file of its memory, and the request that a loader would make for the loaded image.
pub(super) struct Victim {
    pub(super) guest: Guest,
    pub(super) valid: Arm,
    pub(super) reservation: Range<u64>,
    memory: File,
}

impl Victim {
    /// Loads an image in `guest`. The module does not follow it.
    pub(super) fn load(guest: Guest) -> Result<Victim> {
        let path = guest.paths.memory();
        let memory = File::options().read(true).write(true).open(&path);
        let memory = memory.with_context(|| format!("opening {}", path.display()))?;
        let mut victim = Victim { guest, valid: Arm::default(), reservation: 0..0, memory };
        victim.load_again()?;
        Ok(victim)
    }

    /// Loads a new image, which the module does not follow.
    pub(super) fn load_again(&mut self) -> Result<()> {
        let told = self.guest.load(By::Load, &["--keep", "module", "--json"])?;
        let told: Value = serde_json::from_str(told.ok()?)?;
        self.disarm()?;
        let plan = &told["plan"];
        self.reservation = range(&plan["reservation"]);
        let header = range(&plan["elfcorehdr"]);
        let identity = plan["identity"].as_str().and_then(|digits| u128::from_str_radix(digits, 16).ok());
        let identity = identity.context("the report of hotdump load has no identity")?.to_be_bytes();
        let mut valid = Arm {
            version: abi::VERSION,
            size: size_of::<Arm>().try_into()?,
            header: abi::Range { start: header.start, end: header.end },
            identity_at: self.find(plan, &identity)?,
            identity,
            follow: FOLLOW_MEMORY | FOLLOW_CPUS,
            ..Arm::default()
        };
        let spared =
            plan["spared"].as_array().context("the report of hotdump load names no spared memory")?;
        for (place, spared) in valid.excluded.iter_mut().zip(spared.iter().map(range)) {
            *place = abi::Range { start: spared.start, end: spared.end };
        }
        valid.excluded_count = spared.len().try_into()?;
        self.valid = valid;
        Ok(())
    }

    /// Where purgatory carries the image's identity.
    fn find(&self, plan: &Value, identity: &[u8; 16]) -> Result<u64> {
        let segments = plan["segments"].as_array().into_iter().flatten();
        let mut purgatory = segments.filter(|segment| segment["kind"] == "purgatory");
        let place = range(&purgatory.next().context("the image has no purgatory")?["place"]);
        let bytes = self.peek(place.clone())?;
        let at = bytes.windows(16).position(|window| window == identity);
        Ok(place.start + at.context("purgatory does not hold the identity")? as u64)
    }

    /// Reads the guest's memory.
    pub(super) fn peek(&self, place: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(place.end - place.start)?];
        self.memory.read_exact_at(&mut bytes, place.start).with_context(|| format!("reading {place:#x?}"))?;
        Ok(bytes)
    }

    /// Writes to the guest's memory.
    pub(super) fn poke(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.memory.write_all_at(bytes, address).with_context(|| format!("writing to {address:#x}"))
    }

    /// The crash header with all of its room.
    pub(super) fn header(&self) -> Result<Vec<u8>> {
        self.peek(self.valid.header.start..self.valid.header.end)
    }

    /// Makes one ioctl.
    pub(super) fn call(&mut self, number: u32, argument: Argument) -> Result<Called> {
        match self.guest.ask(&Request::Call { number, argument }, patience(60))? {
            Answer::Called(called) => Ok(called),
            other => bail!("asked for an ioctl the agent answers {other:?}"),
        }
    }

    /// Asks the module to follow the image. The error's number, and what the module said.
    pub(super) fn arm(&mut self, request: &Arm) -> Result<(i32, Arm)> {
        let called = self.call(IOCTL_ARM, Argument::Bytes { bytes: to_bytes(request), past: 0 })?;
        let mut words = called.bytes.chunks_exact(4).rev();
        let mut word = || words.next().and_then(|word| word.first_chunk().copied()).map(u32::from_ne_bytes);
        let (found, reason) = (word().context("no answer")?, word().context("no answer")?);
        let follow_at = std::mem::offset_of!(Arm, follow);
        let follow = called.bytes.get(follow_at..).and_then(|rest| rest.first_chunk().copied());
        let follow = u32::from_ne_bytes(follow.context("no answer")?);
        Ok((called.errno, Arm { follow, reason, found, ..*request }))
    }

    /// The module must take the request for the image.
    pub(super) fn arm_well(&mut self) -> Result<()> {
        let (errno, answer) = self.arm(&self.valid.clone())?;
        ensure!(errno == 0, "a good request is refused: error {errno}, {}", describe(&answer));
        ensure!(answer.follow == self.valid.follow, "of a good request {:#x} is followed", answer.follow);
        ensure!(self.is_armed()?, "a good request does not arm");
        Ok(())
    }

    /// Has the module let go.
    pub(super) fn disarm(&mut self) -> Result<()> {
        let called = self.call(IOCTL_DISARM, Argument::Address(0))?;
        ensure!(called.errno == 0, "letting go: error {}", called.errno);
        Ok(())
    }

    /// The module's status: whether it is armed, and the reason.
    pub(super) fn status(&mut self) -> Result<(bool, Reason)> {
        let bytes = vec![0; size_of::<Status>()];
        let called = self.call(IOCTL_STATUS, Argument::Bytes { bytes, past: 0 })?;
        ensure!(called.errno == 0, "asking for the status: error {}", called.errno);
        let word = |at: usize| called.bytes.get(at..).and_then(|rest| rest.first_chunk().copied());
        let word = |at| word(at).map(u32::from_ne_bytes).context("the status is too short");
        let reason = word(std::mem::offset_of!(Status, reason))?;
        let reason = Reason::from_code(reason).with_context(|| format!("there is no reason {reason}"))?;
        Ok((word(std::mem::offset_of!(Status, armed))? != 0, reason))
    }

    /// Whether the module follows an image.
    pub(super) fn is_armed(&mut self) -> Result<bool> {
        Ok(self.status()?.0)
    }

    /// The module must refuse a request with this reason, do nothing, and tell the byte that is wrong where `found`
    /// says which.
    pub(super) fn is_refused(&mut self, request: &Arm, reason: Reason, found: Option<u32>) -> Result<()> {
        let before = self.header()?;
        let (errno, answer) = self.arm(request)?;
        let told = describe(&answer);
        ensure!(errno == errno_of(reason), "error {errno} instead of {}: {told}", errno_of(reason));
        ensure!(answer.reason == reason as u32, "instead of {reason:?}: {told}");
        ensure!(found.is_none_or(|found| found == answer.found), "instead of byte {found:x?}: {told}");
        ensure!(!self.is_armed()?, "refused ({told}) and yet armed");
        ensure!(self.header()? == before, "refused ({told}), and the header was written to");
        Ok(())
    }

    /// Has the agent make many calls, and gives how they ended.
    pub(super) fn many(&mut self, request: &Request) -> Result<Vec<Tally>> {
        match self.guest.ask(request, patience(240))? {
            Answer::Tallies(tallies) => Ok(tallies),
            other => bail!("asked for many calls the agent answers {other:?}"),
        }
    }
}

/// What the module said to a request that it refused.
fn describe(answer: &Arm) -> String {
    match Reason::from_code(answer.reason) {
        Some(reason) => format!("{reason:?} at byte {:#x}", answer.found),
        None => format!("reason {}, which there is not", answer.reason),
    }
}

/// The number of the error that goes with a reason (asm-generic/errno-base.h).
fn errno_of(reason: Reason) -> i32 {
    match reason {
        Reason::AlreadyArmed => 16,
        Reason::NotLoaded => 19,
        _ => 22,
    }
}

/// A request as the kernel gets it.
pub(super) fn to_bytes(arm: &Arm) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of::<Arm>());
    let ranges = |bytes: &mut Vec<u8>, ranges: &[abi::Range]| {
        for number in ranges.iter().flat_map(|range| [range.start, range.end]) {
            bytes.extend(number.to_ne_bytes());
        }
    };
    bytes.extend([arm.version, arm.size].iter().flat_map(|number| number.to_ne_bytes()));
    ranges(&mut bytes, &[arm.header]);
    bytes.extend(arm.identity_at.to_ne_bytes());
    bytes.extend(arm.identity);
    bytes.extend([arm.follow, arm.excluded_count].iter().flat_map(|number| number.to_ne_bytes()));
    ranges(&mut bytes, &arm.excluded);
    bytes.extend(arm.tree_pointer.to_ne_bytes());
    ranges(&mut bytes, &arm.trees);
    bytes.extend([arm.reason, arm.found].iter().flat_map(|number| number.to_ne_bytes()));
    bytes
}

fn range(value: &Value) -> Range<u64> {
    hex(&value["start"])..hex(&value["end"])
}
