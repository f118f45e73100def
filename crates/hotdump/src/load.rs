//! `hotdump load`.

/// Which system call to load by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum SyscallChoice {
    /// The one that fits
    #[default]
    Auto,
    /// kexec_load
    Load,
    /// kexec_file_load
    File,
}
