//! Progress lines.

use std::fmt;
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

    /// Prints one line to standard error.
    pub fn say(&self, line: impl fmt::Display) {
        eprintln!("{:>18} {:6.1} s  {line}", self.name, self.start.elapsed().as_secs_f64());
    }
}
