//! What of the running machine a dump needs again: the target's filesystem, and the drivers up from its device.

use std::fs;
use std::path::{Path, PathBuf};

use crate::capture::Target;
use crate::capture::device;
use crate::capture::superblock::{self, Filesystem};

use super::mounts;

/// The target on the running machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// How the capture kernel is to find it.
    pub(super) target: Target,
    /// The filesystem's type, where it is known.
    pub(super) kind: Option<String>,
    /// The directory below the filesystem's root.
    pub(super) path: PathBuf,
    /// The device's name in sysfs.
    pub(super) device: String,
}

/// Why the target cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum MachineError {
    /// The mount table cannot be read.
    #[error("cannot read /proc/self/mountinfo: {0}")]
    Mounts(std::io::Error),
    /// Not on a disk.
    #[error(
        "{path} lies on {kind} ({source_name}), which is no disk: give --target UUID=... of a filesystem on one"
    )]
    NoDisk {
        /// The path asked for.
        path: String,
        /// The filesystem's type.
        kind: String,
        /// What it is mounted from.
        source_name: String,
    },
    /// No such device.
    #[error("no block device is {target}: block devices here are {devices}")]
    Absent {
        /// What was asked for.
        target: Target,
        /// What there is.
        devices: String,
    },
    /// The device cannot be read.
    #[error("cannot read {node}: {source}")]
    Read {
        /// The device.
        node: String,
        /// The system's error.
        source: std::io::Error,
    },
}

/// The filesystem that holds `path` on the running machine. `root` is `/` but in tests.
pub(super) fn find_by_path(root: &Path, path: &Path) -> Result<Found, MachineError> {
    let mountinfo = fs::read_to_string(root.join("proc/self/mountinfo")).map_err(MachineError::Mounts)?;
    let path = mounts::resolve(path);
    let no_disk = |kind: String, source: PathBuf| MachineError::NoDisk {
        path: path.display().to_string(),
        kind,
        source_name: source.display().to_string(),
    };
    let Some(mount) = mounts::holding(&mountinfo, &path) else {
        return Err(no_disk("no filesystem".into(), PathBuf::from("none")));
    };
    let (major, minor) = mount.device;
    let by_number = fs::canonicalize(root.join(format!("sys/dev/block/{major}:{minor}"))).ok();
    // btrfs has device numbers of its own; what it was mounted from is the device.
    let by_source =
        || Some(mount.source.clone()).filter(|source| mount.kind == "btrfs" && source.starts_with("/dev"));
    let name = by_number.or_else(|| by_source()?.canonicalize().ok()).and_then(|path| file_name(&path));
    let Some(device) = name else { return Err(no_disk(mount.kind, mount.source)) };
    let relative = path.strip_prefix(&mount.point).unwrap_or(Path::new(""));
    let filesystem = superblock::read(&node(root, &device)).ok().flatten();
    Ok(Found {
        target: lasting_name(filesystem.as_ref(), &device),
        kind: Some(mount.kind),
        path: mount.root.join(relative),
        device,
    })
}

/// The filesystem that `target` names. `root` is `/` but in tests.
pub(super) fn find_by_target(root: &Path, target: &Target, path: &Path) -> Result<Found, MachineError> {
    let read_error = |source| MachineError::Read { node: target.to_string(), source };
    let found = device::find(root, target, None).map_err(read_error)?;
    let real = found.as_ref().and_then(|found| found.node.canonicalize().ok());
    let Some((found, device)) = found.zip(real.and_then(|real| device::sysfs_name(root, &real))) else {
        let devices = device::names(root).join(", ");
        return Err(MachineError::Absent { target: target.clone(), devices });
    };
    let target = match target {
        Target::Device(_) => lasting_name(found.filesystem.as_ref(), &device),
        _ => target.clone(),
    };
    let kind = found.filesystem.map(|filesystem| filesystem.kind.to_owned());
    Ok(Found { target, kind, path: path.to_owned(), device })
}

/// A name that still holds when devices come up in another order: UUID, else label, else the device.
fn lasting_name(filesystem: Option<&Filesystem>, device: &str) -> Target {
    match filesystem {
        Some(Filesystem { uuid, .. }) if !uuid.is_empty() => Target::Uuid(uuid.clone()),
        Some(Filesystem { label, .. }) if !label.is_empty() => Target::Label(label.clone()),
        _ => Target::Device(node(Path::new("/"), device)),
    }
}

fn node(root: &Path, device: &str) -> PathBuf {
    root.join("dev").join(device.replace('!', "/"))
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

/// A driver at work on the way from the disk to the processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Driver {
    /// The module it came in; none where it is built into the running kernel.
    pub(super) module: Option<String>,
    /// What its device calls itself, for kernels that have another driver for it.
    pub(super) modalias: Option<String>,
}

