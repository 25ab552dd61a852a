//! Which cells of a batch repeat the one above. In a fan-out nearly all of them do: a campaign's columns are the same for
//! each of its clients, and need no second escape, format or check.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{ArrowNativeType, DataType};

/// Values compared at once.
const BLOCK: usize = 64;

/// Rows after which a run has shown in which columns it differs. A row that differs in more is of the next campaign, and
/// those behind it would be written with that campaign's columns as if each had its own.
const SETTLED: usize = 8;

/// Which cells differ from the one above: a bit per cell, rows of whole words. The first row is fresh throughout.
pub(super) struct Fresh {
    bits: Vec<u64>,
    words: usize,
    columns: usize,
}

impl Fresh {
    /// A cell that is fresh may still equal the one above: equal text behind two views is not looked at.
    pub(super) fn find(columns: &[ArrayRef], rows: usize) -> Fresh {
        let words = columns.len().div_ceil(64).max(1);
        let mut bits = vec![0; rows * words];
        for (position, column) in columns.iter().enumerate() {
            let (word, bit) = (position / 64, 1 << (position % 64));
            if rows > 0 {
                bits[word] |= bit;
            }
            each_change(column, |row| bits[row * words + word] |= bit);
        }
        Fresh { bits, words, columns: columns.len() }
    }

    /// The run that begins with the first of `rows`, which are not empty: where it ends, and the columns that are fresh in
    /// any of its other rows, in order. Those rows differ from the one above only as `repeats` allows, which is given their
    /// fresh columns, a bit each; and once the run is [`SETTLED`], only in columns that others have differed in.
    pub(super) fn run(&self, rows: Range<usize>, repeats: impl Fn(&[u64]) -> bool) -> (usize, Vec<usize>) {
        let mut end = rows.start + 1;
        let (mut last, mut any): (&[u64], Vec<u64>) = (&[], Vec::new());
        for fresh in self.bits[end * self.words..rows.end * self.words].chunks_exact(self.words) {
            // In a fan-out nearly every row differs from the one above just where that one did.
            if !fresh.iter().eq(last) {
                let differs_anew = any.iter().zip(fresh).any(|(any, fresh)| fresh & !any != 0);
                if !repeats(fresh) || (differs_anew && end - rows.start >= SETTLED) {
                    break;
                }
                any.resize(self.words, 0);
                any.iter_mut().zip(fresh).for_each(|(any, fresh)| *any |= fresh);
                last = fresh;
            }
            end += 1;
        }
        let is_fresh = |&column: &usize| any[column / 64] >> (column % 64) & 1 == 1;
        let columns = if any.is_empty() { Vec::new() } else { (0..self.columns).filter(is_fresh).collect() };
        (end, columns)
    }
}

/// A bit for each column, as [`Fresh`] has them.
pub(super) fn bits(columns: &[bool]) -> Vec<u64> {
    let word = |columns: &[bool]| columns.iter().rev().fold(0, |word, &column| word << 1 | u64::from(column));
    columns.chunks(64).map(word).collect()
}

/// Calls `changed` for every row, the first one left out, whose value may differ from that of the row above.
pub(super) fn each_change(array: &dyn Array, mut changed: impl FnMut(usize)) {
    let len = array.len();
    match array.data_type() {
        DataType::Null => {}
        DataType::Boolean => {
            let array = array.as_boolean();
            each(len, array.nulls(), |a, b| array.value(a) == array.value(b), changed);
        }
        DataType::Binary => {
            let array = array.as_binary::<i32>();
            each(len, array.nulls(), |a, b| array.value(a) == array.value(b), changed);
        }
        DataType::FixedSizeBinary(_) => {
            let array = array.as_fixed_size_binary();
            each(len, array.nulls(), |a, b| array.value(a) == array.value(b), changed);
        }
        // Equal views of one array are equal text.
        DataType::Utf8View => fixed::<u128>(array, changed),
        // By their bits: 0.0 and -0.0 are equal and look different.
        other => match other.primitive_width() {
            Some(1) => fixed::<u8>(array, changed),
            Some(2) => fixed::<u16>(array, changed),
            Some(4) => fixed::<u32>(array, changed),
            Some(8) => fixed::<u64>(array, changed),
            Some(16) => fixed::<i128>(array, changed),
            _ => (1..len).for_each(&mut changed),
        },
    }
}

