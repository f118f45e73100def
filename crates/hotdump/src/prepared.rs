//! A capture initramfs as it lies on disk: what the capture kernel will find in it, and where on the running system its dumps go.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::capture::{CONFIG_PATH, Config, Target, device};
use crate::initramfs::archive::{self, Packed};
use crate::initramfs::mounts;

/// Where `hotdump initramfs` and `hotdump load` have the initramfs for the kernel `release` unless told otherwise.
pub(crate) fn usual_path(release: &str) -> PathBuf {
    PathBuf::from(format!("/var/lib/hotdump/initrd-{release}.img"))
}

/// An initramfs that was read.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Its file's size, in bytes.
    pub(crate) size: u64,
    /// Bytes of all files in it.
    pub(crate) unpacked: u64,
    /// The file's permissions.
    pub(crate) mode: u32,
    /// What it is to do.
    pub(crate) config: Config,
    files: BTreeMap<String, Packed>,
}

/// Why an initramfs says nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PreparedError {
    /// It is not there.
    #[error("there is no initramfs {}: write it by `hotdump initramfs --output {0}`", path.display())]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read the initramfs {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error, or what is wrong with the archive.
        source: io::Error,
    },
    /// Somebody else's.
    #[error("the initramfs {} was not written by hotdump: it has no /{name}", path.display(), name = CONFIG_PATH.trim_start_matches('/'))]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Its configuration is not understood.
    #[error("the initramfs {} has a configuration that is not understood: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<toml::de::Error>,
    },
}

impl Prepared {
    /// Reads an initramfs.
    ///
    /// # Errors
    /// [`PreparedError`].
    pub(crate) fn read(path: &Path) -> Result<Self, PreparedError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => PreparedError::Absent { path: path.to_owned() },
            _ => PreparedError::Read { path: path.to_owned(), source },
        };
        let packed = fs::read(path).map_err(failed)?;
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
        let size = packed.len() as u64;
        let list = archive::read(packed).map_err(failed)?;
        let files: BTreeMap<String, Packed> =
            list.into_iter().map(|entry| (entry.path.clone(), entry)).collect();
        let Some(config) = files.get(CONFIG_PATH.trim_start_matches('/')) else {
            return Err(PreparedError::Foreign { path: path.to_owned() });
        };
        let config = Config::parse(&String::from_utf8_lossy(&config.data))
            .map_err(|source| PreparedError::Config { path: path.to_owned(), source: Box::new(source) })?;
        let unpacked = files.values().map(|file| file.data.len() as u64).sum();
        Ok(Self { size, unpacked, mode, config, files })
    }

    /// A file in it, by its path in the capture kernel.
    pub(crate) fn file(&self, path: &str) -> Option<&Packed> {
        self.files.get(path.trim_start_matches('/'))
    }

    /// Whether the distribution's tools put it together, with the capture as one of its programs.
    pub(crate) fn is_by_distribution(&self) -> bool {
        self.file("usr/sbin/hotdump").is_some()
    }

    /// The release of the kernel that its modules are for; none where it has no modules.
    pub(crate) fn modules_release(&self) -> Option<String> {
        let path = self.config.modules.first()?.to_str()?.strip_prefix("/lib/modules/")?;
        Some(path.split_once('/')?.0.to_owned())
    }

    /// Where dumps go, for people.
    pub(crate) fn shown_target(&self) -> String {
        let Config { target, fs, path, .. } = &self.config;
        let target = target.as_ref().map_or_else(|| "none".to_owned(), Target::to_string);
        let kind = fs.as_ref().map(|kind| format!(", {kind}")).unwrap_or_default();
        format!("{target}{kind}, directory {}", path.display())
    }

    /// The directory of this system that dumps are in, as far as there is one: on a target of its own, where that is mounted.
    pub(crate) fn dumps(&self) -> Option<PathBuf> {
        let (point, below) = mounted_at(Path::new("/"), self.config.target.as_ref()?, &self.config.path)?;
        Some(if below.as_os_str().is_empty() { point } else { point.join(below) })
    }
}

