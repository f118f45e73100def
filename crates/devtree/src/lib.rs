//! The flattened device tree (Devicetree Specification 0.4, chapter 5): what a PowerPC kernel is told of its machine.
//!
//! [`Tree::parse`] reads one, strictly; [`Writer`] writes one into a given slice; [`replace_cpus`] copies one with
//! other nodes for the CPUs, which is what a crash image needs when CPUs are added; [`put_cpu_first`] puts one of them
//! before the others.
//!
//! Nothing here allocates, recurses or panics, whatever the bytes: the same lines run in the loader, in the checker
//! and in the kernel module. Names are bytes without the NUL that ends them in the tree, because a kernel module has
//! no use for a check of UTF-8. All numbers in a tree are big-endian.
#![no_std]
#![forbid(unsafe_code)]

mod cpus;
mod layout;
mod read;
mod write;

pub use cpus::{has_thread, is_cpu, put_cpu_first, replace_cpus};
pub use layout::{BOOT_CPU_OFFSET, MAGIC, MAX_DEPTH};
pub use read::{Children, Fault, Node, Outline, Properties, Property, Reserved, Tree, TreeError};
pub use write::{WriteError, Writer};
