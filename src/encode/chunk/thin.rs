//! Rows as they are stored: what repeats, once per run; UUIDs in 16 bytes, apart from other texts where nearly all are
//! such; other short text end to end.
//!
//! Promises: [`thick`] gives back what [`thin`] got, value by value. In a fan-out that leaves a tenth of the bytes for the
//! compressor, which would find the same in ten times the time.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, Int32Array, RecordBatch, RecordBatchOptions, RunArray,
    StringViewArray, StringViewBuilder, UInt32Array,
};
use arrow::compute::{concat, concat_batches, take};
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type, Schema};
use arrow::error::ArrowError;

use super::{MAX_UNPACKED, compact, ids};
use crate::encode::repeats::each_change;
use crate::id;
use crate::view;

/// A column is stored by runs where they have so many rows on average.
const RUN: usize = 4;

/// And text end to end where it has at most so many bytes a row: longer text may repeat, and is stored once behind views.
const SHORT: usize = 128;

/// Marks the field of a text column that is stored as [`texts`] or [`ids::store`] makes it.
const STORED: &str = "dinnerbell.stored";
const TEXTS: &str = "texts";
const IDS: &str = "ids";

/// What the first byte of a stored text says of the others.
const IS_TEXT: u8 = 0;
const IS_ID: u8 = 1;

/// Batches of fewer rows on average are put into one first: each begins new runs.
const FEW_ROWS: usize = 256;

/// The rows of all `batches`, which have one schema, each column in the least of its forms.
pub(super) fn thin(batches: &[RecordBatch]) -> Result<RecordBatch, ArrowError> {
    let none = || ArrowError::InvalidArgumentError("no batch to store".into());
    let first = batches.first().ok_or_else(none)?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    if batches.len() > 1 && rows < FEW_ROWS * batches.len() {
        return thin(&[concat_batches(first.schema_ref(), batches)?]);
    }
    let may_expand = !expands_too_far(rows, first.num_columns());
    each_column(first.schema_ref(), rows, |position, field| {
        let parts: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(position).as_ref()).collect();
        thin_column(field, &parts, may_expand)
    })
}

/// One column, which came in `parts`.
fn thin_column(field: &FieldRef, parts: &[&dyn Array], may_expand: bool) -> Result<(FieldRef, ArrayRef), ArrowError> {
    if let Some(starts) = run_starts(parts).filter(|_| may_expand) {
        let runs = in_runs(parts, &starts)?;
        return Ok((with_type(field, runs.data_type()), runs));
    }
    let texts: Option<Vec<&StringViewArray>> = parts.iter().map(|part| part.as_string_view_opt()).collect();
    let short = texts.filter(|texts| are_short(texts));
    if let Some(texts) = short.as_ref().filter(|_| may_expand)
        && let Some(ids) = ids::store(texts)?
    {
        return Ok((with_mark(&with_type(field, ids.data_type()), IDS), ids));
    }
    let whole = concat(parts)?;
    match whole.as_string_view_opt() {
        Some(column) if short.is_some() => {
            Ok((with_mark(&with_type(field, &DataType::Binary), TEXTS), self::texts(column)))
        }
        _ => Ok((field.clone(), compact(&whole)?)),
    }
}

/// The way back.
pub(super) fn thick(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let few_bytes = || ArrowError::InvalidArgumentError(format!("{} rows in a few bytes", batch.num_rows()));
    let expands = expands_too_far(batch.num_rows(), batch.num_columns());
    each_column(batch.schema_ref(), batch.num_rows(), |position, field| {
        let column = batch.column(position);
        let mark = field.metadata().get(STORED).map(String::as_str);
        if let DataType::RunEndEncoded(_, values) = field.data_type() {
            if expands || !has_small_values(values.data_type()) {
                return Err(few_bytes());
            }
            return Ok((with_type(field, values.data_type()), out_of_runs(column)?));
        }
        let texts = match (mark, column.as_binary_opt::<i32>(), column.as_struct_opt()) {
            (Some(TEXTS), Some(texts), _) => out_of_texts(texts)?,
            (Some(IDS), _, Some(_)) if expands => return Err(few_bytes()),
            (Some(IDS), _, Some(ids)) => ids::restore(ids)?,
            _ => return Ok((field.clone(), column.clone())),
        };
        Ok((without_mark(&with_type(field, texts.data_type())), texts))
    })
}

fn each_column(
    schema: &Schema,
    rows: usize,
    change: impl Fn(usize, &FieldRef) -> Result<(FieldRef, ArrayRef), ArrowError>,
) -> Result<RecordBatch, ArrowError> {
    let changed = schema.fields().iter().enumerate().map(|(position, field)| change(position, field));
    let (fields, columns): (Vec<FieldRef>, Vec<ArrayRef>) = changed.collect::<Result<_, _>>()?;
    let schema = Arc::new(Schema::new(fields).with_metadata(schema.metadata().clone()));
    RecordBatch::try_new_with_options(schema, columns, &RecordBatchOptions::new().with_row_count(Some(rows)))
}

