//! A table whose rows are bound when a plan runs, not when it is made.
//!
//! The plan knows the name and the columns; [`BoundScan`] asks the run's [`TaskContext`] for the rows. So one plan
//! serves every micro-batch and every refresh of a lookup, and an idle plan keeps no rows alive. Filters are not taken
//! in: DataFusion's own operators apply them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, Statistics, exec_datafusion_err, internal_err};
use datafusion::datasource::TableType;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};

use super::table::{LookupSet, LookupTable};

/// The most rows in a batch that the engine passes on.
pub(crate) const BATCH_ROWS: usize = 8192;

/// Finds the rows of the table `name` in what the run was given.
pub(crate) type ReadBound = fn(&TaskContext, name: &str) -> Result<Vec<RecordBatch>>;

/// What the planner sees: a name, columns, and about how many rows to expect.
pub(crate) struct BoundTable {
    name: String,
    schema: SchemaRef,
    /// An estimate that only decides which side of a join is held: the smaller one.
    rows: usize,
    rows_of: RowsOf,
}

/// Where the rows come from.
#[derive(Clone, Copy)]
enum RowsOf {
    Run(ReadBound),
    /// The lookup table of the same name in the run's [`LookupSet`], which may be read by index.
    Lookup,
}

impl BoundTable {
    /// Rows that `read` finds in what the run was given.
    pub(crate) fn new(name: impl Into<String>, schema: SchemaRef, rows: usize, read: ReadBound) -> Self {
        Self { name: name.into(), schema, rows, rows_of: RowsOf::Run(read) }
    }

    /// The lookup table `name` of the [`LookupSet`] that the run's context has as an extension.
    pub(crate) fn lookup(name: impl Into<String>, schema: SchemaRef, rows: usize) -> Self {
        Self { name: name.into(), schema, rows, rows_of: RowsOf::Lookup }
    }
}

/// The columns that `plan` reads of what is no lookup table.
pub(crate) fn columns_read(plan: &Arc<dyn ExecutionPlan>) -> BTreeSet<usize> {
    let scan = plan.downcast_ref::<BoundScan>().filter(|scan| scan.lookup().is_none());
    let own = scan.into_iter().flat_map(|scan| scan.columns.iter().copied());
    own.chain(plan.children().into_iter().flat_map(columns_read)).collect()
}

/// The lookup table `name` that the run was given.
pub(super) fn bound_lookup(context: &TaskContext, name: &str) -> Result<Arc<LookupTable>> {
    let set = context.session_config().get_extension::<LookupSet>();
    let table = set.as_ref().and_then(|set| set.get(name));
    Ok(Arc::clone(table.ok_or_else(|| exec_datafusion_err!("the run has no lookup table {name}"))?))
}

impl fmt::Debug for BoundTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BoundTable({})", self.name)
    }
}

#[async_trait]
impl TableProvider for BoundTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        Ok(Arc::new(BoundScan::try_new(self.name.clone(), &self.schema, columns, self.rows, self.rows_of)?))
    }
}

/// Reads the bound rows of one table, a projection of its columns, in their order.
#[derive(Clone)]
pub(crate) struct BoundScan {
    name: String,
    columns: Vec<usize>,
    rows: usize,
    rows_of: RowsOf,
    properties: Arc<PlanProperties>,
}

impl BoundScan {
    fn try_new(
        name: String,
        schema: &SchemaRef,
        columns: Vec<usize>,
        rows: usize,
        rows_of: RowsOf,
    ) -> Result<BoundScan> {
        let projected = Arc::new(schema.project(&columns)?);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(projected),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(BoundScan { name, columns, rows, rows_of, properties: Arc::new(properties) })
    }

    /// The table's name and the columns that are read of it, if it is a lookup table.
    pub(super) fn lookup(&self) -> Option<(&str, &[usize])> {
        matches!(self.rows_of, RowsOf::Lookup).then_some((self.name.as_str(), self.columns.as_slice()))
    }
}

impl fmt::Debug for BoundScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BoundScan({})", self.name)
    }
}

impl DisplayAs for BoundScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BoundScan: {}", self.name)
    }
}

impl ExecutionPlan for BoundScan {
    fn name(&self) -> &str {
        "BoundScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("{self:?} has no children") }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() { Ok(self) } else { internal_err!("{self:?} has no children") }
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn partition_statistics(&self, _: Option<usize>) -> Result<Arc<Statistics>> {
        let mut statistics = Statistics::new_unknown(&self.schema());
        statistics.num_rows = Precision::Inexact(self.rows);
        Ok(Arc::new(statistics))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("{self:?} has one partition, not {partition}");
        }
        let schema = self.schema();
        let columns = self.columns.clone();
        let batches = match self.rows_of {
            RowsOf::Run(read) => read(&context, &self.name)?,
            RowsOf::Lookup => {
                let batches = bound_lookup(&context, &self.name)?.scan_columns(columns, Arc::clone(&schema));
                return Ok(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches))));
            }
        };
        let projected = Arc::clone(&schema);
        let slices = batches.into_iter().flat_map(move |batch| {
            let projected = projected_batch(&projected, &columns, &batch);
            let starts = (0..batch.num_rows()).step_by(BATCH_ROWS);
            starts.map(move |start| match &projected {
                Ok(batch) => Ok(batch.slice(start, BATCH_ROWS.min(batch.num_rows() - start))),
                Err(problem) => internal_err!("{problem}"),
            })
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(slices))))
    }
}

/// The wanted columns under the plan's own schema: names and metadata of the bound batch do not matter, types do.
fn projected_batch(schema: &SchemaRef, columns: &[usize], batch: &RecordBatch) -> Result<RecordBatch, String> {
    let arrays = columns.iter().map(|&column| match batch.columns().get(column) {
        Some(array) => Ok(Arc::clone(array)),
        None => Err(format!("the bound batch has {} columns, column {column} is wanted", batch.num_columns())),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays.collect::<Result<_, _>>()?, &options)
        .map_err(|error| format!("the bound batch does not fit the plan: {error}"))
}
