//! Where scenarios begin: what guests are built from, and how one is described and booted.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;
use crate::cache::{Cache, Kernel, KernelLine};
use crate::check::{Core, Findings};
use crate::dump::Dump;
use crate::files::{DUMP_LABEL, Extra, Sources};
use crate::guest::{Crashed, Guest};
use crate::machine::{Clock, Firmware, Hardware, Machine, Paths};
use crate::say::Teller;
use crate::userland::{self, More};

/// Where the capture initramfs made of busybox is in a guest.
pub const BUSYBOX_CAPTURE: &str = "/boot/capture-busybox.cpio";

/// The version of packages that are to be upgraded from.
pub const EARLIER: &str = "0.0.1";

/// What all scenarios share.
#[derive(Clone, Debug)]
pub struct Lab {
    /// What guests are built from.
    pub sources: Sources,
    /// Where guests' files go, a directory each.
    pub dir: PathBuf,
    /// The line whose kernel is booted whichever a scenario asks for.
    pub instead: Option<KernelLine>,
}

impl Lab {
    /// A lab for the source tree at `root`: programs from `target/dist`, files in `target/lab`.
    pub fn of_tree(root: &Path) -> Result<Lab> {
        let sources = Sources { cache: Cache::open()?, dist: root.join("target/dist") };
        Ok(Lab { sources, dir: root.join("target/lab"), instead: None })
    }

    /// The kernel of `line`, or of [the one that stands in](Lab::instead) for all.
    pub fn kernel(&self, line: KernelLine) -> Result<Kernel> {
        self.sources.cache.kernel(self.instead.unwrap_or(line))
    }

    /// Describes a guest with the newest kernel of `line`. `name` names its directory and its progress lines.
    pub fn guest(&self, name: &str, line: KernelLine) -> Result<Plan<'_>> {
        let kernel = self.kernel(line)?;
        let arch = kernel.line.arch();
        let mut hardware = Hardware::of_arch(arch);
        let mut crashkernel = arch.crashkernel();
        if kernel.line == KernelLine::Debug {
            // An eighth of the memory keeps book of the rest, and what is freed is held back.
            hardware.memory *= 2;
            crashkernel = "512M";
        }
        let plan = Plan {
            lab: self,
            name: name.into(),
            kernel,
            hardware,
            crashkernel: Some(crashkernel.into()),
            cmdline: Vec::new(),
            busybox_capture: false,
            extra: Vec::new(),
            given: Vec::new(),
            modules: Vec::new(),
        };
        Ok(plan)
    }

    /// Removes a guest's disks; its dump too where all went well. The console's log stays.
    pub fn clean_up(&self, name: &str, all_went_well: bool) {
        if std::env::var_os("HOTDUMP_LAB_KEEP").is_some() {
            return;
        }
        let paths = self.paths(name);
        paths.remove_images();
        if all_went_well {
            // There may be none.
            let _ = fs::remove_dir_all(paths.dir.join("dump"));
        }
    }

    /// The kernel module for this kernel.
    pub fn module(&self, kernel: &Kernel) -> Result<PathBuf> {
        self.test_module(kernel, "hotdump")
    }

    /// The module of this name for this kernel: hotdump's, or one of those for tests (`lab/kmod`).
    pub fn test_module(&self, kernel: &Kernel, name: &str) -> Result<PathBuf> {
        let dist = self.sources.dist.join(kernel.line.arch().name());
        let module = dist.join(&kernel.release).join(name).with_extension("ko");
        ensure!(module.exists(), "there is no {}: `cargo xtask lab` and `test` make it", module.display());
        Ok(module)
    }

    /// The program.
    pub fn program(&self) -> PathBuf {
        self.sources.dist.join(Arch::native().name()).join("hotdump")
    }

    /// Our Debian package of this name.
    pub fn deb(&self, name: &str) -> Result<PathBuf> {
        self.deb_of_version(name, env!("CARGO_PKG_VERSION"))
    }

    /// The same, built as one of [before](EARLIER).
    pub fn earlier_deb(&self, name: &str) -> Result<PathBuf> {
        self.deb_of_version(name, EARLIER)
    }

    fn deb_of_version(&self, name: &str, version: &str) -> Result<PathBuf> {
        let dist = self.sources.dist.join(Arch::native().name());
        let deb = dist.join(format!("{name}_{version}_{}.deb", Arch::native().debian()));
        ensure!(deb.exists(), "there is no {}: `cargo xtask lab` and `test` make it", deb.display());
        Ok(deb)
    }

    /// The directory of a scenario's guest.
    pub fn paths(&self, name: &str) -> Paths {
        let sockets = std::env::temp_dir().join(format!("hotdump-lab-{}-{name}", std::process::id()));
        Paths { dir: self.dir.join(name), sockets }
    }
}

