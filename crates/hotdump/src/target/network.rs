//! The steps to a server.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::check::{MOUNT_POINT, Mounted, in_words, space, write};
use super::{Outcome, Steps, probe};
use crate::capture::network::{self, Network};
use crate::capture::remote::{NfsExport, SshServer};
use crate::capture::ssh::{self, Credentials};
use crate::capture::{CHECK_STAGE, Config, Place, Sftp, nfs};
use crate::prepared::Prepared;
use crate::scratch::Scratch;

/// How long the server may take to answer: it is up, or it is not.
const PATIENCE: u64 = 5;

/// Is the way to the server as it was when the initramfs was written?
pub(super) fn same_way(then: &Network, now: &Network, steps: &mut Steps) {
    let changes = [
        ("the server's address", then.server.to_string(), now.server.to_string()),
        ("the interface", then.mac.clone(), now.mac.clone()),
        ("its addresses", listed(then), listed(now)),
        ("the router", routed(then), routed(now)),
    ];
    let changed: Vec<String> = changes
        .iter()
        .filter(|(_, then, now)| !then.eq_ignore_ascii_case(now))
        .map(|(what, then, now)| format!("{what}: {then} then, {now} now"))
        .collect();
    if changed.is_empty() {
        let way = format!("{} by {} with {}", then.server, then.mac, listed(then));
        steps.note("way", Outcome::Done, way);
    } else {
        steps.note("way", Outcome::Failed, format!("write the initramfs again: {}", changed.join("; ")));
    }
}

fn listed(network: &Network) -> String {
    network.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn routed(network: &Network) -> String {
    network.gateway.map_or_else(|| "none".to_owned(), |gateway| gateway.to_string())
}

/// An NFS server.
pub(super) fn nfs(export: &NfsExport, config: &Config, steps: &mut Steps) {
    let Some(mounted) = mount(export, config, steps) else { return };
    write(Path::new(MOUNT_POINT), &config.path, Some(config), steps);
    drop(mounted);
}

/// Mounts what an NFS server exports at [`MOUNT_POINT`].
pub(super) fn mount(export: &NfsExport, config: &Config, steps: &mut Steps) -> Option<Mounted> {
    let network = reach(config, |network| nfs::address(network, &config.nfs_options), steps)?;
    let mounted = nfs::mount(export, network, &config.nfs_options, Path::new(MOUNT_POINT)).map(|()| Mounted);
    steps.take("mount", mounted, |_| format!("mounted {}", export.source()))
}

/// A server that takes files by SSH.
pub(super) fn ssh(server: &SshServer, initramfs: &Path, prepared: &Prepared, steps: &mut Steps) {
    let config = &prepared.config;
    let Some((session, stage)) = log_in(server, initramfs, prepared, steps) else { return };
    let place = Place::create(stage.path(), &config.path, jiff::Timestamp::now())
        .and_then(|place| place.send_to(session));
    let Some(place) =
        steps.take("directory", place, |_| format!("{}, made as for a dump", config.path.display()))
    else {
        return;
    };
    let free = place.free_space();
    if steps.take("write", probe::write(place), |()| "a file written and removed".into()).is_some() {
        space(free, Some(config), steps);
    }
}

/// Opens a session with a server that takes files by SSH, with what is in the initramfs; with the directory that the key is in meanwhile.
pub(super) fn log_in(
    server: &SshServer,
    initramfs: &Path,
    prepared: &Prepared,
    steps: &mut Steps,
) -> Option<(Sftp, Scratch)> {
    let stage = match Scratch::make(Path::new(CHECK_STAGE)) {
        Ok(stage) => stage,
        Err(error) => {
            steps.note("key", Outcome::Failed, format!("cannot make {CHECK_STAGE}: {error}"));
            return None;
        }
    };
    if prepared.mode & 0o077 != 0 {
        let told = format!("others than its owner may read the key in {}: chmod 600", initramfs.display());
        steps.note("key", Outcome::Failed, told);
    }
    let credentials = take_credentials(prepared, stage.path());
    let shown = |(_, keys): &(Credentials, usize)| {
        format!("the key is there, and {keys} of the host's, of which one must match")
    };
    let (credentials, _) = steps.take("key", credentials, shown)?;
    let network = reach(&prepared.config, |network| ssh::address(network, server), steps)?;
    let session = Sftp::start(&mut ssh::command(Path::new("ssh"), server, network, &credentials));
    let shown = |_: &Sftp| format!("{} lets us in, by the key in the initramfs", server.known_as());
    steps.take("login", in_words(session), shown).map(|session| (session, stage))
}

/// Sees that the server answers at its port.
fn reach<'a>(
    config: &'a Config,
    port: impl Fn(&Network) -> SocketAddr,
    steps: &mut Steps,
) -> Option<&'a Network> {
    let Some(network) = &config.network else {
        steps.note(
            "port",
            Outcome::Failed,
            "the initramfs knows no way to the server: write it by `hotdump initramfs`",
        );
        return None;
    };
    let address = port(network);
    steps.take("port", network::reach(address, PATIENCE), |()| format!("{address} answers")).map(|()| network)
}

