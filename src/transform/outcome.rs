//! What became of each message: `triggered`, the name of the condition that stopped it, or `no_match:<lookup>`.
//!
//! The conditions are the top-level WHERE's parts that use campaigns and the clock alone. They run as one query of
//! their own, over the messages that triggered nothing, and the first that is not true names the outcome. A message
//! that passes all of them and still has no row is `no_match`, also where a condition on the lookup table took its
//! rows away: nothing matched that the query wanted.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Int64Array, NullArray, RecordBatch};
use arrow::compute::FilterBuilder;
use arrow::datatypes::{Field, FieldRef, Schema};
use arrow::error::ArrowError;
use datafusion::sql::sqlparser::ast::{
    CaseWhen, Expr, Ident, ObjectName, Query, SelectItem, SetExpr, Spanned, TableFactor, TableWithJoins, Value,
    helpers::attached_token::AttachedToken, visit_expressions, visit_relations,
};
use datafusion::sql::sqlparser::tokenizer::Span;
use futures::TryStreamExt;

use super::CAMPAIGNS;
use super::diagnose::with_parts;
use super::engine::{Engine, Prepared};
use super::files::SqlFile;
use super::parse::{at, conjuncts, line_comments};
use super::stream::Plans;
use crate::lookup::{LookupSet, columns_read};
use crate::{Error, Result};

/// A message that gave at least one row.
pub const TRIGGERED: &str = "triggered";
/// A message that went through a query whose rows cannot be told apart by message.
pub const PROCESSED: &str = "processed";
/// A message that no named condition stopped, in a query that joins nothing.
pub const FILTERED: &str = "filtered";
const RESERVED: [&str; 4] = [TRIGGERED, PROCESSED, FILTERED, "dead_letter"];

/// Messages by outcome, every possible outcome listed, in the order of [`super::Transform::outcome_names`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcomes {
    pub counts: Vec<(String, u64)>,
}

/// How a query accounts for the messages that gave no row.
#[derive(Debug)]
pub(super) struct Rules {
    /// Possible outcomes: `triggered`, then the conditions' names, last what remains.
    pub(super) names: Vec<String>,
    /// Gives each message the place in `names` of its outcome, as one Int64 column; `None` where that is always the last.
    pub(super) verdict: Option<(Query, Prepared)>,
}

/// Judges messages that gave no row.
#[derive(Debug)]
pub(super) struct Verdicts {
    plans: Arc<Plans>,
    /// The columns of campaigns that the conditions read.
    columns: BTreeSet<usize>,
}

impl Verdicts {
    /// `plan` is one of `plans`.
    pub(super) fn new(plans: Arc<Plans>, plan: Prepared) -> Verdicts {
        let columns = columns_read(&plan.plan);
        plans.put_back(plan);
        Verdicts { plans, columns }
    }

    /// Adds the outcomes of the `silent` messages of `batch` to `counts`.
    pub(super) async fn count(
        &self,
        batch: &RecordBatch,
        silent: &BooleanArray,
        now: i64,
        counts: &mut [u64],
    ) -> Result<()> {
        let rest = self.rows(batch, silent).map_err(|error| Error::engine("counting outcomes")(error.into()))?;
        let mut stream = Plans::run(&self.plans, rest, now, &LookupSet::new([])).await?;
        while let Some(verdicts) = stream.try_next().await? {
            let places = verdicts.column(0).as_any().downcast_ref::<Int64Array>();
            for place in places.into_iter().flat_map(|places| places.values()) {
                if let Some(count) = usize::try_from(*place).ok().and_then(|place| counts.get_mut(place)) {
                    *count += 1;
                }
            }
        }
        Ok(())
    }

    /// The `wanted` rows of `batch`. Columns that no condition reads are not copied: nulls stand in their place.
    fn rows(&self, batch: &RecordBatch, wanted: &BooleanArray) -> Result<RecordBatch, ArrowError> {
        let wanted = FilterBuilder::new(wanted).optimize().build();
        let column = |(number, column): (usize, &ArrayRef)| match self.columns.contains(&number) {
            true => wanted.filter(column),
            false => Ok(Arc::new(NullArray::new(wanted.count())) as ArrayRef),
        };
        let columns = batch.columns().iter().enumerate().map(column).collect::<Result<Vec<_>, _>>()?;
        let field =
            |(column, field): (&ArrayRef, &FieldRef)| Field::new(field.name(), column.data_type().clone(), true);
        let schema = Schema::new(columns.iter().zip(batch.schema_ref().fields()).map(field).collect::<Vec<_>>());
        RecordBatch::try_new(Arc::new(schema), columns)
    }
}

impl Rules {
    pub(super) async fn find(file: &SqlFile, query: &Query, engine: &Engine) -> Result<Rules> {
        let mut names = vec![TRIGGERED.to_owned()];
        let conditions = conditions(file, query, engine).await?;
        let mut cases = Vec::new();
        for (condition, name) in conditions {
            let place = names.iter().position(|other| *other == name).unwrap_or_else(|| {
                names.push(name);
                names.len() - 1
            });
            cases.push((condition, place));
        }
        names.push(remainder(query, engine));
        let verdict = campaigns_factor(query).filter(|_| !cases.is_empty()).map(|campaigns| {
            let conditions = cases.into_iter().map(|(condition, place)| CaseWhen {
                condition: Expr::IsNotTrue(Box::new(Expr::Nested(Box::new(condition)))),
                result: number(place),
            });
            over_campaigns(query, campaigns, case(conditions.collect(), number(names.len() - 1)))
        });
        let verdict = match verdict {
            Some(verdict) => {
                let plan = engine.prepare(&verdict, false).await.map_err(Error::engine("planning the outcomes"))?;
                Some((verdict, plan))
            }
            None => None,
        };
        Ok(Rules { names, verdict })
    }
}

