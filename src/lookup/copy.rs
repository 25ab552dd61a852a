//! Decodes Postgres' binary COPY stream into the columns of a lookup table, chunk by chunk. No IO, and no trust: lengths
//! that do not fit are errors, and a value is read only when all of it is there.
//!
//! Format: <https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format". Values take the form in which the
//! table keeps them at once: nothing is held twice.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::array::builder::{
    ArrayBuilder, BooleanBuilder, Date32Builder, Float32Builder, Float64Builder, Int16Builder, Int32Builder,
    Int64Builder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::{Result as EngineResult, internal_err};
use tokio_postgres::types::Type;

use super::column::{self, Loaded, finish};
use super::distinct::once;
use super::index::{Key, KeyIndex, Keys, NO_KEY, is_key_type};
use super::table::LookupTable;
use super::text::{Text, TextBuilder};
use crate::id;

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

/// Whether values of this type are equal in Postgres just where their bytes are: not so numbers with a -0, nor texts whose
/// spaces at the end do not count.
pub(super) fn is_equal_by_bytes(postgres: &Type) -> bool {
    matches!(
        *postgres,
        Type::TEXT
            | Type::VARCHAR
            | Type::NAME
            | Type::UUID
            | Type::INT2
            | Type::INT4
            | Type::INT8
            | Type::BOOL
            | Type::DATE
            | Type::TIMESTAMP
            | Type::TIMESTAMPTZ
    )
}

/// Takes the stream of one `COPY (...) TO STDOUT (FORMAT binary)` and makes a lookup table of it.
pub struct CopyDecoder {
    schema: SchemaRef,
    columns: Vec<Column>,
    /// The part of the stream that does not make a whole tuple yet.
    rest: Vec<u8>,
    header_read: bool,
    trailer_read: bool,
    rows: u64,
    held: usize,
    /// Whether rows that are there several times are to be kept once, and with how many rows held they are looked for.
    distinct: Option<usize>,
}

/// Rows that are held however many of them repeat. Beyond it repeats are looked for whenever there are half as many again as
/// were left the last time. Loading then holds at most one and a half rows for each of the result, and each of them, while
/// they are put in order, in the old form and the new one, as the rows of every other table are; each row is looked at
/// about three times.
pub const SOME_ROWS: usize = 1_000_000;

/// The Arrow columns of `columns`, which have names and Postgres types.
pub(super) fn arrow_schema(columns: &[(String, Type)]) -> Result<SchemaRef, String> {
    let field = |(name, kind): &(String, Type)| match arrow_type(kind) {
        Some(data_type) => Ok(Field::new(name, data_type, true)),
        None => Err(format!("column {name} is of type {kind}")),
    };
    Ok(Arc::new(Schema::new(columns.iter().map(field).collect::<Result<Vec<_>, _>>()?)))
}

impl CopyDecoder {
    /// `columns`: names and Postgres types, all of them known to [`arrow_type`]. `key`: the one to index by, if it can
    /// be.
    pub fn new(columns: &[(String, Type)], key: Option<usize>) -> Result<Self, String> {
        let schema = arrow_schema(columns)?;
        let values = columns.iter().zip(schema.fields()).enumerate().map(|(place, ((name, kind), field))| {
            let is_key = key == Some(place) && is_key_type(field.data_type());
            Ok(Column { name: name.clone(), values: Values::new(kind, field.data_type(), is_key)? })
        });
        let columns = values.collect::<Result<_, String>>()?;
        Ok(Self {
            schema,
            columns,
            rest: Vec::new(),
            header_read: false,
            trailer_read: false,
            rows: 0,
            held: 0,
            distinct: None,
        })
    }

    /// Whether one column is the key that was asked for.
    pub fn is_keyed(&self) -> bool {
        self.columns.iter().any(|column| matches!(column.values, Values::Key { .. }))
    }

    /// Of rows that are there several times, one is kept: looked for at the end, and before whenever there are `rows` of them
    /// and half as many again as were left the last time. For a table with a key, of columns that are [`is_equal_by_bytes`].
    pub fn remove_repeats(&mut self, rows: usize) {
        self.distinct = Some(rows);
    }

    /// Rows that came.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes the next piece of the stream, cut anywhere.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), String> {
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

    /// Whether the stream has ended as it should; all rows are there then.
    pub fn check_end(&self) -> Result<(), String> {
        match self.trailer_read {
            true => Ok(()),
            false => Err(format!("the stream ends after {} rows without its trailer", self.rows)),
        }
    }

    /// The table of the rows that came. Takes half a second for some ten million of them, and as long again where repeats are
    /// looked for.
    pub fn table(mut self, name: &str) -> EngineResult<LookupTable> {
        let columns = self.take_columns()?;
        LookupTable::of_columns(name, self.schema, self.held, columns)
    }

    /// The columns of the rows held, in the order of the key if there is one, and without repeats if they are not wanted.
    fn take_columns(&mut self) -> EngineResult<Vec<column::Column>> {
        let loaded = self.columns.iter_mut().map(|column| column.values.take()).collect::<EngineResult<_>>()?;
        let columns = finish(loaded)?;
        if self.distinct.is_none() {
            return Ok(columns);
        }
        let (columns, rows) = once(columns, self.held)?;
        self.held = rows;
        Ok(columns)
    }

