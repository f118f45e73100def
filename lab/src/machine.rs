//! The virtual machine: what it is made of, and QEMU's command line for that.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;
use crate::cache::Kernel;
use crate::debian;
use crate::files::{DUMP_LABEL, DUMP_UUID};

/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// The serial number of the disk that the agent writes the manifest to.
pub const MANIFEST_DISK: &str = "manifest";
const MANIFEST_BYTES: u64 = 256 * MIB;

/// Where a disk that fails does so first, and at what distances from there on, in bytes.
pub const GOOD_BYTES: u64 = 96 * MIB;
const BETWEEN_BAD: u64 = 64 * MIB;
/// Sectors that it takes no write for.
const BAD_SECTORS: u64 = 64;

/// What starts the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF.
    Uefi,
}

/// How the guest's clock runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// With the host's.
    Real,
    /// By the number of instructions executed: repeats within a percent, on any host. No CPU can be added then.
    Instructions,
}

/// Hardware, and what boots on it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What it is made of.
    pub hardware: Hardware,
    /// The kernel that it boots, with the initramfs of `paths`.
    pub kernel: Kernel,
    /// The kernel's command line.
    pub cmdline: String,
    /// Its files.
    pub paths: Paths,
}

/// Where a guest begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// With the firmware.
    Boot,
    /// Where a guest of the same hardware was frozen, see [`Paths::frozen`].
    Frozen,
    /// With the firmware, and the disks as the guest before left them.
    Again,
}

/// What a guest's machine is made of.
#[derive(Clone, Debug)]
pub struct Hardware {
    /// Its architecture.
    pub arch: Arch,
    /// Memory at boot in bytes.
    pub memory: u64,
    /// CPUs at boot; places for two more are free.
    pub cpus: u32,
    /// What starts the kernel.
    pub firmware: Firmware,
    /// How the guest's clock runs.
    pub clock: Clock,
    /// Keep the memory in a file that the host can write to, see [`Paths::memory`].
    pub memory_in_file: bool,
    /// Size of the dump disk in bytes.
    pub dump_disk: u64,
    /// The dump disk takes nothing for some sectors from [`GOOD_BYTES`] on: a write there is an error.
    pub failing_disk: bool,
    /// A boot loader that QEMU starts as it starts a kernel, and that finds kernel, initramfs and command line on the dump disk; none: QEMU is
    /// given those.
    pub boot_loader: Option<PathBuf>,
    /// The directory that the dump disk begins as; none: it is empty.
    pub disk_root: Option<PathBuf>,
    /// Memory modules that are there at boot besides the memory, by their sizes in bytes. The kernel takes them for
    /// hot-added ones.
    pub dimms: Vec<u64>,
    /// Has a network interface in a network with the host alone, which the guest reaches as 10.0.2.2.
    pub network: bool,
}

impl Hardware {
    /// The usual machine of an architecture.
    pub fn of_arch(arch: Arch) -> Hardware {
        Hardware {
            arch,
            memory: arch.memory(),
            cpus: 2,
            firmware: Firmware::Bios,
            clock: Clock::Real,
            memory_in_file: false,
            dump_disk: 16 * GIB,
            failing_disk: false,
            boot_loader: None,
            disk_root: None,
            dimms: Vec::new(),
            network: false,
        }
    }
}

/// Where a guest's files are on the host.
#[derive(Clone, Debug)]
pub struct Paths {
    /// Their directory.
    pub dir: PathBuf,
    /// The directory of its sockets: a short one, because a socket's path may have 107 bytes only.
    pub sockets: PathBuf,
}

impl Paths {
    /// What the guest writes to its first serial port.
    pub fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// What QEMU itself says.
    pub fn qemu_log(&self) -> PathBuf {
        self.dir.join("qemu.log")
    }

    /// The registers of a guest that did not come to its end.
    pub fn registers(&self) -> PathBuf {
        self.dir.join("registers.txt")
    }

