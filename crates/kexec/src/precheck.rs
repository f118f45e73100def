//! What the running kernel would refuse, read from the machine before it is asked.

use std::fs;

use host::{Host, HostError, Lockdown};

use crate::error::{PlanError, Refusal};
use crate::syscall::{Call, Target};

/// Capability number of CAP_SYS_BOOT (<linux/capability.h>).
const CAP_SYS_BOOT: u32 = 22;

/// The first reason for which `call` would not be permitted; `None` if there is none to be seen.
pub(crate) fn refusal(host: &Host, call: Call, target: Target) -> Result<Option<Refusal>, HostError> {
    if !may_load() {
        return Ok(Some(Refusal::Capability));
    }
    machine_refusal(host, call, target)
}

/// As [`refusal`], whoever asks.
fn machine_refusal(host: &Host, call: Call, target: Target) -> Result<Option<Refusal>, HostError> {
    if host.kexec_load_disabled()? == Some(true) {
        return Ok(Some(Refusal::Disabled));
    }
    if target == Target::Crash && host.kexec_load_limit_panic()? == Some(0) {
        return Ok(Some(Refusal::LimitReached));
    }
    // By kexec_file_load a locked down kernel takes signed kernels.
    Ok(lockdown_mode(host)?.filter(|_| call == Call::KexecLoad).map(Refusal::Lockdown))
}

/// How the machine is locked down; `None` if it is not.
fn lockdown_mode(host: &Host) -> Result<Option<&'static str>, HostError> {
    Ok(match host.lockdown()? {
        Lockdown::Integrity => Some("integrity"),
        Lockdown::Confidentiality => Some("confidentiality"),
        Lockdown::None | Lockdown::Absent => None,
    })
}

/// The reason for which the kernel has just refused `call`, as far as it is to be seen. A locked down kernel that refuses
/// kexec_file_load, and has no other reason, did not trust the signature.
pub(crate) fn reason(host: &Host, call: Call, target: Target) -> Option<Refusal> {
    let seen = refusal(host, call, target).ok()?;
    seen.or_else(|| lockdown_mode(host).ok()?.map(Refusal::Untrusted))
}

/// As [`refusal`], as an error.
pub(crate) fn permitted(host: &Host, call: Call, target: Target) -> Result<(), PlanError> {
    match refusal(host, call, target)? {
        Some(refusal) => Err(refusal.into()),
        None => Ok(()),
    }
}

/// Checks that an image of `bytes` is not more than the kernel takes: half of the memory that it manages
/// (sanity_check_segment_list in kernel/kexec_core.c, after the old image is freed).
pub(crate) fn half_of_memory(bytes: u64) -> Result<(), PlanError> {
    let memory = rustix::system::sysinfo();
    let limit = memory.totalram.saturating_mul(u64::from(memory.mem_unit)) / 2;
    if bytes > limit { Err(PlanError::HalfOfMemory { bytes, limit }) } else { Ok(()) }
}

/// Whether this process has CAP_SYS_BOOT. Where that cannot be read, the kernel's answer will have to do.
fn may_load() -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else {
        return true;
    };
    effective_capabilities(&status).is_none_or(|set| set & (1 << CAP_SYS_BOOT) != 0)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn what_the_machine_shows_is_found_before_the_call() {
        let cases: &[(&str, &str, Call, Option<Refusal>)] = &[
            ("proc/sys/kernel/kexec_load_disabled", "0\n", Call::KexecLoad, None),
            ("proc/sys/kernel/kexec_load_disabled", "1\n", Call::KexecLoad, Some(Refusal::Disabled)),
            ("proc/sys/kernel/kexec_load_disabled", "1\n", Call::KexecFileLoad, Some(Refusal::Disabled)),
            ("proc/sys/kernel/kexec_load_limit_panic", "-1\n", Call::KexecLoad, None),
            ("proc/sys/kernel/kexec_load_limit_panic", "0\n", Call::KexecLoad, Some(Refusal::LimitReached)),
            (
                "sys/kernel/security/lockdown",
                "none [integrity] confidentiality\n",
                Call::KexecLoad,
                Some(Refusal::Lockdown("integrity")),
            ),
            ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n", Call::KexecFileLoad, None),
            ("sys/kernel/security/lockdown", "[none] integrity confidentiality\n", Call::KexecLoad, None),
        ];
        for (path, text, call, expected) in cases {
            let root = tempfile::tempdir().unwrap();
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap_or(Path::new("/"))).unwrap();
            fs::write(&file, text).unwrap();
            let found = machine_refusal(&Host::at(root.path()), *call, Target::Crash).unwrap();
            assert_eq!(found, *expected, "{path}: {text}, {call}");
        }
    }

    #[test]
    fn capabilities_are_read_from_status() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }
}
