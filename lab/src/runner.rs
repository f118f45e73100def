//! Runs scenarios side by side and tells how they ended.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::lab::Lab;
use crate::scenarios::Scenario;

/// Runs `scenarios`, as many at once as there are CPUs but not more than three, and prints a line for each.
///
/// # Errors
/// If one of them did not come true.
pub fn run(lab: &Lab, scenarios: &[Scenario]) -> Result<()> {
    let start = Instant::now();
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let waiting = Mutex::new(scenarios.iter().copied().collect::<VecDeque<_>>());
    let failures = Mutex::new(Vec::new());
    eprintln!("running {} scenarios", scenarios.len());
    thread::scope(|scope| {
        for _ in 0..cpus.min(3) {
            scope.spawn(|| {
                // The queue's lock must not be held while a scenario runs.
                let next = || locked(&waiting).pop_front();
                while let Some(next) = next() {
                    let start = Instant::now();
                    if let Err(error) = run_one(lab, &next, start) {
                        locked(&failures).push((next.name, error));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (name, error) in &failures {
        println!("\n---- lab::{name} ----\n{error:#}");
        println!("its files: {}", lab.paths(name).dir.display());
    }
    let (failed, word) = (failures.len(), if failures.is_empty() { "ok" } else { "FAILED" });
    let passed = scenarios.len() - failed;
    println!(
        "\nlab result: {word}. {passed} passed; {failed} failed; finished in {}",
        seconds(start.elapsed())
    );
    ensure!(failures.is_empty(), "{failed} of {} scenarios failed", scenarios.len());
    Ok(())
}

fn run_one(lab: &Lab, scenario: &Scenario, start: Instant) -> Result<()> {
    // One broken scenario shall not take the others with it.
    let outcome = catch_unwind(AssertUnwindSafe(|| (scenario.run)(lab, scenario.name)))
        .unwrap_or_else(|_| Err(anyhow!("the scenario itself panicked")));
    let word = if outcome.is_ok() { "ok" } else { "FAILED" };
    println!("lab::{} ... {word} ({})", scenario.name, seconds(start.elapsed()));
    lab.clean_up(scenario.name, outcome.is_ok());
    outcome
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
