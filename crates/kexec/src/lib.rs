//! Loading a crash kernel: kernel images, the plan of what goes where, and the kexec system calls.
//!
//! There are two ways in. By kexec_load, [`plan_crash`] works out every segment from the kernel, the initrd and the
//! machine, checks all that can be checked, and gives a [`CrashPlan`]; [`CrashPlan::load`] is then one system call. By
//! kexec_file_load the kernel works the segments out; [`plan_file_load`] makes the checks that it would fail on. Both
//! system calls free the image that is loaded *before* they look at the new one: whatever fails in a plan leaves the
//! machine as it was, whatever fails in the call leaves it without a crash kernel.
//!
//! What differs by architecture lies in `arch/<name>`: reading a kernel image, laying out its segments and boot
//! parameters. Purgatory, which runs between the two kernels, is a program of its own (crate `purgatory`), built and
//! embedded by this crate's build script.

mod absent;
mod arch;
pub mod cmdline;
mod error;
mod file_load;
mod foreign;
mod header;
mod layout;
mod module;
mod plan;
mod precheck;
mod purgatory;
mod syscall;

pub use error::{ImageError, PlanError, Refusal, TreeFault};
pub use file_load::{FileLoadPlan, FileLoadRequest, plan_file_load};
pub use module::{Followed, Module, ModuleError};
pub use plan::{
    CrashPlan, CrashRequest, Digests, Keeper, PlanFacts, Segment, SegmentFacts, SegmentKind, Warning,
    plan_crash,
};
pub use syscall::{Call, SyscallError, Target, execute, unload};
