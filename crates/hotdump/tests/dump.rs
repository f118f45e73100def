//! `hotdump dump` on files: what comes out of one command goes into the next.

mod core_file;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use core_file::PAGE;

/// Pages of memory from 1 MiB on: ones that differ, and zeros in between.
const PAGES: usize = 600;

/// A core of one stretch of memory, with a note of vmcoreinfo.
fn core() -> Vec<u8> {
    let page = |page: usize| {
        let fill = if page.is_multiple_of(3) { 0 } else { page as u8 | 1 };
        (0..PAGE).map(|at| if at % 7 == 0 { fill } else { fill / 2 }).collect()
    };
    core_file::core((0..PAGES).map(page))
}

fn hotdump(args: &[&str], dir: &Path, stdin: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hotdump"));
    command.args(args).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that does not read it goes away early.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("core"), core()).unwrap();
    dir
}

#[test]
fn a_dump_goes_through_every_format_and_back() {
    let dir = directory();
    let run = |args: &[&str]| {
        let output = hotdump(args, dir.path(), b"");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        output
    };
    for codec in ["zstd", "zlib", "lzo", "snappy", "none"] {
        run(&["dump", "convert", "core", codec, "--compression", codec]);
        let info = json(&run(&["dump", "info", "--json", codec]));
        assert_eq!((&info["format"], &info["kernel_release"]), (&"kdump-compressed".into(), &"6.12".into()));
        assert_eq!((&info["pages"], &info["kept_pages"]), (&PAGES.into(), &PAGES.into()), "{codec}");
        let checked = json(&run(&["dump", "check", "--json", codec]));
        assert_eq!((&checked["good_pages"], &checked["bad_pages"]), (&PAGES.into(), &0.into()), "{codec}");
        run(&["dump", "convert", codec, "back", "--format", "elf", "--force"]);
        let back = fs::read(dir.path().join("back")).unwrap();
        let memory = &core()[PAGE..];
        assert!(
            back.windows(memory.len()).any(|part| part == memory),
            "{codec}: the memory is there as it was"
        );
    }
    let stream = run(&["dump", "convert", "core", "-"]).stdout;
    assert!(stream.starts_with(b"makedumpfile\0"));
    let restored = hotdump(&["dump", "convert", "-", "restored"], dir.path(), &stream);
    assert_eq!(restored.status.code(), Some(0), "{restored:?}");
    assert_eq!(json(&run(&["dump", "check", "--json", "restored"]))["good_pages"], PAGES);
    fs::write(dir.path().join("stream"), &stream).unwrap();
    assert_eq!(json(&run(&["dump", "info", "--json", "stream"]))["flattened_whole"], true);
    let filtered = json(&run(&["dump", "filter", "-d", "1", "core", "filtered", "--json"]));
    assert_eq!((&filtered["dump_level"], &filtered["zero_pages"]), (&1.into(), &(PAGES / 3).into()));
}

#[test]
fn damage_and_wrong_use_are_told() {
    let dir = directory();
    let run = |args: &[&str], stdin: &[u8]| {
        let output = hotdump(args, dir.path(), stdin);
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(run(&["dump", "convert", "core", "k"], b"").0, 0);
    let (code, words) = run(&["dump", "convert", "core", "k"], b"");
    assert!(code == 1 && words.contains("--force replaces it"), "{words}");
    let whole = fs::read(dir.path().join("k")).unwrap();
    fs::write(dir.path().join("cut"), &whole[..whole.len() - 2000]).unwrap();
    assert_eq!(run(&["dump", "check", "cut"], b"").0, 2);
    fs::write(dir.path().join("short core"), &core()[..PAGE * 100]).unwrap();
    assert_eq!(run(&["dump", "check", "short core"], b"").0, 2);
    for (file, words) in [("none", "cannot open none"), ("junk", "junk"), ("empty", "empty")] {
        fs::write(dir.path().join("junk"), [7; 9000]).unwrap();
        fs::write(dir.path().join("empty"), b"").unwrap();
        for command in ["info", "check"] {
            let (code, told) = run(&["dump", command, file], b"");
            assert!(code == 1 && told.contains(words), "{command} {file}: {told}");
        }
    }
    let stream = hotdump(&["dump", "convert", "core", "-"], dir.path(), b"").stdout;
    let (code, words) = run(&["dump", "convert", "-", "r"], &stream[..stream.len() - 100]);
    assert!(code == 1 && words.contains("ends early") && words.contains("r.incomplete is left"), "{words}");
    assert!(!dir.path().join("r").exists());
}

/// /dev/full takes nothing; a file of a limited size stands for a disk that fills up.
#[test]
fn a_disk_that_fills_up_leaves_what_can_be_read() {
    let dir = directory();
    let binary = env!("CARGO_BIN_EXE_hotdump");
    // Blocks of 1 KiB. A signal would end the program before the write fails.
    let script = format!(
        "trap '' XFSZ; ulimit -f 1000; exec {binary} dump convert core k --compression none --threads 1"
    );
    let output = Command::new("/bin/bash").args(["-c", &script]).current_dir(dir.path()).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("k.incomplete is left") && words.contains("File too large"), "{words}");
    let checked = hotdump(&["dump", "check", "--json", "k.incomplete"], dir.path(), b"");
    assert_eq!(checked.status.code(), Some(2));
    let checked = json(&checked);
    assert_eq!(checked["compressed"]["incomplete"], true);
    assert!(
        checked["good_pages"].as_u64().unwrap() > 100 && checked["bad_pages"].as_u64().unwrap() > 100,
        "{checked}"
    );
}
