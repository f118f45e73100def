//! Who shall keep an image current: what was asked for, what the machine allows, and why it became this one.
//!
//! All of it is found out before the image that is loaded now is touched.

use host::{Host, HostError, ModuleSwitches};
use kexec::{Keeper, Module, ModuleError};

use super::job::LoadError;

/// Who is asked to keep the image current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Keep {
    /// The best that this machine allows: module, native or reload; says which, and why
    Auto,
    /// The kernel (Linux 6.6 and later), with a time at each event in which a crash leaves no dump
    Native,
    /// The kernel module hotdump.ko, see hotdump-module(8)
    Module,
    /// Nobody: whoever sees a change loads again; hotdump-watch.service does
    Reload,
}

/// What there is to keep an image current with.
#[derive(Debug)]
pub(crate) struct Means {
    /// Why the image is to be loaded by kexec_file_load; none: by kexec_load, which the module needs.
    pub(crate) by_file: Option<String>,
    /// Whether the kernel has a handler of its own.
    pub(crate) kernel_can: bool,
    /// The module.
    pub(crate) module: ModuleState,
}

/// Whether the kernel module can be used.
#[derive(Debug)]
pub(crate) enum ModuleState {
    /// It is loaded, and follows memory and CPUs.
    Ready,
    /// It is loaded, and this parameter is off.
    Partly(&'static str),
    /// It is not loaded.
    NotLoaded,
    /// It is loaded, and follows nothing.
    SwitchedOff,
    /// It is loaded, and cannot be used.
    Unusable(ModuleError),
}

/// Who keeps the image current.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) keeper: Keeper,
    /// Why this one; none where it was asked for.
    pub(crate) because: Option<String>,
}

impl Means {
    /// Looks at the machine.
    pub(crate) fn of(host: &Host, by_file: Option<String>) -> Result<Self, HostError> {
        Ok(Self {
            by_file,
            // A kernel without kexec has none either; the load will say so.
            kernel_can: host.kexec().is_ok_and(|kexec| kexec.elfcorehdr_size.is_some()),
            module: ModuleState::of(host.module_switches()?, || {
                Module::open()?.map(|module| module.status()).transpose()
            }),
        })
    }

    /// Settles who keeps the image current.
    ///
    /// # Errors
    /// What was asked for cannot be had; says what is missing.
    pub(crate) fn choose(&self, keep: Keep) -> Result<Choice, LoadError> {
        let asked = |keeper| Ok(Choice { keeper, because: None });
        match keep {
            Keep::Auto => Ok(self.best()),
            Keep::Reload => asked(Keeper::Nobody),
            Keep::Native if self.kernel_can => asked(Keeper::Kernel),
            Keep::Native => Err(LoadError::CannotKeep(NO_NATIVE.to_owned())),
            Keep::Module => match (&self.by_file, self.module.missing()) {
                (Some(why), _) => Err(LoadError::CannotKeep(format!(
                    "--keep module needs kexec_load, and {why}: use --keep native or --keep reload"
                ))),
                (None, Some(missing)) => Err(LoadError::CannotKeep(format!("--keep module: {missing}"))),
                (None, None) => asked(Keeper::Module),
            },
        }
    }

    /// The best there is: whole before partly, the module before the kernel, whose handler leaves times without a dump.
    fn best(&self) -> Choice {
        let (keeper, because) = match (&self.by_file, &self.module, self.kernel_can) {
            (None, ModuleState::Ready, _) => (Keeper::Module, "hotdump.ko is loaded".to_owned()),
            (None, ModuleState::Partly(off), false) => (
                Keeper::Module,
                format!("hotdump.ko is loaded, though with {off}=0; the kernel has no handler of its own"),
            ),
            (None, module, true) => (Keeper::Kernel, module.in_short()),
            (Some(why), _, true) => (Keeper::Kernel, format!("hotdump.ko needs kexec_load; {why}")),
            (None, module, false) => {
                (Keeper::Nobody, format!("the kernel cannot and {}: {AGAIN}", module.in_short()))
            }
            (Some(why), _, false) => {
                (Keeper::Nobody, format!("the kernel cannot and hotdump.ko needs kexec_load; {why}: {AGAIN}"))
            }
        };
        Choice { keeper, because: Some(because) }
    }
}

const AGAIN: &str = "load again at every change";

const NO_NATIVE: &str = "--keep native: the kernel needs CONFIG_CRASH_HOTPLUG (there is no /sys/kernel/crash_elfcorehdr_size: \
    it is older than Linux 6.6, or built without): use --keep module, which needs hotdump.ko, or --keep reload";

impl ModuleState {
    /// From the module's switches, `None` where it is not loaded, and what it answers.
    fn of(
        switches: Option<ModuleSwitches>,
        status: impl FnOnce() -> Result<Option<abi::Status>, ModuleError>,
    ) -> Self {
        match (status(), switches) {
            (Err(error), _) => Self::Unusable(error),
            (Ok(None), _) => Self::NotLoaded,
            (Ok(Some(_)), Some(ModuleSwitches { memory: false, cpus: false })) => Self::SwitchedOff,
            (Ok(Some(_)), Some(ModuleSwitches { memory: false, .. })) => Self::Partly("memory"),
            (Ok(Some(_)), Some(ModuleSwitches { cpus: false, .. })) => Self::Partly("cpus"),
            (Ok(Some(_)), _) => Self::Ready,
        }
    }

