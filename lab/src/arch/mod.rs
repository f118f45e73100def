//! What differs between the architectures: names, packages, the virtual machine, what a dump's notes look like. Each has
//! a file of its own with the same things in it.

mod ppc64;
mod x86_64;

/// An architecture that hotdump runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// The PC.
    X86_64,
    /// 64-bit PowerPC, little-endian: pseries.
    Ppc64,
}

/// What there is to say of an architecture.
struct Facts {
    name: &'static str,
    rust_target: &'static str,
    linker: &'static str,
    cross_packages: &'static [&'static str],
}

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 2] = [Arch::X86_64, Arch::Ppc64];

    const fn facts(self) -> &'static Facts {
        match self {
            Arch::X86_64 => &x86_64::FACTS,
            Arch::Ppc64 => &ppc64::FACTS,
        }
    }

    /// The architecture of this [name](Arch::name).
    pub fn of_name(name: &str) -> anyhow::Result<Arch> {
        let known = Arch::ALL.map(Arch::name).join(", ");
        let found = Arch::ALL.into_iter().find(|arch| arch.name() == name);
        anyhow::Context::with_context(found, || format!("architecture {name} is not supported: {known} are"))
    }

    /// The architecture of this machine.
    pub const fn native() -> Arch {
        if cfg!(target_arch = "powerpc64") { Arch::Ppc64 } else { Arch::X86_64 }
    }

    /// Its name, as `uname -m` prints it.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Rust's name for programs on Linux there.
    pub const fn rust_target(self) -> &'static str {
        self.facts().rust_target
    }

    /// The compiler of C that also links programs for it, Debian's cross compiler where it is not this machine's.
    pub fn linker(self) -> &'static str {
        if self == Arch::native() { "cc" } else { self.facts().linker }
    }

    /// Debian's packages that it takes to build for it on another machine.
    pub const fn cross_packages(self) -> &'static [&'static str] {
        self.facts().cross_packages
    }
}

#[cfg(test)]
mod tests {
    use super::Arch;

    #[test]
    fn architectures_by_name() {
        for arch in Arch::ALL {
            assert_eq!(Arch::of_name(arch.name()).unwrap(), arch);
        }
        assert!(Arch::of_name("ppc64").unwrap_err().to_string().contains("x86_64, ppc64le are"));
    }
}
