//! The kernel log out of a dump: the lockless printk ring buffer that kernels have since 5.10.
//!
//! Two rings: descriptors (each with a printk_info beside it, in a second array) and text. A descriptor's number (id) counts
//! on for ever and wraps within 62 bits; its place in the arrays is the number modulo their length. Text positions (lpos)
//! count on likewise. A text block starts with the number of its descriptor; one that would cross the ring's end starts again
//! at the ring's first byte.

use std::io::{self, Write};

use crate::elf::CoreError;
use crate::source::{VirtAddr, VirtualMemory};
use crate::vmcoreinfo::{InfoError, VmcoreInfo};

/// The two top bits of a descriptor's state word hold its state, the rest its id.
const ID_MASK: u64 = u64::MAX >> 2;
const STATE_SHIFT: u32 = 62;
const COMMITTED: u64 = 1;
const FINALIZED: u64 = 2;
/// Text positions with the lowest bit set stand for "no text".
const NO_TEXT: u64 = 1;
/// An empty line has this at both ends of its block.
const EMPTY_LINE: u64 = 3;
/// A text block's leading id, in bytes.
const BLOCK_ID: u64 = 8;
/// Ring sizes are powers of two; log_buf_len goes up to 2 GiB, with a descriptor for each 32 bytes of it.
const MAX_COUNT_BITS: u32 = 26;
const MAX_TEXT_BITS: u32 = 31;
/// So many messages in a row that cannot be read: the rest is given up, lest a damaged ring holds the capture up.
const MAX_LOST_IN_A_ROW: u32 = 4096;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// vmcoreinfo lacks a symbol or an offset.
    #[error("cannot find the kernel log: {0}")]
    Info(#[from] InfoError),
    /// The rings themselves cannot be read.
    #[error("cannot read the kernel log's ring buffer: {0}")]
    Memory(#[from] CoreError),
    /// The rings make no sense.
    #[error("the kernel log's ring buffer is damaged: {field} is {found}, at most {most} makes sense")]
    Damaged {
        /// The structure's field.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// The most it can be.
        most: u64,
    },
}

/// Where fields lie, out of vmcoreinfo. All in bytes.
#[derive(Debug, Clone, Copy)]
struct Layout {
    desc_size: u64,
    desc_state: u64,
    desc_begin: u64,
    desc_next: u64,
    info_size: u64,
    info_time: u64,
    info_text_len: u64,
}

/// The log's rings in the crashed kernel's memory.
#[derive(Debug)]
pub struct Log<'a, M> {
    memory: &'a M,
    layout: Layout,
    descs: VirtAddr,
    infos: VirtAddr,
    count_mask: u64,
    first_id: u64,
    records: u64,
    text: VirtAddr,
    text_bits: u32,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Nanoseconds since boot.
    pub time_ns: u64,
    /// The text as it lies in memory: any bytes, lines separated by `\n`.
    pub text: Vec<u8>,
}

/// What came of writing a log out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Messages written.
    pub records: u64,
    /// Messages whose memory could not be read or made no sense.
    pub lost: u64,
}

