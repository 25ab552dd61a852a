//! Rows as compact JSON objects, one per Kafka record.
//!
//! Promises: keys in the order of the columns, null fields left out, numbers and escapes as serde_json writes them, NaN
//! and infinities as quoted names, times in RFC 3339 and UTC (milliseconds, or microseconds where there are any), dates
//! as `2022-07-31`, decimals as numbers with all their places, bytes in base64. The same row always gives the same
//! bytes. Lists and structs are refused when the schema is seen.
//!
//! In a fan-out, consecutive rows of a batch differ in one or two columns. A cell that equals the one above it is not
//! written again: neighbouring cells that repeat are copied from the row above in one piece. To make pieces
//! independent of their place, every cell ends with a comma, and the last comma of a row becomes its `}`.

mod cells;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;

use self::cells::{Cells, carrier};
use super::arrow;
use super::repeats::Fresh;
use crate::{Error, Result};

/// Writes rows of one schema.
#[derive(Debug, Clone)]
pub struct JsonRows {
    /// `"name":` of each column, escaped.
    keys: Vec<Vec<u8>>,
}

impl JsonRows {
    /// [`Error::Halt`] where a column has a type without a JSON form here (lists, structs, intervals).
    pub fn new(schema: &Schema) -> Result<JsonRows> {
        let mut keys = Vec::with_capacity(schema.fields().len());
        for field in schema.fields() {
            if carrier(field.data_type()).is_none() {
                return Err(Error::Halt {
                    what: format!(
                        "column \"{}\" of type {} cannot be written as JSON",
                        field.name(),
                        field.data_type()
                    ),
                    remedy: format!("write CAST(... AS VARCHAR) AS {} in the SELECT", field.name()),
                });
            }
            let mut key = Vec::new();
            cells::quoted(field.name(), &mut key);
            key.push(b':');
            keys.push(key);
        }
        Ok(JsonRows { keys })
    }

    /// Appends every row of `batch` to `out`, and to `ends` where in `out` each one ends (it begins where the one before
    /// ended). Nothing stands between rows. Fails only on times that no calendar has, with `out` and `ends` as before.
    pub fn encode(&self, batch: &RecordBatch, out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<()> {
        let (begin, rows) = (out.len(), ends.len());
        let result = self.append(batch, out, ends);
        if result.is_err() {
            out.truncate(begin);
            ends.truncate(rows);
        }
        result
    }

    fn append(&self, batch: &RecordBatch, out: &mut Vec<u8>, ends: &mut Vec<usize>) -> Result<()> {
        let (arrays, columns) = self.columns(batch)?;
        let fresh = Fresh::find(&arrays, batch.num_rows());
        // Where the cells end, counted from the row's beginning; the first entry is the end of `{`.
        let (mut bounds, mut bounds_above) = (vec![1usize; columns.len() + 1], vec![1usize; columns.len() + 1]);
        let mut above = out.len();
        ends.reserve(batch.num_rows());
        for row in 0..batch.num_rows() {
            let begin = out.len();
            out.push(b'{');
            let mut column = 0;
            while column < columns.len() {
                let next = fresh.next(row, column);
                if next > column {
                    repeat(out, above, begin, &bounds_above[column..=next], &mut bounds[column..=next]);
                    column = next;
                    continue;
                }
                if !columns[column].is_null(row) {
                    out.extend_from_slice(&self.keys[column]);
                    columns[column].write(row, out).map_err(arrow("writing JSON"))?;
                    out.push(b',');
                }
                column += 1;
                bounds[column] = out.len() - begin;
            }
            match out.last_mut() {
                Some(last) if *last == b',' => *last = b'}',
                _ => out.push(b'}'),
            }
            if row == 0 {
                out.reserve((out.len() - begin).saturating_mul(batch.num_rows()).min(MAX_RESERVE));
            }
            ends.push(out.len());
            above = begin;
            std::mem::swap(&mut bounds, &mut bounds_above);
        }
        Ok(())
    }

    fn columns(&self, batch: &RecordBatch) -> Result<(Vec<ArrayRef>, Vec<Cells>)> {
        let doing = "writing JSON";
        if batch.num_columns() != self.keys.len() {
            let found = format!("{} columns instead of {}", batch.num_columns(), self.keys.len());
            return Err(arrow(doing)(ArrowError::SchemaError(found)));
        }
        let columns = batch.columns().iter().map(|column| {
            let unsupported = || ArrowError::SchemaError(format!("{} has no JSON form", column.data_type()));
            let carrier = carrier(column.data_type()).ok_or_else(unsupported)?;
            let array = if carrier == *column.data_type() { column.clone() } else { cast(column, &carrier)? };
            let cells = Cells::new(&array).ok_or_else(unsupported)?;
            Ok((array, cells))
        });
        columns.collect::<Result<_, _>>().map_err(arrow(doing))
    }
}

/// Bytes that are reserved at once on the strength of the first row: a large first row need not be typical.
const MAX_RESERVE: usize = 4 << 20;

/// Copies neighbouring cells from the row that begins at `above` to the row that begins at `begin`. Both slices of
/// bounds start with the end of the cell before the first one.
fn repeat(out: &mut Vec<u8>, above: usize, begin: usize, from: &[usize], to: &mut [usize]) {
    let (start, end) = (from[0], from[from.len() - 1]);
    let here = out.len() - begin;
    out.extend_from_within(above + start..above + end);
    if let (true, Some(last)) = (start < end, out.last_mut()) {
        // In the row above this may have been the last cell, with `}` for its comma.
        *last = b',';
    }
    for (to, from) in to.iter_mut().zip(from).skip(1) {
        *to = from - start + here;
    }
}

#[cfg(test)]
mod tests;
