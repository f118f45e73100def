//! Devices that are made of others, as LVM volumes and software RAID are: what they are made of, and who brings them up.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::capture::device::is_made_of_others;
use crate::capture::{Assembly, MDADM_CONFIG, RaidArray};

/// What LVM is told: nothing of the running system's is there, neither udev nor locks nor a place for backups.
const LVM_CONFIG: &str = "backup{backup=0 archive=0} activation{udev_sync=0 udev_rules=0 monitoring=0} \
                          devices{use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source=\"none\"} \
                          global{use_lvmpolld=0 event_activation=0 thin_check_executable=\"\" cache_check_executable=\"\"}";
/// The drivers of LVM's kinds of volumes. Which of them one volume takes is not told; those that are loaded now will do.
const LVM_MODULES: [&str; 11] = [
    "dm_snapshot",
    "dm_mirror",
    "dm_log",
    "dm_region_hash",
    "dm_raid",
    "raid0",
    "raid1",
    "raid10",
    "raid456",
    "dm_thin_pool",
    "dm_cache",
];

/// What a device stands on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stack {
    /// The disks and partitions at its ground, by their names in sysfs.
    pub(super) ground: BTreeSet<String>,
    /// Who brings up what stands on them, the lowest first.
    pub(super) assemblies: Vec<Assembly>,
    /// Modules that must be there.
    pub(super) modules: Vec<String>,
    /// Modules that are taken where the kernel has them.
    pub(super) wanted: Vec<&'static str>,
    /// Programs that are needed.
    pub(super) programs: Vec<&'static str>,
}

/// Why a device cannot be brought up in the capture kernel.
#[derive(Debug, thiserror::Error)]
pub(super) enum StackError {
    /// Of a kind that is not known, or needs a secret.
    #[error(
        "{device} is a {kind} device, which the capture kernel cannot bring up by itself: choose a target on a disk, a partition, an \
         LVM volume or software RAID, or have your distribution's tools put the initramfs together (--builder)"
    )]
    Kind {
        /// The device.
        device: String,
        /// What it is.
        kind: String,
    },
    /// Its name in its own system is not told.
    #[error("cannot find out what {device} is: {reason}")]
    Unknown {
        /// The device.
        device: String,
        /// Why not.
        reason: String,
    },
}

impl Stack {
    /// What `device`, a name in sysfs, stands on. `root` is `/` but in tests; `uuid_of` gives the UUID of an array by its name.
    pub(super) fn of(
        root: &Path,
        device: &str,
        uuid_of: &dyn Fn(&str) -> Result<String, String>,
    ) -> Result<Self, StackError> {
        let mut stack = Self::default();
        stack.add(root, device, uuid_of)?;
        Ok(stack)
    }

    fn add(
        &mut self,
        root: &Path,
        device: &str,
        uuid_of: &dyn Fn(&str) -> Result<String, String>,
    ) -> Result<(), StackError> {
        let device = &whole(root, device);
        let dir = root.join("sys/class/block").join(device);
        if !is_made_of_others(device) {
            if device.starts_with("bcache") || device.starts_with("drbd") {
                return Err(StackError::Kind {
                    device: device.clone(),
                    kind: device.trim_end_matches(char::is_numeric).to_owned(),
                });
            }
            self.ground.insert(device.clone());
            return Ok(());
        }
        let parts = fs::read_dir(dir.join("slaves")).into_iter().flatten().flatten();
        let mut parts: Vec<String> = parts.filter_map(|part| part.file_name().into_string().ok()).collect();
        parts.sort();
        // Its halves would be taken for volumes with the filesystem.
        if device.starts_with("md") && parts.iter().any(|part| part.starts_with("dm-")) {
            let kind = "software RAID on device-mapper".to_owned();
            return Err(StackError::Kind { device: device.clone(), kind });
        }
        for part in parts {
            self.add(root, &part, uuid_of)?;
        }
        let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default().trim().to_owned();
        if device.starts_with("md") {
            let uuid = uuid_of(device);
            let uuid = uuid.map_err(|reason| StackError::Unknown { device: device.clone(), reason })?;
            self.raid(device, &uuid, &text("md/level"));
        } else {
            let uuid = text("dm/uuid");
            if !uuid.starts_with("LVM-") {
                let kind = uuid.split_once('-').map_or("device-mapper", |(kind, _)| kind);
                return Err(StackError::Kind { device: device.clone(), kind: kind.to_owned() });
            }
            let name = text("dm/name");
            let volume = volume(&name).ok_or_else(|| StackError::Unknown {
                device: device.clone(),
                reason: format!("\"{name}\" is no name of an LVM volume"),
            })?;
            // What a volume is made of below LVM (a mirror's halves) LVM brings up with it.
            self.assemblies.retain(|assembly| assembly.whole.first().is_none_or(|program| program != "lvm"));
            self.lvm(root, &volume);
        }
        Ok(())
    }

