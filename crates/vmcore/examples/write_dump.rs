//! Writes a dump of all that a core holds, as `xtask bench dump` measures it: `write_dump CORE DUMP CODEC THREADS`, with CODEC
//! `elf` for an ELF core. `write_dump CORE codec CODEC` only compresses, and prints the seconds of CPU that the codec took.

use std::error::Error;
use std::fs::File;
use std::num::NonZeroUsize;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use vmcore::dump::{DumpOptions, Format, write_dump};
use vmcore::{Codec, Compressor, Core, ReadAt, Selection};

/// Pages are compressed in pieces of this many bytes: the windows that a dump is written from.
const PIECE: usize = 4 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [core, "codec", codec] => {
            println!("{:.3}", compress(&Core::open(File::open(core)?)?, codec.parse()?)?.as_secs_f64());
        }
        [core, dump, format, threads] => {
            let core = Core::open(File::open(core)?)?;
            let format = if *format == "elf" { Format::Elf } else { Format::Kdump(format.parse()?) };
            let threads = Some(threads.parse::<NonZeroUsize>()?);
            let options = DumpOptions { format, threads, ..DumpOptions::default() };
            write_dump(&core, &Selection::everything(&core), &File::create(dump)?, &options, |_| {})?;
        }
        _ => return Err("write_dump CORE DUMP CODEC THREADS, or write_dump CORE codec CODEC".into()),
    }
    Ok(())
}

/// The CPU time that the codec takes for all pages that are not zeros.
fn compress(core: &Core<File>, codec: Codec) -> Result<Duration, Box<dyn Error>> {
    let page_size = Selection::everything(core).page_size as usize;
    let mut compressor = Compressor::new(codec, None, page_size)?;
    let mut out = vec![0; compressor.room()];
    let mut buffer = vec![0; PIECE];
    let mut took = Duration::ZERO;
    for load in core.loads() {
        for offset in (load.offset..load.offset + load.size / PIECE as u64 * PIECE as u64).step_by(PIECE) {
            core.source().read_at(offset, &mut buffer)?;
            let pages: Vec<&[u8]> =
                buffer.chunks(page_size).filter(|page| page.iter().any(|byte| *byte != 0)).collect();
            let start = cpu_time()?;
            for page in pages {
                std::hint::black_box(compressor.compress(page, &mut out));
            }
            took += cpu_time()?.saturating_sub(start);
        }
    }
    Ok(took)
}

/// The time that this thread has run.
fn cpu_time() -> Result<Duration, std::num::TryFromIntError> {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}
