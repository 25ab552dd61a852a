//! Finds the messages of which Postgres refuses a row or on which the SQL fails: by bisection over messages, in a
//! transaction that is rolled back.
//!
//! Messages that pass stay in the trial, so that two which only conflict with each other are told apart as well: the
//! first of them stands, the second is refused.

use chrono::{DateTime, Utc};

use super::engine::Engine;
use super::output::{Output, untraceable};
use crate::dead_letter::{Reject, Stage};
use crate::decode::{Work, row_numbers};
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

/// The refused messages of all parts, each with the words of whoever refused it; `stage` and `why` are what began the search.
/// About 2 k log2(n / k) trials for k of n messages.
///
/// # Errors
/// [`Error::Halt`] where the SQL fails without any message, or rows cannot be traced to messages.
pub async fn find(
    engine: &mut Engine,
    postgres: &Connection,
    works: &[Work],
    now: DateTime<Utc>,
    lookups: &LookupSet,
    stage: Stage,
    why: &str,
) -> Result<Vec<(usize, Reject)>> {
    if !engine.transform.carries_rows() {
        return Err(if stage == Stage::Transform { fails_as_a_whole(why) } else { untraceable(why) });
    }
    if stage == Stage::Transform {
        fails_without_messages(engine, works, now, lookups).await?;
    }
    let doing = || Error::postgres("looking for the messages whose rows Postgres refuses");
    postgres.batch_execute("BEGIN").await.map_err(doing())?;
    let found = bisect(engine, postgres, works, now, lookups).await;
    // Whatever was found: the next transaction begins on the same connection.
    let ended = postgres.batch_execute("ROLLBACK").await.map_err(doing());
    let found = found?;
    ended?;
    Ok(found)
}

/// In an open transaction, which is as it was afterwards unless there is an error.
async fn bisect(
    engine: &mut Engine,
    postgres: &Connection,
    works: &[Work],
    now: DateTime<Utc>,
    lookups: &LookupSet,
) -> Result<Vec<(usize, Reject)>> {
    let doing = || Error::postgres("looking for the messages whose rows Postgres refuses");
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
    Ok(refused)
}

/// A query that fails on nothing at all is not failing on a message: the search would make dead letters of all of them.
async fn fails_without_messages(
    engine: &mut Engine,
    works: &[Work],
    now: DateTime<Utc>,
    lookups: &LookupSet,
) -> Result<()> {
    let Some(work) = works.first() else { return Ok(()) };
    let nothing = [Work { batch: work.batch.slice(0, 0), rejects: Vec::new(), ..work.clone() }];
    let mut output = Output::new(engine, &nothing, now, lookups);
    loop {
        match output.next().await {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(error) => {
                return Err(Error::Halt {
                    what: format!("the SQL fails whatever the messages hold: {error}"),
                    remedy: "correct the SQL, or the lookup tables that it reads; the messages are kept".into(),
                });
            }
        }
    }
}

fn fails_as_a_whole(why: &str) -> Error {
    Error::Halt {
        what: format!("the SQL fails on what some message holds, and this SELECT does not tell on which: {why}"),
        remedy: "aggregates, window functions, DISTINCT and UNION lose the message behind a row, so it cannot become a dead \
                 letter: use TRY_CAST, NULLIF or CASE where values may be bad. The messages are kept"
            .into(),
    }
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
        let statement = postgres.prepared(&plan.statement).await.map_err(Error::postgres("preparing a trial COPY"))?;
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
