//! Comparisons in guest time that counts instructions.

mod calls;
mod events;
mod load;
mod spread;

pub(crate) use events::events;
pub(crate) use load::load;
