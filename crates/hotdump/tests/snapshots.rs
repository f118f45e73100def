//! What people read, held against files in tests/snapshots: each command's help, and the typical errors.
//!
//! After a change that is meant: `SNAPSHOTS=overwrite cargo test -p hotdump`, and read the difference.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use snapbox::{Data, assert_data_eq};

/// Runs a face of the program where its terminal has 80 columns; gives its exit code, output and errors.
fn run(face: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hotdump"));
    command.arg0(face).args(args).env("COLUMNS", "80").env_remove("NO_COLOR").env("TERM", "dumb");
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn snapshot(name: &str) -> Data {
    let path = format!("{}/tests/snapshots/{name}", env!("CARGO_MANIFEST_DIR"));
    Data::read_from(std::path::Path::new(&path), None).raw()
}

/// The words that lead to each command below `command`, and to itself.
fn commands(command: &clap::Command, words: &[String]) -> Vec<Vec<String>> {
    let below = command.get_subcommands().filter(|sub| sub.get_name() != "help");
    let below = below.flat_map(|sub| {
        let words: Vec<String> = words.iter().cloned().chain([sub.get_name().to_owned()]).collect();
        commands(sub, &words)
    });
    std::iter::once(words.to_vec()).chain(below).collect()
}

#[test]
fn the_help_of_every_command() {
    let all = commands(&hotdump::command(), &[]);
    assert!(all.len() > 20, "{all:?}");
    for words in all {
        let args: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
        let (code, out, err) = run("hotdump", &args);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{words:?}");
        let wide: Vec<&str> =
            out.lines().filter(|line| line.chars().count() > 80 && line.contains("  ")).collect();
        assert!(wide.is_empty(), "{words:?} has lines of more than 80 columns: {wide:#?}");
        let name = std::iter::once("hotdump".to_owned()).chain(words).collect::<Vec<_>>().join("-");
        assert_data_eq!(out, snapshot(&format!("help/{name}.txt")));
    }
}

#[test]
fn the_help_of_the_other_faces() {
    for face in ["kexec", "makedumpfile"] {
        let (code, out, _) = run(face, &["--help"]);
        assert_eq!(code, Some(0), "{face}");
        assert_data_eq!(out, snapshot(&format!("help/{face}.txt")));
    }
}

/// Errors that are the same on every machine.
const ERRORS: &[&[&str]] = &[
    &[],
    &["lod"],
    &["load", "--kepe", "module"],
    &["load", "--keep", "modul"],
    &["load", "--mem-min", "zz"],
    &["load", "--initrd", "x", "--no-initrd"],
    &["load", "--kernel", "/nonexistent/vmlinuz", "--no-initrd"],
    &["load", "--kernel", "/", "--no-initrd"],
    &["load", "--kernel", "/nonexistent/vmlinuz", "--no-initrd", "--append", "a=\"b"],
    &["load", "--config", "/nonexistent/hotdump.toml"],
    &["verify", "--json", "--quiet"],
    &["verify", "--quiet", "--prometheus", "/nonexistent/hotdump.prom"],
    &["map", "--json", "--svg", "x.svg"],
    &["estimate", "--initrd", "/nonexistent/initrd.img"],
    &["target", "check", "--initrd", "/nonexistent/initrd.img"],
    &["test", "--yes"],
    &["initramfs"],
    &["initramfs", "--output", "/nonexistent/x", "--target", "vda1"],
    &["initramfs", "--output", "/nonexistent/x", "--target", "nfs:server"],
    &["initramfs", "--output", "/nonexistent/x", "--target", "ssh://server"],
    &["initramfs", "--output", "/nonexistent/x", "--final-action", "explode"],
    &["initramfs", "--output", "/nonexistent/x", "--dump-level", "32"],
    &["initramfs", "--output", "/nonexistent/x", "--compression", "rot13"],
    &["initramfs", "--output", "/nonexistent/x", "--keep-free", "much"],
    &["initramfs", "--output", "/nonexistent/x", "--keep", "0"],
    &["dumps", "--directory", "/nonexistent", "list"],
    &["dumps", "--directory", "/nonexistent", "show", "latest"],
    &["dumps", "--directory", "/nonexistent", "remove"],
    &["dump", "info", "/nonexistent/vmcore"],
    &["dump", "info", "/dev/null"],
    &["dump", "check", "/dev/null"],
    &["config", "check", "/nonexistent/hotdump.toml"],
    &["config", "import", "/nonexistent/kdump.conf"],
    &["completions", "cmd"],
];

#[test]
fn typical_errors() {
    let mut told = String::new();
    for args in ERRORS {
        let (code, out, err) = run("hotdump", args);
        let line: Vec<String> = args.iter().map(|arg| format!(" {arg}")).collect();
        assert!(out.is_empty(), "an error goes to standard error: {args:?} {out}");
        assert_ne!(code, Some(0), "{args:?}");
        told += &format!("$ hotdump{}\n{err}[exit code {}]\n\n", line.concat(), code.unwrap_or(-1));
    }
    assert_data_eq!(told, snapshot("errors.txt"));
}
