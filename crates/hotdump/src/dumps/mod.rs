//! `hotdump dumps`: what captures left behind, on the running system.

pub(crate) mod store;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;
use serde_json::Value;

use crate::capture::Config;
use crate::manifest::{self, Manifest, Verdict};
use crate::text::{counted, print, print_json, size};
use crate::{capture, exit, text};
use store::{Entry, Retention};

/// What `--help` of `check` says.
const CHECK_CODES: &str = "\
Exit codes:
  0  the file is as it was written
  1  wrong usage, or the file cannot be read
  2  the file is not as it was written; the places are named
  3  cannot tell: it was saved without a manifest";

/// Options of `hotdump dumps`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The directory that holds the dumps [default: the path in capture.toml where that is here, else /var/crash]
    #[arg(long, short = 'D', value_name = "DIR", global = true)]
    directory: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// List the dumps, the oldest first
    List {
        /// Print the answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one dump: what crashed, what was saved
    Show {
        /// The dump's name, or latest
        #[arg(default_value = "latest")]
        name: String,
        /// Print the report as JSON, as the capture wrote it
        #[arg(long)]
        json: bool,
    },
    /// Remove dumps
    #[command(group = clap::ArgGroup::new("which").required(true).multiple(false))]
    Remove {
        /// The dumps' names
        #[arg(value_name = "NAME", group = "which")]
        names: Vec<String>,
        /// All but the newest N (at least 1)
        #[arg(long, value_name = "N", group = "which", value_parser = clap::value_parser!(u32).range(1..))]
        keep: Option<u32>,
        /// Say what would go, and remove nothing
        #[arg(long, short = 'n')]
        dry_run: bool,
        /// Print what went as JSON
        #[arg(long)]
        json: bool,
    },
    /// Check that a dump is as it was written, by its manifest
    #[command(after_help = CHECK_CODES)]
    Check {
        /// The dump's name, latest, its directory, or its file
        #[arg(value_name = "NAME|FILE", default_value = "latest")]
        dump: PathBuf,
        /// Print the answer as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command; returns the exit code.
///
/// # Errors
/// What could not be found, read or removed.
pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let dir = args.directory.clone().unwrap_or_else(default_directory);
    match &args.command {
        Command::List { json } => show_list(&entries(&dir)?, *json),
        Command::Show { name, json } => show(&find(&dir, name)?, *json),
        Command::Remove { names, keep, dry_run, json } => remove(&dir, names, *keep, *dry_run, *json),
        Command::Check { dump, json } => check(&dir, dump, *json),
    }
}

/// Where the captures of this machine lie, as far as this machine says so.
fn default_directory() -> PathBuf {
    let text = fs::read_to_string(capture::CONFIG_PATH).ok();
    text.and_then(|text| Config::parse(&text).ok()).unwrap_or_default().path
}

fn entries(dir: &Path) -> anyhow::Result<Vec<Entry>> {
    store::list(dir).with_context(|| format!("cannot read the dumps in {}", dir.display()))
}

/// The dump called `name`; for `latest` the newest.
fn find(dir: &Path, name: &str) -> anyhow::Result<Entry> {
    let mut entries = entries(dir)?;
    let found = match name {
        "latest" => entries.pop(),
        _ => entries.into_iter().find(|entry| entry.name == name),
    };
    found.with_context(|| match name {
        "latest" => format!("there is no dump in {}", dir.display()),
        _ => format!(
            "there is no dump {name} in {}: hotdump dumps list names those that are there",
            dir.display()
        ),
    })
}

fn show_list(entries: &[Entry], json: bool) -> anyhow::Result<u8> {
    if json {
        print_json(&entries)?;
    } else {
        print(table(entries))?;
    }
    Ok(exit::OK)
}

/// The list as people read it.
fn table(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return "no dumps\n".to_owned();
    }
    let head = ["DUMP", "STATUS", "ON DISK", "KERNEL", "WHY"].map(str::to_owned);
    let rows = entries.iter().map(|entry| {
        let known = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        [
            entry.name.clone(),
            entry.status.clone(),
            size(entry.disk_bytes),
            known(&entry.kernel_release),
            known(&entry.panic),
        ]
    });
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2), width(3)];
    let line = |row: &[String; 5]| {
        format!(
            "{:w0$}  {:w1$}  {:>w2$}  {:w3$}  {}\n",
            row[0],
            row[1],
            row[2],
            row[3],
            row[4],
            w0 = widths[0],
            w1 = widths[1],
            w2 = widths[2],
            w3 = widths[3]
        )
    };
    rows.iter().map(line).collect()
}

