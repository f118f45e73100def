//! QEMU guests.
#![forbid(unsafe_code)]
pub mod archive;
pub mod cache;
pub mod check;
pub mod debian;
pub mod dump;
pub mod files;
pub mod guest;
pub mod lab;
pub mod machine;
pub mod qmp;
pub mod say;
pub mod scenarios;
