//! Decides which joins read a lookup table by index.
//!
//! Those are: one plain column of the input equals one plain column of a lookup table, of the same type, and between
//! the join and the table is nothing but a choice of columns. An inner join may have a condition too, on the table or
//! on both sides: it is applied to the rows that were found. Every other shape keeps DataFusion's join: several equal
//! columns, expressions, nulls that match nulls, `NOT IN`, rows of the table that need no match, conditions where a row
//! without a match counts, and conditions both on the table and on both sides.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::Schema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{JoinSide, JoinType, NullEquality, Result, internal_err};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr_common::physical_expr::is_volatile;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::joins::HashJoinExec;
use datafusion::physical_plan::projection::{EmbeddedProjection, ProjectionExec, ProjectionExpr};

use super::bound::BoundScan;
use super::index::is_key_type;
use super::join::{Kind, LookupJoin, LookupJoinExec, Source};
use super::table::LookupKeys;

type Rules = Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>>;

/// DataFusion's rules but those that move filters down a physical plan. DataFusion 55.2 looks for a filter's columns below a
/// join by their names: where both sides have one of that name, rows come out that should not, or stay out
/// (<https://github.com/apache/datafusion/pull/25259>). Nothing is lost with them: filters were moved in the logical plan
/// already, and a bound table takes none.
pub(super) fn stock_rules() -> Rules {
    let mut rules = PhysicalOptimizer::new().rules;
    rules.retain(|rule| !rule.name().starts_with("FilterPushdown"));
    rules
}

/// [`stock_rules`] and the one for lookup joins: before joins choose their sides and anything moves between a join
/// and its tables.
pub(crate) fn optimizer_rules() -> Rules {
    let mut rules = stock_rules();
    let place = rules.iter().position(|rule| rule.name() == "join_selection").unwrap_or(0);
    rules.insert(place, Arc::new(LookupJoins));
    rules
}

/// What `plan` joins lookup tables by.
pub(crate) fn lookup_keys(plan: &Arc<dyn ExecutionPlan>) -> LookupKeys {
    fn collect(plan: &Arc<dyn ExecutionPlan>, keys: &mut LookupKeys) {
        if let Some((table, column)) = plan.downcast_ref::<LookupJoinExec>().map(LookupJoinExec::looks_up) {
            let columns = keys.entry(table.to_owned()).or_default();
            if let Err(place) = columns.binary_search(&column) {
                columns.insert(place, column);
            }
        }
        plan.children().into_iter().for_each(|child| collect(child, keys));
    }
    let mut keys = LookupKeys::new();
    collect(plan, &mut keys);
    keys
}

/// The lookup tables that `plan` reads from their first row to their last, by name.
pub(crate) fn scanned_lookups(plan: &Arc<dyn ExecutionPlan>) -> BTreeSet<String> {
    let own = plan.downcast_ref::<BoundScan>().and_then(BoundScan::lookup).map(|(table, _)| table.to_owned());
    plan.children().into_iter().flat_map(scanned_lookups).chain(own).collect()
}

#[derive(Debug)]
struct LookupJoins;

