//! Which Arrow types a Postgres column takes, and the one type its values are carried in.
//!
//! Only exact mappings, and those that a check per value makes exact (integers by range); times lose what is below a
//! microsecond. Everything else is the user's decision: a CAST in the SELECT.

use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use tokio_postgres::types::{Kind, Type};

use crate::sink::table::Column;

/// The conformed type of one column and the check of its values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fit {
    pub data_type: DataType,
    pub check: Check,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    Nothing,
    /// No U+0000.
    Text,
    /// Text that reads as a uuid; JSON shows it as it was given.
    Uuid,
    Date,
    Timestamp,
}

/// Days since 1970-01-01 of 0001-01-01 and 9999-12-31.
pub(super) const DAYS: RangeInclusive<i32> = -719_162..=2_932_896;
/// The same years in microseconds: days x 86,400,000,000, the last day included.
pub(super) const MICROS: RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

/// How `column` takes values of type `given`; the error is the remedy.
pub(super) fn fit(given: &DataType, column: &Column) -> Result<Fit, String> {
    use DataType as D;
    let value = match given {
        D::Dictionary(_, value) => value.as_ref(),
        other => other,
    };
    let wire = &column.wire_type;
    let (data_type, check, cast) = match *wire {
        Type::BOOL => (D::Boolean, Check::Nothing, "BOOLEAN"),
        Type::INT2 => (D::Int16, Check::Nothing, "SMALLINT"),
        Type::INT4 => (D::Int32, Check::Nothing, "INT"),
        Type::INT8 => (D::Int64, Check::Nothing, "BIGINT"),
        Type::FLOAT4 => (D::Float32, Check::Nothing, "REAL"),
        Type::FLOAT8 => (D::Float64, Check::Nothing, "DOUBLE"),
        Type::NUMERIC => return numeric(value, column.modifier),
        Type::DATE => (D::Date32, Check::Date, "DATE"),
        Type::TIME => (D::Time64(TimeUnit::Microsecond), Check::Nothing, "TIME"),
        Type::TIMESTAMP => (D::Timestamp(TimeUnit::Microsecond, None), Check::Timestamp, "TIMESTAMP"),
        Type::TIMESTAMPTZ => {
            (D::Timestamp(TimeUnit::Microsecond, Some(Arc::from("+00:00"))), Check::Timestamp, "TIMESTAMP")
        }
        Type::BYTEA => (D::Binary, Check::Nothing, "BYTEA"),
        Type::UUID => (D::Utf8View, Check::Uuid, "VARCHAR"),
        _ if is_text(wire) => (D::Utf8View, Check::Text, "VARCHAR"),
        _ => {
            return Err(format!(
                "columns of type {} cannot be written: leave the column out of the SELECT if it may be null or has a \
                 default, or change its type in the table",
                column.sql_type
            ));
        }
    };
    if takes(&data_type, value) {
        return Ok(Fit { data_type, check });
    }
    let name = &column.name;
    Err(match value {
        D::Timestamp(_, Some(_)) if matches!(data_type, D::Timestamp(..)) => format!(
            "the table's type has no zone: write the wall-clock time meant, e.g. to_local_time(...) AS {name}, \
             or make the column timestamptz"
        ),
        _ => format!("write CAST(... AS {cast}) AS {name} in the SELECT"),
    })
}

/// Types whose binary form is their text. JSON and enums among them: Postgres itself judges those values.
fn is_text(wire: &Type) -> bool {
    matches!(*wire, Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::JSON | Type::JSONB)
        || matches!(wire.kind(), Kind::Enum(_))
        || wire.name() == "citext"
}

