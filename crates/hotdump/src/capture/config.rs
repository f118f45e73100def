//! What to capture to, and what to do afterwards: `/etc/hotdump/capture.toml` and `hotdump.*=` on the command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use vmcore::dump::Format;
use vmcore::{Codec, DumpLevel};

use crate::dumps::store::Retention;
use crate::text::Bytes;

use super::network::Network;
use super::remote::{NfsExport, SshServer};

/// Where the configuration lies inside the capture initramfs.
pub(crate) const PATH: &str = "/etc/hotdump/capture.toml";

/// The level of dumps unless another is asked for.
pub(crate) const DEFAULT_LEVEL: DumpLevel = DumpLevel::KERNEL_ONLY;
/// The format of dumps unless another is asked for.
pub(crate) const DEFAULT_FORMAT: FileFormat = FileFormat::Kdump;

/// What to do when the capture is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Action {
    /// Restart the machine.
    Reboot,
    /// Switch the machine off.
    Poweroff,
    /// Stop the machine, leave it on.
    Halt,
    /// Start a shell, then restart the machine when it ends.
    Shell,
}

impl Action {
    const NAMES: [(&'static str, Self); 4] = [
        ("reboot", Self::Reboot),
        ("poweroff", Self::Poweroff),
        ("halt", Self::Halt),
        ("shell", Self::Shell),
    ];
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, action)| action == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::NAMES
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, action)| *action)
            .ok_or_else(|| format!("\"{text}\" is no action: use reboot, poweroff, halt or shell"))
    }
}

/// What takes the dump.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Target {
    /// By the filesystem's UUID, as its superblock has it.
    Uuid(String),
    /// By the filesystem's label.
    Label(String),
    /// By the partition's UUID, as the kernel reports it in sysfs.
    PartUuid(String),
    /// By device path, under `/dev`.
    Device(PathBuf),
    /// A directory that an NFS server exports.
    Nfs(NfsExport),
    /// An account on a server, by SSH.
    Ssh(SshServer),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(id) => write!(f, "UUID={id}"),
            Self::Label(label) => write!(f, "LABEL={label}"),
            Self::PartUuid(id) => write!(f, "PARTUUID={id}"),
            Self::Device(path) => write!(f, "{}", path.display()),
            Self::Nfs(export) => write!(f, "{export}"),
            Self::Ssh(server) => write!(f, "{server}"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" names no target: use UUID=..., LABEL=..., PARTUUID=..., a device below /dev, \
                 nfs:SERVER:/DIRECTORY or ssh://USER@SERVER"
            )
        };
        if let Some(server) = text.strip_prefix("ssh://") {
            return server.parse().map(Self::Ssh);
        }
        if let Some(export) = text.strip_prefix("nfs:") {
            return export.parse().map(Self::Nfs);
        }
        let (kind, value) = match text.split_once('=') {
            Some((kind, value)) if !kind.starts_with('/') => (kind, value),
            _ if text.starts_with("/dev/") && !text.split('/').any(|part| part == "..") => {
                return Ok(Self::Device(PathBuf::from(text)));
            }
            _ => return Err(wrong()),
        };
        match kind {
            _ if value.is_empty() => Err(wrong()),
            "UUID" => Ok(Self::Uuid(value.to_ascii_lowercase())),
            "LABEL" => Ok(Self::Label(value.to_owned())),
            "PARTUUID" => Ok(Self::PartUuid(value.to_ascii_lowercase())),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

/// The kind of file that takes the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FileFormat {
    /// kdump-compressed, as crash, drgn and makedumpfile read it
    Kdump,
    /// An ELF core, pages of zeros as holes
    Elf,
}

impl FromStr for FileFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kdump" => Ok(Self::Kdump),
            "elf" => Ok(Self::Elf),
            _ => Err(format!("\"{text}\" is no format: use kdump or elf")),
        }
    }
}