impl PhysicalOptimizerRule for LookupJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let replaced = plan.transform_up(|plan| {
            let by_index = plan.downcast_ref::<HashJoinExec>().map(by_index).transpose()?.flatten();
            Ok(by_index.map_or_else(|| Transformed::no(plan), Transformed::yes))
        });
        replaced.data()
    }

    fn name(&self) -> &str {
        "lookup_joins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// What replaces `join`, if it is of a shape that this knows.
fn by_index(join: &HashJoinExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let plain = join.null_equality() == NullEquality::NullEqualsNothing && !join.null_aware && join.fetch().is_none();
    let (true, [(left, right)]) = (plain, join.on()) else { return Ok(None) };
    let sides = match join.join_type() {
        JoinType::Inner => &[(Kind::Inner, JoinSide::Right), (Kind::Inner, JoinSide::Left)][..],
        JoinType::Left => &[(Kind::Outer, JoinSide::Right)],
        JoinType::Right => &[(Kind::Outer, JoinSide::Left)],
        JoinType::LeftSemi => &[(Kind::Semi, JoinSide::Right)],
        JoinType::RightSemi => &[(Kind::Semi, JoinSide::Left)],
        JoinType::LeftAnti => &[(Kind::Anti, JoinSide::Right)],
        JoinType::RightAnti => &[(Kind::Anti, JoinSide::Left)],
        _ => &[],
    };
    let found = sides.iter().find_map(|&(kind, side)| {
        let (input, table, keys) = match side {
            JoinSide::Left => (join.right(), join.left(), (right, left)),
            _ => (join.left(), join.right(), (left, right)),
        };
        // Conditions only take rows away from an inner join's; elsewhere they decide what a match is.
        let table = read(table)?;
        match (join.filter(), &table.condition) {
            // The table's may keep the join's from failing, by a zero say, and must come first: nothing above a join
            // keeps two conditions apart.
            (Some(_), Some(_)) => return None,
            (None, None) => {}
            _ if kind != Kind::Inner => return None,
            _ => {}
        }
        Some((input, lookup_join(join, kind, side, input, &table, keys)?, table))
    });
    let Some((input, lookup, table)) = found else { return Ok(None) };
    replace(join, Arc::clone(input), lookup, &table).map(Some)
}

/// What a plan reads of a lookup table, if that is all that it does.
struct Read<'a> {
    scan: &'a BoundScan,
    /// By output column: the scan's column.
    columns: Vec<usize>,
    /// Over the scan's columns.
    condition: Option<Arc<dyn PhysicalExpr>>,
}

fn read(plan: &Arc<dyn ExecutionPlan>) -> Option<Read<'_>> {
    if let Some(scan) = plan.downcast_ref::<BoundScan>() {
        let (_, columns) = scan.lookup()?;
        return Some(Read { scan, columns: (0..columns.len()).collect(), condition: None });
    }
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let below = read(projection.input())?;
        let column =
            |expression: &ProjectionExpr| below.columns.get(expression.expr.downcast_ref::<Column>()?.index()).copied();
        let columns = projection.expr().iter().map(column).collect::<Option<_>>()?;
        return Some(Read { columns, ..below });
    }
    let filter = plan.downcast_ref::<FilterExec>()?;
    let below = read(filter.input())?;
    if below.condition.is_some() || filter.fetch().is_some() || is_volatile(filter.predicate()) {
        return None;
    }
    let condition = with_columns(filter.predicate(), |column| below.columns.get(column.index()).copied()).ok()?;
    let columns = match filter.projection() {
        None => below.columns,
        Some(wanted) => wanted.iter().map(|&column| below.columns.get(column).copied()).collect::<Option<_>>()?,
    };
    Some(Read { scan: below.scan, columns, condition: Some(condition) })
}

