//! What purgatory and the loader have to agree on, and the part of purgatory that is plain computation.
//!
//! Purgatory runs after the crashed kernel and before the capture kernel. It reads its [`Params`], computes a SHA-256
//! digest of every [`Region`] and compares it with the one that the loader wrote down. Only if all agree does it enter
//! the capture kernel; else it says which region differs and resets the machine.
//!
//! The library holds what both sides share, so the loader, the program and the tests run the same lines. The program
//! itself (`src/main.rs`, feature `image`) adds the entry code and the hardware.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod params;
mod tree;
mod verify;

pub use params::{
    BACKUP_SIZE, IDENTITY_OFFSET, MAX_REGIONS, NAME_SIZE, PARAMS_SIZE, Params, ParamsError, Region, Rtas,
    Slot, TREE_OFFSET, VERSION,
};
pub use tree::{TreeError, set_boot_cpu};
pub use verify::{DIGEST_SIZE, Digest, Mismatch, digest, first_mismatch};
