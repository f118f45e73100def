//! The table of kexec command lines against hotdump: those cases that need nothing of the machine.

use std::collections::HashSet;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    args: Vec<String>,
    state: String,
    code: i32,
    stdout: Option<String>,
    stderr: Option<String>,
    after: Option<String>,
    ours: Option<Difference>,
    reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    code: Option<i32>,
    stderr: Option<String>,
}

const MISSING: &str = "/nonexistent/hotdump-test";

fn table() -> Vec<Case> {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/personality_cases.toml"));
    toml::from_str::<Table>(&text.unwrap()).unwrap().case
}

#[test]
fn cases_are_well_formed() {
    let mut names = HashSet::new();
    for case in table() {
        assert!(names.insert(case.name.clone()), "{}: named twice", case.name);
        let states = ["any", "empty", "loaded", "unreserved", "no-hotplug"];
        assert!(states.contains(&case.state.as_str()), "{}: state {}", case.name, case.state);
        assert!(
            case.after.is_none_or(|after| ["empty", "loaded"].contains(&after.as_str())),
            "{}",
            case.name
        );
        assert_eq!(case.ours.is_some(), case.reason.is_some(), "{}: a difference has a reason", case.name);
        assert!(case.ours.is_none_or(|ours| ours.code != Some(case.code)), "{}: the same code", case.name);
    }
}

#[test]
fn cases_that_need_nothing_of_the_machine() {
    for case in table().into_iter().filter(|case| case.state == "any") {
        let fill = |text: &str| text.replace("{missing}", MISSING).replace("{initrd}", MISSING);
        let output = Command::new(env!("CARGO_BIN_EXE_hotdump"))
            .arg0("kexec")
            .args(case.args.iter().map(|arg| fill(arg)))
            .output()
            .unwrap();
        let ours = case.ours.unwrap_or(Difference { code: None, stderr: None });
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let told = format!("{}: {:?}\n{stdout}{stderr}", case.name, case.args);
        assert_eq!(output.status.code(), Some(ours.code.unwrap_or(case.code)), "{told}");
        for (needle, text) in [(case.stdout, &stdout), (ours.stderr.or(case.stderr), &stderr)] {
            let needle = fill(&needle.unwrap_or_default());
            assert!(text.contains(&needle), "{needle:?} is not in the output of {told}");
        }
    }
}
