//! Builds purgatory and turns it into a flat image that the loader can place anywhere.
//!
//! A nested cargo builds the freestanding program for the same target, with flags of its own. The ELF file is laid out
//! here, at build time: what the loader gets is the image's bytes, the places in it that depend on its address, and two
//! offsets. Whatever the loader could not handle (another kind of relocation, a symbol left open, thread-local storage)
//! fails the build.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use object::elf::{
    DT_PLTRELSZ, DT_RELA, DT_RELASZ, DT_RELSZ, DT_TEXTREL, EM_PPC64, EM_X86_64, FileHeader64, Machine,
    PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_TLS, R_PPC64_RELATIVE, R_X86_64_RELATIVE, RelocationType, SHN_UNDEF,
};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _, Rela as _, Sym as _};
use object::{LittleEndian as LE, pod};

type Elf = FileHeader64<LE>;
type Failure = Box<dyn std::error::Error>;

/// Room that the segments may take in memory; more means that something got linked in that should not.
const MAX_IMAGE: u64 = 1 << 20;

/// What differs by architecture.
struct Arch {
    /// `e_machine` of the program.
    machine: Machine,
    /// The relocation that adds the image's address.
    relative: RelocationType,
    /// Room in front of the program: whole pages, so that the program's alignment stays.
    front: u64,
    /// Bytes at the start of that room that are the capture kernel's, but for the first word, which leads to the program.
    head: u64,
}

const ARCHS: [Arch; 2] = [
    Arch { machine: EM_X86_64, relative: R_X86_64_RELATIVE, front: 0, head: 0 },
    // The kernel copies the image's first 0x100 bytes to address 0, where the other CPUs wait in the capture kernel's code.
    Arch { machine: EM_PPC64, relative: R_PPC64_RELATIVE, front: 4096, head: 0x100 },
];

/// Cargo's name for `-Zbuild-std` in the environment.
const BUILD_STD: &str = "CARGO_UNSTABLE_BUILD_STD";

fn main() -> Result<(), Failure> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let source = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?)
        .join("../purgatory")
        .canonicalize()?;
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={BUILD_STD}");
    for part in ["Cargo.toml", "build.rs", "src", "../devtree/src"] {
        println!("cargo::rerun-if-changed={}", source.join(part).display());
    }
    let file = build(&source, &out.join("purgatory-target"))?;
    println!("cargo::rerun-if-changed={}", source.join("../../Cargo.lock").display());
    let image = lay_out(&fs::read(&file)?).map_err(|why| format!("{}: {why}", file.display()))?;
    fs::write(out.join("purgatory.bin"), &image.bytes)?;
    fs::write(out.join("purgatory.rs"), image.constants())?;
    Ok(())
}

/// Runs cargo for the program and gives the file that it made.
fn build(source: &Path, target_dir: &Path) -> Result<PathBuf, Failure> {
    let target = env::var("TARGET")?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo
        .current_dir(source)
        .args([
            "build",
            "--release",
            "--bin",
            "purgatory",
            "--features",
            "image",
            "--locked",
            "--target",
            &target,
        ])
        // Small, in one piece, and without the unwinding that a freestanding program cannot have.
        .args(["--config", "profile.release.lto='fat'", "--config", "profile.release.codegen-units=1"])
        .args(["--config", "profile.release.panic='abort'", "--config", "profile.release.opt-level=2"])
        .arg("--target-dir")
        .arg(target_dir);
    // Where the outer build has a linker of its own, say for another architecture, so has this one.
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        cargo.args(["--config", &format!("target.{target}.linker='{linker}'")]);
    }
    // The outer build's flags (coverage, sanitizers, another linkage) are not meant for this program, and clippy's wrapper
    // would only check it.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let flags = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_TARGET_DIR"];
        let wrappers = ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CLIPPY_ARGS", "CLIPPY_CONF_DIR"];
        if flags.contains(&&*text) || wrappers.contains(&&*text) || text.starts_with("CARGO_PROFILE_") {
            cargo.env_remove(&name);
        }
    }
    // A build that makes the standard library itself says so by this variable (not by -Zbuild-std, which would be lost):
    // the program wants no more than its core.
    if env::var_os(BUILD_STD).is_some() {
        cargo.env(BUILD_STD, "core");
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=pie");
    let status = cargo.status().map_err(|error| format!("cannot run cargo for purgatory: {error}"))?;
    if !status.success() {
        return Err(format!("cargo could not build purgatory: {status}").into());
    }
    Ok(target_dir.join(target).join("release/purgatory"))
}

/// The program laid out in memory from address 0.
struct Image {
    /// What to copy.
    bytes: Vec<u8>,
    /// What it takes in memory, zeros behind `bytes` included.
    memory: u64,
    /// Where to enter it.
    entry: u64,
    /// Bytes at its start that are the capture kernel's.
    head: u64,
    /// Where its parameter block lies.
    params: u64,
    /// 8-byte words that the image's address has to be added to.
    relative: Vec<u64>,
}

impl Image {
    fn constants(&self) -> String {
        let mut text = format!(
            "const MEMORY: u64 = {:#x};\nconst ENTRY: u64 = {:#x};\nconst HEAD: usize = {:#x};\nconst PARAMS: usize = {:#x};\nconst RELATIVE: &[usize] = &[",
            self.memory, self.entry, self.head, self.params
        );
        for place in &self.relative {
            let _ = write!(text, "{place:#x}, ");
        }
        text + "];\n"
    }
}