    fn raid(&mut self, device: &str, uuid: &str, level: &str) {
        let node = format!("/dev/{device}");
        // A part that comes late must not be left behind: only once half of the wait is over an array starts without it. mdadm starts it
        // at once unless it is told not to, and that it only is of an array in a file.
        let whole = ["mdadm", "--assemble", "--scan", "--no-degraded", "--config", MDADM_CONFIG, &node];
        let degraded = ["mdadm", "--assemble", &node, "--uuid", uuid, "--run"];
        self.assemblies.push(Assembly {
            array: Some(RaidArray { name: device.to_owned(), uuid: uuid.to_owned() }),
            whole: whole.map(str::to_owned).to_vec(),
            degraded: vec![degraded.map(str::to_owned).to_vec()],
        });
        self.modules.push("md_mod".to_owned());
        self.modules.push(match level {
            "raid4" | "raid5" | "raid6" => "raid456".to_owned(),
            other => other.to_owned(),
        });
        self.programs.push("mdadm");
    }

    fn lvm(&mut self, root: &Path, volume: &str) {
        let command = |mode: &str| {
            let words = [
                "lvm",
                "lvchange",
                "--activate",
                "y",
                "--sysinit",
                "--activationmode",
                mode,
                "--config",
                LVM_CONFIG,
                volume,
            ];
            words.map(str::to_owned).to_vec()
        };
        self.assemblies.push(Assembly {
            array: None,
            whole: command("complete"),
            degraded: vec![command("degraded")],
        });
        self.modules.push("dm_mod".to_owned());
        let loaded = LVM_MODULES.into_iter().filter(|module| root.join("sys/module").join(module).exists());
        self.wanted.extend(loaded);
        self.programs.push("lvm");
    }
}

/// The device that a partition of a device that is made of others is on; other devices as they are.
fn whole(root: &Path, device: &str) -> String {
    let dir = root.join("sys/class/block").join(device);
    let parent = || Some(fs::canonicalize(&dir).ok()?.parent()?.file_name()?.to_str()?.to_owned());
    if is_made_of_others(device) && dir.join("partition").exists() {
        parent().unwrap_or_else(|| device.to_owned())
    } else {
        device.to_owned()
    }
}

/// `GROUP/VOLUME` of the name that device-mapper has for an LVM volume: `GROUP-VOLUME`, where a dash in either is two.
fn volume(name: &str) -> Option<String> {
    let marked = name.replace("--", "\0");
    let (group, volume) = marked.split_once('-')?;
    let fine = !group.is_empty() && !volume.is_empty() && !volume.contains('-');
    fine.then(|| format!("{group}/{volume}").replace('\0', "-"))
}

