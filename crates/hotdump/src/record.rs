//! What the last load left behind for `status` and `verify`: `/run/hotdump/image.json`.
//!
//! It is written after the system call, so it never speaks of an image that was not loaded. It may be older than the
//! image (a load by another program, or one killed in between); the identity that purgatory carries in reserved
//! memory tells.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use elfcorehdr::{PhysAddr, PhysRange};
use host::Host;
use kexec::{Call, Keeper};
use serde::{Deserialize, Serialize};

use crate::verify::Memory;
use crate::whole::{self, Readers};

/// Where the record and the lock lie. On a file system that does not outlive the boot.
pub(crate) const DIR: &str = "/run/hotdump";

const FILE: &str = "image.json";

/// A loaded crash image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The boot that it was loaded in.
    pub(crate) boot_id: String,
    /// By which system call.
    pub(crate) syscall: Call,
    /// The random name of this load and where purgatory carries it; none for kexec_file_load, whose purgatory is the
    /// kernel's own.
    pub(crate) identity: Option<Identity>,
    /// Where the crash header lies; unknown for kexec_file_load, where the kernel places it.
    pub(crate) header: Option<PhysRange>,
    /// The crash kernel.
    pub(crate) kernel: PathBuf,
    /// Its initramfs.
    pub(crate) initrd: Option<PathBuf>,
    /// Its command line, without `elfcorehdr=`.
    pub(crate) cmdline: String,
    /// Who was to keep the header current: what the load set out with. Who does is for `keeping` to see.
    pub(crate) keeper: Keeper,
    /// When, in seconds since 1970.
    pub(crate) time: u64,
}

/// The random name of a load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Its sixteen bytes in hex.
    pub(crate) name: String,
    /// Where they lie in reserved memory.
    pub(crate) at: PhysAddr,
}

impl Identity {
    /// The name that sixteen bytes make.
    pub(crate) fn name(bytes: [u8; 16]) -> String {
        format!("{:032x}", u128::from_be_bytes(bytes))
    }
}

/// The record, or the lock beside it, could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {doing}: {source}", path.display())]
pub(crate) struct RecordError {
    path: PathBuf,
    doing: &'static str,
    source: io::Error,
}

impl RecordError {
    pub(crate) fn new(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { path: path.to_owned(), doing, source }
    }
}

impl Record {
    /// Reads the record in `dir`; `None` if there is none.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub(crate) fn read(dir: impl AsRef<Path>) -> Result<Option<Self>, RecordError> {
        let path = dir.as_ref().join(FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RecordError::new(&path, "reading the record of the last load")(error)),
        };
        let record = serde_json::from_slice(&bytes).map_err(io::Error::from);
        record.map(Some).map_err(RecordError::new(&path, "parsing the record of the last load"))
    }

    /// Writes the record in place of the one before, whole or not at all.
    ///
    /// # Errors
    /// It could not be written; the one before is still there.
    pub(crate) fn write(&self, dir: impl AsRef<Path>) -> Result<(), RecordError> {
        let path = dir.as_ref().join(FILE);
        let write = || {
            make_dir(dir.as_ref())?;
            let mut text = serde_json::to_vec_pretty(self)?;
            text.push(b'\n');
            // Addresses of kernel memory are not for everybody.
            whole::write(&path, &text, Readers::Owner)
        };
        write().map_err(RecordError::new(&path, "writing the record of this load"))
    }

    /// Takes the record away, if there is one.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub(crate) fn remove(dir: impl AsRef<Path>) -> Result<(), RecordError> {
        let path = dir.as_ref().join(FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RecordError::new(&path, "removing the record of the last load")(error))
            }
            _ => Ok(()),
        }
    }

    /// Whether this is a record of this boot.
    pub(crate) fn is_of_this_boot(&self, host: &Host) -> bool {
        host.boot_id().is_ok_and(|boot_id| boot_id == self.boot_id)
    }

    /// Whether purgatory in reserved memory still carries the identity of this load. Another image may have been
    /// loaded elsewhere in the reservation since, so this is a hint, not a proof that it is in force.
    fn is_in_memory(&self, host: &Host, memory: &impl Memory) -> bool {
        let Some(identity) = &self.identity else { return false };
        let mut bytes = [0; 16];
        self.is_of_this_boot(host)
            && memory.read(identity.at, &mut bytes).is_ok()
            && Identity::name(bytes) == identity.name
    }

    /// Whether this is the record of the image in force, as far as it can be told: by what the module says while it
    /// follows an image, by the place of the header in force, by the kernel's memory.
    pub(crate) fn is_in_force(
        &self,
        host: &Host,
        armed: Option<&abi::Status>,
        header: Option<PhysAddr>,
        memory: Option<&impl Memory>,
    ) -> Option<bool> {
        if let Some(status) = armed {
            return Some(
                self.identity.as_ref().is_some_and(|known| known.name == Identity::name(status.identity)),
            );
        }
        if let (Some(header), Some(recorded)) = (header, self.header)
            && header != recorded.start()
        {
            return Some(false);
        }
        let memory = memory.filter(|_| self.identity.is_some())?;
        Some(self.is_in_memory(host, memory))
    }
}

