//! Servers that take dumps: how they are named.

use std::fmt;
use std::str::FromStr;

/// A directory that a server exports by NFS: `nfs:SERVER:/EXPORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NfsExport {
    /// The server's name or address, without brackets.
    pub(crate) server: String,
    /// The exported directory.
    pub(crate) directory: String,
}

impl NfsExport {
    /// The source of the mount, as mount(8) shows it: `SERVER:/EXPORT`.
    pub(crate) fn source(&self) -> String {
        format!("{}:{}", bracketed(&self.server), self.directory)
    }
}

impl fmt::Display for NfsExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nfs:{}", self.source())
    }
}

impl FromStr for NfsExport {
    type Err = String;

    /// Parses what comes behind `nfs:`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"nfs:{text}\" names no export: write nfs:SERVER:/DIRECTORY");
        let (server, directory) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once("]:"),
            None => text.split_once(':'),
        }
        .ok_or_else(wrong)?;
        let fine = is_host(server) && directory.starts_with('/') && !directory.chars().any(char::is_control);
        fine.then(|| Self { server: server.to_owned(), directory: directory.to_owned() }).ok_or_else(wrong)
    }
}

/// An account on a server that takes files by SSH: `ssh://USER@SERVER[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SshServer {
    /// The account.
    pub(crate) user: String,
    /// The server's name or address, without brackets.
    pub(crate) server: String,
    /// Where it listens.
    pub(crate) port: u16,
}

impl SshServer {
    /// The name that known_hosts has it under.
    pub(crate) fn known_as(&self) -> String {
        if self.port == SSH_PORT { self.server.clone() } else { format!("[{}]:{}", self.server, self.port) }
    }
}

/// SSH's port (RFC 4253, section 4.1).
const SSH_PORT: u16 = 22;

impl fmt::Display for SshServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ssh://{}@{}", self.user, bracketed(&self.server))?;
        if self.port == SSH_PORT { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl FromStr for SshServer {
    type Err = String;

    /// Parses what comes behind `ssh://`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"ssh://{text}\" names no account: write ssh://USER@SERVER[:PORT]; the directory is given by itself (path)"
            )
        };
        let (user, rest) = text.split_once('@').ok_or_else(wrong)?;
        let (server, port) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']').map(|(server, port)| (server, port.strip_prefix(':'))),
            None => Some(rest.split_once(':').map_or((rest, None), |(server, port)| (server, Some(port)))),
        }
        .ok_or_else(wrong)?;
        let port = port
            .map_or(Some(SSH_PORT), |port| port.parse().ok())
            .filter(|port| *port > 0)
            .ok_or_else(wrong)?;
        if !is_host(server) || !is_host(user) || user.contains(':') {
            return Err(wrong());
        }
        Ok(Self { user: user.to_owned(), server: server.to_owned(), port })
    }
}

/// An IPv6 address in brackets, anything else as it is.
pub(crate) fn bracketed(server: &str) -> String {
    if server.contains(':') { format!("[{server}]") } else { server.to_owned() }
}

/// Whether `text` can be a host's name or address. It never looks like an option of a program.
fn is_host(text: &str) -> bool {
    let fine = |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '-' | '_' | ':');
    !text.is_empty() && !text.starts_with('-') && text.chars().all(fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts() {
        for (text, user, server, port) in [
            ("kdump@vault", "kdump", "vault", 22),
            ("kdump@192.0.2.1:2222", "kdump", "192.0.2.1", 2222),
            ("kdump@[2001:db8::1]:2222", "kdump", "2001:db8::1", 2222),
            ("kdump@[2001:db8::1]", "kdump", "2001:db8::1", 22),
        ] {
            let account: SshServer = text.parse().unwrap();
            assert_eq!((account.user.as_str(), account.server.as_str(), account.port), (user, server, port));
            assert_eq!(account.to_string(), format!("ssh://{text}"));
        }
        for text in [
            "",
            "vault",
            "@vault",
            "kdump@",
            "-l@vault",
            "kdump@-oProxyCommand=x",
            "kdump@vault/crash",
            "kdump@vault:0",
            "a b@c",
            "kdump@[::1",
        ] {
            text.parse::<SshServer>().unwrap_err();
        }
    }

    #[test]
    fn exports() {
        for (text, server, directory) in [
            ("server:/export", "server", "/export"),
            ("192.0.2.1:/srv/crash:old", "192.0.2.1", "/srv/crash:old"),
            ("[2001:db8::1]:/", "2001:db8::1", "/"),
        ] {
            let export: NfsExport = text.parse().unwrap();
            assert_eq!((export.server.as_str(), export.directory.as_str()), (server, directory));
            assert_eq!(export.source(), text);
        }
        for text in
            ["", "server", "server:", "server:export", ":/x", "-o:/x", "a b:/x", "a:/x\n", "[2001:db8::1:/x"]
        {
            text.parse::<NfsExport>().unwrap_err();
        }
    }
}