fn show(entry: &Entry, json: bool) -> anyhow::Result<u8> {
    let report = read_report(&entry.path);
    if json {
        print_json(&report?)?;
        return Ok(exit::OK);
    }
    let mut out =
        format!("{}\nstatus    {}, {} on disk\n", entry.path.display(), entry.status, size(entry.disk_bytes));
    if let Ok(report) = &report {
        if let Some(memory) = report.get("memory").filter(|memory| memory.is_object()) {
            out += &memory_lines(memory);
        }
        for error in
            report.get("errors").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
        {
            out += &format!("missing   {error}\n");
        }
    }
    match fs::read_to_string(entry.path.join(capture::TRIAGE)) {
        Ok(triage) => out += &format!("\n{triage}"),
        Err(_) => {
            out += &format!(
                "kernel    {}\npanic     {}\n",
                entry.kernel_release.as_deref().unwrap_or("unknown"),
                entry.panic.as_deref().unwrap_or("unknown")
            )
        }
    }
    print(out)?;
    Ok(exit::OK)
}

/// What a report says of the memory.
fn memory_lines(memory: &Value) -> String {
    let number = |name: &str| memory.get(name).and_then(Value::as_u64).unwrap_or(0);
    let word = |name: &str| memory.get(name).and_then(Value::as_str).map(str::to_owned);
    let mut out = format!("memory    {}, {} long", word("file").unwrap_or_default(), size(number("size")));
    if let Some(format) = word("format") {
        out += &format!(", {format}");
    }
    if let Some(level) = memory.get("dump_level").and_then(Value::as_u64) {
        out += &format!(", dump level {level}");
    }
    out += &format!(
        "; {} of data, {} of zeros, {} bad",
        counted(number("data_pages") as usize, "page"),
        counted(number("zero_pages") as usize, "page"),
        number("bad_pages")
    );
    match number("lost_pages") {
        0 => {}
        lost => out += &format!(", {lost} lost by the disk"),
    }
    out + "\n"
}

fn read_report(dir: &Path) -> anyhow::Result<Value> {
    let path = dir.join(store::REPORT);
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no report", path.display()))
}

fn remove(dir: &Path, names: &[String], keep: Option<u32>, dry_run: bool, json: bool) -> anyhow::Result<u8> {
    let mut removed = Vec::new();
    match keep {
        Some(keep) if !dry_run => {
            let (gone, error) = store::retain(dir, Retention { keep: Some(keep), free: None }, || Ok(0));
            if let Some(error) = error {
                bail!("cannot remove a dump in {} (removed {}): {error}", dir.display(), gone.len());
            }
            removed = gone;
        }
        Some(keep) => {
            let mut entries = entries(dir)?;
            entries.truncate(entries.len().saturating_sub(keep as usize));
            removed = entries;
        }
        None => {
            // All names are looked up before anything goes.
            let entries = names.iter().map(|name| find(dir, name)).collect::<anyhow::Result<Vec<_>>>()?;
            for entry in entries {
                if !dry_run {
                    store::remove(&entry)
                        .with_context(|| format!("cannot remove {}", entry.path.display()))?;
                }
                removed.push(entry);
            }
        }
    }
    if json {
        print_json(&removed)?;
        return Ok(exit::OK);
    }
    let word = if dry_run { "would remove" } else { "removed" };
    let lines: String = removed
        .iter()
        .map(|entry| format!("{word} {}, {}\n", entry.path.display(), size(entry.disk_bytes)))
        .collect();
    print(if lines.is_empty() { "nothing to remove\n".to_owned() } else { lines })?;
    Ok(exit::OK)
}

