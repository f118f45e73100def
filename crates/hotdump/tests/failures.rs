//! `hotdump capture` where something goes wrong: what is saved is usable, what is not is said, the exit code tells.

mod core_file;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::Duration;

use core_file::PAGE;
use serde_json::Value;

/// Pages of the image. They do not shrink.
const PAGES: usize = 6000;
/// The exit code for a capture that saved a part.
const PARTIAL: Option<i32> = Some(2);

/// A directory with an image, and a configuration that has all of it saved page by page.
fn directory() -> tempfile::TempDir {
    directory_of(PAGES)
}

/// The same with an image of so many pages.
fn directory_of(pages: usize) -> tempfile::TempDir {
    let mut state = 1u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 32).to_le_bytes()
    };
    let page = |_| (0..PAGE / 4).flat_map(|_| noise()[..4].to_vec()).collect();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("image"), core_file::core((0..pages).map(page))).unwrap();
    fs::write(dir.path().join("capture.toml"), "dump-level = 1\n").unwrap();
    dir
}

/// A line of shell that captures, after what `before` says.
fn capture(dir: &Path, before: &str) -> Command {
    let binary = env!("CARGO_BIN_EXE_hotdump");
    let line =
        format!("{before} exec {binary} capture --config capture.toml --to . --path crash --vmcore image");
    let mut command = Command::new("/bin/bash");
    command.args(["-c", &line]).current_dir(dir);
    command
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The directory of the one dump that there is.
fn place(dir: &Path) -> PathBuf {
    let places: Vec<_> =
        fs::read_dir(dir.join("crash")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [place] = &places[..] else { panic!("{places:?}") };
    place.clone()
}

fn report(place: &Path) -> Value {
    serde_json::from_slice(&fs::read(place.join("report.json")).unwrap()).unwrap()
}

/// How many pages of a dump that is not whole can be read, and how many of those that it was to hold cannot; `ended` says that its
/// writer came to the end.
fn pages(place: &Path, ended: bool) -> (u64, u64) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hotdump"));
    let checked =
        command.args(["dump", "check", "--json", "vmcore.incomplete"]).current_dir(place).output().unwrap();
    assert_eq!(checked.status.code(), Some(2), "{checked:?}");
    let checked: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(checked["compressed"]["incomplete"], !ended, "{checked}");
    (checked["good_pages"].as_u64().unwrap(), checked["bad_pages"].as_u64().unwrap())
}

/// A file that takes no more from some size on stands for a disk that fails there.
#[test]
fn a_disk_that_fails_half_way_leaves_what_it_took() {
    let dir = directory();
    // Blocks of 1 KiB. A signal would end the program before the write fails.
    let output = capture(dir.path(), "trap '' XFSZ; ulimit -f 12000;").output().unwrap();
    let words = words(&output);
    assert_eq!(output.status.code(), PARTIAL, "{words}");
    assert!(words.contains("File too large") && words.contains("NOT all of the crash is saved"), "{words}");
    let place = place(dir.path());
    let report = report(&place);
    assert_eq!(report["status"], "partial");
    assert!(report["errors"].to_string().contains("File too large"), "{report}");
    assert!(!place.join("vmcore").exists() && !place.join("manifest.json").exists());
    let (good, bad) = pages(&place, false);
    // A batch of 1 MiB is the least that a thread loses.
    assert!(good > 1500 && bad > 1500 && good + bad == PAGES as u64, "{good} good, {bad} bad");
}

#[test]
fn a_program_that_is_killed_half_way_leaves_what_it_wrote_but_for_the_last() {
    // What is written is described when it is on the disk: after half a second, or some 11,000 pages; as many may be on their way there.
    const LARGE: usize = 60_000;
    let dir = directory_of(LARGE);
    // By the signal that the same limit sends, after some 45,000.
    let output = capture(dir.path(), "ulimit -c 0; ulimit -f 180000;").output().unwrap();
    assert_eq!(output.status.code(), None, "{}", words(&output));
    assert_eq!(output.status.signal(), Some(25), "SIGXFSZ");
    let place = place(dir.path());
    assert_eq!(report(&place)["status"], "in-progress");
    let (good, bad) = pages(&place, false);
    assert!(good > 20_000 && bad > 10_000 && good + bad == LARGE as u64, "{good} good, {bad} bad");
}

/// Pages of a mapped image that cannot be read raise SIGBUS: so does what lies behind the end of a file that became shorter.
#[test]
fn pages_that_cannot_be_read_are_counted_and_named_and_all_others_saved() {
    let dir = directory();
    // A pipe that is full holds the program at the first line that it says, when it has the image open.
    let (mut reader, mut writer) = io::pipe().unwrap();
    writer.write_all(&vec![b'.'; 1 << 16]).unwrap();
    let mut child = capture(dir.path(), "").stderr(writer).spawn().unwrap();
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let image = fs::canonicalize(dir.path().join("image")).unwrap();
    let has_it_open = || {
        let files = fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file == image)
    };
    let sleeps = || fs::read_to_string(proc.join("stat")).unwrap().contains(") S ");
    while !(has_it_open() && sleeps()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended without a word");
        sleep(Duration::from_millis(5));
    }
    let kept = 4000;
    fs::File::options().write(true).open(&image).unwrap().set_len(((kept + 1) * PAGE) as u64).unwrap();
    let mut words = String::new();
    reader.read_to_string(&mut words).unwrap();

    assert_eq!(child.wait().unwrap().code(), PARTIAL, "{words}");
    let lost = PAGES - kept;
    assert!(
        words.contains(&format!("{lost} pages could not be read and are missing in the dump")),
        "{words}"
    );
    let address = 0x10_0000 + kept * PAGE;
    assert!(words.contains(&format!("{lost} pages from address {address:#x}")), "{words}");
    let place = place(dir.path());
    assert_eq!(
        (&report(&place)["status"], &report(&place)["memory"]["bad_pages"]),
        (&"partial".into(), &lost.into())
    );
    assert_eq!(pages(&place, true), (kept as u64, lost as u64));
}

/// It takes windows of an image, however large that is.
#[test]
fn memory_does_not_grow_with_the_image() {
    const MOST: u64 = 32 << 10;
    let dir = directory();
    let image = fs::File::options().write(true).open(dir.path().join("image")).unwrap();
    let size = image.metadata().unwrap().len() + (256 << 20);
    image.set_len(size).unwrap();
    // Sizes in file and memory of the second program header: zeros follow the pages.
    for at in [64 + 56 + 32, 64 + 56 + 40] {
        image.write_all_at(&(size - PAGE as u64).to_le_bytes(), at).unwrap();
    }
    let words = fs::File::create(dir.path().join("words")).unwrap();
    let mut child = capture(dir.path(), "").stderr(words).spawn().unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        most = line.and_then(|line| line.trim_end_matches("kB").trim().parse().ok()).unwrap_or(most);
        sleep(Duration::from_millis(5));
    }
    let place = place(dir.path());
    let report = report(&place);
    // This image has no kernel log.
    assert_eq!(report["errors"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["memory"]["data_pages"], PAGES);
    assert!(place.join("vmcore").exists());
    assert!((1 << 10..MOST).contains(&most), "{most} KiB");
}
