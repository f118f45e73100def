//! The initramfs as a cpio archive (newc): the same contents give the same bytes.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};

use cpio::NewcBuilder;
use cpio::newc::{ModeFileType, trailer};

use super::Compression;
use crate::unpack::unpack;

/// What a name in the archive stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory,
    File {
        data: Vec<u8>,
        mode: u32,
    },
    Link {
        to: String,
    },
    /// Major and minor number.
    CharDevice(u32, u32),
}

/// The contents of an initramfs, by path without a leading `/`. Directories come of themselves.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    /// Puts an empty directory in.
    pub(crate) fn directory(&mut self, path: &str) {
        self.put(path, Node::Directory);
    }

    /// Puts a file in; `mode` holds its permission bits.
    pub(crate) fn file(&mut self, path: &str, mode: u32, data: Vec<u8>) {
        self.put(path, Node::File { data, mode });
    }

    /// Puts a symbolic link in.
    pub(crate) fn link(&mut self, path: &str, to: &str) {
        self.put(path, Node::Link { to: to.to_owned() });
    }

    /// Puts a character device in, for root only.
    pub(crate) fn char_device(&mut self, path: &str, major: u32, minor: u32) {
        self.put(path, Node::CharDevice(major, minor));
    }

    /// Whether a file is in.
    pub(crate) fn holds(&self, path: &str) -> bool {
        self.nodes.contains_key(path.trim_start_matches('/'))
    }

    /// The files, with their sizes in bytes.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, usize)> {
        self.nodes.iter().filter_map(|(path, node)| match node {
            Node::File { data, .. } => Some((path.as_str(), data.len())),
            _ => None,
        })
    }

    fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            let parent = path.get(..at).unwrap_or_default();
            self.nodes.entry(parent.to_owned()).or_insert(Node::Directory);
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// The archive's bytes. Names come sorted, so a directory before what is in it.
    ///
    /// # Errors
    /// A file of 4 GiB and more, which the format cannot hold.
    pub(crate) fn pack(&self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        for (number, (path, node)) in self.nodes.iter().enumerate() {
            let inode = u32::try_from(number).map_err(io::Error::other)?.saturating_add(1);
            let builder = NewcBuilder::new(path).ino(inode);
            let (builder, data) = match node {
                Node::Directory => (builder.mode(0o755).set_mode_file_type(ModeFileType::Directory), &[][..]),
                Node::File { data, mode } => {
                    (builder.mode(*mode).set_mode_file_type(ModeFileType::Regular), data.as_slice())
                }
                Node::Link { to } => {
                    (builder.mode(0o777).set_mode_file_type(ModeFileType::Symlink), to.as_bytes())
                }
                Node::CharDevice(major, minor) => {
                    let builder = builder.mode(0o600).rdev_major(*major).rdev_minor(*minor);
                    (builder.set_mode_file_type(ModeFileType::Char), &[][..])
                }
            };
            let size = u32::try_from(data.len()).map_err(|_| {
                io::Error::other(format!("{path} has {} bytes, more than an initramfs file can", data.len()))
            })?;
            let mut writer = builder.write(out, size);
            writer.write_all(data)?;
            out = writer.finish()?;
        }
        trailer(out)
    }
}

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packed {
    /// Its path, without a leading `/`.
    pub(crate) path: String,
    /// Its kind and its permissions.
    pub(crate) mode: u32,
    /// What is in it.
    pub(crate) data: Vec<u8>,
}

/// More than any capture initramfs; a file that unpacks to more is damaged.
const MOST: u64 = 1 << 30;

/// What is in an initramfs, in its order: one archive or several behind each other, packed or not, as kernels take them.
///
/// # Errors
/// The bytes are no archive, or a damaged one.
pub(crate) fn read(bytes: Vec<u8>) -> io::Result<Vec<Packed>> {
    let mut found = Vec::new();
    let mut bytes = unpack(bytes, MOST)?;
    loop {
        let rest = list(&bytes, &mut found)?;
        let padding = rest.iter().take_while(|byte| **byte == 0).count();
        match rest.get(padding..).filter(|rest| !rest.is_empty()) {
            None => return Ok(found),
            Some(rest) => bytes = unpack(rest.to_vec(), MOST)?,
        }
    }
}

/// Adds what is in one unpacked archive; gives what comes behind it.
fn list<'a>(bytes: &'a [u8], found: &mut Vec<Packed>) -> io::Result<&'a [u8]> {
    let mut input = bytes;
    loop {
        let mut reader = cpio::NewcReader::new(input)?;
        if reader.entry().is_trailer() {
            return reader.finish();
        }
        let mut data = Vec::new();
        reader.read_to_end(&mut data)?;
        let name = reader.entry().name();
        let path = name.strip_prefix("./").unwrap_or(name).trim_start_matches('/').to_owned();
        found.push(Packed { path, mode: reader.entry().mode(), data });
        input = reader.finish()?;
    }
}

