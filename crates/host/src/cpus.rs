//! Which CPUs there can be, are, and run.

use crate::error::Fault;
use std::collections::BTreeSet;

/// Highest number of CPUs believed in: CONFIG_NR_CPUS ends at 8192 on x86; the rest is room.
const MAX_CPUS: u32 = 1 << 16;

/// The machine's CPUs by number, each list sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// CPUs that this boot can ever have.
    pub possible: Vec<u32>,
    /// CPUs that are plugged in.
    pub present: Vec<u32>,
    /// CPUs that run.
    pub online: Vec<u32>,
}

/// Parses a list of CPUs such as `0-3,8`; an empty list is one too.
pub(crate) fn parse_list(text: &str) -> Result<Vec<u32>, Fault> {
    let mut cpus = BTreeSet::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match number(first).zip(number(last)) {
            Some((first, last)) if first <= last && last < MAX_CPUS => cpus.extend(first..=last),
            _ => return Err(Fault::new(text, "CPU numbers and ranges such as 0-3,8")),
        }
    }
    Ok(cpus.into_iter().collect())
}

/// Flags of CPUs (arch/x86/include/asm/cpufeatures.h) that can encrypt memory, or whose memory is.
const ENCRYPTION: [&str; 5] = ["sme", "sev", "sev_es", "sev_snp", "tdx_guest"];

/// Whether the first CPU of /proc/cpuinfo has such a flag.
pub(crate) fn may_encrypt_memory(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    flags.is_some_and(|(_, flags)| flags.split_whitespace().any(|flag| ENCRYPTION.contains(&flag)))
}

fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_of_the_kernel() {
        let cases: [(&str, &[u32]); 5] = [
            ("", &[]),
            ("0", &[0]),
            ("0-3", &[0, 1, 2, 3]),
            ("0-3,8", &[0, 1, 2, 3, 8]),
            ("1,5-6", &[1, 5, 6]),
        ];
        for (text, cpus) in cases {
            assert_eq!(parse_list(text).as_deref(), Ok(cpus), "{text:?}");
        }
        for wrong in [",", "0,", "3-1", "-1", "+1", "0-", "a", "0-4294967296", "0-65536", "0 1", "0x1"] {
            assert_eq!(parse_list(wrong).unwrap_err().found, wrong);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(cpus in prop::collection::btree_set(0..MAX_CPUS, 0..40)) {
            let text = cpus.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            prop_assert_eq!(parse_list(&text), Ok(cpus.into_iter().collect()));
        }

        #[test]
        fn any_text_gives_sorted_cpus_or_an_error(text in "[0-9,-]{0,60}") {
            if let Ok(cpus) = parse_list(&text) {
                prop_assert!(cpus.is_sorted_by(|one, next| one < next));
            }
        }
    }
}