/// Whether every value of `given` is a value of `target`, or can be checked to be one.
fn takes(target: &DataType, given: &DataType) -> bool {
    use DataType as D;
    match (target, given) {
        (_, D::Null) => true,
        (D::Int16 | D::Int32 | D::Int64, given) => given.is_integer(),
        (D::Float32, D::Float16 | D::Float32 | D::Int8 | D::Int16 | D::UInt8 | D::UInt16) => true,
        (D::Float64, D::Float16 | D::Float32 | D::Float64) => true,
        (D::Float64, D::Int8 | D::Int16 | D::Int32 | D::UInt8 | D::UInt16 | D::UInt32) => true,
        (D::Utf8View, D::Utf8 | D::LargeUtf8 | D::Utf8View) => true,
        (D::Binary, D::Binary | D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_)) => true,
        (D::Time64(_), D::Time32(_) | D::Time64(_)) => true,
        (D::Timestamp(_, Some(_)), D::Timestamp(_, _)) => true,
        (D::Timestamp(_, None), D::Timestamp(_, zone)) => zone.as_deref().is_none_or(is_utc),
        (target, given) => target == given,
    }
}

fn is_utc(zone: &str) -> bool {
    matches!(zone, "UTC" | "+00:00" | "+00" | "Z" | "Etc/UTC" | "GMT")
}

/// `numeric(p, s)` takes decimals of no larger scale and integers, checked for range; a bare `numeric` takes them as
/// they are. pgpq writes up to 128 bits.
fn numeric(given: &DataType, modifier: i32) -> Result<Fit, String> {
    use DataType as D;
    let (precision, scale) = match given {
        D::Decimal32(precision, scale) | D::Decimal64(precision, scale) | D::Decimal128(precision, scale) => {
            (*precision, *scale)
        }
        // 20 digits hold any 64-bit integer.
        given if given.is_integer() => (20, 0),
        D::Null => (38, 0),
        _ => {
            return Err(
                "write CAST(... AS DECIMAL(38, s)) in the SELECT, with as many decimal places s as you need".into()
            );
        }
    };
    let declared = numeric_modifier(modifier);
    if let Some((p, s)) = declared.filter(|(_, s)| i32::from(scale) > *s) {
        return Err(format!(
            "Postgres would round: write CAST(... AS DECIMAL({}, {})) in the SELECT",
            p.min(38),
            s.max(0)
        ));
    }
    let data_type = match declared {
        Some((p @ 1..=38, s)) if (0..=p).contains(&s) => D::Decimal128(p as u8, s as i8),
        _ => D::Decimal128(precision, scale),
    };
    Ok(Fit { data_type, check: Check::Nothing })
}

/// Precision and scale out of `atttypmod`: 16 bits each above a header of 4; the scale has 11 bits, signed.
fn numeric_modifier(modifier: i32) -> Option<(i32, i32)> {
    let packed = modifier.checked_sub(4).filter(|packed| *packed >= 0)?;
    Some((packed >> 16 & 0xffff, ((packed & 0x7ff) ^ 1024) - 1024))
}

/// An Arrow type as the SELECT's author would write it.
pub(super) fn engine_name(given: &DataType) -> String {
    use DataType as D;
    let name = match given {
        D::Null => "NULL",
        D::Boolean => "BOOLEAN",
        D::Int8 => "TINYINT",
        D::Int16 => "SMALLINT",
        D::Int32 => "INT",
        D::Int64 => "BIGINT",
        D::UInt64 => "BIGINT UNSIGNED",
        D::Float32 => "REAL",
        D::Float64 => "DOUBLE",
        D::Utf8 | D::LargeUtf8 | D::Utf8View => "VARCHAR",
        D::Binary | D::LargeBinary | D::BinaryView => "BYTEA",
        D::Date32 => "DATE",
        D::Timestamp(_, None) => "TIMESTAMP",
        D::Timestamp(_, Some(zone)) => return format!("TIMESTAMP WITH TIME ZONE ({zone})"),
        D::Decimal128(precision, scale) | D::Decimal256(precision, scale) => {
            return format!("DECIMAL({precision}, {scale})");
        }
        D::Dictionary(_, value) => return engine_name(value),
        other => return other.to_string(),
    };
    name.into()
}