/// Compresses an archive.
///
/// # Errors
/// What the compressor says.
pub(crate) fn compress(archive: Vec<u8>, how: Compression) -> io::Result<Vec<u8>> {
    match how {
        Compression::None => Ok(archive),
        // Neither name nor time goes into the header, so the result is reproducible.
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            encoder.write_all(&archive)?;
            encoder.finish()
        }
        Compression::Zstd => Ok(ruzstd::encoding::compress_to_vec(
            archive.as_slice(),
            ruzstd::encoding::CompressionLevel::Fastest,
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::default();
        archive.file("/init", 0o755, b"#!/bin/sh\n".to_vec());
        archive.file("lib/modules/6.12/a.ko", 0o644, vec![7; 5001]);
        archive.link("bin/hotdump", "/init");
        archive.directory("proc");
        archive
    }

    #[test]
    fn directories_come_before_what_is_in_them() {
        let names: Vec<String> =
            read(sample().pack().unwrap()).unwrap().into_iter().map(|entry| entry.path).collect();
        assert_eq!(
            names,
            [
                "bin",
                "bin/hotdump",
                "init",
                "lib",
                "lib/modules",
                "lib/modules/6.12",
                "lib/modules/6.12/a.ko",
                "proc"
            ]
        );
    }

    #[test]
    fn the_same_contents_give_the_same_bytes_however_compressed() {
        for how in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let pack = || compress(sample().pack().unwrap(), how).unwrap();
            assert_eq!(pack(), pack(), "{how:?}");
        }
    }

    #[test]
    fn compressed_archives_unpack_to_the_same() {
        let plain = sample().pack().unwrap();
        let gzip = compress(plain.clone(), Compression::Gzip).unwrap();
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&gzip[..]).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, plain);
        let zstd = compress(plain.clone(), Compression::Zstd).unwrap();
        unpacked.clear();
        ruzstd::decoding::StreamingDecoder::new(&zstd[..]).unwrap().read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, plain);
    }

    /// The cpio tool is an independent reader; where it is not installed the crate's own reader has to do.
    #[test]
    fn the_cpio_tool_unpacks_it() {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("cpio")
            .args(["-idm", "--quiet", "--no-absolute-filenames"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else { return };
        child.stdin.take().unwrap().write_all(&sample().pack().unwrap()).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(fs::read(dir.path().join("lib/modules/6.12/a.ko")).unwrap(), [7; 5001]);
        assert_eq!(fs::metadata(dir.path().join("init")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_link(dir.path().join("bin/hotdump")).unwrap().to_str(), Some("/init"));
        assert!(dir.path().join("proc").is_dir());
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let long = b"no archive at all, and long enough to be a header of one, which it is not: ".repeat(3);
        for bytes in [&b""[..], b"070701", &long] {
            read(bytes.to_vec()).unwrap_err();
        }
        let whole = sample().pack().unwrap();
        read(whole[..whole.len() / 2].to_vec()).unwrap_err();
    }

    /// As mkinitramfs and dracut put them: microcode first, unpacked, then the rest.
    #[test]
    fn archives_behind_each_other_are_read_as_one() {
        let mut early = Archive::default();
        early.file("kernel/x86/microcode/x.bin", 0o644, vec![1; 100]);
        for how in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let mut bytes = early.pack().unwrap();
            bytes.resize(bytes.len().next_multiple_of(512), 0);
            bytes.extend(compress(sample().pack().unwrap(), how).unwrap());
            let paths: Vec<String> = read(bytes).unwrap().into_iter().map(|file| file.path).collect();
            assert!(paths.contains(&"kernel/x86/microcode/x.bin".to_owned()), "{paths:?}");
            assert!(paths.contains(&"lib/modules/6.12/a.ko".to_owned()), "{how:?}: {paths:?}");
        }
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(files in proptest::collection::btree_map("[a-z]{1,9}(/[a-z]{1,9}){0,3}/[A-Z]{1,7}", proptest::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let mut archive = Archive::default();
            for (path, data) in &files {
                archive.file(path, 0o600, data.clone());
            }
            let bytes = archive.pack().unwrap();
            prop_assert_eq!(bytes.len() % 4, 0);
            let found = read(bytes).unwrap();
            let data: BTreeMap<_, _> =
                found.iter().filter(|entry| entry.mode & 0o170_000 == 0o100_000).map(|entry| (entry.path.clone(), entry.data.clone())).collect();
            prop_assert_eq!(data, files);
            for (at, entry) in found.iter().enumerate() {
                if let Some((parent, _)) = entry.path.rsplit_once('/') {
                    prop_assert!(found[..at].iter().any(|earlier| earlier.path == parent && earlier.mode == 0o040_755));
                }
            }
        }
    }
}