/// Makes the directory for the record and the lock, for root only.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn record() -> Record {
        Record {
            boot_id: "5f8b".to_owned(),
            syscall: Call::KexecLoad,
            identity: Some(Identity { name: Identity::name([7; 16]), at: PhysAddr(0x3fff_0010) }),
            header: PhysRange::new(PhysAddr(0x3fff_1000), PhysAddr(0x4000_0000)),
            kernel: "/boot/vmlinuz".into(),
            initrd: None,
            cmdline: "console=ttyS0".to_owned(),
            keeper: Keeper::Kernel,
            time: 1,
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("hotdump");
        assert_eq!(Record::read(&dir).unwrap(), None);
        record().write(&dir).unwrap();
        assert_eq!(Record::read(&dir).unwrap(), Some(record()));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join(FILE))), (0o700, 0o600));
        let later = Record { time: 2, ..record() };
        later.write(&dir).unwrap();
        assert_eq!(Record::read(&dir).unwrap(), Some(later));
        Record::remove(&dir).unwrap();
        Record::remove(&dir).unwrap();
        assert_eq!(Record::read(&dir).unwrap(), None);
    }

    /// Memory that holds sixteen bytes of seven at every place.
    struct Sevens;

    impl Memory for Sevens {
        fn read(&self, _: PhysAddr, buf: &mut [u8]) -> Result<(), host::HostError> {
            buf.fill(7);
            Ok(())
        }
    }

    #[test]
    fn whether_a_record_is_of_the_image_in_force() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("proc/sys/kernel/random/boot_id");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "5f8b\n").unwrap();
        let host = Host::at(root.path());
        let armed = |identity| abi::Status { armed: 1, identity: [identity; 16], ..abi::Status::default() };
        let place = |at| Some(PhysAddr(at));
        let by_file = Record { identity: None, header: None, ..record() };
        let of_another_boot = Record { boot_id: "77".to_owned(), ..record() };
        for (what, record, armed, header, memory, expected) in [
            ("followed", record(), Some(armed(7)), None, None, Some(true)),
            ("another is followed", record(), Some(armed(8)), place(0x3fff_1000), Some(&Sevens), Some(false)),
            ("the header is elsewhere", record(), None, place(0x3fff_2000), Some(&Sevens), Some(false)),
            ("the identity is there", record(), None, place(0x3fff_1000), Some(&Sevens), Some(true)),
            ("of another boot", of_another_boot, None, None, Some(&Sevens), Some(false)),
            ("nothing can be read", record(), None, None, None, None),
            ("by kexec_file_load", by_file.clone(), None, place(0x3fff_1000), Some(&Sevens), None),
            ("by kexec_file_load, and another is followed", by_file, Some(armed(7)), None, None, Some(false)),
        ] {
            assert_eq!(record.is_in_force(&host, armed.as_ref(), header, memory), expected, "{what}");
        }
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), b"{\"boot_id\":").unwrap();
        let error = Record::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("image.json: parsing the record of the last load: EOF"), "{error}");
    }
}
