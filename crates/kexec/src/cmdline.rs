//! The capture kernel's command line.
//!
//! [`crash_cmdline`] makes one from the running kernel's, or takes the user's. Parameters are separated by blanks; double
//! quotes hold blanks together, as the kernel reads them (lib/cmdline.c, next_arg). What follows `--` is for init.

use thiserror::Error;

/// A command line that cannot be passed to a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CmdlineError {
    /// The kernel ends the line at the first NUL.
    #[error("NUL at byte {0}: the kernel would not see what follows")]
    Nul(usize),
    /// A quote that is never closed swallows what is added behind it.
    #[error("a double quote is not closed: {0:?}")]
    OpenQuote(String),
}

/// Where the command line comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// The user's own: nothing is removed from it.
    Given(&'a str),
    /// The running kernel's: what must not reach a capture kernel is removed.
    Running(&'a str),
}

/// Changes to what [`crash_cmdline`] does by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides<'a> {
    /// Names of further parameters to remove, whatever the source.
    pub remove: &'a [&'a str],
    /// Text to append.
    pub append: Option<&'a str>,
    /// Whether to leave out the [`DEFAULTS`].
    pub no_defaults: bool,
}

/// Added unless the line has a parameter of that name already: the user's word counts.
///
/// | parameter | why |
/// | --- | --- |
/// | `nr_cpus=1` (PowerPC: `maxcpus=1`) | one CPU is enough to save a dump and takes the least memory; CPUs that crashed are in no known state |
/// | `reset_devices` | drivers must not rely on the state that the crashed kernel left their devices in |
/// | `irqpoll` | interrupts that the crashed kernel's drivers left pending must not switch a line off |
/// | `acpi_no_memhotplug` (x86) | ACPI would hand hot-added memory of the crashed kernel to the capture kernel as its own |
/// | `noirqdistrib` (PowerPC) | interrupts go to the one CPU |
pub const DEFAULTS: &[&str] = crate::arch::CMDLINE_DEFAULTS;

/// Two ways to say how many CPUs there shall be.
const CPUS: [&str; 2] = ["nr_cpus", "maxcpus"];

/// Parameters of the running kernel that must not reach a capture kernel, with the reason.
pub const REMOVED: [(&str, &str); 26] = [
    ("BOOT_IMAGE", "names the kernel that the boot loader started, not this one"),
    ("initrd", "names the boot loader's file"),
    ("rdinit", "names a program of the running system's initramfs, not of the capture initramfs"),
    ("crashkernel", "the capture kernel lives in the reservation and has no memory to reserve"),
    ("elfcorehdr", "is added by the loader with the new address"),
    ("cma", "reserves memory that the capture kernel does not have"),
    ("hugetlb_cma", "reserves memory that the capture kernel does not have"),
    ("hugepages", "reserves memory that the capture kernel does not have"),
    ("hugepagesz", "belongs to hugepages"),
    ("default_hugepagesz", "belongs to hugepages"),
    ("mem", "limits memory by addresses of the running kernel"),
    ("memmap", "changes the memory map, which the loader makes"),
    ("memblock", "debugging of the running kernel's memory"),
    ("movablecore", "divides memory that the capture kernel does not have"),
    ("kernelcore", "divides memory that the capture kernel does not have"),
    ("memhp_default_state", "no memory is to be added to the capture kernel"),
    ("swiotlb", "sized for all of the machine's memory; the capture kernel's default fits it"),
    ("log_buf_len", "sized for the running kernel; costs the capture kernel memory"),
    ("transparent_hugepage", "costs the capture kernel memory"),
    ("nr_cpus", "set to 1, unless the appended text says otherwise"),
    ("maxcpus", "belongs to nr_cpus"),
    ("possible_cpus", "belongs to nr_cpus"),
    ("isolcpus", "speaks of CPUs that the capture kernel does not use"),
    ("nohz_full", "speaks of CPUs that the capture kernel does not use"),
    ("rcu_nocbs", "speaks of CPUs that the capture kernel does not use"),
    ("resume", "the disk's hibernation image must not be resumed from"),
];

