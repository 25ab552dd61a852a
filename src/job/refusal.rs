//! Finds the messages of which Postgres refuses a row or on which the SQL fails: by bisection over messages, in a
//! transaction that is rolled back.
//!
//! Messages that pass stay in the trial, so that two which only conflict with each other are told apart as well: the
//! first of them stands, the second is refused.

use chrono::{DateTime, Utc};

use super::engine::Engine;
use super::output::{Output, Work, row_numbers, untraceable};
use crate::dead_letter::{Reject, Stage};
use crate::error::{Error, Result};
use crate::lookup::LookupSet;
use crate::postgres::Connection;
use crate::sink::Piece;
use crate::sink::postgres::{Copy, refusal as refused_by_postgres};
use crate::transform::failed_on_data;

/// Whether an error is about what the rows hold, and not about servers or the job: where it arose, and its words.
pub fn of(error: &Error, columns: &[String]) -> Option<(Stage, String)> {
    let by_postgres = refused_by_postgres(error, columns).map(|why| (Stage::Postgres, why));
    by_postgres.or_else(|| failed_on_data(error).map(|why| (Stage::Transform, why)))
}

/// The refused messages of all parts, each with the words of whoever refused it. About 2 k log2(n / k) trials for k of n messages.
///
/// # Errors
/// [`Error::Halt`] where no single message is to blame, or rows cannot be traced to messages.
pub async fn find(
    engine: &mut Engine,
    postgres: &Connection,
    works: &[Work],
    now: DateTime<Utc>,
    lookups: &LookupSet,
    why: &str,
) -> Result<Vec<(usize, Reject)>> {
    if !engine.transform.carries_rows() {
        return Err(untraceable(why));
    }
    let doing = || Error::postgres("looking for the messages whose rows Postgres refuses");
    postgres.batch_execute("BEGIN").await.map_err(doing())?;
    let mut refused = Vec::new();
    for (part, work) in works.iter().enumerate() {
        let mut stack = vec![(0, work.batch.num_rows())];
        while let Some((start, len)) = stack.pop() {
            if len == 0 {
                continue;
            }
            postgres.batch_execute("SAVEPOINT trial").await.map_err(doing())?;
            let Some((stage, reason)) = try_rows(engine, postgres, work, (start, len), now, lookups).await? else {
                postgres.batch_execute("RELEASE SAVEPOINT trial").await.map_err(doing())?;
                continue;
            };
            postgres.batch_execute("ROLLBACK TO SAVEPOINT trial; RELEASE SAVEPOINT trial").await.map_err(doing())?;
            if len == 1 {
                let row = row_numbers(&work.batch)[start];
                refused.push((part, Reject { row, stage, path: "$".into(), reason }));
            } else {
                let half = len / 2;
                stack.push((start + half, len - half));
                stack.push((start, half));
            }
        }
    }
    postgres.batch_execute("ROLLBACK").await.map_err(doing())?;
    Ok(refused)
}

/// Makes and copies the rows of some messages. `Some` where they are refused.
async fn try_rows(
    engine: &mut Engine,
    postgres: &Connection,
    work: &Work,
    (start, len): (usize, usize),
    now: DateTime<Utc>,
    lookups: &LookupSet,
) -> Result<Option<(Stage, String)>> {
    let plan = engine.copy.clone();
    let columns = engine.columns.clone();
    let some = Work {
        partition: work.partition,
        range: work.range,
        messages: work.messages.clone(),
        batch: work.batch.slice(start, len),
        rejects: Vec::new(),
    };
    let works = [some];
    let mut output = Output::new(engine, &works, now, lookups);
    let trial = async {
        let statement = postgres.prepare(&plan.statement).await.map_err(Error::postgres("preparing a trial COPY"))?;
        let mut copy = Copy::begin(postgres, &statement, &plan).await?;
        while let Some(piece) = output.next().await? {
            if let Piece::Rows { batch, .. } = piece {
                copy.rows(&batch).await?;
            }
        }
        copy.finish().await?;
        postgres.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await.map_err(Error::postgres("checking constraints"))
    };
    match trial.await {
        Ok(()) => Ok(None),
        Err(error) => of(&error, &columns).map(Some).ok_or(error),
    }
}
