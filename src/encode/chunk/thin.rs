//! Rows as they are stored: what repeats, once per run; what is short text, end to end, and UUIDs in 16 bytes.
//!
//! Promises: [`thick`] gives back what [`thin`] got, value by value. In a fan-out that leaves a tenth of the bytes for the
//! compressor, which would find the same in ten times the time.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, Int32Array, RecordBatch, RecordBatchOptions, RunArray,
    StringViewArray, StringViewBuilder, UInt32Array,
};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type, Schema};
use arrow::error::ArrowError;

use super::{MAX_UNPACKED, compact};
use crate::encode::repeats::each_change;
use crate::id;

/// A column is stored by runs where they have so many rows on average.
const RUN: usize = 4;

/// And text end to end where it has at most so many bytes a row: longer text may repeat, and is stored once behind views.
const SHORT: usize = 128;

/// Marks the field of a column of texts that are stored as [`texts`] makes them.
const STORED: &str = "dinnerbell.stored";
const TEXTS: &str = "texts";

/// What the first byte of a stored text says of the others.
const IS_TEXT: u8 = 0;
const IS_ID: u8 = 1;

/// Each column in the least of its forms.
pub(super) fn thin(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let may_expand = !expands_too_far(batch.num_rows(), batch.num_columns());
    each_column(batch, |field, column| {
        if let Some(starts) = run_starts(column).filter(|_| may_expand) {
            return in_runs(field, column, starts);
        }
        match column.as_string_view_opt() {
            Some(column) if are_short(column) => {
                let mut metadata = field.metadata().clone();
                metadata.insert(STORED.into(), TEXTS.into());
                let field = Field::new(field.name(), DataType::Binary, field.is_nullable()).with_metadata(metadata);
                Ok((Arc::new(field), texts(column)))
            }
            _ => Ok((field.clone(), compact(column)?)),
        }
    })
}

/// The way back.
pub(super) fn thick(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    each_column(batch, |field, column| match (field.data_type(), column.as_binary_opt::<i32>()) {
        (DataType::RunEndEncoded(_, values), _) => {
            let small = has_small_values(values.data_type());
            if !small || expands_too_far(batch.num_rows(), batch.num_columns()) {
                return Err(ArrowError::InvalidArgumentError(format!("{} rows in a few bytes", batch.num_rows())));
            }
            let field = Field::new(field.name(), values.data_type().clone(), field.is_nullable())
                .with_metadata(field.metadata().clone());
            Ok((Arc::new(field), out_of_runs(column)?))
        }
        (_, Some(column)) if field.metadata().get(STORED).is_some_and(|stored| stored == TEXTS) => {
            let mut metadata = field.metadata().clone();
            metadata.remove(STORED);
            let field = Field::new(field.name(), DataType::Utf8View, field.is_nullable()).with_metadata(metadata);
            Ok((Arc::new(field), out_of_texts(column)?))
        }
        _ => Ok((field.clone(), column.clone())),
    })
}

fn each_column(
    batch: &RecordBatch,
    change: impl Fn(&FieldRef, &ArrayRef) -> Result<(FieldRef, ArrayRef), ArrowError>,
) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema_ref();
    let changed = schema.fields().iter().zip(batch.columns()).map(|(field, column)| change(field, column));
    let (fields, columns): (Vec<FieldRef>, Vec<ArrayRef>) = changed.collect::<Result<_, _>>()?;
    let schema = Arc::new(Schema::new(fields).with_metadata(schema.metadata().clone()));
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema, columns, &options)
}

/// Types whose values take at most 16 bytes each, however many rows share their text: what runs may be made of.
fn has_small_values(of: &DataType) -> bool {
    matches!(of, DataType::Utf8View | DataType::Boolean) || of.primitive_width().is_some_and(|width| width <= 16)
}

/// Runs can claim any number of rows: never more are made of them than a chunk may have in memory.
fn expands_too_far(rows: usize, columns: usize) -> bool {
    rows.saturating_mul(columns).saturating_mul(size_of::<u128>()) > MAX_UNPACKED
}

/// The first row of each run, where there are few.
fn run_starts(column: &ArrayRef) -> Option<Vec<u32>> {
    if !has_small_values(column.data_type()) {
        return None;
    }
    let most = column.len() / RUN;
    let mut starts = vec![0];
    each_change(column, |row| {
        if starts.len() <= most {
            starts.push(row as u32);
        }
    });
    (starts.len() <= most).then_some(starts)
}

fn in_runs(field: &Field, column: &ArrayRef, starts: Vec<u32>) -> Result<(FieldRef, ArrayRef), ArrowError> {
    let ends = starts[1..].iter().copied().chain([column.len() as u32]).map(|end| end as i32);
    let values = compact(&take(column, &UInt32Array::from(starts.clone()), None)?)?;
    let runs = RunArray::<Int32Type>::try_new(&ends.collect::<Int32Array>(), &values)?;
    let field =
        Field::new(field.name(), runs.data_type().clone(), field.is_nullable()).with_metadata(field.metadata().clone());
    Ok((Arc::new(field), Arc::new(runs)))
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

fn are_short(texts: &StringViewArray) -> bool {
    // The lower half of a view's lower half is its length.
    let bytes: u64 = texts.views().iter().map(|&view| u64::from(view as u32)).sum();
    bytes <= (SHORT * texts.len()) as u64
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
