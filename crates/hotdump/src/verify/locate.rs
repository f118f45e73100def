//! Finds the crash header that is in force in reserved memory.

use elfcorehdr::{EHDR_SIZE, Machine, PHDR_SIZE, PhysAddr, PhysRange, size_for};
use host::{Host, HostError, Kcore};

use super::kimage;

/// Physical memory that can be read.
pub(crate) trait Memory {
    fn read(&self, start: PhysAddr, buf: &mut [u8]) -> Result<(), HostError>;
}

impl Memory for Kcore {
    fn read(&self, start: PhysAddr, buf: &mut [u8]) -> Result<(), HostError> {
        self.read_phys(start, buf)
    }
}

/// A header found, with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// From its first byte to the end of its segment, or, where segments are not known, of its table.
    pub(crate) range: PhysRange,
    pub(crate) bytes: Vec<u8>,
}

/// The headers found, and how sure it is that they are in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Headers {
    /// The kernel's own list of segments names this one.
    InForce(Found),
    /// The kernel's list has no segment with a header.
    NoneInForce,
    /// The list could not be read; these lie in the reservation, from this load or an earlier one.
    Candidates(Vec<Found>),
}

/// Where the kernel keeps what it knows of the loaded image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ImagePointer {
    /// Physical address of the variable `kexec_crash_image`.
    at: PhysAddr,
    /// What to add to a physical address to get the virtual one that the kernel uses for its data.
    direct_map_offset: u64,
}

impl ImagePointer {
    /// Learns the place from the live kernel; `None` where it hides its addresses.
    pub(crate) fn of(host: &Host, kcore: &Kcore) -> Result<Option<Self>, HostError> {
        let [symbol] = host.symbols(["kexec_crash_image"])?;
        let place = symbol.and_then(|symbol| kcore.paddr_of(symbol)).zip(kcore.direct_map_offset());
        Ok(place.map(|(at, direct_map_offset)| Self { at, direct_map_offset }))
    }

    /// The pointer's value, and the physical address that it points to: `None` if it is null or no address.
    fn follow(self, memory: &impl Memory) -> Result<Option<PhysAddr>, HostError> {
        let mut pointer = [0; 8];
        memory.read(self.at, &mut pointer)?;
        Ok(u64::from_le_bytes(pointer).checked_sub(self.direct_map_offset).map(PhysAddr))
    }
}

/// Finds the headers in the reservation that images are loaded to. Where the kernel's list cannot be read, the
/// reservation is searched, which takes a while, or, if `search` says no, nothing is found.
pub(crate) fn headers(
    memory: &impl Memory,
    pointer: Option<ImagePointer>,
    reservation: PhysRange,
    search: bool,
) -> Result<Headers, HostError> {
    let segments = match pointer {
        Some(pointer) => segments(memory, pointer, reservation)?,
        None => None,
    };
    match segments {
        Some(segments) => Ok(header_among(memory, &segments)?.map_or(Headers::NoneInForce, Headers::InForce)),
        None if search => scan(memory, reservation).map(Headers::Candidates),
        None => Ok(Headers::Candidates(Vec::new())),
    }
}

