//! Exit codes of `hotdump`: one table for the program, its help and its man pages.
//!
//! The first four follow what monitoring systems expect of a check (fine, warning, critical, unknown). `hotdump
//! capture` runs where no monitoring looks and has its own table in `capture`.

/// Done; for `status` an image is loaded; for `verify` a dump taken now would be complete.
pub(crate) const OK: u8 = 0;
/// Wrong usage, or the command failed with the machine left as it was.
pub(crate) const FAILED: u8 = 1;
/// `verify`: a dump taken now would not match the machine.
pub(crate) const STALE: u8 = 2;
/// `verify`, `status`: cannot tell.
pub(crate) const UNKNOWN: u8 = 3;
/// `verify`, `status`: no crash image is loaded.
pub(crate) const NOT_LOADED: u8 = 4;
/// `load`: the kernel refused the image after it had let go of the one before.
pub(crate) const DISARMED: u8 = 5;
/// `load`: loaded, but not kept current by whom it was to be.
pub(crate) const NOT_CURRENT: u8 = 6;
/// `load`, `unload`: another load or unload was still running.
pub(crate) const BUSY: u8 = 7;

/// The table as `--help` and the man page show it.
pub(crate) const TABLE: &str = "\
Exit codes:
  0  done; status: an image is loaded; verify: a dump taken now would be complete
  1  wrong usage, or the command failed and left the machine as it was
  2  verify: a dump taken now would not match the machine
  3  verify, status: cannot tell (no right to read, or the kernel does not let us)
  4  verify, status: no crash image is loaded
  5  load: the kernel refused the image after it had let go of the old one: none is loaded now
  6  load --keep native, --keep module: loaded, but not kept current
  7  load, unload: another load or unload was still running
An image that is not kept current (any more) is complete until CPUs or memory come or go: verify then says 0, and a PROBLEM
where that is not as it was asked for (problems and kept_current in JSON).
`hotdump capture` has its own: see its help.";
