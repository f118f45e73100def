//! How the pages of a kdump-compressed dump are compressed, and how they come back.

use std::fmt;
use std::io;
use std::str::FromStr;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::lzo::{self, Lzo};

/// A way to compress pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Codec {
    /// zstd: the smallest of the fast ones, read by crash 8.0, makedumpfile 1.7.2 and drgn, where they were built with it.
    #[default]
    Zstd,
    /// zlib (`makedumpfile -c`): read by everything.
    Zlib,
    /// LZO1X (`makedumpfile -l`).
    Lzo,
    /// snappy (`makedumpfile -p`).
    Snappy,
    /// Pages as they are.
    None,
}

/// Codecs, their names on command lines, and their bits in page descriptors and headers (DUMP_DH_COMPRESSED_*).
const CODECS: [(Codec, &str, u32); 5] = [
    (Codec::Zstd, "zstd", 0x20),
    (Codec::Zlib, "zlib", 0x1),
    (Codec::Lzo, "lzo", 0x2),
    (Codec::Snappy, "snappy", 0x4),
    (Codec::None, "none", 0),
];

impl Codec {
    /// Its bit in page descriptors and headers; 0 for pages as they are.
    pub(crate) fn flag(self) -> u32 {
        CODECS.iter().find(|(codec, ..)| *codec == self).map_or(0, |(.., flag)| *flag)
    }

    /// The codec that a page descriptor's flags name; none for one that is not known.
    pub(crate) fn from_flags(flags: u32) -> Option<Self> {
        CODECS.iter().find(|(.., flag)| *flag == flags).map(|(codec, ..)| *codec)
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(CODECS.iter().find(|(codec, ..)| codec == self).map_or("", |(_, name, _)| name))
    }
}

/// No codec has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no way to compress: zstd, zlib, lzo, snappy and none are")]
pub struct UnknownCodec(pub String);

impl FromStr for Codec {
    type Err = UnknownCodec;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = CODECS.iter().find(|(_, name, _)| *name == text);
        found.map(|(codec, ..)| *codec).ok_or_else(|| UnknownCodec(text.to_owned()))
    }
}

/// Compresses pages one by one. One for each thread.
pub struct Compressor {
    state: State,
    room: usize,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

enum State {
    Zstd(zstd::bulk::Compressor<'static>),
    Zlib(Box<Compress>),
    Lzo(Lzo),
    Snappy(Box<snap::raw::Encoder>),
    None,
}

impl Compressor {
    /// One for pages of `page_size` bytes; `level` is the codec's own where it has levels, 1 unless said otherwise.
    ///
    /// # Errors
    /// The library's error, where the codec does not start.
    pub fn new(codec: Codec, level: Option<i32>, page_size: usize) -> io::Result<Self> {
        let level = level.unwrap_or(1);
        let (state, room) = match codec {
            Codec::Zstd => (State::Zstd(zstd::bulk::Compressor::new(level)?), page_size),
            Codec::Zlib => {
                let level = Compression::new(u32::try_from(level).unwrap_or(1).min(9));
                (State::Zlib(Box::new(Compress::new(level, true))), page_size)
            }
            Codec::Lzo => (State::Lzo(Lzo::new()), lzo::room_for(page_size)),
            Codec::Snappy => {
                (State::Snappy(Box::new(snap::raw::Encoder::new())), snap::raw::max_compress_len(page_size))
            }
            Codec::None => (State::None, page_size),
        };
        Ok(Self { state, room })
    }

    /// The bytes that a page may take while it is compressed.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room
    }

