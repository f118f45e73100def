//! What an event costs: the kernel's own handler, the module and a reload, in one guest and one boot.

use anyhow::{Context, Result, ensure};
use lab::arch::Arch;
use lab::cache::KernelLine;
use lab::guest::Guest;
use lab::lab::{BUSYBOX_CAPTURE, Lab};

use super::calls::{Call, Tracer};
use super::spread::Spread;

/// Events of a kind, and blocks of memory that come and go.
const EVENTS: u64 = 8;
const RELOADS: usize = 3;

/// Where the module is in the guest.
const MODULE: &str = "/hotdump.ko";
/// The kernel's own handler. It holds kexec's lock from its first to its last line: no capture kernel can be started.
const NATIVE_HANDLER: &str = "crash_handle_hotplug_event";
/// The module's two notifiers.
const MEMORY_HANDLER: &str = "memory_event:mod:hotdump";
const CPU_HANDLER: &str = "cpu_event:mod:hotdump";

/// A module with a function that does nothing, and where it is in the guest: what the tracer shows of its calls is the
/// tracer's own.
const EMPTY: (&str, &str) = ("empty", "/empty.ko");
const EMPTY_FUNCTION: &str = "empty_function:mod:empty";
/// How often it is called.
const EMPTY_CALLS: usize = 16;

/// What differs between the architectures.
struct Facts {
    /// What loads and unloads.
    system_calls: &'static [&'static str],
    /// The share of the time of the kernel's own handler that the module may take: for an event of memory, and for a CPU that
    /// comes.
    most: [f64; 2],
    /// How a CPU goes and comes, in tables and in shell.
    cpu: [(&'static str, &'static str); 2],
    /// Whether a CPU is loaded anew between going and coming: otherwise the image knows it.
    forgets: bool,
}

const X86_64: Facts = Facts {
    system_calls: &["__x64_sys_kexec_load", "__x64_sys_kexec_file_load"],
    most: [1.0 / 50.0, 1.0 / 50.0],
    cpu: [
        ("CPU offline", "echo 0 > /sys/devices/system/cpu/cpu1/online"),
        ("CPU online", "echo 1 > /sys/devices/system/cpu/cpu1/online"),
    ],
    forgets: false,
};

/// A core goes and comes as an LPAR's does, by its index, node and all.
const PPC64: Facts = Facts {
    system_calls: &["sys_kexec_load"],
    most: [1.0 / 10.0, 1.0 / 5.0],
    cpu: [
        ("core removed", "echo 'cpu remove index 0x10000001' > /sys/kernel/dlpar"),
        ("core added", "echo 'cpu add index 0x10000001' > /sys/kernel/dlpar"),
    ],
    forgets: true,
};

impl Facts {
    const fn of(arch: Arch) -> &'static Facts {
        match arch {
            Arch::X86_64 => &X86_64,
            Arch::Ppc64 => &PPC64,
        }
    }
}

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

    fn name(self, facts: &Facts) -> &'static str {
        match self {
            Kind::MemoryRemoved => "memory removed",
            Kind::MemoryAdded => "memory added",
            Kind::CpuOffline => facts.cpu[0].0,
            Kind::CpuOnline => facts.cpu[1].0,
        }
    }

    /// The line of shell that makes it happen, to a memory block or to CPU 1.
    fn line(self, block: u64, facts: &Facts) -> String {
        let memory = |value| format!("echo {value} > /sys/devices/system/memory/memory{block}/state");
        match self {
            Kind::MemoryRemoved => memory("offline"),
            Kind::MemoryAdded => memory("online_movable"),
            Kind::CpuOffline => facts.cpu[0].1.to_owned(),
            Kind::CpuOnline => facts.cpu[1].1.to_owned(),
        }
    }
}

/// What one way of following costs.
struct Row {
    name: &'static str,
    /// An event of each of [`Kind::ALL`].
    events: [Spread; 4],
    /// The same without what the tracer adds to each call.
    net: [Spread; 4],
    /// What that is; none where the clock was read before and after.
    tracer: Option<Spread>,
    /// How long there is no dump for each event.
    gap: Spread,
}

