//! The kernel module in the hands of somebody who means no good, or errs: a clear error, nothing written, and the image
//! still gives a dump.

use abi::{Arm, IOCTL_ARM, IOCTL_DISARM, IOCTL_STATUS, Reason, Status};
use anyhow::{Context, Result, bail, ensure};
use lab_agent::{Argument, Request, Tally};

use super::module::{MODULE, boot, no_warning, plan};
use super::scenarios;
use crate::cache::KernelLine::V6_1;
use crate::lab::Lab;
use crate::machine::MIB;
use lies::Header;
use victim::{Victim, to_bytes};

mod lies;
mod victim;

scenarios! {
    misuse: "the module on 6.1: wrong requests, headers that lie, ioctls by chance, a full header; nothing is written",
}

fn misuse(lab: &Lab, name: &str) -> Result<()> {
    let mut victim = Victim::load(boot(plan(lab, name, V6_1)?.memory_in_file())?)?;
    without_image(&mut victim)?;
    wrong_requests(&mut victim)?;
    lies::each_field(&mut victim)?;
    bad_calls(&mut victim)?;
    without_privilege(&mut victim)?;
    by_chance(&mut victim)?;
    while_armed(&mut victim)?;
    no_warning(&mut victim.guest)?;
    full(victim)
}

/// A request that is wrong, and why the module must refuse it.
struct Wrong {
    what: &'static str,
    make: fn(&mut Arm, &Victim),
    reason: Reason,
}

const fn wrong(what: &'static str, make: fn(&mut Arm, &Victim), reason: Reason) -> Wrong {
    Wrong { what, make, reason }
}

/// A page of ordinary memory.
const ELSEWHERE: abi::Range = abi::Range { start: 0x20_0000, end: 0x20_1000 };

const WRONG: &[Wrong] = &[
    wrong("the version before", |arm, _| arm.version -= 1, Reason::Version),
    wrong("the version after", |arm, _| arm.version += 1, Reason::Version),
    wrong("a smaller structure", |arm, _| arm.size -= 8, Reason::Version),
    wrong("no structure", |arm, _| arm.size = 0, Reason::Version),
    wrong("a header outside the reservation", |arm, _| arm.header = ELSEWHERE, Reason::OutsideReservation),
    wrong(
        "a header that begins before the reservation",
        |arm, victim| arm.header = around(victim.reservation.start),
        Reason::OutsideReservation,
    ),
    wrong(
        "a header that ends behind the reservation",
        |arm, victim| arm.header = around(victim.reservation.end),
        Reason::OutsideReservation,
    ),
    wrong(
        "a header past all memory",
        |arm, _| arm.header = abi::Range { start: u64::MAX - 0x1fff, end: u64::MAX - 0xfff },
        Reason::OutsideReservation,
    ),
    wrong(
        "a header elsewhere in the reservation",
        |arm, victim| {
            let start = victim.reservation.start;
            arm.header = abi::Range { start, end: start + 0x1000 };
        },
        Reason::BadHeader,
    ),
    wrong(
        "a header that holds the identity",
        |arm, _| {
            let start = arm.identity_at & !0xfff;
            arm.header = abi::Range { start, end: start + 0x1000 };
        },
        Reason::Overlap,
    ),
    wrong("a header that starts within a page", |arm, _| arm.header.start += 8, Reason::Misaligned),
    wrong("a header that ends within a page", |arm, _| arm.header.end -= 8, Reason::Misaligned),
    wrong("an empty header", |arm, _| arm.header.end = arm.header.start, Reason::Misaligned),
    wrong(
        "a header that ends before it starts",
        |arm, _| std::mem::swap(&mut arm.header.start, &mut arm.header.end),
        Reason::Misaligned,
    ),
    wrong("a header of 4 MiB", |arm, _| arm.header.start = arm.header.end - 4 * MIB, Reason::Misaligned),
    wrong("a header of all memory", |arm, _| arm.header.start = 0, Reason::Misaligned),
    wrong("an identity at an odd place", |arm, _| arm.identity_at += 1, Reason::Misaligned),
    wrong(
        "an identity across the end of addresses",
        |arm, _| arm.identity_at = u64::MAX - 7,
        Reason::Misaligned,
    ),
    wrong(
        "an identity outside the reservation",
        |arm, _| arm.identity_at = ELSEWHERE.start,
        Reason::OutsideReservation,
    ),
    wrong(
        "an identity half outside the reservation",
        |arm, victim| arm.identity_at = victim.reservation.start - 8,
        Reason::OutsideReservation,
    ),
    wrong("an identity beside its place", |arm, _| arm.identity_at += 8, Reason::NotOurs),
    wrong("another identity", |arm, _| arm.identity[15] ^= 1, Reason::NotOurs),
    wrong("nothing to follow", |arm, _| arm.follow = 0, Reason::SwitchedOff),
    wrong("only something unknown to follow", |arm, _| arm.follow = 1 << 31, Reason::BadRequest),
    wrong("something unknown to follow, too", |arm, _| arm.follow |= 4, Reason::BadRequest),
    wrong(
        "excluded ranges out of order",
        |arm, _| {
            (arm.excluded[0], arm.excluded[1]) = (range(0x5000, 0x6000), range(0x1000, 0x2000));
            arm.excluded_count = 2;
        },
        Reason::BadRequest,
    ),
    wrong(
        "excluded ranges that overlap",
        |arm, _| {
            (arm.excluded[0], arm.excluded[1]) = (range(0x1000, 0x3000), range(0x2000, 0x4000));
            arm.excluded_count = 2;
        },
        Reason::BadRequest,
    ),
    wrong(
        "an excluded range that ends before it starts",
        |arm, _| {
            arm.excluded[0] = range(0x2000, 0x1000);
            arm.excluded_count = 1;
        },
        Reason::BadRequest,
    ),
    wrong("an image that a dump would hold", |arm, _| arm.excluded_count = 0, Reason::NotExcluded),
    wrong("17 excluded ranges", |arm, _| arm.excluded_count = 17, Reason::BadRequest),
    wrong("4 G excluded ranges", |arm, _| arm.excluded_count = u32::MAX, Reason::BadRequest),
];

