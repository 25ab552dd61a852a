//! Carries a repair out, as the only member of the group and under new epochs of the ledger.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::compute::{CastOptions, cast_with_options};
use serde_json::json;
use uuid::Uuid;

use super::change::{Change, Resend, refuse};
use super::compare::Compare;
use super::inspect::{self, Picture, Site};
use crate::error::{Error, Result};
use crate::job::setup;
use crate::kafka::{self, GroupMetadata, SESSION_TIMEOUT};
use crate::ledger::claim::{Claimant, fence, open};
use crate::ledger::replay;
use crate::ledger::store::Ledger;
use crate::lookup::{LookupQuery, load};
use crate::sink::kafka::{Destination, OffsetCommit, Producer, produce_letter};
use crate::sink::rows::RowProducer;
use crate::source::{Event, Source};

/// A member that was killed is one until its session has run out.
const GONE_WITHIN: Duration = Duration::from_secs(SESSION_TIMEOUT.as_secs() + 3);

/// How long the group may take to give us its partitions.
const ASSIGNED_WITHIN: Duration = Duration::from_secs(60);

/// All partitions, and nobody else.
pub struct Tenancy {
    ledger: Arc<Ledger>,
    group: Arc<GroupMetadata>,
    producer: Arc<Producer>,
    /// Polls, which keeps our place in the group; dropped, it leaves.
    source: Source,
}

/// Takes everything: the whole group, the ledger's epochs, the last owners' transactional ids.
///
/// # Errors
/// [`Error::Halt`] where another member comes.
pub async fn take_over(site: &Site, picture: &Picture, ledger: Ledger) -> Result<Tenancy> {
    let partitions = picture.source.as_ref().map_or(0, |source| source.1);
    let mut config = (*site.config).clone();
    // Under the job's own name we would throw it out; under none we only stand beside it, and then see it.
    config.job.instance = None;
    let mut source = Source::open(&config, 0, partitions)?;
    let group = assigned(&mut source, partitions).await?;
    let id = format!("{}.repair.{}", config.source.group_id, Uuid::new_v4());
    let topics = setup::inspect_topics(&site.config, setup::brokers(&site.config).await?).await?;
    let ledger = Arc::new(ledger);
    let claimant = Claimant {
        config: site.config.clone(),
        producer: Arc::new(setup::producer_properties(&site.config, &topics)),
        ledger: ledger.clone(),
        transactional_ids: [id.clone(), id.clone()],
        consumer: source.consumer(),
    };
    let producer = Arc::new(open(&claimant, &id).await?);
    let theirs = ledger.seize(&site.postgres, &id).await?;
    fence(&claimant, theirs.into_iter().collect()).await?;
    site.fenced.store(true, Ordering::SeqCst);
    Ok(Tenancy { ledger, group: Arc::new(group), producer, source })
}

