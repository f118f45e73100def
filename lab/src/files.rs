//! The initramfs images of the lab: that of a guest's first kernel, and a capture initramfs made of busybox.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;
use crate::archive::Archive;
use crate::cache::{Cache, Kernel};

/// Modules that the guests' disks need, as modprobe names them. What a kernel has built in or lacks is left out.
const MODULES: [&str; 10] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_mem",
    "ext4",
    "crc32c_generic",
    "crc32c_intel",
    "crc32c_vpmsum",
    "crc32c_cryptoapi",
    "vfat",
    "nls_ascii",
];

/// The label of the file system that dumps go to.
pub const DUMP_LABEL: &str = "lab-dumps";
/// Its UUID.
pub const DUMP_UUID: &str = "6f2d0a4c-7c0e-4a55-9a5c-2f4f1d7e0b11";

/// One more file for a guest.
#[derive(Clone, Debug)]
pub struct Extra {
    /// Where in the guest, without a slash in front.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Where on the host.
    pub from: PathBuf,
}

/// Where things come from on the host.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Kernels, kexec-tools and busybox.
    pub cache: Cache,
    /// What we build, a directory for each architecture: the static agent and hotdump. Without hotdump only kexec-tools can
    /// load.
    pub dist: PathBuf,
}

impl Sources {
    /// The initramfs of a guest's first kernel: agent, busybox, hotdump, kexec-tools, the kernel and its modules in
    /// the places where an installed system has them.
    /// `more` names modules besides the usual ones; `extra` more files: where in the guest, with which mode, from where on
    /// the host.
    pub fn first_initramfs(
        &self,
        kernel: &Kernel,
        more: &[&str],
        extra: &[Extra],
        target: &Path,
    ) -> Result<()> {
        let mut archive = Archive::default();
        for (link, to) in
            [("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")]
        {
            archive.link(link, to)?;
        }
        let arch = kernel.line.arch();
        archive.copy("init", 0o755, &self.program(arch, "lab-agent"))?;
        self.add_busybox(&mut archive, arch)?;
        self.add_kexec_tools(&mut archive, arch)?;
        let hotdump = self.program(arch, "hotdump");
        if hotdump.exists() {
            archive.copy("usr/bin/hotdump", 0o755, &hotdump)?;
        }
        archive.copy(&format!("boot/{}", kernel.image_name()), 0o644, &kernel.image())?;
        let modules = Modules::read(kernel)?;
        let directory = format!("usr/lib/modules/{}", kernel.release);
        for entry in fs::read_dir(kernel.modules())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("modules.") {
                archive.copy(&format!("{directory}/{name}"), 0o644, &entry.path())?;
            }
        }
        for path in modules.with_dependencies(&[&MODULES[..], more].concat())? {
            archive.copy(&format!("{directory}/{path}"), 0o644, &kernel.modules().join(path))?;
        }
        archive.file(
            "etc/passwd",
            0o644,
            b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        )?;
        archive.file("etc/fstab", 0o644, b"")?;
        for one in extra {
            archive.copy(&one.path, one.mode, &one.from)?;
        }
        archive.write(target)
    }

    /// A capture initramfs without hotdump: a shell script copies /proc/vmcore with dd to the dump disk, into
    /// `/crash/busybox/vmcore`. This is what proves that the lab itself can be trusted.
    pub fn busybox_capture_initramfs(&self, kernel: &Kernel, target: &Path) -> Result<()> {
        let mut archive = Archive::default();
        for (link, to) in [("bin", "usr/bin"), ("sbin", "usr/sbin")] {
            archive.link(link, to)?;
        }
        self.add_busybox(&mut archive, kernel.line.arch())?;
        for empty in ["proc", "sys", "dev", "mnt"] {
            archive.directory(empty)?;
        }
        let modules = Modules::read(kernel)?;
        let mut script = String::from(CAPTURE_SCRIPT_START);
        for path in modules.with_dependencies(&MODULES)? {
            let place = format!("modules/{path}");
            archive.copy(&place, 0o644, &kernel.modules().join(path))?;
            // busybox unpacks .ko.xz itself only for modprobe.
            script += &match place.strip_suffix(".xz") {
                Some(plain) => format!("unxz /{place} && insmod /{plain}\n"),
                None => format!("insmod /{place}\n"),
            };
        }
        script += CAPTURE_SCRIPT_END;
        archive.file("init", 0o755, script.as_bytes())?;
        archive.write(target)
    }

    fn program(&self, arch: Arch, name: &str) -> PathBuf {
        self.dist.join(arch.name()).join(name)
    }

    fn add_busybox(&self, archive: &mut Archive, arch: Arch) -> Result<()> {
        let busybox = self.cache.busybox(arch)?;
        archive.copy("usr/bin/busybox", 0o755, &busybox)?;
        let applets = crate::debian::output(arch.command(&busybox).arg("--list-full"))?;
        for path in applets.lines() {
            let Some((directory, name)) = path.rsplit_once('/') else { continue };
            let usr = if directory.ends_with("sbin") { "usr/sbin" } else { "usr/bin" };
            if name != "busybox" {
                archive.link(&format!("{usr}/{name}"), "/usr/bin/busybox")?;
            }
        }
        Ok(())
    }

    fn add_kexec_tools(&self, archive: &mut Archive, arch: Arch) -> Result<()> {
        let root = self.cache.kexec_tools(arch)?;
        let (linker, libraries) = (arch.dynamic_linker(), arch.libraries());
        archive.copy("usr/sbin/kexec", 0o755, &root.join("usr/sbin/kexec"))?;
        archive.copy(linker, 0o755, &root.join(linker))?;
        for entry in fs::read_dir(root.join(libraries))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            archive.copy(&format!("{libraries}/{name}"), 0o755, &entry.path())?;
        }
        Ok(())
    }
}

