//! From what was asked for to the archive's bytes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::archive::{self, Archive};
use super::builder::{self, Builder, Parts};
use super::destination::Destination;
use super::machine;
use super::modules::{Index, ModuleError, Plan};
use super::program::{self, Needs};
use super::unpack::read_module;
use super::{Args, Compression, Content, Expected, Report};
use crate::capture::{CONFIG_PATH, Config};

const ROOT: &str = "/";
/// Where init mounts things, besides /dev.
const MOUNT_POINTS: [&str; 4] = ["proc", "run", "sys", "tmp"];

/// Builds the initramfs that `args` asks for; returns its bytes and what is in it.
pub(super) fn build(args: &Args) -> anyhow::Result<(Vec<u8>, Report)> {
    let mut destination = Destination::find(args)?;
    let mut warnings = std::mem::take(&mut destination.warnings);
    let release = release(args)?;
    if args.builder != Builder::Own {
        let (bytes, unpacked, config) = build_by_distribution(args, &destination, &release)?;
        let report = report(args, config, release, &bytes, unpacked, warnings);
        return Ok((bytes, report));
    }
    let dir = modules_dir(args, &release)?;
    let index = Index::read(&dir)?;
    let mut plan = plan_modules(&index, &destination, &release, &mut warnings)?;
    for module in &args.add_modules {
        index.add(&mut plan, module).context("--add-module")?;
    }
    let mut archive = Archive::default();
    let modules = put_modules(&mut archive, &dir, &release, &plan)?;
    put_program(&mut archive, &args.program)?;
    let command = put_command(&mut archive, args.command.as_deref())?;
    let programs: BTreeSet<&str> = destination.programs.iter().copied().collect();
    for name in programs {
        let path = program::find_command(name)
            .with_context(|| format!("the target needs the program {name}, which is not installed"))?;
        put_file(&mut archive, &path, &path)?;
    }
    for (path, mode, data) in std::mem::take(&mut destination.files) {
        archive.file(path, mode, data);
    }
    for include in &args.includes {
        put_include(&mut archive, include)?;
    }

    let config = Config {
        modules: modules.iter().map(|module| PathBuf::from(format!("/{}", module.path))).collect(),
        command,
        ..configured(args, std::mem::take(&mut destination.config))
    };
    archive.file(CONFIG_PATH, 0o600, config.to_toml()?.into_bytes());
    MOUNT_POINTS.iter().for_each(|point| archive.directory(point));
    // The kernel opens init's console before /dev is mounted.
    archive.char_device("dev/console", 5, 1);

    let compression = compression(args.compress, &kernel_config(&dir, &release))?;
    let files = archive.files().filter(|(path, _)| modules.iter().all(|module| module.path != *path));
    let files = files.map(|(path, size)| Content { path: path.to_owned(), size }).collect();
    let unpacked = archive.pack()?;
    let unpacked_size = unpacked.len();
    let bytes = archive::compress(unpacked, compression)?;
    let report = Report {
        compression: Some(compression),
        modules,
        files,
        ..report(args, config, release, &bytes, unpacked_size, warnings)
    };
    Ok((bytes, report))
}

/// What `args` say of the capture itself, put into the configuration of the target.
fn configured(args: &Args, target: Config) -> Config {
    Config {
        final_action: args.final_action,
        failure_action: args.failure_action,
        dump_level: args.dump_level,
        format: args.format,
        compression: args.compression,
        keep: args.keep,
        keep_free: args.keep_free,
        ..target
    }
}

/// The report, but for lists of what is in the initramfs.
fn report(
    args: &Args,
    config: Config,
    release: String,
    bytes: &[u8],
    unpacked: usize,
    warnings: Vec<String>,
) -> Report {
    Report {
        output: args.output.clone(),
        written: true,
        size: bytes.len(),
        unpacked,
        compression: None,
        builder: args.builder,
        kernel_release: release,
        target: config.target,
        fs: config.fs,
        path: config.path,
        network: config.network,
        local_log: config.local_log,
        final_action: args.final_action,
        failure_action: args.failure_action,
        dump_level: args.dump_level.number(),
        format: args.format,
        compression_of_dump: args.compression.to_string(),
        command: config.command,
        modules: Vec::new(),
        files: Vec::new(),
        warnings,
    }
}

