//! Init of the capture kernel.
//!
//! It does the little that must not fail itself and leaves the saving to a second process: one that is killed, by a lack of
//! memory or by a fault of ours, takes the kernel down with it only if it is init.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::panic;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use super::config::{self, Action, Config};
use super::console::say;
use super::stall::Watch;
use super::{configuration, exit, system, target};

/// How often the saving process is looked after.
const LOOK: Duration = Duration::from_millis(100);
/// How often signs of life are looked for; each time all of /proc is read.
const LOOK_FOR_STALL: Duration = Duration::from_secs(5);
/// How long a killed process may take to go.
const DEATH: Duration = Duration::from_secs(5);

/// The init of the capture kernel: call it when the process id is 1, before anything else.
pub(crate) fn init() -> ! {
    set_panic_action(Action::Reboot);
    system::mount_basics();
    say!("version {}, saving the crashed kernel", env!("CARGO_PKG_VERSION"));
    // What is wrong with it is said by the process that saves.
    let (config, _) = configuration(Path::new(config::PATH));
    set_panic_action(config.failure_action);
    load_modules(&config);
    let saved = save(&config);
    // Saving unmounts when it ends, but not when it is killed.
    system::let_go(target::LOCAL_MOUNT_POINT);
    system::let_go(target::MOUNT_POINT);
    end(if saved { config.final_action } else { config.failure_action })
}

/// A panic would end init, and so the kernel, at once.
fn set_panic_action(action: Action) {
    panic::set_hook(Box::new(move |what| {
        say!("internal error: {what}");
        end(action)
    }));
}

/// Loads what the target needs. A module that does not load may be one that the machine does without.
fn load_modules(config: &Config) {
    for module in &config.modules {
        if let Err(error) = system::load_module(module) {
            say!("cannot load {}: {error}", module.display());
        }
    }
}

/// Runs `hotdump capture` and looks after it; whether it saved all.
fn save(config: &Config) -> bool {
    let mut command = Command::new("/proc/self/exe");
    let started = command.arg0("hotdump").arg("capture").env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin").spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            say!("cannot start the capture: {error}");
            return false;
        }
    };
    let Some(status) = look_after(&mut child, Duration::from_secs(config.stall_seconds)) else {
        return false;
    };
    if status.code().is_none() {
        say!("the capture was ended: {status}");
    }
    status.code() == Some(i32::from(exit::SAVED))
}

/// Waits for a process until it ends or nothing has moved on this machine for `limit`.
fn look_after(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let mut watch = Watch::new(limit);
    let mut looked = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => thread::sleep(LOOK),
            Err(error) => {
                say!("cannot wait for the capture: {error}");
                return None;
            }
        }
        if looked.elapsed() >= LOOK_FOR_STALL {
            looked = Instant::now();
            if watch.is_stalled() {
                say!("nothing has moved for {} s: giving the capture up", limit.as_secs());
                kill(child);
                return None;
            }
        }
    }
}

/// Kills a process; one that hangs in the kernel is left behind.
fn kill(child: &mut Child) {
    let _ = child.kill();
    let began = Instant::now();
    while began.elapsed() < DEATH && matches!(child.try_wait(), Ok(None)) {
        thread::sleep(LOOK);
    }
}

/// Ends the machine's session: by the action, else by whatever still works.
fn end(action: Action) -> ! {
    let mut action = action;
    loop {
        let error = system::act(action);
        say!("cannot {action}: {error}");
        action = Action::Reboot;
        // The magic SysRq key's reboot does without what may have failed.
        let _ = fs::write("/proc/sysrq-trigger", "b");
        thread::sleep(Duration::from_secs(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ends_is_seen_to() {
        for (script, want) in [("exit 0", Some(0)), ("exit 3", Some(3)), ("kill -9 $$", None)] {
            let mut child = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
            let status = look_after(&mut child, Duration::from_secs(600)).unwrap();
            assert_eq!(status.code(), want, "{script}");
        }
    }
}
