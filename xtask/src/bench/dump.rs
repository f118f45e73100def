//! Our dumps beside makedumpfile's: the same raw dump out of the page cache, the same codec at level 1, in turn.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::setup;

/// Runs of each program; the table has medians.
const RUNS: usize = 5;
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

/// Compresses all pages of `core` but those of zeros with both programs.
///
/// # Errors
/// Where a program fails; times are printed, not judged, because this machine may have other work.
pub(crate) fn dump(core: &Path) -> Result<()> {
    setup::install_missing(["makedumpfile", "time"].iter())?;
    let core = core.to_str().context("the core's name is no text")?;
    let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "vmcore", "--example", "write_dump"])
        .status()?;
    ensure!(built.success(), "the example write_dump of vmcore does not build");
    let ours = std::env::current_exe()?
        .parent()
        .and_then(Path::parent)
        .context("no target directory")?
        .join("release/examples/write_dump");
    let ours = ours.to_str().context("the target directory's name is no text")?;
    let dump = format!("{DIRECTORY}/hotdump-bench-{}", std::process::id());
    println!(
        "| codec | program | s | s of CPU | memory, MiB | dump, MB | speed by the clock | by CPU time |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (option, codec) in CODECS {
        // Debian's makedumpfile may be built without a codec.
        let theirs = ["makedumpfile", option, "-d", "1", "-f", core, &dump];
        let with_theirs = run(&theirs, &dump).is_ok();
        let one = [ours, core, &dump, codec, "1"];
        let two = [ours, core, &dump, codec, "2"];
        let mut took = [const { Vec::new() }; 3];
        let mut alone = Vec::new();
        for _ in 0..RUNS {
            for (argv, took) in [theirs.as_slice(), &one, &two].into_iter().zip(&mut took) {
                if with_theirs || argv != theirs {
                    took.push(run(argv, &dump)?);
                }
            }
            alone.push(codec_alone(ours, core, codec)?);
        }
        let medians = took.each_ref().map(|runs| median_of(runs));
        let base = if with_theirs { medians[0] } else { medians[1] };
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
    }
    Ok(())
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