/// What `check` found.
#[derive(Debug, Serialize)]
struct Checked {
    file: PathBuf,
    /// `good`, `bad` or `unknown`.
    verdict: &'static str,
    /// Why, where it is not good.
    problems: Vec<String>,
    #[serde(flatten)]
    sums: Verdict,
}

fn check(dir: &Path, dump: &Path, json: bool) -> anyhow::Result<u8> {
    let file = dump_file(dir, dump)?;
    let checked = check_file(&file)?;
    let code = match checked.verdict {
        "good" => exit::OK,
        "bad" => exit::STALE,
        _ => exit::UNKNOWN,
    };
    if json {
        print_json(&checked)?;
        return Ok(code);
    }
    let mut out = match checked.verdict {
        "good" => {
            format!("{}: as it was written, {} checked\n", file.display(), size(checked.sums.good_bytes))
        }
        "bad" => format!("{}: NOT as it was written\n", file.display()),
        _ => format!("{}: cannot tell\n", file.display()),
    };
    checked.problems.iter().for_each(|problem| out += &format!("  {problem}\n"));
    print(out)?;
    Ok(code)
}

/// The file that `dump` means: a file, a directory with one in it, or a dump's name.
fn dump_file(dir: &Path, dump: &Path) -> anyhow::Result<PathBuf> {
    if dump.is_file() {
        return Ok(dump.to_owned());
    }
    if dump.is_dir() && dump.components().count() > 0 {
        let files = [store::WHOLE, store::INCOMPLETE].map(|name| dump.join(name));
        let found = files.into_iter().find(|file| file.is_file());
        return found.with_context(|| format!("{} holds no dump", dump.display()));
    }
    let entry = find(dir, &dump.to_string_lossy())?;
    entry.file.with_context(|| format!("{} holds no memory: {}", entry.path.display(), entry.status))
}

