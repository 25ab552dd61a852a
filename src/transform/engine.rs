//! Makes plans: a DataFusion session that knows the campaigns, the lookup tables and a clock, and nothing else. SQL
//! reaches no file, no network and no setting, and memory comes from one bounded pool.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::{Result, exec_datafusion_err};
use datafusion::datasource::provider_as_source;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{GreedyMemoryPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{SQLOptions, SessionConfig, SessionContext};
use datafusion::sql::parser::Statement as EngineStatement;
use datafusion::sql::sqlparser::ast::{Query, Statement};

use super::carry::carry;
use super::clock::Clock;
use super::rows::{CountRows, MaxRows};
use super::{CAMPAIGNS, ROW};
use crate::lookup::{BATCH_ROWS, BoundTable, LookupSet, optimizer_rules};

/// What the planner takes a micro-batch to hold, and what it adds to a lookup's rows: between campaigns and a lookup,
/// the campaigns are always the side that a join holds in memory.
const CAMPAIGN_ROWS: usize = 1_000;
const LOOKUP_ROWS: usize = 1_000_000;
/// How many of the greediest operators a memory error names.
const NAMED_CONSUMERS: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN;

#[derive(Debug)]
pub(super) struct Engine {
    runtime: Arc<RuntimeEnv>,
    campaigns: SchemaRef,
    campaigns_with_row: SchemaRef,
    lookups: Vec<(String, SchemaRef, usize)>,
}

/// What one run reads, handed to the scans through the run's context.
#[derive(Debug)]
struct MicroBatch(RecordBatch);

/// A plan that can run again and again, but once at a time: its clock and its operators' state are its own.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) plan: Arc<dyn ExecutionPlan>,
    clock: Clock,
    config: SessionConfig,
    runtime: Arc<RuntimeEnv>,
    /// Whether the last output column is the row number.
    pub(super) carries_rows: bool,
}

impl Engine {
    /// `memory`: bytes that all runs together may hold.
    pub(super) fn new(campaigns: SchemaRef, lookups: &LookupSet, memory: usize) -> Result<Engine> {
        let pool = TrackConsumersPool::new(GreedyMemoryPool::new(memory), NAMED_CONSUMERS);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(pool))
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
            .build_arc()?;
        let mut fields = campaigns.fields().to_vec();
        fields.push(Arc::new(Field::new(ROW, DataType::UInt32, false)));
        let lookups = lookups.tables().map(|table| {
            let rows = usize::try_from(table.rows).unwrap_or(usize::MAX / 2);
            (table.name.clone(), Arc::clone(&table.schema), rows)
        });
        let campaigns_with_row = Arc::new(Schema::new(fields));
        Ok(Engine { runtime, campaigns, campaigns_with_row, lookups: lookups.collect() })
    }

    /// Campaigns first, then the lookup tables.
    pub(super) fn table_names(&self) -> Vec<String> {
        std::iter::once(CAMPAIGNS)
            .chain(self.lookups.iter().map(|(name, ..)| name.as_str()))
            .map(str::to_owned)
            .collect()
    }

    /// The name of the first lookup table whose columns are not those that plans were made for.
    pub(super) fn changed_lookup(&self, set: &LookupSet) -> Option<&str> {
        let same = |name: &str, schema: &SchemaRef| set.get(name).is_some_and(|table| table.schema == *schema);
        self.lookups.iter().find(|(name, schema, _)| !same(name, schema)).map(|(name, ..)| name.as_str())
    }

    /// Plans `query`; with `rows`, the row number comes out last wherever the query's shape lets it.
    pub(super) async fn prepare(&self, query: &Query, rows: bool) -> Result<Prepared> {
        let clock = Clock::unset();
        let state = self.session(&clock)?;
        let statement = EngineStatement::Statement(Box::new(Statement::Query(Box::new(query.clone()))));
        let plan = state.statement_to_plan(statement).await?;
        let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        options.verify_plan(&plan)?;
        let carried = if rows { self.carried(&plan)? } else { None };
        let carries_rows = carried.is_some();
        let plan = state.create_physical_plan(&carried.unwrap_or(plan)).await?;
        let (config, runtime) = (state.config().clone(), Arc::clone(&self.runtime));
        Ok(Prepared { plan, clock, config, runtime, carries_rows })
    }

    fn carried(&self, plan: &LogicalPlan) -> Result<Option<LogicalPlan>> {
        carry(plan, &provider_as_source(campaigns_table(Arc::clone(&self.campaigns_with_row))))
    }

    fn session(&self, clock: &Clock) -> Result<SessionState> {
        let mut config = SessionConfig::new().with_target_partitions(1).with_batch_size(BATCH_ROWS);
        let options = config.options_mut();
        options.sql_parser.collect_spans = true;
        // A dynamic filter would live on in the plan from one run to the next.
        options.optimizer.enable_dynamic_filter_pushdown = false;
        options.optimizer.enable_topk_dynamic_filter_pushdown = false;
        options.optimizer.enable_join_dynamic_filter_pushdown = false;
        options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
        let mut rules = optimizer_rules();
        rules.push(Arc::new(CountRows));
        let state = SessionStateBuilder::new_with_default_features()
            .with_config(config)
            .with_runtime_env(Arc::clone(&self.runtime))
            .with_physical_optimizer_rules(rules)
            .build();
        let context = SessionContext::new_with_state(state);
        clock.functions().into_iter().for_each(|function| context.register_udf(function));
        context.register_table(CAMPAIGNS, campaigns_table(Arc::clone(&self.campaigns)))?;
        for (name, schema, rows) in &self.lookups {
            let rows = rows.saturating_add(LOOKUP_ROWS);
            let table = BoundTable::lookup(name, Arc::clone(schema), rows);
            context.register_table(name.as_str(), Arc::new(table))?;
        }
        Ok(context.state())
    }
}

fn campaigns_table(schema: SchemaRef) -> Arc<dyn TableProvider> {
    Arc::new(BoundTable::new(CAMPAIGNS, schema, CAMPAIGN_ROWS, |context, _| {
        let batch = context.session_config().get_extension::<MicroBatch>();
        Ok(vec![batch.ok_or_else(|| exec_datafusion_err!("the run has no micro-batch"))?.0.clone()])
    }))
}

impl Prepared {
    /// All output columns, the row number included.
    pub(super) fn schema(&self) -> SchemaRef {
        self.plan.schema()
    }

    /// Runs once over `batch` (campaigns' columns, then the row number) at `now`, in nanoseconds since the epoch. The
    /// stream must be at its end, or dropped with this plan, before the plan runs again.
    pub(super) fn run(
        &mut self,
        batch: RecordBatch,
        now: i64,
        lookups: &LookupSet,
        max_rows: usize,
    ) -> Result<SendableRecordBatchStream> {
        self.clock.set(now);
        self.plan = reset_plan_states(Arc::clone(&self.plan))?;
        let config = self
            .config
            .clone()
            .with_extension(Arc::new(MicroBatch(batch)))
            .with_extension(Arc::new(lookups.clone()))
            .with_extension(Arc::new(MaxRows(max_rows)));
        let none = HashMap::new;
        let runtime = Arc::clone(&self.runtime);
        let context = TaskContext::new(
            None,
            String::new(),
            config,
            none(),
            HashMap::new(),
            HashMap::new(),
            HashMap::new(),
            runtime,
        );
        execute_stream(Arc::clone(&self.plan), Arc::new(context))
    }
}
