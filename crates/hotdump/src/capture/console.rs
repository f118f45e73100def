//! Lines on the console, fit for a serial one.

use std::fmt;
use std::time::Duration;

use vmcore::Progress;

use crate::text::size;

/// Prints a line on the console.
macro_rules! say {
    ($($arg:tt)*) => { $crate::capture::console::print_line(format_args!($($arg)*)) };
}
pub(crate) use say;

/// A console that went away is no reason to stop saving.
pub(crate) fn print_line(line: fmt::Arguments<'_>) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "hotdump: {line}");
}

/// Progress as people read it: percent, amounts, rate, time left.
pub(crate) fn progress_line(progress: &Progress) -> String {
    let percent = progress.done.saturating_mul(100).checked_div(progress.total).unwrap_or(100);
    let left = match progress.left() {
        Some(left) if progress.done < progress.total => format!(", {} left", duration(left)),
        _ => String::new(),
    };
    format!(
        "{percent:3} % ({} of {}), {}/s{left}",
        size(progress.done),
        size(progress.total),
        size(progress.rate())
    )
}

/// A time as `12 s`, `3 min 05 s` or `2 h 03 min`.
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_well() {
        for (done, total, seconds, want) in [
            (0, 1 << 30, 0, "  0 % (0 bytes of 1 GiB), 0 bytes/s"),
            (256 << 20, 1 << 30, 4, " 25 % (256 MiB of 1 GiB), 64 MiB/s, 12 s left"),
            (1 << 30, 1 << 30, 8, "100 % (1 GiB of 1 GiB), 128 MiB/s"),
            (1 << 30, 1 << 42, 1, "  0 % (1 GiB of 4 TiB), 1 GiB/s, 1 h 08 min left"),
            (1 << 20, 200 << 20, 1, "  0 % (1 MiB of 200 MiB), 1 MiB/s, 3 min 19 s left"),
            (0, 0, 0, "100 % (0 bytes of 0 bytes), 0 bytes/s"),
        ] {
            let progress = Progress { done, total, elapsed: Duration::from_secs(seconds) };
            assert_eq!(progress_line(&progress), want);
            let line = format!("hotdump: phase 2 of 3: {want}");
            assert!(line.len() <= crate::screen::WIDTH, "{line}");
        }
    }
}
