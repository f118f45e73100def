//! What an event costs: the kernel's own handler, the module and a reload, in one guest and one boot.

use anyhow::{Context, Result, ensure};
use lab::cache::KernelLine;
use lab::guest::Guest;
use lab::lab::{BUSYBOX_CAPTURE, Lab};
use lab::machine::MIB;

use super::calls::{Call, Tracer};
use super::spread::Spread;

/// The share of the time of the kernel's own handler that the module may take for an event of memory.
const MOST: f64 = 1.0 / 50.0;
/// Events of a kind, and blocks of memory that come and go.
const EVENTS: u64 = 8;
const RELOADS: usize = 3;
const BLOCK: u64 = 128 * MIB;

/// Where the module is in the guest.
const MODULE: &str = "/hotdump.ko";
/// The kernel's own handler. It holds kexec's lock from its first to its last line: no capture kernel can be started.
const NATIVE_HANDLER: &str = "crash_handle_hotplug_event";
/// The module's two notifiers.
const MEMORY_HANDLER: &str = "memory_event:mod:hotdump";
const CPU_HANDLER: &str = "cpu_event:mod:hotdump";
/// What loads and unloads.
const SYSTEM_CALLS: [&str; 2] = ["__x64_sys_kexec_load", "__x64_sys_kexec_file_load"];

/// What can happen to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    MemoryRemoved,
    MemoryAdded,
    CpuOffline,
    CpuOnline,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::MemoryRemoved, Kind::MemoryAdded, Kind::CpuOffline, Kind::CpuOnline];

    fn name(self) -> &'static str {
        match self {
            Kind::MemoryRemoved => "memory removed",
            Kind::MemoryAdded => "memory added",
            Kind::CpuOffline => "CPU offline",
            Kind::CpuOnline => "CPU online",
        }
    }

    /// The line of shell that makes it happen, to a memory block or to CPU 1.
    fn line(self, block: u64) -> String {
        let (value, device) = match self {
            Kind::MemoryRemoved => ("offline", format!("memory/memory{block}/state")),
            Kind::MemoryAdded => ("online_movable", format!("memory/memory{block}/state")),
            Kind::CpuOffline => ("0", "cpu/cpu1/online".into()),
            Kind::CpuOnline => ("1", "cpu/cpu1/online".into()),
        };
        format!("echo {value} > /sys/devices/system/{device}")
    }
}

/// What one way of following costs.
struct Row {
    name: &'static str,
    /// An event of each of [`Kind::ALL`].
    events: [Spread; 4],
    /// How long there is no dump for each event.
    gap: Spread,
}

/// Measures in a guest with the newest kernel of `line`, prints tables as docs/results.md has them.
///
/// # Errors
/// If the module takes more than [`MOST`] of the time of the kernel's own handler for an event of memory.
pub(crate) fn events(lab: &Lab, line: KernelLine) -> Result<()> {
    let name = format!("bench-events-{}", line.name());
    let kernel = lab.sources.cache.kernel(line)?;
    let plan = lab.guest(&name, line)?.busybox_capture().counted_time();
    let plan = plan.file(MODULE, 0o644, &lab.module(&kernel)?).cmdline("memhp_default_state=online_movable");
    let mut guest = plan.boot()?;
    guest.add_memory(EVENTS * BLOCK)?;
    let reload = reload_by_kexec_tools(&mut guest, "reload: kexec-tools by udev", "")?;
    let old_reload = reload_by_kexec_tools(&mut guest, "the same by kexec_load (`-c`)", "-c")?;
    let own_reload = reload_by_hotdump(&mut guest)?;
    let native = native(&mut guest)?;
    let (module, idle) = module(&mut guest)?;
    drop(guest);
    lab.clean_up(&name, true);
    println!("\nLinux {}, thousands of guest instructions, median (least to most):\n", kernel.release);
    print_rows(&[&reload, &old_reload, &own_reload, &native, &module]);
    println!("\nOf the kernel's own handler {idle} were left for each event while the module followed.\n");
    print_ratios(&reload, &native, &module);
    for (kind, (module, native)) in Kind::ALL.iter().zip(module.events.iter().zip(&native.events)).take(2) {
        let share = module.share_of(native);
        ensure!(
            share <= MOST,
            "{}: the module takes {share:.4} of the native handler's time, more than {MOST}",
            kind.name()
        );
    }
    Ok(())
}

/// The kernel's own handler, without our module in the kernel.
fn native(guest: &mut Guest) -> Result<Row> {
    load(guest, "native")?;
    let tracer = Tracer::new(guest, &[NATIVE_HANDLER])?;
    let calls = all_kinds(guest, &tracer)?;
    tracer.stop(guest)?;
    guest.verify_says_complete()?;
    let all: Vec<u64> = calls.iter().flatten().map(|calls| took(calls, NATIVE_HANDLER)).collect();
    Ok(Row {
        name: "native: the kernel's own handler",
        events: sums(&calls, &[NATIVE_HANDLER])?,
        gap: Spread::of(all)?,
    })
}

/// The module, and what is left of the kernel's own handler then.
fn module(guest: &mut Guest) -> Result<(Row, Spread)> {
    guest.run(["insmod", MODULE])?.ok()?;
    load(guest, "module")?;
    let tracer = Tracer::new(guest, &[NATIVE_HANDLER, MEMORY_HANDLER, CPU_HANDLER])?;
    let calls = all_kinds(guest, &tracer)?;
    tracer.stop(guest)?;
    guest.verify_says_complete()?;
    let status: serde_json::Value = serde_json::from_str(guest.run(["hotdump", "status", "--json"])?.ok()?)
        .context("hotdump status --json")?;
    ensure!(status["module"]["armed"] == true, "the module let go of its image: {}", status["module"]);
    let idle = calls.iter().flatten().map(|calls| took(calls, NATIVE_HANDLER)).collect();
    let events = sums(&calls, &["memory_event", "cpu_event"])?;
    Ok((Row { name: "module: hotdump.ko", events, gap: Spread::of(vec![0])? }, Spread::of(idle)?))
}