/// The WHERE's parts that can be asked of a message alone, with their names.
async fn conditions(file: &SqlFile, query: &Query, engine: &Engine) -> Result<Vec<(Expr, String)>> {
    let (SetExpr::Select(select), Some(campaigns)) = (query.body.as_ref(), campaigns_factor(query)) else {
        return Ok(Vec::new());
    };
    let mut comments = outcome_comments(file)?;
    let mut found = Vec::new();
    for part in select.selection.iter().flat_map(conjuncts) {
        let own = |(span, _, _): &(Span, String, bool)| lines(part).contains(&span.start.line);
        let is_campaigns_alone = !has_subquery(part) && {
            let item = case(vec![CaseWhen { condition: part.clone(), result: number(0) }], number(1));
            engine.prepare(&over_campaigns(query, campaigns, item), false).await.is_ok()
        };
        if is_campaigns_alone {
            let mut name = None;
            for comment in comments.iter_mut().filter(|comment| own(comment)) {
                comment.2 = true;
                name = Some(comment.1.clone());
            }
            found.push((part.clone(), name.unwrap_or_else(|| part.to_string())));
        }
    }
    match comments.into_iter().find(|(_, _, used)| !used) {
        None => Ok(found),
        Some((span, name, _)) => Err(at(
            &file.path,
            Some(span),
            &format!("the outcome {name} names no condition"),
            "put it on the line of a condition of the outermost WHERE that uses campaigns' columns and now() alone; \
             a message stopped by another condition counts as no_match",
        )),
    }
}

/// `-- outcome: NAME` wherever it stands, with a mark for having been used.
fn outcome_comments(file: &SqlFile) -> Result<Vec<(Span, String, bool)>> {
    let mut found = Vec::new();
    for (span, text) in line_comments(file)? {
        let Some(name) = text.trim().strip_prefix("outcome:").map(str::trim) else { continue };
        let good = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        if !good || RESERVED.contains(&name) {
            let problem = format!("{name:?} cannot name an outcome");
            let remedy =
                "take letters, digits and underscores, and none of: triggered, processed, filtered, dead_letter";
            return Err(at(&file.path, Some(span), &problem, remedy));
        }
        found.push((span, name.to_owned(), false));
    }
    Ok(found)
}

fn lines(part: &Expr) -> std::ops::RangeInclusive<u64> {
    let span = part.span();
    span.start.line..=span.end.line
}

fn has_subquery(part: &Expr) -> bool {
    let found = visit_expressions(part, |expr| match expr {
        Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } | Expr::AnyOp { .. } | Expr::AllOp { .. } => {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    found.is_break()
}

/// What a message is that no condition stopped and that gave no row.
fn remainder(query: &Query, engine: &Engine) -> String {
    let tables = engine.table_names();
    let mut lookup = None;
    // In FROM first: what is joined explains more than what a subquery asks.
    let mut visit = |name: &ObjectName| match lookup_name(name, &tables) {
        Some(name) => {
            lookup = Some(name);
            ControlFlow::Break(())
        }
        None => ControlFlow::Continue(()),
    };
    if let SetExpr::Select(select) = query.body.as_ref() {
        let _ = visit_relations(&select.from, &mut visit);
    }
    if lookup.is_none() {
        let _ = visit_relations(query, |name| match lookup_name(name, &tables) {
            Some(name) => {
                lookup = Some(name);
                ControlFlow::Break(())
            }
            None => ControlFlow::Continue(()),
        });
    }
    lookup.map_or_else(|| FILTERED.to_owned(), |name| format!("no_match:{name}"))
}

fn lookup_name(name: &ObjectName, tables: &[String]) -> Option<String> {
    let name = last_part(name)?;
    tables.iter().find(|table| **table == name && name != CAMPAIGNS).cloned()
}

fn last_part(name: &ObjectName) -> Option<String> {
    let ident: &Ident = name.0.last()?.as_ident()?;
    Some(if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() })
}

/// `campaigns` as the outermost FROM names it, alias and all.
fn campaigns_factor(query: &Query) -> Option<&TableFactor> {
    let SetExpr::Select(select) = query.body.as_ref() else { return None };
    let shadowed = query.with.iter().flat_map(|with| &with.cte_tables).any(|cte| cte.alias.name.value == CAMPAIGNS);
    if shadowed { None } else { select.from.iter().find_map(in_joins) }
}

fn in_joins(table: &TableWithJoins) -> Option<&TableFactor> {
    std::iter::once(&table.relation).chain(table.joins.iter().map(|join| &join.relation)).find_map(
        |factor| match factor {
            TableFactor::Table { name, .. } => (last_part(name)? == CAMPAIGNS).then_some(factor),
            TableFactor::NestedJoin { table_with_joins, alias: None } => in_joins(table_with_joins),
            _ => None,
        },
    )
}

fn over_campaigns(query: &Query, campaigns: &TableFactor, expr: Expr) -> Query {
    let from = vec![TableWithJoins { relation: campaigns.clone(), joins: Vec::new() }];
    let mut query = with_parts(query, SelectItem::UnnamedExpr(expr), from, None);
    query.with = None;
    query
}

fn case(conditions: Vec<CaseWhen>, otherwise: Expr) -> Expr {
    Expr::Case {
        case_token: AttachedToken::empty(),
        end_token: AttachedToken::empty(),
        operand: None,
        conditions,
        else_result: Some(Box::new(otherwise)),
    }
}

fn number(number: usize) -> Expr {
    Expr::value(Value::Number(number.to_string(), false))
}
