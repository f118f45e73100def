//! QEMU guests with real distribution kernels: boot, plug in memory and CPUs, crash, check the dump page by page.
//!
//! A [scenario](scenarios) describes a guest, boots it, asks things of it, crashes it and looks at what the capture
//! saved:
//!
//! ```no_run
//! # use lab::{cache::KernelLine, lab::Lab, machine::MIB, product::By};
//! # fn story(lab: &Lab) -> anyhow::Result<()> {
//! let mut guest = lab.guest("story", KernelLine::V6_12)?.boot()?;
//! guest.make_initramfs()?;
//! guest.load(By::Load, &["--hotplug"])?;
//! guest.add_memory(256 * MIB)?;
//! let new = guest.add_cpu()?;
//! guest.verify_says_complete()?;
//! guest.shell("cat /proc/iomem")?.says("Crash kernel")?.ok()?;
//! guest.fill()?;
//! guest.crash(new)?.complete()?;
//! # Ok(())
//! # }
//! ```
//!
//! A new one is a function with a line in the table of a module of [`scenarios`]; `cargo xtask lab NAME` runs it. A guest's files are
//! in `target/lab/NAME`: `console.log` is what it printed. Every wait has an end; `HOTDUMP_LAB_PATIENCE=3` makes all of
//! them three times as long. `HOTDUMP_LAB_KEEP=1` keeps the disks.
//!
//! How it works: the guest's first program is the [agent](lab_agent), which answers typed requests at the second serial
//! port. Before the crash it fills memory with a [pattern](lab_agent::pattern), finds out in which frames the pages lie,
//! and writes that [manifest](lab_agent::Manifest) to a disk. After the crash the [checker](check) computes what each
//! page must be and looks for it in the dump.

#![forbid(unsafe_code)]

pub mod arch;
pub mod archive;
pub mod cache;
pub mod check;
pub mod debian;
pub mod debug_kernel;
pub mod debuginfo;
pub mod dump;
pub mod files;
pub mod guest;
pub mod judge;
pub mod kdump;
pub mod lab;
pub mod machine;
pub mod product;
pub mod qmp;
pub mod runner;
pub mod say;
pub mod scenarios;
pub mod server;
pub mod userland;
