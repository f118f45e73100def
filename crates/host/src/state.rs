//! What the kernel says of kexec: what is loaded, and what stands in the way of loading.

use crate::error::Fault;
use crate::files::hex;
use elfcorehdr::{PhysAddr, PhysRange};

/// What is loaded and what was set aside for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KexecState {
    /// Whether a kernel to boot after a crash is loaded.
    pub crash_loaded: bool,
    /// Whether a kernel to boot by request is loaded.
    pub loaded: bool,
    /// Bytes in the crash reservations, low and high together; 0 if there is none.
    pub crash_size: u64,
    /// What the kernel says a crash header needs to be able to grow, in bytes. On x86 that leaves out the 64-byte
    /// file header. `None` on kernels that do not update headers.
    pub elfcorehdr_size: Option<u64>,
    /// Memory that the capture kernel may use although the crashed kernel used it too (`crashkernel=...,cma`).
    pub cma_ranges: Vec<PhysRange>,
}

/// Whether the kernel keeps the loaded image's crash header up to date by itself. It says no, too, while its kexec
/// lock is taken by somebody else, so a no that surprises deserves a second look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CrashHotplug {
    /// For CPUs; `None` on kernels that cannot.
    pub cpu: Option<bool>,
    /// For memory; `None` on kernels that cannot.
    pub memory: Option<bool>,
}

/// What the loaded kernel module hotdump.ko may follow: its parameters. What was left out when it was built reads as
/// switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleSwitches {
    /// Memory that comes and goes.
    pub memory: bool,
    /// CPUs that come.
    pub cpus: bool,
}

/// How far the kernel protects itself from root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// Not at all.
    None,
    /// No unsigned code in the kernel: kexec_load is refused, kexec_file_load wants a signed kernel.
    Integrity,
    /// Nor may root read the kernel's memory: /proc/kcore is refused too.
    Confidentiality,
    /// The kernel does not say: it has no lockdown, or securityfs is not mounted.
    Absent,
}

/// Parses `none [integrity] confidentiality`: the state in force is the one in brackets.
pub(crate) fn parse_lockdown(text: &str) -> Result<Lockdown, Fault> {
    let in_force = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    match in_force {
        Some("none") => Ok(Lockdown::None),
        Some("integrity") => Ok(Lockdown::Integrity),
        Some("confidentiality") => Ok(Lockdown::Confidentiality),
        _ => Err(Fault::new(text, "one of [none], [integrity], [confidentiality]")),
    }
}

/// Parses a module's switch as the kernel shows it.
pub(crate) fn parse_switch(text: &str) -> Result<bool, Fault> {
    match text {
        "Y" => Ok(true),
        "N" => Ok(false),
        _ => Err(Fault::new(text, "Y or N")),
    }
}

/// Parses lines of `start-last` in hex, both included.
pub(crate) fn parse_cma_ranges(text: &str) -> Result<Vec<PhysRange>, Fault> {
    let parse = |line: &str| {
        let (start, last) = line.split_once('-')?;
        PhysRange::from_inclusive(PhysAddr(hex(start).ok()?), PhysAddr(hex(last.trim()).ok()?))
    };
    let lines = text.lines().enumerate();
    lines
        .map(|(index, line)| {
            parse(line).ok_or_else(|| Fault::new(line, "start-last in hex").at_line(index + 1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lockdown_in_brackets() {
        let cases = [
            ("[none] integrity confidentiality", Lockdown::None),
            ("none [integrity] confidentiality", Lockdown::Integrity),
            ("none integrity [confidentiality]", Lockdown::Confidentiality),
            ("[none]", Lockdown::None),
        ];
        for (text, lockdown) in cases {
            assert_eq!(parse_lockdown(text), Ok(lockdown));
        }
        for wrong in ["", "none integrity confidentiality", "[total] none", "[none", "none]"] {
            assert_eq!(parse_lockdown(wrong).unwrap_err().found, wrong);
        }
    }

    #[test]
    fn cma_ranges_by_line() {
        let range = |start, end| PhysRange::new(PhysAddr(start), PhysAddr(end)).unwrap();
        let two = [range(0x1000_0000, 0x1800_0000), range(0x1_4000_0000, 0x1_4800_0000)];
        assert_eq!(parse_cma_ranges("10000000-17ffffff\n140000000-147ffffff").as_deref(), Ok(&two[..]));
        assert_eq!(parse_cma_ranges("").as_deref(), Ok(&[][..]));
        let fault = parse_cma_ranges("10000000-17ffffff\n5-4").unwrap_err();
        assert_eq!((fault.line, fault.found.as_str()), (Some(2), "5-4"));
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "([a-z\\[\\] ]|none|integrity){0,12}", lines in "([0-9a-f-]{0,20}\n){0,4}") {
            prop_assert_eq!(parse_lockdown(&text).is_ok(), text.split_whitespace().find(|word| {
                word.starts_with('[') && word.ends_with(']') && word.len() > 1
            }).is_some_and(|word| ["[none]", "[integrity]", "[confidentiality]"].contains(&word)));
            if let Ok(ranges) = parse_cma_ranges(&lines) {
                prop_assert_eq!(ranges.len(), lines.lines().count());
            }
        }
    }
}
