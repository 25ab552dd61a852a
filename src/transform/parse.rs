//! Reads a file that must hold exactly one query, and knows where in it things stand.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use datafusion::common::DataFusionError;
use datafusion::sql::parser::{DFParserBuilder, Statement as EngineStatement};
use datafusion::sql::sqlparser::ast::{
    Expr, Ident, ObjectName, ObjectNamePart, Query, SelectItem, SetExpr, Spanned, Statement, Visit, Visitor,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer, Whitespace};

use super::files::SqlFile;
use crate::{Error, Result};

const REMEDY: &str = "write one SELECT (WITH ... SELECT will do); its rows are what both sinks get";

/// The one query of `file`.
pub(super) fn one_query(file: &SqlFile) -> Result<Query> {
    let tokens = tokens(file)?;
    let Some(first) = tokens.iter().find(|token| !is_space(token)) else {
        return Err(at(&file.path, None, "the file is empty", REMEDY));
    };
    let mut after = tokens.iter().filter(|token| !is_space(token)).skip_while(|token| token.token != Token::SemiColon);
    if let Some(second) = after.find(|token| token.token != Token::SemiColon) {
        return Err(at(&file.path, Some(second.span), "a second statement begins here", REMEDY));
    }

    let parsed = DFParserBuilder::new(file.text.as_str())
        .with_dialect(&GenericDialect {})
        .build()
        .and_then(|mut parser| parser.parse_statements())
        .map_err(|error| syntax(&file.path, &error))?
        .pop_front();
    let not_a_query = || at(&file.path, Some(first.span), "this is not a query", REMEDY);
    let Some(EngineStatement::Statement(statement)) = parsed else { return Err(not_a_query()) };
    let Statement::Query(query) = *statement else { return Err(not_a_query()) };
    match query.body.as_ref() {
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => Err(not_a_query()),
        SetExpr::Select(select) if select.into.is_some() => {
            Err(at(&file.path, Some(first.span), "SELECT INTO makes a table", "leave INTO out: the sinks are settings"))
        }
        _ => Ok(*query),
    }
}

/// The tables that the query of `file` reads, as far as names tell.
///
/// Errors: as [`super::Transform::compile`]'s for what is not one query.
pub fn table_names(file: &SqlFile) -> Result<TableNames> {
    let mut names = TableNames::default();
    let _ = one_query(file)?.visit(&mut names);
    Ok(names)
}

/// Names folded as SQL folds them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TableNames {
    /// All that stand in a FROM.
    pub read: BTreeSet<String>,
    /// Those that a WITH defines.
    pub defined: BTreeSet<String>,
}

impl Visitor for TableNames {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let tables = query.with.iter().flat_map(|with| &with.cte_tables);
        self.defined.extend(tables.map(|table| folded(&table.alias.name)));
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<()> {
        self.read.extend(name.0.last().and_then(ObjectNamePart::as_ident).map(folded));
        ControlFlow::Continue(())
    }
}

fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// Every output column needs a name of its own: sinks go by names.
pub(super) fn check_names(file: &Path, query: &Query) -> Result<()> {
    let SetExpr::Select(select) = query.body.as_ref() else { return Ok(()) };
    for item in &select.projection {
        if let SelectItem::UnnamedExpr(expr) = item
            && !matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_))
        {
            let problem = format!("the output column {expr} has no name");
            return Err(at(file, Some(expr.span()), &problem, "name it: ... AS name_of_the_column"));
        }
    }
    Ok(())
}

/// Where an output column is written: its name, else the first `*`.
pub(super) fn output_span(query: &Query, name: &str) -> Option<Span> {
    let SetExpr::Select(select) = query.body.as_ref() else { return None };
    let named = select.projection.iter().rev().find_map(|item| match item {
        SelectItem::ExprWithAlias { alias, .. } if alias.value == name => Some(alias.span),
        SelectItem::UnnamedExpr(Expr::Identifier(ident)) if ident.value == name => Some(ident.span),
        SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => {
            parts.last().filter(|ident| ident.value == name).map(|_| item.span())
        }
        _ => None,
    });
    let is_star = |item: &&SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
    named.or_else(|| select.projection.iter().find(is_star).map(Spanned::span))
}

/// Where the outermost FROM joins for the first time, else where it begins.
pub(super) fn join_span(query: &Query) -> Option<Span> {
    let SetExpr::Select(select) = query.body.as_ref() else { return None };
    let joined = select.from.iter().find_map(|table| table.joins.first()).map(Spanned::span);
    let spans = joined.into_iter().chain(select.from.get(1).or(select.from.first()).map(Spanned::span));
    spans.into_iter().find(|span| span.start.line > 0)
}

/// The parts that a condition joins by AND, in textual order.
pub(super) fn conjuncts(condition: &Expr) -> Vec<&Expr> {
    use datafusion::sql::sqlparser::ast::BinaryOperator::And;
    match condition {
        Expr::BinaryOp { left, op: And, right } => [conjuncts(left), conjuncts(right)].concat(),
        Expr::Nested(inner) if matches!(inner.as_ref(), Expr::BinaryOp { op: And, .. }) => conjuncts(inner),
        other => vec![other],
    }
}

/// A line comment: its line, where it stands, and its text after `--`.
pub(super) fn line_comments(file: &SqlFile) -> Result<Vec<(Span, String)>> {
    let comments = tokens(file)?.into_iter().filter_map(|token| match token.token {
        Token::Whitespace(Whitespace::SingleLineComment { comment, .. }) => Some((token.span, comment)),
        _ => None,
    });
    Ok(comments.collect())
}

/// An error at the start of `span`, or in the file as a whole.
pub(super) fn at(file: &Path, span: Option<Span>, problem: &str, remedy: &str) -> Error {
    let start = span.map(|span| span.start).filter(|start| start.line > 0);
    Error::Sql {
        file: file.to_owned(),
        line: start.map(|start| start.line),
        column: start.map(|start| start.column),
        problem: problem.to_owned(),
        remedy: remedy.to_owned(),
    }
}

fn is_space(token: &TokenWithSpan) -> bool {
    matches!(token.token, Token::Whitespace(_) | Token::EOF)
}

fn tokens(file: &SqlFile) -> Result<Vec<TokenWithSpan>> {
    Tokenizer::new(&GenericDialect {}, &file.text).tokenize_with_location().map_err(|error| {
        at(&file.path, Some(Span::new(error.location, error.location)), &error.message, "correct the SQL there")
    })
}

/// The parser's errors carry their position in words only.
fn syntax(file: &Path, error: &DataFusionError) -> Error {
    let message = error.find_root().message().into_owned();
    let message = message.trim_start_matches("sql parser error: ").trim_start_matches("ParserError(\"");
    let (problem, place) = message.rsplit_once(" at Line: ").unwrap_or((message, ""));
    let mut numbers = place.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
    let span = numbers.next().zip(numbers.next()).map(|(line, column)| {
        let start = Location::new(line, column);
        Span::new(start, start)
    });
    at(file, span, problem.trim_end_matches("\")"), "correct the SQL there")
}