/// The UUID of a software RAID, as mdadm tells it.
pub(super) fn raid_uuid(device: &str) -> Result<String, String> {
    let told = Command::new("mdadm").args(["--detail", "--export", &format!("/dev/{device}")]).output();
    let told = told.map_err(|error| format!("cannot start mdadm: {error}"))?;
    let text = String::from_utf8_lossy(&told.stdout);
    let uuid = text.lines().find_map(|line| line.strip_prefix("MD_UUID=")).map(str::to_owned);
    uuid.ok_or_else(|| format!("mdadm does not tell its UUID ({})", told.status))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// sda1 and sdb1 in md0; on it LVM with a volume, dm-0, and an encrypted device, dm-1; sdc1 with dm-2 on it; a partition of md0.
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join("sys/class/block").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for disk in ["sda1", "sdb1", "sdc1", "drbd0"] {
            write(&format!("{disk}/partition"), "1\n");
        }
        for (device, parts) in [
            ("md0", &["sda1", "sdb1"][..]),
            ("md9", &["dm-0"]),
            ("dm-0", &["md0"]),
            ("dm-1", &["md0"]),
            ("dm-2", &["sdc1", "dm-3"]),
            ("dm-3", &["sdb1"]),
        ] {
            for part in parts {
                write(&format!("{device}/slaves/{part}"), "");
            }
        }
        write("md0/md/level", "raid5\n");
        write("md0/md0p1/partition", "1\n");
        symlink("md0/md0p1", root.path().join("sys/class/block/md0p1")).unwrap();
        for (device, name, uuid) in [
            ("dm-0", "my--vg-dumps", "LVM-abc"),
            ("dm-1", "secret", "CRYPT-LUKS2-x"),
            ("dm-2", "vg-mirror", "LVM-def"),
            ("dm-3", "vg-mirror_rimage_0", "LVM-ghi"),
        ] {
            write(&format!("{device}/dm/name"), &format!("{name}\n"));
            write(&format!("{device}/dm/uuid"), &format!("{uuid}\n"));
        }
        fs::create_dir_all(root.path().join("sys/module/dm_raid")).unwrap();
        root
    }

    fn stack(device: &str) -> Result<Stack, StackError> {
        Stack::of(machine().path(), device, &|device| Ok(format!("uuid-of-{device}")))
    }

    #[test]
    fn a_disk_stands_on_itself() {
        let stack = stack("sda1").unwrap();
        assert_eq!(stack, Stack { ground: ["sda1".to_owned()].into(), ..Stack::default() });
    }

    #[test]
    fn an_array_is_brought_up_whole_and_late_with_what_is_there() {
        for device in ["md0", "md0p1"] {
            let stack = stack(device).unwrap();
            assert_eq!(
                stack.ground.iter().map(String::as_str).collect::<Vec<_>>(),
                ["sda1", "sdb1"],
                "{device}"
            );
            let [assembly] = stack.assemblies.as_slice() else { panic!("{stack:?}") };
            assert!(
                assembly
                    .whole
                    .join(" ")
                    .ends_with(" --no-degraded --config /run/hotdump/mdadm.conf /dev/md0")
            );
            let array = assembly.array.as_ref().map(|array| (array.name.as_str(), array.uuid.as_str()));
            assert_eq!(array, Some(("md0", "uuid-of-md0")));
            assert_eq!(assembly.degraded[0].join(" "), "mdadm --assemble /dev/md0 --uuid uuid-of-md0 --run");
            assert_eq!(
                (stack.modules, stack.programs),
                (vec!["md_mod".into(), "raid456".into()], vec!["mdadm"])
            );
        }
    }

    #[test]
    fn a_volume_on_an_array_needs_both_the_array_first() {
        let stack = stack("dm-0").unwrap();
        let programs: Vec<&str> =
            stack.assemblies.iter().map(|assembly| assembly.whole[0].as_str()).collect();
        assert_eq!(programs, ["mdadm", "lvm"]);
        assert_eq!(stack.assemblies[1].whole.last().unwrap(), "my-vg/dumps");
        assert_eq!((stack.wanted, stack.ground.len()), (vec!["dm_raid"], 2));
    }

    #[test]
    fn the_parts_of_a_volume_come_with_it() {
        let stack = stack("dm-2").unwrap();
        assert_eq!(stack.assemblies.len(), 1, "{stack:?}");
        assert_eq!(stack.ground.len(), 2);
        assert!(stack.assemblies[0].degraded[0].contains(&"degraded".to_owned()));
    }

    #[test]
    fn what_needs_more_is_refused_with_a_way_out() {
        for (device, kind) in [("dm-1", "CRYPT"), ("drbd0", "drbd"), ("md9", "RAID on device-mapper")] {
            let error = stack(device).unwrap_err().to_string();
            assert!(error.contains(kind) && error.contains("--builder"), "{error}");
        }
        let error = Stack::of(machine().path(), "md0", &|_| Err("no mdadm".into())).unwrap_err().to_string();
        assert!(error.contains("no mdadm"), "{error}");
    }

    #[test]
    fn names_of_volumes() {
        for (name, want) in [
            ("vg-lv", Some("vg/lv")),
            ("my--vg-my--lv", Some("my-vg/my-lv")),
            ("a---b", Some("a-/b")),
            ("vg", None),
            ("vg-lv-real", None),
            ("-lv", None),
        ] {
            assert_eq!(volume(name).as_deref(), want, "{name}");
        }
    }
}
