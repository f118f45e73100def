//! Many events at once and in any order, while another program loads, unloads and verifies.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use serde_json::{Value, json};

use super::module::{LOAD, boot, plan, status};
use super::scenarios;
use crate::arch::Arch;
use crate::cache::KernelLine::{self, V6_1, V6_12, V7};
use crate::guest::{Guest, patience};
use crate::lab::Lab;
use crate::machine::MIB;
use crate::product::By;
use crate::qmp::CpuSlot;

scenarios! {
    storm_short: "the module on 6.1: 40 random events of memory and CPUs while a program loads, unloads and verifies",
    ; long:
    storm: "the same with 200 events",
    storm_6_12: "the same on 6.12",
    storm_7: "the same on 7.x",
}

/// How many events, from which seed, on which kernel.
pub(super) struct Storm {
    pub(super) line: KernelLine,
    pub(super) events: u32,
    pub(super) seed: u64,
}

/// Memory modules at a time, as many as the machine has slots.
const DIMMS: usize = 4;

fn storm_short(lab: &Lab, name: &str) -> Result<()> {
    Storm { line: V6_1, events: 40, seed: 1 }.run(lab, name)
}

fn storm(lab: &Lab, name: &str) -> Result<()> {
    Storm { line: V6_1, events: 200, seed: 2 }.run(lab, name)
}

fn storm_6_12(lab: &Lab, name: &str) -> Result<()> {
    Storm { line: V6_12, events: 200, seed: 3 }.run(lab, name)
}

fn storm_7(lab: &Lab, name: &str) -> Result<()> {
    Storm { line: V7, events: 200, seed: 4 }.run(lab, name)
}

/// What happens. Some of it cannot be done, or is broken off: then the kernel takes it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    PlugMemory,
    UnplugMemory,
    /// Asked to go, and brought online again at the same time.
    UnplugMemoryAndOnline,
    OfflineBlock,
    OnlineBlock,
    /// The writer is killed while the kernel empties the block.
    OfflineBlockBrokenOff,
    /// Memory that was there at boot: most of it holds what cannot be moved.
    OfflineBootBlock,
    PlugCpu,
    UnplugCpu,
    OnlineCpu,
    OfflineCpu,
}

/// How often which comes, out of all.
const EVENTS: &[(Event, u32)] = &[
    (Event::PlugMemory, 6),
    (Event::UnplugMemory, 3),
    (Event::UnplugMemoryAndOnline, 2),
    (Event::OfflineBlock, 6),
    (Event::OnlineBlock, 6),
    (Event::OfflineBlockBrokenOff, 3),
    (Event::OfflineBootBlock, 2),
    (Event::PlugCpu, 2),
    (Event::UnplugCpu, 1),
    (Event::OnlineCpu, 4),
    (Event::OfflineCpu, 4),
];

impl Storm {
    pub(super) fn run(self, lab: &Lab, name: &str) -> Result<()> {
        let seed = match std::env::var("HOTDUMP_LAB_SEED") {
            Ok(text) => text.parse().with_context(|| format!("HOTDUMP_LAB_SEED={text}"))?,
            Err(_) => self.seed,
        };
        let mut guest = boot(plan(lab, name, self.line)?)?;
        guest.say(format!("{} events, HOTDUMP_LAB_SEED={seed}", self.events));
        // What is filled lies in memory that comes and goes: it is moved about.
        let first = guest.add_memory(256 * MIB)?;
        guest.fill_at_most(96 * MIB)?;
        guest.write("/tmp/loads", 0o755, LOADS)?;
        guest.shell("/tmp/loads < /dev/null > /dev/null 2>&1 &")?.ok()?;
        let dimms = vec![first];
        let random = Rng::with_seed(seed);
        let mut places_for_cpus = guest.qmp.free_cpu_slots(guest.kernel.line.arch().cpu_place())?;
        places_for_cpus.reverse();
        let mut weather = Weather {
            guest,
            random,
            plugged: 0,
            dimms,
            places_for_cpus,
            released: Vec::new(),
            done: Vec::new(),
            codes: BTreeMap::new(),
        };
        weather.blow(self.events)?;
        let mut guest = weather.settle()?;
        let told = calm(&mut guest)?;
        guest.say(format!("module: {told}"));
        let cpus = guest.state()?.online_cpus;
        let cpu = *Rng::with_seed(seed).choice(&cpus).context("no CPU is online")?;
        let crashed = guest.crash(cpu)?;
        crashed.complete()?;
        crashed.saved_by_hotdump()
    }
}

