//! Many events at once in a whole Debian: what user space has to do for them, and how long there is no crash image.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::road::kdump_tools_on;
use super::scenarios;
use super::service::{finished, install, settled, up};
use crate::cache::KernelLine::{self, V6_1, V6_12};
use crate::guest::{Guest, patience};
use crate::lab::{Lab, Plan};
use crate::machine::{GIB, MIB};
use crate::userland::{DEBS, KDUMP_TOOLS};

scenarios! {
    with packages;
    ;
    long:
    burst_native: "64 events in a whole Debian 13: the kernel's own handler; no program of user space runs for them",
    burst_module: "the same in a whole Debian 12 with the module",
    burst_kdump_tools: "the same in a whole Debian 13 with Debian's own kdump service, without and with hotdump's udev rules",
    burst_reload: "the same without the module: hotdump watch loads again a few times; and what its load costs beside hotdump load",
}

/// A memory module whose blocks go offline and come online, and one that is plugged in meanwhile.
const DIMM: u64 = 512 * MIB;

/// How many events there are.
const EVENTS: usize = 64;

/// What brings them about.
#[derive(Clone, Copy)]
enum Burst {
    /// [`MIXED`], and a memory module that is plugged in meanwhile.
    Mixed,
    /// A memory module of 32 blocks is plugged in: an event that each is there, and one that it is online. That is as fast as it gets.
    Module,
}

impl Burst {
    fn name(self) -> &'static str {
        match self {
            Self::Mixed => "blocks, a CPU, a module",
            Self::Module => "a module of 32 blocks",
        }
    }

    /// The shell's part, and how large the module is.
    fn what(self, block_size: u64) -> (&'static str, u64) {
        match self {
            Self::Mixed => (MIXED, DIMM),
            Self::Module => ("", EVENTS as u64 / 2 * block_size),
        }
    }
}

/// What happens in one shell, which starts nothing: 48 events of blocks and 8 of a CPU; the module adds 4 that a block is there and 4
/// that it is online. All that goes wrong is told.
const MIXED: &str = r#"
cd /sys/devices/system
blocks() {
    for round in 1 2 3 4 5 6; do
        for block in $BLOCKS; do
            echo offline > memory/memory$block/state || echo "memory$block offline"
            echo online_movable > memory/memory$block/state || echo "memory$block online"
        done
    done
}
cpu() {
    for round in 1 2 3 4; do
        echo 0 > cpu/cpu1/online || echo "cpu1 offline"
        echo 1 > cpu/cpu1/online || echo "cpu1 online"
    done
}
blocks; cpu
"#;

/// The kernel's events of its file systems by which programs that start and loads are seen.
const TRACED: [&str; 5] = [
    "sched/sched_process_exec",
    "syscalls/sys_enter_kexec_load",
    "syscalls/sys_exit_kexec_load",
    "syscalls/sys_enter_kexec_file_load",
    "syscalls/sys_exit_kexec_file_load",
];
const TRACING: &str = "/sys/kernel/tracing";

/// All is over when nothing was traced for so many seconds: longer than what hotdump watch waits.
const QUIET: u64 = 10;

/// Where the program is in guests that have not its package.
const PROGRAM: &str = "/root/debs/hotdump";

/// What a burst led to.
#[derive(Debug)]
struct Outcome {
    /// Events of memory and CPUs as the kernel sent them, and the seconds from the first to the last.
    events: (usize, f64),
    /// Programs that were started, by their paths, and how often.
    programs: Vec<(String, usize)>,
    /// Calls that loaded, and the seconds that each took.
    loads: Vec<f64>,
    /// Seconds, each time that there was no image.
    without: Vec<f64>,
    /// Seconds from the last event to the end of the last load.
    until_loaded: Option<f64>,
}

impl Outcome {
    /// A row of the table in docs/results.md.
    fn row(&self, keeper: &str, burst: Burst, guest: &Guest) -> String {
        let (count, seconds) = self.events;
        let started: usize = self.programs.iter().map(|(_, count)| count).sum();
        let (loads, without) = (self.loads.len(), self.without.iter().fold(0.0, |sum, one| sum + one));
        let until = self.until_loaded.map_or("-".into(), |seconds| format!("{seconds:.1} s"));
        format!(
            "| {keeper} | {} | {}: {count} in {seconds:.1} s | {started} | {loads} | {} times, {without:.2} s | {until} |",
            guest.kernel.release,
            burst.name(),
            self.without.len()
        )
    }
}

fn burst_native(lab: &Lab, name: &str) -> Result<()> {
    let debs = [lab.deb("hotdump")?];
    let mut guest = boot(plan(lab, name, V6_12)?.debian(&debs)?)?;
    install(&mut guest, &debs)?;
    in_the_kernel(guest, "native: the kernel's own handler")
}

