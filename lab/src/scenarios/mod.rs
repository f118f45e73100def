//! The stories that must come true, in the order to run them in.

use anyhow::Result;

use crate::arch::Arch;
use crate::lab::Lab;

mod administrator;
mod burst;
mod contrast;
mod failures;
mod flips;
mod judged;
mod misuse;
mod module;
mod personality;
mod powerpc;
mod refusals;
mod road;
mod rounds;
mod sample;
mod service;
mod sleep;
mod stores;
mod storm;
mod targets;
mod truth;
mod watchdog;

/// A story that must come true.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name on the command line and of its directory.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// The architecture of its guests.
    pub arch: Arch,
    /// Whether its guests install our Debian packages.
    pub packages: bool,
    /// Lets it happen; takes the lab and the scenario's name.
    pub run: fn(&Lab, &str) -> Result<()>,
}

/// All that fit into the time of a test. What takes longest comes first, so that nothing is left running alone at the end.
pub fn all() -> Vec<Scenario> {
    [
        stores::ALL,
        module::ALL,
        service::ALL,
        burst::ALL,
        administrator::ALL,
        powerpc::ALL,
        contrast::ALL,
        misuse::ALL,
        storm::ALL,
        sleep::ALL,
        rounds::ALL,
        refusals::ALL,
        flips::ALL,
        personality::ALL,
        targets::ALL,
        truth::ALL,
        watchdog::ALL,
        judged::ALL,
        failures::ALL,
        road::ALL,
        sample::ALL,
    ]
    .concat()
}

/// Those that take longer, to be asked for by name.
pub fn long() -> Vec<Scenario> {
    [
        module::LONG,
        rounds::LONG,
        service::LONG,
        burst::LONG,
        administrator::LONG,
        powerpc::LONG,
        stores::LONG,
        contrast::LONG,
        storm::LONG,
        sleep::LONG,
        targets::LONG,
        truth::LONG,
        watchdog::LONG,
        judged::LONG,
        failures::LONG,
        road::LONG,
        sample::LONG,
    ]
    .concat()
}

/// The scenario of this name.
pub fn find(name: &str) -> Option<Scenario> {
    all().into_iter().chain(long()).find(|scenario| scenario.name == name)
}

/// Makes the table `ALL` of a module: each function that is a story, and what it shows. Those behind `; long:` take too long
/// for every day: they are in the table `LONG`. Guests are PCs if `on ARCH;` in front does not say what they are; `with packages;` says
/// that they install our packages.
macro_rules! scenarios {
    (on $arch:ident; $($rest:tt)*) => { scenarios! { @ $arch, false; $($rest)* } };
    (with packages; $($rest:tt)*) => { scenarios! { @ X86_64, true; $($rest)* } };
    (@ $arch:ident, $packages:literal; $($name:ident: $about:literal,)* $(; long: $($long:ident: $long_about:literal,)*)?) => {
        pub(super) const ALL: &[super::Scenario] = &[$(scenarios!(# $arch, $packages, $name, $about),)*];
        $(pub(super) const LONG: &[super::Scenario] = &[$(scenarios!(# $arch, $packages, $long, $long_about),)*];)?
    };
    (# $arch:ident, $packages:literal, $name:ident, $about:literal) => {
        super::Scenario {
            name: stringify!($name),
            about: $about,
            arch: crate::arch::Arch::$arch,
            packages: $packages,
            run: $name,
        }
    };
    ($($rest:tt)*) => { scenarios! { on X86_64; $($rest)* } };
}
use scenarios;
