//! What differs by architecture: entry, hand-over, console and reset. Each architecture provides `Entry`, `Serial` and
//! `reset` under these names.

#[cfg(target_arch = "powerpc64")]
mod ppc64;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "powerpc64")]
pub(crate) use ppc64::{Entry, Serial, reset};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{Entry, Serial, reset};
