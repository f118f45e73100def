//! /etc/default/kdump-tools of Debian and its relatives: a shell's assignments, of which plain ones are understood.

use toml::Value;

use super::{Meaning, action, collector};

/// Where kdump-tools keeps links to the kernel and the initramfs that belong to the running kernel.
const LINKS: &str = "/var/lib/kdump/";
/// What kdump-tools puts on the command line to start itself.
const OWN_UNIT: &str = "systemd.unit=kdump-tools";
/// What hotdump puts on the command line too.
const ADDED_ANYWAY: [&str; 4] = ["reset_devices", "irqpoll", "nr_cpus=1", "maxcpus=1"];

/// Name and value of an assignment, the value as it is written.
pub(super) fn assignment(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    let fits = |char: char| char.is_ascii_uppercase() || char.is_ascii_digit() || char == '_';
    (!name.is_empty() && name.chars().all(fits)).then_some((name, value))
}

/// What a line means.
pub(super) fn meaning(line: &str) -> Meaning {
    let Some((name, written)) = assignment(line) else {
        return Meaning::not("this is no plain assignment");
    };
    match unquoted(written) {
        Ok(value) => of_variable(name, value),
        Err(why) => Meaning::not(why),
    }
}

/// A value without quotes, if a shell would do nothing else to it.
fn unquoted(written: &str) -> Result<&str, &'static str> {
    let (quote, inner) = match written.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let (inner, rest) = written[1..].split_once(quote).ok_or("a quote is not closed")?;
            if !(rest.trim().is_empty() || rest.trim_start().starts_with('#')) {
                return Err("only a shell can tell what this is");
            }
            (Some(quote), inner)
        }
        _ => (None, written.split(" #").next().unwrap_or_default().trim()),
    };
    let special = match quote {
        Some('\'') => "",
        Some(_) => "$`\\",
        None => "$`\\\"' ;&|<>()*?",
    };
    if inner.contains(|char| special.contains(char)) {
        return Err("only a shell can tell what this is");
    }
    Ok(inner)
}

fn of_variable(name: &str, value: &str) -> Meaning {
    match name {
        "USE_KDUMP" if value == "1" => Meaning::anyway("systemctl enables the service"),
        "USE_KDUMP" => Meaning::not("to switch hotdump off: systemctl disable hotdump"),
        "KDUMP_KERNEL" if value.starts_with(LINKS) => {
            Meaning::anyway("hotdump takes the running kernel unless told otherwise")
        }
        "KDUMP_KERNEL" => Meaning::text("kernel", value),
        "KDUMP_COREDIR" => Meaning::text("path", value),
        "KDUMP_FAIL_CMD" => fail_command(value),
        "KDUMP_DUMP_DMESG" if value == "1" => Meaning::anyway("the kernel log is saved in any case"),
        "MAKEDUMP_ARGS" => collector(value),
        "KDUMP_KEXEC_ARGS" => kexec_arguments(value),
        "KDUMP_CMDLINE" => Meaning::text("command-line", value),
        "KDUMP_CMDLINE_APPEND" => append(value),
        "KDUMP_NUM_DUMPS" => match value.parse::<u32>() {
            Ok(0) => Meaning::anyway("all dumps are kept unless told otherwise"),
            Ok(count) => Meaning::Keys(vec![("keep-dumps", Value::Integer(count.into()))]),
            Err(_) => Meaning::not("this is no number of dumps"),
        },
        "SSH" => Meaning::text("target", format!("ssh://{value}")),
        "SSH_KEY" => Meaning::text("sshkey", value),
        "NFS" => Meaning::text("target", format!("nfs:{value}")),
        other => Meaning::not(why_not(other)),
    }
}

/// A command that does what an action does.
fn fail_command(command: &str) -> Meaning {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words[..] {
        [program] | [program, "-f" | "-ff" | "--force"] => {
            let name = program.rsplit('/').next().unwrap_or_default();
            action("failure-action", name)
        }
        _ => Meaning::not(
            "hotdump runs no commands of others when saving fails; see the key \"failure-action\"",
        ),
    }
}

fn kexec_arguments(arguments: &str) -> Meaning {
    let mut meaning = Meaning::anyway("no options");
    for argument in arguments.split_whitespace() {
        meaning = match argument {
            "-s" | "--kexec-file-syscall" => Meaning::text("syscall", "file"),
            "-c" | "--kexec-syscall" => Meaning::text("syscall", "load"),
            "-a" | "--kexec-syscall-auto" => Meaning::text("syscall", "auto"),
            other => return Meaning::not(format!("kexec's {other} has no key here")),
        };
    }
    meaning
}

/// What is appended but for what hotdump adds by itself and what starts kdump-tools.
fn append(value: &str) -> Meaning {
    let left: Vec<&str> = value
        .split_whitespace()
        .filter(|word| !ADDED_ANYWAY.contains(word) && !word.starts_with(OWN_UNIT))
        .collect();
    if left.is_empty() {
        return Meaning::anyway("hotdump adds what a capture kernel needs by itself");
    }
    Meaning::text("append", left.join(" "))
}

/// Why a variable has no place in hotdump's configuration.
fn why_not(name: &str) -> &'static str {
    match name {
        "KDUMP_INITRD" => "this initramfs starts kdump-tools; hotdump has its own",
        "KDUMP_DUMP_DMESG" => "the kernel log is saved in any case",
        "KDUMP_SYSCTL" => "when the kernel panics is not up to hotdump: put it in a file in /etc/sysctl.d",
        "KDUMP_STAMPDIR" | "KDUMP_STAMP" | "HOSTTAG" => "how dumps are named is not configurable",
        "NFS_TIMEO" | "NFS_RETRANS" | "NFS_MOUNT_RETRY" => {
            "there is no key for this property of an NFS mount"
        }
        _ if name.starts_with("FTP") => "dumps by FTP are not to be had",
        _ => "the variable is not known",
    }
}
