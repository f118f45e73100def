//! What the host and the agent in a guest say to each other, and the pattern that fills the guest's memory.
//!
//! Both ends share these types: one JSON object a line, a [`Request`] one way, then its `Answer` back.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

pub mod pattern;

/// The device that the agent listens at inside the guest: the second of its machine's serial ports.
pub const PORT: &str = if cfg!(target_arch = "powerpc64") { "/dev/hvc1" } else { "/dev/ttyS1" };

/// What the host asks the agent to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Run a program to its end; answered by [`Answer::Ran`].
    Run(Run),
    /// Write a file; answered by [`Answer::Done`].
    Write {
        /// Where to; its directory is made too.
        path: String,
        /// Permission bits.
        mode: u32,
        /// All that the file shall hold.
        bytes: Vec<u8>,
    },
    /// Read a file; answered by [`Answer::Bytes`].
    Read {
        /// Which.
        path: String,
    },
    /// Tell the state of CPUs and memory; answered by [`Answer::State`].
    State,
    /// Bring a CPU online or take it offline; answered by [`Answer::Done`].
    SetCpu {
        /// The CPU's number in the guest.
        cpu: u32,
        /// Online or offline.
        online: bool,
    },
    /// Fill memory with the pattern of `seed`; answered by [`Answer::Filled`].
    Fill {
        /// Which pattern, see [`pattern::write_page`].
        seed: u64,
        /// How many bytes to fill at most.
        most: u64,
        /// How many bytes to leave available.
        leave: u64,
    },
    /// Take a huge page and fill its first bytes with the pattern of `seed`; answered by [`Answer::Filled`].
    FillHuge {
        /// Which pattern, see [`pattern::write_page`].
        seed: u64,
        /// How large the page is, in bytes.
        size: usize,
        /// How many bytes to fill at most.
        most: usize,
    },
    /// Write the manifest of the filled memory to the disk with this serial number; answered by [`Answer::Sealed`].
    Seal {
        /// The serial number that the disk was given on QEMU's command line.
        disk: String,
    },
    /// Make one ioctl on the kernel module's device; answered by [`Answer::Called`].
    Call {
        /// The ioctl's number.
        number: u32,
        /// What it points to.
        argument: Argument,
    },
    /// Arm the kernel module with what chance makes of a good request, and let go after each success; answered by
    /// [`Answer::Tallies`].
    Fuzz {
        /// What chance starts from.
        seed: u64,
        /// How many calls.
        count: u64,
        /// The good request, a whole `abi::Arm`.
        valid: Vec<u8>,
    },
    /// Arm, disarm, ask and read from three threads at once; answered by [`Answer::Tallies`].
    Contend {
        /// How long, in milliseconds.
        milliseconds: u64,
        /// A good request, a whole `abi::Arm`.
        valid: Vec<u8>,
    },
    /// Look at a file each millisecond from now on, whatever else is asked; answered by [`Answer::Done`].
    Sample {
        /// Which.
        path: String,
    },
    /// Look no more; answered by [`Answer::Sampled`].
    Sampled,
    /// Panic on this CPU; answered by [`Answer::Done`] just before.
    Crash {
        /// The CPU's number in the guest.
        cpu: u32,
    },
}

/// What an ioctl points to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Argument {
    /// Memory of the agent's.
    Bytes {
        /// What is in it.
        bytes: Vec<u8>,
        /// How many of the last bytes nobody can touch.
        past: usize,
    },
    /// Memory that can be read and not be written.
    ReadOnly(Vec<u8>),
    /// An address at which there is nothing: below 4096 or in the kernel's half.
    Address(u64),
}

/// How an ioctl ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Called {
    /// 0, or the number of the error.
    pub errno: i32,
    /// The argument afterwards, as far as it can be read.
    pub bytes: Vec<u8>,
}

/// How often calls of one kind ended in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// `arm`, `disarm`, `status`, `read` or `unknown`.
    pub call: String,
    /// 0, or the number of the error.
    pub errno: i32,
    /// Where arming failed: the module's reason.
    pub reason: u32,
    /// How often.
    pub count: u64,
}

/// A program to run in the guest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The user and group to run as; root if none.
    pub uid: Option<u32>,
    /// Killed when it runs longer, in seconds of guest time.
    pub seconds: u64,
}

/// What the agent answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The first line, sent without being asked: the agent listens.
    Ready {
        /// The kernel's release.
        release: String,
    },
    /// Done, nothing to tell.
    Done,
    /// A program ended.
    Ran(Ran),
    /// A file's bytes.
    Bytes(Vec<u8>),
    /// CPUs and memory.
    State(State),
    /// Memory is filled.
    Filled {
        /// How many pages of 4 KiB.
        pages: u64,
    },
    /// The manifest is on its disk.
    Sealed {
        /// Pages whose frame changed since they were filled.
        moved: u64,
        /// Runs of neighbouring frames in the manifest.
        runs: u64,
    },
    /// What was in the file.
    Sampled(Samples),
    /// How an ioctl ended.
    Called(Called),
    /// How many calls ended, and how.
    Tallies(Vec<Tally>),
    /// It could not be done; the text says why.
    Failed(String),
}

/// How a program in the guest ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ran {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// From before it started to its end, in nanoseconds of the guest's monotonic clock.
    pub nanoseconds: u64,
}

