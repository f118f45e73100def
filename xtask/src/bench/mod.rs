//! Comparisons: in guest time that counts instructions, and of dumps on this machine.

mod calls;
mod dump;
mod events;
mod levels;
mod load;
mod spread;

pub(crate) use dump::dump;
pub(crate) use events::events;
pub(crate) use levels::levels;
pub(crate) use load::load;
