//! A running guest: what the host can ask of it and do to it.

use std::cell::OnceCell;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
pub use lab_agent::State;
use lab_agent::{Answer, Manifest, Ran, Request, Run, Samples};

use crate::arch::Arch;
use crate::cache::Kernel;
use crate::dump::Dump;
use crate::machine::{From, MANIFEST_DISK, MIB, Machine, Paths};
use crate::qmp::Qmp;
use crate::say::Teller;

/// The pattern that guests' memory is filled with.
const SEED: u64 = 0x686f_7464_756d_7001;

/// A time limit, longer where `HOTDUMP_LAB_PATIENCE` (a factor) says that the host is slow.
pub fn patience(seconds: u64) -> Duration {
    let factor = std::env::var("HOTDUMP_LAB_PATIENCE").ok().and_then(|text| text.parse::<f64>().ok());
    Duration::from_secs(seconds).mul_f64(factor.unwrap_or(1.0).clamp(0.1, 100.0))
}

/// A guest whose first kernel runs. It ends when this is dropped.
pub struct Guest {
    /// The kernel that it runs.
    pub kernel: Kernel,
    /// Its files on the host.
    pub paths: Paths,
    /// CPUs and memory when it had booted.
    pub at_boot: State,
    machine: Machine,
    qemu: Child,
    pub(crate) qmp: Qmp,
    agent: BufReader<UnixStream>,
    tell: Teller,
    dimms: u32,
}

/// A guest that stands still in a file.
#[derive(Clone)]
pub struct Frozen {
    machine: Machine,
    at_boot: State,
    tell: Teller,
}

impl Frozen {
    /// Gives the guests that go on from here a dump disk of `bytes` bytes.
    pub fn dump_disk(mut self, bytes: u64) -> Self {
        self.machine.hardware.dump_disk = bytes;
        self
    }

    /// Gives them one that takes only so much, see [`Hardware::failing_disk`](crate::machine::Hardware::failing_disk).
    pub fn failing_disk(mut self) -> Self {
        self.machine.hardware.failing_disk = true;
        self
    }

    /// A guest that goes on where the frozen one was, with empty disks.
    pub fn thaw(&self) -> Result<Guest> {
        let (machine, at_boot, tell) = (self.machine.clone(), self.at_boot.clone(), self.tell.clone());
        let mut guest = Guest::start(machine, From::Frozen, at_boot, tell)?;
        guest.qmp.wait_until_it_runs(patience(60))?;
        Ok(guest)
    }
}

/// A guest that has crashed, and whose machine has ended.
pub struct Crashed {
    /// Its architecture.
    pub arch: Arch,
    /// Its files on the host.
    pub paths: Paths,
    /// CPUs and memory just before the crash.
    pub before: State,
    /// The CPU that was told to panic, if that was the way, and its registers tell that.
    pub panicked_on: Option<u32>,
    /// The memory blocks that were added since boot, as ranges of physical addresses.
    pub hot_added: Vec<Range<u64>>,
    /// What the filled memory must hold; none where nothing was filled.
    pub manifest: Option<Manifest>,
    /// From the panic to the end of the machine.
    pub took: Duration,
    /// Says what goes on.
    pub tell: Teller,
    machine: Machine,
    pub(crate) dump: OnceCell<Dump>,
}

impl Guest {
    /// Boots `machine` and waits until the agent answers.
    pub fn boot(machine: Machine, tell: Teller) -> Result<Guest> {
        Guest::boot_from(machine, From::Boot, tell)
    }

    fn boot_from(machine: Machine, from: From, tell: Teller) -> Result<Guest> {
        let start = Instant::now();
        let nothing = State {
            release: String::new(),
            online_cpus: Vec::new(),
            present_cpus: Vec::new(),
            block_size: 0,
            online_blocks: Vec::new(),
            memory_total: 0,
            memory_available: 0,
        };
        let mut guest = Guest::start(machine, from, nothing, tell)?;
        let release = guest.greeting(patience(150)).context("waiting for the guest to boot")?;
        ensure!(
            release == guest.kernel.release,
            "the guest runs {release} instead of {}",
            guest.kernel.release
        );
        for module in ["virtio_pci", "virtio_blk", "ext4"] {
            guest.run(["modprobe", module])?.ok()?;
        }
        guest.at_boot = guest.state()?;
        guest.say(format!(
            "booted {release}: {} MiB, {} CPUs, {:.1} s",
            guest.at_boot.online_bytes() / MIB,
            guest.at_boot.online_cpus.len(),
            start.elapsed().as_secs_f64()
        ));
        Ok(guest)
    }

