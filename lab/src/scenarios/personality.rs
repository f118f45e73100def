//! The table of kexec command lines, run by Debian's kexec-tools and by hotdump in the same guest.

use anyhow::{Context, Result, bail, ensure};

use super::scenarios;
use crate::cache::KernelLine::{V6_1, V6_12};
use crate::guest::Guest;
use crate::lab::{BUSYBOX_CAPTURE, Lab, Plan};

#[path = "../../../crates/hotdump/tests/personality_case/mod.rs"]
mod personality_case;
use personality_case::{Case, table};

scenarios! {
    personality: "kexec command lines mean to hotdump what they mean to kexec-tools",
    personality_unreserved: "the same without a crash reservation",
    personality_6_1: "the same without crash hotplug, then with the module",
}

const THEIRS: &str = "/usr/sbin/kexec";
const OURS: &str = "/opt/hotdump/kexec";
/// The guest's own device tree, where it has one.
pub(super) const TREE: &str = "/tmp/tree.dtb";

fn personality(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = boot(lab.guest(name, V6_12)?.busybox_capture())?;
    run_cases(&mut guest, &["any", "empty", "loaded", "hotplug"])
}

fn personality_unreserved(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = boot(lab.guest(name, V6_12)?.busybox_capture().no_crashkernel())?;
    run_cases(&mut guest, &["unreserved"])
}

fn personality_6_1(lab: &Lab, name: &str) -> Result<()> {
    let mut guest = boot(super::module::plan(lab, name, V6_1)?.busybox_capture())?;
    run_cases(&mut guest, &["no-hotplug", "unkept"])?;
    guest.run(["insmod", super::module::MODULE])?.ok()?;
    run_cases(&mut guest, &["module"])?;
    // What hotdump loaded last by `--hotplug` must be followed.
    let kernel = kernel(&guest);
    guest.run([OURS, "--hotplug", "-p", &kernel, &format!("--initrd={BUSYBOX_CAPTURE}")])?.ok()?;
    let status = super::module::status(&mut guest)?;
    ensure!(status["armed"] == true, "the module does not follow what was loaded with --hotplug: {status}");
    Ok(())
}

/// Boots a guest with all that the cases need.
pub(super) fn boot(plan: Plan<'_>) -> Result<Guest> {
    let mut guest = plan.boot()?;
    guest.shell("mkdir -p /opt/hotdump && ln -s /usr/bin/hotdump /opt/hotdump/kexec")?.ok()?;
    let kernel = kernel(&guest);
    let files = format!("head -c 102400 /dev/zero > /tmp/garbage; head -c 65536 {kernel} > /tmp/truncated");
    guest.shell(&files)?.ok()?;
    Ok(guest)
}

/// The guest's kernel.
fn kernel(guest: &Guest) -> String {
    format!("/boot/{}", guest.kernel.image_name())
}

/// Runs the cases for machines in one of `states`.
pub(super) fn run_cases(guest: &mut Guest, states: &[&str]) -> Result<()> {
    let cases: Vec<Case> = table().into_iter().filter(|case| states.contains(&case.state.as_str())).collect();
    ensure!(!cases.is_empty(), "no case for {states:?}");
    let mut faults = Vec::new();
    for case in &cases {
        for program in [THEIRS, OURS] {
            if let Some(fault) = run_case(guest, case, program)? {
                guest.say(&fault);
                faults.push(fault);
            }
        }
    }
    guest.say(format!("{} command lines, each by both programs", cases.len()));
    for case in &cases {
        if let Some(reason) = &case.reason {
            guest.say(format!("meant to differ: {}: {reason}", case.name));
        }
    }
    if !faults.is_empty() {
        bail!("{} faults:\n{}", faults.len(), faults.join("\n"));
    }
    Ok(())
}

fn run_case(guest: &mut Guest, case: &Case, program: &str) -> Result<Option<String>> {
    if case.state != "unreserved" {
        let is_loaded = ["loaded", "unkept", "module"].contains(&case.state.as_str());
        bring_to(guest, if is_loaded { "loaded" } else { "empty" })?;
    }
    let (kernel, cmdline) = (kernel(guest), guest.kernel.line.arch().capture_cmdline());
    let fill = |text: &str| {
        text.replace("{kernel}", &kernel)
            .replace("{initrd}", BUSYBOX_CAPTURE)
            .replace("{garbage}", "/tmp/garbage")
            .replace("{truncated}", "/tmp/truncated")
            .replace("{missing}", "/tmp/missing")
            .replace("{cmdline}", cmdline)
            .replace("{dtb}", TREE)
    };
    let argv = std::iter::once(program.to_owned()).chain(case.args.iter().map(|argument| fill(argument)));
    let outcome = guest.run(argv)?;
    let ran = &outcome.ran;
    // As a shell tells of a signal.
    let code = ran.code.or(ran.signal.map(|signal| 128 + signal));
    let mut fault = case.fault(program == OURS, fill, (code, &ran.stdout, &ran.stderr));
    if let (None, Some(after)) = (&fault, &case.after) {
        let found = image_state(guest)?;
        fault = (found != *after).then(|| format!("the crash image is then {found}, expected {after}"));
    }
    Ok(fault.map(|fault| format!("{} by {program}: {fault}\n{outcome}", case.name)))
}

fn image_state(guest: &mut Guest) -> Result<&'static str> {
    match guest.read_text("/sys/kernel/kexec_crash_loaded")?.as_str() {
        "0" => Ok("empty"),
        "1" => Ok("loaded"),
        other => bail!("/sys/kernel/kexec_crash_loaded is {other:?}"),
    }
}

/// Loads or unloads by kexec-tools, so that both programs begin alike.
fn bring_to(guest: &mut Guest, wanted: &str) -> Result<()> {
    if guest.read_text("/sys/kernel/kexec_loaded")? == "1" {
        guest.run([THEIRS, "-u"])?.ok().context("unloading the normal image")?;
    }
    if image_state(guest)? == wanted {
        return Ok(());
    }
    if wanted == "empty" {
        guest.run([THEIRS, "-p", "-u"])?.ok()?;
        return Ok(());
    }
    let (kernel, cmdline) = (kernel(guest), guest.kernel.line.arch().capture_cmdline());
    let initrd = format!("--initrd={BUSYBOX_CAPTURE}");
    guest.run([THEIRS, "-s", "-p", &kernel, &initrd, &format!("--append={cmdline}")])?.ok()?;
    Ok(())
}