/// Has the distribution's tools build it; returns the initramfs, the bytes of what is in it, and the capture's configuration.
fn build_by_distribution(
    args: &Args,
    destination: &Destination,
    release: &str,
) -> anyhow::Result<(Vec<u8>, usize, Config)> {
    let own = [
        ("--command", args.command.is_some()),
        ("--include", !args.includes.is_empty()),
        ("--compress", args.compress.is_some()),
        ("--modules-dir", args.modules_dir.is_some()),
    ];
    if let Some((option, _)) = own.iter().find(|(_, given)| *given) {
        bail!("{option} is for --builder own: the distribution's tools have settings of their own");
    }
    let config = configured(args, destination.config.clone());
    // The distribution's tools know of disks; a watchdog that runs would end the capture.
    let watchdogs = machine::watchdogs(Path::new(ROOT));
    let devices = watchdogs.iter().chain(&destination.devices);
    // The bus before what is on it.
    let drivers = devices.flat_map(|device| machine::drivers(device).into_iter().rev());
    let drivers = drivers.filter_map(|driver| driver.module);
    let modules: Vec<String> = drivers.chain(args.add_modules.iter().cloned()).collect();
    let bytes =
        builder::build(args.builder, &Parts { config: &config, destination, modules: &modules }, release)?;
    let files = archive::read(bytes.clone()).context("reading back what was built")?;
    let needed = ["usr/sbin/hotdump", CONFIG_PATH.trim_start_matches('/')];
    if let Some(missing) = needed.iter().find(|path| files.iter().all(|file| file.path != **path)) {
        bail!("/{missing} is not in what was built: are hotdump's hooks installed (make install)?");
    }
    Ok((bytes, files.iter().map(|file| file.data.len()).sum(), config))
}

/// What an initramfs for the target of `config` and the kernel `release` would have, written now.
///
/// # Errors
/// What could not be found on the machine.
pub(crate) fn expected(config: &Config, release: &str) -> anyhow::Result<Expected> {
    let destination = Destination::of_config(config)?;
    let mut warnings = Vec::new();
    let plan =
        plan_modules(&Index::read(&find_modules_dir(release)?)?, &destination, release, &mut warnings)?;
    let modules = plan.files().iter().map(|file| archived_path(release, file)).collect();
    Ok(Expected { modules, warnings, network: destination.config.network })
}

fn release(args: &Args) -> anyhow::Result<String> {
    match &args.kernel_release {
        Some(release) => Ok(release.clone()),
        None => running_release(),
    }
}

fn running_release() -> anyhow::Result<String> {
    Ok(host::Host::live().kernel_release()?)
}

fn modules_dir(args: &Args, release: &str) -> anyhow::Result<PathBuf> {
    args.modules_dir.clone().map_or_else(|| find_modules_dir(release), Ok)
}

fn find_modules_dir(release: &str) -> anyhow::Result<PathBuf> {
    let dirs = ["/lib/modules", "/usr/lib/modules"].map(|dir| Path::new(dir).join(release));
    match dirs.iter().find(|dir| dir.join("modules.dep").is_file()) {
        Some(dir) => Ok(dir.clone()),
        None => bail!(
            "no modules.dep for kernel {release} in {}: install that kernel's modules, or name another kernel by \
             --kernel-release or --modules-dir",
            dirs.map(|dir| dir.display().to_string()).join(" or ")
        ),
    }
}

/// The modules that saving to the target takes, in the order in which they are to be loaded.
fn plan_modules(
    index: &Index,
    destination: &Destination,
    release: &str,
    warnings: &mut Vec<String>,
) -> anyhow::Result<Plan> {
    let root = Path::new(ROOT);
    let mut plan = Plan::default();
    // It must be there before the crashed kernel's memory is first looked at.
    if machine::has_virtio_mem(root) {
        index.add(&mut plan, "virtio_mem")?;
    }
    let same_kernel = running_release().is_ok_and(|running| running == release);
    let watchdogs = machine::watchdogs(root);
    let devices = watchdogs.iter().chain(&destination.devices);
    // The bus before what is on it.
    let drivers = devices.map(|device| (device, machine::drivers(device)));
    let drivers =
        drivers.flat_map(|(device, drivers)| drivers.into_iter().rev().map(move |driver| (device, driver)));
    for (device, driver) in drivers {
        let by_name = match &driver.module {
            Some(module) => index.add(&mut plan, module),
            None if same_kernel => continue,
            None => Err(ModuleError::Unknown { name: String::new() }),
        };
        // Another kernel may have the driver under another name.
        if let (Err(error), alias) = (by_name, &driver.modalias)
            && alias.as_ref().is_none_or(|alias| index.add(&mut plan, alias).is_err())
            && driver.module.is_some()
        {
            warnings.push(format!("a driver of {} is left out: {error}", device.display()));
        }
    }
    for module in &destination.modules {
        index.add(&mut plan, module).context("the target's filesystem")?;
    }
    destination.wanted.iter().for_each(|name| index.add_if_known(&mut plan, name));
    Ok(plan)
}

