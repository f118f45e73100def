//! Progress lines.

use std::fmt::{self, Write as _};
use std::time::Instant;

/// Says what goes on in one scenario, with its name and the seconds since it began.
#[derive(Clone, Debug)]
pub struct Teller {
    name: String,
    start: Instant,
}

impl Teller {
    /// Starts the clock.
    pub fn new(name: &str) -> Teller {
        Teller { name: name.into(), start: Instant::now() }
    }

    /// Prints to standard error, every line with the scenario's name: others speak at the same time.
    pub fn say(&self, text: impl fmt::Display) {
        let mut lines = String::new();
        for line in text.to_string().lines() {
            // Writing to a string does not fail.
            let _ = writeln!(lines, "{:>18} {:6.1} s  {line}", self.name, self.start.elapsed().as_secs_f64());
        }
        eprint!("{lines}");
    }
}
