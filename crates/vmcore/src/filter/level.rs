//! Dump levels: which pages may be left out.

use std::fmt;
use std::str::FromStr;

/// Which kinds of pages a dump may leave out, as makedumpfile's `-d` has it: a sum of powers of two, 0 (nothing) to 31 (all that can be).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct DumpLevel(u8);

/// What is no dump level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is no dump level: a number from 0 (all pages) to 31 (1 zero, 2 cache without private data, 4 all cache, 8 user, 16 free)"
)]
pub struct NoLevel(pub String);

impl DumpLevel {
    /// All pages.
    pub const ALL_PAGES: Self = Self(0);
    /// Pages of zeros.
    pub const ZERO: Self = Self(1);
    /// Pages of the page cache without private data (of a file system, as a rule).
    pub const CACHE: Self = Self(2);
    /// All pages of the page cache.
    pub const CACHE_PRIVATE: Self = Self(4);
    /// Pages of user processes: anonymous and hugetlb.
    pub const USER: Self = Self(8);
    /// Free pages.
    pub const FREE: Self = Self(16);
    /// All of these: what is left is the kernel's own.
    pub const KERNEL_ONLY: Self = Self(31);

    /// The level of this number.
    ///
    /// # Errors
    /// [`NoLevel`] above 31.
    pub fn new(number: u8) -> Result<Self, NoLevel> {
        if number <= 31 { Ok(Self(number)) } else { Err(NoLevel(number.to_string())) }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Whether all kinds of `other` are left out.
    #[must_use]
    pub const fn includes(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What both leave out.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is left out but for the kinds of this sum.
    pub(super) const fn without(self, kinds: u8) -> Self {
        Self(self.0 & !kinds)
    }

    /// What one of both leaves out.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromStr for DumpLevel {
    type Err = NoLevel;

    fn from_str(text: &str) -> Result<Self, NoLevel> {
        let number = text.parse().ok().and_then(|number| Self::new(number).ok());
        number.ok_or_else(|| NoLevel(text.to_owned()))
    }
}

impl fmt::Display for DumpLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
