//! The little that purgatory does with the device tree: see that it is one, say which CPU boots, and put that first.

use core::fmt;

use devtree::BOOT_CPU_OFFSET;

/// First bytes of a flattened device tree.
const MAGIC: [u8; 4] = devtree::MAGIC.to_be_bytes();
const TOTAL_SIZE: usize = 4;
const HEADER_SIZE: usize = 40;

/// Makes `cpu`, a hardware id, the boot CPU of the flattened device tree at the start of `slot`, and the first of its CPUs.
///
/// A kernel counts CPUs in the tree's order. One that is told to use a single CPU (maxcpus=1) has a disk with several queues send its
/// answers to the first CPUs of all, and waits for them for ever where the CPU that boots is none of these: seen on 6.1 with
/// virtio_blk (a capture kernel's block layer takes one queue, the driver sets up more).
///
/// # Errors
/// Says why there is no tree that lies wholly in `slot`, and leaves it as it is.
pub fn set_boot_cpu(slot: &mut [u8], cpu: u32) -> Result<(), TreeError> {
    if slot.get(..MAGIC.len()) != Some(&MAGIC) {
        return Err(TreeError::Magic);
    }
    let size =
        slot.get(TOTAL_SIZE..).and_then(|rest| rest.first_chunk()).map_or(0, |be| u32::from_be_bytes(*be));
    if (size as usize) < HEADER_SIZE || size as usize > slot.len() {
        return Err(TreeError::Size(size));
    }
    if let Some(place) = slot.get_mut(BOOT_CPU_OFFSET..BOOT_CPU_OFFSET + 4) {
        place.copy_from_slice(&cpu.to_be_bytes());
    }
    // A tree that our reader does not take, or without that CPU, is the kernel's business as it is.
    let _ = devtree::put_cpu_first(slot, cpu);
    Ok(())
}

/// Why a device tree cannot be handed to the capture kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// No slot for trees starts at this physical address.
    Place(u64),
    /// The slot does not start with a tree's magic.
    Magic,
    /// The tree says that it has this many bytes: less than its header, or more than the slot.
    Size(u32),
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(tree) => write!(f, "device tree: {tree:#x} is not where a tree may lie"),
            Self::Magic => write!(f, "device tree: no magic at its start"),
            Self::Size(size) => write!(f, "device tree: its size of {size:#x} bytes does not fit its place"),
        }
    }
}

impl core::error::Error for TreeError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(size: u32, room: usize) -> Vec<u8> {
        let mut slot = vec![0x55; room];
        slot[..4].copy_from_slice(&MAGIC);
        slot[4..8].copy_from_slice(&size.to_be_bytes());
        slot
    }

    #[test]
    fn the_boot_cpu_is_the_only_change() {
        let before = tree(48, 64);
        let mut after = before.clone();
        assert_eq!(set_boot_cpu(&mut after, 0x0102_0304), Ok(()));
        assert_eq!(after[28..32], [1, 2, 3, 4]);
        after[28..32].fill(0x55);
        assert_eq!(after, before);
    }

    #[test]
    fn what_is_no_tree_is_left_alone() {
        let mut wrong = tree(48, 64);
        wrong[0] = 0;
        for (slot, error) in [
            (wrong, TreeError::Magic),
            (tree(65, 64), TreeError::Size(65)),
            (tree(39, 64), TreeError::Size(39)),
            (tree(u32::MAX, 64), TreeError::Size(u32::MAX)),
            (tree(48, 8), TreeError::Size(48)),
            (vec![0xd0, 0x0d], TreeError::Magic),
            (MAGIC.to_vec(), TreeError::Size(0)),
        ] {
            let mut after = slot.clone();
            assert_eq!(set_boot_cpu(&mut after, 1), Err(error));
            assert_eq!(after, slot);
        }
    }
}
