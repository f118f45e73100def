//! The first program of a lab guest: makes the usual mounts, then answers the host's requests at a serial port.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab_agent::{Answer, PORT, Ran, Request, Run, State};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};
use rustix::thread::{CpuSet, sched_setaffinity};

mod device;
mod huge;
mod memory;
mod misuse;
mod sampler;

/// Where the disk is mounted that becomes the root.
const ROOT: &str = "/new-root";

fn main() {
    if let Err(error) = serve() {
        // The first program must not end: the host sees this line on the console and gives up.
        eprintln!("lab-agent: {error:#}");
        loop {
            thread::park();
        }
    }
}

fn serve() -> Result<()> {
    // In a whole Debian it is a service, and the mounts are there.
    if std::process::id() == 1 {
        make_mounts()?;
        if read_text("/proc/cmdline")?.split_whitespace().any(|word| word.starts_with("root=")) {
            return enter_root();
        }
    }
    quieten_memory();
    let mut port = open_port()?;
    let mut lines = BufReader::new(port.try_clone()?);
    // Firmware may have left an unfinished line at the port.
    port.write_all(b"\n").context("greeting")?;
    reply(&mut port, &Answer::Ready { release: read_text("/proc/sys/kernel/osrelease")? })?;
    let mut work = Work::default();
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).context("reading a request")?;
        let answer = match serde_json::from_str(line.trim()) {
            Ok(Request::Crash { cpu }) => {
                reply(&mut port, &Answer::Done)?;
                crash(cpu)
            }
            Ok(request) => answer(request, &mut work),
            Err(error) => Err(error).with_context(|| format!("request {line:?}")),
        };
        reply(&mut port, &answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}"))))?;
    }
}

/// What goes on between two requests.
#[derive(Default)]
struct Work {
    filled: Option<memory::Filled>,
    sampler: Option<sampler::Sampler>,
}

fn answer(request: Request, work: &mut Work) -> Result<Answer> {
    Ok(match request {
        Request::Run(wanted) => Answer::Ran(run(&wanted)?),
        Request::Write { path, mode, bytes } => {
            write_file(Path::new(&path), mode, &bytes)?;
            Answer::Done
        }
        Request::Read { path } => Answer::Bytes(fs::read(&path).with_context(|| format!("reading {path}"))?),
        Request::State => Answer::State(state()?),
        Request::SetCpu { cpu, online } => {
            let path = format!("/sys/devices/system/cpu/cpu{cpu}/online");
            fs::write(&path, if online { "1" } else { "0" }).with_context(|| format!("writing {path}"))?;
            Answer::Done
        }
        Request::Fill { seed, most, leave } => {
            let memory = work.filled.insert(memory::Filled::fill(seed, most, leave)?);
            Answer::Filled { pages: memory.pages() }
        }
        Request::FillHuge { seed, size, most } => {
            let memory = work.filled.insert(memory::Filled::fill_huge(seed, size, most)?);
            Answer::Filled { pages: memory.pages() }
        }
        Request::Seal { disk } => {
            let memory = work.filled.as_mut().context("nothing is filled yet")?;
            let (moved, runs) = memory.seal(&disk_with_serial(&disk)?)?;
            Answer::Sealed { moved, runs }
        }
        Request::Call { number, argument } => Answer::Called(misuse::call(number, &argument)?),
        Request::Fuzz { seed, count, valid } => Answer::Tallies(misuse::fuzz(seed, count, &valid)?),
        Request::Contend { milliseconds, valid } => {
            Answer::Tallies(misuse::contend(Duration::from_millis(milliseconds), &valid)?)
        }
        Request::Sample { path } => {
            work.sampler = Some(sampler::Sampler::start(Path::new(&path))?);
            Answer::Done
        }
        Request::Sampled => {
            let sampler = work.sampler.take().context("no file is looked at")?;
            Answer::Sampled(sampler.stop()?)
        }
        Request::Crash { cpu } => crash(cpu)?,
    })
}

fn make_mounts() -> Result<()> {
    let table = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("securityfs", "/sys/kernel/security"),
    ];
    for (kind, place) in table {
        // A kernel without security modules has no place for their files.
        if kind == "securityfs" && !Path::new(place).exists() {
            continue;
        }
        fs::create_dir_all(place).with_context(|| format!("creating {place}"))?;
        mount(kind, place, kind, MountFlags::empty(), c"").with_context(|| format!("mounting {place}"))?;
    }
    Ok(())
}