fn fixed<T: ArrowNativeType + PartialEq>(array: &dyn Array, mut changed: impl FnMut(usize)) {
    let data = array.to_data();
    let values = &data.buffer::<T>(0)[..array.len()];
    if array.null_count() > 0 {
        return each(array.len(), array.nulls(), |a, b| values[a] == values[b], changed);
    }
    // Block by block against the same one row further up: in a fan-out nearly every block is one comparison of memory.
    let mut row = 1;
    while row < values.len() {
        let end = values.len().min(row + BLOCK);
        if values[row - 1..end - 1] != values[row..end] {
            (row..end).filter(|&row| values[row - 1] != values[row]).for_each(&mut changed);
        }
        row = end;
    }
}

fn each(len: usize, nulls: Option<&NullBuffer>, same: impl Fn(usize, usize) -> bool, mut changed: impl FnMut(usize)) {
    match nulls {
        None => (1..len).filter(|&row| !same(row - 1, row)).for_each(changed),
        Some(nulls) => {
            for row in 1..len {
                let (above, here) = (nulls.is_valid(row - 1), nulls.is_valid(row));
                if above != here || (here && !same(row - 1, row)) {
                    changed(row);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use arrow::array::Int32Array;

    use super::*;

    const COLUMNS: usize = 70;

    /// Rows that differ from the one above in just these columns.
    fn fresh(rows: &[&[usize]]) -> Fresh {
        let values = |column: usize| {
            let mut value = 0;
            let values = rows.iter().map(move |fresh| {
                value += i32::from(fresh.contains(&column));
                value
            });
            Arc::new(Int32Array::from_iter_values(values)) as ArrayRef
        };
        Fresh::find(&(0..COLUMNS).map(values).collect::<Vec<_>>(), rows.len())
    }

    #[test]
    fn a_run_ends_where_a_row_may_not_repeat_or_the_rows_end() {
        let rows = fresh(&[&[], &[1, 68], &[1], &[], &[1, 66], &[5], &[1], &[1]]);
        let repeats = |fresh: &[u64]| fresh[0] & (1 << 5) == 0;
        assert_eq!(rows.run(0..8, repeats), (5, vec![1, 66, 68]));
        assert_eq!(rows.run(1..8, repeats), (5, vec![1, 66]), "what the first row differs in does not count");
        assert_eq!(rows.run(1..3, repeats), (3, vec![1]));
        assert_eq!(rows.run(2..4, repeats), (4, vec![]));
        assert_eq!(rows.run(4..8, repeats), (5, vec![]));
        assert_eq!(rows.run(5..8, repeats), (8, vec![1]));
        assert_eq!(rows.run(7..8, repeats), (8, vec![]));
    }

    #[test]
    fn rows_that_differ_as_the_one_above_are_not_asked_for() {
        let (rows, asked) = (fresh(&[[1_usize].as_slice(); 100]), Cell::new(0));
        assert_eq!(rows.run(0..100, |_| asked.replace(asked.get() + 1) < 1), (100, vec![1]));
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn a_run_that_is_settled_ends_before_the_next_campaign() {
        for (before, end) in [(SETTLED - 1, 2 * SETTLED), (SETTLED, SETTLED), (SETTLED + 1, SETTLED + 1)] {
            let mut rows: Vec<&[usize]> = vec![&[1]; 2 * SETTLED];
            rows[before] = &[1, 66];
            assert_eq!(fresh(&rows).run(0..rows.len(), |_| true).0, end, "{before} rows before");
        }
        let mut rows: Vec<&[usize]> = vec![&[1]; 2 * SETTLED];
        rows[SETTLED + 2] = &[1, 66];
        assert_eq!(
            fresh(&rows).run(3..rows.len(), |_| true).0,
            rows.len(),
            "not settled, counted from its own first row"
        );
        let mut rows: Vec<&[usize]> = vec![&[1, 66]; 2 * SETTLED];
        rows[SETTLED + 1] = &[66];
        assert_eq!(fresh(&rows).run(0..rows.len(), |_| true), (rows.len(), vec![1, 66]), "less is no other campaign");
    }
}
