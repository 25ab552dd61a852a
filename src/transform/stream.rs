//! Plans kept for the next run, and the stream of one run's rows.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use arrow::array::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::sql::sqlparser::ast::Query;
use futures::{Stream, StreamExt};

use super::engine::{Engine, Prepared};
use super::parse::join_span;
use super::rows::TooManyRows;

use crate::config::DEFAULT_MAX_ROWS;
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
    max_rows: AtomicUsize,
    /// Where the query joins, for runs that grow beyond their limits.
    place: Option<(u64, u64)>,
    idle: Mutex<Vec<Prepared>>,
}

impl Plans {
    pub(super) fn new(file: PathBuf, engine: Arc<Engine>, query: Query, rows: bool, memory: usize) -> Self {
        let place = join_span(&query).map(|span| (span.start.line, span.start.column));
        let max_rows = AtomicUsize::new(DEFAULT_MAX_ROWS);
        Self { file, engine, query, rows, memory, max_rows, place, idle: Mutex::default() }
    }

    pub(super) fn limit_rows(&self, most: usize) {
        self.max_rows.store(most, Ordering::Relaxed);
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
        let rows = plan
            .run(batch, now, lookups, plans.max_rows.load(Ordering::Relaxed))
            .map_err(|error| plans.failed(error))?;
        Ok(Triggers { rows, plan: Some(plan), plans: Arc::clone(plans) })
    }

    fn failed(&self, error: DataFusionError) -> Error {
        let place = self.place.map(|(line, column)| format!(":{line}:{column}")).unwrap_or_default();
        let file = format!("{}{place}", self.file.display());
        if TooManyRows::is_root_of(&error) {
            let most = self.max_rows.load(Ordering::Relaxed);
            return Error::Exceeded {
                what: format!("{file}: one run makes more than the {most} rows it may make in a join"),
                remedy: "join by equal keys, or raise [transform] max_rows if so many are meant; the messages are kept"
                    .into(),
            };
        }
        match error.find_root() {
            DataFusionError::ResourcesExhausted(problem) => Error::Exceeded {
                what: format!("{file}: one run needs more than the {} MiB it may hold: {problem}", self.memory >> 20),
                remedy: "let the query hold less: join by equal keys, sort and aggregate less; or raise [transform] memory. \
                         The messages are kept"
                    .into(),
            },
            _ => Error::Engine { doing: format!("running {}", self.file.display()), source: error },
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
