//! A whole Debian for guests: systemd, udev, the line's kernel, and what DKMS needs to build modules for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{Cache, Kernel, KernelLine};
use crate::debian;

/// Set up, and not only extracted. A newcomer's machine has more; what is ours has to say what it needs.
const PACKAGES: [&str; 12] = [
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "kmod",
    "procps",
    "e2fsprogs",
    "dkms",
    "gcc",
    "make",
    "linux-image-amd64",
    "linux-headers-amd64",
];

/// What a root of another recipe has besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct More {
    /// What the root is called by, behind the line's name.
    pub name: &'static str,
    /// Packages.
    pub packages: &'static [&'static str],
}

/// Debian's own kdump service, as it is installed.
pub const KDUMP_TOOLS: More =
    More { name: "kdump-tools", packages: &["kdump-tools", "makedumpfile", "perl"] };

/// dracut in place of initramfs-tools.
pub const DRACUT: More = More { name: "dracut", packages: &["dracut"] };

/// What dumps are read with.
pub const DEBUGGERS: More = More { name: "debuggers", packages: &["crash", "python3-drgn"] };

/// What boots by itself: a boot loader, and an initramfs for it.
pub const GRUB: More =
    More { name: "grub", packages: &["grub-common", "grub2-common", "grub-pc-bin", "initramfs-tools"] };

/// Where the packages that a guest is to install lie in it, and what else is given to it.
pub const DEBS: &str = "/root/debs";

/// The lab's agent as a service of the guest. What fills memory must not be what the kernel kills when memory is short.
const AGENT_UNIT: &str = "\
[Unit]
Description=The lab's agent
After=sysinit.target

[Service]
ExecStart=/usr/local/sbin/lab-agent
OOMScoreAdjust=-1000
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=multi-user.target
";

/// What images for clouds bring: CPUs that are plugged in are switched on.
const CPU_RULE: &str = "SUBSYSTEM==\"cpu\", ACTION==\"add\", TEST==\"online\", ATTR{online}=\"1\"\n";

impl Cache {
    /// The root of a whole Debian of the line's suite, with `more` or without, which is made where it is not there yet, and the kernel in it.
    ///
    /// # Errors
    /// If it cannot be made: as root only, because its packages are set up.
    pub fn userland(&self, line: KernelLine, more: Option<More>, say: &dyn Fn(String)) -> Result<Kernel> {
        let _one_at_a_time = self.lock()?;
        let name = match more {
            Some(more) => format!("{}-{}", line.name(), more.name),
            None => line.name().to_owned(),
        };
        let root = self.dir().join("userland").join(&name);
        let packages = [PACKAGES.as_slice(), more.map_or(&[], |more| more.packages)].concat();
        let recipe = packages.join("\n");
        let made_by = made_by(&root);
        if !root.exists() || fs::read_to_string(&made_by).ok().as_ref() != Some(&recipe) {
            say(format!("Debian {}: making a whole one", line.suite()));
            let new = self.dir().join("userland").join(format!("new-{name}"));
            debian::recreate(&new)?;
            debian::make_system(line.suite(), &packages, &new)?;
            crate::cache::put_in_place(&new, &root)?;
            fs::write(&made_by, recipe)?;
        }
        Kernel::in_dir(line, &root)
    }
}

/// Where it is written down what the root `root` was made of: beside it, by its whole name, which has a dot.
fn made_by(root: &Path) -> PathBuf {
    let mut path = root.as_os_str().to_owned();
    path.push(".recipe");
    path.into()
}

/// Makes `target` the root of a guest's disk: that of the kernel, the agent as a service, and `given` in [`DEBS`]. Files that do not change are shared with the cache, by links.
pub(crate) fn stage(kernel: &Kernel, agent: &Path, given: &[PathBuf], target: &Path) -> Result<()> {
    if target.exists() {
        fs::remove_dir_all(target)?;
    }
    debian::run(Command::new("cp").arg("--archive").arg("--link").arg(kernel.root()).arg(target))?;
    let put = |path: &str, text: &str| {
        let path = target.join(path);
        // Not written over: the cache has the same file.
        let _ = fs::remove_file(&path);
        fs::create_dir_all(path.parent().context("a file in a root has a directory")?)?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    put("etc/systemd/system/lab-agent.service", AGENT_UNIT)?;
    put("etc/udev/rules.d/40-lab-cpu.rules", CPU_RULE)?;
    put("etc/fstab", "LABEL=lab-dumps / ext4 errors=remount-ro 0 1\n")?;
    put("etc/hostname", "lab\n")?;
    put("etc/machine-id", "5f0d1c2b3a49586776859403a2b1c0de\n")?;
    let wants = target.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    std::os::unix::fs::symlink("/etc/systemd/system/lab-agent.service", wants.join("lab-agent.service"))?;
    fs::copy(agent, target.join("usr/local/sbin/lab-agent"))?;
    let place = target.join(&DEBS[1..]);
    fs::create_dir_all(&place)?;
    for one in given {
        let name = one.file_name().context("a file has a name")?;
        fs::copy(one, place.join(name)).with_context(|| format!("copying {}", one.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_root_has_a_recipe_of_its_own() {
        assert_eq!(made_by(Path::new("userland/6.1")), Path::new("userland/6.1.recipe"));
        assert_eq!(made_by(Path::new("userland/6.12")), Path::new("userland/6.12.recipe"));
    }
}
