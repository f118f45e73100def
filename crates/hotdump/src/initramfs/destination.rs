//! Where the dump goes, and what of this machine the capture kernel needs to get there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::Args;
use super::builder::Builder;
use super::machine::{self, Found};
use super::server;
use super::stack::{self, Stack};
use crate::capture::remote::SshServer;
use crate::capture::ssh;
use crate::capture::{Config, LocalLog, Target};

const ROOT: &str = "/";
const DEFAULT_KEY: &str = "/root/.ssh/kdump_id_rsa";
const DEFAULT_KNOWN_HOSTS: &str = "/root/.ssh/known_hosts";
/// Modules that a filesystem asks for only when it is mounted, so that no table says so.
const ASKED_FOR_LATER: [(&str, &[&str]); 2] = [
    ("vfat", &["nls_cp437", "nls_ascii", "nls_iso8859-1", "nls_utf8"]),
    // Each version of the protocol is a module of its own.
    ("nfs", &["nfsv4", "nfsv3"]),
];

/// What the capture kernel needs for a target.
#[derive(Debug, Default)]
pub(super) struct Destination {
    /// Who puts the initramfs together: the distribution's tools see to disks themselves.
    pub(super) builder: Builder,
    /// The part of its configuration that says where and how.
    pub(super) config: Config,
    /// Devices on the way, whose drivers are needed: directories in sysfs.
    pub(super) devices: Vec<PathBuf>,
    /// Modules that must be there.
    pub(super) modules: Vec<String>,
    /// Modules that are taken where the kernel has them.
    pub(super) wanted: Vec<&'static str>,
    /// Files that are needed: where, with which mode, and what is in them.
    pub(super) files: Vec<(&'static str, u32, Vec<u8>)>,
    /// Programs of this system that are needed.
    pub(super) programs: Vec<&'static str>,
    /// What is not as good as it could be.
    pub(super) warnings: Vec<String>,
}

impl Destination {
    /// Finds the destination that `args` ask for on the running machine.
    pub(super) fn find(args: &Args) -> anyhow::Result<Self> {
        match &args.target {
            Some(target @ Target::Nfs(export)) => {
                let mut destination = Self::on_server(args, target, &export.server)?;
                destination.need_filesystem("nfs");
                destination.config.nfs_options = args.nfs_options.clone().unwrap_or_default();
                Ok(destination)
            }
            Some(target @ Target::Ssh(account)) => Self::by_ssh(args, target, account),
            Some(target) => {
                Self::on_disk(args, machine::find_by_target(Path::new(ROOT), target, &args.path)?)
            }
            None => Self::on_disk(args, machine::find_by_path(Path::new(ROOT), &args.path)?),
        }
    }

    /// The devices, modules and network for the target of a configuration that was written before.
    pub(super) fn of_config(config: &Config) -> anyhow::Result<Self> {
        let mut destination = Self::default();
        match &config.target {
            Some(Target::Nfs(export)) => {
                destination.need_network(&export.server)?;
                destination.need_filesystem("nfs");
            }
            Some(Target::Ssh(account)) => {
                destination.need_network(&account.server)?;
            }
            Some(target) => destination.need_disk_of(target, config.fs.as_deref())?,
            None => {}
        }
        if let Some(log) = &config.local_log {
            destination.need_disk_of(&log.target, log.fs.as_deref())?;
        }
        Ok(destination)
    }

    fn need_disk_of(&mut self, target: &Target, kind: Option<&str>) -> anyhow::Result<()> {
        let found = machine::find_by_target(Path::new(ROOT), target, Path::new("/"))?;
        let kind = kind.or(found.kind.as_deref()).context("its filesystem is not recognised")?;
        self.need_disk(&found.device, kind)
    }

    fn on_disk(args: &Args, found: Found) -> anyhow::Result<Self> {
        if args.local_log.is_some() {
            bail!(
                "--local-log is for targets on a server: on a disk of this machine the log lies beside the dump"
            );
        }
        refuse_nfs_options(args, &found.target)?;
        let mut destination = Self { builder: args.builder, ..Self::default() };
        let Some(kind) = args.fs.clone().or_else(|| found.kind.clone()) else {
            bail!(
                "{} ({}) holds no filesystem that is recognised: name its type with --fs",
                found.target,
                found.device
            );
        };
        destination.need_disk(&found.device, &kind)?;
        destination.config.target = Some(found.target);
        destination.config.fs = Some(kind);
        destination.config.path = found.path;
        Ok(destination)
    }

    fn by_ssh(args: &Args, target: &Target, account: &SshServer) -> anyhow::Result<Self> {
        refuse_nfs_options(args, target)?;
        if args.command.is_some() {
            bail!("--command writes a file on a filesystem, and {target} is none");
        }
        if args.keep.is_some() || args.keep_free.is_some() {
            bail!(
                "--keep and --keep-free are for filesystems; what lies at {target} the server has to keep in order"
            );
        }
        let mut destination = Self::on_server(args, target, &account.server)?;
        let key = args.sshkey.as_deref().unwrap_or(Path::new(DEFAULT_KEY));
        let key = fs::read(key).with_context(|| {
            format!(
                "cannot read the private key {}: make one by `ssh-keygen`, or name it by --sshkey",
                key.display()
            )
        })?;
        let known =
            known_keys(account, args.known_hosts.as_deref().unwrap_or(Path::new(DEFAULT_KNOWN_HOSTS)))?;
        destination.files.push((ssh::KEY, 0o600, key));
        destination.files.push((ssh::KNOWN_HOSTS, 0o600, known.into_bytes()));
        // ssh asks who it is.
        destination.files.push(("/etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n".to_vec()));
        destination.programs.push("ssh");
        Ok(destination)
    }

