//! One commit: the micro-batches of one cycle, made durable together. One Postgres transaction, then one of Kafka.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::engine::Engine;
use super::output::{Output, PartResult};
use super::refusal;
use super::stream::{Ready, Transaction};
use crate::dead_letter::{Reject, Stage};
use crate::decode::Work;
use crate::error::{Error, Result};
use crate::kafka;
use crate::ledger::claim::{Tenure, offsets_of};
use crate::ledger::replay;
use crate::lookup::LookupSet;
use crate::source::Cycle;
use crate::telemetry::metrics::{self, BatchStage, Server};

/// Makes a cycle durable, whatever its messages hold: a message that a sink refuses becomes a dead letter and the rest is
/// done again without it.
///
/// # Errors
/// Those of the servers, after which the tenure is in doubt and has to be claimed anew; [`Error::Halt`].
pub async fn commit(engine: &mut Engine, tenure: &mut Tenure, cycle: Cycle, lookups: &LookupSet) -> Result<()> {
    let began = Instant::now();
    let group =
        cycle.group.ok_or_else(|| Error::Claim { what: "the group moved on while a batch was assembled".into() })?;
    tenure.group = Arc::new(group);
    metrics::batch_seconds(BatchStage::Decode, cycle.decoding);
    let mut works = cycle.works;
    for work in &works {
        let expected = tenure.held.get(&work.partition).map(|held| held.read_to);
        if expected != Some(work.range.from) {
            let what = format!("a batch of partition {} covers {}, expected {expected:?}", work.partition, work.range);
            return Err(Error::Claim { what });
        }
    }
    // One instant for the whole commit, kept when it is done again.
    let now = Utc::now();
    // How many messages to take at once, and how many have been too many.
    let (mut most, mut too_many) = (usize::MAX, usize::MAX);
    while !works.is_empty() {
        // The usual way copies nothing.
        let (mut first, rest) = match most {
            usize::MAX => (std::mem::take(&mut works), Vec::new()),
            most => Work::split_all(&works, most)?,
        };
        let messages: usize = first.iter().map(Work::messages).sum();
        match commit_works(engine, tenure, &mut first, now, lookups).await {
            Err(Error::Exceeded { what, .. }) if messages > 1 => {
                // One alone tells whether the query is to blame or their number; from there it grows to what goes.
                tracing::warn!(messages, "{what}; taking fewer messages at once");
                too_many = most;
                most = if most == usize::MAX { 1 } else { (most / 2).max(1) };
                if works.is_empty() {
                    works = first;
                }
            }
            Err(error) => return Err(error),
            Ok(()) => {
                works = rest;
                most = Some(most.saturating_mul(2)).filter(|more| *more < too_many).unwrap_or(most);
            }
        }
    }
    metrics::batch_seconds(BatchStage::Total, cycle.decoding + began.elapsed());
    Ok(())
}

async fn commit_works(
    engine: &mut Engine,
    tenure: &mut Tenure,
    works: &mut [Work],
    now: DateTime<Utc>,
    lookups: &LookupSet,
) -> Result<()> {
    loop {
        let refused = match attempt(engine, tenure, works, now, lookups).await? {
            Attempt::Done(results) => {
                account(works, &results);
                return Ok(());
            }
            Attempt::Refused(refused) => refused,
            Attempt::RowRefused(stage, why) => {
                let found = refusal::find(engine, &tenure.postgres, works, now, lookups, stage, &why).await?;
                if found.is_empty() {
                    return Err(Error::Halt {
                        what: format!("a batch was refused, but none of its messages alone: {why}"),
                        remedy: "look at constraints and triggers of the sink table, and at the SQL".into(),
                    });
                }
                found
            }
        };
        for (part, work) in works.iter_mut().enumerate() {
            work.exclude(refused.iter().filter(|(of, _)| *of == part).map(|(_, reject)| reject.clone()))?;
        }
    }
}

enum Attempt {
    Done(Vec<PartResult>),
    /// These messages have to go; both transactions were aborted.
    Refused(Vec<(usize, Reject)>),
    /// Some message's row is refused, by Postgres or by the SQL itself; which one has to be found out.
    RowRefused(Stage, String),
}

