//! The rounds of the other architecture, on PowerPC: stories that stand elsewhere, with its kernels.

use anyhow::Result;

use super::module::{Panic, follow};
use super::rounds::{Round, control_on};
use super::scenarios;
use crate::cache::KernelLine::{self, Ppc64V6_1, Ppc64V6_12, Ppc64V6_12Pages64K};
use crate::lab::Lab;
use crate::product::By;

scenarios! {
    on Ppc64;
    ; long:
    ppc64le_control: "PowerPC, kexec-tools and a busybox capture on 6.12: the lab itself can be trusted",
    ppc64le_load_6_12: "PowerPC, 6.12's own handler: two DIMMs and a core added, a DIMM removed, the new core panics",
    ppc64le_load_6_12_cpu0: "the same, CPU 0 panics",
    ppc64le_load_6_12_64k: "the same as ppc64le_load_6_12 with pages of 64 KiB",
    ppc64le_module_6_1: "PowerPC, the module on 6.1: two DIMMs and a core added, a DIMM removed, the new core panics",
    ppc64le_module_6_1_cpu0: "the same as ppc64le_module_6_1, CPU 0 panics",
    ppc64le_module_6_12: "the same on 6.12, whose own handler is left out; the new core panics",
    ppc64le_module_6_12_cpu0: "the same, CPU 0 panics",
    ppc64le_module_6_12_64k: "the same as ppc64le_module_6_12 with pages of 64 KiB",
}

fn ppc64le_control(lab: &Lab, name: &str) -> Result<()> {
    control_on(lab, name, Ppc64V6_12)
}

/// By the kernel's own handler.
fn native(lab: &Lab, name: &str, kernel: KernelLine, on_new_cpu: bool) -> Result<()> {
    Round { kernel, by: By::Load, dimms: 2, remove: true, on_new_cpu }.run(lab, name)
}

fn ppc64le_load_6_12(lab: &Lab, name: &str) -> Result<()> {
    native(lab, name, Ppc64V6_12, true)
}

fn ppc64le_load_6_12_cpu0(lab: &Lab, name: &str) -> Result<()> {
    native(lab, name, Ppc64V6_12, false)
}

fn ppc64le_load_6_12_64k(lab: &Lab, name: &str) -> Result<()> {
    native(lab, name, Ppc64V6_12Pages64K, true)
}

fn ppc64le_module_6_1(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, Ppc64V6_1, Panic::OnTheNewOne)
}

fn ppc64le_module_6_1_cpu0(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, Ppc64V6_1, Panic::On(0))
}

fn ppc64le_module_6_12(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, Ppc64V6_12, Panic::OnTheNewOne)
}

fn ppc64le_module_6_12_cpu0(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, Ppc64V6_12, Panic::On(0))
}

fn ppc64le_module_6_12_64k(lab: &Lab, name: &str) -> Result<()> {
    follow(lab, name, Ppc64V6_12Pages64K, Panic::OnTheNewOne)
}