fn burst_module(lab: &Lab, name: &str) -> Result<()> {
    let given = [lab.deb("hotdump")?, lab.module(&lab.kernel(V6_1)?)?];
    let mut guest = boot(plan(lab, name, V6_1)?.debian(&given)?)?;
    // As DKMS would have put it there.
    let line = format!(
        "d=/lib/modules/$(uname -r)/updates; mkdir -p $d; cp {DEBS}/hotdump.ko $d && depmod && modprobe hotdump"
    );
    guest.shell(&line)?.ok()?;
    install(&mut guest, &given)?;
    in_the_kernel(guest, "module: hotdump.ko")
}

/// What Debian's service does by itself on a kernel that keeps current what is loaded: its rules start programs at each event. With hotdump's
/// rules in front of its own it leaves it to the kernel.
fn burst_kdump_tools(lab: &Lab, name: &str) -> Result<()> {
    let program = lab.program();
    let mut guest = boot(plan(lab, name, V6_12)?.debian_with(Some(KDUMP_TOOLS), &[program])?)?;
    kdump_tools_on(&mut guest)?;
    settled(&mut guest)?;
    for what in [Burst::Module, Burst::Mixed] {
        let outcome = burst(&mut guest, what)?;
        guest.say(outcome.row("Debian's kdump-tools", what, &guest));
        guest.say(format!("{:?}", outcome.programs));
        // Those of its programs that udev runs may not load.
        let filter = guest.shell("systemctl cat systemd-udevd | grep SystemCall")?;
        guest.say(filter.printed());
        let is_kexec = |(program, _): &(String, usize)| program.ends_with("/kexec");
        ensure!(outcome.programs.iter().any(is_kexec), "its rules did not start kexec: {outcome:?}");
        guest.run([PROGRAM, "verify"])?.exits(0)?;
    }
    let told = guest.shell(&format!("{PROGRAM} udev --install && udevadm control --reload"))?;
    guest.say(told.ok()?);
    finished(&mut guest, "systemctl restart kdump-tools")?;
    settled(&mut guest)?;
    let outcome = burst(&mut guest, Burst::Mixed)?;
    guest.say(outcome.row("the same with `hotdump udev --install`", Burst::Mixed, &guest));
    ensure!(outcome.programs.is_empty() && outcome.loads.is_empty(), "{outcome:?}");
    ensure!(outcome.without.is_empty(), "{outcome:?}");
    guest.run([PROGRAM, "verify"])?.exits(0).map(drop)
}

/// No program may run, nothing be loaded, and the image be there and current all the time.
fn in_the_kernel(mut guest: Guest, keeper: &str) -> Result<()> {
    is_current(&mut guest)?;
    for what in [Burst::Module, Burst::Mixed] {
        let outcome = burst(&mut guest, what)?;
        guest.say(outcome.row(keeper, what, &guest));
        ensure!(outcome.programs.is_empty(), "programs ran: {outcome:?}");
        ensure!(outcome.loads.is_empty() && outcome.without.is_empty(), "{outcome:?}");
        is_current(&mut guest)?;
    }
    let ours = guest.shell("for p in /proc/[0-9]*/exe; do readlink $p; done | grep hotdump")?;
    ensure!(ours.ran.stdout.is_empty(), "a process of hotdump runs: {ours}");
    Ok(())
}

fn burst_reload(lab: &Lab, name: &str) -> Result<()> {
    let debs = [lab.deb("hotdump")?];
    let mut guest = boot(plan(lab, name, V6_1)?.debian(&debs)?)?;
    install(&mut guest, &debs)?;
    is_current(&mut guest)?;
    for what in [Burst::Module, Burst::Mixed] {
        let outcome = burst(&mut guest, what)?;
        guest.say(outcome.row("reload: hotdump watch", what, &guest));
        is_current(&mut guest)?;
        ensure!((1..=4).contains(&outcome.loads.len()), "{outcome:?}");
        ensure!(outcome.programs.is_empty(), "programs ran: {outcome:?}");
    }
    compare_loads(&mut guest)
}