/// What a file held while it was looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Samples {
    /// How often it was read.
    pub count: u64,
    /// What it held, each time that it was another text: since how many nanoseconds after the first look, and the text.
    pub texts: Vec<(u64, String)>,
    /// From the first look to the last, in nanoseconds.
    pub nanoseconds: u64,
}

impl Samples {
    /// Takes what was read at a time.
    pub fn take(&mut self, nanoseconds: u64, text: &str) {
        self.count += 1;
        self.nanoseconds = nanoseconds;
        if self.texts.last().is_none_or(|(_, last)| last != text) {
            self.texts.push((nanoseconds, text.to_owned()));
        }
    }

    /// How long the file held another text than `wanted`, each time, in nanoseconds: from the look that found the other one
    /// to the look that found it gone.
    pub fn without(&self, wanted: &str) -> Vec<u64> {
        let ends = self.texts.iter().skip(1).map(|(since, _)| *since).chain([self.nanoseconds]);
        let stretches = self.texts.iter().zip(ends);
        stretches.filter(|((_, text), _)| text != wanted).map(|((since, _), end)| end - since).collect()
    }
}

/// CPUs and memory as sysfs shows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The kernel's release.
    pub release: String,
    /// Online CPUs.
    pub online_cpus: Vec<u32>,
    /// Present CPUs.
    pub present_cpus: Vec<u32>,
    /// Size of a memory block in bytes.
    pub block_size: u64,
    /// Numbers of the memory blocks that are online; block n starts at n * `block_size`.
    pub online_blocks: Vec<u64>,
    /// /proc/meminfo's MemTotal in bytes.
    pub memory_total: u64,
    /// /proc/meminfo's MemAvailable in bytes.
    pub memory_available: u64,
}

impl State {
    /// Bytes in online memory blocks.
    pub fn online_bytes(&self) -> u64 {
        self.block_size.saturating_mul(self.online_blocks.len() as u64)
    }
}

/// The manifest on its disk: [`Manifest::MAGIC`], seed, page count and run count, then the runs; all of them little
/// endian numbers of 8 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Which pattern, see [`pattern::write_page`].
    pub seed: u64,
    /// Neighbouring frames that hold neighbouring pages.
    pub runs: Vec<FrameRun>,
}

/// Frames `frame .. frame + count` hold the pages `page .. page + count` of the pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRun {
    /// First page frame number (physical address / 4096).
    pub frame: u64,
    /// First page index in the pattern.
    pub page: u64,
    /// How many.
    pub count: u64,
}

impl Manifest {
    /// The first 8 bytes.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"HDMANIF1");

    /// Adds one page, to the last run where it continues that.
    pub fn push(&mut self, frame: u64, page: u64) {
        match self.runs.last_mut() {
            Some(run) if run.frame + run.count == frame && run.page + run.count == page => run.count += 1,
            _ => self.runs.push(FrameRun { frame, page, count: 1 }),
        }
    }

    /// How many pages it speaks of.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.count).sum()
    }

    /// How many pages lie in a range of physical addresses.
    pub fn pages_in(&self, range: &std::ops::Range<u64>) -> u64 {
        let page = pattern::PAGE as u64;
        let (first, past) = (range.start.div_ceil(page), range.end / page);
        let inside = |run: &FrameRun| past.min(run.frame + run.count).saturating_sub(first.max(run.frame));
        self.runs.iter().map(inside).sum()
    }

    /// The manifest as it lies on its disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = [Self::MAGIC, self.seed, self.pages(), self.runs.len() as u64];
        let runs = self.runs.iter().flat_map(|run| [run.frame, run.page, run.count]);
        header.into_iter().chain(runs).flat_map(u64::to_le_bytes).collect()
    }

    /// Reads a manifest back; none if the bytes are not one or break off.
    pub fn from_bytes(bytes: &[u8]) -> Option<Manifest> {
        let mut numbers =
            bytes.chunks_exact(8).filter_map(|eight| Some(u64::from_le_bytes(eight.try_into().ok()?)));
        let [magic, seed, pages, runs] = [numbers.next()?, numbers.next()?, numbers.next()?, numbers.next()?];
        let mut manifest = Manifest { seed, runs: Vec::new() };
        for _ in 0..runs {
            let [frame, page, count] = [numbers.next()?, numbers.next()?, numbers.next()?];
            manifest.runs.push(FrameRun { frame, page, count });
        }
        (magic == Self::MAGIC && manifest.pages() == pages).then_some(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_comes_back_as_it_was() {
        let mut manifest = Manifest { seed: 7, runs: Vec::new() };
        for (frame, page) in [(100, 0), (101, 1), (200, 2), (201, 3), (202, 4), (50, 5)] {
            manifest.push(frame, page);
        }
        assert_eq!(manifest.runs.len(), 3);
        let pages = |first: u64, past: u64| manifest.pages_in(&(first * 4096..past * 4096));
        assert_eq!([pages(0, 1000), pages(101, 202), pages(52, 100)], [6, 3, 0]);
        let bytes = manifest.to_bytes();
        let padded = [bytes.as_slice(), &[0; 512]].concat();
        assert_eq!(Manifest::from_bytes(&padded), Some(manifest));
        assert_eq!(Manifest::from_bytes(&bytes[..bytes.len() - 8]), None);
        assert_eq!(Manifest::from_bytes(&[0; 4096]), None);
    }
}
