//! Synthetic crashed machines: an ELF core built from pieces, page tables, a printk ring buffer written by the kernel's rules.
#![allow(dead_code, reason = "each test program uses its own part")]

pub(crate) mod btf;

use std::io;

use vmcore::{CoreError, ReadAt, VirtAddr, VirtualMemory};

pub(crate) const PAGE: usize = 4096;

/// A source in memory in which some pages cannot be read.
pub(crate) struct Holed {
    pub(crate) bytes: Vec<u8>,
    pub(crate) bad: Vec<usize>,
}

impl ReadAt for Holed {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let pages = offset as usize / PAGE..(offset as usize + buf.len()).div_ceil(PAGE);
        if self.bad.iter().any(|bad| pages.contains(bad)) {
            return Err(io::Error::from_raw_os_error(14));
        }
        self.bytes.read_at(offset, buf)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
}

/// An ELF core in the making.
#[derive(Clone)]
pub(crate) struct ElfCore {
    /// `e_machine`: 62, x86_64, or 21, ppc64.
    pub(crate) machine: u16,
    pub(crate) phoff: u64,
    pub(crate) notes: Vec<u8>,
    /// Physical address, data.
    pub(crate) loads: Vec<(u64, Vec<u8>)>,
}

impl ElfCore {
    pub(crate) fn new() -> Self {
        Self { machine: 62, phoff: 64, notes: Vec::new(), loads: Vec::new() }
    }

