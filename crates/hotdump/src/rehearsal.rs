//! `hotdump test`: crashes this machine on purpose, and tells afterwards whether the dump arrived.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use host::Host;
use serde::{Deserialize, Serialize};

use crate::capture::{LOG, Target};
use crate::dumps::store;
use crate::prepared::{Prepared, mounted_at};
use crate::record::{self, Record};
use crate::screen::{Color, Screen, Tone};
use crate::text::{ago, moment, print, print_json};
use crate::verify::{self, Verdict};
use crate::whole::{self, Readers};
use crate::{exit, target};

const ABOUT: &str = "\
Without --really-crash nothing is touched: it tells how the last test came out. A server that the dump was to go to is asked, on the way of \
`hotdump target check`; `hotdump status` does not ask servers.

With it, first `hotdump verify` and `hotdump target check` must find nothing wrong. Then a line with a random word goes to the kernel log, \
what is in memory is written to disk, and the machine panics, as by the magic SysRq key. Programs are not stopped: \
what they have not saved is lost. The capture kernel saves the dump and does what it is configured to do, as a rule a reboot. After that, \
`hotdump test` and `hotdump status` look for the dump whose log has that word.

Exit codes:
  0  the dump of the last test arrived, whole
  1  wrong usage, or the machine was not crashed, and why
  2  the dump of the last test did not arrive, or not whole
  3  cannot tell: the server cannot be asked, or the filesystem is not mounted here
  4  there was no test";

/// What a test leaves behind for after the reboot.
const MARK: &str = "/var/lib/hotdump/test.json";
/// The kernel log's line has this in front of the word.
const WORD: &str = "hotdump: test crash ";

/// Options of `hotdump test`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = ABOUT)]
pub(crate) struct Args {
    /// Crash this machine now
    #[arg(long, conflicts_with = "json")]
    really_crash: bool,
    /// Do not ask on the terminal before
    #[arg(long, requires = "really_crash")]
    yes: bool,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    /// When to colour
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Color,
}

/// A test that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// The random word in the kernel log.
    word: String,
    /// The boot that was to crash.
    boot_id: String,
    /// When, in seconds since 1970.
    time: u64,
    /// Where the dump was to go, for people.
    target: String,
    /// Where the dump was to lie on this system; none where that cannot be seen from here.
    dumps: Option<PathBuf>,
    /// Where the log goes where a server does not take the dump.
    log: Option<PathBuf>,
    /// The initramfs, where the dump was to go to a server: it has the way there.
    initramfs: Option<PathBuf>,
}

/// How a test came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "result")]
pub(crate) enum Outcome {
    /// The dump is there, whole.
    Arrived {
        /// Its directory.
        dump: PathBuf,
    },
    /// There is something, not all.
    Partly {
        /// Its directory.
        dump: PathBuf,
        /// What its report says.
        status: String,
    },
    /// There is nothing where it should be.
    Missing,
    /// The machine is still in the boot that was to crash.
    NotCrashed,
    /// Where it went cannot be seen from here.
    OutOfSight {
        /// Why not, where a server was asked.
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
}

/// The last test of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LastTest {
    /// In seconds since 1970.
    time: u64,
    target: String,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

impl LastTest {
    /// The last test, if there was one. No server is asked.
    pub(crate) fn read(host: &Host) -> Option<Self> {
        Some(Self::of(&Mark::read(Path::new(MARK))?, &host.boot_id().unwrap_or_default()))
    }

    /// The same, and a server that the dump was to go to is asked.
    fn read_and_ask(host: &Host) -> Option<Self> {
        let mark = Mark::read(Path::new(MARK))?;
        let mut last = Self::of(&mark, &host.boot_id().unwrap_or_default());
        if let (Outcome::OutOfSight { .. }, Some(initramfs)) = (&last.outcome, &mark.initramfs) {
            last.outcome = mark.ask_server(initramfs);
        }
        Some(last)
    }

    fn of(mark: &Mark, boot_id: &str) -> Self {
        let outcome = if mark.boot_id == boot_id { Outcome::NotCrashed } else { mark.search() };
        Self { time: mark.time, target: mark.target.clone(), outcome }
    }

