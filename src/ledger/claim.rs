//! How a lane takes partitions, and what it holds while it has them.
//!
//! A claim runs outside the rebalance callback while polling goes on. Every doubt (an error in a commit, a lost
//! connection, an unknown outcome) leads here: the tenure is dropped whole and the partitions are claimed anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use uuid::Uuid;

use super::ailment::{row_missing, topic_anew};
use super::decide::{Decision, KafkaOffset, Seen, decide, is_of};
use super::replay;
use super::store::{Claimed, Ledger, PartHead, Step, connect};
use crate::config::Config;
use crate::error::{Action, Error, Result};
use crate::kafka::{self, GroupMetadata};
use crate::postgres::Connection;
use crate::sink::kafka::{OffsetCommit, Producer};
use crate::source::Watcher;

/// Producers opened at the same time to fence their namesakes.
const FENCED_AT_ONCE: usize = 8;

/// What a claim is made with.
pub struct Claimant {
    pub config: Arc<Config>,
    /// Properties of its producers.
    pub producer: Arc<BTreeMap<String, String>>,
    pub ledger: Arc<Ledger>,
    /// The lane's two, new at each start of a process.
    pub transactional_ids: [String; 2],
    pub consumer: Arc<BaseConsumer<Watcher>>,
}

/// What a lane holds between a claim and the next doubt, revocation or stop.
pub struct Tenure {
    pub postgres: Connection,
    pub ledger: Arc<Ledger>,
    pub group: Arc<GroupMetadata>,
    pub held: BTreeMap<i32, Held>,
    /// Parts whose Kafka commit was seen: to be deleted in the next Postgres transaction.
    pub confirmed: Vec<(Uuid, i32)>,
    producers: Vec<Arc<Producer>>,
    turn: usize,
}

/// A partition's state under our epoch.
#[derive(Debug, Clone)]
pub struct Held {
    pub epoch: i64,
    /// The ledger's: where the next stored range begins.
    pub next_offset: i64,
    /// How far the messages have been dealt with; beyond `next_offset` there was no output so far.
    pub read_to: i64,
    /// What stands beside `next_offset` in Kafka.
    pub metadata: String,
}

impl Held {
    fn of(claimed: &Claimed) -> Held {
        let progress = &claimed.progress;
        Held {
            epoch: progress.epoch,
            next_offset: progress.next_offset,
            read_to: progress.next_offset,
            metadata: progress.metadata.clone(),
        }
    }

    /// From where the ledger stands to `to`, with nothing for the sinks.
    fn step(&self, partition: i32, to: i64, metadata: String) -> Step {
        Step { partition, epoch: self.epoch, from: self.next_offset, to, has_output: false, metadata }
    }
}

impl Tenure {
    /// The producer whose turn it is. Two take turns because one alone would wait for the markers of its own last
    /// transaction: 104 ms a commit, where two need 8.
    pub fn producer(&self) -> Arc<Producer> {
        self.producers[self.turn].clone()
    }

    /// To be called after each Kafka transaction.
    pub fn take_turns(&mut self) {
        self.turn = (self.turn + 1) % self.producers.len();
    }

    /// Records that Postgres has committed these steps.
    pub fn advanced(&mut self, steps: &[Step]) {
        for step in steps {
            if let Some(held) = self.held.get_mut(&step.partition) {
                held.next_offset = step.to;
                held.read_to = held.read_to.max(step.to);
                held.metadata = step.metadata.clone();
            }
        }
    }

    /// Makes the session ready for the first commit.
    ///
    /// # Errors
    /// As for [`Ledger::rehearse`].
    pub async fn rehearse(&self) -> Result<()> {
        // One partition is enough for Postgres, and each is a row locked and written in vain.
        let one = self.held.iter().next();
        let nowhere = one.map(|(&partition, held)| held.step(partition, held.next_offset, held.metadata.clone()));
        self.ledger.rehearse(&self.postgres, nowhere.as_slice()).await
    }