    /// Starts QEMU and opens its channels.
    fn start(machine: Machine, from: From, at_boot: State, tell: Teller) -> Result<Guest> {
        let paths = machine.paths.clone();
        crate::debian::recreate(&paths.sockets)?;
        if from != From::Again {
            machine.hardware.make_disks(&paths)?;
        }
        let mut qemu = KillOnError(Some(machine.start(from)?));
        let start = Instant::now();
        let agent = loop {
            match UnixStream::connect(paths.agent_socket()) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > patience(20) => {
                    return Err(error).context("QEMU did not open the agent's port");
                }
                Err(_) => qemu.still_runs(&paths)?,
            }
            sleep(Duration::from_millis(20));
        };
        let qmp = Qmp::connect(&paths.qmp_socket(), patience(60))?;
        let qemu = qemu.0.take().context("QEMU is gone")?;
        let kernel = machine.kernel.clone();
        let agent = BufReader::new(agent);
        Ok(Guest { kernel, paths, at_boot, machine, qemu, qmp, agent, tell, dimms: 0 })
    }

    /// Writes the guest's state to a file and ends it: any number of guests can go on from there, one after the other.
    /// Nothing may have been plugged in since it booted, and what is on its disks is lost.
    pub fn freeze(mut self) -> Result<Frozen> {
        self.qmp.freeze(&self.paths.frozen(), patience(60))?;
        Ok(Frozen { machine: self.machine.clone(), at_boot: self.at_boot.clone(), tell: self.tell.clone() })
    }

    /// Says what goes on.
    pub fn tell(&self) -> &Teller {
        &self.tell
    }

    /// Tells the person at the terminal.
    pub fn say(&self, line: impl fmt::Display) {
        self.tell.say(line);
    }

    /// Runs a program as root to its end, whatever its exit code.
    pub fn run<I: IntoIterator<Item = S>, S: Into<String>>(&mut self, argv: I) -> Result<Outcome> {
        self.run_as(None, argv)
    }

    /// Runs a line of shell as root.
    pub fn shell(&mut self, line: &str) -> Result<Outcome> {
        self.run(["sh", "-c", line])
    }

    /// Runs a program as the user `uid`.
    pub fn run_as<I: IntoIterator<Item = S>, S: Into<String>>(
        &mut self,
        uid: Option<u32>,
        argv: I,
    ) -> Result<Outcome> {
        let argv: Vec<String> = argv.into_iter().map(Into::into).collect();
        let limit = patience(180);
        let run = Run { argv: argv.clone(), uid, seconds: limit.as_secs() };
        match self.ask(&Request::Run(run), limit + Duration::from_secs(20))? {
            Answer::Ran(ran) => Ok(Outcome { argv, ran }),
            other => bail!("to {argv:?} the agent answers {other:?}"),
        }
    }

    /// Writes a file in the guest.
    pub fn write(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        self.done(&Request::Write { path: path.into(), mode, bytes: bytes.into() })
    }

    /// Reads a file of the guest.
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>> {
        match self.ask(&Request::Read { path: path.into() }, patience(60))? {
            Answer::Bytes(bytes) => Ok(bytes),
            other => bail!("to a read of {path} the agent answers {other:?}"),
        }
    }

    /// Reads a text file of the guest, without the white space around it.
    pub fn read_text(&mut self, path: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.read(path)?).trim().to_owned())
    }

    /// Has a file looked at each millisecond from now on, until [`Guest::sampled`]; nothing is run for that.
    pub fn sample(&mut self, path: &str) -> Result<()> {
        self.done(&Request::Sample { path: path.into() })
    }

    /// What was in the file.
    pub fn sampled(&mut self) -> Result<Samples> {
        match self.ask(&Request::Sampled, patience(60))? {
            Answer::Sampled(samples) => Ok(samples),
            other => bail!("asked for its samples the agent answers {other:?}"),
        }
    }

    /// CPUs and memory as they are now.
    pub fn state(&mut self) -> Result<State> {
        match self.ask(&Request::State, patience(60))? {
            Answer::State(state) => Ok(state),
            other => bail!("asked for its state the agent answers {other:?}"),
        }
    }

    /// Plugs in a memory module, and waits for nothing. Gives the name to remove it by.
    pub fn plug_memory(&mut self, bytes: u64) -> Result<String> {
        let id = format!("dimm{}", self.dimms);
        self.dimms += 1;
        self.qmp.add_dimm(&id, bytes)?;
        Ok(id)
    }

    /// Plugs in a memory module and waits until the guest has it online. Gives the name to remove it by.
    pub fn add_memory(&mut self, bytes: u64) -> Result<String> {
        let before = self.state()?.online_bytes();
        let id = self.plug_memory(bytes)?;
        let what = format!("{} MiB more to be online", bytes / MIB);
        let state = self.wait_for(&what, |state| state.online_bytes() >= before + bytes)?;
        self.say(format!("added {} MiB: {} MiB online", bytes / MIB, state.online_bytes() / MIB));
        Ok(id)
    }

    /// Takes a memory module out and waits until its blocks are gone. Its memory must have been onlined as movable.
    /// Gives the blocks as ranges of physical addresses.
    pub fn remove_memory(&mut self, id: &str, bytes: u64) -> Result<Vec<Range<u64>>> {
        let old = self.state()?;
        let before = old.online_bytes();
        self.qmp.remove_device(id)?;
        let what = format!("{} MiB less to be online", bytes / MIB);
        let state = self.wait_for(&what, |state| state.online_bytes() + bytes <= before)?;
        self.say(format!("removed {} MiB: {} MiB online", bytes / MIB, state.online_bytes() / MIB));
        Ok(new_blocks(&state, &old))
    }

    /// Numbers of the memory blocks that are there and offline.
    pub fn offline_blocks(&mut self) -> Result<Vec<u64>> {
        let found = self.shell("cd /sys/devices/system/memory && grep -l offline memory*/state || :")?;
        let number = |line: &str| line.strip_prefix("memory")?.strip_suffix("/state")?.parse().ok();
        let mut blocks: Vec<u64> = found.ok()?.lines().filter_map(number).collect();
        blocks.sort_unstable();
        Ok(blocks)
    }

    /// Takes a memory block online, for memory that can be moved, or offline.
    pub fn set_block(&mut self, block: u64, online: bool) -> Result<()> {
        self.shell(&block_line(block, online))?.ok().map(drop)
    }

    /// Where the memory starts that is reserved for the crash kernel, and what is in it, seen from outside. Only where the plan
    /// said `memory_in_file`.
    pub fn reserved_memory(&mut self) -> Result<(u64, Vec<u8>)> {
        let iomem = self.shell("grep 'Crash kernel' /proc/iomem")?;
        let hex = |digits: &str| u64::from_str_radix(digits.trim(), 16).ok();
        let line = iomem.ok()?.split(" : ").next().and_then(|range| range.split_once('-'));
        let range = line.and_then(|(start, last)| Some((hex(start)?, hex(last)?)));
        let (start, last) = range.with_context(|| format!("no reservation: {iomem}"))?;
        let path = self.paths.memory();
        let file = fs::File::open(&path);
        let file =
            file.with_context(|| format!("opening {}: was the memory kept in a file?", path.display()))?;
        let mut bytes = vec![0; usize::try_from(last - start + 1)?];
        file.read_exact_at(&mut bytes, start)?;
        Ok((start, bytes))
    }

    /// Plugs in a CPU, brings it online and gives its number.
    pub fn add_cpu(&mut self) -> Result<u32> {
        let before = self.state()?.present_cpus;
        self.qmp.add_cpu(&format!("cpu{}", before.len()), self.kernel.line.arch().cpu_place())?;
        let state = self.wait_for("a new CPU", |state| state.present_cpus.len() > before.len())?;
        let new = state.present_cpus.into_iter().find(|cpu| !before.contains(cpu)).context("no new CPU")?;
        self.done(&Request::SetCpu { cpu: new, online: true })?;
        let state = self.wait_for("the new CPU to be online", |state| state.online_cpus.contains(&new))?;
        self.say(format!("added CPU {new}: {} CPUs online", state.online_cpus.len()));
        Ok(new)
    }

    /// Fills the memory with the pattern, so that only what programs need stays available. Gives the number of pages.
    pub fn fill(&mut self) -> Result<u64> {
        self.fill_at_most(u64::MAX)
    }

    /// Like [`Guest::fill`], but not more than `most` bytes.
    pub fn fill_at_most(&mut self, most: u64) -> Result<u64> {
        const LEAVE: u64 = 128 * MIB;
        self.fill_by(&Request::Fill { seed: SEED, most, leave: LEAVE })
    }

    /// Takes a huge page of `size` bytes and fills `most` bytes of it with the pattern. Gives the number of (small) pages.
    pub fn fill_huge(&mut self, size: u64, most: u64) -> Result<u64> {
        self.fill_by(&Request::FillHuge {
            seed: SEED,
            size: usize::try_from(size)?,
            most: usize::try_from(most)?,
        })
    }

    fn fill_by(&mut self, request: &Request) -> Result<u64> {
        let start = Instant::now();
        let pages = match self.ask(request, patience(240))? {
            Answer::Filled { pages } => pages,
            other => bail!("asked to fill memory the agent answers {other:?}"),
        };
        self.say(format!("filled {pages} pages with the pattern, {:.1} s", start.elapsed().as_secs_f64()));
        Ok(pages)
    }

    /// Has CPU `cpu` panic and waits for the machine's end. Writes the manifest before, if memory was filled.
    pub fn crash(self, cpu: u32) -> Result<Crashed> {
        self.crash_on(cpu, |guest| guest.wait_for_end(patience(400)))
    }

    /// The same, but the machine is switched off as soon as `seen` finds on the console what it waits for.
    pub fn crash_and_switch_off(self, cpu: u32, seen: impl Fn(&str) -> bool) -> Result<Crashed> {
        self.crash_on(cpu, |guest| {
            let (start, limit) = (Instant::now(), patience(400));
            while !seen(&guest.console()?) {
                ensure!(guest.qemu.try_wait()?.is_none(), "the machine ended by itself");
                ensure!(start.elapsed() < limit, "{} s after the crash it still runs", limit.as_secs());
                sleep(Duration::from_millis(50));
            }
            guest.qemu.kill()?;
            guest.qemu.wait()?;
            Ok(start.elapsed())
        })
    }

    fn crash_on(self, cpu: u32, end: impl FnOnce(&mut Guest) -> Result<Duration>) -> Result<Crashed> {
        let crash = |guest: &mut Guest| guest.done(&Request::Crash { cpu });
        self.crash_by(&format!("crash on CPU {cpu}"), Some(cpu), crash, end)
    }

    /// Restarts the guest by its own `reboot`, and waits until it is up again.
    pub fn reboot(mut self) -> Result<Guest> {
        // The answer may or may not come before the end.
        let _ = self.run(["systemctl", "--no-block", "reboot"]);
        let took = self.wait_for_end(patience(120))?;
        self.say(format!("shut down in {:.1} s", took.as_secs_f64()));
        Guest::boot_from(self.machine.clone(), From::Again, self.tell.clone())
    }

    /// The same by a boot loader, see [`Hardware::boot_loader`](crate::machine::Hardware::boot_loader), from then on.
    pub fn reboot_by(mut self, loader: &[u8]) -> Result<Guest> {
        let path = self.machine.paths.dir.join("loader");
        std::fs::write(&path, loader).with_context(|| format!("writing {}", path.display()))?;
        self.machine.hardware.boot_loader = Some(path);
        self.reboot()
    }

    /// The same with another reservation.
    pub fn reboot_with_crashkernel(mut self, value: &str) -> Result<Guest> {
        let words = self.machine.cmdline.split(' ');
        let words = words.filter(|word| !word.starts_with("crashkernel=")).map(str::to_owned);
        self.machine.cmdline = words.chain([format!("crashkernel={value}")]).collect::<Vec<_>>().join(" ");
        self.reboot()
    }

    /// Runs a line of shell over which the guest is to panic: something in it waits for that. Where the line comes to
    /// its end, the guest panics all the same, for another reason.
    pub fn crash_by_running(self, line: &str) -> Result<Crashed> {
        let later = format!("(sleep 0.2; {line}; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &");
        let crash = |guest: &mut Guest| guest.shell(&later)?.ok().map(drop);
        self.crash_by(&format!("crash by: {line}"), None, crash, |guest| guest.wait_for_end(patience(400)))
    }

    fn crash_by(
        mut self,
        how: &str,
        cpu: Option<u32>,
        crash: impl FnOnce(&mut Guest) -> Result<()>,
        end: impl FnOnce(&mut Guest) -> Result<Duration>,
    ) -> Result<Crashed> {
        let before = self.state()?;
        let sealed = self.ask(&Request::Seal { disk: MANIFEST_DISK.into() }, patience(120));
        let manifest = match sealed {
            Ok(Answer::Sealed { moved, runs }) => {
                self.say(format!("manifest written: {runs} runs of frames, {moved} pages had moved"));
                true
            }
            Err(error) if error.to_string().contains("nothing is filled") => false,
            Err(error) => return Err(error),
            Ok(other) => bail!("asked for the manifest the agent answers {other:?}"),
        };
        self.say(how);
        crash(&mut self)?;
        let took = end(&mut self)?;
        self.say(format!("the machine ended {:.1} s after the crash", took.as_secs_f64()));
        let manifest = if manifest { Some(self.read_manifest()?) } else { None };
        let hot_added = new_blocks(&self.at_boot, &before);
        Ok(Crashed {
            arch: self.kernel.line.arch(),
            paths: self.paths.clone(),
            before,
            // In a whole Debian the agent is not process 1, by which the CPU's registers are told.
            panicked_on: cpu.filter(|_| self.machine.hardware.disk_root.is_none()),
            hot_added,
            manifest,
            took,
            tell: self.tell.clone(),
            machine: self.machine.clone(),
            dump: OnceCell::new(),
        })
    }

    /// Flips one bit of the byte at a physical address, from outside. Only where the plan said `memory_in_file`.
    pub fn flip_bit(&self, address: u64, bit: u32) -> Result<()> {
        let path = self.paths.memory();
        let file = fs::File::options().read(true).write(true).open(&path);
        let file =
            file.with_context(|| format!("opening {}: was the memory kept in a file?", path.display()))?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, address)?;
        file.write_all_at(&[byte[0] ^ (1 << bit)], address)?;
        self.say(format!("flipped bit {bit} of the byte at {address:#x}"));
        Ok(())
    }

    /// What the console has shown until now.
    pub fn console(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.paths.console())?).into_owned())
    }

    fn read_manifest(&self) -> Result<Manifest> {
        let path = self.paths.manifest_disk();
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Manifest::from_bytes(&bytes).with_context(|| format!("{} holds no manifest", path.display()))
    }

    fn wait_for_end(&mut self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.qemu.try_wait()? {
                break status;
            }
            if start.elapsed() > limit {
                let registers = self.qmp.registers()?;
                fs::write(self.paths.registers(), registers)?;
                bail!(
                    "the machine still runs {} s after the crash, its CPUs as in {}: {}",
                    limit.as_secs(),
                    self.paths.registers().display(),
                    last_line(&self.console()?)
                );
            }
            sleep(Duration::from_millis(50));
        };
        // A machine that is killed from outside looks like one that has ended by itself.
        let words = self.qmp.last_words();
        ensure!(status.success(), "QEMU ended with {status}, {words}");
        ensure!(!words.contains("WATCHDOG"), "a watchdog ended the machine: {words}");
        self.say(format!("the machine's end: {words}"));
        Ok(start.elapsed())
    }

    fn wait_for(&mut self, what: &str, holds: impl Fn(&State) -> bool) -> Result<State> {
        let limit = patience(60);
        let start = Instant::now();
        loop {
            let state = self.state()?;
            if holds(&state) {
                return Ok(state);
            }
            ensure!(start.elapsed() < limit, "waited {} s for {what}; now: {state:?}", limit.as_secs());
            sleep(Duration::from_millis(200));
        }
    }

    fn done(&mut self, request: &Request) -> Result<()> {
        match self.ask(request, patience(60))? {
            Answer::Done => Ok(()),
            other => bail!("the agent answers {other:?}"),
        }
    }

    /// Has the agent do what it is asked, within `limit`.
    pub(crate) fn ask(&mut self, request: &Request, limit: Duration) -> Result<Answer> {
        let line = serde_json::to_string(request)? + "\n";
        self.agent.get_mut().write_all(line.as_bytes()).context("sending a request to the agent")?;
        match self.answer(limit)? {
            Answer::Failed(why) => bail!("the agent says: {why}"),
            answer => Ok(answer),
        }
    }

    /// Waits for the agent's first line. UEFI firmware writes its own to the same port before.
    fn greeting(&mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let line = self.line(deadline)?;
            if let Ok(Answer::Ready { release }) = serde_json::from_slice(&line) {
                return Ok(release);
            }
        }
    }

    fn answer(&mut self, limit: Duration) -> Result<Answer> {
        let line = self.line(Instant::now() + limit)?;
        serde_json::from_slice(&line)
            .with_context(|| format!("the agent said {}", String::from_utf8_lossy(&line)))
    }

    fn line(&mut self, deadline: Instant) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            self.agent.get_ref().set_read_timeout(Some(Duration::from_millis(500)))?;
            match self.agent.read_until(b'\n', &mut line) {
                Ok(0) => bail!("the guest ended; its last words: {}", last_line(&self.console()?)),
                Ok(_) if line.ends_with(b"\n") => return Ok(line),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    ensure!(
                        Instant::now() < deadline,
                        "no answer in time; last on the console: {}",
                        last_line(&self.console()?)
                    );
                }
                Err(error) => return Err(error).context("reading the agent's answer"),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Crashed {
    /// Puts the file system on the dump disk in order, as its next mount would: the machine was switched off.
    pub fn repair_disk(&self) -> Result<()> {
        let mut check = std::process::Command::new("e2fsck");
        check.args(["-p"]).arg(self.paths.dump_disk()).env("PATH", crate::cache::sbin_path());
        let out = check.output().context("starting e2fsck")?;
        // 1: there was something to put in order.
        ensure!(matches!(out.status.code(), Some(0 | 1)), "e2fsck: {}", String::from_utf8_lossy(&out.stdout));
        Ok(())
    }

    /// Boots the machine again, with its disks as the capture left them.
    pub fn boot_again(&self) -> Result<Guest> {
        Guest::boot_from(self.machine.clone(), From::Again, self.tell.clone())
    }
}

