//! The user's `triggers.sql`: checked once, planned once, run over every micro-batch.
//!
//! What this promises: one query and nothing but a query; `now()` is one instant for a run and never an older one; a
//! run sees its own batch and one [`LookupSet`]; output streams in batches of at most 8192 rows; a hidden number tells
//! from which message a row came, wherever the query's shape keeps that. What it does not do: it knows no column of
//! any mission, checks nothing against the sinks, and keeps nothing between runs but plans.

mod carry;
mod clock;
mod diagnose;
mod engine;
mod files;
mod outcome;
mod parse;
mod rows;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch, UInt32Array};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use chrono::{DateTime, Utc};
use datafusion::common::DataFusionError;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion::sql::sqlparser::ast::Query;

use self::engine::Engine;
pub use self::files::{SqlFile, SqlFiles};
pub use self::outcome::{FILTERED, Outcomes, PROCESSED, TRIGGERED};
use self::outcome::{Rules, Verdicts};
pub use self::parse::{TableNames, table_names};
use self::stream::Plans;
pub use self::stream::Triggers;
use crate::lookup::{LookupKeys, LookupSet, lookup_keys, scanned_lookups};
use crate::{Error, Result};

/// The hidden column that numbers the messages of a micro-batch: the last one, UInt32, never null.
pub(crate) const ROW: &str = "__row";
/// The table of a micro-batch's messages.
pub(crate) const CAMPAIGNS: &str = "campaigns";

/// A checked and planned `triggers.sql`. Shared between lanes: runs may overlap, each takes a plan of its own.
#[derive(Debug)]
pub struct Transform {
    file: PathBuf,
    engine: Arc<Engine>,
    plans: Arc<Plans>,
    verdicts: Option<Verdicts>,
    output: SchemaRef,
    carries_rows: bool,
    outcome_names: Vec<String>,
    /// As it was planned. Runs have plans of their own.
    plan: Arc<dyn ExecutionPlan>,
    places: HashMap<String, (u64, u64)>,
}

impl Transform {
    /// Checks and plans `triggers.sql` over `campaigns` (declared columns only) and the lookup tables' columns.
    /// `memory`: bytes that all runs together may hold; a query that wants more fails instead of the process.
    ///
    /// Errors: [`Error::Sql`] with file, line and column wherever they are known, and the nearest name.
    pub async fn compile(
        files: &SqlFiles,
        campaigns: SchemaRef,
        lookups: &LookupSet,
        memory: usize,
    ) -> Result<Transform> {
        let file = &files.triggers;
        if campaigns.column_with_name(ROW).is_some() {
            let (path, problem) = (&files.campaigns.path, format!("the column name {ROW} is the engine's own"));
            return Err(parse::at(path, None, &problem, "give the column another name"));
        }
        let query = parse::one_query(file)?;
        let engine = Engine::new(campaigns, lookups, memory).map_err(Error::engine("setting up the SQL engine"))?;
        let prepared = match engine.prepare(&query, true).await {
            Ok(prepared) => prepared,
            Err(error) => return Err(diagnose::diagnose(file, &query, &engine, &error).await),
        };
        let carries_rows = prepared.carries_rows;
        let output = user_columns(&prepared.schema(), carries_rows);
        check_output(file, &query, &output)?;
        let places = output.fields().iter().filter_map(|field| {
            let start = parse::output_span(&query, field.name())?.start;
            (start.line > 0).then(|| (field.name().clone(), (start.line, start.column)))
        });
        let places = places.collect();

        let rules = match carries_rows {
            true => Rules::find(file, &query, &engine).await?,
            false => Rules { names: vec![PROCESSED.to_owned()], verdict: None },
        };
        let plan = Arc::clone(&prepared.plan);
        let engine = Arc::new(engine);
        let plans = |query, rows| Arc::new(Plans::new(file.path.clone(), Arc::clone(&engine), query, rows, memory));
        let verdicts = rules.verdict.map(|(query, plan)| Verdicts::new(plans(query, false), plan));
        let plans = plans(query, true);
        plans.put_back(prepared);
        let outcome_names = rules.names;
        let file = file.path.clone();
        Ok(Transform { file, engine, plans, verdicts, output, carries_rows, outcome_names, plan, places })
    }

    /// The columns that lookup tables are joined by: load them for these.
    pub fn lookup_keys(&self) -> LookupKeys {
        lookup_keys(&self.plan)
    }

    /// The lookup tables that are read whole in every run, by name.
    pub fn scanned_lookups(&self) -> BTreeSet<String> {
        scanned_lookups(&self.plan)
    }

    /// The physical plan, as `EXPLAIN` would show it: one operator a line. `LookupJoinExec` is a join by index, the
    /// `BoundScan` of a lookup table reads all of it.
    pub fn explain(&self) -> String {
        displayable(self.plan.as_ref()).indent(false).to_string()
    }

    /// How many rows any join of the query may make in one run; beyond that the run fails with [`Error::Exceeded`].
    pub fn limit_rows(&self, most: usize) {
        self.plans.limit_rows(most);
    }

    /// The user's columns, in order: what both sinks get.
    pub fn output_schema(&self) -> SchemaRef {
        Arc::clone(&self.output)
    }

