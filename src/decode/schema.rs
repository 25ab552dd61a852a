//! The schema declared in `campaigns.sql`: which fields a campaign must have and what they are in Arrow.
//!
//! Accepts exactly one `CREATE TABLE campaigns (...)` of names, types and NULL / NOT NULL. Everything that decoding
//! would not check (lengths, defaults, keys, CHECK) is refused, so that the file never says more than the job keeps.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::sql::sqlparser::ast::{
    ColumnDef, ColumnOption, CreateTable, DataType as SqlType, ExactNumberInfo, Ident, ObjectName, ObjectNamePart,
    Spanned, Statement, TimezoneInfo, helpers::stmt_create_table::CreateTableBuilder,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

use crate::{Error, Result};

/// The hidden column that decoding appends as the last one: UInt32, not null, the message's row number in its
/// micro-batch.
pub const ROW: &str = "__row";

/// The name that the table in `campaigns.sql` must have.
pub const TABLE: &str = "campaigns";

const SHAPE: &str = "write one CREATE TABLE campaigns (name TYPE [NOT NULL], ...) and nothing else";
const TYPES: &str = "use VARCHAR, TEXT, CHAR or STRING, TINYINT, SMALLINT, INT, BIGINT, REAL, FLOAT or DOUBLE, BOOLEAN, \
                     TIMESTAMP [WITH TIME ZONE] or DATE, without a length or precision";
const TYPE_NAMES: [&str; 16] = [
    "VARCHAR",
    "TEXT",
    "CHAR",
    "STRING",
    "TINYINT",
    "SMALLINT",
    "INT",
    "INTEGER",
    "BIGINT",
    "REAL",
    "FLOAT",
    "DOUBLE",
    "BOOLEAN",
    "TIMESTAMP",
    "TIMESTAMPTZ",
    "DATE",
];

/// The columns of `campaigns.sql`, at least one, in the order of the file.
#[derive(Debug, Clone)]
pub struct CampaignSchema {
    columns: Vec<Column>,
    declared: SchemaRef,
    full: SchemaRef,
}

/// One declared column; its name is the JSON key, matched case-sensitively.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub name: String,
    /// The name as it is written in JSON, quotes included.
    pub key: String,
    pub kind: Kind,
    pub nullable: bool,
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int8,
    Int16,
    Int32,
    Int64,
    Float32,
    Float64,
    Boolean,
    Timestamp,
    TimestampTz,
    Date,
}

impl CampaignSchema {
    /// Reads the text of `file`; the path is only for error messages.
    ///
    /// Unquoted names fold to lower case, quoted ones keep theirs.
    ///
    /// # Errors
    /// [`Error::Sql`] with line and column for anything but one `CREATE TABLE campaigns` of known types.
    pub fn parse(file: &Path, sql: &str) -> Result<CampaignSchema> {
        let tokens = Tokenizer::new(&GenericDialect {}, sql)
            .tokenize_with_location()
            .map_err(|error| refuse(file, error.location, format!("not SQL: {}", error.message), SHAPE))?;
        let statements = Parser::new(&GenericDialect {})
            .with_tokens_with_locations(tokens.clone())
            .parse_statements()
            .map_err(|error| syntax(file, &error))?;
        let table = only_table(file, statements)?;
        let columns = columns(file, &tokens, &table)?;

        let mut fields: Vec<Field> =
            columns.iter().map(|column| Field::new(&column.name, column.kind.data_type(), column.nullable)).collect();
        let declared = Arc::new(Schema::new(fields.clone()));
        fields.push(Field::new(ROW, DataType::UInt32, false));
        Ok(CampaignSchema { columns, declared, full: Arc::new(Schema::new(fields)) })
    }

    /// The declared columns, without [`ROW`].
    pub fn schema(&self) -> SchemaRef {
        self.declared.clone()
    }

    /// The declared columns and [`ROW`] as the last one: the schema of decoded batches.
    pub fn full_schema(&self) -> SchemaRef {
        self.full.clone()
    }

