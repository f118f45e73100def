//! The table of kexec-tools' options: what the parser, the help and the refusals are made from.

use crate::getopt::{Arg, Spelling};

/// An option by its meaning; spellings of one meaning share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opt {
    Help,
    Version,
    Debug,
    Force,
    NoSync,
    Load,
    LoadPanic,
    Unload,
    Exec,
    Type,
    MemMin,
    MemMax,
    ReuseInitrd,
    PrintCkrSize,
    Entry,
    FileSyscall,
    LoadSyscall,
    AutoSyscall,
    Hotplug,
    Status,
    Append,
    ReuseCmdline,
    Initrd,
    #[cfg(target_arch = "powerpc64")]
    Dtb,
    #[cfg(target_arch = "powerpc64")]
    NoOldRoot,
    /// Asks for what is done anyway.
    Satisfied,
    /// Taken and without effect.
    Ignored,
    /// Not to be had here.
    Refused,
}

/// What an option belongs to. kexec-tools refuses options of a kernel image where no kernel is being loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Program,
    Image,
}

/// One spelling of an option.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) long: &'static str,
    pub(crate) short: Option<char>,
    pub(crate) arg: Arg,
    pub(crate) opt: Opt,
    pub(crate) of: Of,
    /// What it does, for the help; for [`Opt::Ignored`] and [`Opt::Refused`] why it does nothing.
    pub(crate) help: &'static str,
}

impl Spelling for Row {
    const TABLE: &'static [Self] = OPTIONS;

    fn long(&self) -> &'static str {
        self.long
    }

    fn short(&self) -> Option<char> {
        self.short
    }

    fn arg(&self) -> Arg {
        self.arg
    }

    fn means_the_same(&self, other: &Self) -> bool {
        self.opt == other.opt
    }
}

const fn flag(short: Option<char>, long: &'static str, opt: Opt, help: &'static str) -> Row {
    Row { long, short, arg: Arg::None, opt, of: Of::Program, help }
}

const fn value(
    short: Option<char>,
    long: &'static str,
    name: &'static str,
    opt: Opt,
    help: &'static str,
) -> Row {
    Row { long, short, arg: Arg::Value(name), opt, of: Of::Program, help }
}

const fn image(long: &'static str, arg: Arg, opt: Opt, help: &'static str) -> Row {
    Row { long, short: None, arg, opt, of: Of::Image, help }
}

const LOAD_CONTEXT: &str = "jumping back to this kernel is not supported";
const XEN: &str = "only works under Xen";
#[cfg(target_arch = "x86_64")]
const CONSOLE: &str = "messages go to the serial console that the kernel uses";