    pub(crate) fn note(mut self, name: &str, kind: u32, desc: &[u8]) -> Self {
        for number in [name.len() as u32 + 1, desc.len() as u32, kind] {
            self.notes.extend(number.to_le_bytes());
        }
        self.notes.extend(name.as_bytes());
        self.notes.push(0);
        self.notes.resize(self.notes.len().next_multiple_of(4), 0);
        self.notes.extend(desc);
        self.notes.resize(self.notes.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn load(mut self, paddr: u64, data: Vec<u8>) -> Self {
        self.loads.push((paddr, data));
        self
    }

    /// Where the data of load number `which` starts.
    pub(crate) fn offset_of(&self, which: usize) -> usize {
        let headers = (self.phoff as usize + 56 * (1 + self.loads.len())).next_multiple_of(PAGE);
        let notes = self.notes.len().next_multiple_of(PAGE);
        headers + notes + self.loads[..which].iter().map(|(_, data)| data.len()).sum::<usize>()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut file = vec![0; self.phoff as usize];
        file[..16].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        for (at, number) in
            [(16, 4), (18, self.machine), (52, 64), (54, 56), (56, 1 + self.loads.len() as u16)]
        {
            file[at..at + 2].copy_from_slice(&u16::to_le_bytes(number));
        }
        file[20] = 1;
        file[32..40].copy_from_slice(&self.phoff.to_le_bytes());
        let headers = (self.phoff as usize + 56 * (1 + self.loads.len())).next_multiple_of(PAGE);
        let mut header = |kind: u64, offset: usize, paddr: u64, size: usize| {
            for word in [kind, offset as u64, 0, paddr, size as u64, size as u64, 0] {
                file.extend(word.to_le_bytes());
            }
        };
        header(4, headers, 0, self.notes.len());
        for (which, (paddr, data)) in self.loads.iter().enumerate() {
            header(1, self.offset_of(which), *paddr, data.len());
        }
        file.resize(headers, 0);
        file.extend(&self.notes);
        file.resize(file.len().next_multiple_of(PAGE), 0);
        for (_, data) in &self.loads {
            file.extend(data);
        }
        file
    }
}

/// Memory at one stretch of virtual addresses.
#[derive(Debug)]
pub(crate) struct Flat {
    pub(crate) base: u64,
    pub(crate) bytes: Vec<u8>,
}

impl VirtualMemory for Flat {
    fn read_virt(&self, address: VirtAddr, buf: &mut [u8]) -> Result<(), CoreError> {
        let missing = CoreError::NotMapped { address, level: 1, entry: 0 };
        let start = address.0.checked_sub(self.base).and_then(|start| usize::try_from(start).ok());
        let bytes = start.and_then(|start| self.bytes.get(start..start.checked_add(buf.len())?));
        buf.copy_from_slice(bytes.ok_or(missing)?);
        Ok(())
    }
}

/// A printk ring buffer, written by the rules of kernel/printk/printk_ringbuffer.c as they are since 7.2 (`tight`: a block that
/// ends at the ring's end does not wrap) or were before.
pub(crate) struct Ring {
    pub(crate) count_bits: u32,
    pub(crate) text_bits: u32,
    pub(crate) tight: bool,
    head_id: u64,
    tail_id: u64,
    head_lpos: u64,
    tail_lpos: u64,
    /// State word, begin, next; time, text length.
    descs: Vec<(u64, u64, u64, u64, u16)>,
    text: Vec<u8>,
}

pub(crate) const BASE: u64 = 0xffff_8880_0000_0000;
const ID_MASK: u64 = u64::MAX >> 2;
const FINALIZED: u64 = 2 << 62;
const REUSABLE: u64 = 3 << 62;
const DESC: u64 = 24;
const INFO: u64 = 88;

impl Ring {
    pub(crate) fn new(count_bits: u32, text_bits: u32, tight: bool) -> Self {
        let count = 1u64 << count_bits;
        let first = 0u64.wrapping_sub(count + 1) & ID_MASK;
        let lpos = 0u64.wrapping_sub(1 << text_bits);
        let mut descs = vec![(0, 0, 0, 0, 0); count as usize];
        descs[count as usize - 1] = (REUSABLE | first, 1, 1, 0, 0);
        Self {
            count_bits,
            text_bits,
            tight,
            head_id: first,
            tail_id: first,
            head_lpos: lpos,
            tail_lpos: lpos,
            descs,
            text: vec![0; 1 << text_bits],
        }
    }

    fn index(&self, id: u64) -> usize {
        (id & ((1 << self.count_bits) - 1)) as usize
    }

    fn wraps(&self, begin: u64, next: u64) -> bool {
        begin >> self.text_bits != next.wrapping_sub(u64::from(self.tight)) >> self.text_bits
    }

    /// Gives up the oldest messages until the text before `lpos` is free.
    fn free_text(&mut self, lpos: u64) {
        while lpos.wrapping_sub(self.tail_lpos).wrapping_sub(1) < 1 << self.text_bits {
            let at = (self.tail_lpos & ((1 << self.text_bits) - 1)) as usize;
            let id = u64::from_le_bytes(self.text[at..at + 8].try_into().unwrap());
            let index = self.index(id);
            let desc = &mut self.descs[index];
            assert_eq!(desc.0 & ID_MASK, id, "the oldest block belongs to a message");
            desc.0 = REUSABLE | id;
            self.tail_lpos = desc.2;
        }
    }

    pub(crate) fn push(&mut self, time: u64, text: &[u8]) {
        let count = 1u64 << self.count_bits;
        let id = self.head_id.wrapping_add(1) & ID_MASK;
        let previous = id.wrapping_sub(count) & ID_MASK;
        if previous == self.tail_id {
            let (state, begin, next, ..) = self.descs[self.index(previous)];
            if state & !ID_MASK == FINALIZED && begin & 1 == 0 {
                self.free_text(next);
            }
            self.tail_id = self.tail_id.wrapping_add(1) & ID_MASK;
        }
        self.head_id = id;
        let (begin, next) = if text.is_empty() { (3, 3) } else { self.place(id, text) };
        let index = self.index(id);
        self.descs[index] = (FINALIZED | id, begin, next, time, text.len() as u16);
    }

    fn place(&mut self, id: u64, text: &[u8]) -> (u64, u64) {
        let size = (text.len() as u64 + 8).next_multiple_of(8);
        let mask = (1u64 << self.text_bits) - 1;
        let begin = self.head_lpos;
        let mut next = begin.wrapping_add(size);
        let mut at = begin & mask;
        if self.wraps(begin, next) {
            next = (next & !mask).wrapping_add(size);
            if self.tight && begin.wrapping_add(size) & mask == 0 {
                unreachable!("a tight block does not wrap");
            }
            at = 0;
        }
        self.free_text(next.wrapping_sub(1 << self.text_bits));
        self.head_lpos = next;
        let at = at as usize;
        self.text[at..at + 8].copy_from_slice(&id.to_le_bytes());
        self.text[at + 8..at + 8 + text.len()].copy_from_slice(text);
        // The kernel writes the id also where a wrapped block would have started, for whoever moves the tail.
        let first = (begin & mask) as usize;
        self.text[first..first + 8].copy_from_slice(&id.to_le_bytes());
        (begin, next)
    }

    /// The state bits of the newest message: 0 reserved, 1 committed, 2 final.
    pub(crate) fn set_newest_state(&mut self, state: u64) {
        let index = self.index(self.head_id);
        self.descs[index].0 = state << 62 | self.head_id;
    }

    /// The ring in memory, and the vmcoreinfo lines that lead to it.
    pub(crate) fn lay_out(&self) -> (Flat, String) {
        let count = self.descs.len() as u64;
        let (ring, descs) = (16, 256);
        let infos = descs + count * DESC;
        let text = infos + count * INFO;
        let mut bytes = vec![0; text as usize];
        let mut put =
            |at: u64, value: &[u8]| bytes[at as usize..at as usize + value.len()].copy_from_slice(value);
        put(0, &(BASE + ring).to_le_bytes());
        // struct prb_desc_ring at 0 of the ring, struct prb_data_ring at 48.
        put(ring, &self.count_bits.to_le_bytes());
        for (at, value) in [(8, BASE + descs), (16, BASE + infos), (24, self.head_id), (32, self.tail_id)] {
            put(ring + at, &u64::to_le_bytes(value));
        }
        put(ring + 48, &self.text_bits.to_le_bytes());
        put(ring + 56, &(BASE + text).to_le_bytes());
        for (index, (state, begin, next, time, len)) in self.descs.iter().enumerate() {
            for (at, value) in [(0, state), (8, begin), (16, next)] {
                put(descs + index as u64 * DESC + at, &value.to_le_bytes());
            }
            put(infos + index as u64 * INFO + 8, &time.to_le_bytes());
            put(infos + index as u64 * INFO + 16, &len.to_le_bytes());
        }
        bytes.extend(&self.text);
        let info = format!(
            "SYMBOL(prb)={BASE:x}\n\
             OFFSET(printk_ringbuffer.desc_ring)=0\nOFFSET(printk_ringbuffer.text_data_ring)=48\n\
             OFFSET(prb_desc_ring.count_bits)=0\nOFFSET(prb_desc_ring.descs)=8\nOFFSET(prb_desc_ring.infos)=16\n\
             OFFSET(prb_desc_ring.head_id)=24\nOFFSET(prb_desc_ring.tail_id)=32\n\
             SIZE(prb_desc)={DESC}\nOFFSET(prb_desc.state_var)=0\nOFFSET(prb_desc.text_blk_lpos)=8\n\
             OFFSET(prb_data_blk_lpos.begin)=0\nOFFSET(prb_data_blk_lpos.next)=8\n\
             SIZE(printk_info)={INFO}\nOFFSET(printk_info.ts_nsec)=8\nOFFSET(printk_info.text_len)=16\n\
             OFFSET(prb_data_ring.size_bits)=0\nOFFSET(prb_data_ring.data)=8\nOFFSET(atomic_long_t.counter)=0\n"
        );
        (Flat { base: BASE, bytes }, info)
    }
}
