//! The cases of `personality_cases.toml`, as the tests and the lab read them.

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    case: Vec<Case>,
}

/// A command line, and what is expected of it: see the head of the table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) args: Vec<String>,
    pub(crate) state: String,
    pub(crate) code: i32,
    pub(crate) stdout: Option<String>,
    pub(crate) stderr: Option<String>,
    pub(crate) after: Option<String>,
    #[serde(default)]
    pub(crate) ours: Difference,
    pub(crate) reason: Option<String>,
}

/// What is expected of hotdump in place of the case's own.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Difference {
    pub(crate) code: Option<i32>,
    pub(crate) stderr: Option<String>,
}

impl Case {
    /// What is wrong with a run that ended with `code` and printed `stdout` and `stderr`; none: as expected. `fill` puts
    /// files in place of words in braces.
    pub(crate) fn fault(
        &self,
        ours: bool,
        fill: impl Fn(&str) -> String,
        (code, stdout, stderr): (Option<i32>, &str, &str),
    ) -> Option<String> {
        let difference = if ours { self.ours.clone() } else { Difference::default() };
        let expected = difference.code.unwrap_or(self.code);
        if code != Some(expected) {
            return Some(format!("exit code {code:?}, expected {expected}"));
        }
        let needles = [(&self.stdout, stdout), (&difference.stderr.or_else(|| self.stderr.clone()), stderr)]
            .map(|(needle, text)| (fill(needle.as_deref().unwrap_or_default()), text));
        let missing = needles.iter().find(|(needle, text)| !text.contains(needle.as_str()));
        missing.map(|(needle, _)| format!("{needle:?} is not in the output"))
    }
}

/// The whole table.
pub(crate) fn table() -> Vec<Case> {
    match toml::from_str::<Table>(include_str!("../personality_cases.toml")) {
        Ok(table) => table.case,
        Err(error) => panic!("personality_cases.toml: {error}"),
    }
}
