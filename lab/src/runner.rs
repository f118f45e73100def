//! Runs scenarios side by side and tells how they ended.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::lab::Lab;
use crate::scenarios::Scenario;

/// The variable that says how many scenarios run side by side.
const JOBS: &str = "HOTDUMP_LAB_JOBS";

/// How a scenario ended.
struct Ended {
    name: &'static str,
    outcome: Result<()>,
    took: Duration,
}

/// Runs `scenarios`, as many at a time as the host has CPUs or `HOTDUMP_LAB_JOBS` says, and prints a table of how they
/// ended. One that fails does not keep the others from running.
///
/// # Errors
/// If one of them did not come true, or `HOTDUMP_LAB_JOBS` is no number.
pub fn run(lab: &Lab, scenarios: &[Scenario]) -> Result<()> {
    let start = Instant::now();
    let jobs = jobs(std::env::var(JOBS).ok().as_deref())?;
    eprintln!("running {} scenarios, at most {jobs} at a time", scenarios.len());
    let ended = side_by_side(scenarios, jobs, |scenario| {
        let outcome = caught(|| (scenario.run)(lab, scenario.name));
        lab.clean_up(scenario.name, outcome.is_ok());
        outcome
    });
    for Ended { name, outcome, .. } in &ended {
        if let Err(error) = outcome {
            println!("\n---- {name} ----\n{error:#}\nits files: {}", lab.paths(name).dir.display());
        }
    }
    println!("\n{}", table(&ended));
    let (failed, total) = (ended.iter().filter(|one| one.outcome.is_err()).count(), ended.len());
    println!("{} of {total} scenarios came true, in {:.1} s", total - failed, start.elapsed().as_secs_f64());
    ensure!(failed == 0, "{failed} of {total} scenarios failed");
    Ok(())
}

/// How many scenarios run at a time: what the variable says, or as many as there are CPUs. A guest keeps little more
/// than one busy.
fn jobs(wanted: Option<&str>) -> Result<NonZeroUsize> {
    match wanted {
        Some(text) => text.parse().with_context(|| format!("{JOBS}={text}: a number from 1 on is needed")),
        None => Ok(thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)),
    }
}

/// Runs all scenarios, `jobs` at a time, and gives how they ended, in their order.
fn side_by_side(
    scenarios: &[Scenario],
    jobs: NonZeroUsize,
    run: impl Fn(&Scenario) -> Result<()> + Sync,
) -> Vec<Ended> {
    let waiting: Mutex<VecDeque<_>> = Mutex::new(scenarios.iter().enumerate().collect());
    let ended = Mutex::new(Vec::new());
    let work = || {
        // The queue's lock must not be held while a scenario runs.
        let next = || locked(&waiting).pop_front();
        while let Some((place, scenario)) = next() {
            let start = Instant::now();
            let outcome = run(scenario);
            let one = Ended { name: scenario.name, outcome, took: start.elapsed() };
            eprintln!("{:>18} {:6.1} s  {}", one.name, one.took.as_secs_f64(), one.result());
            // Others may run for long before the end's table tells.
            if let Err(error) = &one.outcome {
                eprintln!("{error:#}");
            }
            locked(&ended).push((place, one));
        }
    };
    thread::scope(|scope| {
        for _ in 0..jobs.get().min(scenarios.len()) {
            scope.spawn(work);
        }
    });
    let mut ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended.sort_by_key(|(place, _)| *place);
    ended.into_iter().map(|(_, one)| one).collect()
}

/// One broken scenario shall not take the others with it.
fn caught(run: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(anyhow!("the scenario itself panicked")))
}

impl Ended {
    fn result(&self) -> &'static str {
        if self.outcome.is_ok() { "ok" } else { "FAILED" }
    }
}

/// A line for each scenario: name, result, seconds, and the first line of the reason.
fn table(ended: &[Ended]) -> String {
    let width = ended.iter().map(|one| one.name.len()).max().unwrap_or_default().max("scenario".len());
    let mut text = format!("{:width$}  result  seconds  reason\n", "scenario");
    for one in ended {
        let reason = one.outcome.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        let line = format!(
            "{:width$}  {:6}  {:7.1}  {}",
            one.name,
            one.result(),
            one.took.as_secs_f64(),
            reason.lines().next().unwrap_or_default()
        );
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Arch;
    use anyhow::bail;
    use std::sync::Barrier;

    fn scenario(name: &'static str) -> Scenario {
        Scenario { name, about: "", arch: Arch::X86_64, packages: false, run: |_, _| Ok(()) }
    }

    #[test]
    fn one_that_fails_or_panics_does_not_stop_the_others() {
        let scenarios = ["bad", "worse", "good", "fine"].map(scenario);
        let ended = side_by_side(&scenarios, NonZeroUsize::MIN, |scenario| {
            caught(|| match scenario.name {
                "bad" => bail!("no dump\non the disk"),
                "worse" => panic!("this one is meant"),
                _ => Ok(()),
            })
        });
        let text = table(&ended);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["scenario", "result", "seconds", "reason"]);
        assert_eq!(lines[1][..2], ["bad", "FAILED"]);
        assert_eq!(lines[1][3..], ["no", "dump"]);
        assert_eq!(lines[2][..2], ["worse", "FAILED"]);
        assert_eq!(lines[3], ["good", "ok", "0.0"]);
        assert_eq!(lines[4], ["fine", "ok", "0.0"]);
    }

    #[test]
    fn as_many_run_at_a_time_as_are_asked_for() {
        let scenarios = ["one", "other"].map(scenario);
        // Each waits until the other has begun.
        let both = Barrier::new(2);
        let ended = side_by_side(&scenarios, NonZeroUsize::new(2).unwrap(), |_| {
            both.wait();
            Ok(())
        });
        assert!(ended.iter().all(|one| one.outcome.is_ok()));
    }

    #[test]
    fn the_number_of_jobs_can_be_said() {
        assert_eq!(jobs(Some("3")).unwrap().get(), 3);
        assert!(jobs(None).unwrap().get() >= 1);
        for wrong in ["0", "-1", "many", ""] {
            assert!(jobs(Some(wrong)).unwrap_err().to_string().contains(JOBS), "{wrong:?}");
        }
    }
}
