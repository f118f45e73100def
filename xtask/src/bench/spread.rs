//! What several measurements of one thing say together.

use std::fmt;

use anyhow::{Result, ensure};

/// Nanoseconds of guest time for each instruction where the clock counts them: QEMU's `-icount shift=1`.
const NANOSECONDS: f64 = 2.0;

/// Times in nanoseconds of a clock that counts instructions, least first. Never empty.
#[derive(Clone, Debug)]
pub(super) struct Spread(Vec<u64>);

impl Spread {
    /// Of measurements in any order; an error if there are none.
    pub(super) fn of(mut nanoseconds: Vec<u64>) -> Result<Spread> {
        ensure!(!nanoseconds.is_empty(), "nothing was measured");
        nanoseconds.sort_unstable();
        Ok(Spread(nanoseconds))
    }

    /// The median, in nanoseconds.
    pub(super) fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).map_or(f64::NAN, |&median| median as f64)
    }

    /// The median's share of the other's.
    pub(super) fn share_of(&self, whole: &Spread) -> f64 {
        self.median() / whole.median()
    }

    /// The share as text: `1/85`, or `0` where nothing ran.
    pub(super) fn as_part_of(&self, whole: &Spread) -> String {
        match self.share_of(whole) {
            0.0 => "0".into(),
            share => format!("1/{}", grouped(1.0 / share, 0)),
        }
    }
}

/// Thousands of instructions: `655.1 (654.9 to 656.0)`, or one number where all are the same.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thousands = |nanoseconds: f64| grouped(nanoseconds / NANOSECONDS / 1000.0, 1);
        let ends =
            [self.0.first(), self.0.last()].map(|end| thousands(end.map_or(f64::NAN, |&end| end as f64)));
        f.write_str(&thousands(self.median()))?;
        match ends {
            [least, most] if least == most => Ok(()),
            [least, most] => write!(f, " ({least} to {most})"),
        }
    }
}

/// A number with commas between groups of three digits.
fn grouped(number: f64, places: usize) -> String {
    let text = format!("{number:.places$}");
    let (whole, part) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + part
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn spreads_read_well() {
        let native = Spread::of(vec![1_320_000, 1_310_200, 1_310_000]).unwrap();
        assert_eq!(native.to_string(), "655.1 (655.0 to 660.0)");
        let module = Spread::of(vec![10_000]).unwrap();
        assert_eq!(module.to_string(), "5.0");
        assert_eq!(module.as_part_of(&native), "1/131");
        let reload = Spread::of(vec![6_600_000_000]).unwrap();
        assert_eq!(reload.to_string(), "3,300,000.0");
        assert_eq!(module.as_part_of(&reload), "1/660,000");
        assert_eq!(Spread::of(vec![0]).unwrap().as_part_of(&native), "0");
        assert!(Spread::of(Vec::new()).is_err());
    }
}
