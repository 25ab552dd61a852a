//! Decodes Postgres' binary COPY stream into Arrow batches, chunk by chunk. No IO, and no trust: lengths that do not
//! fit are errors, and a value is read only when all of it is there.
//!
//! Format: <https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format". Text becomes string views into
//! big shared blocks. A column whose strings repeat is kept once per distinct string and batch.

use std::sync::Arc;

use arrow::array::builder::{
    ArrayBuilder, BooleanBuilder, Date32Builder, Float32Builder, Float64Builder, Int16Builder, Int32Builder,
    Int64Builder, StringViewBuilder, TimestampMicrosecondBuilder,
};
use arrow::array::{ArrayRef, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use tokio_postgres::types::Type;

/// Rows in a batch of a lookup table.
pub(super) const TABLE_BATCH_ROWS: usize = 64 * 1024;
/// A block of string bytes. 64k rows of 36 bytes fill nine of them, so at most a tenth is left empty.
const STRING_BLOCK: u32 = 256 * 1024;
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// Postgres itself cannot send a longer value.
const MAX_VALUE: usize = 1 << 30;
/// From 2000-01-01, where Postgres' clock starts, to 1970-01-01, where Arrow's does.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400_000_000;

/// The Arrow type for a column of Postgres' type, if the lookup knows it.
pub(super) fn arrow_type(postgres: &Type) -> Option<DataType> {
    Some(match *postgres {
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UUID | Type::UNKNOWN => DataType::Utf8View,
        Type::INT2 => DataType::Int16,
        Type::INT4 => DataType::Int32,
        Type::INT8 => DataType::Int64,
        Type::FLOAT4 => DataType::Float32,
        Type::FLOAT8 => DataType::Float64,
        Type::BOOL => DataType::Boolean,
        Type::DATE => DataType::Date32,
        Type::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
        _ => return None,
    })
}

pub(super) struct CopyDecoder {
    schema: SchemaRef,
    columns: Vec<Column>,
    /// The part of the stream that does not make a whole tuple yet.
    rest: Vec<u8>,
    header_read: bool,
    trailer_read: bool,
    rows_in_batch: usize,
    batches: Vec<RecordBatch>,
    rows: u64,
}

impl CopyDecoder {
    /// `columns`: names and Postgres types, all of them known to [`arrow_type`].
    pub(super) fn new(columns: &[(String, Type)]) -> Result<Self, String> {
        let mut fields = Vec::with_capacity(columns.len());
        let mut builders = Vec::with_capacity(columns.len());
        for (name, kind) in columns {
            let data_type = arrow_type(kind).ok_or_else(|| format!("column {name} is of type {kind}"))?;
            builders.push(Column { name: name.clone(), values: Values::new(kind, &data_type)? });
            fields.push(Field::new(name, data_type, true));
        }
        Ok(Self {
            schema: Arc::new(Schema::new(fields)),
            columns: builders,
            rest: Vec::new(),
            header_read: false,
            trailer_read: false,
            rows_in_batch: 0,
            batches: Vec::new(),
            rows: 0,
        })
    }

    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes the next piece of the stream, cut anywhere.
    pub(super) fn feed(&mut self, chunk: &[u8]) -> Result<(), String> {
        if self.rest.is_empty() {
            let used = self.decode(chunk)?;
            self.rest.extend_from_slice(&chunk[used..]);
            return Ok(());
        }
        let mut pending = std::mem::take(&mut self.rest);
        pending.extend_from_slice(chunk);
        let used = self.decode(&pending)?;
        pending.drain(..used);
        self.rest = pending;
        Ok(())
    }

    /// The batches, once the stream has ended as it should.
    pub(super) fn finish(mut self) -> Result<(SchemaRef, Vec<RecordBatch>), String> {
        if !self.trailer_read {
            return Err(format!("the stream ends after {} rows without its trailer", self.rows));
        }
        self.cut_batch()?;
        Ok((self.schema, self.batches))
    }

    /// Decodes what is whole in `bytes` and says how many bytes that was.
    fn decode(&mut self, bytes: &[u8]) -> Result<usize, String> {
        let mut used = 0;
        if !self.header_read {
            match header_len(bytes)? {
                Some(len) => used = len,
                None => return Ok(0),
            }
            self.header_read = true;
        }
        while let Some(tuple) = tuple_len(&bytes[used..], self.columns.len())? {
            if self.trailer_read {
                return Err("the stream goes on after its trailer".into());
            }
            match tuple {
                Tuple::Row(len) => {
                    self.append(&bytes[used + 2..used + len])?;
                    used += len;
                }
                Tuple::Trailer => {
                    self.trailer_read = true;
                    used += 2;
                }
            }
        }
        Ok(used)
    }

    /// `fields`: the lengths and values of one row, known to be whole.
    fn append(&mut self, mut fields: &[u8]) -> Result<(), String> {
        for column in &mut self.columns {
            let Some((len, after)) = fields.split_first_chunk() else { return Err("a row is cut short".into()) };
            let (value, after) = match usize::try_from(i32::from_be_bytes(*len)) {
                Err(_) => (None, after),
                Ok(len) => match after.split_at_checked(len) {
                    Some((value, after)) => (Some(value), after),
                    None => return Err("a row is cut short".into()),
                },
            };
            fields = after;
            column
                .values
                .append(value)
                .map_err(|problem| format!("column {}, row {}: {problem}", column.name, self.rows + 1))?;
        }
        self.rows += 1;
        self.rows_in_batch += 1;
        if self.rows_in_batch == TABLE_BATCH_ROWS { self.cut_batch() } else { Ok(()) }
    }

    fn cut_batch(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.rows_in_batch) == 0 {
            return Ok(());
        }
        let arrays = self.columns.iter_mut().map(|column| column.values.finish()).collect();
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), arrays).map_err(|error| error.to_string())?;
        self.batches.push(batch);
        Ok(())
    }
}