/// Puts the modules in, unpacked, under the path that they have on disk.
fn put_modules(
    archive: &mut Archive,
    dir: &Path,
    release: &str,
    plan: &Plan,
) -> anyhow::Result<Vec<Content>> {
    let mut modules = Vec::new();
    for file in plan.files() {
        let from = dir.join(file);
        let data = read_module(&from).with_context(|| {
            format!(
                "cannot read the module {}, which modules.dep lists; was depmod run after it went?",
                from.display()
            )
        })?;
        let path = archived_path(release, file);
        modules.push(Content { path: path.clone(), size: data.len() });
        archive.file(&path, 0o644, data);
    }
    Ok(modules)
}

/// Where a module goes in the archive.
fn archived_path(release: &str, file: &Path) -> String {
    format!("lib/modules/{release}/{}", unpacked_name(file))
}

/// A module's path without the ending of its packing.
fn unpacked_name(file: &Path) -> String {
    let name = file.to_string_lossy();
    match name.rfind(".ko") {
        Some(at) => name.get(..at + 3).unwrap_or(&name).to_owned(),
        None => name.into_owned(),
    }
}

fn put_program(archive: &mut Archive, path: &Path) -> anyhow::Result<()> {
    let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    match Needs::read(&data) {
        None => bail!("{} is no program of this architecture", path.display()),
        Some(needs) if !needs.is_static() => bail!(
            "{} is not static, and the capture kernel has no libraries: build hotdump by `make build`, or name a static one with \
             --program",
            path.display()
        ),
        Some(_) => {}
    }
    archive.file("init", 0o755, data);
    // For use by hand, in a shell of the capture kernel.
    archive.link("bin/hotdump", "/init");
    Ok(())
}

/// Puts the user's command in, with its libraries; returns it with its program's path.
fn put_command(archive: &mut Archive, command: Option<&str>) -> anyhow::Result<Vec<String>> {
    let mut words: Vec<String> =
        command.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect();
    if command.is_some() && !words.iter().any(|word| word.contains("{output}")) {
        bail!("--command has no {{output}}: it stands for the file that the command is to write");
    }
    if let Some(program) = words.first_mut() {
        let path = program::find_command(program).with_context(|| {
            format!("--command: there is no program {program}; name it by its whole path")
        })?;
        *program = path.display().to_string();
        put_file(archive, &path, &path)?;
    }
    Ok(words)
}

/// Puts a file in as `FILE[:DEST]` asks, and the libraries of a program.
fn put_include(archive: &mut Archive, include: &str) -> anyhow::Result<()> {
    let (from, to) = include.split_once(':').unwrap_or((include, include));
    let to = Path::new(to);
    if !to.is_absolute() || to.components().any(|part| part == std::path::Component::ParentDir) {
        bail!("--include {include}: {} is no absolute path; write FILE:/DEST", to.display());
    }
    put_file(archive, Path::new(from), to)
}

fn put_file(archive: &mut Archive, from: &Path, to: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let read =
        || Ok::<_, std::io::Error>((fs::read(from)?, fs::metadata(from)?.permissions().mode() & 0o755));
    let (data, mode) = read().with_context(|| format!("cannot read {}", from.display()))?;
    for (path, library) in program::libraries(from, &data)? {
        let path = path.to_string_lossy();
        if !archive.holds(&path) {
            archive.file(&path, 0o755, library);
        }
    }
    let to = to.to_string_lossy();
    if to.trim_matches('/').is_empty() || archive.holds(&to) {
        bail!("{} cannot go to {to}: something else is there", from.display());
    }
    archive.file(&to, mode, data);
    Ok(())
}

/// The kernel's configuration, where it is to be found; empty where not.
fn kernel_config(dir: &Path, release: &str) -> String {
    let places = [PathBuf::from(format!("/boot/config-{release}")), dir.join("config")];
    places.iter().find_map(|path| fs::read_to_string(path).ok()).unwrap_or_default()
}

