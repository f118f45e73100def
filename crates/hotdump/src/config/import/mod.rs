//! `hotdump config import`: a configuration out of another kdump service's, and an account of every line of it.

mod kdump_conf;
mod kdump_tools;

use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::Serialize;
use toml::Value;
use vmcore::dump::Format;

use super::document;
use super::file::{Setting, checked};
use super::keys;
use crate::text::{counted, print, print_json, tell};
use crate::{cli, makedumpfile};

/// Options of `hotdump config import`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// What to import: /etc/kdump.conf (Fedora and its relatives) or /etc/default/kdump-tools (Debian and its relatives)
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Whose file it is [default: found from what is in it]
    #[arg(long, value_enum)]
    from: Option<Origin>,
    /// Write the configuration to this file, which must not be there yet [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print the account as JSON on standard output, without the configuration unless --output takes it
    #[arg(long)]
    json: bool,
}

/// Whose file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Origin {
    /// Fedora's kdump.conf
    KdumpConf,
    /// Debian's kdump-tools
    KdumpTools,
}

impl Origin {
    /// Debian's file is a shell's: its lines are assignments.
    fn of(text: &str) -> Self {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let assignment = |line: &str| kdump_tools::assignment(line).is_some();
        if lines.next().is_some_and(assignment) { Self::KdumpTools } else { Self::KdumpConf }
    }
}

/// What a line says, in hotdump's words.
#[derive(Debug, Clone, PartialEq)]
enum Meaning {
    /// Keys and their values.
    Keys(Vec<(&'static str, Value)>),
    /// Nothing to set: hotdump does so anyway, for this reason.
    Anyway(String),
    /// What hotdump cannot say, and why, or what to do in its place.
    Not(String),
}

impl Meaning {
    /// One key with a text.
    fn text(key: &'static str, value: impl Into<String>) -> Self {
        Self::Keys(vec![(key, Value::String(value.into()))])
    }

    fn anyway(why: impl Into<String>) -> Self {
        Self::Anyway(why.into())
    }

    fn not(why: impl Into<String>) -> Self {
        Self::Not(why.into())
    }
}

/// What became of a line.
#[derive(Debug, Serialize)]
struct Account {
    line: usize,
    text: String,
    outcome: Outcome,
    /// What was set: TOML lines.
    set: Vec<String>,
    /// Why nothing was, or not all.
    reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    /// Taken over.
    Taken,
    /// Nothing to take over.
    Anyway,
    /// Not taken over.
    Not,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.outcome {
            Outcome::Taken => "taken over",
            Outcome::Anyway => "nothing to take over",
            Outcome::Not => "NOT taken over",
        };
        write!(f, "{}: {}\n    {what}", self.line, self.text)?;
        if !self.set.is_empty() {
            write!(f, ": {}", self.set.join(", "))?;
        }
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {reason}"))
    }
}

/// The account, for programs.
#[derive(Debug, Serialize)]
struct Report {
    from: Origin,
    lines: Vec<Account>,
}

/// A configuration in the making.
struct Import {
    program: clap::Command,
    settings: Vec<Setting>,
    lines: Vec<Account>,
}

impl Import {
    /// Takes over what a line means, as far as hotdump's options take the values and no line before has said otherwise.
    fn take(&mut self, line: usize, text: &str, meaning: Meaning) {
        let mut account =
            Account { line, text: text.to_owned(), outcome: Outcome::Not, set: Vec::new(), reason: None };
        match meaning {
            Meaning::Keys(keys) => match self.settings_of(keys, line) {
                Ok(settings) => {
                    account.outcome = Outcome::Taken;
                    let told = |setting: &Setting| format!("{} = {}", setting.key.name, setting.value);
                    account.set = settings.iter().map(told).collect();
                    self.settings.extend(settings);
                }
                Err(reason) => account.reason = Some(reason),
            },
            Meaning::Anyway(reason) => {
                account.outcome = Outcome::Anyway;
                account.reason = Some(reason);
            }
            Meaning::Not(reason) => account.reason = Some(reason),
        }
        self.lines.push(account);
    }

