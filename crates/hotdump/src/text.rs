//! How ranges and sizes are shown: the same words in every command.

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use elfcorehdr::PhysRange;
use serde::{Deserialize, Serialize};

/// A physical range in JSON: both addresses in hex, `end` not included, and the size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range(pub(crate) PhysRange);

impl From<PhysRange> for Range {
    fn from(range: PhysRange) -> Self {
        Self(range)
    }
}

impl Serialize for Range {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;

        let mut fields = serializer.serialize_struct("Range", 3)?;
        fields.serialize_field("start", &self.0.start().to_string())?;
        fields.serialize_field("end", &self.0.end().to_string())?;
        fields.serialize_field("size", &self.0.len())?;
        fields.end()
    }
}

impl Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.0, size(self.0.len()))
    }
}

/// Bytes in the largest binary unit that they reach, to one decimal where they are no whole number of it.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (name, shift) in UNITS {
        let unit = 1_u64 << shift;
        if bytes >= unit {
            let tenths = u128::from(bytes) * 10 / u128::from(unit);
            return match tenths % 10 {
                0 if bytes.is_multiple_of(unit) => format!("{} {name}", tenths / 10),
                tenth => format!("{}.{tenth} {name}", tenths / 10),
            };
        }
    }
    format!("{bytes} bytes")
}

/// An amount of bytes as people write it: `500M`, `2 GiB`, `4096`; units are binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Bytes(pub(crate) u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim_end_matches(|char: char| char.is_ascii_alphabetic() || char == ' ');
        let unit = text[number.len()..].trim().to_ascii_lowercase();
        let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
            "" => Some(0),
            "k" => Some(10),
            "m" => Some(20),
            "g" => Some(30),
            "t" => Some(40),
            _ => None,
        };
        let bytes =
            number.parse::<u64>().ok().zip(shift).and_then(|(number, shift)| number.checked_mul(1 << shift));
        bytes
            .map(Self)
            .ok_or_else(|| format!("\"{text}\" is no amount of bytes: write it as 4096, 500M or 2G"))
    }
}

impl TryFrom<String> for Bytes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        bytes.0.to_string()
    }
}

/// Nanoseconds in the largest unit that they reach, to one decimal where they are less than ten of it.
pub(crate) fn duration(nanoseconds: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];
    for (name, unit) in UNITS {
        if nanoseconds >= unit * 10 {
            return format!("{} {name}", nanoseconds / unit);
        }
        if nanoseconds >= unit {
            return format!("{}.{} {name}", nanoseconds / unit, nanoseconds % unit * 10 / unit);
        }
    }
    format!("{nanoseconds} ns")
}

/// A moment in seconds since 1970, as people read it.
pub(crate) fn moment(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| format!("{seconds} s after 1970"), |time| time.to_string())
}

/// How long ago that is, if it is not to come, in the largest unit of which it is at least two: `, 5 s ago`.
pub(crate) fn ago(seconds: u64) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(seconds));
    since.map_or_else(|_| String::new(), |since| format!(", {} ago", age(since.as_secs())))
}

fn age(seconds: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("days", 86_400), ("h", 3_600), ("min", 60)];
    let unit = UNITS.iter().find(|(_, unit)| seconds >= 2 * unit);
    unit.map_or_else(|| format!("{seconds} s"), |(name, unit)| format!("{} {name}", seconds / unit))
}

/// `count` with the noun that fits it: `1 range`, `2 ranges`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// Prints `text`, lines ended, on standard output.
///
/// # Errors
/// It could not be written. A reader that went away (`hotdump status | head -1`) has what it wanted.
pub(crate) fn print(text: impl Display) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.to_string().as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("writing to standard output")
        }
        _ => Ok(()),
    }
}

/// Lines of progress on standard error, not more often than a serial console takes without holding the work up.
pub(crate) struct Ticker {
    last: Instant,
}

/// A serial console of 9600 bits a second prints a line of progress in a tenth of a second.
const TICK: Duration = Duration::from_secs(2);

impl Ticker {
    /// One whose first line comes two seconds from now.
    pub(crate) fn new() -> Self {
        Self { last: Instant::now() }
    }

    /// Tells `line` when it is time for one.
    pub(crate) fn show(&mut self, line: impl FnOnce() -> String) {
        if self.last.elapsed() >= TICK {
            self.last = Instant::now();
            tell(format_args!("hotdump: {}", line()));
        }
    }
}

/// Prints `value` as JSON on standard output.
///
/// # Errors
/// As [`print()`].
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("writing JSON")?;
    print(format_args!("{text}\n"))
}

/// Prints a line on standard error. Where nobody listens there is nobody to tell, and no reason to stop half-way
/// through a load, as `eprintln!` would.
pub(crate) fn tell(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        for (nanoseconds, expected) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.0 us"),
            (9_999, "9.9 us"),
            (12_345, "12 us"),
            (1_310_000, "1.3 ms"),
            (99_000_000, "99 ms"),
            (2_500_000_000, "2.5 s"),
            (u64::MAX, "18446744073 s"),
        ] {
            assert_eq!(duration(nanoseconds), expected, "{nanoseconds}");
        }
        assert_eq!(moment(1_795_374_000), "2026-11-22T19:00:00Z");
        assert_eq!(moment(u64::MAX), format!("{} s after 1970", u64::MAX));
        assert_eq!(ago(u64::from(u32::MAX) * 4), "");
        assert!(ago(0).ends_with(" days ago"));
        for (seconds, shown) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7_199, "119 min"),
            (7_200, "2 h"),
            (172_800, "2 days"),
        ] {
            assert_eq!(age(seconds), shown);
        }
    }

    #[test]
    fn amounts_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("500M", Some(500 << 20)),
            ("2 GiB", Some(2 << 30)),
            ("1kb", Some(1024)),
            ("3T", Some(3 << 40)),
            ("", None),
            ("G", None),
            ("1.5G", None),
            ("-1", None),
            ("2X", None),
            ("99999999999T", None),
        ] {
            assert_eq!(text.parse::<Bytes>().ok(), bytes.map(Bytes), "{text}");
        }
    }

    #[test]
    fn sizes_read_well() {
        for (bytes, expected) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (128 << 20, "128 MiB"),
            ((1 << 30) + 1, "1.0 GiB"),
            (5 << 40, "5 TiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(size(bytes), expected, "{bytes}");
        }
    }
}