fn range(start: u64, end: u64) -> abi::Range {
    abi::Range { start, end }
}

/// The page before an address and that behind it.
fn around(address: u64) -> abi::Range {
    range(address - 0x1000, address + 0x1000)
}

fn wrong_requests(victim: &mut Victim) -> Result<()> {
    for Wrong { what, make, reason } in WRONG {
        let mut request = victim.valid;
        make(&mut request, victim);
        victim.is_refused(&request, *reason, None).with_context(|| format!("asked with {what}"))?;
    }
    victim.guest.say(format!("{} wrong requests: each refused with its reason", WRONG.len()));
    Ok(())
}

/// A request for an image that was unloaded; then there is one again.
fn without_image(victim: &mut Victim) -> Result<()> {
    victim.guest.run(["hotdump", "unload"])?.ok()?;
    let request = victim.valid;
    victim.is_refused(&request, Reason::NotLoaded, None).context("asked for an image that was unloaded")?;
    victim.load_again()?;
    let request = Arm { identity: request.identity, ..victim.valid };
    victim.is_refused(&request, Reason::NotOurs, None).context("asked for the image before")
}

/// Numbers of errors (asm-generic/errno-base.h).
const EBUSY: i32 = 16;
const EAGAIN: i32 = 11;
const EFAULT: i32 = 14;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENOTTY: i32 = 25;

/// Pointers to nowhere, ioctls that there are not, reads of any size.
fn bad_calls(victim: &mut Victim) -> Result<()> {
    let before = victim.header()?;
    let bytes = to_bytes(&victim.valid);
    let half = |number: u32| number & !0x3fff_0000 | 8 << 16;
    let calls = [
        ("a request at no address", IOCTL_ARM, Argument::Address(0), EFAULT),
        ("a request in the kernel", IOCTL_ARM, Argument::Address(0xffff_ffff_8100_0000), EFAULT),
        ("a request at the last address", IOCTL_ARM, Argument::Address(u64::MAX), EFAULT),
        ("a request without its end", IOCTL_ARM, Argument::Bytes { bytes: bytes.clone(), past: 8 }, EFAULT),
        ("a request without room for an answer", IOCTL_ARM, Argument::ReadOnly(bytes.clone()), EFAULT),
        ("status to no address", IOCTL_STATUS, Argument::Address(0), EFAULT),
        ("status to the kernel", IOCTL_STATUS, Argument::Address(0xffff_ffff_8100_0000), EFAULT),
        (
            "status to too little room",
            IOCTL_STATUS,
            Argument::Bytes { bytes: vec![0; size_of::<Status>()], past: 8 },
            EFAULT,
        ),
        ("an unknown ioctl", 0x4804, Argument::Address(0), ENOTTY),
        ("another device's ioctl", 0x5401, Argument::Address(0), ENOTTY),
        ("no ioctl", 0, Argument::Address(0), ENOTTY),
        (
            "arming with another size",
            half(IOCTL_ARM),
            Argument::Bytes { bytes: bytes.clone(), past: 0 },
            ENOTTY,
        ),
        ("status with another size", half(IOCTL_STATUS), Argument::Bytes { bytes, past: 0 }, ENOTTY),
        ("letting go of nothing", IOCTL_DISARM, Argument::Address(u64::MAX), 0),
    ];
    for (what, number, argument, errno) in calls {
        let called = victim.call(number, argument)?;
        ensure!(called.errno == errno, "{what}: error {} instead of {errno}", called.errno);
        ensure!(!victim.is_armed()?, "{what} arms");
        ensure!(victim.header()? == before, "{what}: the header was written to");
    }
    // There is nothing to read while nothing is armed; else all of the header, in pieces of any size, and no more.
    victim.guest.shell("dd if=/dev/hotdump bs=1M count=1")?.says("No such device")?.exits(1)?;
    victim.arm_well()?;
    victim.guest.write("/tmp/header", 0o600, &before[..4096])?;
    let line = format!(
        "[ $(dd if=/dev/hotdump bs=7 count=1 | wc -c) = 7 ] && \
         [ $(dd if=/dev/hotdump bs=64M count=1 | wc -c) = 4096 ] && \
         [ $(cat /dev/hotdump | wc -c) = {} ] && \
         dd if=/dev/hotdump bs=1000 | head -c 4096 | cmp - /tmp/header",
        before.len()
    );
    victim.guest.shell(&line)?.ok()?;
    victim.disarm()?;
    victim.guest.say("bad pointers, unknown ioctls, reads of any size: no harm");
    Ok(())
}