    /// Whether there are so many rows that [`CopyDecoder::compact`] is due.
    pub fn is_full(&self) -> bool {
        self.distinct.is_some_and(|rows| self.held >= rows)
    }

    /// Lets go of repeats, and goes on behind the rows that are left. Takes a tenth of a second for a million rows. After an
    /// error the decoder cannot go on.
    pub fn compact(&mut self) -> EngineResult<()> {
        let columns = self.take_columns()?;
        for (column, kept) in self.columns.iter_mut().zip(columns) {
            column.values.go_on(kept, self.held)?;
        }
        self.distinct = self.distinct.map(|rows| rows.max(self.held + self.held.div_ceil(2)));
        Ok(())
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
        self.held += 1;
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
    Text {
        texts: TextBuilder,
        is_uuid: bool,
    },
    /// By row: the number of its key.
    Key {
        keys: Keys,
        is_uuid: bool,
        numbers: Vec<u32>,
    },
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
    fn new(postgres: &Type, arrow: &DataType, is_key: bool) -> Result<Self, String> {
        let is_uuid = *postgres == Type::UUID;
        Ok(match arrow {
            _ if is_key => {
                let keys = Keys::new(arrow).map_err(|error| error.to_string())?;
                Values::Key { keys, is_uuid, numbers: Vec::new() }
            }
            DataType::Utf8View => Values::Text { texts: TextBuilder::new(), is_uuid },
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
            Values::Text { texts, is_uuid } => texts.push(text(value, *is_uuid)?),
            Values::Key { keys, is_uuid, numbers } => {
                let key = match keys.data_type() {
                    DataType::Int16 => number(value, i16::from_be_bytes)?.map(|number| Key::Number(number.into())),
                    DataType::Int32 => number(value, i32::from_be_bytes)?.map(|number| Key::Number(number.into())),
                    DataType::Int64 => number(value, i64::from_be_bytes)?.map(Key::Number),
                    _ => text(value, *is_uuid)?.map(Key::Text),
                };
                numbers.push(key.map_or(NO_KEY, |key| keys.number(key)));
            }
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

    /// The values so far; none are left.
    fn take(&mut self) -> EngineResult<Loaded> {
        Ok(Loaded::Array(match self {
            Values::Text { texts, .. } => return Ok(Loaded::Text(std::mem::replace(texts, TextBuilder::new()))),
            Values::Key { keys, numbers, .. } => {
                let none = Keys::new(keys.data_type())?;
                return Ok(Loaded::Key(std::mem::replace(keys, none), std::mem::take(numbers)));
            }
            Values::Int16(builder) => ArrayBuilder::finish(builder),
            Values::Int32(builder) => ArrayBuilder::finish(builder),
            Values::Int64(builder) => ArrayBuilder::finish(builder),
            Values::Float32(builder) => ArrayBuilder::finish(builder),
            Values::Float64(builder) => ArrayBuilder::finish(builder),
            Values::Bool(builder) => ArrayBuilder::finish(builder),
            Values::Date(builder) => ArrayBuilder::finish(builder),
            Values::Timestamp(builder) => ArrayBuilder::finish(builder),
        }))
    }

    /// Goes on behind the `rows` rows of `column`, which was made of these values; there must be none here.
    fn go_on(&mut self, column: column::Column, rows: usize) -> EngineResult<()> {
        match (self, column) {
            (Values::Text { texts, .. }, column::Column::Text(column)) => *texts = TextBuilder::of(column),
            (Values::Key { keys, numbers, .. }, column::Column::Key(index)) => {
                (*keys, *numbers) = KeyIndex::unshared(index)?.into_numbers(rows);
            }
            (values, column::Column::Array(array)) => match values {
                Values::Int16(builder) => builder.append_array(array.as_primitive()),
                Values::Int32(builder) => builder.append_array(array.as_primitive()),
                Values::Int64(builder) => builder.append_array(array.as_primitive()),
                Values::Float32(builder) => builder.append_array(array.as_primitive()),
                Values::Float64(builder) => builder.append_array(array.as_primitive()),
                Values::Bool(builder) => builder.append_array(array.as_boolean()),
                Values::Date(builder) => builder.append_array(array.as_primitive()),
                Values::Timestamp(builder) => builder.append_array(array.as_primitive()),
                Values::Text { .. } | Values::Key { .. } => return internal_err!("an array of texts"),
            },
            _ => return internal_err!("a column of another kind"),
        }
        Ok(())
    }
}

fn text(value: Option<&[u8]>, is_uuid: bool) -> Result<Option<Text<'_>>, String> {
    Ok(match value {
        None => None,
        Some(bytes) if is_uuid => Some(Text::Id(fixed(bytes)?)),
        Some(bytes) => match id::parse(bytes) {
            Some(id) => Some(Text::Id(id)),
            None => Some(Text::Other(std::str::from_utf8(bytes).map_err(|error| error.to_string())?)),
        },
    })
}

fn number<const N: usize, T>(value: Option<&[u8]>, from: fn([u8; N]) -> T) -> Result<Option<T>, String> {
    value.map(|bytes| fixed(bytes).map(from)).transpose()
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N], String> {
    bytes.try_into().map_err(|_| format!("{} bytes where {N} belong", bytes.len()))
}

#[cfg(test)]
mod tests;