    /// Partitions that are read further than the ledger says, as steps without output.
    pub fn pending(&self) -> Vec<Step> {
        let commit = Uuid::new_v4();
        self.held
            .iter()
            .filter(|(_, held)| held.read_to > held.next_offset)
            .map(|(&partition, held)| held.step(partition, held.read_to, self.ledger.metadata(held.epoch, commit)))
            .collect()
    }

    /// Messages dealt with beyond the ledger, by their offsets.
    pub fn pending_messages(&self) -> i64 {
        self.held.values().map(|held| held.read_to - held.next_offset).sum()
    }

    /// Commits offsets alone to Kafka.
    pub async fn commit_offsets(&mut self, steps: &[Step]) -> Result<()> {
        let offsets = offsets_of(steps);
        commit_offsets(self.producer(), self.ledger.topic.clone(), offsets, self.group.clone()).await?;
        self.take_turns();
        Ok(())
    }

    /// Makes progress without output durable, deletes confirmed parts: in Postgres, then in Kafka.
    pub async fn flush(&mut self) -> Result<()> {
        let steps = self.pending();
        if steps.is_empty() && self.confirmed.is_empty() {
            return Ok(());
        }
        self.postgres.batch_execute("BEGIN").await.map_err(Error::postgres("writing progress to the ledger"))?;
        self.ledger.delete_parts(&self.postgres, &self.confirmed).await?;
        self.ledger.advance_and_commit(&self.postgres, &steps).await?;
        self.confirmed.clear();
        self.advanced(&steps);
        crate::step!("S11");
        if !steps.is_empty() {
            crate::step!("S17");
            self.commit_offsets(&steps).await?;
        }
        Ok(())
    }

    /// Gives everything up cleanly: flushes, and tells the ledger that no transaction of ours is open.
    pub async fn release(mut self) -> Result<()> {
        self.flush().await?;
        crate::step!("S12");
        self.ledger.release(&self.postgres, &self.epochs()).await
    }

    /// By partition: the epoch under which it is held.
    fn epochs(&self) -> Vec<(i32, i64)> {
        self.held.iter().map(|(&partition, held)| (partition, held.epoch)).collect()
    }
}

impl Drop for Tenure {
    fn drop(&mut self) {
        // A producer waits for its brokers when it goes, up to half a second: not on an async worker.
        let producers = std::mem::take(&mut self.producers);
        tokio::task::spawn_blocking(move || drop(producers));
    }
}

/// The offsets that go into Kafka with these steps.
pub fn offsets_of(steps: &[Step]) -> Vec<OffsetCommit> {
    steps
        .iter()
        .map(|step| OffsetCommit { partition: step.partition, offset: step.to, metadata: step.metadata.clone() })
        .collect()
}

pub async fn commit_offsets(
    producer: Arc<Producer>,
    topic: String,
    offsets: Vec<OffsetCommit>,
    group: Arc<GroupMetadata>,
) -> Result<()> {
    kafka::blocking(move || {
        producer.begin()?;
        producer.send_offsets(&topic, &offsets, group.get())?;
        producer.commit()
    })
    .await
}

/// Claims partitions, in the protocol's order: (a) end whatever of our own is in doubt, (b) take the ledger's rows under
/// a new epoch, (c) fence the last owner, (d) read the group's stable offsets, (e) decide and mend, per partition.
///
/// # Errors
/// [`Error::Halt`] for what the ledger cannot explain; what the servers say otherwise.
pub async fn claim(claimant: &Claimant, partitions: &[i32], group: Arc<GroupMetadata>) -> Result<Tenure> {
    let (mut tenure, seen) = seize(claimant, partitions, group).await?;
    match mend(claimant, &mut tenure, seen).await {
        Ok(()) => Ok(tenure),
        Err(error) if error.action() == Action::Halt => Err(still_true(&tenure, error).await),
        Err(error) => Err(error),
    }
}