    /// The settings of a line, all of them or none: a filesystem without its target would mean another one.
    fn settings_of(&self, keys: Vec<(&'static str, Value)>, line: usize) -> Result<Vec<Setting>, String> {
        keys.into_iter().map(|(name, value)| self.setting(name, value, line)).collect()
    }

    fn setting(&self, name: &str, value: Value, line: usize) -> Result<Setting, String> {
        let key = keys::find(name).ok_or_else(|| format!("hotdump has no key \"{name}\""))?;
        if let Some(earlier) = self.settings.iter().find(|setting| setting.key.name == name) {
            let (line, value) = (earlier.line, &earlier.value);
            return Err(format!("line {line} has set {name} = {value} already"));
        }
        checked(key, value, line, &self.program)
    }
}

/// Reads a file of `origin`; gives what to set, and the account.
fn import(text: &str, origin: Origin) -> Import {
    let mut import = Import { program: cli::command(), settings: Vec::new(), lines: Vec::new() };
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let meaning = match origin {
            Origin::KdumpConf => kdump_conf::meaning(line),
            Origin::KdumpTools => kdump_tools::meaning(line),
        };
        import.take(index + 1, line, meaning);
    }
    import
}

/// Runs the command: the configuration goes to standard output or a file, the account to standard error.
///
/// # Errors
/// A file cannot be read or written.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&args.file)
        .with_context(|| format!("cannot read what to import, {}", args.file.display()))?;
    let from = args.from.unwrap_or_else(|| Origin::of(&text));
    let import = import(&text, from);
    let configuration = document::render(&import.program, &import.settings);
    if let Some(output) = &args.output {
        write_new(output, &configuration)?;
    } else if !args.json {
        print(&configuration)?;
    }
    if args.json {
        return print_json(&Report { from, lines: import.lines });
    }
    for account in &import.lines {
        tell(format_args!("{}:{account}", args.file.display()));
    }
    let not = import.lines.iter().filter(|account| account.outcome == Outcome::Not).count();
    tell(format_args!(
        "{} set; {} not taken over. Look it over, then: hotdump config check",
        counted(import.settings.len(), "key"),
        counted(not, "line")
    ));
    Ok(())
}

/// Writes a configuration that is not there yet.
fn write_new(path: &std::path::Path, text: &str) -> anyhow::Result<()> {
    let told = || format!("cannot write {}: it is not overwritten where it is there", path.display());
    let mut file = std::fs::File::create_new(path).with_context(told)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(told)
}

/// What makedumpfile would write with these options.
fn collector(options: &str) -> Meaning {
    let (level, format) = match makedumpfile::written_with(options) {
        Ok(written) => written,
        Err(why) => return Meaning::not(format!("makedumpfile: {why:#}")),
    };
    let mut keys = vec![("dump-level", Value::Integer(level.number().into()))];
    let text = |text: &str| Value::String(text.to_owned());
    match format {
        Format::Elf => keys.push(("format", text("elf"))),
        Format::Kdump(codec) => {
            keys.extend([("format", text("kdump")), ("compression", Value::String(codec.to_string()))]);
        }
    }
    Meaning::Keys(keys)
}