/// Values as the text that they are shown as and read from.
mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'a, T: FromStr<Err: Display>, D: Deserializer<'a>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Dump levels as the number that they are.
mod as_number {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use vmcore::DumpLevel;

    pub(super) fn serialize<S: Serializer>(level: &DumpLevel, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(level.number())
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<DumpLevel, D::Error> {
        DumpLevel::new(u8::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A place on this machine for the log of a crash whose dump a server did not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct LocalLog {
    /// The filesystem.
    pub(crate) target: Target,
    /// Its type; none: found from the superblock.
    pub(crate) fs: Option<String>,
    /// Directory below its root.
    pub(crate) path: PathBuf,
}

/// A software RAID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RaidArray {
    /// Its name in sysfs and below `/dev`.
    pub(crate) name: String,
    /// As mdadm tells it.
    pub(crate) uuid: String,
}

/// How to bring up a device that is made of others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Assembly {
    /// Which software RAID, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) array: Option<RaidArray>,
    /// The command that does it where all parts are there.
    pub(crate) whole: Vec<String>,
    /// The commands that make do with what is there, once half of the wait for the target is over.
    pub(crate) degraded: Vec<Vec<String>>,
}

/// The capture configuration. Written by `hotdump initramfs`, read in the capture kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub(crate) struct Config {
    /// Where the dump goes; none: capture can only print the log.
    pub(crate) target: Option<Target>,
    /// The filesystem's type; none: found from the superblock.
    pub(crate) fs: Option<String>,
    /// Directory below the target's root that takes the dumps.
    pub(crate) path: PathBuf,
    /// Once all is saved.
    pub(crate) final_action: Action,
    /// When not all could be saved.
    pub(crate) failure_action: Action,
    /// Modules to load, in this order: paths inside the initramfs.
    pub(crate) modules: Vec<PathBuf>,
    /// A command that saves the memory in place of hotdump; `{vmcore}` and `{output}` are replaced.
    pub(crate) command: Vec<String>,
    /// Options of an NFS mount, besides those that it gets in any case.
    pub(crate) nfs_options: String,
    /// How long to wait for the target, device or server, in seconds.
    pub(crate) target_wait_seconds: u64,
    /// Which pages to leave out, as makedumpfile's -d has it. More are left out where the target has no room.
    #[serde(with = "as_number")]
    pub(crate) dump_level: DumpLevel,
    /// The kind of file that takes the memory.
    pub(crate) format: FileFormat,
    /// How pages of a kdump-compressed file are compressed.
    #[serde(with = "as_text")]
    pub(crate) compression: Codec,
    /// How many dumps to keep, this one among them; the oldest go once it is saved. None: all.
    pub(crate) keep: Option<u32>,
    /// How much of the target is to stay free; the oldest dumps go for it, before this one is written and after. None: no matter.
    pub(crate) keep_free: Option<Bytes>,
    /// Give up after so many seconds in which neither a process nor a disk did anything.
    pub(crate) stall_seconds: u64,
    /// The network on the way to a server.
    pub(crate) network: Option<Network>,
    /// Where the log goes when the server does not take the dump.
    pub(crate) local_log: Option<LocalLog>,
    /// The devices that the filesystem's device is made of, the lowest first. Where there are any, the filesystem is on no other kind.
    pub(crate) assemblies: Vec<Assembly>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            target: None,
            fs: None,
            path: PathBuf::from("/var/crash"),
            final_action: Action::Reboot,
            failure_action: Action::Reboot,
            modules: Vec::new(),
            command: Vec::new(),
            nfs_options: String::new(),
            target_wait_seconds: 60,
            dump_level: DEFAULT_LEVEL,
            format: DEFAULT_FORMAT,
            compression: Codec::Zstd,
            keep: None,
            keep_free: None,
            stall_seconds: 600,
            network: None,
            local_log: None,
            assemblies: Vec::new(),
        }
    }
}

