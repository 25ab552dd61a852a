//! Plans kept for the next run, and the stream of one run's rows.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use arrow::array::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::sql::sqlparser::ast::Query;
use futures::{Stream, StreamExt};

use super::engine::{Engine, Prepared};
use crate::lookup::LookupSet;
use crate::{Error, Result};

/// Idle plans of one query. As many plans exist as runs have overlapped.
#[derive(Debug)]
pub(super) struct Plans {
    file: PathBuf,
    engine: Arc<Engine>,
    query: Query,
    rows: bool,
    memory: usize,
    idle: Mutex<Vec<Prepared>>,
}

impl Plans {
    pub(super) fn new(file: PathBuf, engine: Arc<Engine>, query: Query, rows: bool, memory: usize) -> Self {
        Self { file, engine, query, rows, memory, idle: Mutex::default() }
    }

    pub(super) fn put_back(&self, plan: Prepared) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(plan);
    }

    pub(super) async fn run(plans: &Arc<Plans>, batch: RecordBatch, now: i64, lookups: &LookupSet) -> Result<Triggers> {
        let idle = plans.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut plan = match idle {
            Some(plan) => plan,
            None => {
                let planned = plans.engine.prepare(&plans.query, plans.rows).await;
                planned.map_err(|error| plans.failed(error))?
            }
        };
        let rows = plan.run(batch, now, lookups).map_err(|error| plans.failed(error))?;
        Ok(Triggers { rows, plan: Some(plan), plans: Arc::clone(plans) })
    }

    fn failed(&self, error: DataFusionError) -> Error {
        let file = self.file.display();
        match error.find_root() {
            DataFusionError::ResourcesExhausted(problem) => Error::Halt {
                what: format!("{file}: one run needs more than the {} MiB it may hold: {problem}", self.memory >> 20),
                remedy: "let the query hold less: join by equal keys, sort and aggregate less".to_owned(),
            },
            _ => Error::Engine { doing: format!("running {file}"), source: error },
        }
    }
}

/// The output of one run, in batches of at most 8192 rows and never of none.
pub struct Triggers {
    rows: SendableRecordBatchStream,
    plan: Option<Prepared>,
    plans: Arc<Plans>,
}

impl Stream for Triggers {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<RecordBatch>>> {
        loop {
            match ready!(self.rows.poll_next_unpin(context)) {
                Some(Ok(batch)) if batch.num_rows() == 0 => {}
                Some(Ok(batch)) => return Poll::Ready(Some(Ok(batch))),
                Some(Err(error)) => {
                    // A run that broke off may have left tasks behind: its plan is not used again.
                    self.plan = None;
                    return Poll::Ready(Some(Err(self.plans.failed(error))));
                }
                None => {
                    if let Some(plan) = self.plan.take() {
                        self.plans.put_back(plan);
                    }
                    return Poll::Ready(None);
                }
            }
        }
    }
}
