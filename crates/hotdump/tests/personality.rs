//! The table of kexec command lines against hotdump: those cases that need nothing of the machine. The lab runs all of
//! them, against kexec-tools too.

mod personality_case;

use std::collections::HashSet;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use personality_case::{Difference, table};

const MISSING: &str = "/nonexistent/hotdump-test";

#[test]
fn cases_are_well_formed() {
    let mut names = HashSet::new();
    for case in table() {
        assert!(names.insert(case.name.clone()), "{}: named twice", case.name);
        let states =
            ["any", "empty", "loaded", "unreserved", "hotplug", "no-hotplug", "unkept", "module", "ppc64"];
        assert!(states.contains(&case.state.as_str()), "{}: state {}", case.name, case.state);
        assert!(
            case.after.is_none_or(|after| ["empty", "loaded"].contains(&after.as_str())),
            "{}",
            case.name
        );
        let differs = case.ours != Difference::default();
        assert_eq!(differs, case.reason.is_some(), "{}: a difference has a reason", case.name);
        assert_ne!(case.ours.code, Some(case.code), "{}: the same code", case.name);
    }
}

#[test]
fn cases_that_need_nothing_of_the_machine() {
    let fill = |text: &str| text.replace("{missing}", MISSING).replace("{initrd}", MISSING);
    for case in table().into_iter().filter(|case| case.state == "any") {
        let output = Command::new(env!("CARGO_BIN_EXE_hotdump"))
            .arg0("kexec")
            .args(case.args.iter().map(|arg| fill(arg)))
            .output()
            .unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let fault = case.fault(true, fill, (output.status.code(), &stdout, &stderr));
        assert_eq!(fault, None, "{}: {:?}\n{stdout}{stderr}", case.name, case.args);
    }
}