/// Loads, verifies and unloads until there is a file /tmp/stop; the exit codes go to /tmp/loaded.
const LOADS: &[u8] = b"\
#!/bin/sh
trap '' HUP
while [ ! -e /tmp/stop ]; do
    hotdump load --syscall load --keep module --initrd /boot/initrd-capture.img > /tmp/said 2>&1
    code=$?
    echo load $code >> /tmp/loaded
    [ $code = 0 ] || cat /tmp/said >> /tmp/errors
    sleep 0.$((RANDOM % 10))
    hotdump verify > /tmp/said 2>&1
    code=$?
    echo verify $code >> /tmp/loaded
    [ $code = 0 ] || cat /tmp/said >> /tmp/errors
    sleep $((RANDOM % 2)).$((RANDOM % 10))
    if [ $((RANDOM % 2)) = 0 ]; then
        hotdump unload > /tmp/said 2>&1
        echo unload $? >> /tmp/loaded
    fi
done
touch /tmp/stopped
";

/// A guest in a storm.
struct Weather {
    guest: Guest,
    random: Rng,
    /// How many memory modules and CPUs were ever plugged in: numbers for new names.
    plugged: u32,
    /// Memory modules that the machine has, or had and QEMU still keeps memory for.
    dimms: Vec<String>,
    /// Where no CPU ever was. On x86_64 QEMU 10.0.2, where it emulates, has room for so many CPUs' threads that ever were, and
    /// ends itself at the next (tcg_register_thread).
    places_for_cpus: Vec<CpuSlot>,
    /// PowerPC's cores that the guest let go of, by their numbers.
    released: Vec<u64>,
    done: Vec<Event>,
    /// How often what was asked of sysfs ended with which exit code: 1 is a refusal, 137 a writer that was killed.
    codes: BTreeMap<String, u32>,
}

/// Memory blocks and CPUs by their numbers, and whether they are online.
struct Places {
    /// Blocks that were added since boot.
    added: Vec<(u64, bool)>,
    /// Blocks that were there at boot.
    boot: Vec<(u64, bool)>,
    /// CPUs but the first.
    cpus: Vec<(u64, bool)>,
}

/// Brings a memory block to a state; it is given up where that takes long.
fn set_block(block: u64, state: &str) -> String {
    set_block_within("20", block, state)
}

/// The same, whose writer is killed after so many seconds.
fn set_block_within(seconds: &str, block: u64, state: &str) -> String {
    set(&format!("timeout -s KILL {seconds} sh"), &format!("memory/memory{block}/state"), state)
}

fn set_cpu(cpu: u64, online: u8) -> String {
    set("sh", &format!("cpu/cpu{cpu}/online"), &online.to_string())
}

/// Writes to a file of sysfs, by a shell of its own, and tells the exit code.
fn set(shell: &str, file: &str, state: &str) -> String {
    let kind = file.split('/').next().unwrap_or_default();
    format!("{{ {shell} -c 'echo {state} > /sys/devices/system/{file}'; echo {kind} {state} $?; }} & ")
}

/// Has PowerPC's kernel let go of a core, or take one in. The firmware counts the guests' cores, of one thread each, from this
/// number on.
fn dlpar(what: &str, core: u64) -> String {
    let index = 0x1000_0000 + core;
    format!("{{ sh -c 'echo cpu {what} index {index:#x} > /sys/kernel/dlpar'; echo dlpar {what} $?; }} & ")
}

