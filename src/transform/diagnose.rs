//! Turns the planner's errors into a file, a place in it, what is wrong there, and the nearest name.

use datafusion::common::{Column, DataFusionError, SchemaError};
use datafusion::sql::sqlparser::ast::{Expr, GroupByExpr, Query, SelectItem, SetExpr, Spanned, TableWithJoins, Value};
use datafusion::sql::sqlparser::tokenizer::{Location, Span};

use super::engine::Engine;
use super::files::SqlFile;
use super::parse::{at, conjuncts};
use crate::Error;

/// The file's error for what the planner said about `query`.
pub(super) async fn diagnose(file: &SqlFile, query: &Query, engine: &Engine, error: &DataFusionError) -> Error {
    let error = error.iter().next().unwrap_or(error);
    let span = match span_of(error) {
        Some(span) => Some(span),
        None => locate(query, engine, error).await,
    };
    let (problem, remedy) = explain(error, &engine.table_names());
    at(&file.path, span, &problem, &remedy)
}

fn span_of(error: &DataFusionError) -> Option<Span> {
    let span = error.diagnostic()?.span?;
    let place = |location: datafusion::common::Location| Location::new(location.line, location.column);
    Some(Span::new(place(span.start), place(span.end)))
}

/// The problem in words and what to do about it.
fn explain(error: &DataFusionError, tables: &[String]) -> (String, String) {
    let root = error.find_root();
    if let DataFusionError::SchemaError(schema_error, _) = root {
        return explain_schema(schema_error);
    }
    let message = root.message().into_owned();
    let message = message.split(DataFusionError::BACK_TRACE_SEP).next().unwrap_or_default().trim();
    if let Some(rest) = message.strip_prefix("Invalid function '")
        && let Some((name, nearest)) = rest.split_once("'.\nDid you mean '")
    {
        let remedy = format!("did you mean {}?", nearest.trim_end_matches("'?"));
        return (format!("there is no function {name}"), remedy);
    }
    if let Some(name) = message.strip_prefix("table '").and_then(|rest| rest.strip_suffix("' not found")) {
        let name = name.rsplit('.').next().unwrap_or(name);
        let nearest = nearest(name, tables.iter().map(String::as_str));
        let meant = nearest.map(|nearest| format!("did you mean {nearest}? ")).unwrap_or_default();
        let remedy = format!("{meant}there are: {} (a lookup table is a file in lookups/)", tables.join(", "));
        return (format!("there is no table {name}"), remedy);
    }
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    (message, "correct the SQL there".to_owned())
}

fn explain_schema(error: &SchemaError) -> (String, String) {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let names: Vec<String> = valid_fields.iter().map(Column::flat_name).collect();
            let wanted = field.flat_name();
            let meant = if field.relation.is_some() {
                nearest(&wanted, names.iter().map(String::as_str)).map(str::to_owned)
            } else {
                nearest(&wanted, valid_fields.iter().map(Column::name)).map(str::to_owned)
            };
            let remedy = match (meant, names.is_empty()) {
                (Some(meant), _) => format!("did you mean {meant}?"),
                (None, false) => format!("there are: {}", names.join(", ")),
                (None, true) => "name a table with this column in FROM".to_owned(),
            };
            (format!("there is no column {wanted}"), remedy)
        }
        SchemaError::AmbiguousReference { field } => (
            format!("the column {} is in more than one table", field.name()),
            format!("say which: table.{}", field.name()),
        ),
        other => (other.to_string(), "give each column one name".to_owned()),
    }
}

/// The name most like `wanted`, if one is like it at all.
fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|name| (strsim::normalized_damerau_levenshtein(&wanted.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(likeness, _)| *likeness >= 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// For errors without a place, such as type coercion's: the first part of the query that by itself fails the same way.
async fn locate(query: &Query, engine: &Engine, error: &DataFusionError) -> Option<Span> {
    let SetExpr::Select(select) = query.body.as_ref() else { return None };
    let wanted = error.find_root().message().into_owned();
    let one = SelectItem::UnnamedExpr(Expr::value(Value::Number("1".into(), false)));
    for (i, table) in select.from.iter().enumerate() {
        let from = select.from[..=i].to_vec();
        if fails(&with_parts(query, one.clone(), from, None), engine, &wanted).await {
            return Some(table.joins.first().map_or_else(|| table.span(), |join| join.span()));
        }
    }
    for part in select.selection.iter().flat_map(conjuncts) {
        let piece = with_parts(query, one.clone(), select.from.clone(), Some(part.clone()));
        if fails(&piece, engine, &wanted).await {
            return Some(part.span());
        }
    }
    for item in &select.projection {
        if fails(&with_parts(query, item.clone(), select.from.clone(), None), engine, &wanted).await {
            return Some(item.span());
        }
    }
    None
}

async fn fails(query: &Query, engine: &Engine, wanted: &str) -> bool {
    match engine.prepare(query, false).await {
        Ok(_) => false,
        Err(error) => error.iter().next().unwrap_or(&error).find_root().message() == wanted,
    }
}

/// `query` with nothing but one output column, some tables and perhaps a condition.
pub(super) fn with_parts(query: &Query, item: SelectItem, from: Vec<TableWithJoins>, condition: Option<Expr>) -> Query {
    let mut piece = query.clone();
    if let SetExpr::Select(select) = piece.body.as_mut() {
        select.projection = vec![item];
        select.from = from;
        select.selection = condition;
        select.distinct = None;
        select.group_by = GroupByExpr::Expressions(Vec::new(), Vec::new());
        select.having = None;
        select.qualify = None;
        select.sort_by = Vec::new();
    }
    piece.order_by = None;
    piece.limit_clause = None;
    piece.fetch = None;
    piece.pipe_operators = Vec::new();
    piece
}