/// Puts key and host keys of the initramfs where ssh can read them; with how many host keys there are.
fn take_credentials(prepared: &Prepared, dir: &Path) -> io::Result<(Credentials, usize)> {
    let mut keys = 0;
    let mut take = |from: &str, name: &str| -> io::Result<PathBuf> {
        let file =
            prepared.file(from).ok_or_else(|| io::Error::other(format!("{from} is not in the initramfs")))?;
        if file.mode & 0o077 != 0 {
            return Err(io::Error::other(format!(
                "{from} in the initramfs may be read by others, which ssh refuses"
            )));
        }
        keys = file.data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        let to = dir.join(name);
        let mut out = fs::File::options().write(true).create_new(true).mode(0o600).open(&to)?;
        io::Write::write_all(&mut out, &file.data)?;
        Ok(to)
    };
    let key = take(ssh::KEY, "key")?;
    let known_hosts = take(ssh::KNOWN_HOSTS, "known_hosts")?;
    if keys == 0 {
        return Err(io::Error::other(format!(
            "{} in the initramfs has no key of the host",
            ssh::KNOWN_HOSTS
        )));
    }
    Ok((Credentials { key, known_hosts }, keys))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::initramfs::archive::Archive;

    fn network() -> Network {
        Network {
            mac: "52:54:00:12:34:56".into(),
            mtu: None,
            addresses: vec!["192.0.2.7/24".parse().unwrap()],
            gateway: None,
            server: "192.0.2.1".parse().unwrap(),
            hostname: "web1".into(),
        }
    }

    #[test]
    fn a_way_that_has_changed_asks_for_another_initramfs() {
        let mut steps = Steps::default();
        same_way(&network(), &Network { mac: "52:54:00:12:34:56".to_uppercase(), ..network() }, &mut steps);
        assert_eq!(steps.steps[0].outcome, Outcome::Done);
        let now = Network { addresses: vec!["192.0.2.8/24".parse().unwrap()], ..network() };
        same_way(&network(), &now, &mut steps);
        assert_eq!(
            steps.steps[1].detail,
            "write the initramfs again: its addresses: 192.0.2.7/24 then, 192.0.2.8/24 now"
        );
        assert!(!steps.all_done());
    }

    /// An initramfs with these files of these modes.
    fn prepared(dir: &Path, files: &[(&str, u32, &[u8])]) -> Prepared {
        let mut archive = Archive::default();
        archive.file(crate::capture::CONFIG_PATH, 0o600, Vec::new());
        for (path, mode, data) in files {
            archive.file(path, *mode, data.to_vec());
        }
        let path = dir.join("initrd");
        fs::write(&path, archive.pack().unwrap()).unwrap();
        Prepared::read(&path).unwrap()
    }

    #[test]
    fn keys_come_out_of_the_initramfs_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let hosts: &[u8] = b"hotdump-target ssh-ed25519 A\nhotdump-target ssh-rsa B\n";
        let good = prepared(dir.path(), &[(ssh::KEY, 0o600, b"secret"), (ssh::KNOWN_HOSTS, 0o600, hosts)]);
        let stage = Scratch::make(&dir.path().join("stage")).unwrap();
        let (credentials, keys) = take_credentials(&good, stage.path()).unwrap();
        assert_eq!((fs::read(&credentials.key).unwrap().as_slice(), keys), (&b"secret"[..], 2));
        assert_eq!(fs::metadata(&credentials.key).unwrap().permissions().mode() & 0o777, 0o600);
        drop(stage);
        assert!(!dir.path().join("stage").exists());

        for (files, want) in [
            (vec![(ssh::KEY, 0o600, &b"x"[..])], "known_hosts is not in the initramfs"),
            (vec![(ssh::KEY, 0o644, b"x"), (ssh::KNOWN_HOSTS, 0o600, hosts)], "may be read by others"),
            (vec![(ssh::KEY, 0o600, b"x"), (ssh::KNOWN_HOSTS, 0o600, b"\n")], "has no key of the host"),
        ] {
            let stage = Scratch::make(&dir.path().join("stage")).unwrap();
            let error =
                take_credentials(&prepared(dir.path(), &files), stage.path()).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
