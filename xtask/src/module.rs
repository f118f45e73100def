//! The kernel module: the core, compiled once for all kernels of an architecture, and the shim for one kernel.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use lab::arch::Arch;
use lab::cache::{Cache, Kernel, KernelLine, sbin_path};
use lab::debian::{in_root, output};

use crate::programs::{cargo, cargo_program, target_directory};
use crate::root;

/// How the core and the shim are compiled for an architecture.
struct Recipe {
    /// Rust's name for the core's target.
    target: &'static str,
    /// What the kernel asks of all code in it.
    flags: &'static [&'static str],
    /// The kernel's name for the architecture.
    kernel: &'static str,
    /// How the names of its tools begin on other machines.
    prefix: &'static str,
    /// What in a disassembly is not as `flags` ask for.
    unfit: fn(&str) -> Vec<String>,
}

/// For both: what the core is compiled for, no unwinding, no tables of jumps, names that say where they are from.
const X86_64: Recipe = Recipe {
    // Code that runs on no operating system.
    target: "x86_64-unknown-none",
    // Addresses in the top 2 GiB, nothing below the stack pointer, no vector registers (the target's default), and the same
    // ways of calling and returning as the kernel's own code, which patches them to what the processor needs: calls without a
    // table (GOT), return thunks, retpolines, landing pads (IBT), room before functions (call depth tracking).
    flags: &[
        "--cfg=hotdump_kernel",
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
    ],
    kernel: "x86_64",
    prefix: "x86_64-linux-gnu-",
    unfit: unfit_x86_64,
};

/// See [`X86_64`].
const PPC64: Recipe = Recipe {
    // There is none for no operating system; of Linux the core uses nothing.
    target: "powerpc64le-unknown-linux-gnu",
    // Addresses anywhere, as in all modules (arch/powerpc/Makefile), and no vector or floating point registers. The kernel
    // leaves alone what is below the stack pointer, and code that ftrace cannot patch.
    flags: &[
        "--cfg=hotdump_kernel",
        // The compiler warns of each feature that it does not vouch for; these are looked at in what comes out. What else it
        // has to say of the core, it says of the same lines on x86_64.
        "-Awarnings",
        "-Ctarget-feature=-altivec,-vsx,-hard-float",
        "-Cpanic=abort",
        "-Crelocation-model=static",
        "-Ccode-model=large",
        "-Cforce-unwind-tables=no",
        "-Cjump-tables=no",
        "-Csymbol-mangling-version=v0",
        "-Zfunction-sections=no",
    ],
    kernel: "powerpc",
    prefix: "powerpc64le-linux-gnu-",
    unfit: unfit_ppc64,
};

impl Recipe {
    const fn of(arch: Arch) -> &'static Self {
        match arch {
            Arch::X86_64 => &X86_64,
            Arch::Ppc64 => &PPC64,
        }
    }
}

/// A tool that reads or writes the architecture's object files.
fn tool(arch: Arch, name: &str) -> Command {
    let prefix = if arch == Arch::native() { "" } else { Recipe::of(arch).prefix };
    Command::new(format!("{prefix}{name}"))
}

/// What can be left out when the module is built: variables of kmod/shim/Kbuild.
const SWITCHES: [&str; 2] = ["HOTDUMP_MEMORY", "HOTDUMP_CPUS"];

/// What the module is made of.
const SOURCES: [&str; 6] =
    ["kmod", "crates/abi", "crates/devtree", "crates/elfcorehdr", "xtask/src/module.rs", "Cargo.lock"];

/// Modules that only the lab uses: one panics at a function, one has a function that does nothing.
const TEST_MODULES: [&str; 2] = ["panic_at.ko", "empty.ko"];
/// What they are made of.
const TEST_SOURCES: [&str; 2] = ["lab/kmod", "xtask/src/module.rs"];