/// Signature, flags and extension; `None` while they are not all there.
fn header_len(bytes: &[u8]) -> Result<Option<usize>, String> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return Err("the stream does not begin as a binary COPY does".into());
    }
    let Some(extension) = bytes.get(15..19) else { return Ok(None) };
    let extension = u32::from_be_bytes([extension[0], extension[1], extension[2], extension[3]]) as usize;
    if extension > MAX_VALUE {
        return Err(format!("the header claims an extension of {extension} bytes"));
    }
    Ok((bytes.len() >= 19 + extension).then_some(19 + extension))
}

enum Tuple {
    Row(usize),
    Trailer,
}

/// What stands at the front of `bytes`, and its length with the field count; `None` while it is not all there.
fn tuple_len(bytes: &[u8], columns: usize) -> Result<Option<Tuple>, String> {
    let Some(&[high, low]) = bytes.first_chunk() else { return Ok(None) };
    let count = i16::from_be_bytes([high, low]);
    if count == -1 {
        return Ok(Some(Tuple::Trailer));
    }
    if usize::try_from(count) != Ok(columns) {
        return Err(format!("a row has {count} fields, the query has {columns} columns"));
    }
    let mut at = 2;
    for _ in 0..columns {
        let Some(len) = bytes.get(at..).and_then(|rest| rest.first_chunk()) else { return Ok(None) };
        at += 4;
        match i32::from_be_bytes(*len) {
            -1 => {}
            len => match usize::try_from(len) {
                Ok(len) if len <= MAX_VALUE => at += len,
                _ => return Err(format!("a field claims {len} bytes")),
            },
        }
    }
    Ok((bytes.len() >= at).then_some(Tuple::Row(at)))
}

struct Column {
    name: String,
    values: Values,
}

enum Values {
    Text { strings: StringViewBuilder, is_uuid: bool, appended: usize },
    Int16(Int16Builder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Float32(Float32Builder),
    Float64(Float64Builder),
    Bool(BooleanBuilder),
    Date(Date32Builder),
    Timestamp(TimestampMicrosecondBuilder),
}

impl Values {
    fn new(postgres: &Type, arrow: &DataType) -> Result<Self, String> {
        Ok(match arrow {
            // The first batch shows whether the column's strings repeat.
            DataType::Utf8View => {
                Values::Text { strings: strings(true), is_uuid: *postgres == Type::UUID, appended: 0 }
            }
            DataType::Int16 => Values::Int16(Int16Builder::new()),
            DataType::Int32 => Values::Int32(Int32Builder::new()),
            DataType::Int64 => Values::Int64(Int64Builder::new()),
            DataType::Float32 => Values::Float32(Float32Builder::new()),
            DataType::Float64 => Values::Float64(Float64Builder::new()),
            DataType::Boolean => Values::Bool(BooleanBuilder::new()),
            DataType::Date32 => Values::Date(Date32Builder::new()),
            DataType::Timestamp(_, _) => {
                Values::Timestamp(TimestampMicrosecondBuilder::new().with_data_type(arrow.clone()))
            }
            other => return Err(format!("no decoder for {other}")),
        })
    }

