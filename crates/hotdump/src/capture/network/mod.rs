//! The network of the capture kernel: one interface, told by its hardware address, with the addresses that the crashed kernel had.

pub(crate) mod netlink;

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::console::say;
use netlink::Netlink;

/// How often an interface is looked for.
const LOOK: Duration = Duration::from_millis(200);
/// How long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(5);
/// The least time between attempts.
const RETRY: Duration = Duration::from_secs(1);

/// An address and the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Prefix {
    /// The address.
    pub(crate) address: IpAddr,
    /// Bits that are the network's.
    pub(crate) length: u8,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            let (address, length) = (address.parse::<IpAddr>().ok()?, length.parse().ok()?);
            let most = if address.is_ipv4() { 32 } else { 128 };
            (length <= most).then_some(Self { address, length })
        };
        parse().ok_or_else(|| format!("\"{text}\" is no address with a prefix: write 192.0.2.7/24"))
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

/// The network as the capture kernel is to set it up. Written by `hotdump initramfs`, from what the running kernel has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Network {
    /// The interface's hardware address; names change from boot to boot.
    pub(crate) mac: String,
    /// The interface's MTU.
    pub(crate) mtu: Option<u32>,
    /// Its addresses; packets to the server are sent from the first.
    pub(crate) addresses: Vec<Prefix>,
    /// The router on the way to the server; none where it is on the same network.
    pub(crate) gateway: Option<IpAddr>,
    /// The server's address.
    pub(crate) server: IpAddr,
    /// The machine's name, by which an NFS server tells its clients apart.
    pub(crate) hostname: String,
}

/// Why the network, or the server behind it, is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// No interface has the address.
    #[error(
        "no network interface with the address {mac} came up within {seconds} s; interfaces here: {there}. Is its driver missing \
         from the initramfs (hotdump initramfs --add-module)?"
    )]
    Absent {
        /// The hardware address.
        mac: String,
        /// How long.
        seconds: u64,
        /// What there is.
        there: String,
    },
    /// The kernel refuses a step.
    #[error("cannot {what} on {interface}: {source}")]
    Step {
        /// What was tried.
        what: String,
        /// The interface's name.
        interface: String,
        /// The system's error.
        source: io::Error,
    },
    /// The server does not answer.
    #[error("{server} did not answer within {seconds} s: {source}")]
    Unreachable {
        /// Its address and port.
        server: SocketAddr,
        /// How long.
        seconds: u64,
        /// The error of the last attempt.
        source: io::Error,
    },
}

/// An interface of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Its name.
    pub(crate) name: String,
    /// Its number.
    pub(crate) index: u32,
    /// Its hardware address.
    pub(crate) mac: String,
    /// Whether hardware of its own is behind it: not so for bridges, bonds, VLANs and the like.
    pub(crate) is_device: bool,
}

