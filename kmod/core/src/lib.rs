//! The deciding part of hotdump.ko: which image is followed, and what becomes of its header at each event.
//!
//! An [`Image`] is a crash header in reserved memory with a shadow of what was last written there; it takes the
//! machine's events. [`arming`] is how a loader's request becomes one, and how the header is brought up to the machine.
//! [`State`] is what outlives images: counters, and the reason why none is followed.
//!
//! Nothing here knows of kernel versions or calls the kernel, but for `ffi`, which binds all this to the C shim and
//! exists only where this is compiled for kernels (`--cfg=hotdump_kernel`). Nothing allocates, and nothing may panic: the object that the
//! module is linked from would not link.
#![cfg_attr(not(test), no_std)]

pub mod arch;
pub mod arming;
#[cfg(hotdump_kernel)]
mod ffi;
mod image;
mod nodes;
mod pieces;
mod state;
mod tree;

pub use image::{Comer, Cpu, Image, Live, Memory, Parts};
pub use nodes::{Nodes, Part};
pub use pieces::Excluded;
pub use state::{Moment, State};
pub use tree::Trees;
