//! Filled memory and the frames that it lies in.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use lab_agent::Manifest;
use lab_agent::pattern::{PAGE, write_page};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::param::page_size;

use crate::huge::Huge;

/// Pages in one piece of memory, 16 MiB: the available memory is looked at after each.
const PIECE: usize = 4096;

/// Memory of this program.
enum Piece {
    /// [`PIECE`] pages of the pattern, and one more page.
    Small(Vec<u8>),
    /// A huge page, whose first so many pages are of the pattern.
    Huge(Huge, usize),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Piece::Small(bytes) => bytes,
            Piece::Huge(memory, _) => memory.bytes(),
        }
    }

    fn pages(&self) -> usize {
        match self {
            Piece::Small(_) => PIECE,
            Piece::Huge(_, pages) => *pages,
        }
    }
}

/// Memory that holds the pattern, kept until the crash.
pub(crate) struct Filled {
    seed: u64,
    pieces: Vec<Piece>,
    frames: Vec<u64>,
}

impl Filled {
    /// Fills memory with the pattern of `seed` until only `leave` bytes are available, or `most` bytes are filled.
    pub(crate) fn fill(seed: u64, most: u64, leave: u64) -> Result<Filled> {
        mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).context("locking memory")?;
        let mut pieces = Vec::new();
        let mut index = 0;
        while index * (PAGE as u64) < most && meminfo("MemAvailable")? > leave {
            // A page of the kernel's more, so that PIECE pages fit whatever its address is.
            let mut piece = vec![0; PIECE * PAGE + page_size()];
            let start = offset_of_first_page(&piece);
            for page in piece[start..].chunks_exact_mut(PAGE).take(PIECE) {
                write_page(seed, index, page);
                index += 1;
            }
            pieces.push(Piece::Small(piece));
        }
        ensure!(!pieces.is_empty(), "less than {leave} bytes are available, nothing was filled");
        let frames = frames_of(&pieces)?;
        Ok(Filled { seed, pieces, frames })
    }

    /// Takes a huge page of `size` bytes and fills `most` bytes of it with the pattern of `seed`; the others are zeros.
    pub(crate) fn fill_huge(seed: u64, size: usize, most: usize) -> Result<Filled> {
        let mut memory = Huge::new(size)?;
        let pages = most.min(size) / PAGE;
        for (index, page) in (0..).zip(memory.bytes_mut().chunks_exact_mut(PAGE).take(pages)) {
            write_page(seed, index, page);
        }
        let pieces = vec![Piece::Huge(memory, pages)];
        let frames = frames_of(&pieces)?;
        Ok(Filled { seed, pieces, frames })
    }

    pub(crate) fn pages(&self) -> u64 {
        self.frames.len() as u64
    }

    /// Writes the manifest to `disk`. Gives how many pages have moved since they were filled, and the manifest's runs.
    pub(crate) fn seal(&mut self, disk: &Path) -> Result<(u64, u64)> {
        let mut moved = 0;
        // Writing takes memory, and that may move pages: what counts is what is true afterwards.
        for _ in 0..5 {
            let now = frames_of(&self.pieces)?;
            moved += self.frames.iter().zip(&now).filter(|(before, after)| before != after).count() as u64;
            self.frames = now;
            let mut manifest = Manifest { seed: self.seed, runs: Vec::new() };
            for (page, frame) in (0..).zip(&self.frames) {
                manifest.push(*frame, page);
            }
            let mut file = OpenOptions::new().write(true).open(disk)?;
            file.write_all(&manifest.to_bytes()).with_context(|| format!("writing {}", disk.display()))?;
            file.sync_all().with_context(|| format!("writing {}", disk.display()))?;
            if frames_of(&self.pieces)? == self.frames {
                return Ok((moved, manifest.runs.len() as u64));
            }
        }
        bail!("pages keep moving: {moved} so far")
    }
}

/// Where the first of the kernel's own pages begins.
fn offset_of_first_page(piece: &[u8]) -> usize {
    let past = piece.as_ptr().addr() % page_size();
    (page_size() - past) % page_size()
}

/// The frame of each page, in the pages' order, from /proc/self/pagemap. Where the kernel's own pages are larger, as on
/// PowerPC, each of them is so many of ours.
fn frames_of(pieces: &[Piece]) -> Result<Vec<u64>> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let pagemap = File::open("/proc/self/pagemap").context("opening /proc/self/pagemap")?;
    let parts = page_size() / PAGE;
    let mut frames = Vec::with_capacity(pieces.len() * PIECE);
    for piece in pieces {
        let first = piece.bytes().as_ptr().addr() + offset_of_first_page(piece.bytes());
        let mut entries = vec![0; piece.pages() / parts * 8];
        pagemap
            .read_exact_at(&mut entries, (first / page_size() * 8) as u64)
            .context("reading /proc/self/pagemap")?;
        for entry in entries.chunks_exact(8) {
            let entry = u64::from_le_bytes(entry.try_into()?);
            ensure!(
                entry & PRESENT != 0 && entry & FRAME != 0,
                "page {} has no frame: {entry:#x}",
                frames.len()
            );
            let frame = (entry & FRAME) * parts as u64;
            frames.extend(frame..frame + parts as u64);
        }
    }
    Ok(frames)
}

/// A line of /proc/meminfo, in bytes.
pub(crate) fn meminfo(name: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .with_context(|| format!("no {name} in /proc/meminfo"))?;
    Ok(kib.parse::<u64>()?.saturating_mul(1024))
}
