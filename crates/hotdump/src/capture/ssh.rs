//! The way to a server by SSH: the system's own `ssh`, which knows its keys, ciphers and policies, and asks nothing.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::network::Network;
use super::remote::SshServer;

/// The name that the server's keys have in [`KNOWN_HOSTS`].
pub(crate) const ALIAS: &str = "hotdump-target";
/// The private key, inside the capture initramfs.
pub(crate) const KEY: &str = "/etc/hotdump/sshkey";
/// The server's keys, inside the capture initramfs: of no other host is anything taken.
pub(crate) const KNOWN_HOSTS: &str = "/etc/hotdump/known_hosts";

/// What `ssh` is told besides names: to ask nobody, trust only the keys that it is given, and end when the server is gone for a minute.
const OPTIONS: [&str; 10] = [
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "GlobalKnownHostsFile=/dev/null",
    "IdentitiesOnly=yes",
    "ConnectTimeout=20",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
    "ForwardAgent=no",
    "ForwardX11=no",
    "LogLevel=ERROR",
];

/// Where `ssh` finds what it knows us and the server by.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// The private key.
    pub(crate) key: PathBuf,
    /// The server's keys.
    pub(crate) known_hosts: PathBuf,
}

impl Credentials {
    /// As they lie in the capture initramfs.
    pub(crate) fn in_capture() -> Self {
        Self { key: KEY.into(), known_hosts: KNOWN_HOSTS.into() }
    }
}

/// Where the server listens.
pub(crate) fn address(network: &Network, server: &SshServer) -> SocketAddr {
    SocketAddr::new(network.server, server.port)
}

/// The command that opens a session for files. The key is named, never given.
pub(crate) fn command(program: &Path, server: &SshServer, network: &Network, with: &Credentials) -> Command {
    let mut command = Command::new(program);
    // No configuration of the machine's: it may name proxies, agents and hosts that are not there.
    command.args(["-F", "none", "-i"]).arg(&with.key);
    let known_hosts = format!("UserKnownHostsFile={}", with.known_hosts.display());
    let names = [known_hosts, format!("HostKeyAlias={ALIAS}")];
    for option in OPTIONS.iter().map(|option| (*option).to_owned()).chain(names) {
        command.args(["-o", &option]);
    }
    command.args(["-p", &server.port.to_string(), "-l", &server.user]);
    command.args(["-s", "--", &network.server.to_string(), "sftp"]);
    command
}