/// Holds a dump's file against the manifest beside it, and that against the report.
fn check_file(file: &Path) -> anyhow::Result<Checked> {
    let answer = |verdict, problems, sums| Checked { file: file.to_owned(), verdict, problems, sums };
    let dir = file.parent().unwrap_or(Path::new("."));
    let path = dir.join(store::MANIFEST);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) => {
            return Ok(answer(
                "unknown",
                vec![format!("cannot read {}: {error}", path.display())],
                Verdict::default(),
            ));
        }
    };
    let mut problems = Vec::new();
    let report = read_report(dir).ok();
    let told = report.as_ref().and_then(|report| report.get("memory")?.get("manifest_sha256")?.as_str());
    if told.is_some_and(|told| told != manifest::sha256_of(&text)) {
        problems.push(format!("{} is not the one that {} names", path.display(), store::REPORT));
    }
    let manifest: Manifest = match serde_json::from_slice(&text) {
        Ok(manifest) => manifest,
        Err(error) => {
            return Ok(answer(
                "bad",
                vec![format!("{} is damaged: {error}", path.display())],
                Verdict::default(),
            ));
        }
    };
    let open = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let length = open.metadata()?.len();
    if length != manifest.size {
        problems.push(format!("it is {} bytes long, and was written {} long", length, manifest.size));
    }
    let mut shown = text::Ticker::new();
    let sums = manifest.check(&open, None, |done, total| {
        shown.show(|| format!("checking: {} of {}", size(done), size(total)));
    });
    problems.extend(
        sums.bad
            .iter()
            .map(|(offset, len)| format!("{len} bytes at offset {offset:#x} are not what was written")),
    );
    Ok(answer(if problems.is_empty() { "good" } else { "bad" }, problems, sums))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::manifest::Recorder;

    /// A directory with one dump in it, with manifest and report.
    fn one_dump() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("2026-11-22-15:32:10");
        fs::create_dir(&home).unwrap();
        let path = home.join(store::WHOLE);
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let recorder = Recorder::default();
        let bytes = vec![7; 200_000];
        file.write_all_at(&bytes, 0).unwrap();
        recorder.note(0, &bytes);
        let manifest = serde_json::to_vec(&recorder.finish(&file).unwrap()).unwrap();
        fs::write(home.join(store::MANIFEST), &manifest).unwrap();
        let report = serde_json::json!({
            "status": "saved", "kernel_release": "6.12", "panic": "Kernel panic - not syncing: test",
            "memory": { "file": "vmcore", "size": 200_000, "manifest_sha256": manifest::sha256_of(&manifest) },
        });
        fs::write(home.join(store::REPORT), report.to_string()).unwrap();
        (dir, path)
    }

    #[test]
    fn a_file_is_held_against_its_manifest_and_that_against_the_report() {
        type Harm = fn(&Path);
        let cases: [(Harm, u8, &str); 6] = [
            (|_| (), exit::OK, ""),
            (|file| fs::write(file, vec![7; 199_999]).unwrap(), exit::STALE, "199999 bytes long"),
            (
                |file| File::options().write(true).open(file).unwrap().write_all_at(&[8], 150_000).unwrap(),
                exit::STALE,
                "at offset 0x0",
            ),
            (
                |file| fs::remove_file(file.with_file_name(store::MANIFEST)).unwrap(),
                exit::UNKNOWN,
                "cannot read",
            ),
            (
                |file| fs::write(file.with_file_name(store::MANIFEST), "{}").unwrap(),
                exit::STALE,
                "is damaged",
            ),
            (
                |file| {
                    let manifest = file.with_file_name(store::MANIFEST);
                    let text = fs::read_to_string(&manifest).unwrap();
                    fs::write(manifest, text + " ").unwrap();
                },
                exit::STALE,
                "is not the one",
            ),
        ];
        for (harm, code, words) in cases {
            let (dir, file) = one_dump();
            harm(&file);
            let problems = check_file(&file).unwrap().problems.join("\n");
            assert!(
                problems.contains(words) && problems.is_empty() == words.is_empty(),
                "{words}: {problems}"
            );
            for by in [
                file.as_path(),
                file.parent().unwrap(),
                Path::new("latest"),
                Path::new("2026-11-22-15:32:10"),
            ] {
                assert_eq!(check(dir.path(), by, true).unwrap(), code, "{words} by {}", by.display());
            }
        }
    }

    #[test]
    fn a_list_is_a_table_and_names_that_are_not_there_are_said_before_anything_goes() {
        let (dir, _) = one_dump();
        fs::create_dir(dir.path().join("2026-11-23-00:00:00")).unwrap();
        let text = table(&entries(dir.path()).unwrap());
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("DUMP                 STATUS   ON DISK  KERNEL  WHY"), "{text}");
        assert!(
            lines[1].contains("saved") && lines[1].ends_with("6.12    Kernel panic - not syncing: test"),
            "{text}"
        );
        assert!(lines[2].contains("unknown  0 bytes  -       -"), "{text}");
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let error =
            remove(dir.path(), &names(&["2026-11-23-00:00:00", "nope"]), None, false, false).unwrap_err();
        assert!(error.to_string().contains("nope"), "{error}");
        assert_eq!(entries(dir.path()).unwrap().len(), 2);
        remove(dir.path(), &[], Some(1), true, false).unwrap();
        assert_eq!(entries(dir.path()).unwrap().len(), 2, "a dry run");
        remove(dir.path(), &[], Some(1), false, false).unwrap();
        assert_eq!(find(dir.path(), "latest").unwrap().name, "2026-11-23-00:00:00");
        remove(dir.path(), &names(&["2026-11-23-00:00:00"]), None, false, false).unwrap();
        assert_eq!(table(&entries(dir.path()).unwrap()), "no dumps\n");
        assert!(find(dir.path(), "latest").unwrap_err().to_string().contains("there is no dump in"));
    }
}
