//! Looks at a file over and over, beside all else.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use lab_agent::Samples;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// A thread that looks at a file.
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Samples>>,
}

impl Sampler {
    /// Begins; the first look is done when this comes back.
    pub(crate) fn start(path: &Path) -> Result<Sampler> {
        let looks = Looks::at(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        Ok(Sampler { stop, thread: thread::spawn(move || looks.until(&stopped)) })
    }

    /// Ends, and gives what was seen.
    pub(crate) fn stop(self) -> Result<Samples> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the thread that looks at the file panicked"))?
    }
}

/// A file and what it held so far.
struct Looks {
    path: PathBuf,
    /// Files of sysfs tell anew what is, at each read from their beginning.
    file: File,
    start: Instant,
    samples: Samples,
}

impl Looks {
    fn at(path: &Path) -> Result<Looks> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let mut looks =
            Looks { path: path.to_owned(), file, start: Instant::now(), samples: Samples::default() };
        looks.look()?;
        Ok(looks)
    }

    fn look(&mut self) -> Result<()> {
        let mut bytes = [0; 256];
        let length =
            self.file.read_at(&mut bytes, 0).with_context(|| format!("reading {}", self.path.display()))?;
        let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.samples.take(now, text.trim());
        Ok(())
    }

    fn until(mut self, stop: &AtomicBool) -> Result<Samples> {
        while !stop.load(Ordering::Relaxed) {
            thread::sleep(PAUSE);
            self.look()?;
        }
        Ok(self.samples)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_held_and_for_how_long_it_did_not() {
        let path = std::env::temp_dir().join(format!("lab-agent-sampler-{}", std::process::id()));
        std::fs::write(&path, "1\n").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let sampler = Sampler::start(&path).unwrap();
        for text in ["1", "0", "1"] {
            file.write_all_at(text.as_bytes(), 0).unwrap();
            thread::sleep(Duration::from_millis(30));
        }
        let samples = sampler.stop().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(samples.count > 3, "{samples:?}");
        let texts: Vec<&str> = samples.texts.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["1", "0", "1"]);
        let without = samples.without("1");
        assert!(without.len() == 1 && without[0] >= 15_000_000, "{samples:?}");
        assert!(without[0] < samples.nanoseconds, "{samples:?}");
    }
}
