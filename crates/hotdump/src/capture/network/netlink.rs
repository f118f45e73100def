//! What is asked of the kernel's network by netlink: a route, addresses, a link that is up.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::Prefix;

/// The way that packets to an address take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// The interface's number.
    pub(crate) interface: u32,
    /// The router; none where the address is on the interface's own network.
    pub(crate) gateway: Option<IpAddr>,
    /// The address that packets are sent from.
    pub(crate) source: Option<IpAddr>,
}

/// A netlink socket.
pub(crate) struct Netlink(Socket);

impl Netlink {
    /// Opens the socket.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// The way to `to`.
    ///
    /// # Errors
    /// The system's error; "network is unreachable" where there is none.
    pub(crate) fn route_to(&self, to: IpAddr) -> io::Result<Route> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(to);
        message.header.destination_prefix_length = whole(to);
        message.attributes.push(RouteAttribute::Destination(to.into()));
        let answers = self.ask(RouteNetlinkMessage::GetRoute(message), NLM_F_REQUEST)?;
        let found = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => read_route(&route),
            _ => None,
        });
        found.ok_or_else(|| io::Error::other("the kernel names no interface for the route"))
    }

    /// The addresses of an interface, with their prefixes; link-local ones and those that go out of use are left out.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn addresses(&self, interface: u32) -> io::Result<Vec<Prefix>> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.ask(request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let addresses = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(found) if found.header.index == interface => read_address(&found),
            _ => None,
        });
        Ok(addresses.collect())
    }

    /// Brings an interface up, with this MTU if one is given.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn set_up(&self, interface: u32, mtu: Option<u32>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = interface;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message.attributes.extend(mtu.map(LinkAttribute::Mtu));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Gives an interface an address. One that it has is fine.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn add_address(&self, interface: u32, prefix: Prefix) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(prefix.address);
        message.header.prefix_len = prefix.length;
        message.header.index = interface;
        // The crashed machine had the address: nobody else can.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes =
            vec![AddressAttribute::Local(prefix.address), AddressAttribute::Address(prefix.address)];
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE)
    }

    /// Adds a route to one address by a router on the interface's network. One that is there is fine.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn add_route(&self, interface: u32, to: IpAddr, gateway: IpAddr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(to);
        message.header.destination_prefix_length = whole(to);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        // Some networks give a machine an address whose prefix does not hold the router.
        message.header.flags = RouteFlags::Onlink;
        message.attributes = vec![
            RouteAttribute::Destination(to.into()),
            RouteAttribute::Gateway(gateway.into()),
            RouteAttribute::Oif(interface),
        ];
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE)
    }

    fn change(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        match self.ask(message, NLM_F_REQUEST | NLM_F_ACK | flags) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// Sends a request and reads all that is answered.
    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.0.recv_from_full()?;
            if read_answers(&bytes, flags & NLM_F_DUMP == NLM_F_DUMP, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// Reads the messages of one packet into `answers`; whether they are the last. A dump ends by a message of its own, anything else
/// after one.
fn read_answers(bytes: &[u8], dump: bool, answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
    let mut rest = bytes;
    let mut last = false;
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).next_multiple_of(4).max(16);
        rest = rest.get(length..).unwrap_or_default();
        match message.payload {
            NetlinkPayload::Done(_) => last = true,
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::Error(_) => last = true,
            NetlinkPayload::InnerMessage(answer) => {
                answers.push(answer);
                last |= !dump;
            }
            _ => {}
        }
    }
    Ok(last)
}

fn read_route(route: &RouteMessage) -> Option<Route> {
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    let mut found = Route { interface: 0, gateway: None, source: None };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(interface) => found.interface = *interface,
            RouteAttribute::Gateway(gateway) => found.gateway = address(gateway),
            RouteAttribute::PrefSource(source) => found.source = address(source),
            _ => {}
        }
    }
    (found.interface != 0).then_some(found)
}

fn read_address(message: &AddressMessage) -> Option<Prefix> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(found) => local = Some(*found),
            AddressAttribute::Address(found) => address = Some(*found),
            AddressAttribute::Flags(found) => flags = *found,
            _ => {}
        }
    }
    let useless = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    let useful = message.header.scope == AddressScope::Universe && !flags.intersects(useless);
    // On a link between two points "address" is the other end.
    let address = local.or(address).filter(|_| useful)?;
    Some(Prefix { address, length: message.header.prefix_len })
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// The length of a prefix that is one address.
fn whole(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The loopback interface is everywhere, and number 1.
    #[test]
    fn the_way_to_oneself_is_the_loopback_interface() {
        let netlink = Netlink::open().unwrap();
        let route = netlink.route_to("127.0.0.1".parse().unwrap()).unwrap();
        assert_eq!((route.interface, route.gateway), (1, None));
        assert_eq!(route.source, Some("127.0.0.1".parse().unwrap()));
        // Its addresses are of the host's scope, good for no other machine.
        assert_eq!(netlink.addresses(1).unwrap(), []);
        assert_eq!(netlink.addresses(u32::MAX).unwrap(), []);
    }

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        let netlink = Netlink::open().unwrap();
        netlink.set_up(0x7fff_fff0, None).unwrap_err();
        netlink.add_address(0x7fff_fff0, "192.0.2.1/24".parse().unwrap()).unwrap_err();
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200), length in 0u8..200) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = length;
            }
            let _ = read_answers(&bytes, true, &mut Vec::new());
        }
    }
}
