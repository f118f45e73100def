//! A panic after every single store of a change that the kernel module makes: every dump must be good.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

use super::module::{LEAVE_OFFLINE, LOAD, boot, plan, stores};
use super::scenarios;
use crate::arch::Arch;
use crate::cache::KernelLine::{self, V6_1};
use crate::guest::{Crashed, Frozen, Guest, block_line};
use crate::lab::Lab;
use crate::machine::MIB;
use crate::product::By;

scenarios! {
    module_stores: "6.1 panics after a middle store of each kind of change: all dumps are good",
    ; long:
    module_stores_full: "the same after every single store; HOTDUMP_LAB_CHANGE=grow: only of that kind of change",
}

/// What is done to one of the guest's three neighbouring memory blocks, which are offline at first.
#[derive(Clone, Copy)]
enum Event {
    On(usize),
    Off(usize),
}
use Event::{Off, On};

impl Event {
    fn is_on(self) -> bool {
        matches!(self, On(_))
    }
}

/// The variable that names the only kind of change to show.
const CHANGE: &str = "HOTDUMP_LAB_CHANGE";

/// A kind of change to the crash header.
struct Kind {
    name: &'static str,
    /// What comes before the filling.
    early: &'static [Event],
    /// Memory to fill with the pattern, in MiB. It goes into blocks that are online first.
    fill: u64,
    /// What comes after the filling: a block that goes must hold nothing of the pattern.
    late: &'static [Event],
    change: Event,
}

const KINDS: [Kind; 10] = [
    // A free slot is there from the start: the loader named the blocks, which were offline when the module looked.
    Kind { name: "entry in a free slot", early: &[], fill: 32, late: &[], change: On(0) },
    Kind { name: "entry in a new slot", early: &[On(0)], fill: 64, late: &[], change: On(2) },
    Kind { name: "grow", early: &[On(0)], fill: 64, late: &[], change: On(1) },
    Kind { name: "grow downwards", early: &[On(1)], fill: 64, late: &[], change: On(0) },
    Kind { name: "merge", early: &[On(0), On(2)], fill: 160, late: &[], change: On(1) },
    Kind { name: "remove", early: &[], fill: 32, late: &[On(0)], change: Off(0) },
    Kind { name: "shrink", early: &[On(0)], fill: 64, late: &[On(1)], change: Off(1) },
    Kind { name: "shrink from below", early: &[On(1)], fill: 64, late: &[On(0)], change: Off(0) },
    Kind { name: "split, free slot", early: &[On(0), On(2)], fill: 160, late: &[On(1)], change: Off(1) },
    Kind { name: "split, new slot", early: &[On(0)], fill: 64, late: &[On(1), On(2)], change: Off(1) },
];

/// A middle one of the stores 1 to `count`.
pub(super) fn some(count: u64) -> Vec<u64> {
    vec![count.div_ceil(2)]
}

/// The stores 1 to `count`.
pub(super) fn every(count: u64) -> Vec<u64> {
    (1..=count).collect()
}

fn module_stores(lab: &Lab, name: &str) -> Result<()> {
    panic_after(lab, name, V6_1, some)
}

fn module_stores_full(lab: &Lab, name: &str) -> Result<()> {
    panic_after(lab, name, V6_1, every)
}

/// The kinds of change to show: all, or the one that `wanted` names.
fn kinds(wanted: Option<&str>) -> Result<Vec<&'static Kind>> {
    let found: Vec<&Kind> = KINDS.iter().filter(|kind| wanted.is_none_or(|name| kind.name == name)).collect();
    let names = KINDS.map(|kind| kind.name).join("; ");
    ensure!(!found.is_empty(), "{CHANGE}={}: none of {names}", wanted.unwrap_or_default());
    Ok(found)
}

/// For every kind of change: counts its stores, and then has the kernel panic after each that `which` picks.
pub(super) fn panic_after(lab: &Lab, name: &str, line: KernelLine, which: fn(u64) -> Vec<u64>) -> Result<()> {
    let kinds = kinds(std::env::var(CHANGE).ok().as_deref())?;
    let stage = Stage::set(lab, name, line)?;
    let mut bad = Vec::new();
    for kind in kinds {
        let count = stage.count(kind).with_context(|| format!("counting the stores of: {}", kind.name))?;
        ensure!(count > 0, "{}: the module stored nothing", kind.name);
        for store in which(count) {
            let told = format!("{}, store {store} of {count}", kind.name);
            match stage.panic_after_store(kind, store) {
                Ok(crashed) => crashed.tell.say(format!("{told}: a good dump")),
                Err(error) => {
                    // The next guest writes its own.
                    let log = lab.paths(name).dir.join(format!("console, {told}.log"));
                    fs::copy(lab.paths(name).console(), log)?;
                    bad.push(format!("{told}: {error:#}"));
                }
            }
        }
    }
    ensure!(bad.is_empty(), "{} bad dumps:\n{}", bad.len(), bad.join("\n"));
    Ok(())
}

