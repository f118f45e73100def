//! The documented file: as it is shipped, or with settings in it.

use std::fmt::Write as _;

use clap::Command;

use super::file::Setting;
use super::keys::{Description, KEYS};

/// How wide comments are, in characters.
const WIDTH: usize = 100;

/// Every key, described, in the file's order.
pub(super) fn descriptions(program: &Command) -> Vec<Description> {
    KEYS.iter().map(|key| key.describe(program)).collect()
}

/// The text of a configuration that has `settings`; every other key is there as a comment.
pub(super) fn render(program: &Command, settings: &[Setting]) -> String {
    let mut text = String::new();
    comment(
        &mut text,
        "",
        "The configuration of hotdump, see hotdump.toml(5). Each key is the default of an option of a command; what is given on the \
         command line wins. `hotdump config check` checks this file, `hotdump config show` tells what is in force. Keys of hotdump \
         load take effect with `systemctl reload hotdump`, those of hotdump initramfs at the next boot, or \
         with `systemctl start hotdump-initramfs` before the reload.",
    );
    let mut command = "";
    for key in KEYS {
        if key.command != command {
            command = key.command;
            let about = program.find_subcommand(command).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = write!(text, "\n#### hotdump {command}: {about}\n");
        }
        let known = key.describe(program);
        text.push('\n');
        let unset = known.if_not_set().map(|unset| format!(" If not set: {unset}.")).unwrap_or_default();
        comment(&mut text, "", &format!("{}.{unset}", known.meaning));
        for (name, meaning) in &known.values {
            let line = if meaning.is_empty() { name.clone() } else { format!("{name}: {meaning}") };
            comment(&mut text, "  ", &line);
        }
        let _ = match settings.iter().find(|setting| setting.key.name == key.name) {
            Some(setting) => writeln!(text, "{} = {}", key.name, setting.value),
            None => writeln!(text, "#{} = {}", key.name, known.example),
        };
    }
    text
}

/// Appends `words` as comment lines, each behind `indent`.
fn comment(text: &mut String, indent: &str, words: &str) {
    let mut line = String::new();
    for word in words.split_whitespace() {
        if !line.is_empty() && line.len() + word.len() + indent.len() > WIDTH {
            let _ = writeln!(text, "#{line}");
            line.clear();
        }
        if line.is_empty() {
            line.push_str(indent);
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "#{line}");
}

#[cfg(test)]
mod tests {
    use super::super::file::parse;
    use super::*;

    /// The file as it is shipped with every key's comment sign taken away is a configuration too, but for those that rule
    /// each other out.
    #[test]
    fn what_the_shipped_file_shows_is_right() {
        let program = crate::cli::command();
        let text = render(&program, &[]);
        assert!(parse(&text, &program).unwrap().is_empty(), "{text}");
        for key in KEYS {
            let set = text.replace(&format!("\n#{} = ", key.name), &format!("\n{} = ", key.name));
            let settings =
                parse(&set, &program).unwrap_or_else(|problems| panic!("{}: {problems:?}", key.name));
            assert_eq!(settings.len(), 1, "{}", key.name);
            assert_eq!(render(&program, &settings), set);
        }
    }
}
