//! The steps to a target, and those that all targets have.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::Path;

use host::Host;

use super::{Outcome, Steps, network, probe};
use crate::capture::usage::kib;
use crate::capture::{Config, Place, Target, device, mount_target, superblock::Filesystem, unmount};
use crate::initramfs::{self, Expected};
use crate::prepared::{Prepared, mounted_at};
use crate::text::{counted, size};

/// Where a target is mounted that is not mounted already.
pub(super) const MOUNT_POINT: &str = "/run/hotdump/check";
/// What log, triage and report take.
const LEAST_SPACE: u64 = 64 << 20;

/// Goes through the steps of the capture kernel to the target of `prepared`, which was read from `path`.
///
/// # Errors
/// Only root can.
pub(crate) fn check(path: &Path, prepared: &Prepared) -> anyhow::Result<Steps> {
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "to check a target takes root: it is mounted and written to"
    );
    let mut steps = Steps::default();
    let config = &prepared.config;
    check_drivers(prepared, &mut steps);
    match &config.target {
        Some(Target::Nfs(export)) => network::nfs(export, config, &mut steps),
        Some(Target::Ssh(server)) => network::ssh(server, path, prepared, &mut steps),
        Some(target) => disk(target, config.fs.as_deref(), &config.path, Some(config), &mut steps),
        None => {}
    }
    if let Some(log) = &config.local_log {
        steps.note("local log", Outcome::Done, format!("{}, directory {}", log.target, log.path.display()));
        disk(&log.target, log.fs.as_deref(), &log.path, None, &mut steps);
    }
    Ok(steps)
}

/// Are the modules of the drivers that are at work now in the initramfs?
fn check_drivers(prepared: &Prepared, steps: &mut Steps) {
    if prepared.is_by_distribution() {
        let told = "those of the distribution's initramfs tools, which put it together: not checked";
        return steps.note("drivers", Outcome::Done, told);
    }
    let release = prepared.modules_release();
    let running = Host::live().kernel_release().ok();
    let of = release.clone().or(running.clone());
    let Some(of) = of else { return };
    let expected = initramfs::expected(&prepared.config, &of);
    let Some(Expected { modules, warnings, network }) = steps.take("drivers", expected, |expected| {
        let kernel = if running.as_ref() == Some(&of) { "the running kernel" } else { "another kernel" };
        format!("{} needed, for {of}, {kernel}", counted(expected.modules.len(), "module"))
    }) else {
        return;
    };
    let missing: Vec<&str> =
        modules.iter().filter(|module| prepared.file(module).is_none()).map(String::as_str).collect();
    if !missing.is_empty() {
        steps.note(
            "",
            Outcome::Failed,
            format!("missing in the initramfs, write it again: {}", missing.join(", ")),
        );
    }
    for warning in warnings {
        steps.note("", Outcome::Warning, warning);
    }
    if let (Some(now), Some(then)) = (network, &prepared.config.network) {
        network::same_way(then, &now, steps);
    }
}

/// A filesystem on a disk; `config` where it is for the memory.
fn disk(target: &Target, kind: Option<&str>, path: &Path, config: Option<&Config>, steps: &mut Steps) {
    let root = Path::new("/");
    let found = device::find(root, target, None).and_then(|found| {
        found.ok_or_else(|| {
            io::Error::other(format!(
                "no block device is {target}; there are {}",
                device::names(root).join(", ")
            ))
        })
    });
    let Some(found) = steps.take("device", found, |device| device.node.display().to_string()) else { return };
    let kind = recognised(kind, found.filesystem.as_ref());
    let Some(kind) = steps.take("filesystem", kind, ToString::to_string) else { return };
    if let Some((point, below)) = mounted_at(root, target, path) {
        steps.note("mount", Outcome::Done, format!("it is mounted at {} already", point.display()));
        return write(&point, &below, config, steps);
    }
    let mounted = mount_target(&found.node, Path::new(MOUNT_POINT), &kind).map(|()| Mounted);
    let Some(mounted) = steps.take("mount", mounted, |_| format!("mounted as {kind}, for this check")) else {
        return;
    };
    write(Path::new(MOUNT_POINT), path, config, steps);
    drop(mounted);
}

fn recognised(configured: Option<&str>, found: Option<&Filesystem>) -> Result<String, String> {
    match (configured, found.map(|found| found.kind)) {
        (Some(configured), Some(found)) if configured != found => {
            Err(format!("it holds {found}, and the initramfs says {configured}: write it again"))
        }
        (Some(kind), _) | (None, Some(kind)) => Ok(kind.to_owned()),
        (None, None) => Err("none is recognised on it; name its type: hotdump initramfs --fs".into()),
    }
}

