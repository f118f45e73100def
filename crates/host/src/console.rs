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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enabled_serial_ports_the_main_one_first() {
        let text = "\
tty0                 -WU (EC  p  )    4:7
ttyS2                -W- (    p a)    4:66
ttyS1                -W- (E   p a)    4:65
ttyS0                -W- (EC  p a)    4:64
netcon0              -W- (E     a)
hvc0                 -W- (E     a)  229:0
";
        assert_eq!(serial_consoles(text), ["ttyS0", "ttyS1"]);
        assert!(serial_consoles("").is_empty());
        assert!(serial_consoles("ttyS0 -W- EC\nttyS1 (E\nttyS2 )E(\n").is_empty());
    }
}