fn without_privilege(victim: &mut Victim) -> Result<()> {
    let nobody = Some(65534);
    victim.guest.run_as(nobody, ["cat", "/dev/hotdump"])?.says("Permission denied")?.exits(1)?;
    // Also where somebody was generous with permissions.
    victim.guest.run(["chmod", "666", "/dev/hotdump"])?.ok()?;
    victim.guest.run_as(nobody, ["cat", "/dev/hotdump"])?.says("Operation not permitted")?.exits(1)?;
    victim.guest.run(["chmod", "600", "/dev/hotdump"])?.ok()?;
    Ok(())
}

/// Requests by chance, and calls at the same time.
fn by_chance(victim: &mut Victim) -> Result<()> {
    const SEED: u64 = 0x6d69_7375_7365;
    const COUNT: u64 = 2_000;
    let valid = to_bytes(&victim.valid);
    let tallies = victim.many(&Request::Fuzz { seed: SEED, count: COUNT, valid: valid.clone() })?;
    told(victim, &format!("{COUNT} requests by chance, seed {SEED:#x}"), &tallies)?;
    ensure!(count(&tallies, "arm", 0) > 0, "none of the requests was good");
    ensure!(count(&tallies, "unknown", ENOTTY) == of(&tallies, "unknown"), "an unknown ioctl was taken");
    // A request that was good for the module may have left memory out, or not.
    victim.load_again()?;
    let (before, valid) = (victim.header()?, to_bytes(&victim.valid));
    let tallies = victim.many(&Request::Contend { milliseconds: 3000, valid })?;
    told(victim, "arming, letting go, asking and reading at the same time", &tallies)?;
    for (call, errno) in [("arm", 0), ("arm", EBUSY), ("disarm", 0), ("status", 0), ("read", 0)] {
        ensure!(count(&tallies, call, errno) > 0, "{call} never ended with {errno}");
    }
    victim.disarm()?;
    ensure!(victim.header()? == before, "the header was written to, though nothing had changed");
    victim.arm_well()?;
    victim.guest.verify_says_complete()?;
    victim.disarm()
}

/// Every call must have ended in a way that there is.
fn told(victim: &Victim, what: &str, tallies: &[Tally]) -> Result<()> {
    let mut lines = vec![what.to_owned()];
    for Tally { call, errno, reason, count } in tallies {
        let known = Reason::from_code(*reason);
        let is_right = match (call.as_str(), *errno, known) {
            ("arm", 0, Some(Reason::None)) | ("disarm" | "status", 0, _) | ("read", 0 | ENODEV, _) => true,
            ("arm", EBUSY | EAGAIN | ENODEV | EINVAL, Some(reason)) => reason != Reason::None,
            ("unknown", ENOTTY, _) => true,
            _ => false,
        };
        lines.push(format!("  {call}: error {errno}, reason {known:?}: {count} times"));
        ensure!(is_right, "{call} ended with error {errno} and reason {reason}, {count} times");
    }
    victim.guest.say(lines.join("\n"));
    Ok(())
}

fn of(tallies: &[Tally], call: &str) -> u64 {
    tallies.iter().filter(|tally| tally.call == call).map(|tally| tally.count).sum()
}

fn count(tallies: &[Tally], call: &str, errno: i32) -> u64 {
    let ended = tallies.iter().filter(|tally| tally.call == call && tally.errno == errno);
    ended.map(|tally| tally.count).sum()
}