fn header_among(memory: &impl Memory, segments: &[PhysRange]) -> Result<Option<Found>, HostError> {
    for segment in segments {
        if let Some(found) = header_at(memory, *segment)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The device trees that segments of the loaded image start with, or only the one at `in_force`. None where the kernel's list
/// cannot be read.
pub(crate) fn trees(
    memory: &impl Memory,
    pointer: ImagePointer,
    reservation: PhysRange,
    in_force: Option<PhysAddr>,
) -> Result<Vec<Vec<u8>>, HostError> {
    let segments = segments(memory, pointer, reservation)?.unwrap_or_default();
    let wanted = |segment: &&PhysRange| in_force.is_none_or(|place| place == segment.start());
    let mut trees = Vec::new();
    for segment in segments.iter().filter(wanted) {
        trees.extend(tree_at(memory, *segment)?);
    }
    Ok(trees)
}

/// The device tree that starts `segment`, if one does.
fn tree_at(memory: &impl Memory, segment: PhysRange) -> Result<Option<Vec<u8>>, HostError> {
    let mut head = [0; 8];
    if segment.len() < head.len() as u64 {
        return Ok(None);
    }
    memory.read(segment.start(), &mut head)?;
    let [magic, size] = [0, 4].map(|at| head.get(at..).and_then(|rest| rest.first_chunk::<4>()).copied());
    if magic.map(u32::from_be_bytes) != Some(devtree::MAGIC) {
        return Ok(None);
    }
    let size = u64::from(size.map_or(0, u32::from_be_bytes)).min(segment.len());
    let mut bytes = vec![0; size as usize];
    memory.read(segment.start(), &mut bytes)?;
    Ok(Some(bytes))
}

/// The loaded image's segments. Read twice until both agree, since a load may happen meanwhile.
pub(crate) fn segments(
    memory: &impl Memory,
    pointer: ImagePointer,
    reservation: PhysRange,
) -> Result<Option<Vec<PhysRange>>, HostError> {
    const TRIES: usize = 3;
    for _ in 0..TRIES {
        let Some(image) = pointer.follow(memory)? else { return Ok(None) };
        let mut kimage = [0; kimage::KIMAGE_BYTES];
        if memory.read(image, &mut kimage).is_err() {
            // No address after all: a kernel that is laid out unlike those known.
            return Ok(None);
        }
        if pointer.follow(memory)? == Some(image) {
            return Ok(kimage::segments(&kimage, reservation));
        }
    }
    Ok(None)
}

/// Longest header read: its table is full.
const LONGEST: usize = size_for(elfcorehdr::MAX_ENTRIES);

/// The header that starts `segment`, if one does.
fn header_at(memory: &impl Memory, segment: PhysRange) -> Result<Option<Found>, HostError> {
    let mut head = [0; EHDR_SIZE + PHDR_SIZE];
    if segment.len() < head.len() as u64 {
        return Ok(None);
    }
    memory.read(segment.start(), &mut head)?;
    if !looks_like_header(&head) {
        return Ok(None);
    }
    let len = usize::try_from(segment.len()).unwrap_or(LONGEST).min(LONGEST);
    let mut bytes = vec![0; len];
    memory.read(segment.start(), &mut bytes)?;
    Ok(Some(Found { range: segment, bytes }))
}

/// Bytes read at once while scanning.
const CHUNK: u64 = 1 << 20;
/// Smallest pages of all machines.
const PAGE: u64 = 4096;

/// Looks at the start of every page of the reservation.
fn scan(memory: &impl Memory, reservation: PhysRange) -> Result<Vec<Found>, HostError> {
    let mut found = Vec::new();
    let mut buf = vec![0; CHUNK as usize];
    let mut rest = reservation;
    while !rest.is_empty() {
        let (chunk, after) =
            rest.split_at(PhysAddr(rest.start().0.saturating_add(CHUNK))).unwrap_or((rest, END));
        let buf = buf.get_mut(..chunk.len() as usize).unwrap_or_default();
        memory.read(chunk.start(), buf)?;
        for (index, page) in buf.chunks(PAGE as usize).enumerate() {
            if looks_like_header(page) {
                let start = PhysAddr(chunk.start().0 + index as u64 * PAGE);
                found.extend(
                    PhysRange::new(start, reservation.end())
                        .map(|tail| table_at(memory, tail))
                        .transpose()?,
                );
            }
        }
        rest = after;
    }
    Ok(found)
}

/// Nothing left to scan.
const END: PhysRange = match PhysRange::new(PhysAddr(0), PhysAddr(0)) {
    Some(range) => range,
    None => unreachable!(),
};

/// Reads as much of `tail` as the header at its start says that its table takes.
fn table_at(memory: &impl Memory, tail: PhysRange) -> Result<Found, HostError> {
    let mut count = [0; 2];
    memory.read(PhysAddr(tail.start().0 + elfcorehdr::layout::ehdr::PHNUM as u64), &mut count)?;
    let len = (size_for(usize::from(u16::from_le_bytes(count))) as u64).min(tail.len());
    let mut bytes = vec![0; len as usize];
    memory.read(tail.start(), &mut bytes)?;
    Ok(Found { range: PhysRange::from_len(tail.start(), len).unwrap_or(tail), bytes })
}

/// Whether `page` starts as a crash header does: an ELF core file for a machine that is known whose first entry is a note.
fn looks_like_header(page: &[u8]) -> bool {
    use elfcorehdr::layout::{ET_CORE, MAGIC, PT_NOTE, ehdr};

    let at = |offset: usize, len: usize| page.get(offset..).and_then(|rest| rest.get(..len));
    at(ehdr::MAGIC, 4) == Some(&MAGIC)
        && at(ehdr::TYPE, 2) == Some(&ET_CORE.to_le_bytes())
        && Machine::ALL.iter().any(|machine| at(ehdr::MACHINE, 2) == Some(&machine.number().to_le_bytes()))
        && at(EHDR_SIZE, 4) == Some(&PT_NOTE.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::sample::header;
    use super::*;

    const BASE: u64 = 0x3000_0000;
    const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;

    /// A reservation of 4 MiB, and below it, a page with the kernel's variable and one with `struct kimage`.
    struct Fake {
        bytes: Vec<u8>,
    }

    const VARIABLE: u64 = BASE - 0x2000;
    const KIMAGE: u64 = BASE - 0x1000;

    impl Fake {
        fn new() -> Self {
            Self { bytes: vec![0; 0x2000 + (4 << 20)] }
        }

        fn put(&mut self, at: u64, bytes: &[u8]) {
            let offset = (at - VARIABLE) as usize;
            self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        }

        fn put_image(&mut self, segments: &[(u64, u64)]) {
            self.put(VARIABLE, &(DIRECT_MAP + KIMAGE).to_le_bytes());
            self.put(KIMAGE + 56, &(segments.len() as u64).to_le_bytes());
            for (index, (start, size)) in segments.iter().enumerate() {
                let at = KIMAGE + 64 + index as u64 * 32;
                self.put(at + 16, &start.to_le_bytes());
                self.put(at + 24, &size.to_le_bytes());
            }
        }

        fn put_header(&mut self, at: u64, size: u64) {
            self.put(at, &header(size));
        }
    }

    impl Memory for Fake {
        fn read(&self, start: PhysAddr, buf: &mut [u8]) -> Result<(), HostError> {
            let offset = (start.0 as usize).checked_sub(VARIABLE as usize);
            let bytes = offset.and_then(|offset| self.bytes.get(offset..)?.get(..buf.len()));
            let outside =
                || HostError::NotInKcore { path: "kcore".into(), start: start.0, len: buf.len() as u64 };
            buf.copy_from_slice(bytes.ok_or_else(outside)?);
            Ok(())
        }
    }

    fn reservation() -> PhysRange {
        PhysRange::from_len(PhysAddr(BASE), 4 << 20).unwrap()
    }

    fn pointer() -> Option<ImagePointer> {
        Some(ImagePointer { at: PhysAddr(VARIABLE), direct_map_offset: DIRECT_MAP })
    }

    #[test]
    fn the_kernel_s_list_tells_the_header_in_force_from_a_stale_one() {
        let mut memory = Fake::new();
        memory.put_header(BASE + 0x1000, 0x1000_0000);
        memory.put_header(BASE + 0x30_0000, 0x2000_0000);
        memory.put_image(&[(BASE + 0x10_0000, 0x1000), (BASE + 0x30_0000, 0x2000)]);
        let Headers::InForce(found) = headers(&memory, pointer(), reservation(), true).unwrap() else {
            panic!()
        };
        assert_eq!(found.range, PhysRange::from_len(PhysAddr(BASE + 0x30_0000), 0x2000).unwrap());
        assert!(found.bytes.starts_with(&header(0x2000_0000)));
        assert_eq!(found.bytes.len(), 0x2000);
    }

    #[test]
    fn trees_are_found_by_their_start() {
        let mut memory = Fake::new();
        let (one, other) = (BASE + 0x10_0000, BASE + 0x20_0000);
        memory.put(one, &[0xd0, 0x0d, 0xfe, 0xed, 0, 0, 0, 12, 1, 2, 3, 4, 5]);
        memory.put(other, &[0xd0, 0x0d, 0xfe, 0xed, 0xff, 0, 0, 0]);
        memory.put_image(&[(one, 0x1000), (BASE + 0x30_0000, 0x1000), (other, 0x2000)]);
        let pointer = pointer().unwrap();
        let found = trees(&memory, pointer, reservation(), None).unwrap();
        assert_eq!(
            found.iter().map(Vec::len).collect::<Vec<_>>(),
            [12, 0x2000],
            "no longer than its segment"
        );
        assert_eq!(found[0][8..], [1, 2, 3, 4]);
        assert_eq!(trees(&memory, pointer, reservation(), Some(PhysAddr(one))).unwrap(), found[..1]);
    }

    #[test]
    fn an_image_without_a_header_is_told() {
        let mut memory = Fake::new();
        memory.put_header(BASE + 0x1000, 0x1000_0000);
        memory.put_image(&[(BASE + 0x10_0000, 0x1000)]);
        assert_eq!(headers(&memory, pointer(), reservation(), true).unwrap(), Headers::NoneInForce);
    }

    #[test]
    fn without_the_list_every_header_in_the_reservation_is_a_candidate() {
        let mut memory = Fake::new();
        memory.put_header(BASE + 0x1000, 0x1000_0000);
        memory.put_header(BASE + 0x30_0000, 0x2000_0000);
        let candidates = vec![(BASE + 0x1000, header(0x1000_0000)), (BASE + 0x30_0000, header(0x2000_0000))];
        let found = |at: u64, bytes: Vec<u8>| Found {
            range: PhysRange::from_len(PhysAddr(at), bytes.len() as u64).unwrap(),
            bytes,
        };
        let expected: Vec<_> = candidates.into_iter().map(|(at, bytes)| found(at, bytes)).collect();
        // Hidden addresses, and a pointer that leads nowhere.
        for pointer in [None, Some(ImagePointer { at: PhysAddr(VARIABLE), direct_map_offset: 0 })] {
            assert_eq!(
                headers(&memory, pointer, reservation(), true).unwrap(),
                Headers::Candidates(expected.clone())
            );
        }
    }

    #[test]
    fn who_does_not_want_to_wait_is_told_of_none() {
        let mut memory = Fake::new();
        memory.put_header(BASE + 0x1000, 0x1000_0000);
        assert_eq!(headers(&memory, None, reservation(), false).unwrap(), Headers::Candidates(vec![]));
    }

    #[test]
    fn a_header_at_the_very_end_is_cut_not_overrun() {
        let mut memory = Fake::new();
        let mut cut = header(0x1000_0000);
        cut[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
        memory.put(reservation().end().0 - PAGE, &cut);
        let Headers::Candidates(found) = headers(&memory, None, reservation(), true).unwrap() else {
            panic!()
        };
        assert_eq!(found.iter().map(|found| found.bytes.len()).collect::<Vec<_>>(), [PAGE as usize]);
    }

    #[test]
    fn memory_that_cannot_be_read_is_an_error_not_an_empty_answer() {
        let beyond = PhysRange::from_len(PhysAddr(BASE), 8 << 20).unwrap();
        assert!(headers(&Fake::new(), None, beyond, true).is_err());
    }
}