/// Ends QEMU where attaching to it fails.
struct KillOnError(Option<Child>);

impl KillOnError {
    fn still_runs(&mut self, paths: &Paths) -> Result<()> {
        if let Some(status) = self.0.as_mut().and_then(|child| child.try_wait().transpose()).transpose()? {
            let log = fs::read_to_string(paths.qemu_log()).unwrap_or_default();
            bail!("QEMU ended at once ({status}): {}", log.trim());
        }
        Ok(())
    }
}

impl Drop for KillOnError {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How a program in the guest ended, with methods that turn surprises into errors.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// How it ended.
    pub ran: Ran,
}

impl Outcome {
    /// The program must have succeeded; gives its standard output.
    pub fn ok(&self) -> Result<&str> {
        self.exits(0)
    }

    /// The program must have ended with this exit code; gives its standard output.
    pub fn exits(&self, code: i32) -> Result<&str> {
        ensure!(self.ran.code == Some(code), "expected exit code {code}:\n{self}");
        Ok(&self.ran.stdout)
    }

    /// What it printed, standard output first, must contain `text`.
    pub fn says(&self, text: &str) -> Result<&Outcome> {
        ensure!(self.printed().contains(text), "expected to read {text:?}:\n{self}");
        Ok(self)
    }

    /// All that it printed, standard output first.
    pub fn printed(&self) -> String {
        format!("{}{}", self.ran.stdout, self.ran.stderr)
    }

    /// From before it started to its end, by the guest's clock.
    pub fn took(&self) -> Duration {
        Duration::from_nanos(self.ran.nanoseconds)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "$ {}\n{}", self.argv.join(" "), self.printed())?;
        match (self.ran.code, self.ran.signal) {
            (Some(code), _) => write!(f, "[exit code {code}]"),
            (None, signal) => write!(f, "[signal {}]", signal.unwrap_or_default()),
        }
    }
}

/// The line of shell that takes a memory block online, for memory that can be moved, or offline.
pub(crate) fn block_line(block: u64, online: bool) -> String {
    let state = if online { "online_movable" } else { "offline" };
    format!("echo {state} > /sys/devices/system/memory/memory{block}/state")
}

/// The blocks that are online in `now` and were not in `before`, neighbours joined.
fn new_blocks(before: &State, now: &State) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for block in now.online_blocks.iter().filter(|block| !before.online_blocks.contains(block)) {
        let (start, end) = (block * now.block_size, (block + 1) * now.block_size);
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

fn last_line(text: &str) -> &str {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("(nothing)").trim()
}