/// Makes a dump's directory in `path` below `root`, writes a file there, and sees how much room there is.
pub(super) fn write(root: &Path, path: &Path, config: Option<&Config>, steps: &mut Steps) {
    let place = Place::create(root, path, jiff::Timestamp::now());
    let Some(place) = steps.take("directory", place, |_| format!("{}, made as for a dump", path.display()))
    else {
        return;
    };
    let free = place.free_space();
    if steps
        .take("write", probe::write(place), |()| "a file written, synced, read back and removed".into())
        .is_some()
    {
        space(free, config, steps);
    }
}

/// Holds the free space against what a dump of the memory in use now would take at most.
pub(super) fn space(free: io::Result<u64>, config: Option<&Config>, steps: &mut Steps) {
    let free = match free {
        Ok(free) => free,
        Err(error) => {
            return steps.note("space", Outcome::Warning, format!("how much is free is not told: {error}"));
        }
    };
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let needed = config.map_or(0, |config| most(&meminfo, config.dump_level.number()));
    let told = match config {
        Some(_) => format!("{} free; a dump now takes {} at most", size(free), size(needed)),
        None => format!("{} free", size(free)),
    };
    match free {
        0..LEAST_SPACE => steps.note("space", Outcome::Failed, format!("only {told}")),
        _ if free < needed => {
            let what = "the capture leaves out more pages where it does not fit";
            steps.note("space", Outcome::Warning, format!("{told}: {what}"));
        }
        _ => steps.note("space", Outcome::Done, told),
    }
}

/// Bytes of a dump of this level, uncompressed, by what the kernel says of its memory.
fn most(meminfo: &str, level: u8) -> u64 {
    const CACHE: u8 = 2 | 4;
    const USER: u8 = 8;
    const FREE: u8 = 16;
    let of = |name| kib(meminfo, name).unwrap_or_default();
    let left_out = [
        (level & FREE != 0, "MemFree"),
        (level & CACHE == CACHE, "Cached"),
        (level & CACHE == CACHE, "Buffers"),
        (level & USER != 0, "AnonPages"),
    ];
    let left_out = left_out.into_iter().filter(|(is, _)| *is).map(|(_, name)| of(name)).sum();
    of("MemTotal").saturating_sub(left_out)
}

/// What is mounted at [`MOUNT_POINT`], until it is dropped.
pub(super) struct Mounted;

impl Drop for Mounted {
    fn drop(&mut self) {
        // What stays mounted is seen by the next check, which then finds it there.
        let _ = unmount(Path::new(MOUNT_POINT));
        let _ = fs::remove_dir(MOUNT_POINT);
    }
}

/// An error in words.
pub(super) fn in_words<T, E: Display>(result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filesystem_must_be_the_one_that_the_initramfs_was_written_for() {
        let ext4 = Filesystem { kind: "ext4", uuid: String::new(), label: String::new() };
        for (configured, found, want) in [
            (Some("ext4"), Some(&ext4), Ok("ext4")),
            (None, Some(&ext4), Ok("ext4")),
            (Some("vfat"), None, Ok("vfat")),
            (Some("xfs"), Some(&ext4), Err("write it again")),
            (None, None, Err("--fs")),
        ] {
            match (recognised(configured, found), want) {
                (Ok(kind), Ok(want)) => assert_eq!(kind, want),
                (Err(error), Err(want)) => assert!(error.contains(want), "{error}"),
                other => panic!("{configured:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_a_level_leaves_out_does_not_count() {
        let meminfo =
            "MemTotal: 1000 kB\nMemFree: 300 kB\nBuffers: 10 kB\nCached: 90 kB\nAnonPages: 200 kB\n";
        for (level, want) in
            [(0, 1000), (1, 1000), (16, 700), (17, 700), (8, 800), (2, 1000), (6, 900), (31, 400)]
        {
            assert_eq!(most(meminfo, level), want << 10, "level {level}");
        }
    }

    #[test]
    fn little_space_is_a_warning_and_none_a_failure() {
        let outcome = |free: io::Result<u64>, config: Option<&Config>| {
            let mut steps = Steps::default();
            space(free, config, &mut steps);
            steps.steps[0].outcome
        };
        let config = Config::default();
        assert_eq!(outcome(Ok(1 << 60), Some(&config)), Outcome::Done);
        assert_eq!(outcome(Ok(LEAST_SPACE), Some(&config)), Outcome::Warning);
        assert_eq!(outcome(Ok(LEAST_SPACE), None), Outcome::Done);
        assert_eq!(outcome(Ok(LEAST_SPACE - 1), None), Outcome::Failed);
        assert_eq!(outcome(Err(io::ErrorKind::Other.into()), None), Outcome::Warning);
    }
}