/// The join of `input` with `table`, which is on `side`, on `keys`, the input's first. It has all columns of `join`
/// before the embedded projection.
fn lookup_join(
    join: &HashJoinExec,
    kind: Kind,
    side: JoinSide,
    input: &Arc<dyn ExecutionPlan>,
    table: &Read<'_>,
    keys: (&Arc<dyn PhysicalExpr>, &Arc<dyn PhysicalExpr>),
) -> Option<LookupJoin> {
    let (key, table_key) = (keys.0.downcast_ref::<Column>()?, keys.1.downcast_ref::<Column>()?);
    let (name, scanned) = table.scan.lookup()?;
    let column = *table.columns.get(table_key.index())?;
    let (input_schema, scan_schema) = (input.schema(), table.scan.schema());
    let key_type = input_schema.fields().get(key.index())?.data_type();
    if !is_key_type(key_type) || key_type != scan_schema.fields().get(column)?.data_type() {
        return None;
    }
    let from_input = (0..input_schema.fields().len()).map(Source::Input);
    let from_lookup = table.columns.iter().map(|&from| match kind {
        // Its value is the input's, which is at hand.
        Kind::Inner if from == column => Source::Input(key.index()),
        _ => Source::Lookup(scanned[from]),
    });
    let columns: Vec<_> = match (kind, side) {
        (Kind::Semi | Kind::Anti, _) => from_input.collect(),
        (_, JoinSide::Left) => from_lookup.chain(from_input).collect(),
        _ => from_input.chain(from_lookup).collect(),
    };
    let schema = Arc::clone(join.join_schema());
    (columns.len() == schema.fields().len()).then(|| LookupJoin {
        kind,
        table: name.to_owned(),
        key: key.clone(),
        table_key: (scanned[column], table_key.name().to_owned()),
        columns,
        schema,
    })
}

/// `lookup` over `input`, then the condition of `join` or `table`, then the projection of `join`.
fn replace(
    join: &HashJoinExec,
    input: Arc<dyn ExecutionPlan>,
    mut lookup: LookupJoin,
    table: &Read<'_>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let projection = join.projection.as_ref().map(|columns| columns.to_vec());
    let width = lookup.columns.len();
    let condition = match (join.filter(), &table.condition) {
        (Some(filter), _) => {
            let left = join.left().schema().fields().len();
            Some(with_columns(filter.expression(), |column| {
                let origin = filter.column_indices().get(column.index())?;
                Some(origin.index + if origin.side == JoinSide::Right { left } else { 0 })
            })?)
        }
        (None, Some(condition)) => Some(add_columns(&mut lookup, condition, table.scan)?),
        (None, None) => None,
    };
    let replaced = LookupJoinExec::new(input, lookup);
    let Some(condition) = condition else { return Ok(Arc::new(replaced.with_projection(projection)?)) };
    let projection = projection.unwrap_or_else(|| (0..width).collect());
    Ok(Arc::new(FilterExecBuilder::new(condition, Arc::new(replaced)).apply_projection(Some(projection))?.build()?))
}

/// `condition`, which is over the scan's columns, over those of `lookup`, which gets the ones that it uses at its end.
fn add_columns(
    lookup: &mut LookupJoin,
    condition: &Arc<dyn PhysicalExpr>,
    scan: &BoundScan,
) -> Result<Arc<dyn PhysicalExpr>> {
    let Some((_, scanned)) = scan.lookup() else { return internal_err!("{scan:?} reads no lookup table") };
    let mut used: Vec<usize> = collect_columns(condition).iter().map(Column::index).collect();
    used.sort_unstable();
    used.dedup();
    let (first, schema) = (lookup.columns.len(), scan.schema());
    let mut fields = lookup.schema.fields().to_vec();
    for &column in &used {
        fields.push(Arc::clone(&schema.fields()[column]));
        lookup.columns.push(Source::Lookup(scanned[column]));
    }
    lookup.schema = Arc::new(Schema::new_with_metadata(fields, lookup.schema.metadata().clone()));
    with_columns(condition, |column| used.binary_search(&column.index()).ok().map(|place| first + place))
}

/// `expression` with its columns where `place` says that they are.
fn with_columns(
    expression: &Arc<dyn PhysicalExpr>,
    place: impl Fn(&Column) -> Option<usize>,
) -> Result<Arc<dyn PhysicalExpr>> {
    let moved = Arc::clone(expression).transform_up(|expression| {
        let Some(column) = expression.downcast_ref::<Column>() else { return Ok(Transformed::no(expression)) };
        let Some(index) = place(column) else { return internal_err!("{column} has no place") };
        Ok(Transformed::yes(Arc::new(Column::new(column.name(), index)) as Arc<dyn PhysicalExpr>))
    });
    moved.data()
}
