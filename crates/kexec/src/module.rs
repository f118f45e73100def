//! hotdump's kernel module, seen from here: arming it for an image, and asking what it does.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;

use abi::{Arm, FOLLOW_CPUS, FOLLOW_MEMORY, Reason, Status};
use thiserror::Error;

use crate::plan::PlanFacts;
use crate::syscall;

/// The module's device, open.
#[derive(Debug)]
pub struct Module {
    device: File,
}

/// What the module follows, once armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Memory that comes and goes.
    pub memory: bool,
    /// CPUs that come.
    pub cpus: bool,
}

/// The module could not be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// There is no device: the module is not loaded.
    #[error("the kernel module is not loaded (there is no {}): load it with `modprobe hotdump`", abi::DEVICE)]
    NotThere,
    /// The device cannot be used.
    #[error("{}: {doing}: {source}", abi::DEVICE)]
    Device {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The module is of another age than this program.
    #[error(
        "the kernel module that is loaded speaks {} of the interface, this program version {}: install the module that \
         belongs to this program, then `rmmod hotdump` and `modprobe hotdump`",
        Spoken(*found), abi::VERSION
    )]
    OtherVersion {
        /// The module's version, where it could be asked.
        found: Option<u32>,
    },
    /// The module does not follow the image.
    #[error("the kernel module does not follow this image: {}{} ({source})", reason.text(), At(*found))]
    Refused {
        /// Why.
        reason: Reason,
        /// The byte of the header that is wrong, or 0.
        found: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// More ranges are to be left out of the dump than the module's interface takes.
    #[error(
        "{count} ranges of memory are to be left out of the dump, the kernel module takes {}",
        abi::MAX_EXCLUDED
    )]
    TooManySpared {
        /// How many.
        count: usize,
    },
}

struct Spoken(Option<u32>);

impl std::fmt::Display for Spoken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(version) => write!(f, "version {version}"),
            None => f.write_str("another version"),
        }
    }
}

struct At(u32);

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, ": byte {:#x}", self.0) }
    }
}

impl Module {
    /// Opens the module's device; `None` where the module is not loaded.
    ///
    /// # Errors
    /// It is there and cannot be opened.
    pub fn open() -> Result<Option<Self>, ModuleError> {
        match File::open(abi::DEVICE) {
            Ok(device) => Ok(Some(Self { device })),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => {
                Ok(None)
            }
            Err(source) => Err(ModuleError::Device { doing: "opening it", source }),
        }
    }

    /// Has the module follow the image that was loaded by this plan.
    ///
    /// # Errors
    /// [`ModuleError::Refused`] says why it does not.
    pub fn arm(&self, plan: &PlanFacts) -> Result<Followed, ModuleError> {
        let mut request = request(plan)?;
        match syscall::module_arm(self.device.as_fd(), &mut request) {
            Ok(()) => Ok(Followed {
                memory: request.follow & FOLLOW_MEMORY != 0,
                cpus: request.follow & FOLLOW_CPUS != 0,
            }),
            Err(source) => match Reason::from_code(request.reason) {
                Some(reason) if reason != Reason::None => {
                    Err(ModuleError::Refused { reason, found: request.found, source })
                }
                _ => Err(ModuleError::Device { doing: "arming it", source }),
            },
        }
    }

    /// Has the module let go of the image it follows, if there is one.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn disarm(&self) -> Result<(), ModuleError> {
        let doing = "disarming it";
        syscall::module_disarm(self.device.as_fd()).map_err(|source| ModuleError::Device { doing, source })
    }

    /// What the module does and did.
    ///
    /// # Errors
    /// The kernel refused, or the module is of another version.
    pub fn status(&self) -> Result<Status, ModuleError> {
        understood(syscall::module_status(self.device.as_fd()))
    }

    /// The followed header, all of its room, as it is in reserved memory.
    ///
    /// # Errors
    /// None is followed, or the kernel refused.
    pub fn header(&self) -> Result<Vec<u8>, ModuleError> {
        let doing = "reading the header";
        let read = || {
            // The device counts its bytes from each opening.
            let mut bytes = Vec::new();
            File::open(abi::DEVICE)?.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|source| ModuleError::Device { doing, source })
    }
}

/// A status, if it is one of this version. Where the structure has another size its ioctl is another, too.
fn understood(answer: io::Result<Status>) -> Result<Status, ModuleError> {
    match answer {
        Ok(status) if status.version == abi::VERSION && status.size as usize == size_of::<Status>() => {
            Ok(status)
        }
        Ok(status) => Err(ModuleError::OtherVersion { found: Some(status.version) }),
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
            Err(ModuleError::OtherVersion { found: None })
        }
        Err(source) => Err(ModuleError::Device { doing: "asking for its status", source }),
    }
}

fn request(plan: &PlanFacts) -> Result<Arm, ModuleError> {
    let range = |range: &elfcorehdr::PhysRange| abi::Range { start: range.start().0, end: range.end().0 };
    let mut request = Arm {
        version: abi::VERSION,
        size: size_of::<Arm>() as u32,
        header: range(&plan.elfcorehdr),
        identity_at: plan.identity_at().0,
        identity: plan.identity,
        follow: FOLLOW_MEMORY | FOLLOW_CPUS,
        tree_pointer: plan.trees.map_or(0, |_| plan.tree_at().0),
        trees: plan.trees.map_or_else(Default::default, |trees| trees.each_ref().map(range)),
        ..Arm::default()
    };
    let count = plan.spared.len();
    let places = request.excluded.get_mut(..count).ok_or(ModuleError::TooManySpared { count })?;
    for (place, spared) in places.iter_mut().zip(&plan.spared) {
        *place = range(spared);
    }
    request.excluded_count = count as u32;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_of_another_version_is_told_before_anything_is_asked_of_it() {
        let status = Status { version: abi::VERSION, size: size_of::<Status>() as u32, ..Status::default() };
        assert_eq!(understood(Ok(status)).unwrap(), status);
        let other = |answer| understood(answer).unwrap_err().to_string();
        let newer = other(Ok(Status { version: 77, ..status }));
        assert!(newer.starts_with("the kernel module that is loaded speaks version 77 of the"), "{newer}");
        let longer = other(Ok(Status { size: status.size + 8, ..status }));
        assert!(longer.contains("install the module that belongs to this program"), "{longer}");
        let unknown = other(Err(io::Error::from_raw_os_error(libc::ENOTTY)));
        assert!(
            unknown.contains("speaks another version of the interface, this program version"),
            "{unknown}"
        );
        let refused = other(Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert!(
            refused.starts_with("/dev/hotdump: asking for its status: Operation not permitted"),
            "{refused}"
        );
    }
}
