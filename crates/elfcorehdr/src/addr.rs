//! Physical addresses and half-open ranges of them.

use core::fmt;

/// A physical address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// This address plus `bytes`; `None` past the end of the 64-bit address space.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Whether this address is a multiple of `align`; never for an `align` of 0.
    pub const fn is_aligned(self, align: u64) -> bool {
        matches!(self.0.checked_rem(align), Some(0))
    }
}

impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Hex, as everybody who reads an address wants it.
impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PhysAddr({:#x})", self.0)
    }
}

impl fmt::LowerHex for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// Physical memory from `start` up to, not including, `end`. `start <= end` always holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysRange {
    start: PhysAddr,
    end: PhysAddr,
}

impl PhysRange {
    /// `[start, end)`; `None` if `end` lies below `start`.
    pub const fn new(start: PhysAddr, end: PhysAddr) -> Option<Self> {
        if start.0 <= end.0 { Some(Self { start, end }) } else { None }
    }

    /// `len` bytes from `start`; `None` if they pass the end of the address space.
    pub const fn from_len(start: PhysAddr, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// `start` to `last`, both included, as the kernel's text files write ranges; `None` if `last` lies below
    /// `start` or is the very last 64-bit address.
    pub const fn from_inclusive(start: PhysAddr, last: PhysAddr) -> Option<Self> {
        match last.checked_add(1) {
            Some(end) if start.0 < end.0 => Some(Self { start, end }),
            _ => None,
        }
    }

    /// First address.
    pub const fn start(self) -> PhysAddr {
        self.start
    }

    /// First address past the range.
    pub const fn end(self) -> PhysAddr {
        self.end
    }

    /// Size in bytes.
    pub const fn len(self) -> u64 {
        self.end.0 - self.start.0
    }

    /// Whether it holds no address.
    pub const fn is_empty(self) -> bool {
        self.start.0 == self.end.0
    }

    /// Whether `addr` lies inside.
    pub const fn contains(self, addr: PhysAddr) -> bool {
        self.start.0 <= addr.0 && addr.0 < self.end.0
    }

    /// Whether all of `other` lies inside. An empty `other` lies inside anything.
    pub const fn contains_range(self, other: Self) -> bool {
        other.is_empty() || (self.start.0 <= other.start.0 && other.end.0 <= self.end.0)
    }

    /// Whether the two share an address.
    pub const fn overlaps(self, other: Self) -> bool {
        self.intersect(other).is_some()
    }

    /// What the two share; `None` if nothing.
    pub const fn intersect(self, other: Self) -> Option<Self> {
        let start = if self.start.0 > other.start.0 { self.start } else { other.start };
        let end = if self.end.0 < other.end.0 { self.end } else { other.end };
        if start.0 < end.0 { Some(Self { start, end }) } else { None }
    }

    /// `[start, at)` and `[at, end)`; `None` unless `at` lies strictly inside, so that neither part is empty.
    pub const fn split_at(self, at: PhysAddr) -> Option<(Self, Self)> {
        if self.start.0 < at.0 && at.0 < self.end.0 {
            Some((Self { start: self.start, end: at }, Self { start: at, end: self.end }))
        } else {
            None
        }
    }
}

impl fmt::Display for PhysRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

#[cfg(feature = "serde")]
mod as_text {
    //! JSON has no hex numbers and its readers lose bits above 2^53, so an address travels as `"0x..."`.

    use super::{PhysAddr, PhysRange};
    use core::fmt;
    use serde::de::{self, Deserialize, Deserializer, Visitor};
    use serde::ser::{Serialize, SerializeStruct, Serializer};

    impl Serialize for PhysAddr {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    struct HexVisitor;

    impl Visitor<'_> for HexVisitor {
        type Value = PhysAddr;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a physical address such as \"0x1000\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<PhysAddr, E> {
            text.strip_prefix("0x")
                .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                .map(PhysAddr)
                .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }

    impl<'de> Deserialize<'de> for PhysAddr {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_str(HexVisitor)
        }
    }

    impl Serialize for PhysRange {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut fields = serializer.serialize_struct("PhysRange", 2)?;
            fields.serialize_field("start", &self.start)?;
            fields.serialize_field("end", &self.end)?;
            fields.end()
        }
    }

    #[derive(serde::Deserialize)]
    struct Ends {
        start: PhysAddr,
        end: PhysAddr,
    }

    impl<'de> Deserialize<'de> for PhysRange {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let Ends { start, end } = Ends::deserialize(deserializer)?;
            PhysRange::new(start, end).ok_or_else(|| {
                de::Error::custom(format_args!("range ends at {end}, before its start {start}"))
            })
        }
    }
}
