//! From a target's name to a mounted filesystem.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::config::{Assembly, Config, LocalLog, RaidArray, Target};
use super::console::say;
use super::device::{self, Device};
use super::network::{self, Network, NetworkError};
use super::remote::{NfsExport, SshServer};
use super::sftp::Sftp;
use super::ssh::Credentials;
use super::{nfs, ssh, system};

/// Where the target is mounted.
pub(crate) const MOUNT_POINT: &str = "/run/hotdump/target";
/// Where the filesystem is mounted that takes the log when a server does not take the dump.
pub(crate) const LOCAL_MOUNT_POINT: &str = "/run/hotdump/local";
/// Where files are written that go to a server by SSH: in memory, but for the dump, which is never there.
pub(crate) const STAGE: &str = "/run/hotdump/stage";
/// The same for `hotdump target check`, on the running system.
pub(crate) const CHECK_STAGE: &str = "/run/hotdump/check-stage";

/// Where mdadm is told which array it is about. Only of one that stands there does it wait for all parts.
pub(crate) const MDADM_CONFIG: &str = "/run/hotdump/mdadm.conf";

/// How often devices are looked for.
const LOOK: Duration = Duration::from_millis(200);
/// How often it is tried to bring up what it is made of.
const ASSEMBLE: Duration = Duration::from_secs(2);
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
    /// A server is named, and not how to get there.
    #[error(
        "{target} is a server, and the configuration has no network: write it by `hotdump initramfs --target {target}`"
    )]
    NoNetwork {
        /// The target.
        target: Target,
    },
    /// The server does not let us in.
    #[error("cannot log in at {target}: {source}")]
    Session {
        /// The target.
        target: Target,
        /// Why.
        source: std::io::Error,
    },
    /// The server cannot be reached.
    #[error("cannot save to {target}: {source}")]
    Network {
        /// The target.
        target: Target,
        /// Why.
        source: NetworkError,
    },
}

/// Brings the network up and opens a session with a server that takes files by SSH.
///
/// # Errors
/// As for [`mount`].
pub(crate) fn open_session(
    target: &Target,
    server: &SshServer,
    config: &Config,
) -> Result<Sftp, TargetError> {
    let network = connect(target, config, |network| ssh::address(network, server))?;
    say!("saving to {target}");
    Sftp::start(&mut ssh::command(Path::new("ssh"), server, network, &Credentials::in_capture()))
        .map_err(|source| TargetError::Session { target: target.clone(), source })
}

/// Waits for the configured target, device or server, and mounts it at [`MOUNT_POINT`].
///
/// # Errors
/// [`TargetError`]; each wait is bounded by `config.target_wait_seconds`.
pub(crate) fn mount(config: &Config) -> Result<(), TargetError> {
    let target = config.target.as_ref().ok_or(TargetError::None)?;
    match target {
        Target::Nfs(export) => mount_export(target, export, config),
        _ => mount_device(target, config.fs.as_deref(), MOUNT_POINT, config),
    }
}

/// Mounts the filesystem for the log at [`LOCAL_MOUNT_POINT`].
///
/// # Errors
/// As for [`mount`].
pub(crate) fn mount_local(local: &LocalLog, config: &Config) -> Result<(), TargetError> {
    mount_device(&local.target, local.fs.as_deref(), LOCAL_MOUNT_POINT, config)
}

fn mount_export(target: &Target, export: &NfsExport, config: &Config) -> Result<(), TargetError> {
    let network = connect(target, config, |network| nfs::address(network, &config.nfs_options))?;
    say!("saving to {target}");
    nfs::mount(export, network, &config.nfs_options, Path::new(MOUNT_POINT)).map_err(|source| {
        let no_driver = source.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error());
        let hint = if no_driver { "; its module is missing from the initramfs" } else { "" };
        TargetError::Mount { node: export.source(), kind: "nfs".into(), source, hint }
    })
}

/// Brings the network up and sees that the server answers at its port.
fn connect<'a>(
    target: &Target,
    config: &'a Config,
    port: impl Fn(&Network) -> SocketAddr,
) -> Result<&'a Network, TargetError> {
    let Some(network) = &config.network else {
        return Err(TargetError::NoNetwork { target: target.clone() });
    };
    let seconds = config.target_wait_seconds;
    let reached = network::bring_up(Path::new("/"), network, seconds)
        .and_then(|()| network::reach(port(network), seconds));
    reached.map(|()| network).map_err(|source| TargetError::Network { target: target.clone(), source })
}

/// Waits for a device and mounts its filesystem at `place`.
fn mount_device(
    target: &Target,
    kind: Option<&str>,
    place: &str,
    config: &Config,
) -> Result<(), TargetError> {
    let device = wait(Path::new("/"), target, &config.assemblies, config.target_wait_seconds)?;
    let node = device.node.display().to_string();
    let found = device.filesystem.map(|filesystem| filesystem.kind);
    let Some(kind) = kind.or(found).map(str::to_owned) else {
        return Err(TargetError::NoFilesystem { node });
    };
    say!("saving to {target}: {node}, {kind}");
    system::mount_target(&device.node, Path::new(place), &kind).map_err(|source| {
        let no_driver = source.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error());
        let hint = if no_driver { "; its module is missing from the initramfs" } else { "" };
        TargetError::Mount { node, kind, source, hint }
    })
}

