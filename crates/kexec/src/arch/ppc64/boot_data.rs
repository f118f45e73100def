//! What the capture kernel is told: a device tree.

use elfcorehdr::{PhysAddr, PhysRange, RangeVec};

use super::vmlinux::Vmlinux;
use crate::error::PlanError;
use crate::plan::{Told, Warning};

/// A device tree that lacks only the initrd's place.
pub(crate) struct BootData {
    capture_memory: RangeVec,
}

impl BootData {
    /// The tree to tell `image` on this machine.
    pub(crate) fn new(told: &Told<'_>, _: &Vmlinux<'_>, _: &mut Vec<Warning>) -> Result<Self, PlanError> {
        told.host.device_tree()?.ok_or(PlanError::NoDeviceTree)?;
        Ok(Self { capture_memory: told.own() })
    }

    /// All memory that the capture kernel is told it may use.
    pub(crate) fn capture_memory(&self) -> &[PhysRange] {
        self.capture_memory.as_slice()
    }

    /// Bytes of it all, with room for the nodes of CPUs that may come.
    pub(crate) fn size(&self) -> u64 {
        64 << 10
    }

    /// The bytes for their place at `base`, with the initrd's address and size.
    pub(crate) fn bytes(&self, _: PhysAddr, _: Option<(PhysAddr, usize)>) -> Vec<u8> {
        Vec::new()
    }
}