fn lay_out(file: &[u8]) -> Result<Image, Failure> {
    let header = Elf::parse(file)?;
    let endian = header.endian()?;
    let machine = header.e_machine(endian);
    let arch = ARCHS.iter().find(|arch| arch.machine == machine);
    let arch = arch.ok_or_else(|| format!("is for machine {machine}, which has no purgatory"))?;
    let mut bytes = Vec::new();
    let mut memory = 0;
    for segment in header.program_headers(endian, file)? {
        let (start, size) = (arch.front + segment.p_vaddr(endian), segment.p_memsz(endian));
        match segment.p_type(endian) {
            PT_LOAD => {
                let data = segment.data(endian, file).map_err(|()| "a segment lies outside the file")?;
                memory = start + size;
                if memory > MAX_IMAGE {
                    return Err(
                        format!("takes {memory:#x} bytes of memory, {MAX_IMAGE:#x} are plenty").into()
                    );
                }
                bytes.resize(start.try_into()?, 0);
                bytes.extend_from_slice(data);
            }
            PT_TLS | PT_INTERP => return Err("has thread-local storage or wants an interpreter".into()),
            _ => {}
        }
    }
    let relative = relocate(file, header, arch, &mut bytes)?;
    // A segment that starts with the ELF magic is what the kernel's crash-hotplug handler takes for the elfcorehdr.
    let front = usize::try_from(arch.front)?;
    let headers = usize::from(header.e_ehsize(endian))
        + usize::from(header.e_phentsize(endian)) * usize::from(header.e_phnum(endian));
    bytes.get_mut(front..front + headers).ok_or("headers are not part of the image")?.fill(0);
    let program = arch.front + header.e_entry(endian);
    let entry = if arch.head == 0 { program } else { lead_to(program, &mut bytes)? };
    let params = arch.front + params_place(file, header)?;
    Ok(Image { bytes, memory, entry, head: arch.head, params, relative })
}

/// Makes the image's first word a branch to `program`, which is where to enter the image then: at 0.
fn lead_to(program: u64, bytes: &mut [u8]) -> Result<u64, Failure> {
    // Power ISA 3.1, book I, 2.4: opcode 18, and an offset of a multiple of 4 bytes below 32 MiB.
    let offset = u32::try_from(program).ok().filter(|offset| offset % 4 == 0 && *offset < 1 << 25);
    let branch = 18 << 26 | offset.ok_or_else(|| format!("no branch leads to {program:#x}"))?;
    *bytes.first_chunk_mut().ok_or("is empty")? = branch.to_le_bytes();
    Ok(0)
}

/// Writes the addends of the relative relocations into the image and gives their places; refuses all others.
fn relocate(file: &[u8], header: &Elf, arch: &Arch, bytes: &mut [u8]) -> Result<Vec<u64>, Failure> {
    let endian = header.endian()?;
    let segments = header.program_headers(endian, file)?;
    let dynamic = segments
        .iter()
        .find(|segment| segment.p_type(endian) == PT_DYNAMIC)
        .and_then(|segment| segment.dynamic(endian, file).ok().flatten())
        .ok_or("has no dynamic section: it is not position independent")?;
    let value = |tag| dynamic.iter().find(|entry| entry.tag(endian) == tag).map(|entry| entry.d_val(endian));
    for tag in [DT_RELSZ, DT_PLTRELSZ, DT_TEXTREL] {
        if value(tag).is_some() {
            return Err(format!("has relocations of another kind (dynamic tag {tag})").into());
        }
    }
    let start = usize::try_from(arch.front + value(DT_RELA).unwrap_or(0))?;
    let table = bytes
        .get(start..start + usize::try_from(value(DT_RELASZ).unwrap_or(0))?)
        .ok_or("relocations lie outside")?;
    let table = pod::slice_from_all_bytes::<object::elf::Rela64<LE>>(table)
        .map_err(|()| "odd relocation table")?
        .to_vec();
    let mut places = Vec::new();
    for relocation in table {
        let place = arch.front + relocation.r_offset(endian);
        let kind = relocation.r_type(endian, false);
        if kind != arch.relative {
            return Err(format!("has a relocation of type {kind} at {place:#x}").into());
        }
        let at = usize::try_from(place)?;
        let word = bytes.get_mut(at..at + 8).ok_or("a relocation lies outside")?;
        let addend = arch.front.wrapping_add_signed(relocation.r_addend(endian));
        word.copy_from_slice(&addend.to_le_bytes());
        places.push(place);
    }
    Ok(places)
}

/// Address of the parameter block; refuses symbols left open.
fn params_place(file: &[u8], header: &Elf) -> Result<u64, Failure> {
    let endian = header.endian()?;
    let sections = header.sections(endian, file)?;
    let symbols = sections.symbols(endian, file, object::elf::SHT_SYMTAB)?;
    let mut place = None;
    for symbol in symbols.iter() {
        let name = symbol.name(endian, symbols.strings())?;
        if symbol.st_shndx(endian) == SHN_UNDEF && !name.is_empty() {
            return Err(format!("symbol {} is left open", String::from_utf8_lossy(name)).into());
        }
        if name == b"purgatory_params" {
            place = Some(symbol.st_value(endian));
        }
    }
    place.ok_or_else(|| "has no parameter block".into())
}
