//! Files as distributions pack them: gzip, xz or zstd, told by their first bytes.

use std::io::{self, Read};

/// Undoes the packing of `bytes`, which may have up to `most` bytes unpacked; what is not packed is given back as it is.
///
/// # Errors
/// What the unpacker says of damaged data; more than `most` bytes.
pub(crate) fn unpack(bytes: Vec<u8>, most: u64) -> io::Result<Vec<u8>> {
    let packed = bytes.as_slice();
    let mut reader: Box<dyn Read + '_> = match packed {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(packed)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(lzma_rust2::XzReader::new(packed, true)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(ruzstd::decoding::StreamingDecoder::new(packed).map_err(io::Error::other)?)
        }
        _ => return Ok(bytes),
    };
    let mut unpacked = Vec::new();
    reader.by_ref().take(most.saturating_add(1)).read_to_end(&mut unpacked)?;
    if unpacked.len() as u64 > most {
        return Err(io::Error::other(format!("it unpacks to more than {} MiB", most >> 20)));
    }
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Packed by the tools that distributions pack with; one that is not installed is left out, gzip always is.
    #[test]
    fn every_packing_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..300_000u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        let most = bytes.len() as u64;
        let plain = dir.path().join("file");
        std::fs::write(&plain, &bytes).unwrap();
        assert_eq!(unpack(bytes.clone(), 0).unwrap(), bytes);
        let mut undone = 0;
        for (tool, arguments, end) in [
            ("gzip", &["-k"][..], "gz"),
            ("xz", &["-k", "--check=crc32", "--lzma2=dict=1MiB"], "xz"),
            ("zstd", &["-q", "-k"], "zst"),
        ] {
            let ran = Command::new(tool).args(arguments).arg(&plain).stderr(Stdio::null()).status();
            if !ran.is_ok_and(|status| status.success()) {
                continue;
            }
            let packed = std::fs::read(plain.with_extension(end)).unwrap();
            assert!(packed.len() < bytes.len());
            assert_eq!(unpack(packed.clone(), most).unwrap(), bytes);
            let error = unpack(packed.clone(), most - 1).unwrap_err().to_string();
            assert!(error.contains("more than 1 MiB"), "{error}");
            assert!(unpack(packed[..packed.len() / 2].to_vec(), most).is_err(), "half of a {end} file");
            undone += 1;
        }
        assert!(undone > 0, "gzip is everywhere");
    }
}
