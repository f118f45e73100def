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
    (
        &["load", "--config=/nonexistent/x"],
        1,
        "",
        "cannot read the configuration /nonexistent/x: No such file",
    ),
    (
        &["config", "check", "/nonexistent/x"],
        1,
        "",
        "cannot read the configuration /nonexistent/x: No such file",
    ),
    (&["config", "check", "/proc/version"], 1, "", "hotdump: /proc/version:1: "),
    (&["load", "--config=/proc/version"], 1, "", "hotdump: /proc/version:1: "),
    (&["config", "show", "/dev/null"], 0, "keep                   \"auto\"  (default)\n", ""),
    (&["config", "check", "/dev/null"], 0, "/dev/null: right, 0 keys set\n", ""),
    (&["config", "import", "/nonexistent/x"], 1, "", "cannot read what to import, /nonexistent/x"),
    (&["completions", "fish"], 0, "complete -c hotdump", ""),
    (&["completions", "bash"], 0, "complete -F _hotdump", ""),
    (&["completions", "zsh"], 0, "#compdef hotdump", ""),
    (&["completions", "cmd"], 1, "", "possible values: bash"),
    (&["verify", "--json", "--quiet"], 1, "", "cannot be used with"),
    (&["verify", "--prometheus"], 1, "", "a value is required for '--prometheus <FILE>'"),
    (&["estimate", "--initrd", MISSING], 1, "", "there is no initramfs /nonexistent/vmlinuz: write it"),
    (
        &["target", "check", "--initrd", MISSING],
        1,
        "",
        "there is no initramfs /nonexistent/vmlinuz: write it",
    ),
    (&["target", "check", "--initrd=/proc/version"], 1, "", "cannot read the initramfs /proc/version: "),
    (&["test", "--yes"], 1, "", "--really-crash"),
    (&["test", "--json", "--really-crash"], 1, "", "cannot be used with"),
    (&["map", "--json", "--svg=x"], 1, "", "cannot be used with"),
    (&["map", "--color=perhaps"], 1, "", "[possible values: auto, always, never]"),
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

/// The metrics are for everybody, whatever the umask; where they cannot be written nothing is left, and it is said.
#[test]
fn metrics_are_written_whole() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hotdump.prom");
    let run = |path: &std::path::Path| {
        let script = "umask 077; exec \"$0\" verify --quiet --prometheus \"$1\"";
        let program = env!("CARGO_BIN_EXE_hotdump");
        Command::new("sh").args(["-c", script, program]).arg(path).output().unwrap()
    };
    let output = run(&path);
    let verdict = match output.status.code() {
        Some(0) => "complete",
        Some(2) => "stale",
        Some(3) => "unknown",
        Some(4) => "not_loaded",
        code => panic!("exit code {code:?}: {}", String::from_utf8_lossy(&output.stderr)),
    };
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(&format!("hotdump_verdict{{verdict=\"{verdict}\"}} 1\n")), "{text}");
    assert!(!text.contains("0x"), "{text}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

    let failed = run(&dir.path().join("none/hotdump.prom"));
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("cannot write the metrics to"), "{failed:?}");
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

/// A configuration that is wrong stops what needs it, names every line, and `--json` has the same.
#[test]
fn configurations() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hotdump.toml");
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hotdump")).args(args).arg(&file).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    std::fs::write(&file, "keep = \"modul\"\nkernl = \"/x\"\n").unwrap();
    let path = file.display();
    let told = format!(
        "hotdump: {path}:1: keep: \"modul\" is none of auto, native, module, reload; the nearest is \"module\"\n\
         {path}:2: unknown key \"kernl\": the nearest that is known is \"kernel\"\n"
    );
    for args in [&["config", "check"][..], &["config", "show"], &["load", "--config"]] {
        assert_eq!(run(args), (Some(1), String::new(), told.clone()), "{args:?}");
    }
    let (code, out, _) = run(&["config", "check", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &json["right"], &json["problems"][1]["line"]),
        (Some(1), &false.into(), &2.into()),
        "{out}"
    );

    std::fs::write(&file, "kernel = \"/nonexistent/configured\"\nno-initrd = true\n").unwrap();
    let (code, _, err) = run(&["load", "--config"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("cannot read the crash kernel /nonexistent/configured"), "{err}");
    let (_, _, err) = run(&["load", "--kernel", "/nonexistent/given", "--config"]);
    assert!(err.contains("cannot read the crash kernel /nonexistent/given"), "{err}");
    let (code, out, _) = run(&["config", "show"]);
    assert_eq!(code, Some(0));
    let line = format!("kernel                 \"/nonexistent/configured\"  ({path}:1)\n");
    assert!(out.contains(&line), "{out}");
}

/// What is imported goes to standard output, the account of it to standard error; a file is not overwritten.
#[test]
fn imports() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("kdump.conf"), dir.path().join("hotdump.toml"));
    std::fs::write(&from, "# where\npath /srv\nkdump_pre /bin/x\n").unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_hotdump"))
            .args(["config", "import"])
            .arg(&from)
            .args(args)
            .output();
        let output = output.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = run(&[]);
    assert_eq!(code, Some(0));
    assert!(out.contains("\npath = \"/srv\"\n") && out.contains("\n#keep = \"auto\"\n"), "{out}");
    let path = from.display();
    for line in [
        format!("{path}:2: path /srv\n    taken over: path = \"/srv\"\n"),
        format!("{path}:3: kdump_pre /bin/x\n    NOT taken over: hotdump runs no commands"),
        "1 key set; 1 line not taken over.".to_owned(),
    ] {
        assert!(err.contains(&line), "{line} is not in {err}");
    }
    let (code, json, _) = run(&["--json", "--output", to.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["lines"][1]["outcome"]), (Some(0), &"not".into()));
    assert_eq!(std::fs::read_to_string(&to).unwrap(), out);
    let (code, _, err) = run(&["--output", to.to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(err.contains("not overwritten"), "{err}");
}
