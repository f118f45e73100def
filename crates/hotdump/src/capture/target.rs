//! From a target's name to a mounted filesystem.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::config::{Config, Target};
use super::console::say;
use super::device::{self, Device};
use super::system;

/// Where the target is mounted.
pub(crate) const MOUNT_POINT: &str = "/run/hotdump/target";

/// How often devices are looked for.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is said that one is still waited for.
const SAY: Duration = Duration::from_secs(10);

/// Why there is nothing to save to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// None is configured.
    #[error(
        "no target is configured: give hotdump.target=UUID=... on the capture kernel's command line, or by hand --to or --target"
    )]
    None,
    /// It did not appear.
    #[error(
        "the target {target} did not appear within {seconds} s; block devices here: {devices}. Is its driver missing from the \
         initramfs (hotdump initramfs --add-module)?"
    )]
    Absent {
        /// What was looked for.
        target: Target,
        /// How long.
        seconds: u64,
        /// What there is.
        devices: String,
    },
    /// No filesystem is recognised, and none was named.
    #[error("{node} holds no filesystem that is recognised; name its type: hotdump.fs=...")]
    NoFilesystem {
        /// The device.
        node: String,
    },
    /// It cannot be mounted.
    #[error("cannot mount {node} as {kind}: {source}{hint}")]
    Mount {
        /// The device.
        node: String,
        /// The filesystem's type.
        kind: String,
        /// The system's error.
        source: std::io::Error,
        /// What may help.
        hint: &'static str,
    },
}

/// Waits for the configured target and mounts it at [`MOUNT_POINT`].
///
/// # Errors
/// [`TargetError`]; the wait is bounded by `config.target_wait_seconds`.
pub(crate) fn mount(config: &Config) -> Result<(), TargetError> {
    let target = config.target.as_ref().ok_or(TargetError::None)?;
    let device = wait(Path::new("/"), target, config.target_wait_seconds)?;
    let node = device.node.display().to_string();
    let found = device.filesystem.map(|filesystem| filesystem.kind.to_owned());
    let Some(kind) = config.fs.clone().or(found) else { return Err(TargetError::NoFilesystem { node }) };
    say!("saving to {target}: {node}, {kind}");
    system::mount_target(&device.node, Path::new(MOUNT_POINT), &kind).map_err(|source| {
        let no_driver = source.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error());
        let hint = if no_driver { "; its module is missing from the initramfs" } else { "" };
        TargetError::Mount { node, kind, source, hint }
    })
}

/// Looks for the target until it is there or `seconds` are over.
fn wait(root: &Path, target: &Target, seconds: u64) -> Result<Device, TargetError> {
    let began = Instant::now();
    let mut said = began;
    loop {
        // A device that is there and cannot be read may still be starting.
        if let Ok(Some(device)) = device::find(root, target) {
            return Ok(device);
        }
        if began.elapsed() >= Duration::from_secs(seconds) {
            let names = device::names(root);
            let devices = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(TargetError::Absent { target: target.clone(), seconds, devices });
        }
        if said.elapsed() >= SAY {
            said = Instant::now();
            say!("waiting for {target}, {} of {seconds} s", began.elapsed().as_secs());
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_comes_late_is_found_and_one_that_never_comes_is_given_up() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("dev")).unwrap();
        std::fs::create_dir_all(root.path().join("sys/class/block/vdz")).unwrap();
        let target = Target::Device("/dev/vda".into());

        let error = wait(root.path(), &target, 0).unwrap_err().to_string();
        assert!(error.contains("/dev/vda") && error.contains("block devices here: vdz"), "{error}");

        let node = root.path().join("dev/vda");
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            std::fs::write(node, [0; 4096]).unwrap();
        });
        assert_eq!(wait(root.path(), &target, 60).unwrap().node, root.path().join("dev/vda"));
        late.join().unwrap();
    }
}
