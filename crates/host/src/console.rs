//! The serial console.

/// A serial port that is reached by I/O instructions (x86: 8250 and its kin).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// First I/O port of its registers.
    pub io_port: u16,
}

/// Names of the serial ports that the kernel writes its messages to, from the text of `/proc/consoles`. A line there
/// is `ttyS0   -W- (EC p a)   4:64`; `E` marks a console that is enabled. The one that is `/dev/console` (`C`)
/// comes first.
pub(crate) fn serial_consoles(text: &str) -> Vec<&str> {
    let mut enabled: Vec<(bool, &str)> = text
        .lines()
        .filter_map(|line| {
            let name = line.split_whitespace().next().filter(|name| name.starts_with("ttyS"))?;
            let flags = line.split_once('(')?.1.split_once(')')?.0;
            flags.contains('E').then_some((!flags.contains('C'), name))
        })
        .collect();
    enabled.sort_by_key(|(secondary, _)| *secondary);
    enabled.into_iter().map(|(_, name)| name).collect()
}