/// The action of that name, as a value of `key`.
fn action(key: &'static str, name: &str) -> Meaning {
    match name.parse::<crate::capture::Action>() {
        Ok(action) => Meaning::text(key, action.to_string()),
        Err(why) => Meaning::not(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines, what comes of each, and a part of what is said of it.
    type Case = (&'static str, Outcome, &'static str);

    fn run_cases(origin: Origin, cases: &[Case]) {
        for (line, outcome, words) in cases {
            let import = import(line, origin);
            let account = &import.lines[0];
            let told = account.to_string();
            assert_eq!(account.outcome, *outcome, "{told}");
            assert!(told.contains(words), "{words:?} is not in {told}");
        }
    }

    #[test]
    fn kdump_conf() {
        use Outcome::{Anyway, Not, Taken};
        run_cases(
            Origin::KdumpConf,
            &[
                ("path /srv/crash", Taken, "path = \"/srv/crash\""),
                ("ext4 UUID=AB-cd", Taken, "target = \"UUID=AB-cd\", fs = \"ext4\""),
                ("xfs /dev/vg/crash", Taken, "target = \"/dev/vg/crash\", fs = \"xfs\""),
                ("ext4 vda1", Not, "names no target"),
                ("raw /dev/vda5", Not, "filesystem"),
                ("ssh user@host", Taken, "target = \"ssh://user@host\""),
                ("ssh host", Not, "names no account"),
                ("sshkey /root/.ssh/id", Taken, "sshkey = \"/root/.ssh/id\""),
                (
                    "core_collector makedumpfile -l --message-level 7 -d 31",
                    Taken,
                    "dump-level = 31, format = \"kdump\", compression = \"lzo\"",
                ),
                (
                    "core_collector makedumpfile -zd 17,31",
                    Taken,
                    "dump-level = 17, format = \"kdump\", compression = \"zstd\"",
                ),
                ("core_collector makedumpfile -E -d 1", Taken, "dump-level = 1, format = \"elf\""),
                ("core_collector makedumpfile --split -d 31", Not, "--split"),
                ("core_collector makedumpfile -d 99", Not, "Dump_level(99) is invalid"),
                ("core_collector makedumpfile -d", Not, "requires an argument"),
                ("core_collector makedumpfile -F -c -d 31", Taken, "compression = \"zlib\""),
                ("core_collector makedumpfile --dump-dmesg", Not, "not a core collector's"),
                ("core_collector scp", Not, "makedumpfile"),
                ("failure_action poweroff", Taken, "failure-action = \"poweroff\""),
                ("default shell", Taken, "failure-action = \"shell\""),
                ("failure_action dump_to_rootfs", Not, "dump_to_rootfs"),
                ("final_action halt", Taken, "final-action = \"halt\""),
                ("extra_modules nvme  e1000e", Taken, "add-modules = [\"nvme\", \"e1000e\"]"),
                ("extra_bins /usr/bin/lsof", Not, "include"),
                ("kdump_pre /bin/x", Not, "no commands"),
                ("fence_kdump_nodes a b", Not, "fence"),
                ("auto_reset_crashkernel yes", Not, "crashkernel="),
                ("force_no_rebuild 1", Not, "initramfs"),
                ("dracut_args --omit-drivers x", Not, "dracut"),
                ("colour blue", Not, "not known"),
                ("path", Not, "no value"),
                ("path /a # here", Taken, "path = \"/a\""),
                ("auto_reset_crashkernel no", Anyway, "crashkernel="),
            ],
        );
    }

    #[test]
    fn kdump_tools() {
        use Outcome::{Anyway, Not, Taken};
        run_cases(
            Origin::KdumpTools,
            &[
                ("USE_KDUMP=1", Anyway, "systemctl"),
                ("USE_KDUMP=0", Not, "systemctl disable hotdump"),
                ("KDUMP_KERNEL=/var/lib/kdump/vmlinuz", Anyway, "running kernel"),
                ("KDUMP_KERNEL=/boot/vmlinuz-x", Taken, "kernel = \"/boot/vmlinuz-x\""),
                ("KDUMP_INITRD=/var/lib/kdump/initrd.img", Not, "initramfs"),
                ("KDUMP_COREDIR=\"/var/crash\"", Taken, "path = \"/var/crash\""),
                ("KDUMP_FAIL_CMD=\"reboot -f\"", Taken, "failure-action = \"reboot\""),
                ("KDUMP_FAIL_CMD=\"/bin/sh -c x\"", Not, "no commands"),
                ("KDUMP_DUMP_DMESG=1", Anyway, "log"),
                ("KDUMP_DUMP_DMESG=0", Not, "log"),
                (
                    "MAKEDUMP_ARGS=\"-c -d 31\"",
                    Taken,
                    "dump-level = 31, format = \"kdump\", compression = \"zlib\"",
                ),
                ("MAKEDUMP_ARGS='-d 31'", Taken, "compression = \"none\""),
                ("KDUMP_KEXEC_ARGS=\"-s\"", Taken, "syscall = \"file\""),
                ("KDUMP_KEXEC_ARGS=\"--load-limit 3\"", Not, "--load-limit"),
                ("KDUMP_CMDLINE=\"root=/dev/vda1 quiet\"", Taken, "command-line = \"root=/dev/vda1 quiet\""),
                (
                    "KDUMP_CMDLINE_APPEND=\"reset_devices systemd.unit=kdump-tools-dump.service nr_cpus=1 irqpoll usbcore.nousb\"",
                    Taken,
                    "append = \"usbcore.nousb\"",
                ),
                ("KDUMP_CMDLINE_APPEND=\"reset_devices nr_cpus=1\"", Anyway, "adds"),
                ("KDUMP_NUM_DUMPS=3", Taken, "keep-dumps = 3"),
                ("KDUMP_NUM_DUMPS=0", Anyway, "all"),
                ("KDUMP_NUM_DUMPS=-1", Not, "number"),
                ("KDUMP_SYSCTL=\"kernel.panic_on_oops=1\"", Not, "/etc/sysctl.d"),
                ("SSH=\"user@host\"", Taken, "target = \"ssh://user@host\""),
                ("FTP=\"user@host\"", Not, "FTP"),
                ("KDUMP_COREDIR=\"$HOME/x\"", Not, "shell"),
                ("KDUMP_COREDIR=\"/x", Not, "quote"),
                ("export A=1", Not, "assignment"),
                ("COLOUR=blue", Not, "not known"),
            ],
        );
    }

    #[test]
    fn a_second_word_on_a_key_is_not_taken_over() {
        let import = import("path /a\npath /b\n", Origin::KdumpConf);
        assert_eq!(import.settings.len(), 1);
        assert!(import.lines[1].to_string().contains("line 1 has set path = \"/a\" already"));
    }

    #[test]
    fn whose_file_it_is() {
        assert_eq!(Origin::of("# x\n\nUSE_KDUMP=1\n"), Origin::KdumpTools);
        assert_eq!(Origin::of("# x\npath /var/crash\n"), Origin::KdumpConf);
        assert_eq!(Origin::of("ext4 UUID=x\n"), Origin::KdumpConf);
        assert_eq!(Origin::of(""), Origin::KdumpConf);
    }

    #[test]
    fn what_is_imported_is_a_configuration() {
        let import = import(
            "path /a\next4 LABEL=x\ncore_collector makedumpfile -c -d 31\nextra_modules a b",
            Origin::KdumpConf,
        );
        let text = document::render(&import.program, &import.settings);
        assert_eq!(super::super::file::parse(&text, &import.program).unwrap().len(), 7, "{text}");
    }
}