/// The capture kernel's command line: `source` with what must go removed, plus the overrides and the [`DEFAULTS`]. It does
/// not hold `elfcorehdr=`, which the plan adds in front when it knows the address.
///
/// # Errors
/// A line that holds NUL or an open quote.
pub fn crash_cmdline(source: Source<'_>, overrides: &Overrides<'_>) -> Result<String, CmdlineError> {
    let (text, running) = match source {
        Source::Given(text) => (text, false),
        Source::Running(text) => (text, true),
    };
    let gone = |name: &str| {
        let listed = |removed: &str| same(name, removed);
        overrides.remove.iter().copied().any(listed)
            || (running && REMOVED.iter().any(|(removed, _)| listed(removed)))
    };
    let words = split(text)?;
    let (kernel, init) = halves(&words);
    let mut parts: Vec<&str> = kernel.iter().copied().filter(|word| !gone(name(word))).collect();
    let appended = split(overrides.append.unwrap_or_default())?;
    let (more, more_init) = halves(&appended);
    parts.extend(more);
    if !overrides.no_defaults {
        let said = |word: &str, default: &str| {
            same(word, default) || [word, default].iter().all(|name| CPUS.contains(name))
        };
        let missing = |default: &&str| !parts.iter().any(|word| said(name(word), name(default)));
        let defaults: Vec<&str> = DEFAULTS.iter().copied().filter(missing).collect();
        parts.extend(defaults);
    }
    // What is for init comes last: the kernel does not read behind `--`.
    if !init.is_empty() || !more_init.is_empty() {
        parts.push("--");
        parts.extend(init);
        parts.extend(more_init);
    }
    Ok(parts.join(" "))
}

/// The value of the last parameter `wanted`, as the kernel takes it; `Some("")` for one without a value.
pub fn value<'a>(line: &'a str, wanted: &str) -> Option<&'a str> {
    let words = split(line).ok()?;
    let (kernel, _) = halves(&words);
    let word = kernel.iter().rev().find(|word| same(name(word), wanted))?;
    let value = word.trim_matches('"').split_once('=').map_or("", |(_, value)| value);
    Some(value.trim_matches('"'))
}

/// Splits a line into its parameters, quotes left as they are.
fn split(line: &str) -> Result<Vec<&str>, CmdlineError> {
    if let Some(at) = line.find('\0') {
        return Err(CmdlineError::Nul(at));
    }
    let mut quoted = false;
    let words = line.split(|c: char| {
        quoted ^= c == '"';
        !quoted && c.is_ascii_whitespace()
    });
    let words = words.filter(|word| !word.is_empty()).collect();
    if quoted { Err(CmdlineError::OpenQuote(line.to_owned())) } else { Ok(words) }
}

/// What is for the kernel and, behind `--`, what is for init.
fn halves<'w, 'a>(words: &'w [&'a str]) -> (&'w [&'a str], &'w [&'a str]) {
    match words.iter().position(|word| *word == "--") {
        Some(at) => (&words[..at], &words[at + 1..]),
        None => (words, &[]),
    }
}

fn name(word: &str) -> &str {
    let bare = word.trim_start_matches('"');
    bare.split_once('=').map_or(bare, |(name, _)| name).trim_end_matches('"')
}

