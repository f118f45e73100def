//! Our dumps beside makedumpfile's: the same raw dump out of the page cache, the same codec at level 1, in turn.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::setup;

/// Each program runs this many times, and on until a codec has taken this long; the table has medians.
const RUNS: usize = 5;
const LONG: Duration = Duration::from_secs(75);
/// Where dumps are written: in memory, so that no disk is measured.
const DIRECTORY: &str = "/dev/shm";
/// makedumpfile's option, our name.
const CODECS: [(&str, &str); 3] = [("-l", "lzo"), ("-c", "zlib"), ("-z", "zstd")];

/// What a program took, once or as the median of several runs.
#[derive(Debug, Clone, Copy)]
struct Took {
    /// Seconds on the clock.
    wall: f64,
    /// Seconds of CPU, in user space and in the kernel.
    cpu: f64,
    /// The most memory at a time, in KiB.
    memory: f64,
    /// Length of the dump, in bytes.
    size: f64,
}

/// What is aimed at: speed of one thread beside makedumpfile's, by codec, ...
const SPEED: [(&str, f64); 3] = [("lzo", 1.5), ("zlib", 1.5), ("zstd", 2.0)];
/// ... of two threads beside one, and of one thread beside the codec alone on the same bytes.
const TWO: f64 = 1.7;
const CODEC: f64 = 0.75;
/// Speeds by the clock say something where fewer processes than this wanted to run in the last minute.
const QUIET: f64 = 0.5;

/// Compresses all pages of `core` but those of zeros with both programs, prints a table, and holds it against what is aimed at.
///
/// One thread is judged by CPU time, which says something on a busy machine too; two threads by the clock, on a quiet one only.
/// `MAKEDUMPFILE` is their program where it is not the system's.
///
/// # Errors
/// Where a program fails, or ours is slower or takes more memory than aimed at.
pub(crate) fn dump(core: &Path) -> Result<()> {
    setup::install_missing(["makedumpfile", "time"].iter())?;
    let makedumpfile = std::env::var("MAKEDUMPFILE").unwrap_or("makedumpfile".into());
    let core = core.to_str().context("the core's name is no text")?;
    let ours = build()?;
    let ours = ours.to_str().context("the target directory's name is no text")?;
    let dump = format!("{DIRECTORY}/hotdump-bench-{}", std::process::id());
    let busy = load()?;
    println!("makedumpfile: {}", version(&makedumpfile)?);
    println!("processes that wanted to run in the last minute: {busy}\n");
    println!(
        "| codec | program | s | s of CPU | memory, MiB | dump, MB | speed by the clock | by CPU time |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut missed = Vec::new();
    for (option, codec) in CODECS {
        // Debian's makedumpfile may be built without a codec.
        let theirs = [makedumpfile.as_str(), option, "-d", "1", "-f", core, &dump];
        let with_theirs = run(&theirs, &dump).is_ok();
        let one = [ours, core, &dump, codec, "1"];
        let two = [ours, core, &dump, codec, "2"];
        let mut took = [const { Vec::new() }; 3];
        let mut alone = Vec::new();
        let start = Instant::now();
        while alone.len() < RUNS || start.elapsed() < LONG {
            for (argv, took) in [theirs.as_slice(), &one, &two].into_iter().zip(&mut took) {
                if with_theirs || argv != theirs {
                    took.push(run(argv, &dump)?);
                }
            }
            alone.push(codec_alone(ours, core, codec)?);
        }
        let medians = took.each_ref().map(|runs| median_of(runs));
        let [theirs, one, two] = medians;
        let base = if with_theirs { theirs } else { one };
        for (name, took) in ["makedumpfile", "hotdump, 1 thread", "hotdump, 2 threads"].iter().zip(medians) {
            let Took { wall, cpu, memory, size } = took;
            if wall.is_finite() {
                println!(
                    "| {codec} | {name} | {wall:.2} | {cpu:.2} | {:.1} | {:.1} | {:.2} | {:.2} |",
                    memory / 1024.0,
                    size / 1e6,
                    base.wall / wall,
                    base.cpu / cpu
                );
            }
        }
        let alone = median(alone);
        println!("| {codec} | the codec alone | | {alone:.2} | | | | {:.2} |", base.cpu / alone);
        let mut judge = |what: &str, is: f64, aim: f64| {
            if is < aim {
                missed.push(format!("{codec}: {what} {is:.2}, aimed at {aim}"));
            }
        };
        if with_theirs {
            let aim = SPEED.iter().find(|(name, _)| *name == codec).map_or(1.0, |(_, aim)| *aim);
            judge("one thread beside makedumpfile", theirs.cpu / one.cpu, aim);
            judge("makedumpfile's memory beside ours", theirs.memory / one.memory.max(two.memory), 1.0);
        }
        judge("one thread beside the codec alone", alone / one.cpu, CODEC);
        if busy < QUIET {
            judge("two threads beside one", one.wall / two.wall, TWO);
        }
    }
    if busy >= QUIET {
        println!("\ntwo threads were not judged: other processes ran");
    }
    ensure!(missed.is_empty(), "not as fast as aimed at:\n  {}", missed.join("\n  "));
    Ok(())
}

/// Builds the program that writes our dumps, and gives its path.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "vmcore", "--example", "write_dump"])
        .status()?;
    ensure!(built.success(), "the example write_dump of vmcore does not build");
    let target = std::env::current_exe()?;
    let target = target.parent().and_then(Path::parent).context("no target directory")?;
    Ok(target.join("release/examples/write_dump"))
}

/// How many processes wanted to run in the last minute, on average.
fn load() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    text.split(' ').next().and_then(|word| word.parse().ok()).context("/proc/loadavg has no number")
}

/// The first line of what makedumpfile says of its version.
fn version(makedumpfile: &str) -> Result<String> {
    let output = Command::new(makedumpfile).arg("-v").output().with_context(|| makedumpfile.to_owned())?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("says nothing").to_owned())
}

/// Runs a program that writes `dump`, and takes the dump away.
fn run(argv: &[&str], dump: &str) -> Result<Took> {
    let output = Command::new("/usr/bin/time").args(["-f", "\n%e %U %S %M"]).args(argv).output()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let size = std::fs::metadata(dump).map(|data| data.len());
    let _ = std::fs::remove_file(dump);
    ensure!(output.status.success(), "{}: {errors}", argv.join(" "));
    let numbers: Vec<f64> =
        errors.lines().last().unwrap_or("").split(' ').filter_map(|word| word.parse().ok()).collect();
    let [wall, user, system, memory] = numbers.as_slice() else {
        anyhow::bail!("/usr/bin/time printed {errors:?}, wanted four numbers");
    };
    Ok(Took { wall: *wall, cpu: user + system, memory: *memory, size: size? as f64 })
}

fn codec_alone(ours: &str, core: &str, codec: &str) -> Result<f64> {
    let output = Command::new(ours).args([core, "codec", codec]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().parse().context("write_dump printed no number")
}

fn median_of(runs: &[Took]) -> Took {
    let of = |field: fn(&Took) -> f64| median(runs.iter().map(field).collect());
    Took {
        wall: of(|took| took.wall),
        cpu: of(|took| took.cpu),
        memory: of(|took| took.memory),
        size: of(|took| took.size),
    }
}

/// Not a number for no numbers.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
