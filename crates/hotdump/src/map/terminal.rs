//! The picture in letters: 80 columns, and a letter of its own for each kind of memory, so that it needs no colour.

use super::grid::Grid;
use super::states::{Part, State, View, headline, totals};
use crate::screen::{WIDTH, wrapped};
use crate::text::size;

/// The letter of a cell without memory.
const NOTHING: char = ' ';

/// The letter and the colour (SGR) of each kind.
fn look(state: State) -> (char, &'static str) {
    match state {
        State::Covered => ('#', "32"),
        State::HotAdded => ('+', "36"),
        State::Missing => ('!', "1;97;41"),
        State::Gone => ('X', "1;97;45"),
        State::Unknown => ('?', "33"),
        State::Reserved => ('R', "34"),
        State::Offline => ('o', "90"),
        State::LeftOut => ('-', "90"),
    }
}

/// The picture, with a line over it and the legend below.
pub(super) fn draw(grid: &Grid, parts: &[Part], view: &View, coloured: bool) -> String {
    let mut lines = vec![headline(parts, view)];
    lines.extend(view.remark().into_iter().flat_map(|remark| wrapped(remark, WIDTH)));
    lines.push(format!("one letter: {}", size(grid.cell)));
    lines.push(String::new());
    let digits = grid.rows.last().map_or(0, |row| format!("{:x}", row.start()).len()).max(9);
    let mut end = grid.rows.first().map(|row| row.start());
    for row in &grid.rows {
        let hole = end.map_or(0, |end| row.start().0 - end.0);
        if hole != 0 {
            lines.push(format!(
                "{:>1$} {2}",
                "...",
                digits + 2,
                format_args!("({} without memory)", size(hole))
            ));
        }
        end = Some(row.end());
        let cells = painted(&grid.cells(*row, parts), coloured);
        lines.push(format!("0x{:0digits$x} {cells}", row.start().0).trim_end().to_owned());
    }
    lines.push(String::new());
    for (state, bytes) in totals(parts) {
        let (name, meaning) = state.words();
        let letter = painted(&[Some(state)], coloured);
        lines.push(format!("  {letter}  {name:<9} {:>12}  {meaning}", size(bytes)));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The letters of cells; a run of one kind is coloured at once.
fn painted(cells: &[Option<State>], coloured: bool) -> String {
    let mut text = String::new();
    for run in cells.chunk_by(|one, next| one == next) {
        let Some(state) = run[0] else {
            text.extend(run.iter().map(|_| NOTHING));
            continue;
        };
        let (letter, color) = look(state);
        let letters: String = run.iter().map(|_| letter).collect();
        if coloured {
            text += &format!("\x1b[{color}m{letters}\x1b[0m");
        } else {
            text += &letters;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::states::parts;
    use super::super::states::tests::{machine, range, stale};
    use super::*;
    use elfcorehdr::{PhysAddr, PhysRange};

    fn drawn(view: &View, coloured: bool) -> String {
        let parts = parts(&machine(), view);
        draw(&Grid::of(&parts), &parts, view, coloured)
    }

    /// The picture with colour and without, as it is on a terminal of 80 columns.
    #[test]
    fn the_picture_of_a_stale_header() {
        for (coloured, file) in [
            (false, snapbox::file!["../../tests/snapshots/pictures/map.txt"]),
            (true, snapbox::file!["../../tests/snapshots/pictures/map-in-colour.txt"]),
        ] {
            snapbox::assert_data_eq!(drawn(&stale(), coloured), file.raw());
        }
    }

    #[test]
    fn the_legend_has_what_is_in_the_picture() {
        let text = drawn(&stale(), false);
        let legend: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("  #")).collect();
        assert_eq!(
            legend,
            [
                "  #  covered        3.7 GiB  in use, and in the crash header",
                "  +  hot-added      256 MiB  the same, not in the boot memory map",
                "  !  MISSING        128 MiB  in use, and in no crash header",
                "  X  GONE           128 MiB  in the crash header, and not there any more",
                "  R  reserved       256 MiB  for the capture kernel (crashkernel=)",
                "  o  offline        128 MiB  plugged in, not in use",
                "  -  left out         1 MiB  low memory and CMA that the capture kernel uses",
            ]
        );
    }

    /// Colours add nothing but colours, and every kind has a letter of its own.
    #[test]
    fn without_colour_nothing_is_lost() {
        for view in [stale(), View::NotLoaded, View::Hidden("it is closed ".repeat(20))] {
            let plain = drawn(&view, false);
            let mut stripped = String::new();
            let coloured = drawn(&view, true);
            let mut pieces = coloured.split('\x1b');
            stripped += pieces.next().unwrap();
            for piece in pieces {
                stripped += piece.split_once('m').unwrap().1;
            }
            let bare = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
            assert_eq!(bare(&stripped), bare(&plain));
            assert!(!plain.contains('\x1b'));
        }
        let mut letters: Vec<char> = State::ALL.map(|state| look(state).0).to_vec();
        letters.sort_unstable();
        letters.dedup();
        assert_eq!(letters.len(), State::ALL.len());
    }

    #[test]
    fn it_fits_eighty_columns() {
        let far = Part { range: range(1 << 31, (1 << 31) + 70_000_000), state: State::Unknown };
        let farthest = PhysRange::from_len(PhysAddr((1 << 52) - (1 << 30)), 1 << 30).unwrap();
        let all = [far, Part { range: farthest, state: State::Missing }];
        let view = View::Hidden(
            "the kernel hides its addresses, and what else it may have to say of that ".repeat(4),
        );
        let text = draw(&Grid::of(&all), &all, &view, false)
            + &drawn(&View::NotLoaded, false)
            + &drawn(&stale(), false);
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
        }
    }
}