    fn append(&mut self, value: Option<&[u8]>) -> Result<(), String> {
        match self {
            Values::Text { strings, is_uuid, appended } => match value {
                None => strings.append_null(),
                Some(bytes) if *is_uuid => {
                    let id = uuid::Uuid::from_bytes(fixed(bytes)?);
                    *appended += uuid::fmt::Hyphenated::LENGTH;
                    strings.append_value(id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
                }
                Some(bytes) => {
                    *appended += if bytes.len() > 12 { bytes.len() } else { 0 };
                    strings.append_value(std::str::from_utf8(bytes).map_err(|error| error.to_string())?);
                }
            },
            Values::Int16(builder) => builder.append_option(number(value, i16::from_be_bytes)?),
            Values::Int32(builder) => builder.append_option(number(value, i32::from_be_bytes)?),
            Values::Int64(builder) => builder.append_option(number(value, i64::from_be_bytes)?),
            Values::Float32(builder) => builder.append_option(number(value, f32::from_be_bytes)?),
            Values::Float64(builder) => builder.append_option(number(value, f64::from_be_bytes)?),
            Values::Bool(builder) => builder.append_option(number(value, |[byte]| byte != 0)?),
            Values::Date(builder) => builder.append_option(match number(value, i32::from_be_bytes)? {
                Some(i32::MAX | i32::MIN) => return Err("an infinite date has no place in Arrow".into()),
                Some(days) => Some(days.checked_add(EPOCH_DAYS).ok_or("the date is out of range")?),
                None => None,
            }),
            Values::Timestamp(builder) => builder.append_option(match number(value, i64::from_be_bytes)? {
                Some(i64::MAX | i64::MIN) => return Err("an infinite timestamp has no place in Arrow".into()),
                Some(micros) => Some(micros.checked_add(EPOCH_MICROS).ok_or("the timestamp is out of range")?),
                None => None,
            }),
        }
        Ok(())
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Values::Text { strings: builder, appended, .. } => {
                let array = builder.finish();
                // Where fewer than half of the bytes were saved, looking for repeats is not worth its time.
                *builder = strings(kept_bytes(&array) * 2 <= std::mem::take(appended));
                Arc::new(array)
            }
            Values::Int16(builder) => ArrayBuilder::finish(builder),
            Values::Int32(builder) => ArrayBuilder::finish(builder),
            Values::Int64(builder) => ArrayBuilder::finish(builder),
            Values::Float32(builder) => ArrayBuilder::finish(builder),
            Values::Float64(builder) => ArrayBuilder::finish(builder),
            Values::Bool(builder) => ArrayBuilder::finish(builder),
            Values::Date(builder) => ArrayBuilder::finish(builder),
            Values::Timestamp(builder) => ArrayBuilder::finish(builder),
        }
    }
}

fn strings(repeating: bool) -> StringViewBuilder {
    let builder = StringViewBuilder::new().with_fixed_block_size(STRING_BLOCK);
    if repeating { builder.with_deduplicate_strings() } else { builder }
}

fn kept_bytes(array: &StringViewArray) -> usize {
    array.data_buffers().iter().map(|buffer| buffer.len()).sum()
}

fn number<const N: usize, T>(value: Option<&[u8]>, from: fn([u8; N]) -> T) -> Result<Option<T>, String> {
    value.map(|bytes| fixed(bytes).map(from)).transpose()
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], String> {
    bytes.try_into().map_err(|_| format!("{} bytes where {N} belong", bytes.len()))
}

#[cfg(test)]
mod tests;
