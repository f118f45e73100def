//! Reads kdump-compressed dumps (version 6, pages by zlib, zstd, LZO or plain), for the [checker](crate::check) and with no code of hotdump's.
//!
//! Layout, little-endian, read off makedumpfile's `diskdump_mod.h`: a header block, a sub-header, two bitmaps of page frames of which the
//! second says what is in the dump, a descriptor for each of those, and the pages' data anywhere.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::read::ZlibDecoder;
use lab_agent::pattern::PAGE;
use ruzstd::decoding::FrameDecoder;

/// How such a file begins.
pub const SIGNATURE: &[u8] = b"KDUMP   ";

/// A descriptor: offset, size, flags, and a word that nobody uses.
const DESCRIPTOR: usize = 24;
/// Its flags for zlib, LZO and zstd; none is a page as it is.
const ZLIB: u64 = 1;
const LZO: u64 = 2;
const ZSTD: u64 = 0x20;

/// What a dump holds.
pub struct Kdump {
    /// The notes, as they were in the core.
    pub notes: Vec<u8>,
    /// Runs of memory that the dump holds, by physical address.
    pub held: Vec<Range<u64>>,
}

/// How much of a dump must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Every page.
    All,
    /// What was written before its writer came to an early end: pages that have no descriptor yet, or lie behind the file's end, are not.
    Some,
}

/// Writes the pages of the dump `from` into `to`, each at its physical address, and tells which there are.
///
/// # Errors
/// If the file is none, or incomplete, or has a page that cannot be read.
pub fn unpack(from: &File, to: &Path, parts: Parts) -> Result<Kdump> {
    let length = from.metadata()?.len();
    let header = read(from, 0, PAGE as u64).context("reading the dump's header")?;
    let int = |at: usize| number(&header, at, 4);
    let (status, block, sub_blocks, bitmap_blocks) = (int(424), int(428), int(432), int(436));
    ensure!([4096, 65536].contains(&block), "pages of {block} bytes: the lab reads those of 4 and 64 KiB");
    let sub_header = read(from, block, PAGE as u64)?;
    let long = |at: usize| number(&sub_header, at, 8);
    let is_whole = status & 8 == 0;
    ensure!(is_whole == (parts == Parts::All), "the header says that the dump is complete: {is_whole}");
    let notes = read(from, long(48), long(56))?;
    let bitmaps = read(from, (1 + sub_blocks) * block, bitmap_blocks * block)?;
    let second = &bitmaps[bitmaps.len() / 2..];
    let frames =
        (0..second.len() as u64 * 8).filter(|frame| second[(frame / 8) as usize] >> (frame % 8) & 1 == 1);
    let mut descriptors = (1 + sub_blocks + bitmap_blocks) * block;
    let memory = File::create(to).with_context(|| format!("creating {}", to.display()))?;
    let mut held: Vec<Range<u64>> = Vec::new();
    let mut zstd = FrameDecoder::new();
    for frame in frames {
        let descriptor = read(from, descriptors, DESCRIPTOR as u64)?;
        descriptors += DESCRIPTOR as u64;
        let (offset, size, flags) =
            (number(&descriptor, 0, 8), number(&descriptor, 8, 4), number(&descriptor, 12, 4));
        if parts == Parts::Some && (size == 0 || offset + size > length) {
            continue;
        }
        let packed = read(from, offset, size).with_context(|| format!("page frame {frame:#x}"))?;
        let page = unpack_page(packed, flags, block as usize, &mut zstd);
        let page = page.with_context(|| format!("page frame {frame:#x}"))?;
        ensure!(page.len() as u64 == block, "page frame {frame:#x} has {} bytes", page.len());
        let address = frame * block;
        if page.iter().any(|byte| *byte != 0) {
            memory.write_all_at(&page, address)?;
        }
        match held.last_mut() {
            Some(last) if last.end == address => last.end += block,
            _ => held.push(address..address + block),
        }
    }
    // Zeros at the end are a hole.
    memory.set_len(held.last().map_or(0, |last| last.end))?;
    Ok(Kdump { notes, held })
}

