//! From a core to a dump: which pages, how much space they take, and the writing. The capture, `hotdump dump` and the face of makedumpfile
//! share it.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use vmcore::dump::{DumpError, DumpOptions, Format, Sink, write_dump};
use vmcore::{Bitmap, Codec, Core, DumpHeader, DumpLevel, Frame, ReadAt, Selection};

use crate::manifest::Recorder;

/// Frames of a stretch that is tried out for an estimate, and the most stretches.
const SAMPLE: u64 = 64;
const SAMPLES: u64 = 96;
/// What an estimate is made larger by, in percent: a sample is not the whole.
const MARGIN: u64 = 10;
/// Bytes that describe a page in a kdump-compressed dump, in both bitmaps and its descriptor, rounded up.
const PER_PAGE: u64 = 25;
/// What headers and notes take at most.
const HEADERS: u64 = 1 << 20;

/// The frames of `core` that a dump of `level` holds.
///
/// `header` is what a dump that is already filtered says of itself: what it does not hold is not asked for.
pub(crate) fn select<S: ReadAt>(core: &Core<S>, header: Option<&DumpHeader>, level: DumpLevel) -> Selection {
    let mut selection = Selection::filtered(core, level);
    if let Some(header) = header {
        selection.keep_only(&header.kept);
        selection.exists = header.exists.clone();
        // What an earlier filter left out is gone whatever is asked for now.
        let before = u8::try_from(header.dump_level).ok().and_then(|level| DumpLevel::new(level).ok());
        let reached = &mut selection.report.reached;
        *reached = reached.or(before.unwrap_or_default());
    }
    selection
}

/// How much space a dump will take, in bytes, by trying out pages from all over memory. Reads up to 24 MiB of it.
///
/// # Errors
/// The codec does not start, or the core's headers cannot be read.
pub(crate) fn estimate<S: ReadAt + Sync>(
    core: &Core<S>,
    selection: &Selection,
    options: &DumpOptions,
) -> Result<u64, DumpError> {
    let kept = selection.kept.count();
    let mut sample = Selection { kept: sample(&selection.kept, kept), ..selection.clone() };
    sample.in_any_order();
    let counted = Counted::default();
    let written = write_dump(core, &sample, &counted, options, |_| ())?;
    let tried = written.wanted_pages.max(1);
    // A core that ELF dumps are made of has holes for zeros; both formats take what the pages take.
    let data = u128::from(written.data_bytes) * u128::from(kept) / u128::from(tried);
    let data = u64::try_from(data).unwrap_or(u64::MAX);
    let margin = data / 100 * MARGIN;
    let described = match options.format {
        Format::Kdump(_) => kept.saturating_mul(PER_PAGE).saturating_add(selection.exists.end().0 / 4),
        Format::Elf => 0,
    };
    Ok(data.saturating_add(margin).saturating_add(described).saturating_add(HEADERS))
}

/// Stretches of the frames at even distances.
fn sample(frames: &Bitmap, count: u64) -> Bitmap {
    if count <= SAMPLE * SAMPLES {
        return frames.clone();
    }
    let mut chosen = Bitmap::new();
    let distance = count / SAMPLES;
    // How many frames come before the next stretch.
    let mut skip = 0;
    let mut wanted = 0;
    for run in frames.runs() {
        let mut at = run.start.0;
        while at < run.end.0 {
            let left = run.end.0 - at;
            if wanted > 0 {
                let now = left.min(wanted);
                chosen.insert_range(Frame(at)..Frame(at + now));
                at += now;
                wanted -= now;
                if wanted == 0 {
                    skip = distance.saturating_sub(SAMPLE);
                }
            } else {
                let now = left.min(skip);
                at += now;
                skip -= now;
                if skip == 0 {
                    wanted = SAMPLE;
                }
            }
        }
    }
    chosen
}

/// Takes a dump and keeps nothing but its length.
#[derive(Default)]
struct Counted(AtomicU64);

impl Sink for Counted {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.fetch_max(offset.saturating_add(bytes.len() as u64), Ordering::Relaxed);
        Ok(())
    }

    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn finish(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

/// A file that a recorder listens to being written.
pub(crate) struct Recorded<'a> {
    pub(crate) file: &'a File,
    pub(crate) recorder: &'a Recorder,
}

impl Sink for Recorded<'_> {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        Sink::write_at(self.file, offset, bytes)?;
        self.recorder.note(offset, bytes);
        Ok(())
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.reserve(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn finish(&self, len: u64) -> io::Result<()> {
        self.file.finish(len)
    }
}

/// The levels to try, one after the other, where a dump of `asked` does not fit: each leaves out what the one before does, and more.
pub(crate) fn higher_levels(asked: DumpLevel) -> Vec<DumpLevel> {
    let kinds =
        [DumpLevel::ZERO, DumpLevel::FREE, DumpLevel::CACHE, DumpLevel::CACHE_PRIVATE, DumpLevel::USER];
    let mut level = asked;
    let mut levels = Vec::new();
    for kind in kinds {
        if !level.includes(kind) {
            level = level.or(kind);
            levels.push(level);
        }
    }
    levels
}

/// The format's name, as reports and people have it.
pub(crate) fn format_name(format: Format) -> String {
    match format {
        Format::Elf => "ELF".to_owned(),
        Format::Kdump(Codec::None) => "kdump-compressed, pages as they are".to_owned(),
        Format::Kdump(codec) => format!("kdump-compressed, {codec}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(ranges: &[(u64, u64)]) -> Bitmap {
        let mut set = Bitmap::new();
        ranges.iter().for_each(|(from, to)| set.insert_range(Frame(*from)..Frame(*to)));
        set
    }

    #[test]
    fn a_sample_is_from_all_over_and_no_larger_than_said() {
        let all = frames(&[(10, 100_000), (5_000_000, 5_000_010), (9_000_000, 9_900_000)]);
        let chosen = sample(&all, all.count());
        let count = chosen.count();
        assert!((SAMPLE * (SAMPLES - 2)..=SAMPLE * (SAMPLES + 1)).contains(&count), "{count}");
        let mut within = chosen.clone();
        within.intersect(&all);
        assert!(within == chosen, "it has nothing else");
        assert!(chosen.count_range(Frame(0)..Frame(1_000_000)) > 0);
        assert!(chosen.end() > Frame(9_880_000));
        let few = frames(&[(1, 50)]);
        assert!(sample(&few, few.count()) == few);
    }

    #[test]
    fn levels_rise_to_all_that_can_be_left_out() {
        let rise = |from| {
            let level = DumpLevel::new(from).unwrap_or_default();
            higher_levels(level).iter().map(|level| level.number()).collect::<Vec<_>>()
        };
        assert_eq!(rise(0), [1, 17, 19, 23, 31]);
        assert_eq!(rise(8), [9, 25, 27, 31]);
        assert!(rise(31).is_empty());
    }
}
