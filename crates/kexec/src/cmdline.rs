//! The capture kernel's command line.
//!
//! [`crash_cmdline`] makes one from the running kernel's, or takes the user's. Parameters are separated by blanks; double
//! quotes hold blanks together, as the kernel reads them (lib/cmdline.c, next_arg). What follows `--` is for init.

use elfcorehdr::PhysAddr;
use host::Host;
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
    /// Whether to leave out the [`DEFAULTS`], and [`SMALL_BOUNCE`] with them.
    pub no_defaults: bool,
    /// Whether devices reach all memory of the capture kernel: then it gets [`SMALL_BOUNCE`]. See [`bounces_little`].
    pub small_bounce: bool,
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

/// What a capture kernel gets on top of the [`DEFAULTS`] whose devices reach all of its memory: on x86 `swiotlb=4096`, which is
/// 8 MiB of bounce buffers (in slots of 2 KiB, include/linux/swiotlb.h). Kernels set 64 MiB aside where the machine has or may get
/// memory above 4 GiB (pci_swiotlb_detect), whatever the capture kernel itself has: that is half of a reservation of 128 MiB.
/// Nothing on PowerPC, where only secure guests have such buffers.
pub const SMALL_BOUNCE: &[&str] = crate::arch::SMALL_BOUNCE;

/// Bytes of bounce buffers that a capture kernel of this architecture sets aside; `small`: with [`SMALL_BOUNCE`].
pub const fn bounce_buffers(small: bool) -> u64 {
    crate::arch::bounce_buffers(small)
}

/// Whether few bounce buffers are enough for a capture kernel in this machine's reservation: all of it lies below 4 GiB, where devices with
/// 32 address bits reach, and no memory is encrypted. Where it is, or may be (the CPU says so: AMD's SME and SEV, Intel's TDX),
/// every transfer takes a bounce buffer, and the kernel knows best how many; as it does where the machine does not tell.
pub fn bounces_little(host: &Host) -> bool {
    const REACHED: PhysAddr = PhysAddr(1 << 32);
    let reached = matches!(host.reservations(), Ok(Some(found)) if found.main.end() <= REACHED);
    reached && matches!(host.may_encrypt_memory(), Ok(false))
}

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
    ("swiotlb", "sized for all of the machine's memory; the capture kernel gets its own"),
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
        let bounce = if overrides.small_bounce { SMALL_BOUNCE } else { &[] };
        let defaults: Vec<&str> = DEFAULTS.iter().chain(bounce).copied().filter(missing).collect();
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
    use std::fs;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_come_out_as_they_should() {
        use Source::{Given, Running};
        let none = Overrides::default();
        // How many CPUs comes first.
        let (added, others) = (DEFAULTS.join(" "), DEFAULTS[1..].join(" "));
        let bouncing = |line: &str| [&[line], DEFAULTS, SMALL_BOUNCE].concat().join(" ");
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
                Overrides { remove: &["b"], append: Some("d"), no_defaults: true, ..none.clone() },
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
            (Given("  a \t b \n"), Overrides { no_defaults: true, ..none.clone() }, "a b"),
            // Bounce buffers: the running kernel's number is for all of its memory, the user's word counts.
            (Running("swiotlb=262144 a"), Overrides { small_bounce: true, ..none.clone() }, &bouncing("a")),
            (
                Given("swiotlb=force"),
                Overrides { small_bounce: true, ..none.clone() },
                &format!("swiotlb=force {added}"),
            ),
            (Given("a"), Overrides { small_bounce: true, no_defaults: true, ..none }, "a"),
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
    fn few_bounce_buffers_are_for_reservations_that_devices_reach() {
        const LOW: &str = "00100000-7fffffff : System RAM\n  20000000-2fffffff : Crash kernel\n";
        const HIGH: &str = "100000000-27fffffff : System RAM\n  20f000000-27effffff : Crash kernel\n";
        const PLAIN: &str = "processor\t: 0\nflags\t\t: fpu sse2 sevenless\n";
        const EPYC: &str = "processor\t: 0\nflags\t\t: fpu sse2 sme sev sev_es\n";
        let cases = [
            (Some(LOW), Some(PLAIN), true),
            (Some(HIGH), Some(PLAIN), false),
            (Some(LOW), Some(EPYC), false),
            (Some("00100000-7fffffff : System RAM\n"), Some(PLAIN), false),
            (Some(LOW), None, false),
            (None, Some(PLAIN), false),
        ];
        for (iomem, cpuinfo, expected) in cases {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("proc")).unwrap();
            for (name, text) in [("iomem", iomem), ("cpuinfo", cpuinfo)] {
                if let Some(text) = text {
                    fs::write(dir.path().join("proc").join(name), text).unwrap();
                }
            }
            assert_eq!(bounces_little(&Host::at(dir.path())), expected, "{iomem:?} {cpuinfo:?}");
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