/// A page as it was in memory, of so many bytes at most.
fn unpack_page(packed: Vec<u8>, flags: u64, most: usize, zstd: &mut FrameDecoder) -> Result<Vec<u8>> {
    match flags {
        0 => Ok(packed),
        ZLIB => {
            let mut page = Vec::new();
            ZlibDecoder::new(packed.as_slice()).read_to_end(&mut page)?;
            Ok(page)
        }
        ZSTD => {
            let mut page = vec![0; most];
            let length = zstd.decode_all(&packed, &mut page)?;
            page.truncate(length);
            Ok(page)
        }
        LZO => {
            let mut page = vec![0; most];
            let length = lzokay::decompress::decompress(&packed, &mut page);
            page.truncate(length.map_err(|error| anyhow!("damaged LZO: {error:?}"))?);
            Ok(page)
        }
        _ => bail!("it is packed in way {flags:#x}: the lab reads zlib, zstd and LZO"),
    }
}

/// Where the first page's data are: behind the descriptors, of which there is one for each frame of the second bitmap.
///
/// # Errors
/// If the file is none.
pub fn first_page(from: &File) -> Result<u64> {
    let header = read(from, 0, 464)?;
    ensure!(header.starts_with(SIGNATURE), "this is no kdump-compressed dump");
    let (block, sub_blocks, bitmap_blocks) =
        (number(&header, 428, 4), number(&header, 432, 4), number(&header, 436, 4));
    let bitmaps = read(from, (1 + sub_blocks) * block, bitmap_blocks * block)?;
    let frames: u64 = bitmaps[bitmaps.len() / 2..].iter().map(|byte| u64::from(byte.count_ones())).sum();
    Ok((1 + sub_blocks + bitmap_blocks) * block + frames * DESCRIPTOR as u64)
}

/// Notes by their names, types and contents.
pub fn notes(bytes: &[u8]) -> Vec<(&[u8], u64, &[u8])> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while rest.len() >= 12 {
        let [name, content] = [number(rest, 0, 4), number(rest, 4, 4)].map(|size| size as usize);
        let kind = number(rest, 8, 4);
        let content_at = 12 + name.next_multiple_of(4);
        let Some(note) = rest.get(content_at..content_at + content) else { break };
        found.push((rest[12..12 + name].strip_suffix(b"\0").unwrap_or(&rest[12..12 + name]), kind, note));
        let Some(next) = rest.get(content_at + content.next_multiple_of(4)..) else { break };
        rest = next;
    }
    found
}

fn read(file: &File, offset: u64, size: u64) -> Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let fits = offset.checked_add(size).is_some_and(|end| end <= length);
    ensure!(fits, "{size} bytes at {offset:#x} of a file of {length} bytes");
    let mut bytes = vec![0; usize::try_from(size)?];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The little-endian number of `size` bytes at an offset; what lies beyond the end is 0.
fn number(bytes: &[u8], at: usize, size: usize) -> u64 {
    let part = bytes.get(at..at + size).unwrap_or_default();
    part.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_one_after_another() {
        let mut bytes = vec![5, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0];
        bytes.extend(b"CORE\0\0\0\0ab\0\0");
        bytes.extend([0, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, b'x', 0, 0, 0, 1, 2]);
        assert_eq!(notes(&bytes), [(&b"CORE"[..], 1, &b"ab"[..]), (&b""[..], 7, &b"x"[..])]);
        assert_eq!(notes(&bytes[..20]), []);
    }

    #[test]
    fn what_is_no_dump_is_refused() {
        let dir = tempfile();
        for bytes in [vec![], vec![0; 100], vec![0; 3 * PAGE], vec![0xff; 3 * PAGE]] {
            std::fs::write(dir.join("dump"), &bytes).unwrap();
            assert!(unpack(&File::open(dir.join("dump")).unwrap(), &dir.join("memory"), Parts::All).is_err());
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    fn tempfile() -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("hotdump-lab-kdump-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }
}
