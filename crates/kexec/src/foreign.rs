//! Files that are given for a kernel and are not: saying what they are tells the user what went wrong.

use elfcorehdr::Machine;

use crate::arch::MACHINE;
use crate::error::ImageError;

/// What an ELF file for this machine may be that is no kernel file here.
const ELF_KERNEL: &str = match MACHINE {
    Machine::Ppc64 => "a damaged vmlinux",
    _ => "vmlinux",
};

/// Machines by e_machine, PE machine number, and name. 0 where a format has none.
const MACHINES: [(u16, u16, &str); 12] = [
    (3, 0x014c, "32-bit x86"),
    (8, 0, "MIPS"),
    (20, 0, "32-bit PowerPC"),
    (21, 0, "64-bit PowerPC"),
    (22, 0, "IBM Z"),
    (40, 0x01c2, "32-bit ARM"),
    (43, 0, "SPARC"),
    (62, 0x8664, "x86_64"),
    (183, 0xaa64, "arm64"),
    (243, 0x5064, "RISC-V"),
    (258, 0x6264, "LoongArch"),
    (0, 0x5032, "32-bit RISC-V"),
];

/// Magic numbers of things that are not kernels: offset, bytes, name.
const FORMATS: [(usize, &[u8], &str); 9] = [
    (0, b"\x1f\x8b", "gzip data"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data"),
    (0, b"\xfd7zXZ\0", "xz data"),
    (0, b"BZh", "bzip2 data"),
    (0, b"\x02\x21\x4c\x18", "lz4 data"),
    (0, b"070701", "a cpio archive (an initramfs?)"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (4, b"zimg", "an EFI zboot image"),
    (0, b"#!", "a script"),
];

/// Kernel images of other architectures, by magic: offset, bytes, architecture.
const KERNELS: [(usize, &[u8], &str); 4] = [
    (56, b"ARM\x64", "arm64"),
    (56, b"RSC\x05", "RISC-V"),
    (36, b"\x18\x28\x6f\x01", "32-bit ARM"),
    (0x202, b"HdrS", "x86"),
];

/// Says what `file`, which is not a kernel of this architecture, seems to be.
pub(crate) fn recognise(file: &[u8]) -> ImageError {
    let at = |offset: usize, magic: &[u8]| file.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    if let Some((_, _, found)) = KERNELS.iter().find(|(offset, magic, _)| at(*offset, magic)) {
        return ImageError::OtherArchitecture { found: (*found).to_owned() };
    }
    if at(0, b"\x7fELF") {
        return elf(file);
    }
    if let Some((_, _, found)) = FORMATS.iter().find(|(offset, magic, _)| at(*offset, magic)) {
        return ImageError::NotAKernel { found: format!("the file is {found}") };
    }
    if at(0, b"MZ") {
        return pe(file);
    }
    let found = if file.is_empty() { "the file is empty" } else { "its first bytes are those of no kernel" };
    ImageError::NotAKernel { found: found.to_owned() }
}

fn elf(file: &[u8]) -> ImageError {
    let big = file.get(5) == Some(&2);
    let number = u16_at(file, 18).map(|number| if big { number.swap_bytes() } else { number });
    match number.and_then(|number| MACHINES.iter().find(|(elf, _, _)| *elf == number)) {
        Some((21, _, _)) if big => ImageError::OtherArchitecture { found: "big-endian PowerPC".to_owned() },
        Some((own, _, _)) if *own == MACHINE.number() => {
            ImageError::NotAKernel { found: format!("the file is an ELF program or {ELF_KERNEL}") }
        }
        Some((_, _, name)) => ImageError::OtherArchitecture { found: (*name).to_owned() },
        None => {
            ImageError::NotAKernel { found: format!("the file is ELF for machine {}", number.unwrap_or(0)) }
        }
    }
}

fn pe(file: &[u8]) -> ImageError {
    let header =
        file.get(0x3c..).and_then(|rest| rest.first_chunk()).map(|at| u32::from_le_bytes(*at) as usize);
    let number = header
        .filter(|at| file.get(*at..).is_some_and(|rest| rest.starts_with(b"PE\0\0")))
        .and_then(|at| u16_at(file, at.checked_add(4)?));
    match number.and_then(|number| MACHINES.iter().find(|(_, pe, _)| *pe == number)) {
        Some((_, 0x8664, _)) | None if MACHINE == Machine::X86_64 => ImageError::NotAKernel {
            found:
                "the file is an EFI program; a unified kernel image holds the bzImage in its section .linux"
                    .to_owned(),
        },
        Some((_, _, name)) => ImageError::OtherArchitecture { found: (*name).to_owned() },
        None => ImageError::NotAKernel { found: "the file is an EFI program".to_owned() },
    }
}

fn u16_at(file: &[u8], offset: usize) -> Option<u16> {
    file.get(offset..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pieces: &[(usize, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 1024];
        for (offset, bytes) in pieces {
            file[*offset..*offset + bytes.len()].copy_from_slice(bytes);
        }
        file
    }

    #[test]
    fn strangers_are_named() {
        let pe: &[(usize, &[u8])] = &[(0, b"MZ"), (0x3c, &[0x40]), (0x40, b"PE\0\0")];
        let cases: &[(Vec<u8>, &str)] = &[
            (vec![], "empty"),
            (vec![0; 100], "its first bytes are those of no kernel"),
            (with(&[(0, b"\x1f\x8b")]), "gzip"),
            (with(&[(0, b"070701")]), "cpio"),
            (with(&[(0, b"\x7fELF\x02\x01"), (18, &MACHINE.number().to_le_bytes())]), "vmlinux"),
            (with(&[(0, b"\x7fELF\x02\x01"), (18, &[20, 0])]), "32-bit PowerPC"),
            (with(&[(0, b"\x7fELF\x02\x02"), (18, &[0, 21])]), "big-endian PowerPC"),
            (with(&[(0x202, b"HdrS")]), "x86"),
            (with(&[(0, b"\x7fELF\x02\x02"), (18, &[0, 22])]), "IBM Z"),
            (with(&[(0, b"\x7fELF\x02\x01"), (18, &[0xff, 0xff])]), "machine 65535"),
            (with(&[(56, b"ARM\x64")]), "arm64"),
            (with(&[(0, b"MZ\0\0zimg")]), "zboot"),
            (with(&[pe, &[(0x44, &[0x64, 0xaa])]].concat()), "arm64"),
            (
                with(&[pe, &[(0x44, &[0x64, 0x86])]].concat()),
                if MACHINE == Machine::X86_64 { "unified kernel image" } else { "x86_64" },
            ),
            (with(&[(0, b"MZ"), (0x3c, &[0xff; 4])]), "EFI program"),
        ];
        for (file, expected) in cases {
            let text = recognise(file).to_string();
            assert!(text.contains(expected), "{text:?} should say {expected:?}");
        }
    }
}
