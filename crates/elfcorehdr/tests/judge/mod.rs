//! A second, independent reader of crash headers: what capture kernels do with them (fs/proc/vmcore.c, read in Linux
//! 6.1, 6.12 and 7.2). It only judges; nothing in the crate may use it.

use elfcorehdr::{Note, PhysAddr};

/// Physical addresses that x86 page tables can hold.
const LIMIT: u64 = 1 << 52;

/// Note areas merged, and first and past-the-last physical address of each piece of memory, in whole pages.
pub(crate) type Vmcore = (Vec<Note>, Vec<(u64, u64)>);

/// What a capture kernel makes of a header (fs/proc/vmcore.c): the note areas that it merges and the memory that
/// /proc/vmcore will hold, page by page. `Err` where it gives up, or would corrupt or crash itself.
pub(crate) fn capture_kernel(bytes: &[u8]) -> Result<Vmcore, &'static str> {
    let get = |at: usize, len: usize| -> Result<u64, &'static str> {
        let mut value = [0; 8];
        value[..len].copy_from_slice(bytes.get(at..at + len).ok_or("reads past the header")?);
        Ok(u64::from_le_bytes(value))
    };
    let sane = get(0, 4)? == u64::from(u32::from_le_bytes(*b"\x7fELF"))
        && [get(4, 1)?, get(6, 1)?, get(16, 2)?, get(20, 4)?] == [2, 1, 4, 1]
        && [62, 21].contains(&get(18, 2)?)
        && [get(52, 2)?, get(54, 2)?] == [64, 56]
        && get(56, 2)? != 0;
    if !sane {
        return Err("header is not sane");
    }
    let (mut notes, mut memory) = (Vec::new(), Vec::new());
    for index in 0..get(56, 2)? as usize {
        let at = 64 + 56 * index;
        let (kind, offset, memsz) = (get(at, 4)?, get(at + 8, 8)?, get(at + 40, 8)?);
        match kind {
            4 if notes.len() != index => return Err("merging the notes deletes other entries"),
            4 if memsz < 12 => return Err("reads a note's header past its buffer"),
            4 if memsz > 4 << 20 => return Err("kmalloc fails"),
            4 => notes.push(Note { paddr: PhysAddr(offset), size: memsz }),
            1 => {
                let start = offset / 4096 * 4096;
                let end = offset.checked_add(memsz).and_then(|end| end.checked_next_multiple_of(4096));
                let end = end.filter(|end| *end <= LIMIT).ok_or("size wraps, or memory cannot exist")?;
                memory.push((start, end));
            }
            _ => {}
        }
    }
    if notes.is_empty() { Err("merging no notes corrupts the table") } else { Ok((notes, memory)) }
}
