//! The two transactions of one attempt, and the pieces that flow into both.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::engine::Engine;
use super::output::{Output, untraceable};
use crate::dead_letter::{Reject, Stage};
use crate::decode::Work;
use crate::error::{Error, Result};
use crate::kafka::{self, TRANSACTION_TIMEOUT};
use crate::ledger::claim::Tenure;
use crate::ledger::store::{PartHead, Step};
use crate::postgres::Connection;
use crate::sink::Piece;
use crate::sink::kafka::{Destination, Producer, produce_letter};
use crate::sink::postgres::{CopyPlan, Writer};
use crate::sink::rows::RowProducer;
use crate::telemetry::metrics::{self, BatchStage};

/// Pieces on their way to each sink: one being written, one waiting. More would only hold memory.
const AHEAD: usize = 2;

/// A Kafka transaction that is not ready by then is given up, and the rows are sent from the ledger in one of its own.
const KAFKA_PATIENCE: Duration = Duration::from_secs(TRANSACTION_TIMEOUT.as_secs() / 2);

/// How often Postgres hears from us while only Kafka is at work: it ends sessions that idle in a transaction for 10 s.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);

/// One Postgres and one Kafka transaction. Dropped before they are committed, both come to nothing: Postgres rolls back with
/// the connection, Kafka when the transactional id is initialised anew.
pub struct Transaction {
    pub id: Uuid,
    pub producer: Arc<Producer>,
    pub output_to: Destination,
    pub output_key: Option<String>,
    pub letters_to: Destination,
    pub copy: CopyPlan,
    pub sql_hash: String,
    deadline: Instant,
}

/// Both sinks have taken everything; nothing is committed.
pub struct Ready {
    /// How far each partition goes, in ascending order.
    pub steps: Vec<Step>,
    /// The stored parts of those with output.
    pub parts: Vec<PartHead>,
    pub rows: u64,
    /// Messages with a row that is too large for the output topic.
    pub too_large: Vec<(usize, Reject)>,
    /// Kafka was too slow: its transaction is to be aborted and the rows sent from the ledger.
    pub late: bool,
}

/// What the Kafka side comes to.
struct Produced {
    too_large: Vec<(usize, Reject)>,
    acknowledged: bool,
}

impl Transaction {
    pub fn new(engine: &Engine, tenure: &Tenure) -> Transaction {
        Transaction {
            id: Uuid::new_v4(),
            producer: tenure.producer(),
            output_to: engine.output_to.clone(),
            output_key: engine.output_key.clone(),
            letters_to: engine.letters_to.clone(),
            copy: engine.copy.clone(),
            sql_hash: engine.sql_hash.clone(),
            deadline: Instant::now() + kafka_patience(),
        }
    }

    /// Opens both transactions and lets the pieces flow into both sinks, as fast as the slower one takes them.
    pub async fn stream(
        &self,
        tenure: &Tenure,
        works: &[Work],
        output: &mut Output<'_>,
        first: Option<Piece>,
    ) -> Result<Ready> {
        let partitions: Vec<i32> = works.iter().map(|work| work.partition).collect();
        let (to_postgres, postgres_inbox) = mpsc::channel(AHEAD);
        let (to_kafka, kafka_inbox) = mpsc::channel(AHEAD);
        let began = Instant::now();
        let writer = Writer::new(&tenure.postgres, &tenure.ledger, &self.copy, self.id, &partitions).await?;
        let kafka_side = tokio::task::spawn_blocking(self.kafka_side(kafka_inbox)?);
        let now = output.now();
        let pump = self.pump(output, first, to_postgres, to_kafka);
        let flowed = futures::try_join!(pump, writer.write(postgres_inbox));
        let hold = flowed.is_ok().then_some(&tenure.postgres);
        let stored = async {
            let ((), written) = flowed?;
            let (steps, parts) = self.store(tenure, works, now, &written, &output.results).await?;
            metrics::batch_seconds(BatchStage::Postgres, began.elapsed());
            Ok((steps, parts, written.iter().map(|written| written.rows as u64).sum()))
        };
        // What has failed already needs no acknowledgements.
        let stored = async { stored.await.inspect_err(|_: &Error| self.producer.give_up()) };
        // Kafka's side also after a failure: the transaction may be aborted only once nothing produces into it any more.
        let (produced, stored) = tokio::join!(self.produced(kafka_side, hold), stored);
        let (steps, parts, rows) = stored?;
        let Produced { too_large, acknowledged } = produced?;
        crate::step!("S5");
        Ok(Ready { steps, parts, rows, too_large, late: !acknowledged || Instant::now() >= self.deadline })
    }

