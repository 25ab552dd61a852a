//! What is said about a bad message: where, what was expected, what was found. Printable and short whatever came in.

use std::str::Utf8Error;

use super::schema::{Column, Kind};

/// Characters that are shown of a value, key or place in the message.
const SHOWN: usize = 64;

/// Path and reason of a reject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub path: String,
    pub reason: String,
}

/// The whole message is at fault.
pub fn whole(expected: &str, found: &str) -> Problem {
    Problem { path: "$".to_owned(), reason: format!("expected {expected}, found {found}") }
}

pub fn wrong(column: &Column, found: &str) -> Problem {
    Problem { path: path(&column.name), reason: format!("expected {}, found {found}", wanted(column)) }
}

pub fn missing(column: &Column) -> Problem {
    Problem { path: path(&column.name), reason: format!("expected {}, but the field is missing", wanted(column)) }
}

pub fn twice(key: &str) -> Problem {
    Problem { path: path(key), reason: "expected every field once, found this one again".to_owned() }
}

pub fn too_deep(limit: usize) -> Problem {
    whole(&format!("at most {limit} levels of nesting"), "more")
}

pub fn invalid_utf8(message: &[u8], error: Utf8Error) -> Problem {
    let at = error.valid_up_to();
    let byte = message.get(at).copied().unwrap_or_default();
    whole("UTF-8", &format!("the byte 0x{byte:02x} at byte {} of {}", at + 1, message.len()))
}

pub fn not_an_object(text: &str) -> Problem {
    let text = text.trim_ascii();
    let found = match text.as_bytes().first() {
        Some(b'[') => "an array".to_owned(),
        Some(b'"') => format!("the string {}", printable(text)),
        _ => printable(text),
    };
    whole("a JSON object", &found)
}

/// The parser's own complaint, its place given as a byte of the message, counted from 1.
pub fn not_json(text: &str, error: &serde_json::Error) -> Problem {
    let complaint = error.to_string();
    let complaint = complaint.rsplit_once(" at line ").map_or(complaint.as_str(), |(complaint, _)| complaint);
    let end = end_of(text, error);
    let from = text.floor_char_boundary(end.saturating_sub(SHOWN / 2));
    let to = text.ceil_char_boundary(end.saturating_add(SHOWN / 2).min(text.len()));
    let near = printable(&text[from..to]);
    let place = format!("at byte {} of {}, near {near}", end.max(1), text.len());
    whole("one JSON object", &format!("something else: {complaint} {place}"))
}

/// The number that the error's place lies in or behind, as it was written.
pub fn number_at(text: &str, error: &serde_json::Error) -> String {
    let (before, behind) = text.as_bytes().split_at(end_of(text, error));
    let is_number = |byte: &&u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
    let from = before.len() - before.iter().rev().take_while(is_number).count();
    let to = before.len() + behind.iter().take_while(is_number).count();
    match text.get(from..to) {
        Some(number) if !number.is_empty() => format!("the number {}", printable(number)),
        _ => "another number".to_owned(),
    }
}

/// A string value as found.
pub fn string(text: &str) -> String {
    format!("the string \"{}\"", printable(text))
}

/// `$.name`, or `$["a name"]` where it is not a plain one.
pub fn path(key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if !key.is_empty() && key.len() <= SHOWN && key.bytes().all(plain) {
        format!("$.{key}")
    } else {
        format!("$[\"{}\"]", printable(key))
    }
}

pub fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "a string",
        Kind::Int8 => "an integer from -128 to 127",
        Kind::Int16 => "an integer from -32768 to 32767",
        Kind::Int32 => "an integer from -2147483648 to 2147483647",
        Kind::Int64 => "an integer of 64 bits",
        Kind::Float32 => "a number (a float of 32 bits)",
        Kind::Float64 => "a number (a float of 64 bits)",
        Kind::Boolean => "true or false",
        Kind::Timestamp | Kind::TimestampTz => "a time such as \"2022-07-30T17:51:56Z\" (RFC 3339)",
        Kind::Date => "a date such as \"2022-07-30\"",
    }
}

fn wanted(column: &Column) -> String {
    format!("{}{}", expected(column.kind), if column.nullable { " or null" } else { "" })
}

/// How many bytes of the message the parser had read. It counts in lines and in bytes of a line, both from 1.
fn end_of(text: &str, error: &serde_json::Error) -> usize {
    let line = error.line().saturating_sub(1);
    let start: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    (start + error.column()).min(text.len())
}

/// At most [`SHOWN`] characters, with everything escaped that does not print.
fn printable(text: &str) -> String {
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        match character {
            _ if count == SHOWN => {
                shown.push('…');
                break;
            }
            '"' | '\'' | '\\' => shown.push(character),
            other => shown.extend(other.escape_debug()),
        }
    }
    shown
}