    /// Compresses a page into the start of `out`, which has [`room`](Self::room) for it, and gives its length there; none where it
    /// takes no fewer bytes than before. What is in `out` behind that is lost.
    pub fn compress(&mut self, page: &[u8], out: &mut [u8]) -> Option<usize> {
        let out = out.get_mut(..self.room)?;
        let len = match &mut self.state {
            State::Zstd(state) => state.compress_to_buffer(page, out).ok(),
            State::Zlib(state) => {
                state.reset();
                let ended = state.compress(page, out, FlushCompress::Finish);
                matches!(ended, Ok(Status::StreamEnd)).then_some(state.total_out() as usize)
            }
            State::Lzo(state) => state.compress(page, out),
            State::Snappy(state) => state.compress(page, out).ok(),
            State::None => None,
        };
        len.filter(|len| *len < page.len())
    }
}

/// Brings pages back. One for each thread.
pub(crate) struct Decompressor {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    zlib: Decompress,
}

impl Decompressor {
    pub(crate) fn new() -> Self {
        Self { zstd: None, zlib: Decompress::new(true) }
    }

    /// Fills all of `page` from `bytes`.
    ///
    /// # Errors
    /// `InvalidData` where they are damaged, or make more or less than a page.
    pub(crate) fn decompress(&mut self, codec: Codec, bytes: &[u8], page: &mut [u8]) -> io::Result<()> {
        let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("{codec}: {why}"));
        let len = match codec {
            Codec::Zstd => {
                let state = match &mut self.zstd {
                    Some(state) => state,
                    none => none.insert(zstd::bulk::Decompressor::new()?),
                };
                state.decompress_to_buffer(bytes, page).map_err(|error| damaged(error.to_string()))?
            }
            Codec::Zlib => {
                self.zlib.reset(true);
                let ended = self.zlib.decompress(bytes, page, FlushDecompress::Finish);
                match ended.map_err(|error| damaged(error.to_string()))? {
                    Status::StreamEnd => self.zlib.total_out() as usize,
                    _ => return Err(damaged("the page does not end where it should".into())),
                }
            }
            Codec::Lzo => {
                lzokay::decompress::decompress(bytes, page).map_err(|error| damaged(format!("{error:?}")))?
            }
            Codec::Snappy => snap::raw::Decoder::new()
                .decompress(bytes, page)
                .map_err(|error| damaged(error.to_string()))?,
            Codec::None => {
                if bytes.len() == page.len() {
                    page.copy_from_slice(bytes);
                }
                bytes.len()
            }
        };
        if len == page.len() {
            Ok(())
        } else {
            Err(damaged(format!("{len} bytes in place of a page of {}", page.len())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_gives_pages_back_and_refuses_damage() {
        for (codec, name, flag) in CODECS {
            assert_eq!((name.parse(), Codec::from_flags(flag)), (Ok(codec), Some(codec)));
            for size in [4096, 65536] {
                let page: Vec<u8> = (0..size).map(|at| (at / 7 % 256) as u8).collect();
                let mut compressor = Compressor::new(codec, None, size).unwrap();
                let mut out = vec![0; compressor.room()];
                let mut back = vec![0; size];
                let mut decompressor = Decompressor::new();
                for _ in 0..2 {
                    let Some(len) = compressor.compress(&page, &mut out) else {
                        assert_eq!(codec, Codec::None);
                        continue;
                    };
                    let small = &out[..len];
                    decompressor.decompress(codec, small, &mut back).unwrap();
                    assert!(back == page);
                    decompressor.decompress(codec, &small[..small.len() / 2], &mut back).unwrap_err();
                    decompressor.decompress(codec, small, &mut back[1..]).unwrap_err();
                    decompressor.decompress(codec, small, &mut vec![0; size + 1]).unwrap_err();
                }
            }
        }
        assert!("lz4".parse::<Codec>().is_err());
    }

    #[test]
    fn what_does_not_shrink_is_left_as_it_is() {
        let mut state = 1u64;
        let noise: Vec<u8> = (0..4096)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        for (codec, ..) in CODECS {
            let mut compressor = Compressor::new(codec, None, 4096).unwrap();
            let mut out = vec![0; compressor.room()];
            assert_eq!(compressor.compress(&noise, &mut out), None, "{codec}");
            assert_eq!(compressor.compress(&[7; 4096], &mut out[1..]), None, "{codec}: no room");
        }
    }
}
