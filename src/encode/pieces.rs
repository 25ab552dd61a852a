//! Cuts batches where their rows, written out, would get large.
//!
//! A batch in Arrow is small however large its campaign is, because a fan-out repeats views; written out, every row has
//! the campaign's text. Promises: pieces of about the bytes asked for, one row at least. Sizes are estimates: a text
//! that needs escapes is larger as JSON.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;

/// Bytes for each column of a row besides its text: COPY's length word and up to 16 bytes of value. JSON also repeats
/// the column's name, which the caller may add to its limit.
const CELL: usize = 20;

/// The row numbers where pieces of about `bytes` bytes end; the last one is the number of rows. Empty for no rows.
pub fn cuts(batch: &RecordBatch, bytes: usize) -> Vec<usize> {
    let mut sizes = vec![CELL * batch.num_columns(); batch.num_rows()];
    for column in batch.columns() {
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
    let (mut cuts, mut piece) = (Vec::new(), 0usize);
    for (row, size) in sizes.into_iter().enumerate() {
        if piece > 0 && piece + size > bytes {
            cuts.push(row);
            piece = 0;
        }
        piece += size;
    }
    cuts.extend((batch.num_rows() > 0).then_some(batch.num_rows()));
    cuts
}

/// The batch in pieces of about `bytes` bytes written out; see [`cuts`].
pub fn pieces(batch: &RecordBatch, bytes: usize) -> impl Iterator<Item = RecordBatch> {
    let mut from = 0;
    cuts(batch, bytes).into_iter().map(move |to| {
        let piece = batch.slice(from, to - from);
        from = to;
        piece
    })
}

fn add(sizes: &mut [usize], lengths: impl Iterator<Item = u32>) {
    sizes.iter_mut().zip(lengths).for_each(|(size, length)| *size += length as usize);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::samples;

    #[test]
    fn pieces_are_whole_and_near_the_limit() {
        let batch = samples::fan_out(5, 1000);
        // 4 columns of 20 bytes, 43 of text and 36 of client.
        let row = 4 * CELL + 43 + 36;
        assert_eq!(cuts(&batch, 10 * row), (1..=500).map(|n| n * 10).collect::<Vec<_>>());
        assert_eq!(cuts(&batch, 1), (1..=5000).collect::<Vec<_>>());
        assert_eq!(cuts(&batch, usize::MAX), [5000]);
        assert_eq!(cuts(&batch.slice(0, 0), 10), [0; 0]);
        let parts: Vec<_> = pieces(&batch, 1 << 16).collect();
        assert_eq!(arrow::compute::concat_batches(batch.schema_ref(), &parts).unwrap(), batch);
    }
}