impl Config {
    /// The dump's format and codec.
    pub(crate) fn dump_format(&self) -> Format {
        match self.format {
            FileFormat::Kdump => Format::Kdump(self.compression),
            FileFormat::Elf => Format::Elf,
        }
    }

    /// What is kept of older dumps.
    pub(crate) fn retention(&self) -> Retention {
        Retention { keep: self.keep, free: self.keep_free.map(|bytes| bytes.0) }
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// What is wrong with the text, and where in it.
    pub(crate) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The configuration as the file holds it.
    ///
    /// # Errors
    /// A path that is not UTF-8.
    pub(crate) fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_reads_back_as_it_was_written() {
        let config = Config {
            target: Some(Target::Label("crash disk".into())),
            fs: Some("ext4".into()),
            path: "/var/crash".into(),
            final_action: Action::Poweroff,
            failure_action: Action::Shell,
            modules: vec!["/lib/modules/6.12/kernel/drivers/virtio/virtio.ko".into()],
            command: vec!["makedumpfile".into(), "{vmcore}".into(), "{output}".into()],
            nfs_options: "vers=4.1".into(),
            target_wait_seconds: 5,
            dump_level: DumpLevel::FREE,
            format: FileFormat::Kdump,
            compression: Codec::Lzo,
            keep: Some(3),
            keep_free: Some(Bytes(2 << 30)),
            stall_seconds: 60,
            network: Some(Network {
                mac: "52:54:00:12:34:56".into(),
                mtu: Some(9000),
                addresses: vec!["192.0.2.7/24".parse().unwrap()],
                gateway: Some("192.0.2.1".parse().unwrap()),
                server: "198.51.100.1".parse().unwrap(),
                hostname: "web1".into(),
            }),
            local_log: Some(LocalLog {
                target: Target::Uuid("ab".into()),
                fs: Some("xfs".into()),
                path: "/crash".into(),
            }),
            assemblies: vec![Assembly {
                array: Some(RaidArray { name: "md0".into(), uuid: "a:b:c:d".into() }),
                whole: vec!["mdadm".into(), "--assemble".into()],
                degraded: vec![vec!["mdadm".into(), "--assemble".into(), "--run".into()]],
            }],
        };
        let text = config.to_toml().unwrap();
        assert_eq!(Config::parse(&text).unwrap(), config, "{text}");
        let defaults = Config::default();
        assert_eq!(Config::parse(&defaults.to_toml().unwrap()).unwrap(), defaults);
        assert_eq!(Config::parse("").unwrap(), defaults);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (text, named) in [
            ("colour = \"blue\"", "colour"),
            ("final-action = \"explode\"", "explode"),
            ("target = \"vda1\"", "vda1"),
            ("target-wait-seconds = -1", "-1"),
            ("path = 7", "7"),
            ("keep = -3", "-3"),
            ("dump-level = 32", "32"),
            ("format = \"zip\"", "zip"),
            ("compression = \"rot13\"", "rot13"),
            ("keep-free = \"much\"", "much"),
        ] {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn targets() {
        for (text, want) in [
            ("UUID=DEAD-beef", Some(Target::Uuid("dead-beef".into()))),
            ("LABEL=Crash=1", Some(Target::Label("Crash=1".into()))),
            ("PARTUUID=AB", Some(Target::PartUuid("ab".into()))),
            ("/dev/disk/by-id/a=b", Some(Target::Device("/dev/disk/by-id/a=b".into()))),
            ("nfs:server:/a=b", Some(Target::Nfs("server:/a=b".parse().unwrap()))),
            ("ssh://a@b:7", Some(Target::Ssh("a@b:7".parse().unwrap()))),
            ("nfs:server", None),
            ("UUID=", None),
            ("ID=1", None),
            ("vda", None),
            ("/etc/passwd", None),
            ("/dev/../etc/passwd", None),
        ] {
            assert_eq!(text.parse::<Target>().ok(), want, "{text}");
            if let Some(target) = want {
                assert_eq!(target.to_string().parse(), Ok(target));
            }
        }
    }
}