    /// How it came out, in words.
    pub(crate) fn words(&self) -> String {
        let when = format!("{}{}", moment(self.time), ago(self.time));
        match &self.outcome {
            Outcome::Arrived { dump } => format!("{when}: the dump arrived: {}", dump.display()),
            Outcome::Partly { dump, status } => {
                format!("{when}: the dump is not whole ({status}): {}", dump.display())
            }
            Outcome::Missing => format!("{when}: no dump arrived at {}", self.target),
            Outcome::NotCrashed => format!("{when}: the machine has not crashed since"),
            Outcome::OutOfSight { why } => {
                let why = why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                format!("{when}: the dump went to {}, which cannot be seen from here{why}", self.target)
            }
        }
    }

    /// Whether something is surely wrong.
    pub(crate) fn has_failed(&self) -> bool {
        !matches!(self.outcome, Outcome::Arrived { .. } | Outcome::OutOfSight { .. })
    }

    fn exit_code(&self) -> u8 {
        match self.outcome {
            Outcome::Arrived { .. } => exit::OK,
            Outcome::Partly { .. } | Outcome::Missing | Outcome::NotCrashed => 2,
            Outcome::OutOfSight { .. } => exit::UNKNOWN,
        }
    }
}

impl Mark {
    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        // Made by the service as a rule, and not there where the initramfs lies elsewhere.
        record::make_dir(path.parent().unwrap_or(path))?;
        whole::write(path, &serde_json::to_vec_pretty(self)?, Readers::Owner)
    }

    /// Looks for the dump on this system.
    fn search(&self) -> Outcome {
        let directories = [&self.dumps, &self.log];
        match directories.into_iter().flatten().find_map(|dir| self.find_in(dir)) {
            Some(dump) => Outcome::of(dump.path, dump.status),
            // A directory that is not there may be on a filesystem that is not mounted.
            None if self.dumps.as_ref().is_some_and(|dir| dir.is_dir()) => Outcome::Missing,
            None => Outcome::OutOfSight { why: None },
        }
    }

    /// Looks for the dump on the server that `initramfs` has the way to.
    fn ask_server(&self, initramfs: &Path) -> Outcome {
        let (path, prepared) = match target::read_initramfs(Some(initramfs.to_owned())) {
            Ok(read) => read,
            Err(error) => return Outcome::OutOfSight { why: Some(format!("{error:#}")) },
        };
        if prepared.shown_target() != self.target {
            let why = format!("{} names {} since", path.display(), prepared.shown_target());
            return Outcome::OutOfSight { why: Some(why) };
        }
        match target::look_at_server(&path, &prepared, |dir| self.find_in(dir)) {
            Ok(Some(dump)) => {
                // Where it lies on the server, not where that is shown for the moment.
                let server = prepared.config.target.as_ref().map(ToString::to_string).unwrap_or_default();
                let dir = format!("{server}{}", prepared.config.path.join(dump.name).display());
                Outcome::of(PathBuf::from(dir), dump.status)
            }
            Ok(None) => Outcome::Missing,
            Err(why) => Outcome::OutOfSight { why: Some(why) },
        }
    }

    /// The newest dump in `dir` whose log has the word.
    fn find_in(&self, dir: &Path) -> Option<store::Entry> {
        let dumps = store::list(dir).ok()?;
        dumps.into_iter().rev().find(|dump| holds(&dump.path.join(LOG), &self.word))
    }
}

impl Outcome {
    /// Of a dump that was found, by what its report says.
    fn of(dump: PathBuf, status: String) -> Self {
        if status == "saved" { Self::Arrived { dump } } else { Self::Partly { dump, status } }
    }
}

/// Whether a kernel log has the line of a test.
fn holds(log: &Path, word: &str) -> bool {
    let line = format!("{WORD}{word}");
    fs::read(log).is_ok_and(|text| text.windows(line.len()).any(|part| part == line.as_bytes()))
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// Why the machine was not crashed.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let host = Host::live();
    if args.really_crash {
        return crash(args, &host);
    }
    let last = LastTest::read_and_ask(&host);
    if args.json {
        print_json(&last)?;
    } else {
        print(told(last.as_ref(), args.color.is_wanted()))?;
    }
    Ok(last.map_or(exit::NOT_LOADED, |last| last.exit_code()))
}

