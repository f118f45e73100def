//! What is configured becomes the command line's default.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, Command};

use super::file::{ConfigError, Configuration};
use super::keys::KEYS;

/// The option that names the configuration, of every command that has defaults there.
const OPTION: &str = "config";

/// The command that loads again and again, and so takes what is configured for [`LOAD`].
const WATCH: &str = "watch";
const LOAD: &str = "load";

/// Why a command line cannot be completed.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It is wrong in itself, or asks for help.
    Usage(clap::Error),
    /// The configuration is wrong.
    Config(ConfigError),
}

/// Gives every command that has defaults in the configuration the option that names another one.
pub(crate) fn add_option(mut program: Command) -> Command {
    let mut commands: Vec<&str> = KEYS.iter().map(|key| key.command).collect();
    commands.dedup();
    commands.push(WATCH);
    for command in commands {
        program = program.mut_subcommand(command, |command| {
            command.arg(
                Arg::new(OPTION)
                    .long(OPTION)
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .help("Where options that are not given come from [default: /etc/hotdump/hotdump.toml]"),
            )
        });
    }
    program
}

/// Completes `args` (with the program's name) by what is configured: options that are not given, and that nothing which is
/// given rules out. A list that is given stands in the configured one's place.
///
/// # Errors
/// [`Refusal`].
pub(crate) fn with_configured(program: &Command, mut args: Vec<OsString>) -> Result<Vec<OsString>, Refusal> {
    let matches = program.clone().try_get_matches_from(&args).map_err(Refusal::Usage)?;
    let Some((name, given)) = matches.subcommand() else { return Ok(args) };
    let Some(command) = program.find_subcommand(name) else { return Ok(args) };
    let name = if name == WATCH { LOAD } else { name };
    if !KEYS.iter().any(|key| key.command == name) {
        return Ok(args);
    }
    let file = given.get_one::<PathBuf>(OPTION).map(PathBuf::as_path);
    let configuration = Configuration::read(file, program).map_err(Refusal::Config)?;
    let is_given = |arg: &Arg| given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let of_command = configuration.settings.iter().filter(|setting| setting.key.command == name);
    let free = of_command.filter(|setting| {
        let arg = setting.key.arg(program);
        let conflict = |other: &&Arg| {
            command.get_arg_conflicts_with(&arg).contains(other)
                || command.get_arg_conflicts_with(other).contains(&&arg)
        };
        !is_given(&arg) && !command.get_arguments().filter(conflict).any(is_given)
    });
    let configured: Vec<OsString> =
        free.flat_map(super::file::Setting::arguments).map(OsString::from).collect();
    // Behind the command's name: what follows it may end in `--`.
    args.splice(2..2, configured);
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(config: &str, args: &[&str]) -> Result<Vec<String>, Refusal> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hotdump.toml");
        std::fs::write(&file, config).unwrap();
        let option = OsString::from(format!("--config={}", file.display()));
        let args = ["hotdump"].iter().chain(args).map(OsString::from).chain([option]).collect();
        let program = crate::cli::command();
        let complete = with_configured(&program, args)?;
        program.try_get_matches_from(&complete).map_err(Refusal::Usage)?;
        let words = complete[1..complete.len() - 1].iter();
        Ok(words.map(|word| word.to_str().unwrap().to_owned()).collect())
    }

    #[test]
    fn the_command_line_wins() {
        let config =
            "keep = \"module\"\ninitrd = \"/i\"\nremove = [\"a\", \"b\"]\nfs = \"xfs\"\nkeep-dumps = 3\n";
        for (args, want) in [
            (&["load"][..], &["load", "--keep=module", "--initrd=/i", "--remove=a", "--remove=b"][..]),
            (
                &["load", "--keep", "native", "--no-initrd", "--remove=c"],
                &["load", "--keep", "native", "--no-initrd", "--remove=c"],
            ),
            (
                &["load", "--hotplug", "--initrd=/x"],
                &["load", "--remove=a", "--remove=b", "--hotplug", "--initrd=/x"],
            ),
            (
                &["watch", "--settle=1", "--no-initrd"],
                &["watch", "--keep=module", "--remove=a", "--remove=b", "--settle=1", "--no-initrd"],
            ),
            (&["initramfs", "-o", "x"], &["initramfs", "--fs=xfs", "--keep=3", "-o", "x"]),
        ] {
            assert_eq!(complete(config, args).unwrap(), want);
        }
    }

    #[test]
    fn a_wrong_configuration_stops_the_command() {
        assert!(matches!(complete("kep = 1", &["load"]), Err(Refusal::Config(_))));
        assert!(matches!(complete("kep = 1", &["load", "--help"]), Err(Refusal::Usage(_))));
        assert!(matches!(complete("kep = 1", &["load", "--nope"]), Err(Refusal::Usage(_))));
    }
}