/// The kernel takes `-` and `_` in names for the same.
fn same(left: &str, right: &str) -> bool {
    let plain = |byte: u8| if byte == b'-' { b'_' } else { byte };
    left.len() == right.len() && left.bytes().zip(right.bytes()).all(|(l, r)| plain(l) == plain(r))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_come_out_as_they_should() {
        use Source::{Given, Running};
        let none = Overrides::default();
        // How many CPUs comes first.
        let (added, others) = (DEFAULTS.join(" "), DEFAULTS[1..].join(" "));
        let cases: &[(Source<'_>, Overrides<'_>, &str)] = &[
            (Given(""), none.clone(), &added),
            (Given("console=ttyS0"), none.clone(), &format!("console=ttyS0 {added}")),
            // The user's line is the user's, crashkernel= included.
            (Given("crashkernel=1G"), none.clone(), &format!("crashkernel=1G {added}")),
            (
                Running("BOOT_IMAGE=/vmlinuz root=UUID=1 ro crashkernel=256M,high crashkernel=72M,low quiet"),
                none.clone(),
                &format!("root=UUID=1 ro quiet {added}"),
            ),
            (Running("hugepagesz=1G hugepages=16 mem=4G x"), none.clone(), &format!("x {added}")),
            // Only whole names: memtest is not mem, cma_x is not cma.
            (Running("memtest=1 hugepages_x"), none.clone(), &format!("memtest=1 hugepages_x {added}")),
            // - and _ are the same to the kernel.
            (Running("log-buf-len=16M a"), none.clone(), &format!("a {added}")),
            // What the user says of a default counts.
            (Given("nr_cpus=4"), none.clone(), &format!("nr_cpus=4 {others}")),
            (Given("maxcpus=4"), none.clone(), &format!("maxcpus=4 {others}")),
            (
                Running("nr_cpus=64 a"),
                Overrides { append: Some("nr_cpus=2"), ..none.clone() },
                &format!("a nr_cpus=2 {others}"),
            ),
            (Given("a b"), Overrides { no_defaults: true, ..none.clone() }, "a b"),
            (
                Running("a b=1 c b"),
                Overrides { remove: &["b"], append: Some("d"), no_defaults: true },
                "a c d",
            ),
            // Quotes hold blanks together.
            (
                Running("a=\"x crashkernel=1\" crashkernel=\"2 3\" b"),
                Overrides { no_defaults: true, ..none.clone() },
                "a=\"x crashkernel=1\" b",
            ),
            // Nothing is added behind --, and nothing removed there.
            (Running("a -- single mem=1"), none.clone(), &format!("a {added} -- single mem=1")),
            (
                Given("a -- s"),
                Overrides { append: Some("b -- t"), no_defaults: true, ..none.clone() },
                "a b -- s t",
            ),
            (Given("  a \t b \n"), Overrides { no_defaults: true, ..none }, "a b"),
        ];
        for (source, overrides, expected) in cases {
            assert_eq!(
                crash_cmdline(*source, overrides).as_deref(),
                Ok(*expected),
                "{source:?} {overrides:?}"
            );
        }
    }

    #[test]
    fn lines_that_cannot_be_passed_are_refused() {
        let make = |line| crash_cmdline(Source::Given(line), &Overrides::default());
        assert_eq!(make("a\0b"), Err(CmdlineError::Nul(1)));
        assert_eq!(make("a=\"b c"), Err(CmdlineError::OpenQuote("a=\"b c".to_owned())));
    }

    #[test]
    fn values_are_found_as_the_kernel_takes_them() {
        assert_eq!(value("a=1 a=2", "a"), Some("2"));
        assert_eq!(value("quiet", "quiet"), Some(""));
        assert_eq!(value("a=\"x y\" b", "a"), Some("x y"));
        assert_eq!(value("\"a=x y\" b", "a"), Some("x y"));
        assert_eq!(value("b -- a=1", "a"), None);
    }

    proptest! {
        #[test]
        fn making_a_line_twice_changes_nothing(line in "[a-z_= \"-]{0,60}") {
            if let Ok(once) = crash_cmdline(Source::Running(&line), &Overrides::default()) {
                let twice = crash_cmdline(Source::Given(&once), &Overrides::default());
                prop_assert_eq!(twice, Ok(once));
            }
        }
    }
}
