//! Comparisons in guest time that counts instructions.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::cache::KernelLine;
use lab::guest::Guest;
use lab::lab::{BUSYBOX_CAPTURE, Lab};

/// The share of kexec-tools' time that hotdump may take.
const MOST: f64 = 0.25;
const REPETITIONS: usize = 3;

/// Loads the same kernel and initramfs by kexec_load with kexec-tools and with hotdump in turn, in one guest.
///
/// # Errors
/// If hotdump takes more than [`MOST`] of kexec-tools' time.
pub(crate) fn load(lab: &Lab) -> Result<()> {
    let mut guest = lab.guest("bench-load", KernelLine::V6_12)?.busybox_capture().counted_time().boot()?;
    let kernel = format!("/boot/vmlinuz-{}", guest.kernel.release);
    let cmdline = "console=ttyS0 panic=-1 nr_cpus=1 reset_devices irqpoll acpi_no_memhotplug";
    let initrd = format!("--initrd={BUSYBOX_CAPTURE}");
    let theirs = ["kexec", "-c", "-p", &kernel, &initrd, &format!("--append={cmdline}")];
    // Nobody keeps theirs current either.
    let how = ["hotdump", "load", "--syscall", "load", "--keep", "reload"];
    let what = ["--kernel", &kernel, &initrd, "--command-line", cmdline];
    let ours = [how.as_slice(), &what].concat();
    let (mut their_times, mut our_times) = (Vec::new(), Vec::new());
    for _ in 0..REPETITIONS {
        their_times.push(time(&mut guest, &theirs)?);
        our_times.push(time(&mut guest, &ours)?);
    }
    lab.clean_up("bench-load", true);
    let (their_time, our_time) = (median(their_times), median(our_times));
    let ratio = our_time / their_time;
    println!(
        "kexec_load of {kernel} with {BUSYBOX_CAPTURE}, guest time by instructions, median of {REPETITIONS}:"
    );
    println!("  kexec-tools   {their_time:8.3} s");
    println!(
        "  hotdump load  {our_time:8.3} s   {:.1} % of kexec-tools (at most {:.0} %)",
        ratio * 100.0,
        MOST * 100.0
    );
    ensure!(ratio <= MOST, "hotdump load takes more than {MOST} of kexec-tools' time");
    Ok(())
}

fn time(guest: &mut Guest, argv: &[&str]) -> Result<Duration> {
    let outcome = guest.run(argv.iter().copied())?;
    outcome.ok()?;
    guest.say(format!("{}: {:.3} s", argv[0], outcome.took().as_secs_f64()));
    Ok(outcome.took())
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(f64::NAN, Duration::as_secs_f64)
}
