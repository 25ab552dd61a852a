//! A column of ids as it is stored: 16 bytes a row, and beside them the few texts that are no ids.
//!
//! ```text
//! Struct { id: FixedSizeBinary(16), text: runs of Utf8View }     the row of an id: id, null
//!                                                                another text:     null, text
//!                                                                null:             null, null
//! ```
//!
//! Promises: [`restore`] gives back what [`store`] got, value by value; what [`store`] cannot have made is an error. The
//! bytes of the ids stand alone, so that the compressor sees that there is nothing to gain and leaves them as they are.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, Int32Array, NullBufferBuilder, RunArray, StringViewArray,
    StringViewBuilder, StructArray,
};
use arrow::buffer::Buffer;
use arrow::datatypes::{Field, Fields, Int32Type};
use arrow::error::ArrowError;

use super::Arena;
use crate::id::{self, Id};
use crate::view;

/// One text in so many, at most, is no id: each takes 36 bytes and its letters, and an empty place among the ids.
const OTHERS: usize = 8;

const ID_LEN: i32 = size_of::<Id>() as i32;

/// The texts of `parts`, one after the other; `None` where too few of them are ids.
pub(super) fn store(parts: &[&StringViewArray]) -> Result<Option<ArrayRef>, ArrowError> {
    let rows: usize = parts.iter().map(|part| part.len()).sum();
    let mut ids: Vec<Id> = Vec::with_capacity(rows);
    // Behind `ids` by those that came since the last null: they are counted at once.
    let mut nulls = NullBufferBuilder::new(rows);
    let mut others = Others::default();
    for part in parts {
        for (row, &view) in part.views().iter().enumerate() {
            let is_valid = part.is_valid(row);
            if is_valid
                && view::len(view) == id::TEXT_LEN
                && let Some(id) = id::parse(part.value(row).as_bytes())
            {
                ids.push(scattered(id));
                continue;
            }
            if is_valid {
                others.push(ids.len(), part.value(row));
                if others.count > rows / OTHERS {
                    return Ok(None);
                }
            }
            nulls.append_n_non_nulls(ids.len() - nulls.len());
            nulls.append_null();
            ids.push(Id::default());
        }
    }
    nulls.append_n_non_nulls(ids.len() - nulls.len());
    let nulls = nulls.finish();
    let count = rows - nulls.as_ref().map_or(0, |nulls| nulls.null_count());
    if count == 0 || others.count > (count + others.count) / OTHERS {
        return Ok(None);
    }
    let ids: ArrayRef = Arc::new(FixedSizeBinaryArray::try_new(ID_LEN, Buffer::from_vec(ids.into_flattened()), nulls)?);
    let texts = others.finish(rows)?;
    let field = |name: &str, array: &ArrayRef| Field::new(name, array.data_type().clone(), true);
    let fields = Fields::from(vec![field("id", &ids), field("text", &texts)]);
    Ok(Some(Arc::new(StructArray::try_new(fields, vec![ids, texts], None)?)))
}

/// The way back.
pub(super) fn restore(stored: &StructArray) -> Result<ArrayRef, ArrowError> {
    let unknown = || ArrowError::ParseError("stored ids are none".into());
    let [ids, texts] = stored.columns() else { return Err(unknown()) };
    let ids = ids.as_fixed_size_binary_opt().filter(|ids| ids.value_length() == ID_LEN).ok_or_else(unknown)?;
    let runs = texts.as_run_opt::<Int32Type>().ok_or_else(unknown)?;
    let texts = runs.values().as_string_view_opt().ok_or_else(unknown)?;
    // Texts stay where they are, however many rows a run claims to have; ids are printed behind them.
    let mut arena = Arena { full: texts.data_buffers().to_vec(), bytes: Vec::new() };
    let mut views = Vec::with_capacity(ids.len());
    let mut nulls = NullBufferBuilder::new(ids.len());
    for (run, &end) in runs.run_ends().values().iter().enumerate() {
        let rows = views.len()..(end.max(0) as usize).min(ids.len());
        if texts.is_valid(run) {
            if rows.clone().any(|row| ids.is_valid(row)) {
                return Err(unknown());
            }
            nulls.append_n_non_nulls(rows.len());
            views.resize(rows.end.max(rows.start), texts.views()[run]);
            continue;
        }
        for row in rows {
            nulls.append(ids.is_valid(row));
            views.push(if ids.is_valid(row) { print(ids.value(row), &mut arena).ok_or_else(unknown)? } else { 0 });
        }
    }
    if views.len() != ids.len() || stored.null_count() > 0 {
        return Err(unknown());
    }
    Ok(Arc::new(StringViewArray::try_new(views.into(), arena.finish(), nulls.finish())?))
}

fn print(stored: &[u8], arena: &mut Arena) -> Option<u128> {
    let text = id::print(scattered(stored.try_into().ok()?));
    Some(arena.push(&text, view::make(&text, 0, 0)))
}

/// The two bytes that have a UUID's version and variant, each mixed with the random one behind it; done twice, as before.
/// As they are, those bytes are rare enough not to be worth a Huffman code, and frequent enough for zstd to try.
fn scattered(id: Id) -> Id {
    let word = u128::from_be_bytes(id);
    (word ^ (word << 8 & SCATTERED)).to_be_bytes()
}

/// The seventh byte and the ninth.
const SCATTERED: u128 = 0x0000_0000_0000_ff00_ff00_0000_0000_0000;

/// The texts that are no ids, each a run of one row, with runs of nulls between them.
#[derive(Default)]
struct Others {
    ends: Vec<i32>,
    texts: StringViewBuilder,
    count: usize,
}

impl Others {
    fn push(&mut self, row: usize, text: &str) {
        self.fill(row);
        self.ends.push(row as i32 + 1);
        self.texts.append_value(text);
        self.count += 1;
    }

    /// Nulls up to `row`.
    fn fill(&mut self, row: usize) {
        if self.ends.last().is_none_or(|&end| end < row as i32) && row > 0 {
            self.ends.push(row as i32);
            self.texts.append_null();
        }
    }

    fn finish(mut self, rows: usize) -> Result<ArrayRef, ArrowError> {
        self.fill(rows);
        let ends = Int32Array::from(self.ends);
        Ok(Arc::new(RunArray::<Int32Type>::try_new(&ends, &self.texts.finish())?))
    }
}