    /// What is missing, and what to do; none where the module can be used.
    pub(crate) fn missing(&self) -> Option<String> {
        match self {
            Self::Ready | Self::Partly(_) => None,
            Self::NotLoaded => Some(ModuleError::NotThere.to_string()),
            Self::SwitchedOff => Some(
                "the kernel module is switched off by its parameters memory and cpus: write 1 to them in \
                 /sys/module/hotdump/parameters"
                    .to_owned(),
            ),
            Self::Unusable(error) => Some(error.to_string()),
        }
    }

    /// Why it is not taken.
    fn in_short(&self) -> String {
        match self {
            Self::Ready => "hotdump.ko is loaded".to_owned(),
            Self::Partly(off) => format!("hotdump.ko is loaded with {off}=0"),
            Self::NotLoaded => "hotdump.ko is not loaded".to_owned(),
            Self::SwitchedOff => "hotdump.ko is switched off by its parameters".to_owned(),
            Self::Unusable(error) => format!("hotdump.ko cannot be used: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit;

    fn unusable() -> ModuleState {
        ModuleState::Unusable(ModuleError::OtherVersion { found: Some(7) })
    }

    fn means(by_file: bool, module: ModuleState, kernel_can: bool) -> Means {
        let by_file = by_file.then(|| "the kernel is locked down".to_owned());
        Means { by_file, kernel_can, module }
    }

    #[test]
    fn auto_takes_the_best_and_says_why() {
        use ModuleState::{NotLoaded, Partly, Ready, SwitchedOff};
        let again = "load again at every change";
        for (by_file, module, kernel_can, keeper, because) in [
            (false, Ready, true, Keeper::Module, "hotdump.ko is loaded"),
            (false, Ready, false, Keeper::Module, "hotdump.ko is loaded"),
            (false, Partly("cpus"), true, Keeper::Kernel, "hotdump.ko is loaded with cpus=0"),
            (false, Partly("memory"), false, Keeper::Module, "with memory=0; the kernel has no handler"),
            (false, NotLoaded, true, Keeper::Kernel, "hotdump.ko is not loaded"),
            (false, NotLoaded, false, Keeper::Nobody, "the kernel cannot and hotdump.ko is not loaded: load"),
            (false, SwitchedOff, true, Keeper::Kernel, "hotdump.ko is switched off by its parameters"),
            (false, SwitchedOff, false, Keeper::Nobody, again),
            (
                false,
                unusable(),
                true,
                Keeper::Kernel,
                "cannot be used: the kernel module that is loaded speaks",
            ),
            (false, unusable(), false, Keeper::Nobody, again),
            (true, Ready, true, Keeper::Kernel, "hotdump.ko needs kexec_load; the kernel is locked down"),
            (true, Ready, false, Keeper::Nobody, "needs kexec_load; the kernel is locked down: load again"),
            (true, NotLoaded, false, Keeper::Nobody, again),
        ] {
            let means = means(by_file, module, kernel_can);
            let choice = means.choose(Keep::Auto).unwrap();
            let told = choice.because.unwrap();
            assert_eq!(choice.keeper, keeper, "{means:?}");
            assert!(told.contains(because), "{means:?}: {told}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_refused_and_names_what_is_missing() {
        use ModuleState::{NotLoaded, Partly, Ready, SwitchedOff};
        for (keep, by_file, module, kernel_can, expected) in [
            (Keep::Native, false, NotLoaded, true, Ok(Keeper::Kernel)),
            (Keep::Native, true, Ready, true, Ok(Keeper::Kernel)),
            (Keep::Native, false, Ready, false, Err("the kernel needs CONFIG_CRASH_HOTPLUG")),
            (Keep::Module, false, Ready, false, Ok(Keeper::Module)),
            (Keep::Module, false, Partly("cpus"), true, Ok(Keeper::Module)),
            (Keep::Module, false, NotLoaded, true, Err("--keep module: the kernel module is not loaded")),
            (
                Keep::Module,
                false,
                SwitchedOff,
                true,
                Err("is switched off by its parameters memory and cpus"),
            ),
            (Keep::Module, false, unusable(), true, Err("speaks version 7 of the interface")),
            (Keep::Module, true, Ready, true, Err("needs kexec_load, and the kernel is locked down: use")),
            (Keep::Reload, true, NotLoaded, false, Ok(Keeper::Nobody)),
            (Keep::Reload, false, Ready, true, Ok(Keeper::Nobody)),
        ] {
            let means = means(by_file, module, kernel_can);
            match (means.choose(keep), expected) {
                (Ok(Choice { keeper, because: None }), Ok(wanted)) if keeper == wanted => {}
                (Err(error), Err(wanted)) => {
                    assert!(error.to_string().contains(wanted), "{keep:?}, {means:?}: {error}");
                    assert_eq!(error.exit_code(), exit::FAILED);
                }
                (other, _) => panic!("{keep:?}, {means:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_module_is_asked_for_its_version_and_its_switches_are_looked_at() {
        let on = |memory, cpus| Some(ModuleSwitches { memory, cpus });
        let there = || Ok(Some(abi::Status::default()));
        assert!(matches!(ModuleState::of(None, || Ok(None)), ModuleState::NotLoaded));
        assert!(matches!(ModuleState::of(on(true, true), there), ModuleState::Ready));
        assert!(matches!(ModuleState::of(on(false, true), there), ModuleState::Partly("memory")));
        assert!(matches!(ModuleState::of(on(true, false), there), ModuleState::Partly("cpus")));
        assert!(matches!(ModuleState::of(on(false, false), there), ModuleState::SwitchedOff));
        let old = || Err(ModuleError::OtherVersion { found: None });
        assert!(matches!(ModuleState::of(on(true, true), old), ModuleState::Unusable(_)));
    }
}