/// What others do while the module follows an image.
fn while_armed(victim: &mut Victim) -> Result<()> {
    victim.arm_well()?;
    let before = victim.header()?;
    let (errno, answer) = victim.arm(&victim.valid.clone())?;
    ensure!(errno == EBUSY && answer.reason == Reason::AlreadyArmed as u32, "armed twice: error {errno}");
    ensure!(
        victim.is_armed()? && victim.header()? == before,
        "the second request did something to the first"
    );

    victim.guest.run(["rmmod", "hotdump"])?.ok()?;
    ensure!(victim.header()? == before, "rmmod wrote to the header");
    victim.guest.run(["insmod", MODULE])?.ok()?;
    ensure!(victim.status()? == (false, Reason::None), "the module follows from the start");
    victim.arm_well()?;

    let append = "console=ttyS0 panic=-1 nr_cpus=1";
    victim.guest.shell(&format!("/usr/sbin/kexec -p /boot/vmlinuz-* --append='{append}'"))?.ok()?;
    ensure!(victim.status()? == (false, Reason::OtherLoad), "the module follows what kexec-tools replaced");
    let theirs = victim.peek(victim.reservation.clone())?;
    let request = victim.valid;
    let (errno, _) = victim.arm(&request)?;
    ensure!(errno == EINVAL && !victim.is_armed()?, "armed for what kexec-tools replaced: error {errno}");
    ensure!(victim.peek(victim.reservation.clone())? == theirs, "the image of kexec-tools was written to");
    victim.guest.say("arming twice, rmmod, kexec-tools over an armed image: no harm");
    Ok(())
}

/// A header whose room is all taken: what does not fit is refused, and the image gives a dump of what did.
fn full(mut victim: Victim) -> Result<()> {
    const DIMM: u64 = 512 * MIB;
    victim.load_again()?;
    crowd(&mut victim, 0)?;
    let before = victim.header()?;
    victim.guest.add_memory(DIMM)?;
    ensure!(
        victim.status()? == (false, Reason::Full),
        "memory came that has no room: {:?}",
        victim.status()?
    );
    ensure!(victim.header()? == before, "memory came that has no room: the header was written to");
    victim.guest.verify_names_missing_memory()?;

    victim.load_again()?;
    victim.guest.fill_at_most(64 * MIB)?;
    crowd(&mut victim, 1)?;
    let state = victim.guest.state()?;
    let added: Vec<u64> = state
        .online_blocks
        .iter()
        .copied()
        .filter(|it| !victim.guest.at_boot.online_blocks.contains(it))
        .collect();
    let [_, second, third, ..] = added[..] else { bail!("of {DIMM} bytes only {added:?} are online") };
    let offline = |victim: &mut Victim, block: u64| {
        let line = format!("echo offline > /sys/devices/system/memory/memory{block}/state");
        victim.guest.shell(&line)?.ok().map(drop)
    };
    // Out of the middle: one entry more. Off the start of what is left: one more for a moment.
    offline(&mut victim, second)?;
    ensure!(victim.is_armed()?, "there was room for it, and yet: {:?}", victim.status()?);
    let before = victim.header()?;
    offline(&mut victim, third)?;
    ensure!(victim.status()? == (false, Reason::Full), "memory went without room: {:?}", victim.status()?);
    ensure!(victim.header()? == before, "memory went without room: the header was written to");
    no_warning(&mut victim.guest)?;
    victim.guest.say("a full header: let go with its reason, nothing written");
    let crashed = victim.guest.crash(1)?;
    crashed.complete()?;
    crashed.saved_by_hotdump()
}

/// Has the module follow the image's header within one page, of whose slots `free` are free.
fn crowd(victim: &mut Victim, free: u64) -> Result<()> {
    const SLOTS: u64 = (4096 - 64) / 56;
    let mut header = Header(victim.header()?);
    let used = header.number(56, 2);
    // Pages of the kernel's text, which the first entry of memory is for: those may overlap others, and are left alone.
    let text = (0..used).map(|slot| 64 + slot * 56).find(|at| header.number(*at, 4) == 1);
    let text = text.context("the header names no memory")?;
    for at in (used..SLOTS - free).map(|slot| 64 + slot * 56) {
        for field in (0..56).step_by(8) {
            header.put(at + field, 8, header.number(text + field, 8));
        }
        header.put(at + 32, 8, 4096);
        header.put(at + 40, 8, 4096);
    }
    header.put(56, 2, SLOTS - free);
    victim.poke(victim.valid.header.start, &header.0)?;
    victim.valid.header.end = victim.valid.header.start + 4096;
    victim.arm_well()
}
