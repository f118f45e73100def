//! The way from the running machine to the server that takes the dump.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use crate::capture::network::netlink::{Netlink, Route};
use crate::capture::network::{Interface, Network, Prefix, interfaces};

/// An Ethernet interface's type in sysfs (ARPHRD_ETHER).
const ETHERNET: &str = "1";

/// Why the capture kernel could not reach the server.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServerError {
    /// Its name means nothing.
    #[error("cannot find the address of the server {server}: {source}")]
    Name {
        /// The server.
        server: String,
        /// The resolver's error.
        source: io::Error,
    },
    /// Only good on one link, and links are not numbered alike in two kernels.
    #[error(
        "the server {server} has the link-local address {address}: name it by an address that is good everywhere"
    )]
    LinkLocal {
        /// The server.
        server: String,
        /// Its address.
        address: IpAddr,
    },
    /// The kernel knows no way, or does not tell.
    #[error("cannot find the way to the server {server} ({address}): {source}")]
    Route {
        /// The server.
        server: String,
        /// Its address.
        address: IpAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The way leads over an interface that takes more to set up.
    #[error(
        "the way to the server {server} ({address}) leads over {interface}, a {kind} interface, which the capture kernel does not \
         set up: choose a server behind a plain Ethernet interface, or run `hotdump capture` from your distribution's initramfs"
    )]
    Interface {
        /// The server.
        server: String,
        /// Its address.
        address: IpAddr,
        /// The interface's name.
        interface: String,
        /// What it is.
        kind: String,
    },
    /// No address to send from.
    #[error(
        "{interface}, over which the way to the server {server} ({address}) leads, has no address of that kind"
    )]
    NoAddress {
        /// The server.
        server: String,
        /// Its address.
        address: IpAddr,
        /// The interface's name.
        interface: String,
    },
}

/// The network on the way to `server`, and the interface's name. `hostname` is this machine's name.
pub(super) fn find(server: &str, hostname: &str) -> Result<(Network, String), ServerError> {
    let address = resolve(server)?;
    let no_way = |source| ServerError::Route { server: server.to_owned(), address, source };
    let netlink = Netlink::open().map_err(no_way)?;
    let route = netlink.route_to(address).map_err(no_way)?;
    let root = Path::new("/");
    let there = interfaces(root).into_iter().find(|one| one.index == route.interface);
    let interface = there.ok_or_else(|| no_way(io::Error::other("its interface is gone")))?;
    if let Some(kind) = other_kind(root, &interface) {
        let interface = interface.name;
        return Err(ServerError::Interface { server: server.to_owned(), address, interface, kind });
    }
    let addresses = sorted(netlink.addresses(route.interface).map_err(no_way)?, address, &route);
    if addresses.is_empty() {
        let interface = interface.name;
        return Err(ServerError::NoAddress { server: server.to_owned(), address, interface });
    }
    let mtu = fs::read_to_string(root.join("sys/class/net").join(&interface.name).join("mtu"));
    let network = Network {
        mac: interface.mac,
        mtu: mtu.ok().and_then(|text| text.trim().parse().ok()),
        addresses,
        gateway: route.gateway,
        server: address,
        hostname: hostname.to_owned(),
    };
    Ok((network, interface.name))
}

fn resolve(server: &str) -> Result<IpAddr, ServerError> {
    let failed = |source| ServerError::Name { server: server.to_owned(), source };
    let first = match server.parse() {
        Ok(address) => address,
        Err(_) => look_up(server).map_err(failed)?,
    };
    let link_local = match first {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if link_local {
        return Err(ServerError::LinkLocal { server: server.to_owned(), address: first });
    }
    Ok(first)
}

/// Asks the system for a name's first address. A static program cannot ask itself all that nsswitch.conf may name: it would have to
/// load libraries.
fn look_up(server: &str) -> io::Result<IpAddr> {
    let answer = Command::new("getent").args(["ahosts", server]).output()?;
    let text = String::from_utf8_lossy(&answer.stdout);
    let first = text.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
    first.ok_or_else(|| io::Error::other(format!("`getent ahosts {server}` names none ({})", answer.status)))
}

/// What an interface is, where it is not plain Ethernet hardware.
fn other_kind(root: &Path, interface: &Interface) -> Option<String> {
    let dir = root.join("sys/class/net").join(&interface.name);
    let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    let uevent = text("uevent");
    // The kernel says vlan, bond, bridge, wlan...; nothing of plain Ethernet.
    if let Some(kind) = uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE=")) {
        return Some(kind.to_owned());
    }
    if text("type").trim() != ETHERNET {
        return Some(if interface.name == "lo" { "loopback" } else { "non-Ethernet" }.to_owned());
    }
    (!interface.is_device).then(|| "virtual".to_owned())
}

/// The addresses of the server's kind, the one that packets to it are sent from first.
fn sorted(mut addresses: Vec<Prefix>, server: IpAddr, route: &Route) -> Vec<Prefix> {
    addresses.retain(|prefix| prefix.address.is_ipv4() == server.is_ipv4());
    addresses.sort_by_key(|prefix| Some(prefix.address) != route.source);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_that_the_capture_kernel_cannot_go_are_refused_by_name() {
        for (server, want) in [
            ("127.0.0.1", "loopback"),
            ("169.254.1.1", "link-local"),
            ("no-such-host.invalid", "no-such-host.invalid"),
        ] {
            let error = find(server, "web1").unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn only_plain_ethernet_will_do() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("sys/class/net/x0");
        fs::create_dir_all(&dir).unwrap();
        for (uevent, kind, is_device, want) in [
            ("INTERFACE=x0\n", "1\n", true, None),
            ("DEVTYPE=vlan\nINTERFACE=x0\n", "1\n", false, Some("vlan")),
            ("DEVTYPE=bond\n", "1\n", false, Some("bond")),
            ("", "1\n", false, Some("virtual")),
            ("", "512\n", true, Some("non-Ethernet")),
        ] {
            fs::write(dir.join("uevent"), uevent).unwrap();
            fs::write(dir.join("type"), kind).unwrap();
            let interface = Interface { name: "x0".into(), index: 2, mac: String::new(), is_device };
            assert_eq!(other_kind(root.path(), &interface).as_deref(), want, "{uevent}");
        }
    }

    #[test]
    fn the_address_to_send_from_comes_first() {
        let addresses = ["192.0.2.7/24", "2001:db8::7/64", "192.0.2.8/24"].map(|text| text.parse().unwrap());
        let source = Some("192.0.2.8".parse().unwrap());
        let route = Route { interface: 2, gateway: None, source };
        let sorted = sorted(addresses.to_vec(), "198.51.100.1".parse().unwrap(), &route);
        assert_eq!(
            sorted.iter().map(Prefix::to_string).collect::<Vec<_>>(),
            ["192.0.2.8/24", "192.0.2.7/24"]
        );
    }
}
