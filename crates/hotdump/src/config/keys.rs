//! The keys of `hotdump.toml`. Each is the default of one option of a command, whose definition says all else: what values it takes,
//! what it means, what it is where nobody says.

use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, Command};

/// A key.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its name.
    pub(crate) name: &'static str,
    /// The command whose option it is the default of.
    pub(crate) command: &'static str,
    /// That option, without dashes.
    pub(crate) option: &'static str,
    /// A value, as TOML, to show where the option has no default of its own.
    pub(crate) example: &'static str,
}

const fn load(name: &'static str, example: &'static str) -> Key {
    Key { name, command: "load", option: name, example }
}

const fn initramfs(name: &'static str, option: &'static str, example: &'static str) -> Key {
    Key { name, command: "initramfs", option, example }
}

/// Every key, in the order of the shipped file.
pub(crate) const KEYS: &[Key] = &[
    load("keep", ""),
    load("syscall", ""),
    load("kernel", "\"/boot/vmlinuz-crash\""),
    load("initrd", "\"/boot/initrd-crash.img\""),
    load("no-initrd", ""),
    load("append", "\"console=ttyS0\""),
    load("remove", "[\"quiet\", \"splash\"]"),
    load("command-line", "\"root=/dev/vda1 console=ttyS0\""),
    load("no-defaults", ""),
    load("dtb", "\"/boot/crash.dtb\""),
    load("mem-min", "\"0x30000000\""),
    load("mem-max", "\"0x40000000\""),
    initramfs("path", "path", ""),
    initramfs("target", "target", "\"LABEL=crash\""),
    initramfs("fs", "fs", "\"ext4\""),
    initramfs("nfs-options", "nfs-options", "\"vers=4.1\""),
    initramfs("sshkey", "sshkey", "\"/root/.ssh/kdump_id_rsa\""),
    initramfs("known-hosts", "known-hosts", "\"/root/.ssh/known_hosts\""),
    initramfs("builder", "builder", ""),
    initramfs("local-log", "local-log", "\"/var/crash\""),
    initramfs("dump-level", "dump-level", ""),
    initramfs("format", "format", ""),
    initramfs("compression", "compression", ""),
    initramfs("keep-dumps", "keep", "5"),
    initramfs("keep-free", "keep-free", "\"2G\""),
    initramfs("final-action", "final-action", ""),
    initramfs("failure-action", "failure-action", ""),
    initramfs("command", "command", "\"/usr/bin/makedumpfile -l -d 31 {vmcore} {output}\""),
    initramfs("add-modules", "add-module", "[\"nvme\"]"),
    initramfs("include", "include", "[\"/etc/hostname\"]"),
    initramfs("initramfs-compression", "compress", "\"zstd\""),
];

/// The key of that name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Of `names` the one that `given` is most like, if it is like any.
pub(crate) fn nearest<'a>(given: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Below this nobody sees the likeness.
    const ALIKE: f64 = 0.65;
    names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(given, name), name))
        .filter(|(likeness, _)| *likeness > ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, name)| name)
}

/// What values a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A string, or an integer.
    One,
    /// An array of strings.
    List,
    /// `true` or `false`.
    Switch,
}

impl Key {
    /// The definition of its option in that of the program.
    ///
    /// # Panics
    /// Where the table names an option that is not there; a test sees to that.
    pub(crate) fn arg(&self, program: &Command) -> Arg {
        program
            .find_subcommand(self.command)
            .and_then(|command| command.get_arguments().find(|arg| arg.get_long() == Some(self.option)))
            .unwrap_or_else(|| panic!("hotdump {} has no --{}", self.command, self.option))
            .clone()
    }

    /// What values it takes.
    pub(crate) fn kind(&self, program: &Command) -> Kind {
        match self.arg(program).get_action() {
            ArgAction::SetTrue => Kind::Switch,
            ArgAction::Append => Kind::List,
            _ => Kind::One,
        }
    }