impl Weather {
    /// Lets `events` events happen, in bursts.
    fn blow(&mut self, events: u32) -> Result<()> {
        let weights: u32 = EVENTS.iter().map(|(_, weight)| weight).sum();
        while self.done.len() < events as usize {
            let burst = self.random.usize(1..=6).min(events as usize - self.done.len());
            let (places, end) = (self.places()?, self.done.len() + burst);
            let mut line = String::new();
            while self.done.len() < end {
                let mut at: u32 = self.random.u32(..weights);
                let drawn =
                    EVENTS.iter().find(|(_, weight)| at.checked_sub(*weight).map(|rest| at = rest).is_none());
                let (event, _) = drawn.context("no event was drawn")?;
                // Not everything can happen at any time.
                if let Some(words) = self.happen(*event, &places)? {
                    line += &words;
                    self.done.push(*event);
                }
            }
            let told = self.guest.shell(&format!("{line} wait"))?;
            for line in told.ran.stdout.lines() {
                *self.codes.entry(line.to_owned()).or_default() += 1;
            }
            self.take_memory_back()?;
            // Now and then there is time for what was asked for to come true.
            if self.random.u32(0..3) == 0 {
                sleep(Duration::from_millis(self.random.u64(0..2000)));
            }
        }
        let counts = EVENTS.iter().map(|(event, _)| {
            format!("{event:?} {}", self.done.iter().filter(|done| *done == event).count())
        });
        self.guest.say(format!("{} events: {}", self.done.len(), counts.collect::<Vec<_>>().join(", ")));
        self.guest.say(format!("asked of sysfs, and the exit codes: {:?}", self.codes));
        Ok(())
    }

    /// Has the machine do an event, or gives the words of shell by which the guest does; `None` if there is nothing
    /// that it could happen to.
    fn happen(&mut self, event: Event, places: &Places) -> Result<Option<String>> {
        Ok(match event {
            Event::PlugMemory => self.plug_memory()?,
            Event::UnplugMemory => self.unplug_memory()?,
            Event::UnplugMemoryAndOnline => self
                .unplug_memory()?
                .map(|_| places.added.iter().map(|(block, _)| set_block(*block, "online_movable")).collect()),
            Event::OfflineBlock => self.one_of(&places.added, true).map(|block| set_block(block, "offline")),
            Event::OnlineBlock => {
                let blocks = [places.added.as_slice(), &places.boot].concat();
                self.one_of(&blocks, false).map(|block| set_block(block, "online_movable"))
            }
            Event::OfflineBlockBrokenOff => self.one_of(&places.added, true).map(|block| {
                let seconds = format!("0.{:02}", self.random.u32(1..30));
                set_block_within(&seconds, block, "offline")
            }),
            Event::OfflineBootBlock => {
                self.one_of(&places.boot, true).map(|block| set_block(block, "offline"))
            }
            Event::PlugCpu => self.plug_cpu()?,
            Event::UnplugCpu => self.unplug_cpu(places)?,
            Event::OnlineCpu => self.one_of(&places.cpus, false).map(|cpu| set_cpu(cpu, 1)),
            Event::OfflineCpu => self.one_of(&places.cpus, true).map(|cpu| set_cpu(cpu, 0)),
        })
    }

    fn one_of(&mut self, places: &[(u64, bool)], online: bool) -> Option<u64> {
        let fit: Vec<u64> = places.iter().filter(|place| place.1 == online).map(|place| place.0).collect();
        self.random.choice(fit)
    }

    fn new_name(&mut self, kind: &str) -> String {
        self.plugged += 1;
        format!("storm-{kind}{}", self.plugged)
    }

    fn plug_memory(&mut self) -> Result<Option<String>> {
        if self.dimms.len() == DIMMS {
            return Ok(None);
        }
        let name = self.new_name("dimm");
        let blocks = self.random.u64(1..=2);
        self.guest.qmp.add_dimm(&name, blocks * self.guest.at_boot.block_size)?;
        self.dimms.push(name);
        Ok(Some(String::new()))
    }