/// Every option that kexec-tools 2.0.32 takes on this architecture, in its order (ambiguous abbreviations list them so).
#[rustfmt::skip]
pub(crate) const OPTIONS: &[Row] = &[
    flag(Some('h'), "help", Opt::Help, "print this help"),
    flag(Some('v'), "version", Opt::Version, "print the version"),
    flag(Some('f'), "force", Opt::Force, "load and execute at once, without shutdown"),
    flag(Some('i'), "no-checks", Opt::Ignored, "the loaded image is always checked before it runs"),
    flag(Some('x'), "no-ifdown", Opt::Satisfied, "leave network interfaces up (they always are)"),
    flag(Some('y'), "no-sync", Opt::NoSync, "do not sync filesystems before --exec"),
    flag(Some('l'), "load", Opt::Load, "load a kernel for --exec"),
    flag(Some('u'), "unload", Opt::Unload, "unload the kernel; with -p the crash kernel"),
    flag(Some('e'), "exec", Opt::Exec, "execute the loaded kernel"),
    flag(None, "exec-live-update", Opt::Refused, XEN),
    #[cfg(target_arch = "x86_64")]
    value(Some('t'), "type", "TYPE", Opt::Type, "the kernel is of this type: bzImage or bzImage64"),
    #[cfg(target_arch = "powerpc64")]
    value(Some('t'), "type", "TYPE", Opt::Type, "the kernel is of this type: elf-ppc64"),
    value(None, "mem-min", "ADDR", Opt::MemMin, "lowest address to load to"),
    value(None, "mem-max", "ADDR", Opt::MemMax, "highest address to load to"),
    flag(None, "reuseinitrd", Opt::ReuseInitrd, "not implemented on this architecture"),
    flag(None, "print-ckr-size", Opt::PrintCkrSize, "print the size of the crash reservation in bytes"),
    flag(None, "load-preserve-context", Opt::Refused, LOAD_CONTEXT),
    flag(None, "load-jump-back-helper", Opt::Refused, LOAD_CONTEXT),
    flag(None, "load-live-update", Opt::Refused, XEN),
    value(None, "entry", "ADDR", Opt::Entry, "entry point; only 0, the kernel's own"),
    flag(Some('p'), "load-panic", Opt::LoadPanic, "load a crash kernel, which runs when this kernel panics"),
    flag(Some('s'), "kexec-file-syscall", Opt::FileSyscall, "use kexec_file_load only"),
    flag(Some('c'), "kexec-syscall", Opt::LoadSyscall, "use kexec_load only"),
    flag(Some('a'), "kexec-syscall-auto", Opt::AutoSyscall,
         "try kexec_file_load, and kexec_load where it is not there or does not take the image (default)"),
    flag(None, "hotplug", Opt::Hotplug, "let the kernel keep the loaded description current on CPU and memory hotplug"),
    flag(Some('d'), "debug", Opt::Debug, "say what is done"),
    flag(Some('S'), "status", Opt::Status, "exit with 1 if a crash kernel (with -l: another) is loaded, with 0 if not"),
    #[cfg(target_arch = "x86_64")]
    flag(None, "reset-vga", Opt::Ignored, CONSOLE),
    #[cfg(target_arch = "x86_64")]
    value(None, "serial", "PORT", Opt::Ignored, CONSOLE),
    #[cfg(target_arch = "x86_64")]
    value(None, "serial-baud", "RATE", Opt::Ignored, CONSOLE),
    #[cfg(target_arch = "x86_64")]
    flag(None, "console-vga", Opt::Ignored, CONSOLE),
    #[cfg(target_arch = "x86_64")]
    flag(None, "console-serial", Opt::Ignored, CONSOLE),
    #[cfg(target_arch = "x86_64")]
    flag(None, "elf32-core-headers", Opt::Ignored, "the crash header is always 64-bit"),
    flag(None, "elf64-core-headers", Opt::Satisfied, "write a 64-bit crash header (it always is)"),
    #[cfg(target_arch = "x86_64")]
    flag(None, "pass-memmap-cmdline", Opt::Ignored, "the capture kernel's memory is in its boot parameters"),
    #[cfg(target_arch = "x86_64")]
    flag(None, "noefi", Opt::Ignored, "EFI is passed on where the machine was booted by it"),
    #[cfg(target_arch = "x86_64")]
    flag(None, "reuse-video-type", Opt::Ignored, "the video mode is passed on as it is"),
    #[cfg(target_arch = "powerpc64")]
    flag(None, "dt-no-old-root", Opt::NoOldRoot, "do not add this kernel's root= to a command line without one"),
    image("command-line", Arg::Value("STRING"), Opt::Append, "the kernel's command line"),
    image("append", Arg::Value("STRING"), Opt::Append, "the same; with --reuse-cmdline it is added to that"),
    image("reuse-cmdline", Arg::None, Opt::ReuseCmdline, "use this kernel's command line, without what must not be in it"),
    image("initrd", Arg::Value("FILE"), Opt::Initrd, "the kernel's initial ramdisk"),
    image("ramdisk", Arg::Value("FILE"), Opt::Initrd, "the same"),
    #[cfg(target_arch = "x86_64")]
    image("entry-32bit", Arg::None, Opt::Refused, "kernels are entered in 64-bit mode"),
    #[cfg(target_arch = "x86_64")]
    image("real-mode", Arg::None, Opt::Refused, "kernels are entered in 64-bit mode"),
    #[cfg(target_arch = "x86_64")]
    image("dtb", Arg::Value("FILE"), Opt::Refused, "x86 kernels loaded here take no device tree"),
    #[cfg(target_arch = "powerpc64")]
    image("devicetreeblob", Arg::Value("FILE"), Opt::Dtb, "the device tree to pass on, in place of the machine's"),
    #[cfg(target_arch = "powerpc64")]
    image("dtb", Arg::Value("FILE"), Opt::Dtb, "the same"),
    #[cfg(target_arch = "x86_64")]
    image("module", Arg::Value("STRING"), Opt::Refused, "multiboot kernels are not supported"),
    #[cfg(target_arch = "x86_64")]
    image("args-elf", Arg::None, Opt::Refused, "ELF kernels are not supported"),
    image("args-linux", Arg::None, Opt::Satisfied, "pass a command line as Linux takes it (it always is)"),
    #[cfg(target_arch = "x86_64")]
    image("args-none", Arg::None, Opt::Refused, "ELF kernels are not supported"),
];