/// A member that stood still in the middle of its claim has been replaced since, and what it reads now does not go with
/// what it read then: that explains itself by another claim, and needs nobody.
async fn still_true(tenure: &Tenure, error: Error) -> Error {
    match tenure.ledger.is_present(&tenure.postgres, &tenure.epochs()).await {
        Ok(true) => error,
        Ok(false) => Error::Claim { what: format!("another member has claimed the partitions meanwhile ({error})") },
        Err(unknown) => unknown,
    }
}

/// (a) to (d) of a claim: nobody else can write for the partitions any more, and this is what there is.
async fn seize(
    claimant: &Claimant,
    partitions: &[i32],
    group: Arc<GroupMetadata>,
) -> Result<(Tenure, Vec<(i32, Seen)>)> {
    let ledger = claimant.ledger.clone();
    let [first, second] = &claimant.transactional_ids;
    // To the end of each: one that went on by itself could fence the producers of the next claim.
    let (topic, a, b, postgres) = tokio::join!(
        check_topic(claimant),
        open_own(claimant, first),
        open_own(claimant, second),
        connect(&claimant.config.postgres)
    );
    let ((), a, b, postgres) = (topic?, a?, b?, postgres?);
    register_new(claimant, &postgres, partitions).await?;
    let claimed = ledger.take(&postgres, partitions, &claimant.transactional_ids).await?;
    if claimed.len() != partitions.len() {
        let why = format!("{} of {} claimed partitions have a row", claimed.len(), partitions.len());
        return Err(row_missing(&ledger.topic, &why));
    }
    crate::step!("S13");
    let theirs = claimed.iter().flat_map(|claimed| claimed.last_owner.iter().cloned()).collect();
    fence(claimant, theirs).await?;
    let epochs: Vec<(i32, i64)> = claimed.iter().map(|claimed| (claimed.partition, claimed.progress.epoch)).collect();
    // Nothing of the last owners can be open any more, so the note of their ids has done its work.
    ledger.settle(&postgres, &epochs, &claimant.transactional_ids).await?;
    crate::step!("S14");
    let tenure = Tenure {
        held: claimed.iter().map(|claimed| (claimed.partition, Held::of(claimed))).collect(),
        postgres,
        ledger: ledger.clone(),
        group,
        confirmed: Vec::new(),
        producers: vec![Arc::new(a), Arc::new(b)],
        turn: 0,
    };
    let seen = look(claimant, claimed).await?;
    Ok((tenure, seen))
}

/// A producer of the lane's own, ready for the output topic.
async fn open_own(claimant: &Claimant, id: &str) -> Result<Producer> {
    let (properties, id) = (claimant.producer.clone(), id.to_owned());
    let topic = claimant.config.sink_kafka.topic.clone();
    kafka::blocking(move || {
        let producer = Producer::open(&properties, &id)?;
        producer.get_to_know(&topic);
        Ok(producer)
    })
    .await
}

/// A producer under one of the lane's ids, or under a namesake's: that one is fenced by it.
pub async fn open(claimant: &Claimant, id: &str) -> Result<Producer> {
    let (properties, id) = (claimant.producer.clone(), id.to_owned());
    kafka::blocking(move || Producer::open(&properties, &id)).await
}

/// The topic may have been deleted and made anew while the job was running.
async fn check_topic(claimant: &Claimant) -> Result<()> {
    let (consumer, ledger) = (claimant.consumer.clone(), claimant.ledger.clone());
    let id = kafka::blocking(move || kafka::topic_id(consumer.client(), &ledger.topic)).await?;
    let ledger = &claimant.ledger;
    if id == ledger.topic_id { Ok(()) } else { Err(topic_anew(&ledger.topic, &ledger.topic_id, &id)) }
}