/// Builds the module for the kernel whose headers or build folder are at `kdir`, with this machine's compiler:
/// `target/dist/ARCH/RELEASE/hotdump.ko`. [`SWITCHES`] are taken from the environment.
pub(crate) fn build(arch: Arch, kdir: &Path) -> Result<PathBuf> {
    let kdir = fs::canonicalize(kdir).with_context(|| format!("KDIR={}", kdir.display()))?;
    let _one_at_a_time = lock()?;
    let core = core(arch)?;
    eprintln!("building hotdump.ko for {}", kdir.display());
    let stage = root().join("target/kmod");
    fill(&stage, &core)?;
    let switch = |name| Some(format!("{name}={}", std::env::var(name).ok()?));
    let switches: Vec<String> = SWITCHES.into_iter().filter_map(switch).collect();
    make(arch, &mut Command::new("make"), &kdir, &stage, &switches)?;
    let built = stage.join("hotdump.ko");
    put(arch, &built, &release(&built)?)
}

/// Builds the modules for the kernels of `lines`, each in its kernel's root with its own compiler, where there is none
/// that is newer than what it is made of.
pub(crate) fn build_for_lab(cache: &Cache, lines: &[KernelLine]) -> Result<()> {
    let _one_at_a_time = lock()?;
    let (newest, newest_test) = (newest(&SOURCES)?, newest(&TEST_SOURCES)?);
    let mut cores: Vec<(Arch, PathBuf)> = Vec::new();
    for &line in lines {
        let (kernel, arch) = (cache.kernel(line)?, line.arch());
        if !is_newer(arch, &kernel, "hotdump.ko", newest) {
            if !cores.iter().any(|(of, _)| *of == arch) {
                cores.push((arch, core(arch)?));
            }
            let (_, core) = cores.iter().find(|(of, _)| *of == arch).context("the core was built")?;
            eprintln!("building hotdump.ko for {}", kernel.release);
            in_stage(
                arch,
                &kernel,
                |stage| fill(stage, core),
                &[],
                |stage| put(arch, &stage.join("hotdump.ko"), &kernel.release).map(drop),
            )?;
        }
        if !TEST_MODULES.iter().all(|module| is_newer(arch, &kernel, module, newest_test)) {
            eprintln!("building {} for {}", TEST_MODULES.join(", "), kernel.release);
            let take = |stage: &Path| {
                let mut modules = TEST_MODULES.iter();
                modules.try_for_each(|module| put(arch, &stage.join(module), &kernel.release).map(drop))
            };
            in_stage(arch, &kernel, |stage| copy("lab/kmod", stage), &[], take)?;
        }
    }
    Ok(())
}

/// Whether a module for this kernel was built after `newest`.
fn is_newer(arch: Arch, kernel: &Kernel, module: &str, newest: SystemTime) -> bool {
    let built = fs::metadata(dist(arch, &kernel.release).join(module)).and_then(|found| found.modified());
    built.is_ok_and(|built| built > newest)
}