fn with_type(field: &Field, of: &DataType) -> FieldRef {
    Arc::new(field.clone().with_data_type(of.clone()))
}

fn with_mark(field: &Field, mark: &str) -> FieldRef {
    let mut metadata = field.metadata().clone();
    metadata.insert(STORED.into(), mark.into());
    Arc::new(field.clone().with_metadata(metadata))
}

fn without_mark(field: &Field) -> FieldRef {
    let mut metadata = field.metadata().clone();
    metadata.remove(STORED);
    Arc::new(field.clone().with_metadata(metadata))
}

/// Types whose values take at most 16 bytes each, however many rows share their text: what runs may be made of.
fn has_small_values(of: &DataType) -> bool {
    matches!(of, DataType::Utf8View | DataType::Boolean) || of.primitive_width().is_some_and(|width| width <= 16)
}

/// Runs can claim any number of rows: never more are made of them than a chunk may have in memory.
fn expands_too_far(rows: usize, columns: usize) -> bool {
    rows.saturating_mul(columns).saturating_mul(size_of::<u128>()) > MAX_UNPACKED
}

/// The first row of each run within its part, where there are few.
fn run_starts(parts: &[&dyn Array]) -> Option<Vec<Vec<u32>>> {
    let rows: usize = parts.iter().map(|part| part.len()).sum();
    if rows == 0 || !parts.iter().all(|part| has_small_values(part.data_type())) {
        return None;
    }
    let mut left = rows / RUN;
    let mut starts = Vec::with_capacity(parts.len());
    for part in parts {
        let mut here: Vec<u32> = (0..1).take(part.len()).collect();
        each_change(*part, |row| {
            if here.len() <= left {
                here.push(row as u32);
            }
        });
        left = left.checked_sub(here.len())?;
        starts.push(here);
    }
    Some(starts)
}

fn in_runs(parts: &[&dyn Array], starts: &[Vec<u32>]) -> Result<ArrayRef, ArrowError> {
    let (mut ends, mut rows) = (Vec::new(), 0);
    let mut values = Vec::with_capacity(parts.len());
    for (part, starts) in parts.iter().zip(starts) {
        let next = starts.iter().skip(1).copied().chain([part.len() as u32]);
        ends.extend(next.take(starts.len()).map(|end| rows + end as i32));
        rows += part.len() as i32;
        values.push(take(*part, &UInt32Array::from(starts.clone()), None)?);
    }
    let values: Vec<&dyn Array> = values.iter().map(AsRef::as_ref).collect();
    let values = compact(&concat(&values)?)?;
    Ok(Arc::new(RunArray::<Int32Type>::try_new(&Int32Array::from(ends), &values)?))
}

fn out_of_runs(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let unknown = || ArrowError::SchemaError(format!("{} is no column of a chunk", column.data_type()));
    let runs = column.as_run_opt::<Int32Type>().ok_or_else(unknown)?;
    let mut rows = Vec::with_capacity(runs.len());
    for (run, &end) in runs.run_ends().values().iter().enumerate() {
        rows.resize((end.max(0) as usize).min(runs.len()), run as u32);
    }
    take(runs.values(), &UInt32Array::from(rows), None)
}

fn are_short(parts: &[&StringViewArray]) -> bool {
    let rows: usize = parts.iter().map(|part| part.len()).sum();
    let bytes: usize = parts.iter().flat_map(|part| part.views().iter()).map(|&view| view::len(view)).sum();
    bytes <= SHORT * rows
}

fn texts(column: &StringViewArray) -> ArrayRef {
    let mut stored = BinaryBuilder::with_capacity(column.len(), column.len() * 24);
    let mut bytes = Vec::with_capacity(SHORT);
    for text in column {
        let Some(text) = text else {
            stored.append_null();
            continue;
        };
        bytes.clear();
        match id::parse(text.as_bytes()) {
            Some(id) => {
                bytes.push(IS_ID);
                bytes.extend_from_slice(&id);
            }
            None => {
                bytes.push(IS_TEXT);
                bytes.extend_from_slice(text.as_bytes());
            }
        }
        stored.append_value(&bytes);
    }
    Arc::new(stored.finish())
}

fn out_of_texts(column: &BinaryArray) -> Result<ArrayRef, ArrowError> {
    let mut texts = StringViewBuilder::with_capacity(column.len());
    for stored in column {
        let Some(stored) = stored else {
            texts.append_null();
            continue;
        };
        let unknown = || ArrowError::ParseError("a stored text is none".into());
        let (kind, bytes) = stored.split_first().ok_or_else(unknown)?;
        let printed = match (*kind, bytes.try_into()) {
            (IS_ID, Ok(id)) => id::print(id),
            (IS_TEXT, _) => {
                texts.append_value(std::str::from_utf8(bytes).map_err(|_| unknown())?);
                continue;
            }
            _ => return Err(unknown()),
        };
        texts.append_value(std::str::from_utf8(&printed).map_err(|_| unknown())?);
    }
    Ok(Arc::new(texts.finish()))
}