/// What the capture kernel unpacks: gzip if that is known, else nothing packed at all.
fn compression(asked: Option<Compression>, config: &str) -> anyhow::Result<Compression> {
    let unpacks = |option: &str| config.lines().any(|line| line.strip_suffix("=y") == Some(option));
    let option = match asked {
        None if unpacks("CONFIG_RD_GZIP") => return Ok(Compression::Gzip),
        None | Some(Compression::None) => return Ok(Compression::None),
        Some(Compression::Gzip) => "CONFIG_RD_GZIP",
        Some(Compression::Zstd) => "CONFIG_RD_ZSTD",
    };
    if !config.is_empty() && !unpacks(option) {
        bail!("the capture kernel does not unpack that compression: its configuration has no {option}=y");
    }
    Ok(asked.unwrap_or(Compression::None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_is_what_the_kernel_unpacks() {
        let both = "CONFIG_RD_GZIP=y\nCONFIG_RD_ZSTD=y\n";
        let none = "# CONFIG_RD_GZIP is not set\nCONFIG_RD_XZ=y\n";
        for (asked, config, want) in [
            (None, both, Some(Compression::Gzip)),
            (None, none, Some(Compression::None)),
            (None, "", Some(Compression::None)),
            (Some(Compression::Zstd), both, Some(Compression::Zstd)),
            (Some(Compression::Zstd), "", Some(Compression::Zstd)),
            (Some(Compression::Zstd), none, None),
            (Some(Compression::None), none, Some(Compression::None)),
        ] {
            assert_eq!(compression(asked, config).ok(), want, "{asked:?} {config}");
        }
    }

    #[test]
    fn a_module_that_is_listed_and_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("modules.dep"), "kernel/fs/gone.ko.xz:\n").unwrap();
        let mut plan = Plan::default();
        Index::read(dir.path()).unwrap().add(&mut plan, "gone").unwrap();
        let error = put_modules(&mut Archive::default(), dir.path(), "6.12", &plan).unwrap_err();
        assert!(error.to_string().contains("kernel/fs/gone.ko.xz"), "{error:#}");
    }

    #[test]
    fn modules_go_in_unpacked_under_their_own_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("modules.dep"), "a.ko:b.ko\nb.ko:\n").unwrap();
        for name in ["a.ko", "b.ko"] {
            fs::write(dir.path().join(name), b"\x7fELF module").unwrap();
        }
        let mut plan = Plan::default();
        Index::read(dir.path()).unwrap().add(&mut plan, "a").unwrap();
        let mut archive = Archive::default();
        let modules = put_modules(&mut archive, dir.path(), "6.12", &plan).unwrap();
        let paths: Vec<_> = modules.iter().map(|module| module.path.as_str()).collect();
        assert_eq!(paths, ["lib/modules/6.12/b.ko", "lib/modules/6.12/a.ko"]);
        assert!(paths.iter().all(|path| archive.holds(path)));
        assert_eq!(unpacked_name(Path::new("kernel/fs/x.ko.zst")), "kernel/fs/x.ko");
    }

    #[test]
    fn includes_need_a_whole_destination() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let from = file.path().display();
        let mut archive = Archive::default();
        put_include(&mut archive, &format!("{from}:/etc/x")).unwrap();
        assert!(archive.holds("/etc/x"));
        for wrong in
            [format!("{from}:x"), format!("{from}:/a/../b"), format!("{from}:/etc/x"), "/no/such".into()]
        {
            put_include(&mut archive, &wrong).unwrap_err();
        }
    }

    #[test]
    fn a_command_must_say_where_its_output_goes_and_be_there() {
        let mut archive = Archive::default();
        for wrong in ["sh -c true", "no-such-program {output}"] {
            put_command(&mut archive, Some(wrong)).unwrap_err();
        }
        let words = put_command(&mut archive, Some("sh {vmcore} {output}")).unwrap();
        assert!(archive.holds(&words[0]) && words[0].ends_with("/sh"), "{words:?}");
        assert_eq!(put_command(&mut archive, None).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn only_a_static_program_can_be_init() {
        let sh = program::find_command("sh").unwrap();
        let is_static = Needs::read(&fs::read(&sh).unwrap()).unwrap().is_static();
        assert_eq!(put_program(&mut Archive::default(), &sh).is_ok(), is_static);
        let script = tempfile::NamedTempFile::new().unwrap();
        put_program(&mut Archive::default(), script.path()).unwrap_err();
    }
}