/// What a load costs that hotdump watch has prepared for, beside a whole one, in turn.
fn compare_loads(guest: &mut Guest) -> Result<()> {
    for _ in 0..3 {
        let watched = |guest: &mut Guest| -> Result<Vec<String>> {
            let log = guest.shell("journalctl --unit hotdump-watch --output cat | grep 'loaded again in'")?;
            Ok(log.ran.stdout.lines().map(str::to_owned).collect())
        };
        let before = watched(guest)?.len();
        // Memory that comes: an image that still lists what has gone offline needs no load.
        guest.add_memory(guest.at_boot.block_size)?;
        let start = Instant::now();
        let told = loop {
            match watched(guest)?.get(before) {
                Some(line) => break line.clone(),
                None => ensure!(start.elapsed() < patience(60), "hotdump watch does not load again"),
            }
            sleep(Duration::from_millis(200));
        };
        let whole = guest.run(["hotdump", "load"])?;
        whole.ok()?;
        let took = whole.took().as_millis();
        guest
            .say(format!("a whole hotdump load: {took} ms; {}", told.split(':').take(2).collect::<String>()));
    }
    Ok(())
}

/// A guest with a memory module whose memory can be taken offline.
fn plan<'a>(lab: &'a Lab, name: &str, line: KernelLine) -> Result<Plan<'a>> {
    Ok(lab.guest(name, line)?.memory(GIB).dimm(DIMM).cmdline("memhp_default_state=online_movable"))
}

fn boot(plan: Plan<'_>) -> Result<Guest> {
    let mut guest = plan.boot()?;
    up(&mut guest)?;
    Ok(guest)
}

fn is_current(guest: &mut Guest) -> Result<()> {
    settled(guest)?;
    guest.verify_says_complete()
}

/// Lets [`EVENTS`] events happen and waits until nothing comes of them any more.
fn burst(guest: &mut Guest, what: Burst) -> Result<Outcome> {
    // What Debian does by the clock has nothing to do with it.
    guest.shell("systemctl stop '*.timer'")?.ok()?;
    settled(guest)?;
    let block_size = guest.at_boot.block_size;
    // Those of a memory module lie above what was there at boot.
    let count = usize::try_from(DIMM / block_size)?;
    let (shell, module) = what.what(block_size);
    let blocks: Vec<String> =
        guest.at_boot.online_blocks.iter().rev().take(count).map(u64::to_string).collect();
    let monitor = "udevadm monitor --kernel --subsystem-match=memory --subsystem-match=cpu";
    guest.shell(&format!("{monitor} > /tmp/monitor 2>&1 & sleep 1"))?.ok()?;
    guest.sample("/sys/kernel/kexec_crash_loaded")?;
    let events = TRACED.map(|event| format!("echo 1 > events/{event}/enable; ")).concat();
    let blocks = format!("BLOCKS='{}'", blocks.join(" "));
    // The shell that brings it all about has started before it is traced what starts.
    guest
        .shell(&format!(
            "cd {TRACING}; echo mono > trace_clock; echo 16384 > buffer_size_kb; {events} echo > trace;
            echo 1 > tracing_on; {blocks}; (:; {shell}) > /tmp/burst 2>&1 &"
        ))?
        .ok()?;
    guest.plug_memory(module)?;
    wait_for_quiet(guest)?;
    let samples = guest.sampled()?;
    let trace = guest.read_text(&format!("{TRACING}/trace"))?;
    let off = TRACED.map(|event| format!("echo 0 > events/{event}/enable; ")).concat();
    guest.shell(&format!("cd {TRACING}; echo 0 > tracing_on; {off} pkill udevadm"))?.ok()?;
    let wrong = guest.read_text("/tmp/burst")?;
    ensure!(wrong.is_empty(), "not all events could be brought about:\n{wrong}");
    let events = kernel_events(&guest.read_text("/tmp/monitor")?)?;
    let (first, last) = (events.first().context("no event")?, events.last().context("no event")?);
    ensure!(events.len() == EVENTS, "{} events in place of {EVENTS}", events.len());
    let (programs, calls) = traced(&trace)?;
    let nanoseconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64();
    Ok(Outcome {
        events: (events.len(), last - first),
        programs,
        until_loaded: calls.last().map(|(end, _)| end - last),
        loads: calls.into_iter().map(|(_, took)| took).collect(),
        without: samples.without("1").into_iter().map(nanoseconds).collect(),
    })
}

