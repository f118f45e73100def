//! Block devices of this machine, and which of them a target means.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::config::Target;
use super::superblock::{self, Filesystem};

/// Devices that hold no dump target, and of which some take long to say so.
const NOT_LOOKED_AT: [&str; 6] = ["fd", "loop", "nbd", "ram", "sr", "zram"];

/// Names of devices that are made of others: device-mapper's, and those of software RAID.
const MADE_OF_OTHERS: [&str; 2] = ["dm-", "md"];

/// Whether a device is made of others, by its name in sysfs.
pub(crate) fn is_made_of_others(name: &str) -> bool {
    MADE_OF_OTHERS.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a device is a part of another one now, which then is the one to use: a mirror's parts look like the whole.
fn is_part(root: &Path, name: &str) -> bool {
    fs::read_dir(root.join("sys/class/block").join(name).join("holders"))
        .is_ok_and(|mut holders| holders.next().is_some())
}

/// A block device that a target was resolved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// Its node below `/dev`.
    pub(crate) node: PathBuf,
    /// What is on it; none where its superblock is of no known kind.
    pub(crate) filesystem: Option<Filesystem>,
}

/// The names of the block devices there are, as in `/sys/class/block`, sorted. `root` is `/` but in tests.
pub(crate) fn names(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("sys/class/block"));
    let mut names: Vec<String> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !NOT_LOOKED_AT.iter().any(|kind| is_kind(name, kind)))
        .collect();
    names.sort();
    names
}

/// Whether a device's name is `kind` and a number.
fn is_kind(name: &str, kind: &str) -> bool {
    name.strip_prefix(kind).is_some_and(|number| number.starts_with(|first: char| first.is_ascii_digit()))
}

/// The device that `target` means; none while there is no such device. `root` is `/` but in tests. One that is found by its
/// filesystem is no part of another, and has a name that starts with `prefix`, where one is given.
///
/// # Errors
/// The system's error where a device that was named cannot be read. Devices that are only searched may fail.
pub(crate) fn find(root: &Path, target: &Target, prefix: Option<&str>) -> io::Result<Option<Device>> {
    let search = |wanted: &dyn Fn(&Filesystem) -> bool| search(root, prefix, wanted);
    match target {
        Target::Device(path) => {
            let node = root.join(path.strip_prefix("/").unwrap_or(path));
            if !node.exists() {
                return Ok(None);
            }
            let filesystem = superblock::read(&node)?;
            Ok(Some(Device { node, filesystem }))
        }
        Target::PartUuid(id) => {
            let name = names(root).into_iter().find(|name| partition_uuid(root, name).as_ref() == Some(id));
            let Some(node) = name.map(|name| root.join("dev").join(name)) else { return Ok(None) };
            let filesystem = superblock::read(&node)?;
            Ok(Some(Device { node, filesystem }))
        }
        Target::Uuid(id) => Ok(search(&|filesystem| filesystem.uuid == *id)),
        Target::Label(label) => Ok(search(&|filesystem| filesystem.label == *label)),
        Target::Nfs(_) | Target::Ssh(_) => Ok(None),
    }
}

fn search(root: &Path, prefix: Option<&str>, wanted: &dyn Fn(&Filesystem) -> bool) -> Option<Device> {
    let names = names(root).into_iter().filter(|name| !is_part(root, name));
    names.filter(|name| prefix.is_none_or(|prefix| name.starts_with(prefix))).find_map(|name| {
        // Names in sysfs have `!` where the node has a directory, as in cciss!c0d0.
        let node = root.join("dev").join(name.replace('!', "/"));
        let filesystem = superblock::read(&node).ok()??;
        wanted(&filesystem).then_some(Device { node, filesystem: Some(filesystem) })
    })
}

/// The partition's UUID out of its uevent file; kernels tell it there since 6.9.
fn partition_uuid(root: &Path, name: &str) -> Option<String> {
    let uevent = fs::read_to_string(root.join("sys/class/block").join(name).join("uevent")).ok()?;
    uevent.lines().find_map(|line| Some(line.strip_prefix("PARTUUID=")?.to_ascii_lowercase()))
}

/// A node's name in sysfs: `/dev/cciss/c0d0` is `cciss!c0d0` in sysfs.
pub(crate) fn sysfs_name(root: &Path, node: &Path) -> Option<String> {
    let dev = root.join("dev").canonicalize().ok()?;
    Some(node.strip_prefix(dev).ok()?.to_str()?.replace('/', "!"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with two disks, the second with an ext4 filesystem on its partition.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in ["vda", "vdb", "vdb1", "loop0", "sr0"] {
            let dir = root.path().join("sys/class/block").join(name);
            fs::create_dir_all(&dir).unwrap();
            let partition = if name == "vdb1" { "PARTUUID=AB-01\n" } else { "" };
            fs::write(dir.join("uevent"), format!("MAJOR=254\nDEVNAME={name}\n{partition}")).unwrap();
        }
        fs::create_dir_all(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/vda"), [0; 4096]).unwrap();
        let mut disk = vec![0; 4096];
        disk[0x438..0x43a].copy_from_slice(b"\x53\xef");
        disk[0x468..0x478].fill(0x11);
        disk[0x478..0x47d].copy_from_slice(b"crash");
        fs::write(root.path().join("dev/vdb1"), disk).unwrap();
        root
    }

    #[test]
    fn targets_are_found_by_what_they_are_named_by() {
        let root = machine();
        let find = |target: &str| find(root.path(), &target.parse().unwrap(), None);
        for target in
            ["UUID=11111111-1111-1111-1111-111111111111", "LABEL=crash", "PARTUUID=ab-01", "/dev/vdb1"]
        {
            let device = find(target).unwrap().unwrap();
            assert_eq!(device.node, root.path().join("dev/vdb1"), "{target}");
            assert_eq!(device.filesystem.unwrap().kind, "ext4", "{target}");
        }
        for target in ["UUID=11111111", "LABEL=other", "PARTUUID=ab", "/dev/vdc"] {
            assert_eq!(find(target).unwrap(), None, "{target}");
        }
        assert_eq!(find("/dev/vda").unwrap().unwrap().filesystem, None);
    }

    /// A mirror's part has the same superblock as the whole: it must not be written to.
    #[test]
    fn parts_of_a_mirror_are_not_taken_for_it() {
        let root = machine();
        let label: Target = "LABEL=crash".parse().unwrap();
        assert_eq!(find(root.path(), &label, Some("md")).unwrap(), None, "before the mirror is up");
        fs::create_dir_all(root.path().join("sys/class/block/md0")).unwrap();
        fs::copy(root.path().join("dev/vdb1"), root.path().join("dev/md0")).unwrap();
        let found = |prefix| find(root.path(), &label, prefix).unwrap().unwrap().node;
        assert_eq!(found(Some("md")), root.path().join("dev/md0"));
        fs::create_dir_all(root.path().join("sys/class/block/vdb1/holders/md0")).unwrap();
        fs::rename(root.path().join("sys/class/block/md0"), root.path().join("sys/class/block/zmd0"))
            .unwrap();
        fs::rename(root.path().join("dev/md0"), root.path().join("dev/zmd0")).unwrap();
        assert_eq!(found(None), root.path().join("dev/zmd0"), "although the part comes first");
    }

    #[test]
    fn devices_without_a_disk_are_left_out() {
        let root = machine();
        assert_eq!(names(root.path()), ["vda", "vdb", "vdb1"]);
        assert!(names(Path::new("/nonexistent")).is_empty());
    }
}
