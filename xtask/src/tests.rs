//! Everything that must hold, the quick checks first.

use std::process::Command;

use anyhow::Result;
use lab::arch::Arch;
use lab::{runner, scenarios};

use crate::programs::{self, cargo, cargo_program};
use crate::{module, ready_to_run, setup};

/// What cargo is asked to do. The flags of rustdoc come from the environment.
const CHECKS: [&[&str]; 4] = [
    &["fmt", "--all", "--check"],
    &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
    &["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"],
    &["test", "--quiet", "--workspace"],
];

/// Runs all of it and stops at the first thing that does not hold.
pub(crate) fn run() -> Result<()> {
    setup::run(Arch::native())?;
    for arguments in CHECKS {
        eprintln!("cargo {}", arguments.join(" "));
        cargo(Command::new(cargo_program()).args(arguments).env("RUSTDOCFLAGS", "-D warnings"))?;
    }
    for arch in Arch::ALL.into_iter().filter(|arch| *arch != Arch::native()) {
        setup::run(arch)?;
        programs::test(arch)?;
    }
    let all = scenarios::all();
    let lab = ready_to_run(&all, None)?;
    module::build_variants(&lab.sources.cache)?;
    runner::run(&lab, &all)
}
