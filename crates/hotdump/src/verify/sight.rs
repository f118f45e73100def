//! Reads the crash header in force: out of the kernel's memory where that can be had, else through the kernel module.

use elfcorehdr::{PhysAddr, PhysRange};
use host::{Host, HostError, Kcore};
use kexec::{Module, ModuleError};
use serde::Serialize;

use super::locate::{self, Found, Headers, ImagePointer};
use crate::text::Range;

/// How a header was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// Out of the kernel's memory, by its own list of segments.
    Kcore,
    /// Through the module's device: the header that it follows.
    Module,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kcore => "read from /proc/kcore",
            Self::Module => "read through the kernel module",
        })
    }
}

/// Headers, and how they were read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) headers: Headers,
    pub(crate) source: Source,
    /// What the two ways do not agree on.
    pub(crate) problem: Option<String>,
}

/// Looks for the headers in the reservation that images are loaded to. `armed` is what the module says while it follows
/// an image; `search` is for [`locate::headers`].
///
/// # Errors
/// Why neither way shows anything.
pub(crate) fn look(
    host: &Host,
    kcore: Result<&Kcore, &HostError>,
    reservation: PhysRange,
    armed: Option<&abi::Status>,
    search: bool,
) -> Result<Sight, String> {
    let by_kcore = match kcore {
        Ok(kcore) => by_kcore(host, kcore, reservation, search).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let followed = armed.and_then(place);
    settle(by_kcore, followed, |place| {
        let bytes = Module::open()?.ok_or(ModuleError::NotThere)?.header()?;
        Ok(Found { range: place, bytes })
    })
}

/// The device trees of the loaded image, out of the kernel's memory: the one in force where the module tells which that is.
/// None on machines whose kernels take none, and where the list of what is loaded cannot be read.
pub(crate) fn trees(
    host: &Host,
    kcore: &Kcore,
    reservation: PhysRange,
    armed: Option<&abi::Status>,
) -> Result<Vec<Vec<u8>>, HostError> {
    let in_force = armed.map(|status| PhysAddr(status.tree)).filter(|tree| tree.0 != 0);
    match ImagePointer::of(host, kcore)? {
        Some(pointer) => locate::trees(kcore, pointer, reservation, in_force),
        None => Ok(Vec::new()),
    }
}

/// Where the loaded image's segments lie; none where the kernel's list of them cannot be read.
pub(crate) fn segments(
    host: &Host,
    kcore: &Kcore,
    reservation: PhysRange,
) -> Result<Option<Vec<PhysRange>>, HostError> {
    match ImagePointer::of(host, kcore)? {
        Some(pointer) => locate::segments(kcore, pointer, reservation),
        None => Ok(None),
    }
}

impl Sight {
    /// The header in force, if it is known which one that is.
    pub(crate) fn in_force(&self) -> Option<&Found> {
        match &self.headers {
            Headers::InForce(found) => Some(found),
            Headers::NoneInForce | Headers::Candidates(_) => None,
        }
    }
}

/// Where the header is that the module follows.
fn place(status: &abi::Status) -> Option<PhysRange> {
    PhysRange::new(PhysAddr(status.header.start), PhysAddr(status.header.end))
}

fn by_kcore(host: &Host, kcore: &Kcore, reservation: PhysRange, search: bool) -> Result<Headers, HostError> {
    locate::headers(kcore, ImagePointer::of(host, kcore)?, reservation, search)
}

/// The better of two ways to see the header. The kernel's own list is the truth; where it cannot be read, the module
/// has the one in force, since it lets go before another image comes.
fn settle(
    by_kcore: Result<Headers, String>,
    followed: Option<PhysRange>,
    by_module: impl FnOnce(PhysRange) -> Result<Found, ModuleError>,
) -> Result<Sight, String> {
    let seen = |headers, source, problem| Ok(Sight { headers, source, problem });
    match (by_kcore, followed) {
        (Ok(headers @ (Headers::InForce(_) | Headers::NoneInForce)), followed) => {
            let problem = followed.and_then(|place| disagreement(&headers, place));
            seen(headers, Source::Kcore, problem)
        }
        (Ok(headers @ Headers::Candidates(_)), Some(place)) => match by_module(place) {
            Ok(found) => seen(Headers::InForce(found), Source::Module, None),
            Err(_) => seen(headers, Source::Kcore, None),
        },
        (Ok(headers), None) => seen(headers, Source::Kcore, None),
        (Err(error), Some(place)) => match by_module(place) {
            Ok(found) => seen(Headers::InForce(found), Source::Module, None),
            Err(module) => Err(format!("{error}; {module}")),
        },
        (Err(error), None) => Err(error),
    }
}

fn disagreement(headers: &Headers, followed: PhysRange) -> Option<String> {
    let followed_at = followed.start();
    match headers {
        Headers::InForce(found) if found.range.start() == followed_at => None,
        Headers::InForce(found) => Some(format!(
            "the kernel module follows a header at {followed_at}, the loaded image's is at {}: load again",
            found.range.start()
        )),
        _ => Some(format!(
            "the kernel module follows a header in {}, the loaded image has none: load again",
            Range(followed)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn found(at: u64) -> Found {
        let range = PhysRange::from_len(PhysAddr(at), 0x1000).unwrap();
        Found { range, bytes: sample::header(0x1000_0000) }
    }

    fn refused() -> ModuleError {
        ModuleError::NotThere
    }

    /// What is seen: the header's place and the source, and a part of the problem or the error.
    type Seen = (Option<(u64, Source)>, &'static str);

    #[test]
    fn the_kernel_s_list_is_preferred_and_the_module_helps_where_it_is_hidden() {
        const HERE: u64 = 0x3000_0000;
        const THERE: u64 = 0x3800_0000;
        let in_force = || Ok(Headers::InForce(found(HERE)));
        let hidden = || Ok(Headers::Candidates(vec![found(THERE), found(HERE)]));
        let closed = || Err("cannot read /proc/kcore: Operation not permitted".to_owned());
        type Case = (&'static str, Result<Headers, String>, Option<u64>, bool, Seen);
        let cases: Vec<Case> = vec![
            ("no module", in_force(), None, true, (Some((HERE, Source::Kcore)), "")),
            ("both agree", in_force(), Some(HERE), true, (Some((HERE, Source::Kcore)), "")),
            (
                "they do not",
                in_force(),
                Some(THERE),
                true,
                (
                    Some((HERE, Source::Kcore)),
                    "follows a header at 0x38000000, the loaded image's is at 0x30000000",
                ),
            ),
            (
                "nothing to follow",
                Ok(Headers::NoneInForce),
                Some(HERE),
                true,
                (None, "the loaded image has none"),
            ),
            ("addresses hidden", hidden(), Some(HERE), true, (Some((HERE, Source::Module)), "")),
            ("addresses hidden, let go just now", hidden(), Some(HERE), false, (None, "")),
            ("addresses hidden, no module", hidden(), None, true, (None, "")),
            ("no kcore", closed(), Some(HERE), true, (Some((HERE, Source::Module)), "")),
            (
                "no kcore, let go just now",
                closed(),
                Some(HERE),
                false,
                (None, "not permitted; the kernel module is not"),
            ),
            ("no kcore, no module", closed(), None, true, (None, "Operation not permitted")),
        ];
        for (what, by_kcore, followed, readable, (expected, text)) in cases {
            let followed = followed.map(|at| found(at).range);
            let by_module = |place: PhysRange| {
                if readable { Ok(found(place.start().0)) } else { Err(refused()) }
            };
            let (sight, told) = match settle(by_kcore, followed, by_module) {
                Ok(sight) => {
                    let at = sight.in_force().map(|found| (found.range.start().0, sight.source));
                    (at, sight.problem.unwrap_or_default())
                }
                Err(error) => (None, error),
            };
            assert_eq!(sight, expected, "{what}");
            assert!(told.contains(text) && told.is_empty() == text.is_empty(), "{what}: {told}");
        }
    }
}
