//! 64-bit PowerPC, little-endian: pseries.

use super::Facts;

pub(super) const FACTS: Facts = Facts {
    name: "ppc64le",
    rust_target: "powerpc64le-unknown-linux-gnu",
    linker: "powerpc64le-linux-gnu-gcc",
    cross_packages: &["gcc-powerpc64le-linux-gnu", "libc6-dev-ppc64el-cross"],
};
