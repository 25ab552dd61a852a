//! Carries the hidden row number through a plan, from the scan of `campaigns` to the output.
//!
//! The user's SQL is planned first, without it, so that no name and no `*` can see it; then the plan is rewritten from
//! the leaves up. A node that makes new rows (aggregate, distinct, window, union) ends it: the plan stays as it was.

use std::sync::Arc;

use datafusion::common::{Column, DFSchema, Result};
use datafusion::logical_expr::logical_plan::TableScanBuilder;
use datafusion::logical_expr::{
    Expr, Filter, Join, JoinType, Limit, LogicalPlan, Projection, Sort, SubqueryAlias, TableSource,
};

use super::{CAMPAIGNS, ROW};

/// The plan with the row number as its last output column; `None` where the query's shape loses it. `campaigns` is the
/// table with the row number.
pub(super) fn carry(plan: &LogicalPlan, campaigns: &Arc<dyn TableSource>) -> Result<Option<LogicalPlan>> {
    let Some(carried) = climb(plan, campaigns)? else { return Ok(None) };
    let fields = carried.schema().fields();
    let is_last = fields.len() == plan.schema().fields().len() + 1 && fields.last().is_some_and(|f| f.name() == ROW);
    Ok(is_last.then_some(carried))
}

fn climb(plan: &LogicalPlan, campaigns: &Arc<dyn TableSource>) -> Result<Option<LogicalPlan>> {
    let below = |input: &LogicalPlan| climb(input, campaigns).map(|plan| plan.map(Arc::new));
    Ok(match plan {
        LogicalPlan::TableScan(scan) if scan.table_name.table() == CAMPAIGNS => {
            let scan = TableScanBuilder::new(scan.table_name.clone(), Arc::clone(campaigns))
                .with_filters(scan.filters.clone())
                .with_fetch(scan.fetch)
                .build()?;
            Some(LogicalPlan::TableScan(scan))
        }
        LogicalPlan::SubqueryAlias(alias) => match below(&alias.input)? {
            Some(input) => Some(LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(input, alias.alias.clone())?)),
            None => None,
        },
        LogicalPlan::Projection(projection) => match below(&projection.input)? {
            Some(input) => {
                let mut expressions = projection.expr.clone();
                expressions.extend(row_column(input.schema()));
                Some(LogicalPlan::Projection(Projection::try_new(expressions, input)?))
            }
            None => None,
        },
        LogicalPlan::Filter(filter) => match below(&filter.input)? {
            Some(input) => Some(LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), input)?)),
            None => None,
        },
        LogicalPlan::Sort(sort) => below(&sort.input)?.map(|input| LogicalPlan::Sort(Sort { input, ..sort.clone() })),
        LogicalPlan::Limit(limit) => {
            below(&limit.input)?.map(|input| LogicalPlan::Limit(Limit { input, ..limit.clone() }))
        }
        LogicalPlan::Join(join) => climb_join(join, below(&join.left)?, below(&join.right)?)?,
        _ => None,
    })
}

/// A join keeps the number of the side of which it keeps each row's columns and invents none. With one on both sides a
/// row has two messages and so none.
fn climb_join(
    join: &Join,
    left: Option<Arc<LogicalPlan>>,
    right: Option<Arc<LogicalPlan>>,
) -> Result<Option<LogicalPlan>> {
    use JoinType::{Inner, Left, LeftAnti, LeftMark, LeftSemi, Right, RightAnti, RightMark, RightSemi};
    let old = (&join.left, &join.right);
    let (left, right) = match (left, right, join.join_type) {
        (Some(left), _, LeftSemi | LeftAnti | LeftMark) => (left, Arc::clone(old.1)),
        (_, Some(right), RightSemi | RightAnti | RightMark) => (Arc::clone(old.0), right),
        (Some(left), None, Inner | Left) => (left, Arc::clone(old.1)),
        (None, Some(right), Inner | Right) => (Arc::clone(old.0), right),
        _ => return Ok(None),
    };
    let join = join.clone();
    let join = Join::try_new(
        left,
        right,
        join.on,
        join.filter,
        join.join_type,
        join.join_constraint,
        join.null_equality,
        join.null_aware,
    )?;
    Ok(Some(LogicalPlan::Join(join)))
}

fn row_column(schema: &DFSchema) -> Option<Expr> {
    let (qualifier, field) = schema.iter().find(|(_, field)| field.name() == ROW)?;
    Some(Expr::Column(Column::new(qualifier.cloned(), field.name())))
}