    fn unplug_memory(&mut self) -> Result<Option<String>> {
        // When a block goes by sysfs, Linux 6.12 takes its own locks (kn->active, mem_hotplug_lock) in another order than when
        // a memory module goes. Lockdep says so once, and is silent about all that comes after.
        if self.guest.kernel.line == KernelLine::Debug {
            return Ok(None);
        }
        let name = self.random.choice(self.dimms.iter()).cloned();
        // One that is asked for twice is refused.
        Ok(name.filter(|name| self.guest.qmp.remove_device(name).is_ok()).map(|_| String::new()))
    }

    /// Takes the memory of modules that are gone back from QEMU.
    fn take_memory_back(&mut self) -> Result<()> {
        let there: Vec<Value> = self.guest.qmp.query("query-memory-devices", &json!({}))?;
        let is_there = |name: &String| there.iter().any(|device| device["data"]["id"] == name.as_str());
        let (there, gone) = std::mem::take(&mut self.dimms).into_iter().partition(is_there);
        self.dimms = there;
        for name in gone {
            self.guest.qmp.execute("object-del", &json!({"id": format!("{name}-ram")}))?;
        }
        Ok(())
    }

    fn plug_cpu(&mut self) -> Result<Option<String>> {
        if let Some(core) = self.released.pop() {
            return Ok(Some(dlpar("add", core)));
        }
        let Some(place) = self.places_for_cpus.pop() else { return Ok(None) };
        let name = self.new_name("cpu");
        self.guest.qmp.plug_cpu(&name, place)?;
        Ok(Some(String::new()))
    }

    /// On PowerPC the guest lets go of a core by itself: where QEMU 10.0.2 was asked to take one out, it ends itself as soon as
    /// memory is plugged in (tpp.c: it locks what was a part of the CPU).
    fn unplug_cpu(&mut self, places: &Places) -> Result<Option<String>> {
        if self.guest.kernel.line.arch() == Arch::Ppc64 {
            let cores: Vec<u64> = places.cpus.iter().map(|(cpu, _)| *cpu).collect();
            let core = self.random.choice(cores).filter(|core| !self.released.contains(core));
            self.released.extend(core);
            return Ok(core.map(|core| dlpar("remove", core)));
        }
        let slots: Vec<CpuSlot> = self.guest.qmp.query("query-hotpluggable-cpus", &json!({}))?;
        let ours = slots.into_iter().filter_map(|slot| slot.taken).filter(|path| path.contains("storm-cpu"));
        let one = self.random.choice(ours.collect::<Vec<_>>());
        let name = one.as_deref().and_then(|path| path.rsplit('/').next());
        Ok(name.filter(|name| self.guest.qmp.remove_device(name).is_ok()).map(|_| String::new()))
    }

    fn places(&mut self) -> Result<Places> {
        let line = "cd /sys/devices/system; grep . memory/memory*/state cpu/cpu*/online";
        let told = self.guest.shell(line)?;
        let mut places = Places { added: Vec::new(), boot: Vec::new(), cpus: Vec::new() };
        for line in told.ran.stdout.lines() {
            let Some((path, state)) = line.split_once(':') else { continue };
            let digits = path.split('/').nth(1).map(|name| name.trim_start_matches(char::is_alphabetic));
            let Some(number) = digits.and_then(|digits| digits.parse().ok()) else { continue };
            match path.split('/').next() {
                Some("cpu") if number != 0 => places.cpus.push((number, state == "1")),
                Some("memory") if self.guest.at_boot.online_blocks.contains(&number) => {
                    places.boot.push((number, state == "online"));
                }
                Some("memory") => places.added.push((number, state == "online")),
                _ => {}
            }
        }
        ensure!(!places.boot.is_empty(), "the guest shows no memory blocks:\n{told}");
        Ok(places)
    }