    pub(super) fn columns(&self) -> &[Column] {
        &self.columns
    }
}

impl Kind {
    pub fn data_type(self) -> DataType {
        match self {
            Kind::Text => DataType::Utf8View,
            Kind::Int8 => DataType::Int8,
            Kind::Int16 => DataType::Int16,
            Kind::Int32 => DataType::Int32,
            Kind::Int64 => DataType::Int64,
            Kind::Float32 => DataType::Float32,
            Kind::Float64 => DataType::Float64,
            Kind::Boolean => DataType::Boolean,
            Kind::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Kind::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
            Kind::Date => DataType::Date32,
        }
    }

    fn of(data_type: &SqlType) -> Option<Kind> {
        use SqlType::*;
        Some(match data_type {
            Varchar(None) | CharacterVarying(None) | CharVarying(None) | Char(None) | Character(None) => Kind::Text,
            Nvarchar(None) | Text | String(None) => Kind::Text,
            TinyInt(None) => Kind::Int8,
            SmallInt(None) | Int2(None) => Kind::Int16,
            Int(None) | Integer(None) | Int4(None) => Kind::Int32,
            // Int8 counts bytes, as in Postgres and DataFusion.
            BigInt(None) | Int8(None) => Kind::Int64,
            // FLOAT is four bytes wide in DataFusion, so in triggers.sql too.
            Real | Float4 | Float(ExactNumberInfo::None) => Kind::Float32,
            Double(ExactNumberInfo::None) | DoublePrecision | Float8 => Kind::Float64,
            Boolean | Bool => Kind::Boolean,
            Timestamp(None | Some(6), TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => Kind::Timestamp,
            Timestamp(None | Some(6), TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => Kind::TimestampTz,
            Date => Kind::Date,
            _ => return None,
        })
    }
}

fn only_table(file: &Path, statements: Vec<Statement>) -> Result<CreateTable> {
    if let Some(second) = statements.get(1) {
        return Err(refuse(file, second.span().start, "a second statement".to_owned(), SHAPE));
    }
    let table = match statements.into_iter().next() {
        Some(Statement::CreateTable(table)) => table,
        Some(other) => return Err(refuse(file, first(other.span().start), "not a CREATE TABLE".to_owned(), SHAPE)),
        None => return Err(refuse(file, Location::new(1, 1), "no statement in it".to_owned(), SHAPE)),
    };
    let at = table.name.span().start;
    if !is_campaigns(&table.name) {
        let problem = format!("the table is named {}, expected {TABLE}", table.name);
        return Err(refuse(file, at, problem, SHAPE));
    }
    if let Some(constraint) = table.constraints.first() {
        let problem = format!("`{constraint}` cannot be checked message by message");
        return Err(refuse(file, or(constraint.span().start, at), problem, "remove the constraint"));
    }
    let plain = CreateTableBuilder::new(table.name.clone()).columns(table.columns.clone()).build();
    if plain != table {
        return Err(refuse(file, at, "more than names and types in CREATE TABLE".to_owned(), SHAPE));
    }
    if table.columns.is_empty() {
        return Err(refuse(file, at, "no columns".to_owned(), SHAPE));
    }
    Ok(table)
}

fn columns(file: &Path, tokens: &[TokenWithSpan], table: &CreateTable) -> Result<Vec<Column>> {
    let mut names = HashSet::new();
    let mut columns = Vec::with_capacity(table.columns.len());
    for definition in &table.columns {
        let at = definition.name.span.start;
        let name = folded(&definition.name);
        if name.starts_with("__") {
            let problem = format!("column {name}: names that start with __ belong to the job");
            return Err(refuse(file, at, problem, "give the column another name"));
        }
        if !names.insert(name.clone()) {
            let remedy = "remove one; unquoted names fold to lower case";
            return Err(refuse(file, at, format!("column {name} stands twice"), remedy));
        }
        let kind = Kind::of(&definition.data_type).ok_or_else(|| unknown_type(file, tokens, definition))?;
        let nullable = nullable(file, tokens, definition)?;
        let key = serde_json::Value::from(name.as_str()).to_string();
        columns.push(Column { name, key, kind, nullable });
    }
    Ok(columns)
}

fn nullable(file: &Path, tokens: &[TokenWithSpan], definition: &ColumnDef) -> Result<bool> {
    let mut declared = None;
    for option in &definition.options {
        let nullable = match option.option {
            ColumnOption::Null => true,
            ColumnOption::NotNull => false,
            _ => {
                let problem = format!("column {}: `{option}` is not checked here", definition.name);
                let at = word_after(tokens, definition, &option.to_string());
                return Err(refuse(file, at, problem, "only NULL and NOT NULL are accepted after the type"));
            }
        };
        if declared.replace(nullable).is_some_and(|before| before != nullable) {
            let problem = format!("column {}: both NULL and NOT NULL", definition.name);
            return Err(refuse(file, definition.name.span.start, problem, "keep one of them"));
        }
    }
    Ok(declared.unwrap_or(true))
}

fn unknown_type(file: &Path, tokens: &[TokenWithSpan], definition: &ColumnDef) -> Error {
    let text = definition.data_type.to_string();
    let at = tokens_after(tokens, definition).next().map_or(definition.name.span.start, |token| token.span.start);
    let bare = text.split('(').next().unwrap_or_default().trim().to_uppercase();
    let nearest = TYPE_NAMES
        .iter()
        .map(|name| (strsim::jaro_winkler(&bare, name), *name))
        .filter(|(likeness, name)| *likeness > 0.75 && bare != **name)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = nearest.map(|(_, name)| format!("; did you mean {name}?")).unwrap_or_default();
    let problem = format!("column {}: type {text} is not accepted{hint}", definition.name);
    refuse(file, at, problem, TYPES)
}

/// The tokens that follow the column's name, without white space and comments.
fn tokens_after<'t>(tokens: &'t [TokenWithSpan], definition: &ColumnDef) -> impl Iterator<Item = &'t TokenWithSpan> {
    let end = definition.name.span.end;
    tokens.iter().filter(move |token| token.span.start >= end && !matches!(token.token, Token::Whitespace(_)))
}

