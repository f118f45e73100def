//! The capture kernel's memory map.

use elfcorehdr::{PhysAddr, PhysRange, RangeVec};
use host::{FirmwareKind, FirmwareRange};

use super::super::MIB;

/// Bytes of an entry: address (8), size (8), type (4).
pub(super) const ENTRY_SIZE: usize = 20;

const RAM: u32 = 1;

/// Kinds of firmware memory that the capture kernel is told of, with their e820 type. The in-kernel loader passes the same
/// (crash_setup_memmap_entries, arch/x86/kernel/crash.c). The rest is left out: unusable and persistent memory is in no one's
/// way, and memory for special purposes ("Soft Reserved") the capture kernel might put to use.
const PASSED: [(FirmwareKind, u32); 3] =
    [(FirmwareKind::Reserved, 2), (FirmwareKind::AcpiTables, 3), (FirmwareKind::AcpiNvs, 4)];

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    range: PhysRange,
    kind: u32,
}

impl Entry {
    /// As it lies in boot_params and in SETUP_E820_EXT.
    pub(super) fn bytes(self) -> [u8; ENTRY_SIZE] {
        let mut bytes = [0; ENTRY_SIZE];
        bytes[..8].copy_from_slice(&self.range.start().0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.range.len().to_le_bytes());
        bytes[16..].copy_from_slice(&self.kind.to_le_bytes());
        bytes
    }
}

/// The memory that the capture kernel may use: low memory, for the code that starts CPUs and for old firmware, and `own`.
/// The crashed kernel keeps nothing in low memory (it reserves the first MiB since 5.13, and crash headers leave it out).
pub(super) fn capture_memory(firmware: &[FirmwareRange], own: &RangeVec) -> RangeVec {
    let low = PhysRange::from_len(PhysAddr(0), MIB).unwrap_or_default();
    let ram = firmware.iter().filter(|entry| entry.kind == FirmwareKind::SystemRam);
    ram.filter_map(|entry| entry.range.intersect(low)).chain(own.iter()).collect()
}

/// The map: `memory` as RAM, and the firmware's own kinds as they are, lowest first.
pub(super) fn entries(firmware: &[FirmwareRange], memory: &RangeVec) -> Vec<Entry> {
    let ram = memory.iter().map(|range| Entry { range, kind: RAM });
    let passed = firmware.iter().filter_map(|entry| {
        let (_, kind) = PASSED.iter().find(|(kind, _)| *kind == entry.kind)?;
        Some(Entry { range: entry.range, kind: *kind })
    });
    let mut entries: Vec<Entry> = ram.chain(passed).collect();
    entries.sort_unstable();
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> PhysRange {
        PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap()
    }

    #[test]
    fn the_map_is_low_memory_the_reservation_and_what_firmware_keeps() {
        let firmware: Vec<FirmwareRange> = [
            (0, 0x9_fc00, FirmwareKind::SystemRam),
            (0x9_fc00, 0xa_0000, FirmwareKind::Reserved),
            (0x10_0000, 0x7ffd_b000, FirmwareKind::SystemRam),
            (0x7ffd_b000, 0x7ffe_0000, FirmwareKind::AcpiTables),
            (0x7ffe_0000, 0x8000_0000, FirmwareKind::AcpiNvs),
            (0x9000_0000, 0x9100_0000, FirmwareKind::SoftReserved),
            (0x1_0000_0000, 0x2_0000_0000, FirmwareKind::PersistentMemory),
            (0x2_0000_0000, 0x3_0000_0000, FirmwareKind::Other("Dream".to_owned())),
        ]
        .map(|(start, end, kind)| FirmwareRange { range: range(start, end), kind })
        .into();
        let own: RangeVec = [range(0x3000_0000, 0x3ff0_0000)].into_iter().collect();
        let memory = capture_memory(&firmware, &own);
        let map: Vec<(u64, u64, u32)> = entries(&firmware, &memory)
            .iter()
            .map(|e| (e.range.start().0, e.range.end().0, e.kind))
            .collect();
        assert_eq!(
            map,
            [
                (0, 0x9_fc00, 1),
                (0x9_fc00, 0xa_0000, 2),
                (0x3000_0000, 0x3ff0_0000, 1),
                (0x7ffd_b000, 0x7ffe_0000, 3),
                (0x7ffe_0000, 0x8000_0000, 4),
            ]
        );
    }

    #[test]
    fn an_entry_lies_in_memory_as_the_protocol_says() {
        let entry = Entry { range: range(0x1000, 0x3000), kind: 2 };
        assert_eq!(entry.bytes(), *b"\0\x10\0\0\0\0\0\0\0\x20\0\0\0\0\0\0\x02\0\0\0");
    }
}
