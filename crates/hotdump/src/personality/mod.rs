//! The face that answers to the name `kexec`: kexec-tools' options as distributions' kdump scripts use them.

mod getopt;
mod options;
mod request;
