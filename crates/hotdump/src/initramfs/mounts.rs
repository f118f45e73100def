//! /proc/self/mountinfo: which filesystem holds a path.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// A mounted filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// The device's numbers; 0 and something for filesystems without one, and for btrfs.
    pub(super) device: (u32, u32),
    /// The directory within the filesystem that is mounted.
    pub(super) root: PathBuf,
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// The filesystem's type.
    pub(super) kind: String,
    /// What it is mounted from, for disks a device.
    pub(super) source: PathBuf,
}

/// The mount that holds `path` (absolute, without links): the innermost, and of several at one place the last.
pub(super) fn holding(mountinfo: &str, path: &Path) -> Option<Mount> {
    let mounts = mountinfo.lines().filter_map(parse).filter(|mount| path.starts_with(&mount.point));
    mounts.max_by_key(|mount| mount.point.components().count())
}

/// Where the directory `path` of a filesystem is to be found on the running system: of the mounts of `device`, or of the node
/// `source`, the one that shows most of it, and the directory below that. None where the filesystem is not mounted, or not with
/// that directory.
pub(crate) fn shown_at(
    mountinfo: &str,
    device: (u32, u32),
    source: &Path,
    path: &Path,
) -> Option<(PathBuf, PathBuf)> {
    let same = |mount: &Mount| mount.device == device || mount.kind == "btrfs" && mount.source == source;
    let mounts = mountinfo.lines().filter_map(parse).filter(same);
    let shown = mounts.filter_map(|mount| {
        let below = path.strip_prefix(&mount.root).ok()?.to_owned();
        // Another filesystem may be mounted over it, or on the way.
        let is_seen = |place: &Path| holding(mountinfo, place).is_some_and(|holder| holder == mount);
        (is_seen(&mount.point) && is_seen(&mount.point.join(&below))).then(|| (mount.point.clone(), below))
    });
    shown.min_by_key(|(point, below)| point.components().count() + below.components().count())
}

/// A line: `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS...] - TYPE SOURCE OPTIONS` (proc_pid_mountinfo(5)).
fn parse(line: &str) -> Option<Mount> {
    let (place, filesystem) = line.split_once(" - ")?;
    let mut place = place.split_ascii_whitespace().skip(2);
    let (major, minor) = place.next()?.split_once(':')?;
    let (root, point) = (unescape(place.next()?), unescape(place.next()?));
    let mut filesystem = filesystem.split_ascii_whitespace();
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        root,
        point,
        kind: filesystem.next()?.to_owned(),
        source: unescape(filesystem.next()?),
    })
}

/// Undoes the kernel's `\040` for blanks and the like.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal =
            after.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// `path` with all links on the way resolved, as far as it exists; the rest is appended as it is.
pub(super) fn resolve(path: &Path) -> PathBuf {
    let existing = path.ancestors().find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
    match existing {
        Some((ancestor, real)) => match path.strip_prefix(ancestor) {
            Ok(rest) if !rest.as_os_str().as_bytes().is_empty() => real.join(rest),
            _ => real,
        },
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw - proc proc rw
30 22 0:40 /@var /var rw,relatime shared:2 master:1 - btrfs /dev/vdb2 rw,subvol=/@var
31 30 254:33 / /var/crash\\040dumps rw - xfs /dev/vdc1 rw
32 30 254:34 / /var/crash rw - xfs /dev/vdd1 rw
33 30 254:35 /sub /var/crash rw - ext4 /dev/vdd2 rw
broken line
";

    #[test]
    fn the_innermost_and_last_mount_holds_a_path() {
        for (path, point, root, source, device) in [
            ("/home", "/", "/", "/dev/vda1", (254, 1)),
            ("/var/lib", "/var", "/@var", "/dev/vdb2", (0, 40)),
            ("/var/crash dumps/x", "/var/crash dumps", "/", "/dev/vdc1", (254, 33)),
            ("/var/crash/x", "/var/crash", "/sub", "/dev/vdd2", (254, 35)),
            ("/variable", "/", "/", "/dev/vda1", (254, 1)),
        ] {
            let mount = holding(MOUNTINFO, Path::new(path)).unwrap();
            assert_eq!((mount.point.to_str(), mount.root.to_str()), (Some(point), Some(root)), "{path}");
            assert_eq!((mount.source.to_str(), mount.device), (Some(source), device), "{path}");
        }
    }

    #[test]
    fn a_directory_of_a_filesystem_is_found_where_it_is_mounted() {
        for (device, source, path, place) in [
            ((254, 1), "/dev/vda1", "/home/x", Some("/home/x")),
            ((254, 1), "/dev/vda1", "/", Some("/")),
            // What lies there is hidden by what is mounted over it.
            ((254, 1), "/dev/vda1", "/var/crash", None),
            ((0, 99), "/dev/vdb2", "/@var/lib", Some("/var/lib")),
            ((0, 99), "/dev/vdb2", "/@home", None),
            ((254, 34), "/dev/vdd1", "/x", None),
            ((254, 35), "/dev/vdd2", "/sub/x", Some("/var/crash/x")),
            ((254, 99), "/dev/vdz", "/", None),
        ] {
            let found = shown_at(MOUNTINFO, device, Path::new(source), Path::new(path));
            assert_eq!(
                found.map(|(point, below)| point.join(below)),
                place.map(PathBuf::from),
                "{source} {path}"
            );
        }
    }

    #[test]
    fn a_path_is_resolved_as_far_as_it_exists() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("data")).unwrap();
        std::os::unix::fs::symlink("data", real.join("link")).unwrap();
        assert_eq!(resolve(&dir.path().join("link/crash/new")), real.join("data/crash/new"));
        assert_eq!(resolve(&dir.path().join("link")), real.join("data"));
    }
}
