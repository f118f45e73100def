//! How long calls of kernel functions take in a guest, as the kernel's own function_graph tracer measures it.

use anyhow::{Context, Result, ensure};
use lab::guest::Guest;

/// One call of a traced function, in nanoseconds of the guest's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// The function's name.
    pub(super) function: String,
    /// From where the trace begins to count; a multiple of a microsecond.
    pub(super) start: u64,
    /// From its entry to its return. What the tracer itself does at both is in it.
    pub(super) took: u64,
}

/// A tracer in a guest that is set up for some functions.
pub(super) struct Tracer {
    functions: Vec<String>,
}

/// Where the tracer's files are.
const TRACING: &str = "/sys/kernel/tracing";

impl Tracer {
    /// Sets the tracer up for `functions`, and for nothing that they call. A module's function is named `NAME:mod:MODULE`.
    pub(super) fn new(guest: &mut Guest, functions: &[&str]) -> Result<Tracer> {
        let mut script = format!(
            "set -e; cd {TRACING}; test -e trace || mount -t tracefs tracefs {TRACING}; cd {TRACING}\n"
        );
        script += "echo 0 > tracing_on; echo nop > current_tracer; echo > set_ftrace_filter\n";
        for function in functions {
            script += &format!("echo '{function}' >> set_ftrace_filter\n");
        }
        script += "echo function_graph > current_tracer; echo funcgraph-abstime > trace_options\n";
        script += "echo funcgraph-tail > trace_options; cat set_ftrace_filter";
        let found = guest.shell(&script)?;
        let found: Vec<&str> =
            found.ok()?.lines().filter_map(|line| line.split_whitespace().next()).collect();
        let names: Vec<String> = functions.iter().map(|function| plain(function).to_owned()).collect();
        for name in &names {
            let count = found.iter().filter(|found| *found == name).count();
            ensure!(count == 1, "the kernel has {count} functions {name} that can be traced");
        }
        Ok(Tracer { functions: names })
    }

    /// Runs `work` and gives the calls that were made until its end, in their order.
    pub(super) fn calls(
        &self,
        guest: &mut Guest,
        work: impl FnOnce(&mut Guest) -> Result<()>,
    ) -> Result<Vec<Call>> {
        guest.shell(&format!("cd {TRACING} && echo > trace && echo 1 > tracing_on"))?.ok()?;
        work(guest)?;
        let trace = guest.shell(&format!("cd {TRACING} && echo 0 > tracing_on && cat trace"))?;
        let calls = parse(trace.ok()?).with_context(|| trace.to_string())?;
        let others: Vec<&Call> =
            calls.iter().filter(|call| !self.functions.contains(&call.function)).collect();
        ensure!(others.is_empty(), "calls of functions that are not traced: {others:?}");
        Ok(calls)
    }

    /// Takes the tracer away from all functions.
    pub(super) fn stop(self, guest: &mut Guest) -> Result<()> {
        guest
            .shell(&format!("cd {TRACING} && echo nop > current_tracer && echo > set_ftrace_filter"))?
            .ok()
            .map(drop)
    }
}

/// A function's name without its module.
fn plain(function: &str) -> &str {
    function.split(':').next().unwrap_or(function)
}

/// Reads the tracer's text. A call during which the trace has nothing else is one line with its start; any other has
/// a line at its start and one at its end, which has the time.
fn parse(trace: &str) -> Result<Vec<Call>> {
    let lines = trace.lines().filter(|line| !line.starts_with('#') && line.contains(" us "));
    lines.map(|line| parse_line(line).with_context(|| format!("the tracer's line {line:?}"))).collect()
}

/// ` 37.123456 |   0) * 1310.234 us  |  name [module]();` or ` 37.123456 |   0) * 1310.234 us  |  } /* name */`
fn parse_line(line: &str) -> Result<Call> {
    let mut columns = line.split('|');
    let mut next = || columns.next().context("too few columns");
    let (time, duration, text) = (next()?, next()?, next()?);
    let at = thousandths(time.trim(), 6)? * 1000;
    let duration = duration.split_once(')').map_or(duration, |(_, after)| after);
    let took =
        duration.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    let took = thousandths(took.context("no duration")?, 3)?;
    let name = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    let text = text.trim();
    match text.strip_prefix("} /*") {
        Some(end) => Ok(Call { function: name(end), start: at.saturating_sub(took), took }),
        None => Ok(Call { function: name(text).trim_end_matches("();").to_owned(), start: at, took }),
    }
}

/// A decimal number as a whole number of units at `places` behind the point; the tracer leaves out places of large ones.
fn thousandths(number: &str, places: usize) -> Result<u64> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    ensure!(part.len() <= places, "{number:?} has more than {places} places");
    format!("{whole}{part:0<places$}").parse().with_context(|| format!("{number:?} is no number"))
}

#[cfg(test)]
mod tests {
    use super::{Call, parse};

    #[test]
    fn the_tracer_is_understood() {
        let trace = "\
# tracer: function_graph
#
#     TIME        CPU  DURATION                  FUNCTION CALLS
#      |          |     |   |                     |   |   |   |
   37.100000 |   0) # 1310.234 us |  crash_memhp_notifier();
   37.200001 |   0)   1.310 us    |  memory_event [hotdump]();
 ------------------------------------------
 0)    sh-100      =>    kworker-20
 ------------------------------------------

   37.200100 |   0)               |  cpu_event [hotdump]() {
   37.200300 |   0)   2.000 us    |  } /* cpu_event [hotdump] */
   38.000000 |   1) $ 6612345 us  |  __x64_sys_kexec_load();
";
        let call = |function: &str, start, took| Call { function: function.into(), start, took };
        let expected = [
            call("crash_memhp_notifier", 37_100_000_000, 1_310_234),
            call("memory_event", 37_200_001_000, 1_310),
            call("cpu_event", 37_200_298_000, 2_000),
            call("__x64_sys_kexec_load", 38_000_000_000, 6_612_345_000),
        ];
        assert_eq!(parse(trace).unwrap(), expected);
        assert!(parse("   37.200300 |   0)   2.0x0 us    |  } /* cpu_event */").is_err());
    }
}