    fn on_server(args: &Args, target: &Target, name: &str) -> anyhow::Result<Self> {
        if args.fs.is_some() {
            bail!("--fs is for targets on a disk; {target} is a server's");
        }
        let mut destination = Self { builder: args.builder, ..Self::default() };
        let hostname = destination.need_network(name)?;
        destination.config.target = Some(target.clone());
        // Other machines save there too.
        destination.config.path = args.path.join(file_name(&hostname));
        destination.config.local_log = destination.find_local_log(args)?;
        Ok(destination)
    }

    /// Finds the way to the server `name`; gives this machine's name.
    fn need_network(&mut self, name: &str) -> anyhow::Result<String> {
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let (network, interface) = server::find(name, &hostname)?;
        self.devices.push(Path::new(ROOT).join("sys/class/net").join(interface));
        if network.server.is_ipv6() {
            self.wanted.push("ipv6");
        }
        self.config.network = Some(network);
        Ok(hostname)
    }

    /// Where the log goes when the server does not take the dump. A place that was not asked for need not be there.
    fn find_local_log(&mut self, args: &Args) -> anyhow::Result<Option<LocalLog>> {
        let path = match args.local_log.as_deref() {
            Some(path) if path == Path::new("none") => return Ok(None),
            Some(path) => path,
            None => Path::new(super::DEFAULT_PATH),
        };
        let found = machine::find_by_path(Path::new(ROOT), path);
        let found = match found {
            Err(error) if args.local_log.is_none() => {
                self.warnings
                    .push(format!("the log of a crash whose dump the server does not take is lost: {error}"));
                return Ok(None);
            }
            found => found.context("--local-log")?,
        };
        let kind = found.kind.context("--local-log: a mounted filesystem has a type")?;
        self.need_disk(&found.device, &kind)?;
        Ok(Some(LocalLog { target: found.target, fs: Some(kind), path: found.path }))
    }

    fn need_disk(&mut self, device: &str, kind: &str) -> anyhow::Result<()> {
        if self.builder != Builder::Own {
            self.need_filesystem(kind);
            return Ok(());
        }
        let stack = Stack::of(Path::new(ROOT), device, &stack::raid_uuid)?;
        let ground = stack.ground.iter().map(|device| Path::new(ROOT).join("sys/class/block").join(device));
        self.devices.extend(ground);
        self.config.assemblies.extend(stack.assemblies);
        self.modules.extend(stack.modules);
        self.wanted.extend(stack.wanted);
        self.programs.extend(stack.programs);
        self.need_filesystem(kind);
        Ok(())
    }

    fn need_filesystem(&mut self, kind: &str) {
        self.modules.push(kind.to_owned());
        let later = ASKED_FOR_LATER.iter().filter(|(of, _)| *of == kind);
        self.wanted.extend(later.flat_map(|(_, names)| names.iter()));
    }
}

fn refuse_nfs_options(args: &Args, target: &Target) -> anyhow::Result<()> {
    match args.nfs_options {
        Some(_) => bail!("--nfs-options is for nfs:SERVER:/DIRECTORY, and the target is {target}"),
        None => Ok(()),
    }
}

/// The keys that `file` has for the server, under the name that the capture kernel knows it by.
fn known_keys(account: &SshServer, file: &Path) -> anyhow::Result<String> {
    let host = account.known_as();
    // It knows names that are hashed, too.
    let found = Command::new("ssh-keygen").args(["-F", &host, "-f"]).arg(file).output();
    let found = found.context("cannot start ssh-keygen: is OpenSSH's client installed?")?;
    let keys = pinned(&String::from_utf8_lossy(&found.stdout));
    if keys.is_empty() {
        bail!(
            "{} has no key of {host}: log in there once, as root, and compare what ssh shows with the server's own key, or name \
             another file by --known-hosts",
            file.display()
        );
    }
    Ok(keys)
}

/// Lines of known_hosts with [`ssh::ALIAS`] in the host's place. Lines with a marker (a CA's, a revoked key's) are left out.
fn pinned(lines: &str) -> String {
    let lines = lines.lines().filter(|line| !line.starts_with(['#', '@']));
    let keys = lines.filter_map(|line| line.split_once(' '));
    keys.map(|(_, key)| format!("{} {key}\n", ssh::ALIAS)).collect()
}

/// A host's name as a directory: nothing in it leads elsewhere.
fn file_name(hostname: &str) -> String {
    let fine = |char: char| if char.is_ascii_alphanumeric() || "-_.".contains(char) { char } else { '_' };
    let name: String = hostname.trim_start_matches('.').chars().map(fine).collect();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_keys_are_pinned() {
        let found = "# Host vault found: line 1\nvault ssh-ed25519 AAAA\n|1|x=|y= ssh-rsa BBBB comment\n@cert-authority * ssh-rsa C\n";
        assert_eq!(pinned(found), "hotdump-target ssh-ed25519 AAAA\nhotdump-target ssh-rsa BBBB comment\n");
    }

    #[test]
    fn a_host_s_name_leads_nowhere_else() {
        for (hostname, want) in [
            ("web1.example", "web1.example"),
            ("/etc", "_etc"),
            ("..", "unnamed"),
            ("(none)", "_none_"),
            ("", "unnamed"),
        ] {
            assert_eq!(file_name(hostname), want);
        }
    }
}
