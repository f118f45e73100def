//! Servers on the host that take dumps from guests: they listen at the host's own loopback address only, which guests with a
//! [network](crate::lab::Plan::network) reach as [`HOST`].

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::debian;
use crate::guest::patience;
use crate::lab::Lab;

/// The host as guests see it.
pub const HOST: &str = "10.0.2.2";

/// Where a server sees its files.
const FILES: &str = "/srv";
const NFS_SETTINGS: &str = "ganesha.conf";
const SSH_SETTINGS: &str = "sshd.conf";
/// What a server's files are mounted below, and what has to be private to each.
const ENTER: &str = "mount --bind \"$2\" \"$1/srv\" && mount -t proc proc \"$1/proc\" && mount --rbind /dev \"$1/dev\" && mount -t tmpfs run \"$1/run\" && mount -t tmpfs state \"$1/var/lib/nfs\" && \
                     mkdir -p \"$1/run/ganesha\" \"$1/run/sshd\" \"$1/var/lib/nfs/ganesha\" && root=$1 && shift 2 && \
                     exec chroot \"$root\" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin \"$@\"";

/// A running server. It ends when this is dropped.
pub struct Server {
    child: Child,
    /// The port that it listens at.
    pub port: u16,
    /// The directory on the host that guests save to.
    pub directory: PathBuf,
}

impl Server {
    /// Starts an NFS server (NFS-Ganesha: it needs nothing of the kernel) that exports an empty directory as `/srv/dumps`.
    pub fn nfs(lab: &Lab, name: &str) -> Result<Server> {
        let home = new_home(lab, name)?;
        let port = free_port()?;
        fs::write(home.join(NFS_SETTINGS), nfs_settings(port))?;
        let settings = format!("{FILES}/{NFS_SETTINGS}");
        let log = format!("{FILES}/server.log");
        let argv =
            ["ganesha.nfsd", "-F", "-f", &settings, "-L", &log, "-N", "EVENT", "-p", "/run/ganesha/pid"];
        Server::start(lab, &home, port, &argv)
    }

    /// Starts an SSH server that takes files, and nothing else, from whoever has the key in [`Server::key`].
    pub fn ssh(lab: &Lab, name: &str) -> Result<Server> {
        let home = new_home(lab, name)?;
        let port = free_port()?;
        for key in ["hostkey", "key"] {
            let mut make = Command::new("ssh-keygen");
            debian::run(make.args(["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"]).arg(home.join(key)))?;
        }
        fs::copy(home.join("key.pub"), home.join("authorized_keys"))?;
        let host_key = fs::read_to_string(home.join("hostkey.pub"))?;
        fs::write(home.join("known_hosts"), format!("[{HOST}]:{port} {host_key}"))?;
        fs::write(home.join(SSH_SETTINGS), ssh_settings(port))?;
        let settings = format!("{FILES}/{SSH_SETTINGS}");
        Server::start(lab, &home, port, &["/usr/sbin/sshd", "-D", "-e", "-f", &settings])
    }

    /// The private key that an SSH server lets in, and what knows the server's key.
    pub fn key(&self) -> [PathBuf; 2] {
        ["key", "known_hosts"].map(|name| self.directory.with_file_name(name))
    }

    fn start(lab: &Lab, home: &Path, port: u16, argv: &[&str]) -> Result<Server> {
        let root = lab.sources.cache.servers()?;
        // However the lab ends, the server ends with it.
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]);
        command.args(["sh", "-c", ENTER, "sh"]).arg(root).arg(home).args(argv);
        let said = fs::File::create(home.join("server.out"))?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut server = Server { child, port, directory: home.join("dumps") };
        server.wait_until_it_listens(home)?;
        Ok(server)
    }

    fn wait_until_it_listens(&mut self, home: &Path) -> Result<()> {
        let start = Instant::now();
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            let ended = self.child.try_wait()?;
            let why = fs::read_to_string(home.join("server.out")).unwrap_or_default();
            ensure!(ended.is_none(), "the server ended ({ended:?}): {why}");
            ensure!(start.elapsed() < patience(30), "the server does not listen at {address}: {why}");
            sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An empty directory for a server, with one for the dumps in it.
fn new_home(lab: &Lab, name: &str) -> Result<PathBuf> {
    let home = std::path::absolute(lab.dir.join(format!("{name}-server")))?;
    debian::recreate(&home)?;
    fs::create_dir(home.join("dumps"))?;
    Ok(home)
}

/// A port that nobody listens at.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn nfs_settings(port: u16) -> String {
    format!(
        "NFS_CORE_PARAM {{ Protocols = 4; Bind_addr = 127.0.0.1; NFS_Port = {port}; Enable_NLM = false; Enable_RQUOTA = false; \
         Enable_UDP = false; fsid_device = true; }}\n\
         NFSv4 {{ Graceless = true; RecoveryBackend = fs; Minor_Versions = 1, 2; }}\n\
         EXPORT {{ Export_Id = 1; Path = {FILES}/dumps; Pseudo = {FILES}/dumps; Access_Type = RW; Squash = no_root_squash; \
         SecType = sys; Protocols = 4; FSAL {{ Name = VFS; }} }}\n"
    )
}

fn ssh_settings(port: u16) -> String {
    format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {FILES}/hostkey\nAuthorizedKeysFile {FILES}/authorized_keys\n\
         StrictModes no\nPidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\nForceCommand internal-sftp\nAllowTcpForwarding no\n"
    )
}