/// Looks for the target until it is there or `seconds` are over; brings up what it is made of meanwhile.
fn wait(root: &Path, target: &Target, assemblies: &[Assembly], seconds: u64) -> Result<Device, TargetError> {
    let began = Instant::now();
    let mut said = began;
    let mut assembled: Option<Instant> = None;
    loop {
        // A device that is there and cannot be read may still be starting.
        if let Ok(Some(device)) = device::find(root, target, made_by(assemblies)) {
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
        if assembled.is_none_or(|last| last.elapsed() >= ASSEMBLE) {
            let is_late = began.elapsed() >= Duration::from_secs(seconds) / 2;
            assemblies.iter().for_each(|assembly| assemble(root, assembly, is_late));
            assembled = Some(Instant::now());
        } else {
            thread::sleep(LOOK);
        }
    }
}

/// How the names of devices start that the last of `assemblies` brings up: what they are made of may look like them. None where
/// there are none.
fn made_by(assemblies: &[Assembly]) -> Option<&'static str> {
    let program = assemblies.last()?.whole.first()?;
    Some(if program == "mdadm" { "md" } else { "dm-" })
}

/// Runs the command that brings a device up. One that fails is tried again, as its parts may come yet.
fn assemble(root: &Path, assembly: &Assembly, is_late: bool) {
    if let Some(RaidArray { name, uuid }) = &assembly.array {
        match array_state(root, name).as_str() {
            "" | "clear" => {}
            // A try before left it with the parts that were there: mdadm takes none of them for another.
            "inactive" => run(&["mdadm", "--stop", &format!("/dev/{name}")].map(str::to_owned)),
            _ => return,
        }
        let path = root.join(MDADM_CONFIG.trim_start_matches('/'));
        let written = std::fs::create_dir_all(path.parent().unwrap_or(root))
            .and_then(|()| std::fs::write(&path, format!("ARRAY /dev/{name} UUID={uuid}\n")));
        written.unwrap_or_else(|error| say!("cannot write {}: {error}", path.display()));
    }
    if is_late {
        assembly.degraded.iter().for_each(|command| run(command));
    } else {
        run(&assembly.whole);
    }
}

/// The state of a software RAID (Documentation/admin-guide/md.rst); empty where there is no array of that name.
fn array_state(root: &Path, array: &str) -> String {
    let path = root.join("sys/class/block").join(array).join("md/array_state");
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn run(command: &[String]) {
    let [program, arguments @ ..] = command else { return };
    match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stderr);
            let lines = told.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned);
            let parts: Vec<String> = [output.status.to_string()].into_iter().chain(lines).collect();
            say!("{program}: {}", parts.join("; "));
        }
        Err(error) => say!("cannot start {program}: {error}"),
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

        let error = wait(root.path(), &target, &[], 0).unwrap_err().to_string();
        assert!(error.contains("/dev/vda") && error.contains("block devices here: vdz"), "{error}");

        let node = root.path().join("dev/vda");
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            std::fs::write(node, [0; 4096]).unwrap();
        });
        assert_eq!(wait(root.path(), &target, &[], 60).unwrap().node, root.path().join("dev/vda"));
        late.join().unwrap();
    }

    #[test]
    fn what_a_target_is_made_of_is_brought_up_whole_first_and_then_with_what_is_there() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        std::fs::create_dir_all(path("dev")).unwrap();
        std::fs::create_dir_all(path("sys/class/block/md0")).unwrap();
        let shell = |line: String| vec!["/bin/sh".to_owned(), "-c".to_owned(), line];
        let tried = path("tried").display().to_string();
        let assembly = Assembly {
            array: None,
            whole: shell(format!("echo whole >> {tried}; exit 1")),
            degraded: vec![shell(format!(
                "echo degraded >> {tried}; head -c 4096 /dev/zero > {}",
                path("dev/md0").display()
            ))],
        };
        let target = Target::Device("/dev/md0".into());
        let found = wait(root.path(), &target, &[assembly], 4).unwrap();
        assert_eq!(found.node, path("dev/md0"));
        assert_eq!(std::fs::read_to_string(tried).unwrap(), "whole\ndegraded\n");
    }
    #[test]
    fn an_array_that_has_started_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let tried = root.path().join("tried");
        let shell = ["/bin/sh", "-c", &format!("echo x >> {}", tried.display())].map(str::to_owned);
        let array = Some(RaidArray { name: "md0".into(), uuid: "a:b:c:d".into() });
        let assembly = Assembly { array, whole: shell.to_vec(), degraded: vec![shell.to_vec()] };
        let state = |state: &str| {
            let dir = root.path().join("sys/class/block/md0/md");
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("array_state"), state).unwrap();
        };
        let tries = |is_late| {
            let _ = std::fs::remove_file(&tried);
            assemble(root.path(), &assembly, is_late);
            std::fs::read_to_string(&tried).unwrap_or_default().lines().count()
        };
        assert_eq!((tries(false), tries(true)), (1, 1), "before there is one");
        let config = std::fs::read_to_string(root.path().join("run/hotdump/mdadm.conf")).unwrap();
        assert_eq!(config, "ARRAY /dev/md0 UUID=a:b:c:d\n");
        for (now, want) in [("clear\n", 1), ("active\n", 0), ("clean\n", 0), ("read-auto\n", 0)] {
            state(now);
            assert_eq!((tries(false), tries(true)), (want, want), "{now}");
        }
    }
}
