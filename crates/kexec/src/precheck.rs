//! What the running kernel would refuse, read from the machine before it is asked.

use std::fs;

use host::{Host, HostError, Lockdown};

use crate::error::Refusal;
use crate::syscall::Call;

/// Capability number of CAP_SYS_BOOT (<linux/capability.h>).
const CAP_SYS_BOOT: u32 = 22;

/// The first reason for which `call` would not be permitted; `None` if there is none to be seen.
pub(crate) fn refusal(host: &Host, call: Call) -> Result<Option<Refusal>, HostError> {
    if !may_load() {
        return Ok(Some(Refusal::Capability));
    }
    if host.kexec_load_disabled()? == Some(true) {
        return Ok(Some(Refusal::Disabled));
    }
    if host.kexec_load_limit_panic()? == Some(0) {
        return Ok(Some(Refusal::LimitReached));
    }
    let mode = match host.lockdown()? {
        Lockdown::Integrity => "integrity",
        Lockdown::Confidentiality => "confidentiality",
        _ => return Ok(None),
    };
    Ok((call == Call::KexecLoad).then_some(Refusal::Lockdown(mode)))
}

/// As [`refusal`], as an error.
pub(crate) fn permitted<E: From<HostError> + From<Refusal>>(host: &Host, call: Call) -> Result<(), E> {
    match refusal(host, call)? {
        Some(refusal) => Err(refusal.into()),
        None => Ok(()),
    }
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

    #[test]
    fn capabilities_are_read_from_status() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }
}
