//! Small types that settings are made of.

use std::fmt;
use std::str::FromStr;

/// Text that no log and no error shows: `Debug` and `Display` print `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one call that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a group without a ledger begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the oldest message that the topic still holds.
    Earliest,
    /// At the end: only what arrives from now on.
    Latest,
    /// At the offsets that the group has committed in Kafka, left by another program.
    Committed,
}

impl FromStr for Start {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "earliest" => Ok(Start::Earliest),
            "latest" => Ok(Start::Latest),
            "committed" => Ok(Start::Committed),
            _ => Err("unknown start"),
        }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Start::Earliest => "earliest",
            Start::Latest => "latest",
            Start::Committed => "committed",
        })
    }
}

/// A table of Postgres, both parts as the catalog has them: folded and without quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

impl TableName {
    /// The name for use in SQL, always quoted.
    pub fn sql(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }
}

/// For people: quoted only where a part isn't a plain lower-case word.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |text: &str| if is_plain_identifier(text) { text.to_string() } else { quote_identifier(text) };
        write!(f, "{}.{}", part(&self.schema), part(&self.name))
    }
}

/// Reads `schema.table` as Postgres reads it: outside of quotes letters are folded to lower case, within them `""` is
/// a quote. The schema must be named: what `search_path` would say differs from session to session.
impl FromStr for TableName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (schema, rest) = identifier(text)?;
        let rest = rest.strip_prefix('.').ok_or("expected schema.table")?;
        let (name, rest) = identifier(rest)?;
        if !rest.is_empty() {
            return Err("expected schema.table and nothing more".into());
        }
        Ok(TableName { schema, name })
    }
}

/// Postgres cuts longer names off, and then finds another table (NAMEDATALEN - 1).
const MAX_IDENTIFIER_BYTES: usize = 63;

/// The first identifier of `text`, and what follows it.
fn identifier(text: &str) -> Result<(String, &str), String> {
    let (name, rest) = match text.strip_prefix('"') {
        Some(quoted) => quoted_identifier(quoted)?,
        None => {
            let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(text.len());
            if text.starts_with(|c: char| c.is_ascii_digit() || c == '$') {
                return Err("an identifier that begins with a digit or `$` needs double quotes".into());
            }
            (text[..end].to_lowercase(), &text[end..])
        }
    };
    if name.is_empty() || name.contains('\0') {
        return Err("expected schema.table".into());
    }
    if name.len() > MAX_IDENTIFIER_BYTES {
        return Err(format!("an identifier is longer than Postgres's {MAX_IDENTIFIER_BYTES} bytes"));
    }
    Ok((name, rest))
}

fn quoted_identifier(text: &str) -> Result<(String, &str), String> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"').ok_or("a double quote that never closes")?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None => return Ok((name, rest)),
        }
    }
}

/// `name` as a quoted identifier of SQL.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Whether Postgres reads `text` as itself without quotes; reserved words are not looked at.
pub fn is_plain_identifier(text: &str) -> bool {
    text.len() <= MAX_IDENTIFIER_BYTES
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_read_as_postgres_reads_them() {
        for (text, sql, shown) in [
            ("public.t", r#""public"."t""#, "public.t"),
            ("Public.T", r#""public"."t""#, "public.t"),
            (r#""My Schema"."T""#, r#""My Schema"."T""#, r#""My Schema"."T""#),
            (r#"a."b.c""#, r#""a"."b.c""#, r#"a."b.c""#),
            (r#"a."say ""x""""#, r#""a"."say ""x""""#, r#"a."say ""x""""#),
        ] {
            let table: TableName = text.parse().unwrap();
            assert_eq!((table.sql().as_str(), table.to_string().as_str()), (sql, shown));
            assert_eq!(shown.parse(), Ok(table), "reads back");
        }
        for text in ["", "t", ".t", "a.", "a.b.c", "a b.c", r#""a.b"#, "1a.b", "a.b; drop table x", "a.\"\""] {
            assert!(text.parse::<TableName>().is_err(), "{text}");
        }
        assert!(format!("a.{}", "x".repeat(64)).parse::<TableName>().is_err());
    }

    #[test]
    fn secrets_do_not_show() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.reveal(), "hunter2");
    }
}
