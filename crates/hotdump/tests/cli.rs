//! What the user sees of `hotdump` where nothing is asked of the machine. Nothing here comes as far as a system call.

use std::process::Command;

/// Arguments, exit code, and what must be in standard output and standard error.
type Case = (&'static [&'static str], i32, &'static str, &'static str);

const MISSING: &str = "/nonexistent/vmlinuz";

const CASES: &[Case] = &[
    (&["--help"], 0, "Exit codes:\n  0  done", ""),
    (&["--version"], 0, concat!("hotdump ", env!("CARGO_PKG_VERSION")), ""),
    (&[], 1, "", "Usage: hotdump <COMMAND>"),
    (&["nope"], 1, "", "unrecognized subcommand 'nope'"),
    (&["load", "--nope"], 1, "", "unexpected argument '--nope'"),
    (&["load", "--mem-min=zz"], 1, "", "invalid value 'zz' for '--mem-min <ADDRESS>'"),
    (&["load", "--hotplug=perhaps"], 1, "", "[possible values: never, auto, always]"),
    (&["load", "--keep=perhaps"], 1, "", "[possible values: auto, native, module, reload]"),
    (&["load", "--keep=auto", "--hotplug"], 1, "", "cannot be used with"),
    (&["load", "--initrd=x", "--no-initrd"], 1, "", "cannot be used with"),
    (&["load", "--command-line=x", "--reuse-cmdline"], 1, "", "cannot be used with"),
    (
        &["load", "--kernel", MISSING, "--no-initrd"],
        1,
        "",
        "hotdump: cannot read the crash kernel /nonexistent/vmlinuz: No such file or directory",
    ),
    (
        &["load", "--kernel=/", "--no-initrd"],
        1,
        "",
        "hotdump: cannot read the crash kernel /: is a directory",
    ),
    (
        &["load", "--kernel=/proc/version", "--initrd", MISSING],
        1,
        "",
        "hotdump: cannot read the initramfs /nonexistent/vmlinuz: No such file or directory",
    ),
    (
        &["load", "--kernel", MISSING, "--no-initrd", "--append=a=\"b"],
        1,
        "",
        "hotdump: command line: a double quote is not closed",
    ),
    (&["verify", "--json", "--quiet"], 1, "", "cannot be used with"),
];

#[test]
fn words_and_exit_codes() {
    for (args, code, stdout, stderr) in CASES {
        let output = Command::new(env!("CARGO_BIN_EXE_hotdump")).args(*args).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let told = format!("{args:?}\n{out}{err}");
        assert_eq!(output.status.code(), Some(*code), "{told}");
        assert!(out.contains(stdout), "{stdout:?} is not in the output of {told}");
        assert!(err.contains(stderr), "{stderr:?} is not in the errors of {told}");
    }
}

/// What `verify` and `status` answer depends on the machine; that the answer, the text and the exit code agree does not.
#[test]
fn facts_come_as_json_that_agrees_with_the_exit_code() {
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_hotdump")).args(args).output().unwrap();
    let verify = run(&["verify", "--json"]);
    let answer: serde_json::Value = serde_json::from_slice(&verify.stdout).unwrap();
    let verdict = answer["verdict"].as_str().unwrap();
    let code = ["complete", "", "stale", "unknown", "not_loaded"].iter().position(|name| *name == verdict);
    assert_eq!(verify.status.code(), code.map(|code| code as i32), "{answer:#}");

    let status = run(&["status", "--json"]);
    let answer: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let code = match answer["loaded"].as_bool() {
        Some(true) => 0,
        Some(false) => 4,
        None => 3,
    };
    assert_eq!(status.status.code(), Some(code), "{answer:#}");
}