    /// The first kernel's initramfs.
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("first.cpio")
    }

    /// The disk that dumps go to.
    pub fn dump_disk(&self) -> PathBuf {
        self.dir.join("dump.img")
    }

    /// The disk with the manifest.
    pub fn manifest_disk(&self) -> PathBuf {
        self.dir.join("manifest.img")
    }

    /// What the dump disk begins as, where it is more than empty.
    pub fn disk_root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The guest's memory where [`Hardware::memory_in_file`] is set: up to 2 GiB, a physical address is an offset.
    pub fn memory(&self) -> PathBuf {
        self.dir.join("memory.img")
    }

    /// The guest's state, where it was frozen.
    pub fn frozen(&self) -> PathBuf {
        self.dir.join("frozen")
    }

    /// QEMU's control channel.
    pub fn qmp_socket(&self) -> PathBuf {
        self.sockets.join("qmp")
    }

    /// The agent's serial port.
    pub fn agent_socket(&self) -> PathBuf {
        self.sockets.join("agent")
    }

    fn uefi_variables(&self) -> PathBuf {
        self.dir.join("uefi-variables.fd")
    }

    /// Removes what is large and of use to nobody after the guest's end.
    pub fn remove_images(&self) {
        for path in [
            self.initramfs(),
            self.dump_disk(),
            self.manifest_disk(),
            self.memory(),
            self.frozen(),
            self.uefi_variables(),
        ] {
            // It may never have been made.
            let _ = fs::remove_file(path);
        }
        for dir in [self.disk_root(), self.sockets.clone()] {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

impl Hardware {
    /// Makes the disks.
    pub fn make_disks(&self, paths: &Paths) -> Result<()> {
        let dump = paths.dump_disk();
        File::create(&dump)?.set_len(self.dump_disk)?;
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args([
            "-q",
            "-F",
            "-L",
            DUMP_LABEL,
            "-U",
            DUMP_UUID,
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1",
        ]);
        if let Some(root) = &self.disk_root {
            mkfs.arg("-d").arg(root);
        }
        debian::run(mkfs.arg(&dump).env("PATH", crate::cache::sbin_path()))?;
        File::create(paths.manifest_disk())?.set_len(MANIFEST_BYTES)?;
        Ok(())
    }

    fn command(&self, paths: &Paths, kernel: &Path, cmdline: &str) -> Result<Command> {
        // However the lab ends, the guest ends with it.
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            self.arch.qemu(),
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
        ]);
        self.arch.machine(self, &mut command);
        let bytes = self.memory;
        let backend = if self.memory_in_file {
            format!("memory-backend-file,id=ram,share=on,size={bytes},mem-path={}", text(&paths.memory())?)
        } else {
            format!("memory-backend-ram,id=ram,size={bytes}")
        };
        command.args(["-object", &backend]);
        command.args(["-m", &format!("{}M,slots=8,maxmem={}M", bytes / MIB, (bytes + 16 * GIB) / MIB)]);
        for (number, dimm) in self.dimms.iter().enumerate() {
            command.args(["-object", &format!("memory-backend-ram,id=early{number},size={dimm}")]);
            command.args(["-device", &format!("pc-dimm,memdev=early{number}")]);
        }
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", text(&paths.qmp_socket())?)]);
        command.args(["-serial", &format!("file:{}", text(&paths.console())?)]);
        command.args(["-serial", &format!("unix:{},server=on,wait=off", text(&paths.agent_socket())?)]);
        for (serial, path) in [("dump", paths.dump_disk()), (MANIFEST_DISK, paths.manifest_disk())] {
            let mut drive = format!("if=none,id={serial},format=raw,cache=unsafe");
            if self.failing_disk && serial != MANIFEST_DISK {
                drive += &format!(
                    ",file.driver=blkdebug,file.image.driver=file,file.image.filename={}",
                    text(&path)?
                );
                for number in 0..BAD_SECTORS {
                    let rule = format!("file.inject-error.{number}");
                    let sector = (GOOD_BYTES + number * BETWEEN_BAD) / 512;
                    drive += &format!(
                        ",{rule}.event=none,{rule}.iotype=write,{rule}.errno=5,{rule}.sector={sector}"
                    );
                }
            } else {
                drive += &format!(",file={}", text(&path)?);
            }
            command.args([
                "-drive",
                &drive,
                "-device",
                &format!("virtio-blk-pci,drive={serial},serial={serial}"),
            ]);
        }
        if self.network {
            command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]);
        }
        if self.firmware == Firmware::Uefi {
            let (code, variables) = ovmf()?;
            fs::copy(&variables, paths.uefi_variables())?;
            let code = format!("if=pflash,unit=0,format=raw,readonly=on,file={}", text(&code)?);
            let variables = format!("if=pflash,unit=1,format=raw,file={}", text(&paths.uefi_variables())?);
            command.args(["-drive", &code, "-drive", &variables]);
        }
        match &self.boot_loader {
            Some(loader) => command.args(["-kernel", text(loader)?]),
            None => {
                let initramfs = paths.initramfs();
                command.args(["-kernel", text(kernel)?, "-initrd", text(&initramfs)?, "-append", cmdline])
            }
        };
        Ok(command)
    }
}

impl Machine {
    /// Starts QEMU; the disks must be there.
    pub fn start(&self, from: From) -> Result<Child> {
        let Machine { hardware, kernel, cmdline, paths } = self;
        let mut command = hardware.command(paths, &kernel.image(), cmdline)?;
        if from == From::Frozen {
            command.args(["-incoming", &format!("file:{}", text(&paths.frozen())?)]);
        }
        fs::write(paths.dir.join("qemu.cmd"), format!("{command:?}\n"))?;
        let log = File::create(paths.qemu_log())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| {
            format!(
                "starting QEMU: is {} installed? (`cargo xtask setup`)",
                hardware.arch.guest_packages()[0]
            )
        })
    }
}

/// OVMF's code and its template of variables.
fn ovmf() -> Result<(PathBuf, PathBuf)> {
    let pairs = [("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd")];
    let pairs = pairs.map(|(code, vars)| [code, vars].map(|name| Path::new("/usr/share/OVMF").join(name)));
    let found = pairs.into_iter().find(|pair| pair.iter().all(|path| path.exists()));
    let [code, variables] =
        found.context("no UEFI firmware in /usr/share/OVMF: install ovmf (`cargo xtask setup`)")?;
    Ok((code, variables))
}

fn text(path: &Path) -> Result<&str> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    // QEMU splits its options at commas.
    ensure!(!text.contains(','), "{text} has a comma in it: QEMU cannot take such a path");
    Ok(text)
}
