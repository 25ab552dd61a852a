//! One commit: the micro-batches of one cycle, made durable together. One Postgres transaction, then one of Kafka.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::engine::Engine;
use super::output::{Output, PartResult, Work, untraceable};
use super::refusal;
use crate::dead_letter::{Reject, Stage, to_record_batch};
use crate::encode::chunk;
use crate::error::{Error, Result};
use crate::kafka::{self, TRANSACTION_TIMEOUT};
use crate::ledger::claim::{Tenure, offsets_of};
use crate::ledger::replay;
use crate::ledger::store::{PART_FORMAT, PartFacts, PartHead, Step};
use crate::lookup::LookupSet;
use crate::sink::Piece;
use crate::sink::kafka::{Destination, Producer, produce_letter};
use crate::sink::postgres::{Writer, Written, refusal as refused_by_postgres};
use crate::sink::rows::RowProducer;
use crate::source::Cycle;
use crate::telemetry::metrics::{self, BatchStage, Server};

/// Pieces on their way to each sink: one being written, one waiting. More would only hold memory.
const AHEAD: usize = 2;

/// A Kafka transaction that is not ready by then is given up, and the rows are sent from the ledger in one of its own.
const KAFKA_PATIENCE: Duration = Duration::from_secs(TRANSACTION_TIMEOUT.as_secs() / 2);

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
    loop {
        let refused = match attempt(engine, tenure, &works, now, lookups).await? {
            Attempt::Done(results) => {
                account(&works, &results);
                metrics::batch_seconds(BatchStage::Total, began.elapsed());
                return Ok(());
            }
            Attempt::Refused(refused) => refused,
            Attempt::RefusedByPostgres(why) => {
                let found = refusal::find(engine, &tenure.postgres, &works, now, lookups).await?;
                if found.is_empty() {
                    return Err(Error::Halt {
                        what: format!("Postgres refused a batch, but none of its messages alone: {why}"),
                        remedy: "look at constraints and triggers of the sink table".into(),
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
    RefusedByPostgres(String),
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
    let first = output.next().await?;
    crate::step!("S1");
    let over_size = output.results.iter().any(|result| !result.over_size.is_empty());
    if first.is_none() && !over_size {
        let Output { refused, results, .. } = output;
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
            let Some(why) = refused_by_postgres(&error, &columns) else { return Err(error) };
            transaction.abort(tenure).await?;
            return Ok(Attempt::RefusedByPostgres(why));
        }
    };
    transaction.commit(tenure, works, now, ready, &results).await?;
    Ok(Attempt::Done(results))
}

/// The two transactions of one attempt and what they are made of.
struct Transaction {
    id: Uuid,
    began: Instant,
    producer: Arc<Producer>,
    /// Set when the Kafka side shall stop without waiting for acknowledgements.
    given_up: Arc<AtomicBool>,
    output_to: Destination,
    output_key: Option<String>,
    letters_to: Destination,
    copy: crate::sink::postgres::CopyPlan,
    sql_hash: String,
}

/// Both sinks have taken everything; nothing is committed.
struct Ready {
    written: Vec<Written>,
    too_large: Vec<(usize, Reject)>,
    /// Kafka was too slow: its transaction is to be aborted and the rows sent from the ledger.
    late: bool,
}

impl Transaction {
    fn new(engine: &Engine, tenure: &Tenure) -> Transaction {
        Transaction {
            id: Uuid::new_v4(),
            began: Instant::now(),
            producer: tenure.producer(),
            given_up: Arc::new(AtomicBool::new(false)),
            output_to: engine.output_to.clone(),
            output_key: engine.output_key.clone(),
            letters_to: engine.letters_to.clone(),
            copy: engine.copy.clone(),
            sql_hash: engine.sql_hash.clone(),
        }
    }

    /// Opens both transactions and lets the pieces flow into both sinks, as fast as the slower one takes them.
    async fn stream(
        &self,
        tenure: &Tenure,
        works: &[Work],
        output: &mut Output<'_>,
        first: Option<Piece>,
    ) -> Result<Ready> {
        let partitions: Vec<i32> = works.iter().map(|work| work.partition).collect();
        tenure.postgres.batch_execute("BEGIN").await.map_err(Error::postgres("beginning a Postgres transaction"))?;
        let (to_postgres, postgres_inbox) = mpsc::channel(AHEAD);
        let (to_kafka, kafka_inbox) = mpsc::channel(AHEAD);
        let writer = Writer::new(&tenure.postgres, &tenure.ledger, &self.copy, self.id, &partitions).await?;
        let kafka_side = tokio::spawn(kafka::blocking(self.kafka_side(kafka_inbox)?));
        let pump = self.pump(output, first, to_postgres, to_kafka);
        let flowed = tokio::try_join!(pump, writer.write(postgres_inbox));
        if flowed.is_err() {
            self.given_up.store(true, Ordering::SeqCst);
        }
        // Also after a failure: the transaction may be aborted only once nothing produces into it any more.
        let produced = kafka_side.await.unwrap_or_else(|failure| {
            Err(Error::Claim { what: format!("the Kafka side of a commit ended abnormally: {failure}") })
        });
        let (late, (written, seconds)) = flowed?;
        metrics::batch_seconds(BatchStage::Postgres, Duration::from_secs_f64(seconds));
        crate::step!("S5");
        Ok(Ready { written, too_large: produced?, late: late || self.began.elapsed() > KAFKA_PATIENCE })
    }

    /// Sends each piece to both sinks. True if Kafka was given up for being late.
    async fn pump(
        &self,
        output: &mut Output<'_>,
        first: Option<Piece>,
        to_postgres: mpsc::Sender<Piece>,
        to_kafka: mpsc::Sender<Piece>,
    ) -> Result<bool> {
        let deadline = tokio::time::Instant::from_std(self.began + KAFKA_PATIENCE);
        let mut to_kafka = Some(to_kafka);
        let mut next = first;
        while let Some(piece) = next {
            if let Some(kafka) = &to_kafka {
                // A closed channel is an error on the other side, which is the one that counts.
                match tokio::time::timeout_at(deadline, kafka.send(piece.clone())).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Ok(false),
                    Err(_) => {
                        self.given_up.store(true, Ordering::SeqCst);
                        to_kafka = None;
                    }
                }
            }
            if to_postgres.send(piece).await.is_err() {
                return Ok(to_kafka.is_none());
            }
            next = output.next().await?;
        }
        Ok(to_kafka.is_none())
    }

    /// The Kafka side, for a thread of its own: encodes, produces, and waits for the acknowledgements. Returns the messages
    /// with a row that is too large for the topic.
    fn kafka_side(
        &self,
        mut inbox: mpsc::Receiver<Piece>,
    ) -> Result<impl FnOnce() -> Result<Vec<(usize, Reject)>> + Send + use<>> {
        let producer = self.producer.clone();
        let given_up = self.given_up.clone();
        let letters_to = self.letters_to.clone();
        let mut rows = RowProducer::new(&self.copy.schema, self.output_to.clone(), self.output_key.as_deref())?;
        let limit = self.output_to.max_record_bytes;
        Ok(move || {
            producer.begin()?;
            crate::step!("S2");
            let began = Instant::now();
            let mut too_large: BTreeMap<(usize, u32), ()> = BTreeMap::new();
            while let Some(piece) = inbox.blocking_recv() {
                if given_up.load(Ordering::SeqCst) {
                    return Ok(Vec::new());
                }
                match piece {
                    Piece::Letters { letters, .. } => {
                        for letter in letters.iter() {
                            produce_letter(&producer, &letters_to.topic, letter)?;
                        }
                    }
                    Piece::Rows { part, batch, messages } => {
                        for row in rows.produce(&producer, &batch)? {
                            let messages =
                                messages.as_ref().ok_or_else(|| untraceable("it is too large for the output topic"))?;
                            too_large.insert((part, messages[row]), ());
                        }
                    }
                }
            }
            if too_large.is_empty() && !given_up.load(Ordering::SeqCst) {
                producer.acknowledged(KAFKA_PATIENCE)?;
                metrics::batch_seconds(BatchStage::Kafka, began.elapsed());
            }
            let reason = format!("the record is larger than the output topic's max.message.bytes ({limit})");
            let refuse =
                |(part, row)| (part, Reject { row, stage: Stage::Kafka, path: "$".into(), reason: reason.clone() });
            Ok(too_large.into_keys().map(refuse).collect())
        })
    }

    /// Ends both transactions without a trace; nothing of either was committed.
    async fn abort(&self, tenure: &Tenure) -> Result<()> {
        tenure.postgres.batch_execute("ROLLBACK").await.map_err(Error::postgres("rolling back"))?;
        self.abort_kafka().await
    }

    async fn abort_kafka(&self) -> Result<()> {
        let producer = self.producer.clone();
        kafka::blocking(move || producer.abort()).await
    }

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
        tenure.ledger.delete_parts(&tenure.postgres, &tenure.confirmed).await?;
        tenure.ledger.advance_and_commit(&tenure.postgres, &steps).await?;
        crate::step!("S7");
        tenure.confirmed.clear();
        tenure.advanced(&steps);
        let offsets = offsets_of(&steps);
        if ready.late {
            tracing::warn!("Kafka was too slow for one transaction; the batch is sent again from the ledger");
            self.abort_kafka().await?;
            replay::emit(
                &tenure.ledger,
                &tenure.postgres,
                self.producer.clone(),
                &parts,
                offsets,
                tenure.group.clone(),
            )
            .await?;
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
        let mut steps = Vec::new();
        let mut parts = Vec::new();
        for ((work, written), result) in works.iter().zip(written).zip(results) {
            let Some(held) = tenure.held.get(&work.partition) else { continue };
            let has_output = written.rows + written.letters > 0;
            let metadata = tenure.ledger.metadata(held.epoch, self.id);
            if has_output {
                let part = PartHead {
                    commit_id: self.id,
                    partition: work.partition,
                    from: held.next_offset,
                    to: work.range.to,
                    format: PART_FORMAT,
                    previous_metadata: held.metadata.clone(),
                    output_topic: self.output_to.topic.to_string(),
                    output_key: self.output_key.clone(),
                    letter_topic: self.letters_to.topic.to_string(),
                };
                let facts = PartFacts {
                    rows: written.rows,
                    letters: written.letters,
                    outcomes: outcomes_as_json(result),
                    triggered_at: SystemTime::from(now),
                    sql_hash: self.sql_hash.clone(),
                    sink_table: self.copy.table.clone(),
                };
                tenure.ledger.insert_part(&tenure.postgres, &part, &facts).await?;
                parts.push(part);
            }
            for (offset, letter, reject) in &result.over_size {
                let body = chunk::pack(&to_record_batch(std::slice::from_ref(letter))?)?;
                let facts = [&*self.letters_to.topic, reject.stage.as_str(), &reject.path, &reject.reason];
                tenure.ledger.insert_letter(&tenure.postgres, work.partition, *offset, facts, &body).await?;
            }
            steps.push(Step {
                partition: work.partition,
                epoch: held.epoch,
                from: held.next_offset,
                to: work.range.to,
                has_output,
                metadata,
            });
        }
        steps.sort_by_key(|step| step.partition);
        Ok((steps, parts))
    }
}

fn outcomes_as_json(result: &PartResult) -> serde_json::Value {
    result.outcomes.counts.iter().filter(|(_, count)| *count > 0).cloned().collect()
}

/// Every message has one outcome: what came in is the sum of what is counted here.
fn account(works: &[Work], results: &[PartResult]) {
    for (work, result) in works.iter().zip(results) {
        metrics::messages_in(work.messages.len() as u64);
        for (name, count) in &result.outcomes.counts {
            metrics::messages(name, *count);
        }
        metrics::messages("dead_letter", work.rejects.len() as u64);
        for reject in &work.rejects {
            metrics::dead_letters(reject.stage, 1);
        }
    }
}