fn told(last: Option<&LastTest>, coloured: bool) -> String {
    let mut screen = Screen::new(coloured);
    match last {
        None => {
            screen.told("NOT TESTED", Tone::Doubtful, "whether a dump arrives is known only after a crash");
            screen.told(
                "NEXT",
                Tone::Strong,
                "`hotdump test --really-crash`: it crashes this machine, which then boots again",
            );
        }
        Some(last) => {
            let (word, tone) = match last.outcome {
                Outcome::Arrived { .. } => ("PASSED", Tone::Good),
                Outcome::OutOfSight { .. } => ("NOT SEEN", Tone::Doubtful),
                _ => ("FAILED", Tone::Bad),
            };
            screen.told(word, tone, &last.words());
        }
    }
    screen.text()
}

/// Crashes the machine, where nothing speaks against it.
fn crash(args: &Args, host: &Host) -> anyhow::Result<u8> {
    let (verdict, findings) = verify::judgement(host);
    if verdict != Verdict::Complete {
        bail!("not crashed: a dump would not be complete: {}", findings.join("; "));
    }
    let record = Record::read(record::DIR)?.filter(|record| record.is_of_this_boot(host));
    let Some(initramfs) = record.and_then(|record| record.initrd) else {
        bail!("not crashed: what is loaded was not loaded by hotdump, so where its dump goes is not known");
    };
    let (path, prepared) = target::read_initramfs(Some(initramfs))?;
    let steps = target::check(&path, &prepared)?;
    let mut screen = Screen::new(args.color.is_wanted());
    steps.show(&mut screen);
    if !steps.all_done() {
        print(screen.text())?;
        bail!("not crashed: the dump would not arrive");
    }
    let action = prepared.config.final_action;
    screen.told(
        "CRASH",
        Tone::Bad,
        "this machine panics now. Programs are not stopped; what they have not saved is lost.",
    );
    screen.row("dump", &prepared.shown_target());
    screen.row("then", &format!("{action}; `hotdump test` tells whether the dump arrived"));
    print(screen.text())?;
    if !args.yes && io::stdin().is_terminal() && !confirmed()? {
        bail!("not crashed: you did not say yes");
    }
    let mark = mark(host, &path, &prepared)?;
    mark.write(Path::new(MARK)).with_context(|| format!("not crashed: cannot write {MARK}"))?;
    panic_machine(&mark.word).context("not crashed")?;
    bail!("not crashed: the kernel took the request and goes on");
}