/// Makes the disk for dumps the root, and gives this process up for the first program there. Comes back only where that fails.
fn enter_root() -> Result<()> {
    for module in ["virtio_pci", "virtio_blk", "ext4"] {
        let status = Command::new("/sbin/modprobe").arg(module).status().context("starting modprobe")?;
        anyhow::ensure!(status.success(), "modprobe {module}: {status}");
    }
    let start = Instant::now();
    let disk = loop {
        match disk_with_serial("dump") {
            Ok(disk) => break disk,
            Err(error) if start.elapsed() > Duration::from_secs(20) => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    };
    fs::create_dir_all(ROOT)?;
    mount(&disk, ROOT, "ext4", MountFlags::empty(), c"")
        .with_context(|| format!("mounting {}", disk.display()))?;
    Err(Command::new("/sbin/switch_root").args([ROOT, "/sbin/init"]).exec()).context("starting switch_root")
}

/// Turns off what would move or join filled pages behind the manifest's back. What a kernel lacks needs no turning off.
fn quieten_memory() {
    let settings = [
        ("/sys/kernel/mm/transparent_hugepage/enabled", "never"),
        ("/proc/sys/vm/compact_unevictable_allowed", "0"),
        ("/proc/sys/vm/compaction_proactiveness", "0"),
    ];
    for (path, value) in settings {
        if let Err(error) = fs::write(path, value) {
            eprintln!("lab-agent: {path}: {error}");
        }
    }
}

fn open_port() -> Result<File> {
    let port =
        OpenOptions::new().read(true).write(true).open(PORT).with_context(|| format!("opening {PORT}"))?;
    let mut raw = tcgetattr(&port)?;
    raw.make_raw();
    tcsetattr(&port, OptionalActions::Now, &raw).with_context(|| format!("setting up {PORT}"))?;
    Ok(port)
}

fn reply(port: &mut File, answer: &Answer) -> Result<()> {
    let line = serde_json::to_string(answer)? + "\n";
    port.write_all(line.as_bytes()).context("answering")?;
    // Waits until the line has left, so that nothing of it is lost in a crash.
    tcdrain(&*port).context("answering")
}

fn run(wanted: &Run) -> Result<Ran> {
    let (program, arguments) = wanted.argv.split_first().context("no program to run")?;
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(uid) = wanted.uid {
        command.uid(uid).gid(uid);
    }
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
    let pid = Pid::from_child(&child);
    let stdout = collect(child.stdout.take().context("no standard output")?);
    let stderr = collect(child.stderr.take().context("no standard error")?);
    let (ended, watch) = mpsc::channel::<()>();
    let limit = Duration::from_secs(wanted.seconds);
    let watchdog = thread::spawn(move || {
        let late = watch.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
        late && kill_process(pid, Signal::KILL).is_ok()
    });
    let status = child.wait().context("waiting")?;
    let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    drop(ended);
    if watchdog.join().unwrap_or(false) {
        bail!("{program} was killed after {} s", wanted.seconds);
    }
    let [stdout, stderr] = [stdout, stderr].map(|one| one.join().unwrap_or_default());
    Ok(Ran { code: status.code(), signal: status.signal(), stdout, stderr, nanoseconds })
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error still tells something.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn write_file(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(bytes).with_context(|| format!("writing {}", path.display()))
}

fn state() -> Result<State> {
    let memory = Path::new("/sys/devices/system/memory");
    let block_size = read_text(memory.join("block_size_bytes"))?;
    let mut online_blocks = Vec::new();
    for entry in fs::read_dir(memory)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("memory")?.parse().ok());
        let Some(number) = number else { continue };
        // One that goes ("going-offline") is there until the kernel has told everybody that it is gone.
        if block_state(&entry.path())?.is_some_and(|state| state != "offline") {
            online_blocks.push(number);
        }
    }
    online_blocks.sort_unstable();
    Ok(State {
        release: read_text("/proc/sys/kernel/osrelease")?,
        online_cpus: cpu_list(&read_text("/sys/devices/system/cpu/online")?)?,
        present_cpus: cpu_list(&read_text("/sys/devices/system/cpu/present")?)?,
        block_size: u64::from_str_radix(&block_size, 16).context("block_size_bytes")?,
        online_blocks,
        memory_total: memory::meminfo("MemTotal")?,
        memory_available: memory::meminfo("MemAvailable")?,
    })
}

/// The state of a memory block; `None` where it was taken out while it was looked at.
fn block_state(block: &Path) -> Result<Option<String>> {
    match fs::read_to_string(block.join("state")) {
        Ok(state) => Ok(Some(state.trim().to_owned())),
        Err(error)
            if error.kind() == ErrorKind::NotFound
                || error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("reading the state of {}", block.display())),
    }
}

/// The CPUs of a list like "0-2,5".
fn cpu_list(text: &str) -> Result<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>()?..=last.parse::<u32>()?);
    }
    Ok(cpus)
}

fn disk_with_serial(serial: &str) -> Result<std::path::PathBuf> {
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        if read_text(entry.path().join("serial")).is_ok_and(|found| found == serial) {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    bail!("no disk has the serial number {serial}")
}

fn crash(cpu: u32) -> Result<Answer> {
    let mut only = CpuSet::new();
    only.set(usize::try_from(cpu)?);
    sched_setaffinity(None, &only).with_context(|| format!("moving to CPU {cpu}"))?;
    fs::write("/proc/sysrq-trigger", "c").context("writing to /proc/sysrq-trigger")?;
    bail!("the kernel did not panic")
}

fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::cpu_list;

    #[test]
    fn cpu_lists() {
        assert_eq!(cpu_list("0-2,5").unwrap(), [0, 1, 2, 5]);
        assert_eq!(cpu_list("3").unwrap(), [3]);
        assert!(cpu_list("").unwrap().is_empty());
        assert!(cpu_list("0-x").is_err());
    }
}
