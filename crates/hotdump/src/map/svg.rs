//! The picture as SVG: the same rows as in the terminal, and in them each stretch as wide as it is.

use std::fmt::Write as _;

use elfcorehdr::PhysRange;

use super::grid::{COLUMNS, Grid};
use super::states::{Part, State, View, headline, totals};
use crate::text::{Range, size};

/// In pixels: the picture's width, its margin, where rows begin and end.
const WIDTH: u32 = 960;
const MARGIN: u32 = 24;
const LEFT: u32 = 150;
const RIGHT: u32 = WIDTH - MARGIN;
/// From row to row, and a row's height.
const STEP: u32 = 26;
const ROW: u32 = 20;
/// Where the first row begins, below the two lines over it.
const TOP: u32 = 82;
/// A hole between rows takes this.
const HOLE: u32 = 24;
/// What is wrong is at least so wide.
const LEAST: f64 = 3.0;

/// The colour of each kind: Okabe and Ito's, which people see apart who do not see all colours.
fn colour(state: State) -> &'static str {
    match state {
        State::Covered => "#009e73",
        State::HotAdded => "#56b4e9",
        State::Missing => "#d55e00",
        State::Gone => "#cc79a7",
        State::Unknown => "#f0e442",
        State::Reserved => "#0072b2",
        State::Offline => "#b8bfc6",
        State::LeftOut => "#6b7680",
    }
}

/// What fills a stretch. What is wrong is hatched too, for those who see no colours.
fn fill(state: State) -> String {
    if state.is_wrong() { format!("url(#{})", pattern(state)) } else { colour(state).to_owned() }
}

fn pattern(state: State) -> &'static str {
    if state == State::Missing { "missing" } else { "gone" }
}

/// The picture: a whole SVG file.
pub(super) fn draw(grid: &Grid, parts: &[Part], view: &View) -> String {
    let mut body = String::new();
    text(&mut body, MARGIN, 34, "title", &headline(parts, view));
    let below = view.remark().map_or_else(
        || format!("physical memory; one row: {}", size(grid.cell.saturating_mul(COLUMNS))),
        str::to_owned,
    );
    text(&mut body, MARGIN, 58, "note", &below);
    let mut y = TOP;
    let mut end = grid.rows.first().map(|row| row.start());
    for row in &grid.rows {
        let hole = end.map_or(0, |end| row.start().0 - end.0);
        if hole != 0 {
            text(&mut body, LEFT, y + 15, "note", &format!("\u{22ee} {} without memory", size(hole)));
            y += HOLE;
        }
        end = Some(row.end());
        draw_row(&mut body, *row, parts, y);
        y += STEP;
    }
    y = legend(&mut body, parts, y + 14);
    page(&body, y + MARGIN)
}