fn confirmed() -> io::Result<bool> {
    print!("Crash this machine? Type yes: ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

fn mark(host: &Host, initramfs: &Path, prepared: &Prepared) -> anyhow::Result<Mark> {
    let is_server = matches!(prepared.config.target, Some(Target::Nfs(_) | Target::Ssh(_)));
    let log = prepared.config.local_log.as_ref();
    let log = log.and_then(|log| mounted_at(Path::new("/"), &log.target, &log.path));
    let word = fs::read_to_string("/proc/sys/kernel/random/uuid").context("a random word")?;
    Ok(Mark {
        word: word.trim().to_owned(),
        boot_id: host.boot_id()?,
        time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        target: prepared.shown_target(),
        dumps: prepared.dumps(),
        log: log.map(|(point, below)| point.join(below)),
        initramfs: is_server.then(|| initramfs.to_owned()),
    })
}

/// Panics the machine. Comes back only where the kernel refuses.
fn panic_machine(word: &str) -> io::Result<()> {
    // At the level of emergencies, so that no limit on the log's lines drops it.
    fs::write("/dev/kmsg", format!("<0>{WORD}{word}\n"))?;
    rustix::fs::sync();
    fs::write("/proc/sysrq-trigger", "c")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::CONFIG_PATH;
    use crate::initramfs::archive::Archive;

    fn mark(dumps: Option<&Path>, log: Option<&Path>) -> Mark {
        Mark {
            word: "0b5e-77".into(),
            boot_id: "one".into(),
            time: 17_179_869_180,
            target: "LABEL=x, ext4, directory /crash".into(),
            dumps: dumps.map(Path::to_owned),
            log: log.map(Path::to_owned),
            initramfs: None,
        }
    }

    fn dump(dir: &Path, name: &str, status: &str, log: &str) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join(store::REPORT), format!("{{\"status\": \"{status}\"}}")).unwrap();
        fs::write(path.join(LOG), log).unwrap();
        path
    }

    #[test]
    fn the_dump_of_a_test_is_told_by_the_word_in_its_log() {
        let (dir, log) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let line = "[    1.2] hotdump: test crash 0b5e-77\n[    1.3] sysrq: Trigger a crash\n";
        let outcome = |mark: &Mark| LastTest::of(mark, "two").outcome;
        let there = mark(Some(dir.path()), Some(log.path()));
        dump(dir.path(), "2026-11-22-15:32:10", "saved", "hotdump: test crash 0b5e-78\n");
        assert_eq!(outcome(&there), Outcome::Missing, "another test's");
        assert_eq!(outcome(&mark(None, Some(log.path()))), Outcome::OutOfSight { why: None });
        assert_eq!(outcome(&mark(Some(&dir.path().join("none")), None)), Outcome::OutOfSight { why: None });
        let local = dump(log.path(), "2026-11-22-15:32:11", "partial", line);
        assert_eq!(outcome(&there), Outcome::Partly { dump: local, status: "partial".into() });
        let whole = dump(dir.path(), "2026-11-22-15:32:12", "saved", line);
        // Another crash since is no matter.
        dump(dir.path(), "2026-11-22-15:32:13", "saved", "Kernel panic\n");
        assert_eq!(outcome(&there), Outcome::Arrived { dump: whole });
        assert_eq!(LastTest::of(&there, "one").outcome, Outcome::NotCrashed);
    }

    #[test]
    fn words_and_exit_codes() {
        for (outcome, word, code) in [
            (
                Outcome::Arrived { dump: "/x".into() },
                "PASSED: 2514-05-30T01:53:00Z: the dump arrived: /x\n",
                0,
            ),
            (Outcome::Partly { dump: "/x".into(), status: "partial".into() }, "FAILED: ", 2),
            (Outcome::Missing, "FAILED: ", 2),
            (Outcome::NotCrashed, "FAILED: ", 2),
            (Outcome::OutOfSight { why: None }, "NOT SEEN: ", 3),
        ] {
            let last = LastTest { time: 17_179_869_180, target: "y".into(), outcome };
            assert!(told(Some(&last), false).starts_with(word), "{last:?}");
            assert_eq!(last.exit_code(), code);
            assert_eq!(last.has_failed(), code == 2);
        }
        assert!(told(None, false).starts_with("NOT TESTED: "));
        let outcome = Outcome::OutOfSight { why: Some("no answer".into()) };
        let words = LastTest { time: 17_179_869_180, target: "y".into(), outcome }.words();
        assert!(words.ends_with("went to y, which cannot be seen from here: no answer"), "{words}");
    }

    #[test]
    fn a_mark_reads_back_and_what_is_none_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hotdump/test.json");
        assert_eq!(Mark::read(&path), None);
        let written = mark(Some(dir.path()), None);
        written.write(&path).unwrap();
        assert_eq!(Mark::read(&path), Some(written));
        // As it was written before there was more to it.
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(",\n  \"initramfs\": null", "")).unwrap();
        assert_eq!(Mark::read(&path).unwrap().initramfs, None);
        fs::write(&path, "{").unwrap();
        assert_eq!(Mark::read(&path), None);
    }

    #[test]
    fn a_server_is_asked_by_the_initramfs_that_names_it_still() {
        let dir = tempfile::tempdir().unwrap();
        let why = |mark: &Mark, initramfs: &Path| match mark.ask_server(initramfs) {
            Outcome::OutOfSight { why: Some(why) } => why,
            other => panic!("{other:?}"),
        };
        let gone = dir.path().join("gone");
        assert!(why(&mark(None, None), &gone).contains("there is no initramfs"));

        let config = "target = \"nfs:192.0.2.1:/srv\"\npath = \"/crash/web1\"\n";
        let mut archive = Archive::default();
        archive.file(CONFIG_PATH, 0o600, config.into());
        let path = dir.path().join("initrd");
        fs::write(&path, archive.pack().unwrap()).unwrap();
        let names = "nfs:192.0.2.1:/srv, directory /crash/web1";
        assert!(why(&mark(None, None), &path).ends_with(&format!("names {names} since")));
        let same = Mark { target: names.into(), ..mark(None, None) };
        assert!(why(&same, &path).contains("knows no way to the server"));
    }
}
