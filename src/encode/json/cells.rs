//! One column's values, and how each kind of them looks in JSON.

use std::io::Write;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array,
    Int16Array, Int32Array, Int64Array, StringViewArray, Time64MicrosecondArray, TimestampMicrosecondArray,
    UInt64Array,
};
use arrow::datatypes::{DataType, TimeUnit};
use arrow::error::ArrowError;
use chrono::{DateTime, Datelike, NaiveTime, TimeDelta, Timelike};

use crate::json;

/// A column, typed. Other types are cast to one of these without loss first ([`carrier`]).
pub(super) enum Cells {
    Null,
    Bool(BooleanArray),
    Int16(Int16Array),
    Int32(Int32Array),
    Int64(Int64Array),
    UInt64(UInt64Array),
    Float32(Float32Array),
    Float64(Float64Array),
    Text(StringViewArray),
    Bytes(BinaryArray),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    Timestamp(TimestampMicrosecondArray),
    Decimal(Decimal128Array),
}

/// The type that values of `given` are written from; `None` where they have no JSON form here. What is below a
/// microsecond is left out.
pub(super) fn carrier(given: &DataType) -> Option<DataType> {
    use DataType as D;
    Some(match given {
        D::Null | D::Boolean | D::Int16 | D::Int32 | D::Int64 | D::UInt64 | D::Float32 | D::Float64 => given.clone(),
        D::Utf8View | D::Binary | D::Date32 | D::Decimal128(_, _) => given.clone(),
        D::Int8 | D::UInt8 => D::Int16,
        D::UInt16 => D::Int32,
        D::UInt32 => D::Int64,
        D::Float16 => D::Float32,
        D::Utf8 | D::LargeUtf8 => D::Utf8View,
        D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_) => D::Binary,
        D::Time32(_) | D::Time64(_) => D::Time64(TimeUnit::Microsecond),
        D::Timestamp(_, zone) => D::Timestamp(TimeUnit::Microsecond, zone.clone()),
        D::Decimal32(precision, scale) | D::Decimal64(precision, scale) => D::Decimal128(*precision, *scale),
        D::Dictionary(_, value) => return carrier(value),
        _ => return None,
    })
}

impl Cells {
    /// `None` where the type is no carrier.
    pub(super) fn new(array: &ArrayRef) -> Option<Cells> {
        use DataType as D;
        Some(match array.data_type() {
            D::Null => Cells::Null,
            D::Boolean => Cells::Bool(array.as_boolean().clone()),
            D::Int16 => Cells::Int16(array.as_primitive().clone()),
            D::Int32 => Cells::Int32(array.as_primitive().clone()),
            D::Int64 => Cells::Int64(array.as_primitive().clone()),
            D::UInt64 => Cells::UInt64(array.as_primitive().clone()),
            D::Float32 => Cells::Float32(array.as_primitive().clone()),
            D::Float64 => Cells::Float64(array.as_primitive().clone()),
            D::Utf8View => Cells::Text(array.as_string_view().clone()),
            D::Binary => Cells::Bytes(array.as_binary().clone()),
            D::Date32 => Cells::Date(array.as_primitive().clone()),
            D::Time64(TimeUnit::Microsecond) => Cells::Time(array.as_primitive().clone()),
            D::Timestamp(TimeUnit::Microsecond, _) => Cells::Timestamp(array.as_primitive().clone()),
            D::Decimal128(_, _) => Cells::Decimal(array.as_primitive().clone()),
            _ => return None,
        })
    }

    /// The column, if it is one of texts.
    pub(super) fn texts(&self) -> Option<&StringViewArray> {
        match self {
            Cells::Text(array) => Some(array),
            _ => None,
        }
    }

    pub(super) fn is_null(&self, row: usize) -> bool {
        match self {
            Cells::Null => true,
            Cells::Bool(array) => array.is_null(row),
            Cells::Int16(array) => array.is_null(row),
            Cells::Int32(array) => array.is_null(row),
            Cells::Int64(array) => array.is_null(row),
            Cells::UInt64(array) => array.is_null(row),
            Cells::Float32(array) => array.is_null(row),
            Cells::Float64(array) => array.is_null(row),
            Cells::Text(array) => array.is_null(row),
            Cells::Bytes(array) => array.is_null(row),
            Cells::Date(array) => array.is_null(row),
            Cells::Time(array) => array.is_null(row),
            Cells::Timestamp(array) => array.is_null(row),
            Cells::Decimal(array) => array.is_null(row),
        }
    }

