//! A slow second opinion on one message, written without a look at the decoder: RFC 8259's grammar by hand, and
//! serde_json's `Value` for the declared fields.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Schema};
use chrono::{DateTime, NaiveDate};
use serde_json::Value;

/// One value per declared column, times as microseconds and dates as days; `None` if the message is bad.
pub fn judge(schema: &Schema, message: &[u8], max_bytes: usize) -> Option<Vec<Value>> {
    if message.len() > max_bytes {
        return None;
    }
    let text = std::str::from_utf8(message).ok()?;
    let mut fields = HashMap::new();
    for (key, value) in (Grammar { text, at: 0 }).message()? {
        let key: String = serde_json::from_str(key).ok()?;
        if fields.insert(key, value).is_some() {
            return None;
        }
    }
    schema
        .fields()
        .iter()
        .map(|field| match fields.get(field.name()).copied().unwrap_or("null") {
            "null" => field.is_nullable().then_some(Value::Null),
            raw => fitting(field.data_type(), serde_json::from_str(raw).ok()?),
        })
        .collect()
}

fn fitting(data_type: &DataType, value: Value) -> Option<Value> {
    let between = |low: i64, high: i64| value.as_i64().filter(|found| (low..=high).contains(found)).map(Value::from);
    match data_type {
        DataType::Utf8View => value.is_string().then_some(value),
        DataType::Boolean => value.is_boolean().then_some(value),
        DataType::Int8 => between(-128, 127),
        DataType::Int16 => between(-32_768, 32_767),
        DataType::Int32 => between(-2_147_483_648, 2_147_483_647),
        DataType::Int64 => between(i64::MIN, i64::MAX),
        DataType::Float32 => {
            value.as_f64().filter(|found| (*found as f32).is_finite()).map(|found| (found as f32).into())
        }
        DataType::Float64 => value.as_f64().map(Value::from),
        DataType::Timestamp(..) => {
            DateTime::parse_from_rfc3339(value.as_str()?).ok().map(|time| time.timestamp_micros().into())
        }
        DataType::Date32 => {
            let text = value.as_str()?;
            let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
            (date.to_string() == text).then(|| (date - NaiveDate::default()).num_days().into())
        }
        other => unreachable!("{other}"),
    }
}

struct Grammar<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Grammar<'t> {
    /// The members of the one object that the text must be: keys and values as written.
    fn message(mut self) -> Option<Vec<(&'t str, &'t str)>> {
        let mut members = Vec::new();
        self.space();
        self.eat("{")?;
        self.space();
        if self.eat("}").is_none() {
            loop {
                self.space();
                let key = self.taken(Self::string)?;
                self.space();
                self.eat(":")?;
                self.space();
                members.push((key, self.taken(|grammar| grammar.value(1))?));
                self.space();
                if self.eat(",").is_none() {
                    self.eat("}")?;
                    break;
                }
            }
        }
        self.space();
        (self.at == self.text.len()).then_some(members)
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        match self.rest().as_bytes().first()? {
            b'"' => self.string(),
            b'[' | b'{' if depth == 128 => None,
            b'[' => self.items("[", "]", |grammar| grammar.value(depth + 1)),
            b'{' => self.items("{", "}", |grammar| {
                grammar.string()?;
                grammar.space();
                grammar.eat(":")?;
                grammar.space();
                grammar.value(depth + 1)
            }),
            b'-' | b'0'..=b'9' => self.number(),
            _ => ["true", "false", "null"].into_iter().find_map(|word| self.eat(word)),
        }
    }

    fn items(&mut self, open: &str, close: &str, item: impl Fn(&mut Self) -> Option<()>) -> Option<()> {
        self.eat(open)?;
        self.space();
        if self.eat(close).is_some() {
            return Some(());
        }
        loop {
            self.space();
            item(self)?;
            self.space();
            if self.eat(",").is_none() {
                return self.eat(close);
            }
        }
    }

    fn string(&mut self) -> Option<()> {
        self.eat("\"")?;
        loop {
            let character = self.rest().chars().next()?;
            self.at += character.len_utf8();
            match character {
                '"' => return Some(()),
                '\\' => {
                    let escape = self.rest().chars().next()?;
                    self.at += escape.len_utf8();
                    match escape {
                        '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => {}
                        'u' => {
                            let digits = self.rest().get(..4)?;
                            digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(())?;
                            self.at += 4;
                        }
                        _ => return None,
                    }
                }
                control if control < ' ' => return None,
                _ => {}
            }
        }
    }

    fn number(&mut self) -> Option<()> {
        _ = self.eat("-");
        if self.eat("0").is_none() {
            self.digits()?;
        }
        if self.eat(".").is_some() {
            self.digits()?;
        }
        if self.eat("e").or_else(|| self.eat("E")).is_some() {
            _ = self.eat("+").or_else(|| self.eat("-"));
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let count = self.rest().bytes().take_while(u8::is_ascii_digit).count();
        self.at += count;
        (count > 0).then_some(())
    }

    fn taken(&mut self, part: impl Fn(&mut Self) -> Option<()>) -> Option<&'t str> {
        let from = self.at;
        part(self)?;
        Some(&self.text[from..self.at])
    }

    fn space(&mut self) {
        self.at += self.rest().bytes().take_while(|byte| b" \t\r\n".contains(byte)).count();
    }

    fn eat(&mut self, expected: &str) -> Option<()> {
        self.rest().starts_with(expected).then(|| self.at += expected.len())
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }
}