/// Waits until the trace has not grown for [`QUIET`] seconds. The agent reads that by itself: nothing starts for it.
fn wait_for_quiet(guest: &mut Guest) -> Result<()> {
    let (start, limit, quiet) = (Instant::now(), patience(900), patience(QUIET));
    let mut last = (String::new(), Instant::now());
    while last.1.elapsed() < quiet {
        ensure!(start.elapsed() < limit, "no rest after {} s", limit.as_secs());
        sleep(Duration::from_secs(1));
        let mut now = guest.read_text("/sys/kernel/uevent_seqnum")?;
        for cpu in guest.state()?.present_cpus {
            let stats = guest.read_text(&format!("{TRACING}/per_cpu/cpu{cpu}/stats"))?;
            now += stats.lines().next().unwrap_or_default();
        }
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    Ok(())
}

/// The times of the events of memory blocks and CPUs that udevadm has seen.
fn kernel_events(monitor: &str) -> Result<Vec<f64>> {
    let counts = |line: &&str| {
        let is_state =
            ["add", "online", "offline"].contains(&line.split_whitespace().nth(1).unwrap_or_default());
        line.starts_with("KERNEL[") && is_state
    };
    let time = |line: &str| {
        let seconds = line.strip_prefix("KERNEL[").and_then(|rest| rest.split(']').next());
        seconds
            .and_then(|seconds| seconds.parse().ok())
            .with_context(|| format!("an event without a time: {line}"))
    };
    monitor.lines().filter(counts).map(time).collect()
}

/// Whether a call that begins is one that unloads: without segments, or with the flag for it. None: it is no such call.
fn unloads(event: &str) -> Option<bool> {
    let by_segments = event.strip_prefix("sys_kexec_load(").map(|words| words.contains("nr_segments: 0,"));
    let by_flag = |words: &str| words.ends_with("flags: 1)") || words.ends_with("flags: 3)");
    by_segments.or_else(|| event.strip_prefix("sys_kexec_file_load(").map(by_flag))
}

/// Programs that were started, by their paths, and calls that loaded: when they ended, and how long they took.
#[expect(clippy::type_complexity, reason = "two lists")]
fn traced(trace: &str) -> Result<(Vec<(String, usize)>, Vec<(f64, f64)>)> {
    let (mut programs, mut calls) = (Vec::<(String, usize)>::new(), Vec::new());
    let mut begun: Vec<(&str, f64)> = Vec::new();
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        // COMMAND-PID [CPU] FLAGS TIME: EVENT
        let Some((head, event)) = line.split_once(": ") else { continue };
        let time = head.split_whitespace().next_back().and_then(|time| time.parse::<f64>().ok());
        let time = time.with_context(|| format!("a line without a time: {line}"))?;
        let who = head.split('[').next().unwrap_or_default().trim();
        if let Some(rest) = event.strip_prefix("sched_process_exec: filename=") {
            let program = rest.split(" pid=").next().unwrap_or(rest).to_owned();
            match programs.iter_mut().find(|(there, _)| *there == program) {
                Some((_, count)) => *count += 1,
                None => programs.push((program, 1)),
            }
        } else if let Some(unloads) = unloads(event) {
            begun.retain(|(other, _)| *other != who);
            if !unloads {
                begun.push((who, time));
            }
        } else if event.contains("kexec") && event.contains(" -> ") {
            let Some(at) = begun.iter().position(|(other, _)| *other == who) else { continue };
            let (_, start) = begun.remove(at);
            ensure!(event.ends_with(" 0x0"), "a load failed: {line}");
            calls.push((time, time - start));
        }
    }
    programs.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    Ok((programs, calls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_loads_are_counted_and_unloads_are_not() {
        let trace = "# tracer: nop\n\
            kworker/u4:1-33 [001] ..... 10.000000: sched_process_exec: filename=/usr/bin/true pid=33 old_pid=33\n\
            hotdump-400 [000] ..... 11.000000: sys_kexec_load(entry: 3f000000, nr_segments: 7, segments: 7f00, flags: 1)\n\
            hotdump-400 [000] ..... 11.250000: sys_kexec_load -> 0x0\n\
            kexec-401 [000] ..... 12.000000: sys_kexec_load(entry: 0, nr_segments: 0, segments: 0, flags: 1)\n\
            kexec-401 [000] ..... 12.100000: sys_kexec_load -> 0x0\n\
            kexec-402 [001] ..... 13.000000: sys_kexec_file_load(kernel_fd: 3, initrd_fd: 4, cmdline_len: 5, cmdline_ptr: 7f, flags: 2)\n\
            kexec-402 [001] ..... 13.500000: sys_kexec_file_load -> 0x0\n\
            kexec-403 [001] ..... 14.000000: sys_kexec_file_load(kernel_fd: 0, initrd_fd: 0, cmdline_len: 0, cmdline_ptr: 0, flags: 3)\n\
            kexec-403 [001] ..... 14.500000: sys_kexec_file_load -> 0x0\n";
        let (programs, calls) = traced(trace).unwrap();
        assert_eq!(programs, [("/usr/bin/true".to_owned(), 1)]);
        assert_eq!(calls, [(11.25, 0.25), (13.5, 0.5)]);
        let failed = trace.replace("sys_kexec_file_load -> 0x0", "sys_kexec_file_load -> 0xfffffffffffffff0");
        assert!(traced(&failed).is_err());
    }
}