/// A guest before it boots.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    lab: &'a Lab,
    name: String,
    kernel: Kernel,
    hardware: Hardware,
    crashkernel: Option<String>,
    cmdline: Vec<String>,
    busybox_capture: bool,
    extra: Vec<Extra>,
    given: Vec<PathBuf>,
    modules: Vec<&'static str>,
}

impl Plan<'_> {
    /// Memory at boot in bytes (if not said what is [usual](crate::arch::Arch::memory)).
    pub fn memory(mut self, bytes: u64) -> Self {
        self.hardware.memory = bytes;
        self
    }

    /// CPUs at boot (2 if not said); two more can be added.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.hardware.cpus = cpus;
        self
    }

    /// Has a memory module of `bytes` bytes at boot, besides the memory.
    pub fn dimm(mut self, bytes: u64) -> Self {
        self.hardware.dimms.push(bytes);
        self
    }

    /// Size of the dump disk in bytes (16 GiB if not said; the file is sparse).
    pub fn dump_disk(mut self, bytes: u64) -> Self {
        self.hardware.dump_disk = bytes;
        self
    }

    /// Boots by UEFI instead of BIOS.
    pub fn uefi(mut self) -> Self {
        self.hardware.firmware = Firmware::Uefi;
        self
    }

    /// Counts guest time by instructions.
    pub fn counted_time(mut self) -> Self {
        self.hardware.clock = Clock::Instructions;
        self
    }

    /// Keeps the guest's memory in a file, so that the host can change it: see [`Paths::memory`].
    pub fn memory_in_file(mut self) -> Self {
        self.hardware.memory_in_file = true;
        self
    }

    /// The value of `crashkernel=` (if not said what is [enough](crate::arch::Arch::crashkernel)).
    pub fn crashkernel(mut self, value: &str) -> Self {
        self.crashkernel = Some(value.into());
        self
    }

    /// Boots without a crash reservation.
    pub fn no_crashkernel(mut self) -> Self {
        self.crashkernel = None;
        self
    }

    /// Adds words to the kernel command line.
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline.push(words.into());
        self
    }

    /// Puts the capture initramfs made of busybox into the guest, at [`BUSYBOX_CAPTURE`].
    pub fn busybox_capture(mut self) -> Self {
        self.busybox_capture = true;
        self
    }

    /// Its architecture.
    pub fn arch(&self) -> crate::arch::Arch {
        self.kernel.line.arch()
    }

    /// Has a network with the host, see [`Hardware::network`].
    pub fn network(mut self) -> Self {
        self.hardware.network = true;
        self.modules(&["virtio_net"])
    }

    /// Has more kernel modules at hand, with what they need.
    pub fn modules(mut self, names: &[&'static str]) -> Self {
        self.modules.extend(names);
        self
    }

    /// Puts the host's file `from` into the guest at `path`. Files of more than some KiB go in this way: the agent's
    /// serial port is slow.
    pub fn file(mut self, path: &str, mode: u32, from: &Path) -> Self {
        self.extra.push(Extra { path: path.trim_start_matches('/').into(), mode, from: from.into() });
        self
    }

    /// Puts programs of another root of the host's architecture into the guest, with their libraries.
    ///
    /// # Errors
    /// They are not there.
    pub fn programs(mut self, root: &Path, programs: &[&str]) -> Result<Self> {
        let kexec_tools = self.lab.sources.cache.kexec_tools(self.arch())?;
        for (path, from) in crate::debian::programs(root, programs)? {
            // Guests have a newer C library already.
            if !kexec_tools.join(path.trim_start_matches('/')).exists() {
                self = self.file(&path, 0o755, &from);
            }
        }
        Ok(self)
    }

    /// Has a whole Debian on the dump disk, which boots; `given` are packages and other files that lie in it, see
    /// [`DEBS`](crate::userland::DEBS).
    ///
    /// # Errors
    /// If the lab has no such Debian and cannot make one.
    pub fn debian(self, given: &[PathBuf]) -> Result<Self> {
        self.debian_with(None, given)
    }

    /// The same, where the Debian has `more`.
    ///
    /// # Errors
    /// As [`Plan::debian`].
    pub fn debian_with(mut self, more: Option<More>, given: &[PathBuf]) -> Result<Self> {
        let tell = Teller::new(&self.name);
        self.kernel = self.lab.sources.cache.userland(self.kernel.line, more, &|line| tell.say(line))?;
        self.hardware.disk_root = Some(self.lab.paths(&self.name).disk_root());
        self.given = given.to_vec();
        Ok(self.cmdline(&format!("root=LABEL={DUMP_LABEL} rw")))
    }

    /// Builds the initramfs and the disks, and boots.
    pub fn boot(mut self) -> Result<Guest> {
        let tell = Teller::new(&self.name);
        let paths = self.lab.paths(&self.name);
        crate::debian::recreate(&paths.dir)?;
        tell.say(format!("boot {}", self.kernel.release));
        if self.busybox_capture {
            let capture = paths.dir.join("capture.cpio");
            self.lab.sources.busybox_capture_initramfs(&self.kernel, &capture)?;
            self = self.file(BUSYBOX_CAPTURE, 0o644, &capture);
        }
        self.lab.sources.first_initramfs(&self.kernel, &self.modules, &self.extra, &paths.initramfs())?;
        if let Some(root) = &self.hardware.disk_root {
            let agent = self.lab.sources.dist.join(self.kernel.line.arch().name()).join("lab-agent");
            userland::stage(&self.kernel, &agent, &self.given, root)?;
        }
        let mut words = vec![
            format!("console={}", self.kernel.line.arch().console()),
            "panic=-1".into(),
            "memhp_default_state=online".into(),
        ];
        words.extend(self.crashkernel.map(|value| format!("crashkernel={value}")));
        words.extend(self.cmdline);
        let machine =
            Machine { hardware: self.hardware, kernel: self.kernel, cmdline: words.join(" "), paths };
        Guest::boot(machine, tell)
    }
}

impl Crashed {
    /// The dump; the first call takes it off the dump disk.
    pub fn dump(&self) -> Result<&Dump> {
        if let Some(dump) = self.dump.get() {
            return Ok(dump);
        }
        let dump = Dump::take(&self.paths.dump_disk(), &self.paths.dir.join("dump"))?;
        Ok(self.dump.get_or_init(|| dump))
    }

    /// Takes the dump and compares every page of the manifest with it.
    pub fn compare(&self) -> Result<(Core, Findings)> {
        let core = Core::open(&self.dump()?.vmcore()?, self.arch)?;
        let manifest =
            self.manifest.as_ref().context("no memory was filled: nothing to compare the dump with")?;
        let findings = core.compare(manifest, &self.hot_added)?;
        self.tell.say(&findings);
        Ok((core, findings))
    }

    /// What the console showed, the capture kernel's part included.
    pub fn console(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.paths.console())?).into_owned())
    }
}