async fn attempt(
    engine: &mut Engine,
    tenure: &mut Tenure,
    works: &[Work],
    now: DateTime<Utc>,
    lookups: &LookupSet,
) -> Result<Attempt> {
    let transaction = Transaction::new(engine, tenure);
    let columns = engine.columns.clone();
    let mut output = Output::new(engine, works, now, lookups);
    let first = match output.next().await {
        Ok(first) => first,
        // Nothing was begun yet that would have to be aborted.
        Err(error) => {
            return refusal::of(&error, &columns).map(|(stage, why)| Attempt::RowRefused(stage, why)).ok_or(error);
        }
    };
    crate::step!("S1");
    let over_size = output.results.iter().any(|result| !result.over_size.is_empty());
    if first.is_none() && !over_size {
        let Output { refused, results, transform_seconds, .. } = output;
        metrics::batch_seconds(BatchStage::Transform, Duration::from_secs_f64(transform_seconds));
        if !refused.is_empty() {
            return Ok(Attempt::Refused(refused));
        }
        tell(engine, works, &results);
        for work in works {
            if let Some(held) = tenure.held.get_mut(&work.partition) {
                held.read_to = work.range.to;
            }
        }
        return Ok(Attempt::Done(results));
    }
    let streamed = transaction.stream(tenure, works, &mut output, first).await;
    metrics::batch_seconds(BatchStage::Transform, Duration::from_secs_f64(output.transform_seconds));
    let Output { refused, results, .. } = output;
    let ready = match streamed {
        Ok(ready) if refused.is_empty() && ready.too_large.is_empty() => ready,
        Ok(ready) => {
            transaction.abort(tenure).await?;
            return Ok(Attempt::Refused(refused.into_iter().chain(ready.too_large).collect()));
        }
        Err(error) => {
            let why = refusal::of(&error, &columns);
            if why.is_none() && !matches!(error, Error::Exceeded { .. }) {
                return Err(error);
            }
            transaction.abort(tenure).await?;
            let Some((stage, why)) = why else { return Err(error) };
            // Those that are known already go first; the rest shows when it is done again.
            return Ok(if refused.is_empty() { Attempt::RowRefused(stage, why) } else { Attempt::Refused(refused) });
        }
    };
    tell(engine, works, &results);
    transaction.commit(tenure, ready).await?;
    Ok(Attempt::Done(results))
}

impl Transaction {
    /// Postgres, then Kafka. Past the first COMMIT there is no way back: what fails after it is sent again from the ledger
    /// by the next claim.
    async fn commit(&self, tenure: &mut Tenure, ready: Ready) -> Result<()> {
        let Ready { steps, parts, rows, late, .. } = ready;
        let offsets = offsets_of(&steps);
        let began = Instant::now();
        tenure.ledger.advance_and_commit(&tenure.postgres, &steps).await?;
        crate::step!("S7");
        let committed = Instant::now();
        metrics::batch_seconds(BatchStage::PostgresCommit, committed - began);
        tenure.confirmed.clear();
        tenure.advanced(&steps);
        if late {
            tracing::warn!("Kafka was too slow for one transaction; the batch is sent again from the ledger");
            self.abort_kafka().await?;
            let (ledger, producer, group) = (&tenure.ledger, self.producer.clone(), tenure.group.clone());
            replay::emit(ledger, &tenure.postgres, producer, &parts, offsets, group).await?;
        } else {
            let (producer, topic, group) = (self.producer.clone(), tenure.ledger.topic.clone(), tenure.group.clone());
            kafka::blocking(move || {
                producer.send_offsets(&topic, &offsets, group.get())?;
                crate::step!("S8");
                crate::step!("S9");
                producer.commit()
            })
            .await?;
        }
        crate::step!("S10");
        metrics::batch_seconds(BatchStage::KafkaCommit, committed.elapsed());
        tenure.confirmed = parts.iter().map(|part| (part.commit_id, part.partition)).collect();
        tenure.take_turns();
        metrics::commit();
        metrics::rows(Server::Postgres, rows);
        metrics::rows(Server::Kafka, rows);
        Ok(())
    }
}

/// Says what becomes of each micro-batch before anything of it is durable: no offset is passed in silence.
fn tell(engine: &Engine, works: &[Work], results: &[PartResult]) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    for (work, result) in works.iter().zip(results) {
        let place = format!("{}[{}]", engine.source_topic, work.partition);
        let (from, to) = (work.range.from, work.range.to);
        let (outcomes, dead_letters) = (result.outcomes_as_json(), work.rejects.len());
        tracing::debug!(place, from, to, dead_letters, %outcomes, "micro-batch counted");
    }
}

/// Every message has one outcome: what came in is the sum of what is counted here.
fn account(works: &[Work], results: &[PartResult]) {
    for (work, result) in works.iter().zip(results) {
        metrics::messages_in(work.messages() as u64);
        for (name, count) in &result.outcomes.counts {
            metrics::messages(name, *count);
        }
        metrics::messages("dead_letter", work.rejects.len() as u64);
        for reject in &work.rejects {
            metrics::dead_letters(reject.stage, 1);
        }
    }
}
