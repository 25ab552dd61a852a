//! Stops a query that multiplies its rows beyond reason: every join and UNNEST of a plan counts what it gives out.
//!
//! The memory pool bounds what operators hold; a join without a condition holds next to nothing and never ends. What is
//! counted are rows that come out: a join that compares for ever and gives out nothing is slow, and not stopped here.

use std::fmt;
use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, Statistics, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildStats, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, StatisticsArgs,
};
use futures::TryStreamExt;

/// The most rows that one operator may give out in one run, as an extension of the run's settings.
#[derive(Debug, Clone, Copy)]
pub(super) struct MaxRows(pub usize);

/// What a run fails with that reached [`MaxRows`].
#[derive(Debug)]
pub(super) struct TooManyRows;

impl fmt::Display for TooManyRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a join makes too many rows")
    }
}

impl std::error::Error for TooManyRows {}

impl TooManyRows {
    pub(super) fn is_root_of(error: &DataFusionError) -> bool {
        matches!(error.find_root(), DataFusionError::External(cause) if cause.is::<TooManyRows>())
    }
}

/// Puts a [`CountedExec`] on top of everything that can multiply rows. The last of the rules: none has to know of it.
#[derive(Debug)]
pub(super) struct CountRows;

impl PhysicalOptimizerRule for CountRows {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let counted = plan.transform_up(|plan| {
            let multiplies = plan.name().ends_with("JoinExec") || plan.name() == "UnnestExec";
            Ok(match multiplies {
                true => Transformed::yes(Arc::new(CountedExec { input: plan }) as Arc<dyn ExecutionPlan>),
                false => Transformed::no(plan),
            })
        });
        counted.data()
    }

    fn name(&self) -> &str {
        "count_rows"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Passes its input on, up to the run's [`MaxRows`].
#[derive(Debug)]
struct CountedExec {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for CountedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CountedExec")
    }
}

impl ExecutionPlan for CountedExec {
    fn name(&self) -> &str {
        "CountedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        counted(children)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        counted(children)
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let most = context.session_config().get_extension::<MaxRows>().map_or(usize::MAX, |most| most.0);
        let mut rows = 0_usize;
        let counted = self.input.execute(partition, context)?.and_then(move |batch| {
            rows = rows.saturating_add(batch.num_rows());
            let more = rows > most;
            std::future::ready(if more { Err(DataFusionError::External(Box::new(TooManyRows))) } else { Ok(batch) })
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), counted)))
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        Ok(inputs.first().map_or_else(|| Arc::new(Statistics::new_unknown(&self.schema())), Arc::clone))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }
}

fn counted(mut children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
    match (children.pop(), children.len()) {
        (Some(input), 0) => Ok(Arc::new(CountedExec { input })),
        _ => internal_err!("what counts rows has one child"),
    }
}