/// Registers partitions that were added to the topic after the first start: they start at their beginning.
///
/// # Errors
/// [`Error::Halt`] where a partition is not new: it had a row, and somebody has deleted it.
async fn register_new(claimant: &Claimant, postgres: &Connection, partitions: &[i32]) -> Result<()> {
    let ledger = &claimant.ledger;
    let known: BTreeSet<i32> = ledger.registered(postgres).await?.into_iter().collect();
    let new: Vec<i32> = partitions.iter().copied().filter(|partition| !known.contains(partition)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let offsets = group_offsets(claimant, new.clone()).await?;
    for partition in &new {
        let place = format!("{}[{partition}]", ledger.topic);
        if let Some(kafka) = offsets.get(partition).filter(|kafka| is_of(&ledger.job, &kafka.metadata)) {
            return Err(row_missing(&place, &format!("Kafka offset {} ({:?})", kafka.offset, kafka.metadata)));
        }
        // Kafka numbers partitions in the order in which they are added.
        if let Some(last) = known.last().filter(|last| *last > partition) {
            return Err(row_missing(&place, &format!("partition {last} was registered, and this one is older")));
        }
    }
    let marks = watermarks(&claimant.consumer, &ledger.topic, new).await?;
    let starts: Vec<(i32, i64)> = marks.iter().map(|(&partition, &(low, _))| (partition, low)).collect();
    tracing::info!(?starts, "registering partitions that were added to the topic");
    ledger.register(postgres, &starts).await
}

/// First and last offset of each partition.
pub async fn watermarks<C: ConsumerContext + 'static>(
    consumer: &Arc<BaseConsumer<C>>,
    topic: &str,
    partitions: Vec<i32>,
) -> Result<BTreeMap<i32, (i64, i64)>> {
    let (consumer, topic) = (consumer.clone(), topic.to_owned());
    kafka::blocking(move || {
        partitions
            .into_iter()
            .map(|partition| {
                let marks = consumer
                    .fetch_watermarks(&topic, partition, kafka::CALL_TIMEOUT)
                    .map_err(Error::kafka(format!("reading the first and last offset of {topic}[{partition}]")))?;
                Ok((partition, marks))
            })
            .collect()
    })
    .await
}

/// Aborts at once whatever the last owners have open, so that no reader waits for a timeout and nothing of theirs can
/// be committed any more.
pub async fn fence(claimant: &Claimant, theirs: BTreeSet<String>) -> Result<()> {
    let theirs = theirs.into_iter().filter(|id| !claimant.transactional_ids.contains(id));
    let fencing = futures::stream::iter(theirs).map(|id| async move { open(claimant, &id).await.map(drop) });
    fencing.buffer_unordered(FENCED_AT_ONCE).try_collect().await
}

async fn look(claimant: &Claimant, claimed: Vec<Claimed>) -> Result<Vec<(i32, Seen)>> {
    let partitions: Vec<i32> = claimed.iter().map(|claimed| claimed.partition).collect();
    let offsets = group_offsets(claimant, partitions.clone());
    let marks = watermarks(&claimant.consumer, &claimant.ledger.topic, partitions);
    let (mut offsets, marks) = tokio::try_join!(offsets, marks)?;
    Ok(claimed
        .into_iter()
        .map(|Claimed { partition, progress, parts, .. }| {
            let (low, high) = marks.get(&partition).copied().unwrap_or_default();
            (partition, Seen { progress, parts, kafka: offsets.remove(&partition), low, high })
        })
        .collect())
}

async fn group_offsets(claimant: &Claimant, partitions: Vec<i32>) -> Result<BTreeMap<i32, KafkaOffset>> {
    let (consumer, topic) = (claimant.consumer.clone(), claimant.ledger.topic.clone());
    kafka::blocking(move || read_group_offsets(&consumer, &topic, &partitions)).await
}

/// Brokers that answer everything else do not answer this for as long as a commit is half done.
const HELD_BACK: &str = "where the brokers answer everything else, the group's coordinator is away or an open transaction holds \
                         the offsets back; one that a dead job has left is ended by the next job that claims these partitions, \
                         or by Kafka within 15 minutes";

