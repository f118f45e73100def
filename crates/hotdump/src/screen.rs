//! What people look at in a terminal: at most 80 columns, coloured where that is wanted, and nothing lost without colour.

use std::io::IsTerminal as _;

/// Columns that text may take.
pub(crate) const WIDTH: usize = 80;

/// Columns of a label, with the blanks on both its sides.
const LABEL: usize = 14;

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    Always,
    Never,
}

impl Color {
    /// Whether to colour what goes to standard output: as no-color.org has it.
    pub(crate) fn is_wanted(self) -> bool {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
                std::io::stdout().is_terminal() && !is_set("NO_COLOR") && !is_dumb
            }
        }
    }
}

/// How good something is: its colour, where there is colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Doubtful,
    Bad,
    /// To be seen, whatever it is.
    Strong,
}

impl Tone {
    /// The colour (SGR).
    fn code(self) -> &'static str {
        match self {
            Self::Good => "1;32",
            Self::Doubtful => "1;33",
            Self::Bad => "1;31",
            Self::Strong => "1",
        }
    }
}

/// `text` in that tone.
pub(crate) fn painted(text: &str, tone: Tone, coloured: bool) -> String {
    if coloured { format!("\x1b[{}m{text}\x1b[0m", tone.code()) } else { text.to_owned() }
}

/// Lines of text with labels in front.
#[derive(Debug)]
pub(crate) struct Screen {
    lines: Vec<String>,
    coloured: bool,
}

impl Screen {
    /// An empty one.
    pub(crate) fn new(coloured: bool) -> Self {
        Self { lines: Vec::new(), coloured }
    }

    /// A word in a tone and what it means, over the whole width.
    pub(crate) fn told(&mut self, word: &str, tone: Tone, text: &str) {
        let mut lines = wrapped(&format!("{word}: {text}"), WIDTH).into_iter();
        // Words of ours are shorter than a line.
        let first = lines.next().unwrap_or_default();
        let rest = first.strip_prefix(word).unwrap_or_default();
        self.lines.push(painted(word, tone, self.coloured) + rest);
        self.lines.extend(lines);
    }

    /// A label, and behind it a text that keeps clear of the label's columns.
    pub(crate) fn row(&mut self, label: &str, text: &str) {
        for (number, line) in wrapped(text, WIDTH - LABEL).iter().enumerate() {
            let label = if number == 0 { label } else { "" };
            self.lines.push(format!("  {label:<width$}{line}", width = LABEL - 2));
        }
    }

    /// All of it, each line ended.
    pub(crate) fn text(self) -> String {
        self.lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

/// `text` in lines of at most `width` columns, broken at blanks; a word that is longer has a line of its own.
pub(crate) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_clear_of_their_labels_and_within_the_width() {
        let mut screen = Screen::new(false);
        screen.told("BAD", Tone::Bad, &"all is as it must not be ".repeat(5));
        screen.row("label", &"word ".repeat(20));
        screen.row("path", &format!("/{}", "x".repeat(70)));
        let text = screen.text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("BAD: all is") && lines[1].starts_with("all is"), "{text}");
        assert_eq!(lines[2], format!("  label       {}", ["word"; 13].join(" ")));
        assert_eq!(lines[3], format!("              {}", ["word"; 7].join(" ")));
        assert!(lines[..4].iter().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(lines[4].len(), LABEL + 71, "a path is not broken");
    }

    #[test]
    fn colour_is_added_and_nothing_else() {
        let drawn = |coloured| {
            let mut screen = Screen::new(coloured);
            screen.told("GOOD", Tone::Good, "it is");
            screen.text()
        };
        assert_eq!(drawn(false), "GOOD: it is\n");
        assert_eq!(drawn(true), "\x1b[1;32mGOOD\x1b[0m: it is\n");
    }
}