    /// Ends the loads and waits until nothing happens any more.
    fn settle(mut self) -> Result<Guest> {
        self.guest.shell("touch /tmp/stop")?.ok()?;
        // QEMU's system reset, which stops CPUs at a panic, would start a core that is out.
        let lines: String = self.released.iter().map(|core| dlpar("add", *core)).collect();
        self.guest.shell(&format!("{lines} wait"))?.ok()?;
        let (start, limit) = (Instant::now(), patience(120));
        let mut last = (self.guest.state()?.online_blocks, Instant::now());
        while last.1.elapsed() < Duration::from_secs(5) || !self.guest.has("/tmp/stopped")? {
            ensure!(start.elapsed() < limit, "no rest after {} s: {last:?}", limit.as_secs());
            sleep(Duration::from_millis(500));
            let now = self.guest.state()?.online_blocks;
            if now != last.0 {
                last = (now, Instant::now());
            }
        }
        let loaded = self.guest.shell("sort /tmp/loaded | uniq -c; cat /tmp/errors; true")?.ran.stdout;
        self.guest.say(format!("what was loaded meanwhile, and the exit codes:\n{loaded}"));
        ensure!(loaded.contains(" load 0\n"), "no load succeeded");
        Ok(self.guest)
    }
}

/// The image that is there when the machine crashes: a last load, a few more events. Gives what the module tells of itself.
fn calm(guest: &mut Guest) -> Result<Value> {
    for cpu in guest.state()?.present_cpus {
        if cpu != 0 {
            guest.shell(&format!("echo 1 > /sys/devices/system/cpu/cpu{cpu}/online"))?;
        }
    }
    guest.load(By::Load, LOAD)?;
    let slots: Vec<Value> = guest.qmp.query("query-memory-devices", &json!({}))?;
    if slots.len() < DIMMS {
        guest.add_memory(guest.at_boot.block_size)?;
    }
    let added: Vec<u64> = {
        let now = guest.state()?.online_blocks;
        now.into_iter().filter(|block| !guest.at_boot.online_blocks.contains(block)).collect()
    };
    let block = *added.first().context("no added memory is online")?;
    for state in ["offline", "online_movable"] {
        guest.shell(&format!("echo {state} > /sys/devices/system/memory/memory{block}/state"))?.ok()?;
        guest.verify_says_complete()?;
    }
    guest
        .shell("echo 0 > /sys/devices/system/cpu/cpu1/online; echo 1 > /sys/devices/system/cpu/cpu1/online")?
        .ok()?;
    // All there is: less may find room in memory that was there at boot.
    guest.fill()?;
    guest.verify_says_complete()?;
    clean_log(guest)?;
    let told = status(guest)?;
    let number = |name: &str| told[name].as_u64().unwrap_or_default();
    ensure!(told["armed"] == true, "the module let go: {told}");
    ensure!(number("memory_events") > 0 && number("cpu_events") > 0 && number("stores") > 0, "{told}");
    ensure!(number("slowest_event_ns") < 1_000_000_000, "an event took a second: {told}");
    Ok(told)
}

/// What a kernel writes when something in it is wrong.
const COMPLAINTS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Call Trace",
    "Oops",
    "INFO: task",
    "INFO: possible",
    "INFO: trying",
    "possible circular locking",
    "suspicious RCU usage",
    "scheduling while atomic",
    "sleeping function called",
    "KASAN",
    "UBSAN",
    "general protection",
];

/// The kernel must have complained of nothing since it booted.
pub(super) fn clean_log(guest: &Guest) -> Result<()> {
    let console = guest.console()?;
    let complaint = console.lines().position(|line| COMPLAINTS.iter().any(|word| line.contains(word)));
    let Some(at) = complaint else { return Ok(()) };
    let lines: Vec<&str> = console.lines().skip(at.saturating_sub(2)).take(60).collect();
    bail!("the kernel complains:\n{}", lines.join("\n"))
}