/// A guest with an armed image, and three neighbouring blocks of memory in it that are offline.
fn begin(lab: &Lab, name: &str, line: KernelLine) -> Result<(Guest, [u64; 3])> {
    let arch = line.arch();
    let (memory, crashkernel) = arch.least_memory();
    let small = plan(lab, name, line)?.memory(memory).crashkernel(crashkernel).dump_disk(1024 * MIB);
    let mut guest = match arch {
        Arch::X86_64 => boot(small.dimm(3 * arch.block()).cmdline(LEAVE_OFFLINE))?,
        // Here a kernel takes a module that is there at boot for memory like any other, and what is added it brings online
        // whatever it is told.
        Arch::Ppc64 => {
            let mut guest = boot(small)?;
            let before = guest.state()?.online_blocks;
            guest.add_memory(3 * arch.block())?;
            let blocks = guest.state()?.online_blocks;
            for block in blocks.into_iter().filter(|block| !before.contains(block)) {
                guest.set_block(block, false)?;
            }
            guest
        }
    };
    guest.load(By::Load, LOAD)?;
    let blocks = guest.offline_blocks()?;
    let [first, second, third] = blocks[..] else { bail!("three blocks should be offline: {blocks:?}") };
    let block = guest.at_boot.block_size;
    ensure!(block == arch.block(), "memory blocks have {block} bytes");
    ensure!((second, third) == (first + 1, first + 2), "the blocks {blocks:?} are no neighbours");
    Ok((guest, [first, second, third]))
}

/// Where every change starts: a guest with an armed image, and its three blocks by their numbers.
struct Stage<'a> {
    lab: &'a Lab,
    name: &'a str,
    line: KernelLine,
    /// None where each guest has to boot: of a pseries guest that goes on from a file one CPU does nothing any more (QEMU 10.0).
    guest: Option<Frozen>,
    blocks: [u64; 3],
}

impl<'a> Stage<'a> {
    fn set(lab: &'a Lab, name: &'a str, line: KernelLine) -> Result<Stage<'a>> {
        let (guest, blocks) = begin(lab, name, line)?;
        let guest = match line.arch() {
            Arch::X86_64 => Some(guest.freeze()?),
            Arch::Ppc64 => None,
        };
        Ok(Stage { lab, name, line, guest, blocks })
    }

    /// A guest in which all is done that comes before the change.
    fn before(&self, kind: &Kind) -> Result<Guest> {
        let mut guest = match &self.guest {
            Some(frozen) => frozen.thaw()?,
            None => {
                let (guest, blocks) = begin(self.lab, self.name, self.line)?;
                ensure!(blocks == self.blocks, "other blocks than last time: {blocks:?}");
                guest
            }
        };
        self.pass(&mut guest, kind.early)?;
        guest.fill_at_most(kind.fill * MIB)?;
        self.pass(&mut guest, kind.late)?;
        Ok(guest)
    }

    fn pass(&self, guest: &mut Guest, events: &[Event]) -> Result<()> {
        events.iter().try_for_each(|event| guest.set_block(self.block(*event), event.is_on()))
    }

    /// The number of the block that an event is about.
    fn block(&self, event: Event) -> u64 {
        let (On(block) | Off(block)) = event;
        self.blocks[block]
    }

    /// How many stores the module makes of a change.
    fn count(&self, kind: &Kind) -> Result<u64> {
        let mut guest = self.before(kind)?;
        let before = stores(&mut guest)?;
        self.pass(&mut guest, &[kind.change])?;
        Ok(stores(&mut guest)? - before)
    }

    fn panic_after_store(&self, kind: &Kind, store: u64) -> Result<Crashed> {
        let mut guest = self.before(kind)?;
        guest.shell(&format!("echo {store} > /sys/module/hotdump/parameters/panic_after_store"))?.ok()?;
        let crashed = guest.crash_by_running(&block_line(self.block(kind.change), kind.change.is_on()))?;
        let console = crashed.console()?;
        ensure!(console.contains("as many stores as panic_after_store asked for"), "another panic");
        self.judge(&crashed, kind)?;
        Ok(crashed)
    }

    /// The dump must hold what was there both before and after the change, and no block that was there neither before nor
    /// after.
    fn judge(&self, crashed: &Crashed, kind: &Kind) -> Result<()> {
        let (core, findings) = crashed.compare()?;
        findings.all_right()?;
        crashed.has_notes(&core)?;
        let (mut stays, mut sampled) = (false, 0);
        for block in self.blocks.into_iter().filter(|block| *block != self.block(kind.change)) {
            let size = crashed.before.block_size;
            let range: Range<u64> = block * size..(block + 1) * size;
            let missing = core.missing_from(&range);
            if crashed.before.online_blocks.contains(&block) {
                ensure!(missing.is_empty(), "{missing:x?} of {range:x?} is not in the dump");
                stays = true;
                sampled += crashed.manifest.as_ref().map_or(0, |manifest| manifest.pages_in(&range));
            } else {
                ensure!(missing == [range.clone()], "the dump has parts of {range:x?}, which is offline");
            }
        }
        ensure!(!stays || sampled > 0, "no page of the pattern lies in a block that stays");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{KINDS, kinds};

    #[test]
    fn one_kind_of_change_or_all() {
        assert_eq!(kinds(None).unwrap().len(), KINDS.len());
        let found = kinds(Some("split, new slot")).unwrap();
        assert_eq!(found.iter().map(|kind| kind.name).collect::<Vec<_>>(), ["split, new slot"]);
        let unknown = kinds(Some("split")).err().unwrap().to_string();
        assert!(
            unknown.contains("HOTDUMP_LAB_CHANGE=split: none of") && unknown.contains("merge"),
            "{unknown}"
        );
    }
}