    /// Line and column of an output column in `triggers.sql`.
    pub fn place(&self, column: &str) -> Option<(u64, u64)> {
        self.places.get(column).copied()
    }

    /// Whether output batches have [`ROW`] as their last column. Where not, messages are only `processed`.
    pub fn carries_rows(&self) -> bool {
        self.carries_rows
    }

    /// Every outcome that a message which was decoded can have, in a stable order.
    pub fn outcome_names(&self) -> &[String] {
        &self.outcome_names
    }

    /// Runs the query over one micro-batch: `batch` has campaigns' columns and [`ROW`] last, `now` is the value of
    /// `now()` in every place. The output streams; what is not taken is not computed.
    pub async fn run(&self, batch: RecordBatch, now: DateTime<Utc>, lookups: &LookupSet) -> Result<Triggers> {
        if let Some(name) = self.engine.changed_lookup(lookups) {
            return Err(Error::Halt {
                what: format!("{}: the columns of the lookup table {name} have changed", self.file.display()),
                remedy: "restart the job, so that triggers.sql is checked against them".to_owned(),
            });
        }
        Plans::run(&self.plans, batch, self.nanos(now)?, lookups).await
    }

    /// Marks the messages that `output`, a batch of [`Transform::run`], has rows of; by message number. Does nothing
    /// where rows are not carried.
    pub fn mark_triggered(&self, output: &RecordBatch, triggered: &mut [bool]) {
        let Some(rows) = self.carries_rows.then(|| row_numbers(output)).flatten() else { return };
        for &row in rows.values() {
            if let Some(mark) = triggered.get_mut(row as usize) {
                *mark = true;
            }
        }
    }

    /// Counts what became of every message in `batch`, the batch and the time of the run. `triggered`, by message
    /// number, says which gave rows. The counts add up to the batch's rows.
    pub async fn outcomes(&self, batch: &RecordBatch, now: DateTime<Utc>, triggered: &[bool]) -> Result<Outcomes> {
        let mut counts = vec![0u64; self.outcome_names.len()];
        let (rows, last) = (row_numbers(batch).filter(|_| self.carries_rows), counts.len() - 1);
        if let Some(rows) = rows {
            let is_silent = |row: &u32| !triggered.get(*row as usize).copied().unwrap_or(false);
            let silent = BooleanArray::from_iter(rows.values().iter().map(|row| Some(is_silent(row))));
            let rest = silent.true_count() as u64;
            counts[0] = batch.num_rows() as u64 - rest;
            match &self.verdicts {
                Some(verdicts) if rest > 0 => verdicts.count(batch, &silent, self.nanos(now)?, &mut counts).await?,
                _ => counts[last] += rest,
            }
        } else {
            counts[last] = batch.num_rows() as u64;
        }
        Ok(Outcomes { counts: self.outcome_names.iter().cloned().zip(counts).collect() })
    }

    fn nanos(&self, now: DateTime<Utc>) -> Result<i64> {
        now.timestamp_nanos_opt().ok_or_else(|| Error::Halt {
            what: format!("the clock says {now}, which nanoseconds in 64 bits cannot express"),
            remedy: "set the machine's clock".to_owned(),
        })
    }
}

/// The words of an error that arose from the values in the batch (a cast, an overflow, a division by zero, a function that
/// refuses its argument) and may not with others; `None` for every other error. Whether it is one message's fault, only a
/// run without that message tells.
pub fn failed_on_data(error: &Error) -> Option<String> {
    let Error::Engine { source, .. } = error else { return None };
    match source.find_root() {
        DataFusionError::Execution(_) => Some(error.to_string()),
        DataFusionError::ArrowError(cause, _) => match cause.as_ref() {
            ArrowError::CastError(_)
            | ArrowError::ParseError(_)
            | ArrowError::ComputeError(_)
            | ArrowError::InvalidArgumentError(_)
            | ArrowError::ArithmeticOverflow(_)
            | ArrowError::OffsetOverflowError(_)
            | ArrowError::DivideByZero => Some(error.to_string()),
            _ => None,
        },
        _ => None,
    }
}

fn row_numbers(batch: &RecordBatch) -> Option<&UInt32Array> {
    batch.columns().last()?.as_any().downcast_ref::<UInt32Array>()
}

fn user_columns(schema: &SchemaRef, carries_rows: bool) -> SchemaRef {
    let fields = schema.fields();
    Arc::new(Schema::new(fields[..fields.len() - usize::from(carries_rows)].to_vec()))
}

fn check_output(file: &SqlFile, query: &Query, output: &SchemaRef) -> Result<()> {
    parse::check_names(&file.path, query)?;
    let mut seen = HashSet::new();
    for field in output.fields() {
        if !seen.insert(field.name()) {
            let problem = format!("two output columns are named {}", field.name());
            let remedy = "list the columns one by one, or give one of them another name with AS";
            return Err(parse::at(&file.path, parse::output_span(query, field.name()), &problem, remedy));
        }
        if field.name() == ROW {
            let problem = format!("the column name {ROW} is the engine's own");
            return Err(parse::at(&file.path, parse::output_span(query, ROW), &problem, "give it another name"));
        }
    }
    Ok(())
}