/// Where the directory `path` of a target on a disk is to be found on the running system: a mount, and the directory below that. `root`
/// is `/` but in tests.
pub(crate) fn mounted_at(root: &Path, target: &Target, path: &Path) -> Option<(PathBuf, PathBuf)> {
    let node = device::find(root, target, None).ok()??.node.canonicalize().ok()?;
    let name = device::sysfs_name(root, &node)?;
    let number = fs::read_to_string(root.join("sys/class/block").join(name).join("dev")).ok()?;
    let (major, minor) = number.trim().split_once(':')?;
    let mountinfo = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
    // A path of the configuration may have been given without its first slash.
    let path = Path::new("/").join(path);
    mounts::shown_at(&mountinfo, (major.parse().ok()?, minor.parse().ok()?), &node, &path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::initramfs::Compression;
    use crate::initramfs::archive::{Archive, compress};

    #[test]
    fn what_was_written_is_read_back_however_it_is_packed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initrd.img");
        let config = Config { fs: Some("xfs".into()), path: "/crash".into(), ..Config::default() };
        let config = Config {
            target: Some(Target::Label("x".into())),
            modules: vec!["/lib/modules/6.12/kernel/fs/xfs/xfs.ko".into()],
            ..config
        };
        let mut archive = Archive::default();
        archive.file(CONFIG_PATH, 0o600, config.to_toml().unwrap().into_bytes());
        archive.file("/etc/hotdump/sshkey", 0o600, b"secret".to_vec());
        for how in [Compression::None, Compression::Gzip, Compression::Zstd] {
            fs::write(&path, compress(archive.pack().unwrap(), how).unwrap()).unwrap();
            let prepared = Prepared::read(&path).unwrap();
            assert_eq!(prepared.config, config);
            assert_eq!(prepared.file("/etc/hotdump/sshkey").unwrap().data, b"secret");
            assert!(prepared.file("/init").is_none() && !prepared.is_by_distribution());
            assert_eq!(prepared.modules_release().as_deref(), Some("6.12"));
            assert_eq!(prepared.shown_target(), "LABEL=x, xfs, directory /crash");
            assert!(prepared.size > 0 && prepared.unpacked > 6);
        }
    }

    #[test]
    fn what_is_wrong_with_an_initramfs_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initrd.img");
        let read = || Prepared::read(&path).unwrap_err().to_string();
        assert!(
            read().ends_with(&format!("write it by `hotdump initramfs --output {}`", path.display())),
            "{}",
            read()
        );
        fs::write(&path, "no archive").unwrap();
        assert!(read().starts_with(&format!("cannot read the initramfs {}", path.display())), "{}", read());
        let mut archive = Archive::default();
        archive.file("init", 0o755, Vec::new());
        fs::write(&path, archive.pack().unwrap()).unwrap();
        assert!(read().contains("was not written by hotdump"), "{}", read());
        archive.file(CONFIG_PATH, 0o600, b"colour = 1".to_vec());
        fs::write(&path, archive.pack().unwrap()).unwrap();
        assert!(read().contains("colour"), "{}", read());
    }

    #[test]
    fn dumps_are_found_where_their_filesystem_is_mounted() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, data: &[u8]| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, data).unwrap();
        };
        let mut disk = vec![0; 4096];
        disk[0x438..0x43a].copy_from_slice(b"\x53\xef");
        disk[0x478..0x47d].copy_from_slice(b"crash");
        write("dev/vda1", &disk);
        write("sys/class/block/vda1/dev", b"254:1\n");
        write(
            "proc/self/mountinfo",
            b"1 0 0:1 / / rw - tmpfs none rw\n2 1 254:1 / /var rw - ext4 /dev/vda1 rw\n",
        );
        let find =
            |target: &str, path: &str| mounted_at(root.path(), &target.parse().unwrap(), Path::new(path));
        let there = Some(("/var".into(), "crash".into()));
        assert_eq!(find("LABEL=crash", "/crash"), there);
        assert_eq!(find("/dev/vda1", "crash"), there);
        assert_eq!(find("LABEL=other", "/crash"), None);
        write("proc/self/mountinfo", b"1 0 0:1 / / rw - tmpfs none rw\n");
        assert_eq!(find("LABEL=crash", "/crash"), None);
    }
}