/// One row at height `y`: its address, its frame, and what lies in it.
fn draw_row(body: &mut String, row: PhysRange, parts: &[Part], y: u32) {
    text(body, LEFT - 10, y + 15, "address", &row.start().to_string());
    add(
        body,
        format_args!(r#"<rect x="{LEFT}" y="{y}" width="{}" height="{ROW}" class="row"/>"#, RIGHT - LEFT),
    );
    let from = parts.partition_point(|part| part.range.end() <= row.start());
    let inside = parts[from..].iter().take_while(|part| part.range.start() < row.end());
    // What is wrong comes last: it may be wider than it is and must not lie under a neighbour.
    let (wrong, fine): (Vec<&Part>, Vec<&Part>) = inside.partition(|part| part.state.is_wrong());
    for part in fine.into_iter().chain(wrong) {
        let Some(seen) = part.range.intersect(row) else { continue };
        let pixel = f64::from(RIGHT - LEFT) / row.len() as f64;
        let least = if part.state.is_wrong() { LEAST } else { 0.0 };
        let width = (seen.len() as f64 * pixel).max(least);
        let x =
            (f64::from(LEFT) + (seen.start().0 - row.start().0) as f64 * pixel).min(f64::from(RIGHT) - width);
        add(
            body,
            format_args!(
                r#"<rect x="{x:.2}" y="{y}" width="{width:.2}" height="{ROW}" fill="{}"><title>{}: {}</title></rect>"#,
                fill(part.state),
                part.state.words().0,
                Range(part.range)
            ),
        );
    }
}

/// What each colour means and how much there is of it; returns the height below it.
fn legend(body: &mut String, parts: &[Part], mut y: u32) -> u32 {
    for (state, bytes) in totals(parts) {
        let (name, meaning) = state.words();
        add(
            body,
            format_args!(r#"<rect x="{LEFT}" y="{y}" width="{ROW}" height="{ROW}" fill="{}"/>"#, fill(state)),
        );
        text(body, LEFT + 32, y + 15, "name", name);
        text(body, LEFT + 210, y + 15, "amount", &size(bytes));
        text(body, LEFT + 230, y + 15, "note", meaning);
        y += STEP;
    }
    y
}

fn text(body: &mut String, x: u32, y: u32, class: &str, text: &str) {
    add(body, format_args!(r#"<text x="{x}" y="{y}" class="{class}">{}</text>"#, escaped(text)));
}

fn add(body: &mut String, element: std::fmt::Arguments<'_>) {
    // A String takes all that is written to it.
    let _ = writeln!(body, "{element}");
}

/// Text as XML has it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The file around the picture.
fn page(body: &str, height: u32) -> String {
    let hatches: String = [State::Missing, State::Gone]
        .iter()
        .map(|state| {
            format!(
                r##"<pattern id="{}" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="6" height="6" fill="{}"/><rect width="2" height="6" fill="#1b1f23"/></pattern>
"##,
                pattern(*state),
                colour(*state)
            )
        })
        .collect();
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">
<style>
text {{ font-family: "DejaVu Sans", "Helvetica Neue", Arial, sans-serif; font-size: 13px; fill: #24292f; }}
.title {{ font-size: 18px; font-weight: bold; }}
.note {{ fill: #57606a; }}
.name {{ font-weight: bold; }}
.amount {{ text-anchor: end; }}
.address {{ font-family: "DejaVu Sans Mono", Menlo, Consolas, monospace; text-anchor: end; }}
.row {{ fill: #f6f8fa; stroke: #d0d7de; }}
</style>
<defs>
{hatches}</defs>
<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
{body}</svg>
"##
    )
}

#[cfg(test)]
mod tests {
    use super::super::states::parts;
    use super::super::states::tests::{machine, stale};
    use super::*;
    use elfcorehdr::PhysAddr;

    fn drawn(view: &View) -> String {
        let parts = parts(&machine(), view);
        draw(&Grid::of(&parts), &parts, view)
    }

    #[test]
    fn every_stretch_is_there_with_its_range() {
        let svg = drawn(&stale());
        for title in [
            "<title>MISSING: [0x150000000, 0x158000000) (128 MiB)</title>",
            "<title>GONE: [0x180000000, 0x188000000) (128 MiB)</title>",
            "<title>offline: [0x158000000, 0x160000000) (128 MiB)</title>",
            "<title>reserved: [0xa0000000, 0xb0000000) (256 MiB)</title>",
            "<title>hot-added: [0x140000000, 0x150000000) (256 MiB)</title>",
        ] {
            assert!(svg.contains(title), "{title}: {svg}");
        }
        assert!(svg.contains("the crash header misses 128 MiB and has 128 MiB that is gone"), "{svg}");
    }

    /// Half of a row of 512 MiB is half as wide, and begins where it should.
    #[test]
    fn a_stretch_is_as_wide_as_it_is() {
        let svg = drawn(&stale());
        let half = f64::from(RIGHT - LEFT) / 2.0;
        let reserved = svg.lines().find(|line| line.contains("<title>reserved")).unwrap();
        assert!(reserved.contains(&format!("x=\"{LEFT}.00\"")), "{reserved}");
        assert!(reserved.contains(&format!("width=\"{half:.2}\"")), "{reserved}");
    }

    #[test]
    fn one_missing_page_can_be_seen() {
        let page = PhysRange::from_len(PhysAddr((1 << 30) - 4096), 4096).unwrap();
        let all = [Part { range: page, state: State::Missing }];
        let svg = draw(&Grid::of(&all), &all, &stale());
        let shown = svg.lines().find(|line| line.contains("<title>MISSING")).unwrap();
        assert!(shown.contains("width=\"3.00\""), "{shown}");
        assert!(shown.contains(&format!("x=\"{}.00\"", RIGHT - 3)), "{shown}");
    }

    #[test]
    fn text_is_escaped() {
        let svg = drawn(&View::Hidden("<script>&".to_owned()));
        assert!(svg.contains("&lt;script&gt;&amp;") && !svg.contains("<script>"), "{svg}");
    }
}
