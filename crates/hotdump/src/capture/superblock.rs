//! Filesystems known by their superblock: type, UUID, label. One table says where things lie.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes from a device's start that hold every superblock in the table: btrfs' lies at 64 KiB.
const HEAD: usize = 68 << 10;

/// A filesystem as its superblock describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filesystem {
    /// The name that mount(2) takes.
    pub(crate) kind: &'static str,
    /// Lower case, as blkid prints it; empty where there is none.
    pub(crate) uuid: String,
    /// Empty where there is none.
    pub(crate) label: String,
}

/// How a UUID is kept.
#[derive(Clone, Copy)]
enum Id {
    /// 16 bytes.
    Uuid,
    /// FAT: a 32-bit serial number.
    Serial,
}

/// Where a filesystem's superblock has what. Offsets in bytes from the device's start.
struct Layout {
    kind: &'static str,
    magic: &'static [(usize, &'static [u8])],
    id: (usize, Id),
    /// Offset and length.
    label: (usize, usize),
}

/// From the filesystems' documentation: ext4 Documentation/filesystems/ext4/super.rst, XFS' xfs_dsb, btrfs' superblock at
/// 64 KiB, and the BIOS parameter blocks of FAT16 and FAT32. ext2 and ext3 are mounted by the ext4 driver.
const LAYOUTS: [Layout; 5] = [
    Layout { kind: "ext4", magic: &[(0x438, b"\x53\xef")], id: (0x468, Id::Uuid), label: (0x478, 16) },
    Layout { kind: "xfs", magic: &[(0, b"XFSB")], id: (32, Id::Uuid), label: (108, 12) },
    Layout {
        kind: "btrfs",
        magic: &[(0x1_0040, b"_BHRfS_M")],
        id: (0x1_0020, Id::Uuid),
        label: (0x1_012b, 256),
    },
    Layout {
        kind: "vfat",
        magic: &[(0x52, b"FAT32   "), (0x1fe, b"\x55\xaa")],
        id: (0x43, Id::Serial),
        label: (0x47, 11),
    },
    Layout {
        kind: "vfat",
        magic: &[(0x36, b"FAT16   "), (0x1fe, b"\x55\xaa")],
        id: (0x27, Id::Serial),
        label: (0x2b, 11),
    },
];

/// The filesystem on a device; none where its superblock is of no known kind.
///
/// # Errors
/// The system's error where the device cannot be read.
pub(crate) fn read(device: &Path) -> io::Result<Option<Filesystem>> {
    let file = File::open(device)?;
    let mut head = vec![0; HEAD];
    let mut filled = 0;
    while let Some(rest) = head.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    head.truncate(filled);
    Ok(identify(&head))
}

/// The filesystem that a device's first bytes announce.
fn identify(head: &[u8]) -> Option<Filesystem> {
    let at = |offset: usize, len: usize| head.get(offset..offset.checked_add(len)?);
    let layout = LAYOUTS
        .iter()
        .find(|layout| layout.magic.iter().all(|(offset, magic)| at(*offset, magic.len()) == Some(magic)))?;
    let uuid = match layout.id {
        (offset, Id::Uuid) => uuid(at(offset, 16)?),
        (offset, Id::Serial) => serial(at(offset, 4)?),
    };
    let label = at(layout.label.0, layout.label.1)?;
    let label = label.split(|byte| *byte == 0).next().unwrap_or_default();
    let label = String::from_utf8_lossy(label).trim_end().to_owned();
    // FAT says so where there is none.
    let label = if layout.kind == "vfat" && label == "NO NAME" { String::new() } else { label };
    Some(Filesystem { kind: layout.kind, uuid, label })
}

/// 16 bytes in the form 8-4-4-4-12; empty where they are all zero.
fn uuid(bytes: &[u8]) -> String {
    let mut text = String::new();
    if bytes.iter().all(|byte| *byte == 0) {
        return text;
    }
    for (number, byte) in bytes.iter().enumerate() {
        if matches!(number, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// FAT's serial number as it is shown: 1234-abcd.
fn serial(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect();
    match digits.split_at_checked(4) {
        Some((high, low)) => format!("{high}-{low}"),
        None => digits,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: [u8; 16] = [0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

    fn disk(pieces: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (offset, bytes) in pieces {
            head[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    #[test]
    fn superblocks_are_told_apart() {
        let uuid = "deadbeef-0102-0304-0506-0708090a0b0c";
        let fat = (0x1fe, &b"\x55\xaa"[..]);
        for (pieces, kind, id, label) in [
            (vec![(0x438, &b"\x53\xef"[..]), (0x468, &ID[..]), (0x478, b"root")], "ext4", uuid, "root"),
            (vec![(0, &b"XFSB"[..]), (32, &ID[..]), (108, b"twelve bytes")], "xfs", uuid, "twelve bytes"),
            (
                vec![(0x10040, &b"_BHRfS_M"[..]), (0x10020, &ID[..]), (0x1012b, b"pool")],
                "btrfs",
                uuid,
                "pool",
            ),
            (
                vec![fat, (0x52, b"FAT32   "), (0x43, b"\x78\x56\x34\x12"), (0x47, b"EFI        ")],
                "vfat",
                "1234-5678",
                "EFI",
            ),
            (
                vec![fat, (0x36, b"FAT16   "), (0x27, b"\xcd\xab\x34\x12"), (0x2b, b"NO NAME    ")],
                "vfat",
                "1234-abcd",
                "",
            ),
            (vec![(0x438, &b"\x53\xef"[..])], "ext4", "", ""),
        ] {
            let want = Filesystem { kind, uuid: id.into(), label: label.into() };
            assert_eq!(identify(&disk(&pieces)), Some(want));
        }
        assert_eq!(identify(&disk(&[])), None);
        assert_eq!(identify(&disk(&[(0x52, b"FAT32   ")])), None, "the boot signature is missing");
    }

    #[test]
    fn a_small_device_is_read_as_far_as_it_goes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &disk(&[(0x438, b"\x53\xef"), (0x468, &ID)])[..2048]).unwrap();
        assert_eq!(read(file.path()).unwrap().unwrap().kind, "ext4");
        std::fs::write(file.path(), [0; 100]).unwrap();
        assert_eq!(read(file.path()).unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(pieces in proptest::collection::vec((0usize..0x10200, any::<[u8; 8]>()), 0..40), which in 0usize..LAYOUTS.len(), len in 0usize..HEAD) {
            let mut head = disk(&pieces.iter().map(|(offset, bytes)| (*offset, &bytes[..])).collect::<Vec<_>>());
            for (offset, magic) in LAYOUTS[which].magic {
                head[*offset..offset + magic.len()].copy_from_slice(magic);
            }
            prop_assert!(identify(&head).is_some());
            head.truncate(len);
            identify(&head);
        }
    }
}