impl<'a, M: VirtualMemory> Log<'a, M> {
    /// Finds the log.
    ///
    /// # Errors
    /// [`LogError`], where vmcoreinfo does not lead to it or the rings are unreadable.
    pub fn open(memory: &'a M, info: &VmcoreInfo) -> Result<Self, LogError> {
        let at = |base: VirtAddr, field: &str| -> Result<VirtAddr, LogError> {
            Ok(VirtAddr(base.0.wrapping_add(info.offset(field)?)))
        };
        let counter = info.offset("atomic_long_t.counter")?;
        let atomic = |base, field: &str| -> Result<u64, LogError> {
            Ok(memory.read_u64(VirtAddr(at(base, field)?.0.wrapping_add(counter)))?)
        };
        let lpos = info.offset("prb_desc.text_blk_lpos")?;
        let layout = Layout {
            desc_size: info.size("prb_desc")?,
            desc_state: info.offset("prb_desc.state_var")?.wrapping_add(counter),
            desc_begin: lpos.wrapping_add(info.offset("prb_data_blk_lpos.begin")?),
            desc_next: lpos.wrapping_add(info.offset("prb_data_blk_lpos.next")?),
            info_size: info.size("printk_info")?,
            info_time: info.offset("printk_info.ts_nsec")?,
            info_text_len: info.offset("printk_info.text_len")?,
        };

        let ring = VirtAddr(memory.read_u64(info.symbol("prb")?)?);
        let desc_ring = at(ring, "printk_ringbuffer.desc_ring")?;
        let text_ring = at(ring, "printk_ringbuffer.text_data_ring")?;
        let count_bits = memory.read_u32(at(desc_ring, "prb_desc_ring.count_bits")?)?;
        let text_bits = memory.read_u32(at(text_ring, "prb_data_ring.size_bits")?)?;
        check("prb_desc_ring.count_bits", count_bits, MAX_COUNT_BITS)?;
        check("prb_data_ring.size_bits", text_bits, MAX_TEXT_BITS)?;

        let count = 1u64 << count_bits;
        let head = atomic(desc_ring, "prb_desc_ring.head_id")? & ID_MASK;
        let tail = atomic(desc_ring, "prb_desc_ring.tail_id")? & ID_MASK;
        let span = (head.wrapping_sub(tail) & ID_MASK) + 1;
        // A tail that makes no sense costs nothing: what the ring can hold at most is looked at instead.
        let records = span.min(count);
        Ok(Self {
            memory,
            layout,
            descs: VirtAddr(memory.read_u64(at(desc_ring, "prb_desc_ring.descs")?)?),
            infos: VirtAddr(memory.read_u64(at(desc_ring, "prb_desc_ring.infos")?)?),
            count_mask: count - 1,
            first_id: head.wrapping_sub(records - 1) & ID_MASK,
            records,
            text: VirtAddr(memory.read_u64(at(text_ring, "prb_data_ring.data")?)?),
            text_bits,
        })
    }

    /// The messages, oldest first. A message in memory that cannot be read or makes no sense is an error in its place;
    /// after 4096 of those in a row the log ends.
    pub fn records(&self) -> impl Iterator<Item = Result<Record, CoreError>> {
        let mut lost = 0;
        let id = |number| self.first_id.wrapping_add(number) & ID_MASK;
        (0..self.records).filter_map(move |number| self.record(id(number)).transpose()).take_while(
            move |record| {
                lost = if record.is_err() { lost + 1 } else { 0 };
                lost <= MAX_LOST_IN_A_ROW
            },
        )
    }

    /// Prints the log as dmesg does: `[    1.234567] text`, each line of a message with its time in front. Bytes that a
    /// terminal would act on are printed as `\xHH`.
    ///
    /// # Errors
    /// What `out` returns. Messages that cannot be read are counted and left out.
    pub fn write_dmesg(&self, out: &mut impl Write) -> io::Result<LogStats> {
        let mut stats = LogStats::default();
        for record in self.records() {
            match record {
                Ok(record) => {
                    stats.records += 1;
                    record.write_dmesg(out)?;
                }
                Err(_) => stats.lost += 1,
            }
        }
        Ok(stats)
    }

    /// The message with this id; none where the descriptor holds no message (any more, or yet).
    fn record(&self, id: u64) -> Result<Option<Record>, CoreError> {
        let desc = element(self.descs, id & self.count_mask, self.layout.desc_size);
        let field = |base: VirtAddr, offset| VirtAddr(base.0.wrapping_add(offset));
        let state = self.memory.read_u64(field(desc, self.layout.desc_state))?;
        // A message that was still being added to (committed, not yet final) is often the last one before the crash.
        if state & ID_MASK != id || !matches!(state >> STATE_SHIFT, COMMITTED | FINALIZED) {
            return Ok(None);
        }
        let begin = self.memory.read_u64(field(desc, self.layout.desc_begin))?;
        let next = self.memory.read_u64(field(desc, self.layout.desc_next))?;
        let info = element(self.infos, id & self.count_mask, self.layout.info_size);
        let time_ns = self.memory.read_u64(field(info, self.layout.info_time))?;
        let mut len = [0; 2];
        self.memory.read_virt(field(info, self.layout.info_text_len), &mut len)?;
        let text = self.text(id, begin, next, u16::from_le_bytes(len))?;
        Ok(text.map(|text| Record { time_ns, text }))
    }