    /// What is known of it, for people.
    pub(super) fn describe(&self, program: &Command) -> Description {
        let arg = self.arg(program);
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let (meaning, unset) = match help.split_once(" [default: ") {
            Some((meaning, unset)) => (meaning.to_owned(), Some(unset.trim_end_matches(']').to_owned())),
            None => (help, None),
        };
        let kind = self.kind(program);
        let default = match (kind, arg.get_default_values().first()) {
            (Kind::Switch, _) => Some(toml::Value::Boolean(false)),
            (_, Some(value)) => Some(in_toml(&value.to_string_lossy())),
            (..) => None,
        };
        let values = if kind == Kind::One { arg.get_possible_values() } else { Vec::new() };
        let word = |value: &PossibleValue| {
            let help = value.get_help().map(ToString::to_string).unwrap_or_default();
            (value.get_name().to_owned(), help)
        };
        Description {
            name: self.name,
            option: format!("hotdump {} --{}", self.command, self.option),
            takes: match kind {
                Kind::One => "one value",
                Kind::List => "an array of strings",
                Kind::Switch => "true or false",
            },
            meaning: meaning.replace(" (may be given again)", ""),
            values: values.iter().map(word).collect(),
            example: default.as_ref().map_or_else(|| self.example.to_owned(), ToString::to_string),
            default,
            unset,
        }
    }
}

/// A value of the command line as TOML has it.
fn in_toml(text: &str) -> toml::Value {
    text.parse().map_or_else(|_| toml::Value::String(text.to_owned()), toml::Value::Integer)
}

/// What is known of a key, for people.
#[derive(Debug, Clone)]
pub struct Description {
    /// Its name.
    pub name: &'static str,
    /// The option that it is the default of, with its command.
    pub option: String,
    /// What values it takes, in words.
    pub takes: &'static str,
    /// What it means.
    pub meaning: String,
    /// The words that it takes, if they are few, and what each means; that may be empty.
    pub values: Vec<(String, String)>,
    /// What it is where it is not set, if that is one value.
    pub(super) default: Option<toml::Value>,
    /// What is done where it is not set and has no such default; none: nothing.
    pub(super) unset: Option<String>,
    /// A value, as TOML: the default, if there is one.
    pub example: String,
}

impl Description {
    /// What happens where the key is not set, if anything does.
    pub fn if_not_set(&self) -> Option<String> {
        self.default.as_ref().map(ToString::to_string).or_else(|| self.unset.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Options that have no key: what is asked for once, and other words for what a key says.
    const WITHOUT: &[&str] = &[
        "config",
        "dry-run",
        "hotplug",
        "if-changed",
        "json",
        "kernel-release",
        "modules-dir",
        "output",
        "program",
        "reuse-cmdline",
        "verbose",
    ];

    #[test]
    fn every_option_has_a_key_or_is_known_to_need_none() {
        let program = crate::cli::command();
        for name in ["load", "initramfs"] {
            let command = program.find_subcommand(name).unwrap();
            for option in command.get_arguments().filter_map(Arg::get_long) {
                let key = KEYS.iter().any(|key| key.command == name && key.option == option);
                assert!(
                    key != WITHOUT.contains(&option),
                    "--{option} of hotdump {name}: give it a key in config/keys.rs, or name it in WITHOUT"
                );
            }
        }
    }

    #[test]
    fn names_are_told_apart() {
        let names: std::collections::BTreeSet<_> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(names.len(), KEYS.len());
    }

    #[test]
    fn the_nearest_name() {
        for (given, want) in [
            ("kep", Some("keep")),
            ("cmdline", Some("command-line")),
            ("dump_level", Some("dump-level")),
            ("failure_action", Some("failure-action")),
            ("zzz", None),
        ] {
            assert_eq!(nearest(given, KEYS.iter().map(|key| key.name)), want, "{given}");
        }
    }
}
