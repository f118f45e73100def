//! The partition's console: text goes to the hypervisor, 16 bytes a call. Silent on bare metal.

use core::fmt;

use purgatory::Params;

use super::io;

/// The hypervisor's name for the partition's first terminal, whatever its unit address.
const FIRST: u64 = 0;

/// Bytes that one call takes.
const CHUNK: usize = 16;

/// Calls per chunk while the hypervisor is busy; each takes some microseconds.
const PATIENCE: u32 = 100_000;

/// The console; silent where there is no hypervisor.
pub(crate) struct Serial {
    silent: bool,
}

impl Serial {
    /// The console of a machine of which nothing is known yet.
    pub(crate) const COMMON: Self = Self { silent: false };

    /// The first terminal: the loader need not look for it.
    pub(crate) fn of(_: &Params) -> Self {
        Self::COMMON
    }

    /// The hypervisor has taken over what was written: nothing to wait for.
    pub(crate) fn drain(&mut self) {}
}

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for chunk in text.as_bytes().chunks(CHUNK) {
            let taken = !self.silent
                && io::in_a_partition()
                && (0..PATIENCE).any(|_| io::put_term_char(FIRST, chunk) == io::H_SUCCESS);
            if !taken {
                self.silent = true;
                return Err(fmt::Error);
            }
        }
        Ok(())
    }
}
