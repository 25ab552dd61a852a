//! The rows that pgpq is given at once: a batch in Arrow is small however large its campaign is, because a fan-out repeats
//! views; written out, every row has the campaign's text.

use std::ops::Range;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;

/// About so many bytes, and no more rows, unless one row is larger.
pub(super) const STEP: usize = 64 * 1024;
const ROWS: usize = 256;

/// Bytes for each column of a row besides its text: the length word and up to 16 bytes of value.
const CELL: usize = 20;

/// The first of `rows`, which are not empty, as many as make a [`STEP`].
pub(super) fn step(batch: &RecordBatch, rows: Range<usize>) -> RecordBatch {
    let rows = batch.slice(rows.start, rows.len().min(ROWS));
    match rows.num_rows() {
        1 => rows,
        _ => rows.slice(0, fitting(&rows, STEP)),
    }
}

/// How many rows, from the first one on, take about `bytes` bytes; one at least.
fn fitting(rows: &RecordBatch, bytes: usize) -> usize {
    let mut sizes = vec![CELL * rows.num_columns(); rows.num_rows()];
    for column in rows.columns() {
        match column.data_type() {
            DataType::Utf8View => add(&mut sizes, column.as_string_view().lengths()),
            DataType::BinaryView => add(&mut sizes, column.as_binary_view().lengths()),
            DataType::Binary => {
                add(&mut sizes, column.as_binary::<i32>().offsets().lengths().map(|length| length as u32))
            }
            DataType::Utf8 => {
                add(&mut sizes, column.as_string::<i32>().offsets().lengths().map(|length| length as u32))
            }
            _ => {}
        }
    }
    let mut all = 0;
    let over = sizes.iter().position(|size| {
        all += size;
        all > bytes
    });
    over.unwrap_or(sizes.len()).max(1)
}

fn add(sizes: &mut [usize], lengths: impl Iterator<Item = u32>) {
    sizes.iter_mut().zip(lengths).for_each(|(size, length)| *size += length as usize);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringViewArray};

    use super::*;
    use crate::encode::samples;

    #[test]
    fn a_step_has_as_many_rows_as_fit_and_one_at_least() {
        let batch = samples::fan_out(5, 1000);
        // 4 columns of 20 bytes, 43 of text and 36 of client.
        let row = 4 * CELL + 43 + 36;
        let limits = [0, 1, 10 * row - row / 2, 10 * row, 10 * row + row / 2, usize::MAX];
        assert_eq!(limits.map(|bytes| fitting(&batch, bytes)), [1, 1, 9, 10, 10, 5000]);
        assert_eq!(step(&batch, 7..5000), batch.slice(7, ROWS));
        assert_eq!(step(&batch, 7..9), batch.slice(7, 2));
        assert_eq!(step(&batch, 7..8), batch.slice(7, 1));
        let large = StringViewArray::from_iter_values((0..9).map(|_| "x".repeat(STEP / 4)));
        let large = RecordBatch::try_from_iter([("t", Arc::new(large) as ArrayRef)]).unwrap();
        assert_eq!(step(&large, 1..9), large.slice(1, 3));
    }
}