/// The drivers from a device, a disk or a network interface in sysfs, up to the machine's root.
pub(super) fn drivers(device: &Path) -> Vec<Driver> {
    let Ok(start) = fs::canonicalize(device) else { return Vec::new() };
    let mut starts = vec![start.clone()];
    // A namespace of an NVMe subsystem hangs on the subsystem, and that has links to its controllers.
    if let Some(subsystem) = start.ancestors().find(|dir| is_child_of(dir, "nvme-subsystem")) {
        let entries = fs::read_dir(subsystem).into_iter().flatten().flatten();
        let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
        starts.extend(links.filter_map(|link| fs::canonicalize(link.path()).ok()));
    }
    let mut drivers: Vec<Driver> = Vec::new();
    for start in starts {
        for found in start.ancestors().take_while(|dir| !dir.ends_with("sys/devices")).filter_map(driver_of) {
            if !drivers.contains(&found) {
                drivers.push(found);
            }
        }
    }
    drivers
}

fn is_child_of(dir: &Path, parent: &str) -> bool {
    dir.parent().and_then(Path::file_name).is_some_and(|name| name == parent)
}

fn driver_of(dir: &Path) -> Option<Driver> {
    let driver = dir.join("driver");
    driver.exists().then(|| Driver {
        module: fs::canonicalize(driver.join("module")).ok().and_then(|module| file_name(&module)),
        modalias: fs::read_to_string(dir.join("modalias")).ok().map(|alias| alias.trim_end().to_owned()),
    })
}

/// Whether memory comes by virtio-mem: the capture kernel must ask that driver which of it is there.
pub(super) fn has_virtio_mem(root: &Path) -> bool {
    let devices =
        fs::read_dir(root.join("sys/bus/virtio/drivers/virtio_mem")).into_iter().flatten().flatten();
    devices.filter_map(|entry| entry.file_name().into_string().ok()).any(|name| name.starts_with("virtio"))
}

