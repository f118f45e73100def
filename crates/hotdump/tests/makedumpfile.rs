//! The face of makedumpfile: the same exit codes as Debian's, which is asked too where it is installed.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Arguments, exit code of both, what ours says (on either stream).
const CASES: &[(&[&str], i32, &str)] = &[
    (&["--help"], 0, "Usage: makedumpfile"),
    (&["-h"], 0, "Usage: makedumpfile"),
    (&["-v"], 0, "makedumpfile: version 1.7"),
    (&[], 1, "makedumpfile Failed."),
    (&["--nope"], 1, "unrecognized option '--nope'"),
    (&["-d"], 1, "requires an argument -- 'd'"),
    (&["-d", "99", "core", "out"], 1, "Dump_level(99) is invalid."),
    (&["--message-level", "32", "core", "out"], 1, "Message_level(32) is invalid."),
    (&["-E", "-c", "core", "out"], 1, "Commandline parameter is invalid."),
    (&["-l", "-d", "31", "missing", "out"], 1, "cannot open missing"),
    (&["-l", "core", "there"], 1, "File exists"),
    (&["-R"], 1, "makedumpfile Failed."),
    (&["--dump-dmesg", "missing", "out"], 1, "cannot open missing"),
    (&["--message-level", "0", "missing", "out"], 1, ""),
];

fn run(program: &str, args: &[&str], dir: &Path) -> (Option<i32>, String) {
    let output = Command::new(program).arg0("makedumpfile").args(args).current_dir(dir).output().unwrap();
    let both = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.code(), both.concat())
}

#[test]
fn exit_codes_are_the_same() {
    let theirs =
        ["/usr/bin/makedumpfile", "/usr/sbin/makedumpfile"].into_iter().find(|path| Path::new(path).exists());
    for (args, code, words) in CASES {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("there"), "").unwrap();
        fs::write(dir.path().join("core"), [0; 9000]).unwrap();
        let (ours, said) = run(env!("CARGO_BIN_EXE_hotdump"), args, dir.path());
        assert_eq!(ours, Some(*code), "{args:?}: {said}");
        assert!(said.contains(words), "{words:?} is not in what {args:?} said: {said}");
        assert!(!words.is_empty() || said.is_empty(), "{args:?} is to be silent: {said}");
        if let Some(theirs) = theirs {
            let (code, said) = run(theirs, args, dir.path());
            assert_eq!(code, ours, "{args:?} by makedumpfile: {said}");
        }
    }
}