    /// The text between two positions, at most `len` bytes; none where the block does not belong to the message.
    fn text(&self, id: u64, begin: u64, next: u64, len: u16) -> Result<Option<Vec<u8>>, CoreError> {
        if begin & next & NO_TEXT != 0 {
            return Ok((begin == EMPTY_LINE && next == EMPTY_LINE).then(Vec::new));
        }
        let Some((offset, size)) = text_block(begin, next, self.text_bits) else { return Ok(None) };
        let block = VirtAddr(self.text.0.wrapping_add(offset));
        if self.memory.read_u64(block)? != id {
            return Ok(None);
        }
        let len = u64::from(len).min(size - BLOCK_ID);
        let mut text = vec![0; usize::try_from(len).unwrap_or(0)];
        self.memory.read_virt(VirtAddr(block.0.wrapping_add(BLOCK_ID)), &mut text)?;
        Ok(Some(text))
    }
}

impl Record {
    /// Prints the message as dmesg does.
    ///
    /// # Errors
    /// What `out` returns.
    pub fn write_dmesg(&self, out: &mut impl Write) -> io::Result<()> {
        let (seconds, micros) = (self.time_ns / 1_000_000_000, self.time_ns % 1_000_000_000 / 1000);
        let text = self.text.strip_suffix(b"\n").unwrap_or(&self.text);
        for line in text.split(|byte| *byte == b'\n') {
            write!(out, "[{seconds:5}.{micros:06}] ")?;
            write_escaped(line, out)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// Writes a line with control characters as `\xHH`; bytes of multi-byte characters pass.
fn write_escaped(line: &[u8], out: &mut impl Write) -> io::Result<()> {
    let is_plain = |byte: u8| byte == b'\t' || !byte.is_ascii_control();
    let mut rest = line;
    while let Some(at) = rest.iter().position(|byte| !is_plain(*byte)) {
        let (plain, tail) = rest.split_at(at);
        out.write_all(plain)?;
        if let Some((control, after)) = tail.split_first() {
            write!(out, "\\x{control:02x}")?;
            rest = after;
        }
    }
    out.write_all(rest)
}

/// Where a text block lies in the ring: offset and length in bytes, the leading id included.
fn text_block(begin: u64, next: u64, bits: u32) -> Option<(u64, u64)> {
    let mask = (1u64 << bits) - 1;
    // The position after the block is not part of it: a block that ends just at the ring's end has not wrapped.
    let last = next.wrapping_sub(1);
    let (offset, size) = if begin >> bits == last >> bits {
        (begin & mask, next.wrapping_sub(begin))
    } else if (begin >> bits).wrapping_add(1) << bits == (last >> bits) << bits {
        (0, (last & mask) + 1)
    } else {
        return None;
    };
    let whole = size > BLOCK_ID && offset.checked_add(size)? <= mask + 1;
    whole.then_some((offset, size))
}

fn element(array: VirtAddr, index: u64, size: u64) -> VirtAddr {
    VirtAddr(array.0.wrapping_add(index.wrapping_mul(size)))
}

fn check(field: &'static str, found: u32, most: u32) -> Result<(), LogError> {
    if found > most {
        return Err(LogError::Damaged { field, found: found.into(), most: most.into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_blocks() {
        // A ring of 64 bytes; positions count on and wrap with the machine word.
        let minus = |bytes: u64| 0u64.wrapping_sub(bytes);
        for (name, begin, next, want) in [
            ("at the start", 0, 16, Some((0, 16))),
            ("in a later round", 64 * 9 + 8, 64 * 9 + 40, Some((8, 32))),
            ("up to the very end (7.2 does not wrap it)", 64 + 48, 128, Some((48, 16))),
            ("wrapped: starts again at the first byte", 64 + 48, 128 + 24, Some((0, 24))),
            ("wrapped where the word wraps", minus(16), 24, Some((0, 24))),
            ("ends where the word wraps", minus(16), 0, Some((48, 16))),
            ("room for the id only", 0, 8, None),
            ("backwards", 40, 16, None),
            ("two rounds apart", 0, 200, None),
        ] {
            assert_eq!(text_block(begin, next, 6), want, "{name}");
        }
    }

    #[test]
    fn each_line_gets_the_time_and_control_characters_are_escaped() {
        let record =
            Record { time_ns: 1_234_567_890, text: "one\n\ttwo \x1b[31m \u{e9}\n".as_bytes().to_vec() };
        let mut out = Vec::new();
        record.write_dmesg(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "[    1.234567] one\n[    1.234567] \ttwo \\x1b[31m \u{e9}\n"
        );
    }
}