/// Measures in a guest with the newest kernel of `line`, prints tables as docs/results.md has them.
///
/// # Errors
/// If the module takes more than [`Facts::most`] of the time of the kernel's own handler, both without what the tracer
/// adds.
pub(crate) fn events(lab: &Lab, line: KernelLine) -> Result<()> {
    let name = format!("bench-events-{}", line.name());
    let kernel = lab.sources.cache.kernel(line)?;
    let plan = lab.guest(&name, line)?.busybox_capture().counted_time();
    let (empty, empty_at) = EMPTY;
    let plan = plan.file(MODULE, 0o644, &lab.module(&kernel)?);
    let plan = plan.file(empty_at, 0o644, &lab.test_module(&kernel, empty)?);
    let mut guest = plan.cmdline("memhp_default_state=online_movable").boot()?;
    guest.run(["insmod", empty_at])?.ok()?;
    let facts = Facts::of(line.arch());
    guest.add_memory(EVENTS * line.arch().block())?;
    let mut rows = vec![reload_by_kexec_tools(&mut guest, facts, "reload: kexec-tools by udev", "")?];
    if facts.system_calls.len() > 1 {
        rows.push(reload_by_kexec_tools(&mut guest, facts, "the same by kexec_load (`-c`)", "-c")?);
    }
    rows.push(reload_by_hotdump(&mut guest, facts)?);
    rows.push(native(&mut guest, facts)?);
    let (module, idle) = module(&mut guest, facts)?;
    rows.push(module);
    drop(guest);
    lab.clean_up(&name, true);
    println!("\nLinux {}, thousands of guest instructions, median (least to most):\n", kernel.release);
    print_rows(facts, &rows);
    println!("\nOf the kernel's own handler {idle} were left for each event while the module followed.\n");
    let [reload, .., native, module] = rows.as_slice() else { unreachable!("there are that many rows") };
    print_net(facts, &[native, module]);
    print_ratios(facts, reload, native, module);
    let [memory, cpu] = facts.most;
    for (kind, most) in [(0, memory), (1, memory), (3, cpu)] {
        let share = module.net[kind].share_of(&native.net[kind]);
        let name = Kind::ALL[kind].name(facts);
        ensure!(
            share <= most,
            "{name}: the module takes {share:.4} of the native handler's time, more than {most}"
        );
    }
    Ok(())
}

/// The kernel's own handler, without our module in the kernel.
fn native(guest: &mut Guest, facts: &Facts) -> Result<Row> {
    load(guest, "native")?;
    let tracer = Tracer::new(guest, &[NATIVE_HANDLER, EMPTY_FUNCTION])?;
    let empty = empty_calls(guest, &tracer)?;
    let calls = all_kinds(guest, &tracer, facts, "native")?;
    tracer.stop(guest)?;
    guest.verify_says_complete()?;
    let all: Vec<u64> = calls.iter().flatten().map(|calls| took(calls, NATIVE_HANDLER)).collect();
    let (events, net) = sums(&calls, &[NATIVE_HANDLER], &empty)?;
    Ok(Row {
        name: "native: the kernel's own handler",
        events,
        net,
        tracer: Some(empty),
        gap: Spread::of(all)?,
    })
}

/// The module, and what is left of the kernel's own handler then.
fn module(guest: &mut Guest, facts: &Facts) -> Result<(Row, Spread)> {
    guest.run(["insmod", MODULE])?.ok()?;
    load(guest, "module")?;
    let tracer = Tracer::new(guest, &[NATIVE_HANDLER, MEMORY_HANDLER, CPU_HANDLER, EMPTY_FUNCTION])?;
    let empty = empty_calls(guest, &tracer)?;
    let calls = all_kinds(guest, &tracer, facts, "module")?;
    tracer.stop(guest)?;
    guest.verify_says_complete()?;
    let status: serde_json::Value = serde_json::from_str(guest.run(["hotdump", "status", "--json"])?.ok()?)
        .context("hotdump status --json")?;
    ensure!(status["module"]["armed"] == true, "the module let go of its image: {}", status["module"]);
    let idle = calls.iter().flatten().map(|calls| took(calls, NATIVE_HANDLER)).collect();
    let (events, net) = sums(&calls, &["memory_event", "cpu_event"], &empty)?;
    let gap = Spread::of(vec![0])?;
    Ok((Row { name: "module: hotdump.ko", events, net, tracer: Some(empty), gap }, Spread::of(idle)?))
}

/// What the tracer shows of calls of a function that does nothing.
fn empty_calls(guest: &mut Guest, tracer: &Tracer) -> Result<Spread> {
    let line = format!("echo {EMPTY_CALLS} > /sys/module/{}/parameters/calls", EMPTY.0);
    let calls = tracer.calls(guest, |guest| guest.shell(&line)?.ok().map(drop))?;
    ensure!(calls.len() == EMPTY_CALLS, "{} calls were seen instead of {EMPTY_CALLS}", calls.len());
    Spread::of(calls.iter().map(|call| call.took).collect())
}