/// As Debian's kdump-tools do it for each udev event of memory or a CPU: unload, then load. What its script does
/// around the two commands is not in it. `option` chooses the system call; without one kexec-tools choose.
fn reload_by_kexec_tools(guest: &mut Guest, name: &'static str, option: &str) -> Result<Row> {
    let load = format!(
        "kexec -p {option} --command-line='console=ttyS0 reset_devices nr_cpus=1 irqpoll' \
         --initrd={BUSYBOX_CAPTURE} /boot/vmlinuz-{}",
        guest.kernel.release
    );
    guest.shell(&load)?.ok()?;
    reload(guest, name, &format!("kexec -p -u {option} && {load}"), 2)
}

/// One call, the new image over the old.
fn reload_by_hotdump(guest: &mut Guest) -> Result<Row> {
    let line = format!("hotdump load --syscall load --keep reload --initrd {BUSYBOX_CAPTURE}");
    reload(guest, "reload: hotdump load", &line, 1)
}

/// A reload by a line of shell that makes `calls` of [`SYSTEM_CALLS`]: the same whatever has happened. Until the first call
/// begins there is the old image, from the end of the last on the new one.
fn reload(guest: &mut Guest, name: &'static str, line: &str, calls: usize) -> Result<Row> {
    let tracer = Tracer::new(guest, &SYSTEM_CALLS)?;
    let (mut times, mut gaps) = (Vec::new(), Vec::new());
    for _ in 0..RELOADS {
        let seen = tracer.calls(guest, |guest| {
            let outcome = guest.shell(line)?;
            outcome.ok()?;
            times.push(u64::try_from(outcome.took().as_nanos())?);
            Ok(())
        })?;
        let (first, last) = seen.first().zip(seen.last()).context("no image was loaded")?;
        ensure!(
            seen.len() == calls,
            "{line} made {} such system calls instead of {calls}: {seen:?}",
            seen.len()
        );
        gaps.push(last.start + last.took - first.start);
        let made: Vec<&str> = seen.iter().map(|call| call.function.as_str()).collect();
        let (time, gap) = (seconds(times.last()), seconds(gaps.last()));
        guest.say(format!("{name}: {time:.3} s, without a dump {gap:.3} s: {}", made.join(", ")));
    }
    tracer.stop(guest)?;
    let time = Spread::of(times)?;
    Ok(Row { name, events: [(); 4].map(|()| time.clone()), gap: Spread::of(gaps)? })
}

fn seconds(nanoseconds: Option<&u64>) -> f64 {
    nanoseconds.map_or(f64::NAN, |nanoseconds| *nanoseconds as f64 / 1e9)
}

fn load(guest: &mut Guest, keep: &str) -> Result<()> {
    let argv = ["hotdump", "load", "--syscall", "load", "--initrd", BUSYBOX_CAPTURE, "--keep", keep];
    let loaded = guest.run(argv)?;
    guest.say(loaded.ok()?.trim());
    Ok(())
}

/// Lets everything happen [`EVENTS`] times; gives the calls of each event, by kind.
fn all_kinds(guest: &mut Guest, tracer: &Tracer) -> Result<[Vec<Vec<Call>>; 4]> {
    let blocks = guest.state()?.online_blocks;
    let mut calls = [const { Vec::new() }; 4];
    for pair in [0..2, 2..4] {
        for block in blocks.iter().rev().take(usize::try_from(EVENTS)?) {
            for kind in pair.clone() {
                let line = Kind::ALL[kind].line(*block);
                calls[kind].push(tracer.calls(guest, |guest| guest.shell(&line)?.ok().map(drop))?);
            }
        }
    }
    Ok(calls)
}

/// The time of the calls of `function`, in nanoseconds.
fn took(calls: &[Call], function: &str) -> u64 {
    calls.iter().filter(|call| call.function == function).map(|call| call.took).sum()
}

/// What the calls of `functions` took together for one event.
fn sums(calls: &[Vec<Vec<Call>>; 4], functions: &[&str]) -> Result<[Spread; 4]> {
    let sum = |calls: &Vec<Call>| functions.iter().map(|function| took(calls, function)).sum();
    let spread = |kind: usize| Spread::of(calls[kind].iter().map(sum).collect());
    Ok([spread(0)?, spread(1)?, spread(2)?, spread(3)?])
}

fn print_rows(rows: &[&Row]) {
    let names = Kind::ALL.map(Kind::name).join(" | ");
    println!("| kept current by | {names} | without a dump, each event |\n|---|---|---|---|---|---|");
    for row in rows {
        let events: Vec<String> = row.events.iter().map(Spread::to_string).collect();
        println!("| {} | {} | {} |", row.name, events.join(" | "), row.gap);
    }
}

fn print_ratios(reload: &Row, native: &Row, module: &Row) {
    println!("| ratio of medians | {} |\n|---|---|---|---|---|", Kind::ALL.map(Kind::name).join(" | "));
    for (name, ours, theirs) in [
        ("module / native", module, native),
        ("module / reload", module, reload),
        ("native / reload", native, reload),
    ] {
        let ratios = ours.events.iter().zip(&theirs.events).map(|(ours, theirs)| ours.as_part_of(theirs));
        println!("| {name} | {} |", ratios.collect::<Vec<_>>().join(" | "));
    }
}
