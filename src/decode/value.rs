//! One declared field's value: checked against the column's type and appended to it.
//!
//! Nothing is converted on the way: a number in a string is a string, and 1.0 is not an integer.

use std::fmt;

use chrono::{DateTime, NaiveDate};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::columns::{ColumnBuilder, Strings};
use super::schema::{Column, Kind};
use super::words;

/// Reads one value into `builder`, the one of `column`, or leaves in `found` what it found instead (a number
/// excepted, which the caller finds in the message as it was written).
pub struct Value<'r> {
    pub column: &'r Column,
    pub builder: &'r mut ColumnBuilder,
    pub strings: &'r mut Strings,
    pub found: &'r mut Option<String>,
}

impl Value<'_> {
    fn wrong<E: Error>(self, found: String) -> Result<(), E> {
        *self.found = Some(found);
        Err(E::custom(""))
    }

    /// Times and dates; `None` if the text is none or the column holds something else.
    fn instant(&self, text: &str) -> Option<i64> {
        match self.column.kind {
            Kind::Timestamp | Kind::TimestampTz => microseconds(text),
            Kind::Date => days(text),
            _ => None,
        }
    }

    fn instant_or_wrong<E: Error>(self, text: &str) -> Result<(), E> {
        match self.instant(text) {
            Some(value) => {
                self.builder.push_integer(value);
                Ok(())
            }
            None => self.wrong(words::string(text)),
        }
    }
}

impl<'m> DeserializeSeed<'m> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'m>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'m> Visitor<'m> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(words::expected(self.column.kind))
    }

    #[inline]
    fn visit_borrowed_str<E: Error>(self, text: &'m str) -> Result<(), E> {
        if self.column.kind != Kind::Text {
            return self.instant_or_wrong(text);
        }
        let view = self.strings.borrowed(text);
        self.builder.push_view(view);
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        if self.column.kind != Kind::Text {
            return self.instant_or_wrong(text);
        }
        let view = self.strings.copied(text);
        self.builder.push_view(view);
        Ok(())
    }

    #[inline]
    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        let fits = match self.column.kind {
            Kind::Int64 => true,
            Kind::Int32 => i32::try_from(value).is_ok(),
            Kind::Int16 => i16::try_from(value).is_ok(),
            Kind::Int8 => i8::try_from(value).is_ok(),
            _ => return self.visit_f64(value as f64),
        };
        if !fits {
            return Err(E::custom(""));
        }
        self.builder.push_integer(value);
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => self.visit_f64(value as f64),
        }
    }

    /// Also -0 and integers of more than 64 bits: the parser has no other type for them.
    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        let fits = match self.column.kind {
            Kind::Float64 => value.is_finite(),
            Kind::Float32 => (value as f32).is_finite(),
            _ => false,
        };
        if !fits {
            return Err(E::custom(""));
        }
        self.builder.push_float(value);
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        if self.column.kind != Kind::Boolean {
            return self.wrong(value.to_string());
        }
        self.builder.push_boolean(value);
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        if !self.column.nullable {
            return self.wrong("null".to_owned());
        }
        self.builder.push_null();
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'m>>(self, _: A) -> Result<(), A::Error> {
        self.wrong("an array".to_owned())
    }

    fn visit_map<A: MapAccess<'m>>(self, _: A) -> Result<(), A::Error> {
        self.wrong("an object".to_owned())
    }
}

/// Microseconds since the epoch, UTC; digits behind the microsecond are cut off, as Arrow does it.
fn microseconds(text: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_micros())
}

/// Days since the epoch, from exactly `YYYY-MM-DD`.
fn days(text: &str) -> Option<i64> {
    let &[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text.as_bytes() else { return None };
    let number = |digits: &[u8]| {
        digits.iter().try_fold(0_u32, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u32::from(digit - b'0')))
    };
    let year = number(&[y1, y2, y3, y4])?;
    let date = NaiveDate::from_ymd_opt(year as i32, number(&[m1, m2])?, number(&[d1, d2])?)?;
    Some((date - NaiveDate::default()).num_days())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_exactly_ten_characters_and_exist() {
        for (text, expected) in [
            ("1970-01-01", Some(0)),
            ("1969-12-31", Some(-1)),
            ("2022-07-30", Some(19_203)),
            ("0000-01-01", Some(-719_528)),
            ("2023-02-29", None),
            ("2022-7-30", None),
            ("2022-07-30 ", None),
            ("+022-07-30", None),
            ("٢022-07-3", None),
        ] {
            assert_eq!(days(text), expected, "{text}");
        }
    }

    #[test]
    fn times_need_an_offset() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-01T01:00:00.0000019+01:00", Some(1)),
            ("1969-12-31T23:59:59.5Z", Some(-500_000)),
            ("1970-01-01T00:00:00", None),
            ("1970-01-01", None),
            ("0", None),
        ] {
            assert_eq!(microseconds(text), expected, "{text}");
        }
    }
}
