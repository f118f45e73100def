//! Memory blocks: the pieces that memory comes and goes in, as sysfs shows them.

use crate::error::Fault;
use crate::files::hex;
use elfcorehdr::{PhysAddr, PhysRange};

/// What a memory block is in (`state`, see Documentation/admin-guide/mm/memory-hotplug.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockState {
    /// In use.
    Online,
    /// Its contents are being moved elsewhere.
    GoingOffline,
    /// There, and not in use.
    Offline,
}

/// Parses a block's `state`.
pub(crate) fn parse_state(text: &str) -> Result<BlockState, Fault> {
    match text {
        "online" => Ok(BlockState::Online),
        "going-offline" => Ok(BlockState::GoingOffline),
        "offline" => Ok(BlockState::Offline),
        _ => Err(Fault::new(text, "online, going-offline or offline")),
    }
}

/// Parses `block_size_bytes`: hex without 0x.
pub(crate) fn parse_block_size(text: &str) -> Result<u64, Fault> {
    let size = hex(text)?;
    if size.is_power_of_two() { Ok(size) } else { Err(Fault::new(text, "a power of two in hex")) }
}

/// Where the block of this number lies.
pub(crate) fn block(index: u64, size: u64) -> Result<PhysRange, Fault> {
    let range = index.checked_mul(size).and_then(|start| PhysRange::from_len(PhysAddr(start), size));
    range.ok_or_else(|| Fault::new(&format!("{size:x}"), "blocks that end below 2^64"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn states_and_sizes() {
        assert_eq!(parse_state("online"), Ok(BlockState::Online));
        assert_eq!(parse_state("offline"), Ok(BlockState::Offline));
        assert_eq!(parse_state("going-offline"), Ok(BlockState::GoingOffline));
        for wrong in ["", "on", "ERROR-UNKNOWN-8", "online offline"] {
            assert_eq!(parse_state(wrong).unwrap_err().found, wrong);
        }
        assert_eq!(parse_block_size("8000000"), Ok(128 << 20));
        for wrong in ["", "0", "8000001", "128M"] {
            assert_eq!(parse_block_size(wrong).unwrap_err().found, wrong);
        }
    }

    proptest! {
        #[test]
        fn blocks_follow_each_other_or_are_refused(index in any::<u64>(), shift in 0_u32..64) {
            let size = 1_u64 << shift;
            match block(index, size) {
                Ok(range) => {
                    prop_assert_eq!(u128::from(range.start().0), u128::from(index) * u128::from(size));
                    prop_assert_eq!(range.len(), size);
                }
                Err(_) => prop_assert!((u128::from(index) + 1) * u128::from(size) > u128::from(u64::MAX)),
            }
        }
    }
}
