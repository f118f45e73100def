//! Who keeps the loaded image current, as far as it can be seen now.

use host::{CrashHotplug, Host};
use kexec::{Keeper, Module};

/// What the kernel and the module say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Keeping {
    /// Whether the kernel has a handler of its own.
    pub(crate) kernel_can: bool,
    /// What the files `crash_hotplug` say. On kernels without a handler of their own they are the module's.
    pub(crate) nodes: CrashHotplug,
    /// What the module says; `None` where it is not loaded, or cannot be asked.
    pub(crate) module: Option<abi::Status>,
    /// Whether the module is there and cannot be asked.
    pub(crate) is_hidden: bool,
}

impl Keeping {
    /// Looks, on a kernel with a handler of its own or without, and adds to `remarks` what could not be read.
    pub(crate) fn read(host: &Host, kernel_can: bool, remarks: &mut Vec<String>) -> Self {
        let mut noted = Noted(remarks);
        let module = Module::open().and_then(|module| module.map(|module| module.status()).transpose());
        Self {
            kernel_can,
            nodes: noted.take(host.crash_hotplug()).unwrap_or_default(),
            is_hidden: module.is_err(),
            module: noted.take(module).flatten(),
        }
    }

    /// What the module says, while it follows an image.
    pub(crate) fn armed(&self) -> Option<&abi::Status> {
        self.module.as_ref().filter(|status| status.armed != 0)
    }

    /// Who keeps the image current, if only in part; `None` if that cannot be told.
    pub(crate) fn keeper(&self) -> Option<Keeper> {
        let CrashHotplug { cpu, memory } = self.nodes;
        let said = cpu == Some(true) || memory == Some(true);
        match (self.armed(), self.kernel_can) {
            (Some(_), _) => Some(Keeper::Module),
            (None, true) if said => Some(Keeper::Kernel),
            // The files are the module's.
            (None, false) if said && self.is_hidden => Some(Keeper::Module),
            (None, _) => (!self.is_hidden).then_some(Keeper::Nobody),
        }
    }

    /// What is taken care of; `None` for kinds of events that the machine does not have.
    fn kept(&self) -> CrashHotplug {
        match self.armed() {
            Some(status) => CrashHotplug {
                cpu: Some(status.follow & abi::FOLLOW_CPUS != 0),
                memory: Some(status.follow & abi::FOLLOW_MEMORY != 0),
            },
            None => self.nodes,
        }
    }

    /// Whether every change of CPUs and memory is taken care of; `None` if that cannot be told.
    pub(crate) fn is_whole(&self) -> Option<bool> {
        self.keeper().map(|keeper| keeper != Keeper::Nobody && keeps_current(self.kept()))
    }

    /// Who keeps the image current and what of it, for people.
    pub(crate) fn line(&self) -> String {
        let CrashHotplug { cpu, memory } = self.kept();
        let part = format!("CPUs {}, memory {}", yes(cpu), yes(memory));
        match self.keeper() {
            Some(Keeper::Module) => format!("kept current: by the kernel module ({part})"),
            Some(Keeper::Kernel) => format!("kept current: by the kernel ({part})"),
            None => "kept current: unknown: the kernel module cannot be asked".to_owned(),
            Some(Keeper::Nobody) => {
                "kept current: by nobody: load again when CPUs or memory come or go".to_owned()
            }
        }
    }

    /// What is wrong, where the last load was to be kept current and is not; `None` where all is as it was asked for.
    pub(crate) fn broken(&self, wanted: Option<Keeper>) -> Option<String> {
        if self.keeper() != Some(Keeper::Nobody) {
            return None;
        }
        match (wanted?, &self.module) {
            (Keeper::Nobody, _) => None,
            (Keeper::Kernel, _) => Some(
                "the image was loaded to be kept current by the kernel, which does not: load again".to_owned(),
            ),
            (Keeper::Module, None) => Some(
                "the image was loaded for the kernel module, which is not there any more: `modprobe hotdump` and load again"
                    .to_owned(),
            ),
            (Keeper::Module, Some(status)) => {
                let reason = reason(status);
                // Some reasons give this advice already.
                let advice = if reason.contains("load again") { "" } else { ": load again" };
                Some(format!(
                    "the image was loaded for the kernel module, which does not follow it: {reason}{advice}"
                ))
            }
        }
    }
}

/// Why the module follows no image.
pub(crate) fn reason(status: &abi::Status) -> String {
    let known = abi::Reason::from_code(status.reason);
    known.map_or_else(|| format!("reason {}", status.reason), |reason| reason.text().to_owned())
}

/// Whether every kind of event that this kernel knows is taken care of. A kernel built without memory hotplug has no
/// file for it.
pub(crate) fn keeps_current(hotplug: CrashHotplug) -> bool {
    hotplug != CrashHotplug::default() && hotplug.cpu != Some(false) && hotplug.memory != Some(false)
}

fn yes(fact: Option<bool>) -> &'static str {
    match fact {
        Some(true) => "yes",
        Some(false) => "no",
        None => "never change",
    }
}

/// Takes values, and keeps the reasons where there is none.
struct Noted<'a>(&'a mut Vec<String>);

