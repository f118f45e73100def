//! Module files as the kernel takes them: unpacked, so that the capture kernel needs no decompressor of its own.

use std::fs;
use std::io;
use std::path::Path;

use crate::unpack::unpack;

/// More than any module; a file that unpacks to more is damaged.
const MOST: u64 = 256 << 20;

/// Reads a module and unpacks it. The signature at a module's end stays as it is.
///
/// # Errors
/// The system's error, or what the unpacker says of damaged data.
pub(super) fn read_module(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = unpack(fs::read(path)?, MOST)?;
    if !bytes.starts_with(b"\x7fELF") {
        return Err(io::Error::other("is no ELF file, as a module must be"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    }

    #[test]
    fn a_module_is_an_elf_file_packed_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.ko.gz");
        for (bytes, is_module) in [(&b"\x7fELF and so on"[..], true), (b"neither packed nor a module", false)]
        {
            for file in [bytes.to_vec(), packed(bytes)] {
                fs::write(&path, file).unwrap();
                assert_eq!(read_module(&path).ok().as_deref(), is_module.then_some(bytes));
            }
        }
    }
}