    /// Sends each piece to both sinks. Past the deadline Kafka's transaction is given up; its side still looks at the pieces.
    async fn pump(
        &self,
        output: &mut Output<'_>,
        first: Option<Piece>,
        to_postgres: mpsc::Sender<Piece>,
        to_kafka: mpsc::Sender<Piece>,
    ) -> Result<()> {
        let deadline = tokio::time::Instant::from_std(self.deadline);
        let mut next = first;
        while let Some(piece) = next {
            let place = match tokio::time::timeout_at(deadline, to_kafka.reserve()).await {
                Ok(place) if Instant::now() < self.deadline => place,
                _ => {
                    self.producer.give_up();
                    to_kafka.reserve().await
                }
            };
            // A closed channel is an error on the other side, which is the one that counts.
            let Ok(place) = place else { return Ok(()) };
            place.send(piece.clone());
            if to_postgres.send(piece).await.is_err() {
                return Ok(());
            }
            next = output.next().await?;
        }
        Ok(())
    }

    /// The Kafka side, for a thread of its own: encodes, produces, and waits for the acknowledgements.
    fn kafka_side(&self, mut inbox: mpsc::Receiver<Piece>) -> Result<impl FnOnce() -> Result<Produced> + Send + use<>> {
        let (producer, letters_to, deadline) = (self.producer.clone(), self.letters_to.clone(), self.deadline);
        let rows = RowProducer::new(&self.copy.schema, self.output_to.clone(), self.output_key.as_deref())?;
        let limit = self.output_to.max_record_bytes;
        Ok(move || {
            producer.begin()?;
            crate::step!("S2");
            let began = Instant::now();
            let mut too_large: BTreeSet<(usize, u32)> = BTreeSet::new();
            while let Some(piece) = inbox.blocking_recv() {
                match piece {
                    Piece::Letters { letters, .. } => {
                        for letter in letters.iter() {
                            produce_letter(&producer, &letters_to.topic, letter)?;
                        }
                    }
                    Piece::Rows { part, batch, messages } => {
                        for row in rows.produce(&producer, &batch)? {
                            let unknown = || untraceable("it is too large for the output topic");
                            too_large.insert((part, messages.as_ref().ok_or_else(unknown)?[row]));
                        }
                    }
                }
            }
            let acknowledged = too_large.is_empty() && producer.acknowledged(deadline)?;
            metrics::batch_seconds(BatchStage::Kafka, began.elapsed());
            let reason = format!("the record is larger than the output topic's max.message.bytes ({limit})");
            let refuse =
                |(part, row)| (part, Reject { row, stage: Stage::Kafka, path: "$".into(), reason: reason.clone() });
            Ok(Produced { too_large: too_large.into_iter().map(refuse).collect(), acknowledged })
        })
    }

    /// Waits for the Kafka side. `hold`: the session whose transaction must not idle meanwhile.
    async fn produced(
        &self,
        mut kafka_side: JoinHandle<Result<Produced>>,
        hold: Option<&Connection>,
    ) -> Result<Produced> {
        let mut lost = None;
        loop {
            if let Ok(ended) = tokio::time::timeout(SIGN_OF_LIFE, &mut kafka_side).await {
                return lost.map_or_else(|| ended.unwrap_or_else(kafka::abnormal), Err);
            }
            let Some(postgres) = hold.filter(|_| lost.is_none()) else { continue };
            if let Err(error) = postgres.batch_execute("SELECT").await {
                self.producer.give_up();
                lost = Some(Error::postgres("waiting for Kafka")(error));
            }
        }
    }

    /// Ends both transactions without a trace; nothing of either was committed.
    pub async fn abort(&self, tenure: &Tenure) -> Result<()> {
        tenure.postgres.batch_execute("ROLLBACK").await.map_err(Error::postgres("rolling back"))?;
        self.abort_kafka().await
    }

    pub async fn abort_kafka(&self) -> Result<()> {
        let producer = self.producer.clone();
        kafka::blocking(move || producer.abort()).await
    }
}

/// Tests are less patient: `FAILPOINTS="kafka_patience=return(4000)"`, in milliseconds.
fn kafka_patience() -> Duration {
    fail::fail_point!("kafka_patience", |millis| {
        millis.and_then(|millis| millis.parse().ok()).map_or(KAFKA_PATIENCE, Duration::from_millis)
    });
    KAFKA_PATIENCE
}
