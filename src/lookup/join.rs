//! A join with a lookup table that asks the table's index, row by row, instead of reading the table.
//!
//! What this promises: the rows, columns and nulls of the hash join that it replaces; output in the input's order, the
//! rows of one input row one after the other. What it does not do: it decides nothing; `rule` does.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, Statistics, internal_err, project_schema};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, ExecutionPlanProperties, ReplaceChildrenOptions};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::projection::{EmbeddedProjection, ProjectionExec, try_embed_projection};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildStats, DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, StatisticsArgs,
};
use futures::{TryStreamExt, stream};

use super::bound::bound_lookup;
use super::index::KeyIndex;
use super::probe::{Probe, Shape};
use super::table::LookupTable;

/// Which rows come out, seen from the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// One for each lookup row with the input row's key.
    Inner,
    /// As `Inner`, and one with nulls where there is none.
    Outer,
    /// Input rows that have a lookup row.
    Semi,
    /// Input rows that have none.
    Anti,
}

/// Where an output column comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Input(usize),
    /// A column of the whole table, not of a scan's projection.
    Lookup(usize),
}

/// What a join does, fixed when it is planned.
#[derive(Debug, Clone)]
pub(super) struct LookupJoin {
    pub kind: Kind,
    /// The lookup table's name.
    pub table: String,
    /// The input's column that is looked up.
    pub key: Column,
    /// The table's column that equals it, and its name.
    pub table_key: (usize, String),
    pub columns: Vec<Source>,
    /// Of `columns`.
    pub schema: SchemaRef,
}

#[derive(Debug)]
pub(super) struct LookupJoinExec {
    input: Arc<dyn ExecutionPlan>,
    join: LookupJoin,
    key: Arc<dyn PhysicalExpr>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl LookupJoinExec {
    pub(super) fn new(input: Arc<dyn ExecutionPlan>, join: LookupJoin) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&join.schema)),
            Partitioning::UnknownPartitioning(input.output_partitioning().partition_count()),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        let key = Arc::new(join.key.clone());
        Self { input, join, key, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }

    /// Name and column of the lookup table.
    pub(super) fn looks_up(&self) -> (&str, usize) {
        (&self.join.table, self.join.table_key.0)
    }

    fn key_type(&self) -> DataType {
        self.input.schema().field(self.join.key.index()).data_type().clone()
    }
}

impl EmbeddedProjection for LookupJoinExec {
    fn with_projection(&self, projection: Option<Vec<usize>>) -> Result<Self> {
        let mut join = self.join.clone();
        if let Some(projection) = projection {
            join.schema = project_schema(&join.schema, Some(&projection))?;
            join.columns = projection.into_iter().map(|column| join.columns[column]).collect();
        }
        Ok(Self::new(Arc::clone(&self.input), join))
    }
}

impl DisplayAs for LookupJoinExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LookupJoin { kind, table, key, table_key: (column, name), schema, .. } = &self.join;
        let columns: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let columns = columns.join(", ");
        write!(f, "LookupJoinExec: lookup={table}, kind={kind:?}, on=[({key}, {name}@{column})], columns=[{columns}]")
    }
}

impl ExecutionPlan for LookupJoinExec {
    fn name(&self) -> &str {
        "LookupJoinExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    /// The new node's metrics start anew: a plan that runs for every batch must not gather them.
    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.len()) {
            (Some(input), 0) => Ok(Arc::new(Self::new(input, self.join.clone()))),
            _ => internal_err!("a lookup join has one child"),
        }
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.len()) {
            (Some(input), 0) => Ok(Arc::new(Self::new(input, self.join.clone()))),
            _ => internal_err!("a lookup join has one child"),
        }
    }

    fn apply_expressions(
        &self,
        visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        visit(&self.key)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let table = bound_lookup(&context, &self.join.table)?;
        let (key, key_type) = (self.join.table_key.0, self.key_type());
        if table.schema.fields().get(key).is_none_or(|field| *field.data_type() != key_type) {
            return internal_err!("the lookup table {} has no column {key} of type {key_type}", self.join.table);
        }
        let shape = Shape {
            kind: self.join.kind,
            key: self.join.key.index(),
            columns: self.join.columns.clone(),
            schema: Arc::clone(&self.join.schema),
            batch_rows: context.session_config().batch_size(),
        };
        let output = BaselineMetrics::new(&self.metrics, partition);
        let rows_read = MetricBuilder::new(&self.metrics).counter("lookup_rows", partition);
        let rows = async move {
            let index = index(&table, key).await?;
            let probe = Probe::new(input, table, index, shape, output, rows_read);
            let next = |mut probe: Probe| async move { Ok(probe.next().await?.map(|batch| (batch, probe))) };
            Ok::<_, DataFusionError>(stream::try_unfold(probe, next))
        };
        let rows = RecordBatchStreamAdapter::new(self.schema(), stream::once(rows).try_flatten());
        Ok(make_cooperative(Box::pin(rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    /// As many rows as the input has. What comes out is the side of campaigns for any further join: the one to hold.
    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        if let [input] = inputs {
            statistics.num_rows = input.num_rows.to_inexact();
        }
        Ok(Arc::new(statistics))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Unknown
    }

    /// Columns that nobody wants are not gathered.
    fn try_swapping_with_projection(&self, projection: &ProjectionExec) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        try_embed_projection(projection, self)
    }
}

async fn index(table: &Arc<LookupTable>, column: usize) -> Result<Arc<KeyIndex>> {
    if let Some(index) = table.built_index(column) {
        return Ok(Arc::clone(index));
    }
    let table = Arc::clone(table);
    let built = tokio::task::spawn_blocking(move || table.index(column)).await;
    built.map_err(|error| DataFusionError::External(Box::new(error)))?
}
