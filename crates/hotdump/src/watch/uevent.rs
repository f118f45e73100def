//! Events of the kernel's device model (uevents), as it sends them to whoever listens.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with, sockopt};

/// The multicast group that the kernel sends to; udev sends what it made of it to another.
const KERNEL_GROUP: u32 = 1;

/// Room for events that come while a reload runs: some thousands. More than that is an overrun, which is told.
const RECEIVE_BUFFER: usize = 4 << 20;

/// More than the kernel puts in one event (UEVENT_BUFFER_SIZE is 2 KiB, and the path is in front).
const LONGEST: usize = 16 << 10;

/// A socket that hears the kernel's uevents from the moment on at which it is opened.
#[derive(Debug)]
pub(super) struct Uevents {
    socket: OwnedFd,
}

/// What was heard at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Events after which the image is to be looked at.
    pub(super) events: usize,
    /// Whether others were lost: too many came while nobody listened.
    pub(super) overrun: bool,
}

impl Uevents {
    /// Opens the socket.
    ///
    /// # Errors
    /// The kernel has no such sockets, or forbids them.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        // Beyond the limit for everybody, where we may; a smaller buffer costs a reload too many, not an event.
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self { socket })
    }

    /// Takes all that has come, without waiting.
    ///
    /// # Errors
    /// The socket broke.
    pub(super) fn hear(&self) -> io::Result<Heard> {
        let mut heard = Heard::default();
        let mut message = vec![0; LONGEST];
        loop {
            match recvfrom(&self.socket, &mut message, RecvFlags::empty()) {
                Ok((_, length, Some(from))) => {
                    // The kernel's number is 0; what another process sends is nobody's event.
                    let is_kernels = SocketAddrNetlink::try_from(from).is_ok_and(|from| from.pid() == 0);
                    let message = message.get(..length).unwrap_or(&message);
                    heard.events += usize::from(is_kernels && matters(message));
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => heard.overrun = true,
                Err(Errno::AGAIN) => return Ok(heard),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whether an event may leave the crash image out of date, as in dist/98-hotdump.rules, or has another take care of it.
///
/// `message` is `ACTION@PATH`, then `NAME=VALUE`, each ended by a 0.
fn matters(message: &[u8]) -> bool {
    let value = |name: &str| {
        message
            .split(|byte| *byte == 0)
            .skip(1)
            .find_map(|field| field.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            .and_then(|value| std::str::from_utf8(value).ok())
    };
    let (Some(action), Some(subsystem)) = (value("ACTION"), value("SUBSYSTEM")) else { return false };
    // Replayed by `udevadm trigger`: nothing happened.
    if value("SYNTH_UUID").is_some() {
        return false;
    }
    match subsystem {
        // Memory is in /proc/iomem from add to remove, online or not.
        "memory" => matches!(action, "add" | "remove" | "online" | "offline"),
        // The notes of CPUs that go may stay.
        "cpu" => matches!(action, "add" | "online"),
        "misc" => match value(abi::UEVENT_STATE) {
            // The module let go of the image, and not because somebody loads or unloads.
            Some(abi::UEVENT_DISARMED) => value(abi::UEVENT_STALE) == Some("1"),
            // It follows one from now on: there may be nothing left to watch.
            Some(abi::UEVENT_ARMED) => true,
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn which_events_matter() {
        for (fields, expected) in [
            (
                &["add@/devices/system/memory/memory40", "ACTION=add", "SUBSYSTEM=memory", "SEQNUM=7"][..],
                true,
            ),
            (&["x", "ACTION=remove", "SUBSYSTEM=memory"], true),
            (&["x", "ACTION=online", "SUBSYSTEM=memory"], true),
            (&["x", "ACTION=offline", "SUBSYSTEM=memory"], true),
            (&["x", "ACTION=change", "SUBSYSTEM=memory"], false),
            (&["x", "ACTION=add", "SUBSYSTEM=memory", "SYNTH_UUID=0"], false),
            (&["x", "ACTION=add", "SUBSYSTEM=cpu"], true),
            (&["x", "ACTION=online", "SUBSYSTEM=cpu"], true),
            (&["x", "ACTION=offline", "SUBSYSTEM=cpu"], false),
            (&["x", "ACTION=remove", "SUBSYSTEM=cpu"], false),
            (&["x", "ACTION=change", "SUBSYSTEM=misc", "HOTDUMP=disarmed", "HOTDUMP_STALE=1"], true),
            (&["x", "ACTION=change", "SUBSYSTEM=misc", "HOTDUMP=disarmed", "HOTDUMP_STALE=0"], false),
            (&["x", "ACTION=change", "SUBSYSTEM=misc", "HOTDUMP=armed"], true),
            (&["x", "ACTION=change", "SUBSYSTEM=misc", "HOTDUMP=other"], false),
            (&["x", "ACTION=add", "SUBSYSTEM=misc"], false),
            (&["x", "ACTION=add", "SUBSYSTEM=block"], false),
            (&["x", "ACTION=add"], false),
            (&["ACTION=add", "SUBSYSTEM=memory"], false),
            (&["x", "ACTION=add", "XSUBSYSTEM=memory"], false),
            (&[""], false),
        ] {
            let message = fields.join("\0");
            assert_eq!(matters(message.as_bytes()), expected, "{fields:?}");
            assert_eq!(matters(format!("{message}\0").as_bytes()), expected, "{fields:?}");
        }
        assert!(!matters(b"x\0ACTION=\xff\0SUBSYSTEM=memory\0"));
    }

    proptest! {
        #[test]
        fn no_message_is_too_strange(message: Vec<u8>) {
            matters(&message);
        }
    }
}