/// # Errors
/// [`Error::Halt`] while the group has members.
pub async fn wait_for_empty_group(site: &Site) -> Result<()> {
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let members = inspect::members(site).await?;
        if members.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(refuse(
                format!(
                    "group {} has active members, and only one may change what the job stands on: {}",
                    site.config.source.group_id,
                    members.join(", ")
                ),
                "stop every `dinnerbell run` of this group, then repair; nothing was changed",
            ));
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn assigned(source: &mut Source, partitions: i32) -> Result<GroupMetadata> {
    let wait = async {
        loop {
            match source.next().await {
                Event::Assigned { partitions: ours, group: Some(group), .. } if ours.len() == partitions as usize => {
                    return Ok(group);
                }
                Event::Assigned { .. } => {
                    return Err(refuse(
                        "another member has joined the group",
                        "stop every `dinnerbell run` of this group, then repair; nothing was changed",
                    ));
                }
                Event::Failed(error) => return Err(error),
                Event::Revoked { .. } | Event::Cycle(_) => {}
            }
        }
    };
    tokio::time::timeout(ASSIGNED_WITHIN, wait).await.unwrap_or_else(|_| {
        Err(Error::Away { what: "the group did not give its partitions to this repair in time".into() })
    })
}

impl Tenancy {
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// # Errors
    /// [`Error::Halt`] where something has changed meanwhile; what the servers say.
    pub async fn carry_out(&mut self, site: &Site, picture: &Picture, change: Change) -> Result<()> {
        if change.resend.is_some() || !change.emit.is_empty() || !change.offsets.is_empty() {
            // What Postgres refuses it refuses here, before readers have anything.
            self.postgres_transaction(site, picture, &change, "ROLLBACK").await?;
            self.in_kafka(site, &change).await?;
        }
        self.postgres_transaction(site, picture, &change, "COMMIT").await
    }

    async fn in_kafka(&self, site: &Site, change: &Change) -> Result<()> {
        if let Some(resend) = &change.resend {
            let alone = change.emit.is_empty();
            let offsets = if alone { change.offsets.clone() } else { Vec::new() };
            self.resend(site, resend, offsets).await?;
        }
        if !change.emit.is_empty() || (!change.offsets.is_empty() && change.resend.is_none()) {
            let (producer, group) = (self.producer.clone(), self.group.clone());
            replay::emit(&self.ledger, &site.postgres, producer, &change.emit, change.offsets.clone(), group).await?;
        }
        Ok(())
    }

    /// All of Postgres's side, ended by COMMIT, or by ROLLBACK to see whether it can be done.
    async fn postgres_transaction(&self, site: &Site, picture: &Picture, change: &Change, end: &str) -> Result<()> {
        let doing = || Error::postgres("changing the ledger");
        site.postgres.batch_execute("BEGIN").await.map_err(doing())?;
        let changed = match self.in_postgres(site, picture, change).await {
            // Deferred constraints are checked at COMMIT otherwise.
            Ok(()) => site.postgres.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await.map_err(doing()),
            Err(error) => Err(error),
        };
        let end = if changed.is_ok() { end } else { "ROLLBACK" };
        let ended = site.postgres.batch_execute(end).await.map_err(doing());
        changed?;
        ended
    }

    async fn in_postgres(&self, site: &Site, picture: &Picture, change: &Change) -> Result<()> {
        let (ledger, postgres) = (&self.ledger, &site.postgres);
        ledger.lock(postgres, &picture.rows).await?;
        let offsets: Vec<_> = picture
            .offsets
            .iter()
            .map(|(partition, kafka)| json!({"partition": partition, "offset": kafka.offset, "metadata": kafka.metadata}))
            .collect();
        let facts = json!({"kafka_offsets": offsets, "did": change.says});
        let verb = change.verb.map_or("", |verb| verb.flag());
        ledger.keep(postgres, verb, &change.reason, &facts).await?;
        if change.forget_old_topics {
            ledger.forget_old_topics(postgres).await?;
        }
        ledger.delete_parts(postgres, &change.done_parts).await?;
        ledger.place(postgres, &change.positions).await?;
        if let Some(mission) = &change.insert {
            Compare::new(site, &mission.shape, &mission.engine.columns)?.insert_missing().await?;
        }
        Ok(())
    }

    async fn resend(&self, site: &Site, resend: &Resend, offsets: Vec<OffsetCommit>) -> Result<()> {
        let batches = lost_rows(site, resend).await?;
        let count: usize = batches.iter().map(RecordBatch::num_rows).sum();
        if count as i64 != resend.rows {
            return Err(refuse(
                format!("{count} rows were read again instead of {}", resend.rows),
                "start `dinnerbell repair` again; nothing was sent",
            ));
        }
        let schema = resend.mission.engine.copy.schema.clone();
        let to = Destination { topic: resend.topic.as_str().into(), max_record_bytes: usize::MAX };
        let rows = RowProducer::new(&schema, to, resend.key.as_deref())?;
        let (letters, letter_topic) = (resend.letters.clone(), resend.letter_topic.clone());
        let (producer, group, topic) = (self.producer.clone(), self.group.clone(), self.ledger.topic.clone());
        kafka::blocking(move || {
            producer.begin()?;
            for batch in &batches {
                rows.produce(&producer, batch)?;
            }
            for letter in &letters {
                produce_letter(&producer, &letter_topic, letter)?;
            }
            if !producer.acknowledged(Instant::now() + kafka::TRANSACTION_TIMEOUT)? {
                return Err(Error::Away { what: "Kafka did not acknowledge the records".into() });
            }
            if !offsets.is_empty() {
                producer.send_offsets(&topic, &offsets, group.get())?;
            }
            producer.commit()
        })
        .await
    }

    /// Leaves the group at once, so that a job need not wait for our session to run out.
    pub async fn leave(self) {
        let Tenancy { producer, source, .. } = self;
        let leaving = tokio::task::spawn_blocking(move || {
            drop(producer);
            source.close();
        });
        let _ = tokio::time::timeout(Duration::from_secs(5), leaving).await;
    }
}

/// The rows of the temporary table, as the job's own batches have them.
async fn lost_rows(site: &Site, resend: &Resend) -> Result<Vec<RecordBatch>> {
    if resend.rows == 0 {
        return Ok(Vec::new());
    }
    let mission = &resend.mission;
    let schema = &mission.engine.copy.schema;
    let comparison = Compare::new(site, &mission.shape, &mission.engine.columns)?;
    let exact = |name: &str| {
        let data_type = schema.fields().iter().find(|field| crate::config::quote_identifier(field.name()) == name);
        data_type.is_some_and(|field| {
            field.data_type().is_integer() || field.data_type().is_floating() || field.data_type().is_temporal()
        })
    };
    let query = LookupQuery {
        name: "rows to send again".into(),
        file: mission.shape.quoted().into(),
        sql: comparison.lost_query(|name| !exact(name)),
    };
    let table = Arc::new(load(&site.postgres, &query, &[], |_, _| {}).await?);
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let mut batches = Vec::new();
    for batch in table.scan() {
        let batch = batch.map_err(Error::engine("reading rows of the sink table again"))?;
        let mut columns = Vec::new();
        for (column, field) in batch.columns().iter().zip(schema.fields()) {
            let cast = cast_with_options(column, field.data_type(), &strict);
            columns.push(cast.map_err(|error| {
                Error::engine(format!("reading column {} of the sink table again", field.name()))(error.into())
            })?);
        }
        let rebuilt = RecordBatch::try_new(schema.clone(), columns);
        batches.push(rebuilt.map_err(|error| Error::engine("reading rows of the sink table again")(error.into()))?);
    }
    Ok(batches)
}