impl Noted<'_> {
    fn take<T, E: std::fmt::Display>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.0.push(error.to_string())).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: u32 = abi::FOLLOW_MEMORY | abi::FOLLOW_CPUS;

    fn module(armed: bool, follow: u32, reason: abi::Reason) -> Option<abi::Status> {
        Some(abi::Status { armed: armed.into(), follow, reason: reason as u32, ..abi::Status::default() })
    }

    fn nodes(cpu: Option<bool>, memory: Option<bool>) -> CrashHotplug {
        CrashHotplug { cpu, memory }
    }

    #[test]
    fn every_kind_of_event_must_be_taken_care_of() {
        for (cpu, memory, expected) in [
            (Some(true), Some(true), true),
            (Some(true), None, true),
            (None, Some(true), true),
            (Some(true), Some(false), false),
            (Some(false), Some(true), false),
            (Some(false), None, false),
            (None, None, false),
        ] {
            assert_eq!(keeps_current(nodes(cpu, memory)), expected, "{cpu:?} {memory:?}");
        }
    }

    #[test]
    fn who_keeps_it_current() {
        use abi::Reason;
        let (on, off, none) =
            (nodes(Some(true), Some(true)), nodes(Some(false), Some(false)), nodes(None, None));
        let armed = || module(true, BOTH, Reason::None);
        let idle = || module(false, 0, Reason::OtherLoad);
        for (what, kernel_can, nodes, module, keeper, whole, line) in [
            ("6.1", false, none, None, Keeper::Nobody, false, "by nobody: load again"),
            ("6.1, module armed", false, on, armed(), Keeper::Module, true, "module (CPUs yes, memory yes)"),
            ("6.1, module idle", false, off, idle(), Keeper::Nobody, false, "by nobody"),
            ("6.12, native", true, on, None, Keeper::Kernel, true, "by the kernel (CPUs yes, memory yes)"),
            ("6.12, native, module idle", true, on, idle(), Keeper::Kernel, true, "by the kernel (CPUs yes"),
            ("6.12, plain load", true, off, None, Keeper::Nobody, false, "by nobody"),
            (
                "6.12, module armed",
                true,
                off,
                armed(),
                Keeper::Module,
                true,
                "by the kernel module (CPUs yes",
            ),
            (
                "only memory is followed",
                true,
                off,
                module(true, abi::FOLLOW_MEMORY, Reason::None),
                Keeper::Module,
                false,
                "(CPUs no, memory yes)",
            ),
            (
                "no memory hotplug",
                true,
                CrashHotplug { cpu: Some(true), memory: None },
                None,
                Keeper::Kernel,
                true,
                "(CPUs yes, memory never change)",
            ),
        ] {
            let keeping = Keeping { kernel_can, nodes, module, is_hidden: false };
            assert_eq!((keeping.keeper(), keeping.is_whole()), (Some(keeper), Some(whole)), "{what}");
            assert!(keeping.line().contains(line), "{what}: {}", keeping.line());
        }
    }

    #[test]
    fn a_module_that_cannot_be_asked_is_not_nobody() {
        let (on, off, none) =
            (nodes(Some(true), Some(true)), nodes(Some(false), Some(false)), nodes(None, None));
        for (kernel_can, nodes, keeper, whole) in [
            (false, on, Some(Keeper::Module), Some(true)),
            (false, off, None, None),
            (false, none, None, None),
            (true, on, Some(Keeper::Kernel), Some(true)),
            (true, off, None, None),
        ] {
            let keeping = Keeping { kernel_can, nodes, module: None, is_hidden: true };
            assert_eq!((keeping.keeper(), keeping.is_whole()), (keeper, whole), "{keeping:?}");
            assert_eq!(keeping.broken(Some(Keeper::Module)), None, "{keeping:?}");
        }
    }

    #[test]
    fn what_was_to_be_kept_and_is_not_is_a_problem() {
        use abi::Reason;
        let with = |module, nodes| Keeping { kernel_can: true, nodes, module, is_hidden: false };
        let (on, off) = (nodes(Some(true), Some(true)), nodes(Some(false), Some(false)));
        for (keeping, wanted, expected) in [
            (with(None, off), None, None),
            (with(None, off), Some(Keeper::Nobody), None),
            (with(None, on), Some(Keeper::Kernel), None),
            (with(None, off), Some(Keeper::Kernel), Some("by the kernel, which does not: load again")),
            (with(module(true, BOTH, Reason::None), off), Some(Keeper::Module), None),
            (
                with(None, off),
                Some(Keeper::Module),
                Some("not there any more: `modprobe hotdump` and load again"),
            ),
            (
                with(module(false, 0, Reason::Full), off),
                Some(Keeper::Module),
                Some("the crash header has no free slot left: load again with more room"),
            ),
            (
                with(module(false, 0, Reason::Changed), off),
                Some(Keeper::Module),
                Some("does not follow it: somebody else changed the crash header: load again"),
            ),
        ] {
            let told = keeping.broken(wanted);
            match expected {
                Some(part) => assert!(told.as_ref().is_some_and(|told| told.ends_with(part)), "{told:?}"),
                None => assert_eq!(told, None, "{keeping:?}"),
            }
        }
        let unknown = abi::Status { reason: 999, ..abi::Status::default() };
        assert_eq!(reason(&unknown), "reason 999");
    }
}