/// As Debian's kdump-tools do it for each udev event of memory or a CPU: unload, then load. What its script does
/// around the two commands is not in it. `option` chooses the system call; without one kexec-tools choose.
fn reload_by_kexec_tools(guest: &mut Guest, facts: &Facts, name: &'static str, option: &str) -> Result<Row> {
    let cmdline = guest.kernel.line.arch().capture_cmdline();
    let image = guest.kernel.image_name();
    let load =
        format!("kexec -p {option} --command-line='{cmdline}' --initrd={BUSYBOX_CAPTURE} /boot/{image}");
    guest.shell(&load)?.ok()?;
    reload(guest, facts, name, &format!("kexec -p -u {option} && {load}"), 2)
}

/// One call, the new image over the old.
fn reload_by_hotdump(guest: &mut Guest, facts: &Facts) -> Result<Row> {
    let line = format!("hotdump load --syscall load --keep reload --initrd {BUSYBOX_CAPTURE}");
    reload(guest, facts, "reload: hotdump load", &line, 1)
}

/// A reload by a line of shell that makes `calls` of [`Facts::system_calls`]: the same whatever has happened. Until the first call
/// begins there is the old image, from the end of the last on the new one.
fn reload(guest: &mut Guest, facts: &Facts, name: &'static str, line: &str, calls: usize) -> Result<Row> {
    let tracer = Tracer::new(guest, facts.system_calls)?;
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
    let events = [(); 4].map(|()| time.clone());
    Ok(Row { name, net: events.clone(), events, tracer: None, gap: Spread::of(gaps)? })
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

/// Lets everything happen [`EVENTS`] times; gives the calls of each event, by kind. `keep` is who follows.
fn all_kinds(guest: &mut Guest, tracer: &Tracer, facts: &Facts, keep: &str) -> Result<[Vec<Vec<Call>>; 4]> {
    let blocks = guest.state()?.online_blocks;
    let mut calls = [const { Vec::new() }; 4];
    for pair in [0..2, 2..4] {
        for block in blocks.iter().rev().take(usize::try_from(EVENTS)?) {
            for kind in pair.clone() {
                if facts.forgets && Kind::ALL[kind] == Kind::CpuOnline {
                    load(guest, keep)?;
                }
                let line = Kind::ALL[kind].line(*block, facts);
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

/// What the calls of `functions` took together for one event, and the same without the tracer's part, which is what it shows
/// of `empty` calls.
fn sums(
    calls: &[Vec<Vec<Call>>; 4],
    functions: &[&str],
    empty: &Spread,
) -> Result<([Spread; 4], [Spread; 4])> {
    let tracer = empty.median() as u64;
    let spread = |kind: usize, tracer: u64| {
        let of_event = |calls: &Vec<Call>| {
            let ours = calls.iter().filter(|call| functions.contains(&call.function.as_str()));
            ours.map(|call| call.took.saturating_sub(tracer)).sum()
        };
        Spread::of(calls[kind].iter().map(of_event).collect())
    };
    let all = |tracer| -> Result<_> {
        Ok([spread(0, tracer)?, spread(1, tracer)?, spread(2, tracer)?, spread(3, tracer)?])
    };
    Ok((all(0)?, all(tracer)?))
}

fn print_rows(facts: &Facts, rows: &[Row]) {
    let names = Kind::ALL.map(|kind| kind.name(facts)).join(" | ");
    println!("| kept current by | {names} | without a dump, each event |\n|---|---|---|---|---|---|");
    for row in rows {
        println!("| {} | {} | {} |", row.name, cells(&row.events), row.gap);
    }
}

fn print_net(facts: &Facts, rows: &[&Row]) {
    let names = Kind::ALL.map(|kind| kind.name(facts)).join(" | ");
    println!("| without the tracer's part | {names} | that part, each call |\n|---|---|---|---|---|---|");
    for row in rows {
        let tracer = row.tracer.as_ref().map(Spread::to_string).unwrap_or_default();
        println!("| {} | {} | {tracer} |", row.name, cells(&row.net));
    }
    println!();
}

fn cells(spreads: &[Spread; 4]) -> String {
    spreads.iter().map(Spread::to_string).collect::<Vec<_>>().join(" | ")
}

/// Ratios of what is left without the tracer's part, and for module and native handler also of what the tracer shows.
fn print_ratios(facts: &Facts, reload: &Row, native: &Row, module: &Row) {
    println!(
        "| ratio of medians | {} |\n|---|---|---|---|---|",
        Kind::ALL.map(|kind| kind.name(facts)).join(" | ")
    );
    for (name, ours, theirs) in [
        ("module / native", &module.net, &native.net),
        ("the same with the tracer's part", &module.events, &native.events),
        ("module / reload", &module.net, &reload.net),
        ("native / reload", &native.net, &reload.net),
    ] {
        let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours.as_part_of(theirs));
        println!("| {name} | {} |", ratios.collect::<Vec<_>>().join(" | "));
    }
}
