//! The kernel module: the core, compiled once for all kernels of an architecture, and the shim for one kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use lab::cache::sbin_path;
use lab::debian::output;

use crate::programs::{cargo, cargo_program, target_directory};
use crate::root;

/// Rust's name for code that runs on no operating system.
const TARGET: &str = "x86_64-unknown-none";

/// What the kernel asks of all code in it, on x86_64: addresses in the top 2 GiB, nothing below the stack pointer, no
/// vector registers (the target's default), and the same ways of calling and returning as the kernel's own code, which
/// patches them to what the processor needs: calls without a table (GOT), return thunks, retpolines, landing pads (IBT), room before functions (call
/// depth tracking).
const FLAGS: [&str; 12] = [
    "-Crelocation-model=static",
    "-Ccode-model=kernel",
    "-Cno-redzone=yes",
    "-Cforce-unwind-tables=no",
    "-Cjump-tables=no",
    "-Csymbol-mangling-version=v0",
    "-Zplt=yes",
    "-Zfunction-return=thunk-extern",
    "-Zretpoline-external-thunk",
    "-Zcf-protection=branch",
    "-Zpatchable-function-entry=16,16",
    "-Zfunction-sections=no",
];

/// Builds the module for the kernel whose headers or build folder are at `kdir`:
/// `target/dist/ARCH/RELEASE/hotdump.ko`.
pub(crate) fn build(arch: &str, kdir: &Path) -> Result<PathBuf> {
    ensure!(arch == "x86_64", "architecture {arch} is not supported yet: x86_64 is");
    let kdir = fs::canonicalize(kdir).with_context(|| format!("KDIR={}", kdir.display()))?;
    let core = core()?;
    eprintln!("building hotdump.ko for {}", kdir.display());
    let stage = root().join("target/kmod");
    lab::debian::recreate(&stage)?;
    for entry in fs::read_dir(root().join("kmod/shim"))? {
        let entry = entry?;
        fs::copy(entry.path(), stage.join(entry.file_name()))?;
    }
    fs::copy(&core, stage.join("core.o_shipped"))?;
    make(&kdir, &stage)?;
    let release = release(&stage.join("hotdump.ko"))?;
    let dist = root().join("target/dist").join(arch).join(&release);
    fs::create_dir_all(&dist)?;
    let module = dist.join("hotdump.ko");
    lab::debian::run(
        Command::new("objcopy").arg("--strip-debug").arg(stage.join("hotdump.ko")).arg(&module),
    )?;
    Ok(module)
}

/// The release of the kernel that a module is for, as `uname -r` prints it there. Debian's headers answer
/// `make kernelrelease` with another.
fn release(module: &Path) -> Result<String> {
    let magic =
        output(Command::new("modinfo").args(["-F", "vermagic"]).arg(module).env("PATH", sbin_path()))?;
    let release = magic.split_whitespace().next();
    release
        .map(str::to_owned)
        .with_context(|| format!("{} does not say what kernel it is for", module.display()))
}

/// Builds for one kernel, and takes no warning for an answer.
fn make(kdir: &Path, stage: &Path) -> Result<()> {
    let mut command = Command::new("make");
    command.arg("-C").arg(kdir).arg(format!("M={}", stage.display()));
    // Types of the module for BPF need a program (pahole) and the kernel's own; nothing of ours does.
    let done = command.args(["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]).output()?;
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(done.status.success(), "{command:?}: {}\n{}", done.status, said.trim());
    // Not a fault: the machine's compiler need not be the kernel's.
    let about_compiler = "warning: the compiler differs from the one used to build the kernel";
    let warnings: Vec<&str> = said
        .lines()
        .filter(|line| line.to_lowercase().contains("warning") && !line.contains(about_compiler))
        .collect();
    ensure!(warnings.is_empty(), "the kernel's tools warn:\n{}", warnings.join("\n"));
    Ok(())
}

/// Compiles the core to one object that has no loose ends but the shim's functions.
fn core() -> Result<PathBuf> {
    let rustc = rustc_with_source()?;
    eprintln!("building the module's core");
    let target = target_directory()?.join("module");
    let mut command = Command::new(cargo_program());
    command.args(["rustc", "--quiet", "--profile", "module", "--package", "kmod-core", "--lib"]);
    command.args(["--crate-type", "staticlib", "--target", TARGET, "-Zbuild-std=core"]);
    command.env("RUSTC", rustc).env("CARGO_TARGET_DIR", &target);
    // These flags and build-std are for the kernel's own Rust, too, which uses a stable compiler this way.
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    cargo(&mut command)?;
    object_of(&target.join(TARGET).join("module/libkmod_core.a"), &target)
}

/// Takes the core's object out of its archive; the compiler's helpers beside it are the kernel's business.
fn object_of(archive: &Path, target: &Path) -> Result<PathBuf> {
    let members = output(Command::new("ar").arg("t").arg(archive))?;
    let ours: Vec<&str> = members.lines().filter(|member| member.starts_with("kmod_core")).collect();
    let [member] = ours.as_slice() else {
        bail!("{} holds {} objects of the core instead of one", archive.display(), ours.len());
    };
    let dir = target.join("core");
    lab::debian::recreate(&dir)?;
    lab::debian::run(Command::new("ar").arg("x").arg(archive).arg(member).current_dir(&dir))?;
    let object = dir.join(member);
    let undefined = output(Command::new("nm").arg("--undefined-only").arg(&object))?;
    ensure!(
        !undefined.contains("hd_core_must_not_panic"),
        "the core can panic: look for what calls core::panicking in {}",
        object.display()
    );
    Ok(object)
}

/// A compiler that has the source of `core` beside it: the one in use, or Debian's.
fn rustc_with_source() -> Result<PathBuf> {
    let candidates = [PathBuf::from("rustc"), PathBuf::from("/usr/bin/rustc")];
    for rustc in candidates {
        let Ok(sysroot) = output(Command::new(&rustc).args(["--print", "sysroot"])) else { continue };
        let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
        if library.join("core/Cargo.toml").exists() && is_new_enough(&rustc) {
            return Ok(rustc);
        }
    }
    bail!(
        "no Rust compiler with the source of its library: `rustup component add rust-src`, or as root \
         `apt-get install rustc-web rust-web-src`"
    )
}

/// Whether the compiler is one whose options are those of [`FLAGS`]: 1.93 made jump tables an option of -C.
fn is_new_enough(rustc: &Path) -> bool {
    let version = output(Command::new(rustc).arg("--version")).unwrap_or_default();
    let minor = version.strip_prefix("rustc 1.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    minor >= Some(93)
}