/// Builds the module without memory, without CPUs, and without both: each must be as free of warnings as the whole one.
pub(crate) fn build_variants(cache: &Cache) -> Result<()> {
    let _one_at_a_time = lock()?;
    let kernel = cache.kernel(KernelLine::V6_1)?;
    let arch = Arch::native();
    let core = core(arch)?;
    for (memory, cpus) in [("0", "1"), ("1", "0"), ("0", "0")] {
        let switches = [format!("HOTDUMP_MEMORY={memory}"), format!("HOTDUMP_CPUS={cpus}")];
        eprintln!("building hotdump.ko for {} with {}", kernel.release, switches.join(" "));
        in_stage(
            arch,
            &kernel,
            |stage| fill(stage, &core),
            &switches,
            |stage| {
                let calls = output(tool(arch, "nm").arg("--undefined-only").arg(stage.join("hotdump.ko")))?;
                for (switch, call) in [(memory, "register_memory_notifier"), (cpus, "__cpuhp_setup_state")] {
                    let is_called = calls.split_whitespace().any(|name| name == call);
                    ensure!(
                        is_called == (switch == "1"),
                        "{}: does it call {call}? {is_called}",
                        switches.join(" ")
                    );
                }
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// Puts together what DKMS builds the module from on machines without Rust: `target/dist/ARCH/hotdump-dkms-VERSION`.
pub(crate) fn dkms(arch: Arch) -> Result<PathBuf> {
    let _one_at_a_time = lock()?;
    let version = env!("CARGO_PKG_VERSION");
    let target = crate::programs::dist(arch).join(format!("hotdump-dkms-{version}"));
    fill(&target, &core(arch)?)?;
    for name in ["dkms.conf", "README"] {
        let text = fs::read_to_string(root().join("dist/dkms").join(name))?;
        fs::write(target.join(name), text.replace("@VERSION@", version).replace("@ARCH@", arch.name()))?;
    }
    fs::copy(root().join("LICENSE-MIT"), target.join("LICENSE-MIT"))?;
    Ok(target)
}

/// Builds what `fill` puts into a directory of the kernel's root, gives the directory to `take` and removes it.
fn in_stage(
    arch: Arch,
    kernel: &Kernel,
    fill: impl FnOnce(&Path) -> Result<()>,
    switches: &[String],
    take: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    // Other source trees may share the root.
    let inside = format!("/tmp/hotdump-{}", std::process::id());
    let stage = kernel.root().join(&inside[1..]);
    fill(&stage)?;
    let mut command = in_root(kernel.root(), "/")?;
    let made = make(arch, command.arg("make"), Path::new(&kernel.headers()), Path::new(&inside), switches);
    let taken = made.and_then(|()| take(&stage));
    fs::remove_dir_all(&stage)?;
    taken
}

/// Makes `stage` a directory to build the module in.
fn fill(stage: &Path, core: &Path) -> Result<()> {
    copy("kmod/shim", stage)?;
    fs::copy(core, stage.join("core.o_shipped"))?;
    Ok(())
}

/// Makes `stage` a directory with the files of the source tree's `from`.
fn copy(from: &str, stage: &Path) -> Result<()> {
    lab::debian::recreate(stage)?;
    for entry in fs::read_dir(root().join(from))? {
        let entry = entry?;
        fs::copy(entry.path(), stage.join(entry.file_name()))?;
    }
    Ok(())
}

/// Puts a module in its place below `target/dist`, without what only debuggers read.
fn put(arch: Arch, built: &Path, release: &str) -> Result<PathBuf> {
    let dist = dist(arch, release);
    fs::create_dir_all(&dist)?;
    let module = dist.join(built.file_name().context("a module has a name")?);
    let new = module.with_extension("ko.new");
    lab::debian::run(tool(arch, "objcopy").arg("--strip-debug").arg(built).arg(&new))?;
    // A guest's files may be read from the old one.
    fs::rename(&new, &module)?;
    Ok(module)
}

fn dist(arch: Arch, release: &str) -> PathBuf {
    crate::programs::dist(arch).join(release)
}

/// Held while something is built: stages are shared.
fn lock() -> Result<File> {
    let dir = root().join("target");
    fs::create_dir_all(&dir)?;
    let lock = File::create(dir.join("kmod.lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(lock)
}

/// When one of `sources`, or what is below them, changed last.
fn newest(sources: &[&str]) -> Result<SystemTime> {
    let mut waiting: Vec<PathBuf> = sources.iter().map(|path| root().join(path)).collect();
    let mut newest = SystemTime::UNIX_EPOCH;
    while let Some(path) = waiting.pop() {
        newest = newest.max(fs::metadata(&path)?.modified()?);
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        }
    }
    Ok(newest)
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

/// Has `command`, a make, build for one kernel, and takes no warning for an answer.
fn make(arch: Arch, command: &mut Command, kdir: &Path, stage: &Path, switches: &[String]) -> Result<()> {
    if arch != Arch::native() {
        let Recipe { kernel, prefix, .. } = Recipe::of(arch);
        command.args([format!("ARCH={kernel}"), format!("CROSS_COMPILE={prefix}")]);
    }
    command.arg("-C").arg(kdir).arg(format!("M={}", stage.display())).args(switches);
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
fn core(arch: Arch) -> Result<PathBuf> {
    let rustc = rustc_with_source()?;
    eprintln!("building the module's core for {}", arch.name());
    let directory = target_directory()?.join("module");
    let Recipe { target, flags, .. } = Recipe::of(arch);
    let mut command = Command::new(cargo_program());
    command.args(["rustc", "--quiet", "--profile", "module", "--package", "kmod-core", "--lib"]);
    command.args(["--crate-type", "staticlib", "--target", target, "-Zbuild-std=core"]);
    command.env("RUSTC", rustc).env("CARGO_TARGET_DIR", &directory);
    // These flags and build-std are for the kernel's own Rust, too, which uses a stable compiler this way.
    command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    cargo(&mut command)?;
    object_of(arch, &directory.join(target).join("module/libkmod_core.a"))
}

/// Takes the core's object out of its archive; the compiler's helpers beside it are the kernel's business.
fn object_of(arch: Arch, archive: &Path) -> Result<PathBuf> {
    let members = output(tool(arch, "ar").arg("t").arg(archive))?;
    let ours: Vec<&str> = members.lines().filter(|member| member.starts_with("kmod_core")).collect();
    let [member] = ours.as_slice() else {
        bail!("{} holds {} objects of the core instead of one", archive.display(), ours.len());
    };
    let dir = archive.with_extension("o");
    lab::debian::recreate(&dir)?;
    lab::debian::run(tool(arch, "ar").arg("x").arg(archive).arg(member).current_dir(&dir))?;
    let object = dir.join(member);
    let undefined = output(tool(arch, "nm").arg("--undefined-only").arg(&object))?;
    ensure!(
        !undefined.contains("hd_core_must_not_panic"),
        "the core can panic: look for what calls core::panicking in {}",
        object.display()
    );
    let code = output(tool(arch, "objdump").args(["-d", "--no-show-raw-insn"]).arg(&object))?;
    let unfit = (Recipe::of(arch).unfit)(&code);
    ensure!(unfit.is_empty(), "{} is not as the kernel's own code:\n{}", object.display(), unfit.join("\n"));
    Ok(object)
}

/// Functions of the core that the shim calls without a landing pad, returns and indirect calls that the kernel cannot
/// patch, vector registers, memory below the stack pointer.
fn unfit_x86_64(code: &str) -> Vec<String> {
    let is_vector =
        |operands: &str| ["%xmm", "%ymm", "%zmm", "%mm", "%st"].iter().any(|at| operands.contains(at));
    faults(code, |function, is_first, name, operands| {
        let is_branch = name.starts_with("call") || name.starts_with('j');
        match name {
            // Padding before a function, for the kernel to patch, is taken for a part of the one before.
            _ if is_first && function.starts_with("hd_core_") && name != "endbr64" => "no landing pad",
            "ret" | "retq" | "iretq" => "a plain return",
            _ if is_branch && operands.contains('*') => "an indirect branch",
            _ if is_vector(operands) => "vector registers",
            _ if operands.contains("-0x") && operands.contains("(%rsp)") => "memory below the stack pointer",
            _ => "",
        }
    })
}

/// Floating point and vector registers, and addresses relative to the instruction (POWER10), which modules cannot have.
fn unfit_ppc64(code: &str) -> Vec<String> {
    faults(code, |_, _, name, operands| {
        let registers = operands.split([',', '(', ')']);
        let is_numbered = |register: &str, kind| {
            register.strip_prefix(kind).is_some_and(|number: &str| number.parse::<u8>().is_ok())
        };
        let mut kinds =
            registers.flat_map(|register| ["f", "v", "vs"].map(|kind| is_numbered(register, kind)));
        match name {
            _ if kinds.any(|is| is) => "vector or floating point registers",
            _ if name.starts_with('p') && operands.ends_with(",1") => {
                "an address relative to the instruction"
            }
            _ => "",
        }
    })
}

/// What `fault` has to say of each instruction of a disassembly: it is given the function, whether the instruction is its
/// first, its name and operands.
fn faults(code: &str, fault: impl Fn(&str, bool, &str, &str) -> &'static str) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut function, mut is_first) = ("", false);
    for line in code.lines() {
        if let Some((_, name)) = line.strip_suffix(">:").and_then(|line| line.split_once('<')) {
            (function, is_first) = (name, true);
            continue;
        }
        let Some((_, instruction)) = line.split_once(":\t") else { continue };
        let (name, operands) = instruction.trim().split_once(' ').unwrap_or((instruction.trim(), ""));
        let fault = fault(function, is_first, name, operands.trim());
        if !fault.is_empty() {
            faults.push(format!("{fault} in {function}: {}", instruction.trim()));
        }
        is_first = false;
    }
    faults
}

/// A compiler that has the source of `core` beside it: the one in use, or Debian's.
pub(crate) fn rustc_with_source() -> Result<PathBuf> {
    let candidates = [PathBuf::from("rustc"), PathBuf::from("/usr/bin/rustc")];
    for rustc in candidates {
        let Ok(sysroot) = output(Command::new(&rustc).args(["--print", "sysroot"])) else { continue };
        let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
        if library.join("core/Cargo.toml").exists() && is_new_enough(&rustc) {
            return Ok(rustc);
        }
    }
    bail!(
        "no Rust compiler of 1.{OLDEST} or later with the source of its library: `rustup component add rust-src`, \
         or as root `apt-get install rustc-web rust-web-src`"
    )
}

/// The first Rust whose options are those of [`Recipe::flags`] is 1.93: it made jump tables an option of -C.
const OLDEST: u32 = 93;

/// Whether a compiler's options are those of [`Recipe::flags`].
pub(crate) fn is_new_enough(rustc: &Path) -> bool {
    let version = output(Command::new(rustc).arg("--version")).unwrap_or_default();
    let minor = version.strip_prefix("rustc 1.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    minor >= Some(OLDEST)
}

#[cfg(test)]
mod tests {
    use super::{unfit_ppc64, unfit_x86_64 as unfit};

    #[test]
    fn code_that_the_kernel_cannot_take_is_seen() {
        let good = "\n0000000000000010 <hd_core_cpu>:\n  10:\tendbr64\n  14:\tmov    -0x8(%rbp),%rax\n  \
                    18:\tcall   1d <hd_core_cpu+0xd>\n  1d:\tmov    0x8(%rsp),%rax\n  22:\tjmp    27 <inner>\n\n\
                    0000000000000030 <inner>:\n  30:\tpush   %rbp\n";
        assert_eq!(unfit(good), Vec::<String>::new());
        for (line, fault) in [
            ("ret", "a plain return"),
            ("call   *%rax", "an indirect branch"),
            ("jmp    *0x0(,%rax,8)", "an indirect branch"),
            ("movaps %xmm0,(%rsp)", "vector registers"),
            ("mov    %rax,-0x8(%rsp)", "memory below the stack pointer"),
        ] {
            let code = format!("{good}  34:\t{line}\n");
            assert_eq!(unfit(&code), [format!("{fault} in inner: {line}")]);
        }
        let bare = good.replace("  10:\tendbr64\n", "");
        assert_eq!(unfit(&bare), ["no landing pad in hd_core_cpu: mov    -0x8(%rbp),%rax"]);
    }

    #[test]
    fn code_that_a_kernel_on_ppc64_cannot_take_is_seen() {
        let good = "\n0000000000000010 <hd_core_cpu>:\n  10:\tld      r0,-24188(r2)\n  14:\tstdu    r1,-64(r1)\n  \
                    18:\tbl      1d <inner>\n  1c:\tpaddi   r3,r4,5,0\n  20:\tblr\n";
        assert_eq!(unfit_ppc64(good), Vec::<String>::new());
        for (line, fault) in [
            ("stfd    f31,24(r1)", "vector or floating point registers"),
            ("lvx     v2,0,r3", "vector or floating point registers"),
            ("xxlxor  vs0,vs0,vs0", "vector or floating point registers"),
            ("pld     r3,0(0),1", "an address relative to the instruction"),
        ] {
            let code = format!("{good}  24:\t{line}\n");
            assert_eq!(unfit_ppc64(&code), [format!("{fault} in hd_core_cpu: {line}")]);
        }
    }
}
