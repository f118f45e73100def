//! Which CPUs there can be, are, and run.

use crate::error::Fault;

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
    let mut cpus = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let fault = || Fault::new(text, "CPU numbers and ranges such as 0-3,8");
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = number(first).zip(number(last)).ok_or_else(fault)?;
        if last < first || last >= MAX_CPUS {
            return Err(fault());
        }
        cpus.extend(first..=last);
        // Lists are short; a hostile one must not grow past what is believed in.
        cpus.sort_unstable();
        cpus.dedup();
    }
    Ok(cpus)
}

fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}
