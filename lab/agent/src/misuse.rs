//! Calls to the kernel module that no loader would make.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::mem::offset_of;
use std::thread;
use std::time::{Duration, Instant};

use abi::{Arm, DEVICE, IOCTL_ARM, IOCTL_DISARM, IOCTL_STATUS, Status};
use anyhow::{Context, Result, bail, ensure};
use lab_agent::{Argument, Called, Tally};
use rustix::io::Errno;

use crate::device::{Window, call_nowhere};

fn open() -> Result<File> {
    File::open(DEVICE).with_context(|| format!("opening {DEVICE}"))
}

fn number_of(result: Result<(), Errno>) -> i32 {
    result.map_or_else(Errno::raw_os_error, |()| 0)
}

/// Makes one call with one argument.
pub(crate) fn call(number: u32, argument: &Argument) -> Result<Called> {
    let device = open()?;
    let (result, bytes) = match argument {
        Argument::Bytes { bytes, past } => {
            let mut window = Window::new(bytes, *past)?;
            (window.call(&device, number), window.get())
        }
        Argument::ReadOnly(bytes) => (Window::new(bytes, 0)?.seal()?.call(&device, number), bytes.clone()),
        Argument::Address(address) => (call_nowhere(&device, number, *address)?, Vec::new()),
    };
    Ok(Called { errno: number_of(result), bytes })
}

/// Counts how calls end.
#[derive(Default)]
struct Tallies(BTreeMap<(&'static str, i32, u32), u64>);

impl Tallies {
    fn count(&mut self, call: &'static str, errno: i32, reason: u32) {
        *self.0.entry((call, errno, reason)).or_default() += 1;
    }

    fn arm(&mut self, device: &File, window: &mut Window) -> bool {
        let result = window.call(device, IOCTL_ARM);
        let reason = window.get().get(offset_of!(Arm, reason)..).and_then(|rest| rest.first_chunk().copied());
        let reason = reason.map_or(0, u32::from_ne_bytes);
        self.count("arm", number_of(result), if result.is_ok() { 0 } else { reason });
        result.is_ok()
    }

    fn other(&mut self, call: &'static str, device: &File, window: &mut Window, number: u32) {
        let result = window.call(device, number);
        self.count(call, number_of(result), 0);
    }

    fn into_answer(self) -> Vec<Tally> {
        let one = |((call, errno, reason), count): ((&'static str, _, _), _)| Tally {
            call: call.to_owned(),
            errno,
            reason,
            count,
        };
        self.0.into_iter().map(one).collect()
    }
}

/// Makes `count` calls with what chance makes of `valid`, a good [`Arm`], and lets go after each that succeeds.
pub(crate) fn fuzz(seed: u64, count: u64, valid: &[u8]) -> Result<Vec<Tally>> {
    ensure!(valid.len() == size_of::<Arm>(), "{} bytes are no request to arm", valid.len());
    let device = open()?;
    let mut random = fastrand::Rng::with_seed(seed);
    let mut window = Window::new(valid, 0)?;
    let mut tallies = Tallies::default();
    for _ in 0..count {
        let mut bytes = valid.to_vec();
        // Often one field alone: with more, the first that is wrong hides the others.
        for _ in 0..random.u32(1..=3) {
            mutate(&mut random, &mut bytes);
        }
        window.put(&bytes);
        if random.u32(0..16) == 0 {
            // 14 bits of size, 8 of number, 2 of direction, of the module's letter or any.
            let number = random.u32(..);
            let number = if random.bool() { number } else { number & !0xff00 | (IOCTL_ARM & 0xff00) };
            if ![IOCTL_ARM, IOCTL_DISARM, IOCTL_STATUS].contains(&number) {
                tallies.other("unknown", &device, &mut window, number);
            }
        } else if tallies.arm(&device, &mut window) {
            tallies.other("disarm", &device, &mut window, IOCTL_DISARM);
        }
    }
    Ok(tallies.into_answer())
}

/// Changes a word or half a word to something that code may stumble over.
fn mutate(random: &mut fastrand::Rng, bytes: &mut [u8]) {
    let size = if random.bool() { 8 } else { 4 };
    // Most of a request is room for excluded ranges, of which few are used.
    let end = if random.u32(0..4) == 0 { bytes.len() } else { offset_of!(Arm, excluded) + 64 };
    let at = random.usize(..end / size) * size;
    let Some(place) = bytes.get_mut(at..at + size) else { return };
    let mut old = [0; 8];
    old[..size].copy_from_slice(place);
    let old = u64::from_ne_bytes(old);
    let new = match random.u32(0..8) {
        0 => 0,
        1 => u64::MAX,
        2 => old.wrapping_add(random.u64(1..=16)),
        3 => old.wrapping_sub(random.u64(1..=16)),
        4 => old.wrapping_add(random.u64(1..=1024) * 4096),
        5 => old.wrapping_sub(random.u64(1..=1024) * 4096),
        6 => old ^ 1 << random.u32(0..64),
        _ => random.u64(..),
    };
    place.copy_from_slice(&new.to_ne_bytes()[..size]);
}

/// What a thread does with a good request until the time comes.
type Work = fn(&[u8], Instant) -> Result<Tallies>;

/// For `time` one thread arms for `valid` and lets go, a second arms too, a third asks and reads.
pub(crate) fn contend(time: Duration, valid: &[u8]) -> Result<Vec<Tally>> {
    let end = Instant::now() + time;
    let counted = thread::scope(|scope| {
        let works: [Work; 3] = [arm_and_disarm, only_arm, look];
        let threads = works.map(|work| scope.spawn(move || work(valid, end)));
        threads.map(|thread| thread.join())
    });
    let mut all = Tallies::default();
    for tallies in counted {
        let Ok(tallies) = tallies else { bail!("a thread panicked") };
        for (key, count) in tallies?.0 {
            *all.0.entry(key).or_default() += count;
        }
    }
    Ok(all.into_answer())
}

fn arm_and_disarm(valid: &[u8], end: Instant) -> Result<Tallies> {
    let (device, mut window, mut tallies) = (open()?, Window::new(valid, 0)?, Tallies::default());
    while Instant::now() < end {
        window.put(valid);
        tallies.arm(&device, &mut window);
        tallies.other("disarm", &device, &mut window, IOCTL_DISARM);
    }
    Ok(tallies)
}

fn only_arm(valid: &[u8], end: Instant) -> Result<Tallies> {
    let (device, mut window, mut tallies) = (open()?, Window::new(valid, 0)?, Tallies::default());
    while Instant::now() < end {
        window.put(valid);
        tallies.arm(&device, &mut window);
    }
    Ok(tallies)
}

fn look(_: &[u8], end: Instant) -> Result<Tallies> {
    let (device, mut tallies) = (open()?, Tallies::default());
    let mut window = Window::new(&[0; size_of::<Status>()], 0)?;
    let mut page = vec![0; 1 << 20];
    while Instant::now() < end {
        tallies.other("status", &device, &mut window, IOCTL_STATUS);
        // Offsets count from each opening.
        let errno = match open()?.read(&mut page) {
            Ok(_) => 0,
            Err(error) => error.raw_os_error().unwrap_or(-1),
        };
        tallies.count("read", errno, 0);
    }
    Ok(tallies)
}
