//! What differs by architecture. Each folder gives, under these names:
//!
//! | name | what |
//! | --- | --- |
//! | `purgatory_start` | where the crashed kernel enters: takes the stack, switches the vector unit on, calls [`crate::run`], enters the capture kernel |
//! | `Entry` | how to enter the capture kernel |
//! | `Serial` | the console |
//! | `copy_up`, `copy_down`, `fill` | what the C memory routines are made of |
//! | `reset` | resets the machine |

#[cfg(target_arch = "powerpc64")]
mod ppc64;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "powerpc64")]
pub(crate) use ppc64::{Entry, Serial, copy_down, copy_up, fill, reset};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{Entry, Serial, copy_down, copy_up, fill, reset};