/// Where the first word of `text` stands behind the column's name; the syntax tree has no place for most options.
fn word_after(tokens: &[TokenWithSpan], definition: &ColumnDef, text: &str) -> Location {
    let word = text.split_whitespace().next().unwrap_or_default();
    tokens_after(tokens, definition)
        .find(|token| matches!(&token.token, Token::Word(found) if found.value.eq_ignore_ascii_case(word)))
        .map_or(definition.name.span.start, |token| token.span.start)
}

fn is_campaigns(name: &ObjectName) -> bool {
    matches!(name.0.as_slice(), [ObjectNamePart::Identifier(ident)] if folded(ident) == TABLE)
}

fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// The parser's own errors carry their place only as text at the end.
fn syntax(file: &Path, error: &ParserError) -> Error {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text.as_str(),
        ParserError::RecursionLimitExceeded => "nested too deep",
    };
    let (problem, place) = text.rsplit_once(" at Line: ").unwrap_or((text, ""));
    let at = place
        .split_once(", Column: ")
        .and_then(|(line, column)| Some(Location::new(line.trim().parse().ok()?, column.trim().parse().ok()?)));
    refuse(file, at.unwrap_or(Location::empty()), format!("not SQL: {problem}"), SHAPE)
}

fn first(at: Location) -> Location {
    or(at, Location::new(1, 1))
}

fn or(at: Location, otherwise: Location) -> Location {
    if at.line == 0 { otherwise } else { at }
}

fn refuse(file: &Path, at: Location, problem: String, remedy: &str) -> Error {
    let known = at.line > 0;
    Error::Sql {
        file: file.to_owned(),
        line: known.then_some(at.line),
        column: known.then_some(at.column),
        problem,
        remedy: remedy.to_owned(),
    }
}

#[cfg(test)]
mod tests;
