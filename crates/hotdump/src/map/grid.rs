//! Where each stretch of memory lies in the picture: rows of cells, the same bytes to each.

use elfcorehdr::{PhysAddr, PhysRange};

use super::states::{Part, State};

/// Cells in a row: with an address before them they fit 80 columns.
pub(super) const COLUMNS: u64 = 64;

/// Rows that a picture has at most.
const ROWS: u64 = 16;

/// The smallest cell is of 1 MiB: below that is nothing that a reader looks for.
const SMALLEST_SHIFT: u32 = 20;
/// With the largest a row has half of all addresses.
const LARGEST_SHIFT: u32 = 57;

/// The rows of a picture: those in which something lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Grid {
    /// Bytes of a cell.
    pub(super) cell: u64,
    /// The rows' addresses, lowest first.
    pub(super) rows: Vec<PhysRange>,
}

impl Grid {
    /// The grid with the smallest cells in which `parts`, lowest first, take no more than [`ROWS`] rows.
    pub(super) fn of(parts: &[Part]) -> Self {
        let shifts = SMALLEST_SHIFT..LARGEST_SHIFT;
        let shift = shifts.into_iter().find(|shift| count(parts, *shift) <= ROWS).unwrap_or(LARGEST_SHIFT);
        let size = COLUMNS << shift;
        let rows = spans(parts, shift).flat_map(|(first, last)| first..=last);
        let range = |row: u64| {
            let end = PhysAddr((row * size).saturating_add(size));
            PhysRange::new(PhysAddr(row * size), end)
        };
        Self { cell: 1 << shift, rows: rows.filter_map(range).collect() }
    }

    /// What the cells of a row show, from left to right; none where there is no memory.
    pub(super) fn cells(&self, row: PhysRange, parts: &[Part]) -> Vec<Option<State>> {
        let from = parts.partition_point(|part| part.range.end() <= row.start());
        let inside = parts[from..].iter().take_while(|part| part.range.start() < row.end());
        let mut cells: Vec<Vec<(State, u64)>> = vec![Vec::new(); COLUMNS as usize];
        for part in inside {
            let Some(seen) = part.range.intersect(row) else { continue };
            let first = (seen.start().0 - row.start().0) / self.cell;
            let last = (seen.end().0 - 1 - row.start().0) / self.cell;
            for (at, cell) in cells.iter_mut().enumerate().take(last as usize + 1).skip(first as usize) {
                let place = PhysRange::from_len(PhysAddr(row.start().0 + at as u64 * self.cell), self.cell);
                let shared = place.and_then(|place| place.intersect(seen)).map_or(0, PhysRange::len);
                cell.push((part.state, shared));
            }
        }
        cells.iter().map(|cell| shown(cell)).collect()
    }
}

/// What a cell shows that holds so many bytes of each of these: what is wrong, else what is most.
fn shown(held: &[(State, u64)]) -> Option<State> {
    let wrong = held.iter().map(|(state, _)| *state).find(|state| state.is_wrong());
    wrong.or_else(|| {
        let sum = |state| held.iter().filter(|(one, _)| *one == state).map(|(_, bytes)| bytes).sum::<u64>();
        held.iter().map(|(state, _)| *state).max_by_key(|state| sum(*state))
    })
}

/// First and last row of each part, without rows that an earlier one has already; rows are numbered from address 0.
fn spans(parts: &[Part], shift: u32) -> impl Iterator<Item = (u64, u64)> + '_ {
    let size = COLUMNS << shift;
    let mut next = 0;
    parts.iter().filter(|part| !part.range.is_empty()).filter_map(move |part| {
        let (first, last) = (part.range.start().0 / size, (part.range.end().0 - 1) / size);
        let first = first.max(next);
        next = next.max(last + 1);
        (first <= last).then_some((first, last))
    })
}

fn count(parts: &[Part], shift: u32) -> u64 {
    spans(parts, shift).map(|(first, last)| last - first + 1).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::states::tests::{machine, range, stale};
    use super::super::states::{View, parts};
    use super::*;

    #[test]
    fn cells_are_as_small_as_the_rows_allow() {
        let grid = Grid::of(&parts(&machine(), &stale()));
        // 4.4 GiB in rows of 64 cells of 8 MiB; the row without memory is left out.
        assert_eq!((grid.cell >> 20, grid.rows.len()), (8, 10));
        assert_eq!(grid.rows[6], range(4096, 4608));
        assert_eq!(Grid::of(&[]), Grid { cell: 1 << 20, rows: vec![] });
    }

    #[test]
    fn what_is_wrong_is_shown_however_small_it_is() {
        let part =
            |start, len, state| Part { range: PhysRange::from_len(PhysAddr(start), len).unwrap(), state };
        let mib = 1 << 20;
        let all = [
            part(0, mib - 4096, State::Covered),
            part(mib - 4096, 4096, State::Missing),
            part(mib, mib / 4, State::Reserved),
            part(mib + mib / 4, mib / 4 * 3, State::Covered),
        ];
        let grid = Grid::of(&all);
        let cells = grid.cells(grid.rows[0], &all);
        assert_eq!(cells[..3], [Some(State::Missing), Some(State::Covered), None]);
    }

    #[test]
    fn no_image_shows_every_row_missing() {
        let all = parts(&machine(), &View::NotLoaded);
        let grid = Grid::of(&all);
        assert!(grid.rows.iter().all(|row| grid.cells(*row, &all).contains(&Some(State::Missing))));
    }

    proptest! {
        #[test]
        fn any_memory_makes_a_grid(starts in proptest::collection::btree_set(any::<u64>(), 0..12), shift in 0_u32..64) {
            let starts: Vec<u64> = starts.into_iter().collect();
            let ends = starts.iter().skip(1).copied().chain([u64::MAX]);
            let all: Vec<Part> = starts
                .iter()
                .zip(ends)
                .filter_map(|(start, end)| {
                    let len = (end - start).min(1 << shift);
                    PhysRange::from_len(PhysAddr(*start), len).filter(|range| !range.is_empty())
                })
                .map(|range| Part { range, state: State::Missing })
                .collect();
            let grid = Grid::of(&all);
            prop_assert!(grid.rows.len() as u64 <= ROWS);
            for part in &all {
                let first = grid.rows.iter().find(|row| row.contains(part.range.start()));
                prop_assert!(first.is_some(), "{part:?} of {grid:?}");
            }
            for row in &grid.rows {
                let cells = grid.cells(*row, &all);
                prop_assert_eq!(cells.len() as u64, COLUMNS);
                prop_assert!(cells.iter().any(Option::is_some));
            }
        }
    }
}
