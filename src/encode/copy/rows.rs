//! The rows of a COPY: pgpq writes them, but for the rows of a fan-out that repeat the one above in all but their text.
//! Those are copied from the first of them, with their own text: a tenth of the work.

use std::ops::Range;

use arrow::array::{Array, AsArray, RecordBatch, StringViewArray};
use bytes::{BufMut, BytesMut};
use pgpq::ArrowToPostgresBinaryEncoder;
use pgpq::error::ErrorKind;

use super::step::step;
use crate::encode::repeats::{Fresh, bits};
use crate::encode::stamp::Stamp;

/// A fan-out of fewer rows is left to pgpq: a call of it costs as much as it writes in that time.
const WORTH: usize = 8;

/// Bytes of a cell's length.
const WORD: usize = 4;

/// Writes rows of one schema.
#[derive(Debug)]
pub(super) struct Rows {
    pgpq: ArrowToPostgresBinaryEncoder,
    /// Columns whose binary form is their text, a bit each.
    plain: Vec<u64>,
}

impl Rows {
    pub(super) fn new(pgpq: ArrowToPostgresBinaryEncoder, plain: &[bool]) -> Rows {
        Rows { pgpq, plain: bits(plain) }
    }

    /// Appends rows of `batch`, from `row` on, until `out` has `bytes` bytes or little more; where to go on. `fresh` knows what
    /// repeats in the batch.
    pub(super) fn write(
        &mut self,
        batch: &RecordBatch,
        fresh: &Fresh,
        mut row: usize,
        bytes: usize,
        out: &mut BytesMut,
    ) -> Result<usize, ErrorKind> {
        while row < batch.num_rows() && out.len() < bytes {
            let FanOut { first, end, differing } = self.next_fan_out(fresh, row..batch.num_rows());
            while row <= first && out.len() < bytes {
                let (rows, begin) = (step(batch, row..first + 1), out.len());
                self.pgpq.write_batch(&rows, out)?;
                row += rows.num_rows();
                if row > first && row < end {
                    row = last_row(&out[begin..], rows.num_rows()).repeat(batch, &differing, row..end, bytes, out);
                }
            }
        }
        Ok(row)
    }

    /// The next rows that are worth repeating; none: the last row alone.
    fn next_fan_out(&self, fresh: &Fresh, rows: Range<usize>) -> FanOut {
        let repeats = |fresh: &[u64]| fresh.iter().zip(&self.plain).all(|(fresh, plain)| fresh & !plain == 0);
        let mut first = rows.start;
        while first < rows.end {
            let (end, differing) = fresh.run(first..rows.end, repeats);
            if end - first > WORTH {
                return FanOut { first, end, differing };
            }
            first = end;
        }
        FanOut { first: rows.end - 1, end: rows.end, differing: Vec::new() }
    }
}

/// A row, and those below it that repeat it up to `end`, but for their texts in the columns `differing`.
struct FanOut {
    first: usize,
    end: usize,
    differing: Vec<usize>,
}

/// One row as COPY has it: a count of cells, and each cell with its length before it.
struct Row {
    bytes: Vec<u8>,
    /// Where each cell lies, its length included.
    cells: Vec<Range<usize>>,
}

impl Row {
    /// Writes `rows` of `batch`, directly below this one, which differ from it in these columns of plain text only, until
    /// `out` has `bytes` bytes; where to go on.
    fn repeat(
        &self,
        batch: &RecordBatch,
        differing: &[usize],
        rows: Range<usize>,
        bytes: usize,
        out: &mut BytesMut,
    ) -> usize {
        let texts = |&column: &usize| (self.cells[column].clone(), batch.column(column).as_string_view());
        let cells: Vec<_> = differing.iter().map(texts).collect();
        let stamp = match &cells[..] {
            [(cell, texts)] if texts.is_valid(rows.start - 1) => {
                Some(Stamp { bytes: self.bytes.clone(), place: cell.start + WORD..cell.end, texts })
            }
            _ => None,
        };
        for row in rows.clone() {
            if out.len() >= bytes {
                return row;
            }
            if !stamp.as_ref().is_some_and(|stamp| stamp.write(row, out, |_| true)) {
                self.write_with(&cells, row, out);
            }
        }
        rows.end
    }

    /// Appends the row with other texts in these cells, those of `row`.
    fn write_with(&self, cells: &[(Range<usize>, &StringViewArray)], row: usize, out: &mut BytesMut) {
        let mut begin = 0;
        for (cell, texts) in cells {
            out.put_slice(&self.bytes[begin..cell.start]);
            begin = cell.end;
            if texts.is_null(row) {
                out.put_i32(-1);
            } else {
                let text = texts.value(row).as_bytes();
                out.put_i32(text.len() as i32);
                out.put_slice(text);
            }
        }
        out.put_slice(&self.bytes[begin..]);
    }
}

/// The last of `count` rows.
fn last_row(bytes: &[u8], count: usize) -> Row {
    let word = |at: usize| {
        bytes.get(at..at + WORD).map_or(-1, |word| i32::from_be_bytes([word[0], word[1], word[2], word[3]]))
    };
    let (mut begin, mut at, mut cells) = (0, 0, Vec::new());
    for _ in 0..count {
        cells.clear();
        begin = at;
        let columns = bytes.get(at..at + 2).map_or(0, |count| i16::from_be_bytes([count[0], count[1]]));
        at += 2;
        for _ in 0..columns {
            let end = at + WORD + word(at).max(0) as usize;
            cells.push(at - begin..end - begin);
            at = end;
        }
    }
    Row { bytes: bytes[begin..at].to_vec(), cells }
}
