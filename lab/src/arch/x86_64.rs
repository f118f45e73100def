//! The PC.

use super::Facts;

pub(super) const FACTS: Facts = Facts {
    name: "x86_64",
    rust_target: "x86_64-unknown-linux-gnu",
    linker: "x86_64-linux-gnu-gcc",
    cross_packages: &["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
};
