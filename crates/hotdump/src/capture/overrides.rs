//! `hotdump.NAME=VALUE` on the capture kernel's command line: the way to change an initramfs' mind without making it anew.

use std::str::FromStr;

use super::config::Config;

/// Sets one of the configuration's values from text.
type Set = fn(&mut Config, &str) -> Result<(), String>;

/// What can be set. `-` and `_` in names mean the same, as the kernel has it for its own parameters.
const SETTINGS: [(&str, Set); 13] = [
    ("target", |config, value| set_some(&mut config.target, value)),
    ("fs", |config, value| set_some(&mut config.fs, value)),
    ("path", |config, value| set(&mut config.path, value)),
    ("final-action", |config, value| set(&mut config.final_action, value)),
    ("failure-action", |config, value| set(&mut config.failure_action, value)),
    ("nfs-options", |config, value| set(&mut config.nfs_options, value)),
    ("target-wait-seconds", |config, value| set(&mut config.target_wait_seconds, value)),
    ("dump-level", |config, value| set(&mut config.dump_level, value)),
    ("format", |config, value| set(&mut config.format, value)),
    ("compression", |config, value| set(&mut config.compression, value)),
    ("keep", |config, value| set_some(&mut config.keep, value)),
    ("keep-free", |config, value| set_some(&mut config.keep_free, value)),
    ("stall-seconds", |config, value| set(&mut config.stall_seconds, value)),
];

fn set<T: FromStr<Err: ToString>>(place: &mut T, value: &str) -> Result<(), String> {
    *place = value.parse().map_err(|error: T::Err| error.to_string())?;
    Ok(())
}

fn set_some<T: FromStr<Err: ToString>>(place: &mut Option<T>, value: &str) -> Result<(), String> {
    *place = Some(value.parse().map_err(|error: T::Err| error.to_string())?);
    Ok(())
}

/// Applies the parameters in `command_line` and returns what was wrong with others: in a capture kernel a typing error must
/// not cost the dump.
pub(crate) fn apply(config: &mut Config, command_line: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for parameter in words(command_line) {
        let Some((name, value)) = parameter.strip_prefix("hotdump.").and_then(|rest| rest.split_once('='))
        else {
            continue;
        };
        let name = name.replace('_', "-");
        let outcome = match SETTINGS.iter().find(|(known, _)| *known == name) {
            Some((_, set)) => set(config, value),
            None => {
                let known: Vec<_> = SETTINGS.iter().map(|(known, _)| *known).collect();
                Err(format!("unknown; there are {}", known.join(", ")))
            }
        };
        if let Err(error) = outcome {
            wrong.push(format!("kernel parameter {parameter} is left out: {error}"));
        }
    }
    wrong
}

/// The parameters of a command line: parted by spaces that are not between double quotes, without those quotes.
fn words(command_line: &str) -> Vec<String> {
    let mut quoted = false;
    let is_gap = |char: char| {
        quoted ^= char == '"';
        char.is_whitespace() && !quoted
    };
    command_line.split(is_gap).map(|word| word.replace('"', "")).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::capture::{Action, Target};
    use crate::text::Bytes;
    use vmcore::Codec;
    use vmcore::dump::Format;

    #[test]
    fn every_setting_is_taken_and_mistakes_are_left_out_by_name() {
        let mut config = Config::default();
        let wrong = apply(
            &mut config,
            "console=ttyS0 hotdump.keep=3 hotdump.dump_level=17 hotdump.format=kdump hotdump.compression=lzo hotdump.keep_free=2G hotdump.target=UUID=AB-CD hotdump.fs=xfs \"hotdump.path=/var/my crash\" \
             hotdump.final_action=poweroff hotdump.nfs-options=vers=3 hotdump.failure-action=halt hotdump.target-wait-seconds=5 \
             hotdump.stall_seconds=7 hotdump.path nothotdump.path=/x hotdump.colour=blue hotdump.failure-action=explode\n",
        );
        assert_eq!(config.target, Some(Target::Uuid("ab-cd".into())));
        assert_eq!(config.fs.as_deref(), Some("xfs"));
        assert_eq!(config.path, Path::new("/var/my crash"));
        assert_eq!((config.final_action, config.failure_action), (Action::Poweroff, Action::Halt));
        assert_eq!(config.nfs_options, "vers=3");
        assert_eq!((config.target_wait_seconds, config.stall_seconds), (5, 7));
        assert_eq!((config.dump_level.number(), config.dump_format()), (17, Format::Kdump(Codec::Lzo)));
        assert_eq!((config.keep, config.keep_free), (Some(3), Some(Bytes(2 << 30))));
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(
            wrong[0].contains("hotdump.colour=blue") && wrong[0].contains("target-wait-seconds"),
            "{wrong:?}"
        );
        assert!(wrong[1].contains("explode") && wrong[1].contains("poweroff"), "{wrong:?}");
    }
}