const CAPTURE_SCRIPT_START: &str = "\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
";

const CAPTURE_SCRIPT_END: &str = "\
mount -t ext4 $(findfs LABEL=lab-dumps) /mnt
mkdir -p /mnt/crash/busybox
if dd if=/proc/vmcore of=/mnt/crash/busybox/vmcore bs=1M; then
    echo lab: dump saved
else
    echo lab: dump failed
fi
umount /mnt
sync
reboot -f
";

/// What modules.dep says.
struct Modules {
    dep: String,
}

impl Modules {
    fn read(kernel: &Kernel) -> Result<Modules> {
        let path = kernel.modules().join("modules.dep");
        let dep = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        ensure!(!dep.is_empty(), "{} is empty: fetch the kernel again", path.display());
        Ok(Modules { dep })
    }

    /// The files of `names` and of what they need, in the order to load them.
    fn with_dependencies(&self, names: &[&str]) -> Result<Vec<&str>> {
        let mut order: Vec<&str> = Vec::new();
        for line in self.dep.lines() {
            let Some((path, needs)) = line.split_once(':') else { continue };
            let file = path.rsplit('/').next().unwrap_or(path);
            let name = file.split('.').next().unwrap_or(file).replace('-', "_");
            if !names.contains(&name.as_str()) {
                continue;
            }
            for path in needs.split_whitespace().rev().chain([path]) {
                if !order.contains(&path) {
                    order.push(path);
                }
            }
        }
        Ok(order)
    }
}

#[cfg(test)]
mod tests {
    use super::Modules;

    #[test]
    fn modules_come_after_what_they_need() {
        let dep = "kernel/a.ko.xz: kernel/b.ko.xz kernel/c-c.ko.xz\nkernel/b.ko.xz: kernel/c-c.ko.xz\nkernel/c-c.ko.xz:\n";
        let modules = Modules { dep: dep.into() };
        let order = modules.with_dependencies(&["a", "c_c"]).unwrap();
        assert_eq!(order, ["kernel/c-c.ko.xz", "kernel/b.ko.xz", "kernel/a.ko.xz"]);
        assert_eq!(modules.with_dependencies(&["c_c"]).unwrap(), ["kernel/c-c.ko.xz"]);
    }
}