/// The interfaces of this machine, by name. `root` is `/` but in tests.
pub(crate) fn interfaces(root: &Path) -> Vec<Interface> {
    let read = |entry: fs::DirEntry| {
        let text = |name: &str| Some(fs::read_to_string(entry.path().join(name)).ok()?.trim().to_owned());
        Some(Interface {
            name: entry.file_name().into_string().ok()?,
            index: text("ifindex")?.parse().ok()?,
            mac: text("address")?.to_ascii_lowercase(),
            is_device: entry.path().join("device").exists(),
        })
    };
    let entries = fs::read_dir(root.join("sys/class/net")).into_iter().flatten().flatten();
    let mut found: Vec<Interface> = entries.filter_map(read).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Brings the network up; `seconds` bound the wait for interface and cable together.
///
/// # Errors
/// [`NetworkError`].
pub(crate) fn bring_up(root: &Path, network: &Network, seconds: u64) -> Result<(), NetworkError> {
    // An NFS server would take two machines that are called "(none)" for one.
    if let Err(error) = rustix::system::sethostname(network.hostname.as_bytes()) {
        say!("cannot call this machine {}: {error}", network.hostname);
    }
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let interface = wait_for(root, &network.mac, deadline, seconds)?;
    let step = |what: String, outcome: io::Result<()>| {
        outcome.map_err(|source| NetworkError::Step { what, interface: interface.name.clone(), source })
    };
    let netlink = Netlink::open();
    let netlink = netlink.map_err(|source| NetworkError::Step {
        what: "open a netlink socket".into(),
        interface: interface.name.clone(),
        source,
    })?;
    step("bring the interface up".into(), netlink.set_up(interface.index, network.mtu))?;
    if !has_carrier(root, &interface.name, deadline) {
        say!("{} still has no carrier; going on", interface.name);
    }
    for prefix in &network.addresses {
        step(format!("set the address {prefix}"), netlink.add_address(interface.index, *prefix))?;
    }
    if let Some(gateway) = network.gateway {
        let routed = netlink.add_route(interface.index, network.server, gateway);
        step(format!("set the route to {} by {gateway}", network.server), routed)?;
    }
    let addresses: Vec<String> = network.addresses.iter().map(Prefix::to_string).collect();
    say!("network {} ({}) is up with {}", interface.name, interface.mac, addresses.join(", "));
    Ok(())
}

/// Waits until an interface with this hardware address is there.
fn wait_for(root: &Path, mac: &str, deadline: Instant, seconds: u64) -> Result<Interface, NetworkError> {
    loop {
        let mut there = interfaces(root);
        if let Some(at) = there.iter().position(|one| one.is_device && one.mac.eq_ignore_ascii_case(mac)) {
            return Ok(there.swap_remove(at));
        }
        if Instant::now() >= deadline {
            let there: Vec<_> = there.iter().map(|one| format!("{} ({})", one.name, one.mac)).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            return Err(NetworkError::Absent { mac: mac.to_owned(), seconds, there });
        }
        thread::sleep(LOOK);
    }
}

/// Waits until the interface has a carrier; whether it has.
fn has_carrier(root: &Path, name: &str, deadline: Instant) -> bool {
    let carrier = root.join("sys/class/net").join(name).join("carrier");
    loop {
        if fs::read_to_string(&carrier).is_ok_and(|text| text.trim() == "1") {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(LOOK);
    }
}

/// Connects to a port of the server to see that somebody answers there; tries again until `seconds` are over.
///
/// # Errors
/// [`NetworkError::Unreachable`].
pub(crate) fn reach(server: SocketAddr, seconds: u64) -> Result<(), NetworkError> {
    let began = Instant::now();
    loop {
        let tried = Instant::now();
        let Err(source) = TcpStream::connect_timeout(&server, CONNECT) else { return Ok(()) };
        if began.elapsed() >= Duration::from_secs(seconds) {
            return Err(NetworkError::Unreachable { server, seconds, source });
        }
        thread::sleep(RETRY.saturating_sub(tried.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, index, mac, device) in [
            ("eth0", "2", "52:54:00:12:34:56", true),
            ("br0", "3", "52:54:00:12:34:56", false),
            ("x", "", "", true),
        ] {
            let dir = root.path().join("sys/class/net").join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("ifindex"), index).unwrap();
            fs::write(dir.join("address"), format!("{mac}\n")).unwrap();
            if device {
                fs::create_dir(dir.join("device")).unwrap();
            }
        }
        root
    }

    #[test]
    fn an_interface_is_found_by_its_hardware_and_not_by_a_bridge_that_has_the_same_address() {
        let root = machine();
        let found = wait_for(root.path(), "52:54:00:12:34:56", Instant::now(), 0).unwrap();
        assert_eq!((found.name.as_str(), found.index), ("eth0", 2));
        let error = wait_for(root.path(), "02:00:00:00:00:01", Instant::now(), 0).unwrap_err().to_string();
        assert!(error.contains("02:00:00:00:00:01") && error.contains("br0 (52:54:00:12:34:56)"), "{error}");
        assert!(!has_carrier(root.path(), "eth0", Instant::now()));
        fs::write(root.path().join("sys/class/net/eth0/carrier"), "1\n").unwrap();
        assert!(has_carrier(root.path(), "eth0", Instant::now()));
    }

    #[test]
    fn prefixes() {
        for text in ["192.0.2.7/24", "2001:db8::7/64", "192.0.2.7/32"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        for text in ["192.0.2.7", "192.0.2.7/33", "2001:db8::7/129", "x/3", "192.0.2.7/x", ""] {
            text.parse::<Prefix>().unwrap_err();
        }
    }

    #[test]
    fn a_server_that_answers_is_reached_and_the_wait_for_another_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        reach(server, 0).unwrap();
        drop(listener);
        let error = reach(server, 0).unwrap_err().to_string();
        assert!(error.contains(&server.to_string()), "{error}");
    }
}