    /// Appends the value of `row`, which must not be null.
    pub(super) fn write(&self, row: usize, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        match self {
            Cells::Null => out.extend_from_slice(b"null"),
            Cells::Bool(array) => out.extend_from_slice(if array.value(row) { b"true" } else { b"false" }),
            Cells::Int16(array) => number(&array.value(row), out)?,
            Cells::Int32(array) => number(&array.value(row), out)?,
            Cells::Int64(array) => number(&array.value(row), out)?,
            Cells::UInt64(array) => number(&array.value(row), out)?,
            Cells::Float32(array) => match array.value(row) {
                value if value.is_finite() => number(&value, out)?,
                value => not_finite(value.into(), out),
            },
            Cells::Float64(array) => match array.value(row) {
                value if value.is_finite() => number(&value, out)?,
                value => not_finite(value, out),
            },
            Cells::Text(array) => quoted(array.value(row), out),
            Cells::Bytes(array) => base64(array.value(row), out),
            Cells::Date(array) => date(array.value(row), out)?,
            Cells::Time(array) => time(array.value(row), out)?,
            Cells::Timestamp(array) => timestamp(array.value(row), out)?,
            Cells::Decimal(array) => out.extend_from_slice(array.value_as_string(row).as_bytes()),
        }
        Ok(())
    }
}

fn number(value: &impl serde::Serialize, out: &mut Vec<u8>) -> Result<(), ArrowError> {
    serde_json::to_writer(out, value).map_err(|error| ArrowError::JsonError(error.to_string()))
}

fn not_finite(value: f64, out: &mut Vec<u8>) {
    out.extend_from_slice(match value {
        value if value.is_nan() => b"\"NaN\"",
        value if value > 0.0 => b"\"Infinity\"",
        _ => b"\"-Infinity\"",
    });
}

/// `text` in quotes, with the escapes that JSON demands and no others.
pub(super) fn quoted(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let (ordinary, special) = rest.split_at(json::ordinary(rest));
        out.extend_from_slice(ordinary);
        let Some((&byte, behind)) = special.split_first() else { break };
        escape(byte, out);
        rest = behind;
    }
    out.push(b'"');
}

fn escape(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let letter = match byte {
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0c => b'f',
        b'\r' => b'r',
        b'"' | b'\\' => byte,
        _ => {
            return out.extend_from_slice(&[
                b'\\',
                b'u',
                b'0',
                b'0',
                HEX[usize::from(byte >> 4)],
                HEX[usize::from(byte & 15)],
            ]);
        }
    };
    out.extend_from_slice(&[b'\\', letter]);
}

/// In quotes, with padding (RFC 4648, section 4).
fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    out.push(b'"');
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let padding = digit > group.len();
            out.push(if padding { b'=' } else { DIGITS[(bits >> (18 - 6 * digit) & 63) as usize] });
        }
    }
    out.push(b'"');
}

fn no_such_time(value: i64, unit: &str) -> ArrowError {
    ArrowError::InvalidArgumentError(format!("{value} {unit} is no time of a calendar"))
}

fn written(result: std::io::Result<()>) -> Result<(), ArrowError> {
    result.map_err(|error| ArrowError::IoError(error.to_string(), error))
}

fn date(days: i32, out: &mut Vec<u8>) -> Result<(), ArrowError> {
    let days = i64::from(days);
    let date = TimeDelta::try_days(days).and_then(|delta| DateTime::UNIX_EPOCH.checked_add_signed(delta));
    let date = date.ok_or_else(|| no_such_time(days, "days since 1970"))?;
    written(write!(out, "\"{:04}-{:02}-{:02}\"", date.year(), date.month(), date.day()))
}

fn time(micros: i64, out: &mut Vec<u8>) -> Result<(), ArrowError> {
    let parts = || {
        let seconds = u32::try_from(micros.div_euclid(1_000_000)).ok()?;
        NaiveTime::from_num_seconds_from_midnight_opt(seconds, micros.rem_euclid(1_000_000) as u32 * 1000)
    };
    let time = parts().ok_or_else(|| no_such_time(micros, "microseconds since midnight"))?;
    written(write!(out, "\"{:02}:{:02}:{:02}", time.hour(), time.minute(), time.second()))?;
    fraction(micros.rem_euclid(1_000_000), out)?;
    out.push(b'"');
    Ok(())
}

/// The instant in UTC, whatever zone the type is labelled with.
fn timestamp(micros: i64, out: &mut Vec<u8>) -> Result<(), ArrowError> {
    let at = DateTime::from_timestamp_micros(micros).ok_or_else(|| no_such_time(micros, "microseconds since 1970"))?;
    let (year, month, day) = (at.year(), at.month(), at.day());
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    written(write!(out, "\"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"))?;
    fraction(micros.rem_euclid(1_000_000), out)?;
    out.extend_from_slice(b"Z\"");
    Ok(())
}

/// Three digits, or six where three would lose something.
fn fraction(micros: i64, out: &mut Vec<u8>) -> Result<(), ArrowError> {
    written(if micros % 1000 == 0 { write!(out, ".{:03}", micros / 1000) } else { write!(out, ".{micros:06}") })
}