/// The machine's watchdogs, in sysfs. One that runs when the machine crashes (by systemd, or since the firmware started it, fed by the
/// kernel) goes on, and resets the machine in the midst of a dump unless the capture kernel has its driver, which feeds it or
/// stops it. What is made in software ends with its kernel.
pub(super) fn watchdogs(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join("sys/class/watchdog")).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| !drivers(path).is_empty()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const UUID: &str = "11111111-1111-1111-1111-111111111111";

    struct Machine(tempfile::TempDir);

    impl Machine {
        /// A virtio disk with a partition, on it an ext4 filesystem mounted at the machine's /var; an LVM volume; btrfs.
        fn new() -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            let disk = "sys/devices/pci0000:00/0000:00:03.0/virtio0/block/vda/vda1";
            machine.write(&format!("{disk}/uevent"), "DEVNAME=vda1\n");
            machine.driver(
                "sys/devices/pci0000:00/0000:00:03.0/virtio0",
                Some("virtio_blk"),
                "virtio:d00000002v00001AF4",
            );
            machine.driver("sys/devices/pci0000:00/0000:00:03.0", None, "pci:v00001AF4d00001001");
            machine.write("sys/devices/virtual/block/dm-0/uevent", "DEVNAME=dm-0\n");
            for (name, number, dir) in
                [("vda1", "254:1", disk), ("dm-0", "253:0", "sys/devices/virtual/block/dm-0")]
            {
                machine.link(&format!("sys/class/block/{name}"), dir);
                machine.link(&format!("sys/dev/block/{number}"), dir);
            }
            let mut disk = vec![0; 4096];
            disk[0x438..0x43a].copy_from_slice(b"\x53\xef");
            disk[0x468..0x478].fill(0x11);
            machine.write("dev/vda1", &disk);
            machine.write("dev/dm-0", &disk[..1000]);
            machine.link("dev/disk/by-id/wwn", "dev/vda1");
            let info = "1 0 0:1 / / rw - tmpfs none rw\n2 1 254:1 /sub /nonexistent/var rw - ext4 /dev/vda1 rw\n\
                        3 1 253:0 / /nonexistent/lvm rw - xfs /dev/mapper/x rw\n";
            machine.write("proc/self/mountinfo", info);
            machine
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn write(&self, path: &str, data: impl AsRef<[u8]>) {
            fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
            fs::write(self.path(path), data).unwrap();
        }

        fn link(&self, path: &str, to: &str) {
            fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
            symlink(self.path(to), self.path(path)).unwrap();
        }

        fn driver(&self, device: &str, module: Option<&str>, modalias: &str) {
            self.write(&format!("{device}/modalias"), format!("{modalias}\n"));
            let driver = format!("sys/bus/x/drivers/{}", module.unwrap_or("builtin"));
            self.write(&format!("{driver}/bind"), "");
            self.link(&format!("{device}/driver"), &driver);
            if let Some(module) = module {
                self.write(&format!("sys/module/{module}/refcnt"), "1");
                self.link(&format!("{driver}/module"), &format!("sys/module/{module}"));
            }
        }
    }

    #[test]
    fn the_filesystem_that_holds_a_path_is_named_by_its_uuid() {
        let machine = Machine::new();
        let found = find_by_path(machine.0.path(), Path::new("/nonexistent/var/crash")).unwrap();
        let want = Found {
            target: Target::Uuid(UUID.into()),
            kind: Some("ext4".into()),
            path: "/sub/crash".into(),
            device: "vda1".into(),
        };
        assert_eq!(found, want);
    }

    #[test]
    fn paths_on_no_disk_are_refused_with_a_way_out() {
        let error = find_by_path(Machine::new().0.path(), Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.contains("--target UUID="), "{error}");
    }

    #[test]
    fn a_device_is_named_by_what_lasts() {
        let machine = Machine::new();
        for target in ["/dev/vda1", "/dev/disk/by-id/wwn", &format!("UUID={UUID}")] {
            let found =
                find_by_target(machine.0.path(), &target.parse().unwrap(), Path::new("/crash")).unwrap();
            assert_eq!(
                (found.target, found.device.as_str()),
                (Target::Uuid(UUID.into()), "vda1"),
                "{target}"
            );
        }
        let error =
            find_by_target(machine.0.path(), &"LABEL=x".parse().unwrap(), Path::new("/")).unwrap_err();
        assert!(error.to_string().contains("vda1"), "{error}");
    }

    #[test]
    fn drivers_are_found_from_the_disk_to_the_root() {
        let machine = Machine::new();
        let found = drivers(&machine.path("sys/class/block/vda1"));
        let want = [
            Driver { module: Some("virtio_blk".into()), modalias: Some("virtio:d00000002v00001AF4".into()) },
            Driver { module: None, modalias: Some("pci:v00001AF4d00001001".into()) },
        ];
        assert_eq!(found, want);
        assert!(drivers(&machine.path("sys/class/block/vdz")).is_empty());
    }

    #[test]
    fn nvme_namespaces_lead_to_their_controllers() {
        let machine = Machine::new();
        let namespace = "sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1";
        machine.write(&format!("{namespace}/uevent"), "");
        machine.link("sys/class/block/nvme0n1", namespace);
        let controller = "sys/devices/pci0000:00/0000:00:04.0";
        machine.driver(controller, Some("nvme"), "pci:v00001B36d00000010");
        machine.write(&format!("{controller}/nvme/nvme0/uevent"), "");
        machine.link(
            "sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0",
            &format!("{controller}/nvme/nvme0"),
        );
        let found = drivers(&machine.path("sys/class/block/nvme0n1"));
        assert_eq!(found[0].module.as_deref(), Some("nvme"));
    }

    #[test]
    fn virtio_mem_counts_when_it_drives_a_device() {
        let machine = Machine::new();
        machine.write("sys/bus/virtio/drivers/virtio_mem/bind", "");
        assert!(!has_virtio_mem(machine.0.path()));
        machine.write("sys/bus/virtio/drivers/virtio_mem/virtio3/x", "");
        assert!(has_virtio_mem(machine.0.path()));
    }
    #[test]
    fn watchdogs_are_those_that_are_hardware() {
        let machine = Machine::new();
        assert!(watchdogs(machine.0.path()).is_empty());
        let bridge = "sys/devices/pci0000:00/0000:00:1f.0";
        machine.driver(bridge, Some("lpc_ich"), "pci:v00008086d00002918");
        machine.driver(&format!("{bridge}/iTCO_wdt.1.auto"), Some("iTCO_wdt"), "platform:iTCO_wdt");
        for (name, dir) in [
            ("watchdog1", format!("{bridge}/iTCO_wdt.1.auto/watchdog/watchdog1")),
            ("watchdog0", "sys/devices/virtual/watchdog/watchdog0".to_owned()),
        ] {
            machine.write(&format!("{dir}/state"), "inactive\n");
            machine.link(&format!("sys/class/watchdog/{name}"), &dir);
        }
        let found = watchdogs(machine.0.path());
        assert_eq!(found, [machine.path("sys/class/watchdog/watchdog1")]);
        let modules: Vec<_> = drivers(&found[0]).into_iter().filter_map(|driver| driver.module).collect();
        assert_eq!(modules, ["iTCO_wdt", "lpc_ich"]);
    }
}