/// The group's committed offsets, stable: under `isolation.level=read_committed` the broker answers only once no
/// transaction that touches them is open. Blocks.
pub fn read_group_offsets<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    partitions: &[i32],
) -> Result<BTreeMap<i32, KafkaOffset>> {
    let mut asked = TopicPartitionList::new();
    for partition in partitions {
        asked.add_partition(topic, *partition);
    }
    let doing = || format!("reading the group's committed offsets of {topic}");
    let found = committed_offsets(consumer, asked).map_err(|error| match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::OperationTimedOut) => Error::kafka(format!("{} ({HELD_BACK})", doing()))(error),
        _ => Error::kafka(doing())(error),
    })?;
    let mut offsets = BTreeMap::new();
    for element in found.elements() {
        element.error().map_err(Error::kafka(doing()))?;
        if let Offset::Offset(offset) = element.offset() {
            offsets.insert(element.partition(), KafkaOffset { offset, metadata: element.metadata().to_owned() });
        }
    }
    Ok(offsets)
}

/// A broker that has just become the group's coordinator, or is to become it, needs a moment.
fn committed_offsets<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    asked: TopicPartitionList,
) -> Result<TopicPartitionList, KafkaError> {
    use RDKafkaErrorCode as Code;
    let deadline = Instant::now() + kafka::CALL_TIMEOUT;
    loop {
        let error = match consumer.committed_offsets(asked.clone(), kafka::CALL_TIMEOUT) {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let settles = matches!(
            error.rdkafka_error_code(),
            Some(Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress)
        );
        if !settles || Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A stored batch that waits for a topic that is gone would wait for ever.
async fn check_topics_of(claimant: &Claimant, parts: &[PartHead]) -> Result<()> {
    let wanted = |part: &PartHead| {
        let rows = (part.rows > 0).then(|| part.output_topic.clone());
        rows.into_iter().chain((part.letters > 0).then(|| part.letter_topic.clone())).collect::<Vec<_>>()
    };
    let topics: BTreeSet<String> = parts.iter().flat_map(wanted).collect();
    let consumer = claimant.consumer.clone();
    kafka::blocking(move || {
        for topic in &topics {
            kafka::partition_count(consumer.client(), topic).map_err(|error| match error {
                Error::Halt { what, .. } => Error::Halt {
                    what: format!("a stored batch waits for its topic: {what}"),
                    remedy: format!(
                        "create {topic} again (`dinnerbell init` does, if it is the one in the settings) and start the \
                         job: it sends the batch. What readers had of the old topic is not sent again"
                    ),
                },
                error => error,
            })?;
        }
        Ok(())
    })
    .await
}

/// Carries out what [`decide`] says for each partition: stored parts are sent again, then offsets caught up.
async fn mend(claimant: &Claimant, tenure: &mut Tenure, seen: Vec<(i32, Seen)>) -> Result<()> {
    let mut parts: Vec<PartHead> = Vec::new();
    let mut offsets = Vec::new();
    for (partition, seen) in &seen {
        let place = format!("{}[{partition}]", tenure.ledger.topic);
        let next = OffsetCommit {
            partition: *partition,
            offset: seen.progress.next_offset,
            metadata: seen.progress.metadata.clone(),
        };
        // Parts that Kafka has passed are confirmed; one that is sent again is, once it has been.
        tenure.confirmed.extend(seen.parts.iter().map(|part| (part.commit_id, part.partition)));
        match decide(&place, &tenure.ledger.job, seen)? {
            Decision::Resume => {}
            Decision::CommitOffset { because } => {
                if let Some(because) = because.filter(|_| !seen.progress.is_new(&tenure.ledger.job)) {
                    tracing::warn!(place, offset = next.offset, "{because}; the ledger's offset is committed instead");
                }
                offsets.push(next);
            }
            Decision::Reemit(part) => {
                tracing::info!(place, from = part.from, to = part.to, "sending a stored batch to Kafka again");
                parts.push(part);
                offsets.push(next);
            }
        }
    }
    if offsets.is_empty() {
        return Ok(());
    }
    check_topics_of(claimant, &parts).await?;
    let producer = tenure.producer();
    replay::emit(&tenure.ledger, &tenure.postgres, producer, &parts, offsets, tenure.group.clone()).await?;
    tenure.take_turns();
    Ok(())
}
