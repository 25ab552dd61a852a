//! One commit: the micro-batches of one cycle, made durable together. One Postgres transaction, then one of Kafka.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};

use super::engine::Engine;
use super::output::{Output, PartResult, Work};
use super::refusal;
use super::stream::{Ready, Transaction};
use crate::dead_letter::{Reject, Stage, to_record_batch};
use crate::encode::chunk;
use crate::error::{Error, Result};
use crate::kafka;
use crate::ledger::claim::{Held, Tenure, offsets_of};
use crate::ledger::replay;
use crate::ledger::store::{PART_FORMAT, PartFacts, PartHead, Step};
use crate::lookup::LookupSet;
use crate::sink::postgres::Written;
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
    for batch in &cycle.batches {
        let expected = tenure.held.get(&batch.partition).map(|held| held.read_to);
        if expected != Some(batch.range.from) {
            let what =
                format!("a batch of partition {} covers {}, expected {expected:?}", batch.partition, batch.range);
            return Err(Error::Claim { what });
        }
    }
    let decoding = Instant::now();
    let mut works = engine.decode(cycle.batches)?;
    metrics::batch_seconds(BatchStage::Decode, decoding.elapsed());
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
    metrics::batch_seconds(BatchStage::Total, began.elapsed());
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
    let transaction = Transaction::new(engine, tenure, works);
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
    transaction.commit(tenure, works, now, ready, &results).await?;
    Ok(Attempt::Done(results))
}

impl Transaction {
    /// Postgres, then Kafka. Past the first COMMIT there is no way back: what fails after it is sent again from the ledger
    /// by the next claim.
    async fn commit(
        &self,
        tenure: &mut Tenure,
        works: &[Work],
        now: DateTime<Utc>,
        ready: Ready,
        results: &[PartResult],
    ) -> Result<()> {
        let (steps, parts) = self.store(tenure, works, now, &ready.written, results).await?;
        tenure.ledger.advance_and_commit(&tenure.postgres, &steps).await?;
        crate::step!("S7");
        tenure.confirmed.clear();
        tenure.advanced(&steps);
        if ready.late {
            tracing::warn!("Kafka was too slow for one transaction; the batch is sent again from the ledger");
            self.abort_kafka().await?;
            replay::emit(
                &tenure.ledger,
                &tenure.postgres,
                self.producer.clone(),
                &parts,
                offsets_of(&steps),
                tenure.group.clone(),
            )
            .await?;
        } else {
            let producer = self.producer.clone();
            kafka::blocking(move || {
                crate::step!("S9");
                producer.commit()
            })
            .await?;
        }
        crate::step!("S10");
        tenure.confirmed = parts.iter().map(|part| (part.commit_id, part.partition)).collect();
        tenure.take_turns();
        metrics::commit();
        let rows = ready.written.iter().map(|written| written.rows).sum::<i64>() as u64;
        metrics::rows(Server::Postgres, rows);
        metrics::rows(Server::Kafka, rows);
        Ok(())
    }

    /// Writes the parts' heads and the letters that fit nowhere else; says how far each partition goes.
    async fn store(
        &self,
        tenure: &Tenure,
        works: &[Work],
        now: DateTime<Utc>,
        written: &[Written],
        results: &[PartResult],
    ) -> Result<(Vec<Step>, Vec<PartHead>)> {
        let (ledger, postgres) = (&tenure.ledger, &tenure.postgres);
        let mut steps = Vec::new();
        let mut parts = Vec::new();
        for ((work, written), result) in works.iter().zip(written).zip(results) {
            let Some(held) = tenure.held.get(&work.partition) else { continue };
            let has_output = written.rows + written.letters > 0;
            if has_output {
                parts.push((self.head(work, held, written), self.facts(now, result)));
            }
            for (offset, letter, reject) in &result.over_size {
                let body = chunk::pack(&to_record_batch(std::slice::from_ref(letter))?)?;
                let facts = [&*self.letters_to.topic, reject.stage.as_str(), &reject.path, &reject.reason];
                ledger.insert_letter(postgres, work.partition, *offset, facts, &body).await?;
            }
            steps.push(Step {
                partition: work.partition,
                epoch: held.epoch,
                from: held.next_offset,
                to: work.range.to,
                has_output,
                metadata: ledger.metadata(held.epoch, self.id),
            });
        }
        // Sent together: nobody waits for one before the next.
        let stored = parts.iter().map(|(part, facts)| ledger.insert_part(postgres, part, facts));
        futures::future::try_join_all(stored).await?;
        steps.sort_by_key(|step| step.partition);
        Ok((steps, parts.into_iter().map(|(part, _)| part).collect()))
    }

    fn head(&self, work: &Work, held: &Held, written: &Written) -> PartHead {
        PartHead {
            commit_id: self.id,
            partition: work.partition,
            from: held.next_offset,
            to: work.range.to,
            format: PART_FORMAT,
            previous_metadata: held.metadata.clone(),
            output_topic: self.output_to.topic.to_string(),
            output_key: self.output_key.clone(),
            letter_topic: self.letters_to.topic.to_string(),
            rows: written.rows,
            letters: written.letters,
        }
    }

    fn facts(&self, now: DateTime<Utc>, result: &PartResult) -> PartFacts {
        PartFacts {
            outcomes: outcomes_as_json(result),
            triggered_at: SystemTime::from(now),
            sql_hash: self.sql_hash.clone(),
            sink_table: self.copy.table.clone(),
        }
    }
}

fn outcomes_as_json(result: &PartResult) -> serde_json::Value {
    result.outcomes.counts.iter().filter(|(_, count)| *count > 0).cloned().collect()
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
