//! Module files as the kernel takes them: unpacked, so that the capture kernel needs no decompressor of its own.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// More than any module; a file that unpacks to more is damaged.
const MOST: u64 = 256 << 20;

/// Reads a module, unpacking it by its file name's end. The signature at a module's end stays as it is.
///
/// # Errors
/// The system's error, or what the unpacker says of damaged data.
pub(super) fn read_module(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let mut reader: Box<dyn Read> = match path.extension().and_then(|end| end.to_str()) {
        Some("xz") => Box::new(lzma_rust2::XzReader::new(io::BufReader::new(file), true)),
        Some("zst") => Box::new(ruzstd::decoding::StreamingDecoder::new(file).map_err(io::Error::other)?),
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(file)),
        _ => Box::new(file),
    };
    let mut bytes = Vec::new();
    reader.by_ref().take(MOST).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == MOST {
        return Err(io::Error::other("unpacks to more than 256 MiB"));
    }
    if !bytes.starts_with(b"\x7fELF") {
        return Err(io::Error::other("is no ELF file, as a module must be"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Packed by the tools that distributions pack with; one that is not installed is left out, gzip always is.
    #[test]
    fn every_packing_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let mut module = b"\x7fELF".to_vec();
        module.extend((0..300_000u32).flat_map(|number| (number / 7).to_le_bytes()));
        let plain = dir.path().join("m.ko");
        std::fs::write(&plain, &module).unwrap();
        let mut unpacked = vec![read_module(&plain).unwrap()];
        for (tool, arguments, end) in [
            ("gzip", &["-k"][..], "gz"),
            ("xz", &["-k", "--check=crc32", "--lzma2=dict=1MiB"], "xz"),
            ("zstd", &["-q", "-k"], "zst"),
        ] {
            let ran = Command::new(tool).args(arguments).arg(&plain).stderr(Stdio::null()).status();
            if ran.is_ok_and(|status| status.success()) {
                unpacked.push(read_module(&plain.with_extension(format!("ko.{end}"))).unwrap());
            }
        }
        assert!(unpacked.len() > 1, "gzip is everywhere");
        assert!(unpacked.iter().all(|bytes| *bytes == module));
    }

    #[test]
    fn damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for end in ["ko", "ko.xz", "ko.zst", "ko.gz"] {
            let path = dir.path().join(format!("m.{end}"));
            std::fs::write(&path, b"neither packed nor a module").unwrap();
            assert!(read_module(&path).is_err(), "{end}");
        }
    }
}
