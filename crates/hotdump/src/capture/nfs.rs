//! Mounts an export of an NFS server by mount(2) alone; mount.nfs(8) would only put the same words together.

use std::ffi::CString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::console::say;
use super::network::Network;
use super::remote::NfsExport;

/// NFS's port (RFC 7530, section 3.1).
const PORT: u16 = 2049;
/// Versions to try, the best first. 4.2 has nothing that a dump needs, and reads files with holes by a request of its own
/// (READ_PLUS), which NFS-Ganesha 4.3 answers so that Linux 6.12 reports an I/O error.
const VERSIONS: [&str; 3] = ["4.1", "4.0", "3"];
/// Errors by which server or kernel say that they do not do a version.
const OTHER_VERSION: [Errno; 4] = [Errno::PROTONOSUPPORT, Errno::INVAL, Errno::NOENT, Errno::NODEV];

/// Where the server listens: at the port that the options name, or at NFS's own.
pub(crate) fn address(network: &Network, options: &str) -> SocketAddr {
    let port = option(options, "port").and_then(|port| port.parse().ok()).unwrap_or(PORT);
    SocketAddr::new(network.server, port)
}

/// Mounts `export` at `place`, by the newest version that both sides do, or the one that `options` name.
///
/// # Errors
/// The system's error for the first version that was tried.
pub(crate) fn mount(export: &NfsExport, network: &Network, options: &str, place: &Path) -> io::Result<()> {
    std::fs::create_dir_all(place)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    let asked = ["vers", "nfsvers"].into_iter().find_map(|name| option(options, name));
    let versions = asked.map_or(VERSIONS.to_vec(), |version| vec![version]);
    let mut first = None;
    for version in versions {
        let data = CString::new(mount_data(network, version, options))?;
        match rustix::mount::mount(export.source(), place, "nfs", flags, Some(data.as_c_str())) {
            Ok(()) => {
                say!("mounted {} by NFS version {version}", export.source());
                return Ok(());
            }
            Err(error) => {
                first.get_or_insert(error);
                if !OTHER_VERSION.contains(&error) {
                    break;
                }
            }
        }
    }
    Err(first.unwrap_or(Errno::INVAL).into())
}

/// The mount's data (nfs(5)). A server that goes away ends in an error after a minute or two, not in a hang: `soft`.
fn mount_data(network: &Network, version: &str, options: &str) -> String {
    let server = network.server;
    let proto = if server.is_ipv4() { "tcp" } else { "tcp6" };
    let mut data = format!("vers={version},addr={server},proto={proto},soft,timeo=100,retrans=3");
    let own = network.addresses.iter().map(|prefix| prefix.address);
    let own = own.into_iter().find(|own: &IpAddr| own.is_ipv4() == server.is_ipv4());
    match own {
        _ if version == "3" => data += &format!(",nolock,mountproto={proto}"),
        Some(own) => data += &format!(",clientaddr={own}"),
        None => {}
    }
    if !options.is_empty() {
        // The last word counts where one is there twice.
        data = format!("{data},{options}");
    }
    data
}

/// The value of an option.
fn option<'a>(options: &'a str, name: &str) -> Option<&'a str> {
    options
        .split(',')
        .filter_map(|option| option.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|found| found.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(server: &str) -> Network {
        Network {
            mac: "52:54:00:12:34:56".into(),
            mtu: None,
            addresses: vec!["2001:db8::7/64".parse().unwrap(), "192.0.2.7/24".parse().unwrap()],
            gateway: None,
            server: server.parse().unwrap(),
            hostname: "web1".into(),
        }
    }

    #[test]
    fn the_mount_is_told_all_that_mount_nfs_would_find_out() {
        let v4 = network("192.0.2.1");
        let common = "addr=192.0.2.1,proto=tcp,soft,timeo=100,retrans=3";
        assert_eq!(mount_data(&v4, "4.2", ""), format!("vers=4.2,{common},clientaddr=192.0.2.7"));
        assert_eq!(
            mount_data(&v4, "3", "port=20490"),
            format!("vers=3,{common},nolock,mountproto=tcp,port=20490")
        );
        let v6 = mount_data(&network("2001:db8::1"), "4.1", "");
        assert!(v6.contains("addr=2001:db8::1,proto=tcp6") && v6.ends_with("clientaddr=2001:db8::7"), "{v6}");
    }

    #[test]
    fn the_port_is_the_options_or_nfs_s_own() {
        let network = network("192.0.2.1");
        for (options, port) in [("", 2049), ("ro,port=20490", 20490), ("mountport=7", 2049), ("port=x", 2049)]
        {
            assert_eq!(address(&network, options).port(), port, "{options}");
        }
        assert_eq!(option("hard,nfsvers=4.1", "nfsvers"), Some("4.1"));
    }
}
