//! What the capture does to the system: each a small function over one or two system calls.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::system::RebootCommand;

use super::config::Action;
use super::console::say;

/// How long writes may take to reach the disk before the machine goes down without them.
const SYNC_LIMIT: Duration = Duration::from_secs(60);
/// Whether they once took longer: then they are not waited for again.
static DISKS_HANG: AtomicBool = AtomicBool::new(false);

/// The filesystems that the rest stands on: source, place, type, options.
const BASICS: [(&str, &str, &str); 4] = [
    ("proc", "/proc", "proc"),
    ("sysfs", "/sys", "sysfs"),
    ("devtmpfs", "/dev", "devtmpfs"),
    ("tmpfs", "/run", "tmpfs"),
];

/// Mounts proc, sys, dev and run where they are not yet mounted.
pub(crate) fn mount_basics() {
    for (source, place, kind) in BASICS {
        let _ = fs::create_dir_all(place);
        let flags =
            if kind == "devtmpfs" { MountFlags::NOSUID } else { MountFlags::NOSUID | MountFlags::NODEV };
        match rustix::mount::mount(source, place, kind, flags, None) {
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => say!("cannot mount {kind} on {place}: {error}"),
        }
    }
}

/// Mounts the target for writing. btrfs is mounted at its top level, whatever its default subvolume.
pub(crate) fn mount_target(device: &Path, place: &Path, kind: &str) -> io::Result<()> {
    fs::create_dir_all(place)?;
    let options = if kind == "btrfs" { Some(c"subvolid=5") } else { None };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    Ok(rustix::mount::mount(device, place, kind, flags, options)?)
}

/// Unmounts the target; fine where nothing is mounted.
pub(crate) fn unmount(place: &Path) -> io::Result<()> {
    match rustix::mount::unmount(place, UnmountFlags::empty()) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        unmounted => Ok(unmounted?),
    }
}

/// Loads a kernel module from an uncompressed file. One that is loaded already, or whose device is not here, is fine.
pub(crate) fn load_module(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let none = CString::default();
    match rustix::system::finit_module(&file, &none, 0) {
        Err(rustix::io::Errno::EXIST | rustix::io::Errno::NODEV) => Ok(()),
        loaded => Ok(loaded?),
    }
}

/// Bytes that may still be written below `path`, root's reserve included.
pub(crate) fn free_space(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bfree.saturating_mul(stat.f_frsize))
}

/// Lets go of what memory keeps of a file that is on disk, so that reading it reads the disk.
pub(crate) fn drop_cache(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

/// Sets room aside in `file`, so that it can be given back when the disk is full.
pub(crate) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    Ok(rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes)?)
}

/// Unmounts the target and writes out what is not yet on disk, for at most [`SYNC_LIMIT`]: a disk that does not answer must not
/// hold the machine.
pub(crate) fn let_go(place: &'static str) {
    bounded(move || {
        if let Err(error) = unmount(Path::new(place)) {
            say!("the target stays mounted: {error}");
        }
        rustix::fs::sync();
    });
}

/// Runs what may hang in the kernel, in a thread of its own.
fn bounded(job: impl FnOnce() + Send + 'static) {
    if DISKS_HANG.load(Ordering::Relaxed) {
        return;
    }
    let (done, wait) = mpsc::channel();
    thread::spawn(move || {
        job();
        let _ = done.send(());
    });
    if wait.recv_timeout(SYNC_LIMIT).is_err() {
        DISKS_HANG.store(true, Ordering::Relaxed);
        say!("the disks did not take all writes within {} s; going on without them", SYNC_LIMIT.as_secs());
    }
}

/// Carries an action out. Comes back only where the machine refuses.
pub(crate) fn act(action: Action) -> io::Error {
    if action == Action::Shell {
        shell();
    }
    bounded(rustix::fs::sync);
    let (command, word) = match action {
        // A shell that ended leaves nothing else to do.
        Action::Reboot | Action::Shell => (RebootCommand::Restart, "restarting"),
        Action::Poweroff => (RebootCommand::PowerOff, "switching off"),
        Action::Halt => (RebootCommand::Halt, "halting"),
    };
    say!("{word}");
    match rustix::system::reboot(command) {
        Ok(()) => io::Error::other("the kernel returned from reboot(2)"),
        Err(error) => error.into(),
    }
}

/// A shell on the console, until it ends.
fn shell() {
    say!("starting a shell; the machine restarts when it ends");
    let started =
        Command::new("/bin/sh").env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin").current_dir("/").status();
    if let Err(error) = started {
        say!(
            "cannot start /bin/sh: {error}; put one in with: hotdump initramfs --include /bin/busybox:/bin/sh"
        );
    }
}
