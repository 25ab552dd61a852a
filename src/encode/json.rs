//! Rows as compact JSON objects, one per Kafka record.
//!
//! Promises: keys in the order of the columns, null fields left out, numbers and escapes as serde_json writes them, NaN
//! and infinities as quoted names, times in RFC 3339 and UTC (milliseconds, or microseconds where there are any), dates
//! as `2022-07-31`, decimals as numbers with all their places, bytes in base64. The same row always gives the same
//! bytes. Lists and structs are refused when the schema is seen.
//!
//! In a fan-out, consecutive rows of a batch differ in one or two columns. The first of such a run is written whole, the
//! others are stamped from it where a text of the same length is all that differs, else made of its pieces, with their
//! own cells in between. To make pieces independent of their place, every cell ends with a comma, and the last comma of
//! a row becomes its `}`.

mod cells;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::Schema;
use arrow::error::ArrowError;

use self::cells::{Cells, carrier};
use super::arrow;
use super::repeats::Fresh;
use super::stamp::Stamp;
use crate::json::is_ordinary;
use crate::{Error, Result};

/// Rows handed on at once, or a row more: few enough that a processor's cache still has them when they are copied.
pub const PIECE: usize = 128 * 1024;

/// Writes rows of one schema.
#[derive(Debug, Clone)]
pub struct JsonRows {
    /// `"name":` of each column, escaped.
    keys: Vec<Vec<u8>>,
}

/// The texts of rows, end to end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Texts {
    bytes: Vec<u8>,
    /// Where each row ends.
    ends: Vec<usize>,
}

impl Texts {
    /// How many rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text of each row.
    pub fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.ends.iter().scan(0, |start, &end| Some(&self.bytes[std::mem::replace(start, end)..end]))
    }

    fn end_row(&mut self) {
        self.ends.push(self.bytes.len());
    }
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

    /// Every row of `batch`. Fails only on times that no calendar has.
    pub fn encode(&self, batch: &RecordBatch) -> Result<Texts> {
        let mut texts = Texts::default();
        self.append(batch, &mut texts, |_| Ok(()))?;
        Ok(texts)
    }

    /// As [`JsonRows::encode`], but hands the rows on whenever [`PIECE`] bytes of them are written. A batch in Arrow is small
    /// however large its campaign is; as JSON, every row has the campaign's text.
    ///
    /// # Errors
    /// Those of [`JsonRows::encode`] and of `take`, with all pieces before it taken.
    pub fn pieces(&self, batch: &RecordBatch, mut take: impl FnMut(&Texts) -> Result<()>) -> Result<()> {
        let mut piece = Texts { bytes: Vec::with_capacity(PIECE + PIECE / 4), ends: Vec::new() };
        self.append(batch, &mut piece, |piece| {
            if piece.bytes.len() >= PIECE {
                take(piece)?;
                piece.bytes.clear();
                piece.ends.clear();
            }
            Ok(())
        })?;
        if piece.is_empty() { Ok(()) } else { take(&piece) }
    }

    /// Calls `after` with all that is written after each row.
    fn append(
        &self,
        batch: &RecordBatch,
        texts: &mut Texts,
        mut after: impl FnMut(&mut Texts) -> Result<()>,
    ) -> Result<()> {
        let (arrays, columns) = self.columns(batch)?;
        let fresh = Fresh::find(&arrays, batch.num_rows());
        let most = columns.len() as u32 / 2;
        let repeats = |fresh: &[u64]| fresh.iter().map(|word| word.count_ones()).sum::<u32>() <= most;
        let mut row = Row { bytes: Vec::new(), bounds: Vec::with_capacity(columns.len() + 1) };
        let mut first = 0;
        while first < batch.num_rows() {
            let (end, differing) = fresh.run(first..batch.num_rows(), repeats);
            self.row(&columns, first, &mut row).map_err(arrow("writing JSON"))?;
            close(&row.bytes, &mut texts.bytes);
            texts.end_row();
            after(texts)?;
            if end > first + 1 {
                let (stamp, pieces) = (self.stamp(&row, &columns, &differing), self.pieces_of(&row, &differing));
                for at in first + 1..end {
                    if !stamp.as_ref().is_some_and(|stamp| stamp.write(at, &mut texts.bytes, is_ordinary)) {
                        pieces.write(&columns, at, &mut texts.bytes).map_err(arrow("writing JSON"))?;
                    }
                    texts.end_row();
                    after(texts)?;
                }
            }
            first = end;
        }
        Ok(())
    }

    /// Writes one row, up to where its `}` would be.
    fn row(&self, columns: &[Cells], at: usize, row: &mut Row) -> Result<(), ArrowError> {
        let Row { bytes, bounds } = row;
        bytes.clear();
        bytes.push(b'{');
        bounds.clear();
        bounds.push(bytes.len());
        for (key, cells) in self.keys.iter().zip(columns) {
            if !cells.is_null(at) {
                bytes.extend_from_slice(key);
                cells.write(at, bytes)?;
                bytes.push(b',');
            }
            bounds.push(bytes.len());
        }
        Ok(())
    }

    /// `row` for rows that differ from it in one column, if that is of texts and it has one.
    fn stamp<'a>(&self, row: &Row, columns: &'a [Cells], differing: &[usize]) -> Option<Stamp<'a>> {
        let &[column] = differing else { return None };
        let cell = row.bounds[column]..row.bounds[column + 1];
        let texts = columns[column].texts().filter(|_| !cell.is_empty())?;
        let mut bytes = Vec::with_capacity(row.bytes.len() + 1);
        close(&row.bytes, &mut bytes);
        // Between the quotes: a comma follows.
        Some(Stamp { bytes, place: cell.start + self.keys[column].len() + 1..cell.end - 2, texts })
    }

    /// What rows that differ from `row` in these columns are made of.
    fn pieces_of(&self, row: &Row, differing: &[usize]) -> Pieces {
        let mut begin = 0;
        let cells = differing.iter().map(|&column| {
            let mut before = row.bytes[begin..row.bounds[column]].to_vec();
            begin = row.bounds[column + 1];
            let bare = before.len();
            before.extend_from_slice(&self.keys[column]);
            Piece { column, before, bare }
        });
        let cells = cells.collect();
        Pieces { cells, rest: row.bytes[begin..].to_vec() }
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

/// One row without its `}`, each cell with its comma.
struct Row {
    bytes: Vec<u8>,
    /// Where the cells end; the first entry is the end of `{`.
    bounds: Vec<usize>,
}

/// A run of rows that repeat all but some cells.
struct Pieces {
    cells: Vec<Piece>,
    /// What stands behind the last of them.
    rest: Vec<u8>,
}

/// A cell that is written for each row, and what stands before it.
struct Piece {
    column: usize,
    /// Up to the cell's value, its key included.
    before: Vec<u8>,
    /// Without the key: all that there is where the value is null.
    bare: usize,
}

impl Pieces {
    /// Appends one row.
    fn write(&self, columns: &[Cells], row: usize, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        for Piece { column, before, bare } in &self.cells {
            let cells = &columns[*column];
            if cells.is_null(row) {
                out.extend_from_slice(&before[..*bare]);
            } else {
                out.extend_from_slice(before);
                cells.write(row, out)?;
                out.push(b',');
            }
        }
        close(&self.rest, out);
        Ok(())
    }
}

/// Appends the rest of a row and makes its last comma the `}`.
fn close(rest: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(rest);
    match out.last_mut() {
        Some(last) if *last == b',' => *last = b'}',
        _ => out.push(b'}'),
    }
}

#[cfg(test)]
mod tests;
