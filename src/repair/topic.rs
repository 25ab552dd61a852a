//! Reading topics from end to end, as a `read_committed` reader and without joining a group.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::inspect::Site;
use crate::config::Source;
use crate::error::{Error, Result};
use crate::kafka;
use crate::ledger::claim::watermarks;

/// How long a reader may hear nothing before the brokers count as away.
const SILENCE: Duration = Duration::from_secs(30);

/// Whether everything that was ever committed to a topic is still there; if not, why.
pub async fn is_whole(site: &Site, topic: &str) -> Result<Option<String>> {
    uncovered(site, topic, None).await
}

/// Why a topic may not hold all that was committed to it after a moment (milliseconds; `None`: ever); `None` where it does.
pub async fn uncovered(site: &Site, topic: &str, since: Option<i64>) -> Result<Option<String>> {
    match is_compacted(site, topic).await {
        Ok(false) => {}
        Ok(true) => return Ok(Some(format!("topic {topic} is compacted"))),
        Err(error) => return Ok(Some(format!("whether topic {topic} is compacted is unknown ({error})"))),
    }
    let (reader, asked) = (site.reader.clone(), topic.to_owned());
    let count = kafka::blocking(move || kafka::partition_count(reader.client(), &asked)).await?;
    let marks = watermarks(&site.reader, topic, (0..count).collect()).await?;
    for (partition, (low, _)) in marks.into_iter().filter(|(_, (low, _))| *low > 0) {
        let first = first_time(site, topic, partition).await?;
        // The oldest records go first: where one from before the moment is left, all that came after it are.
        if since.is_none_or(|since| first.is_none_or(|first| first >= since)) {
            return Ok(Some(format!("retention has taken what {topic}[{partition}] held before offset {low}")));
        }
    }
    Ok(None)
}

async fn first_time(site: &Site, topic: &str, partition: i32) -> Result<Option<i64>> {
    let (source, topic) = (site.config.source.clone(), topic.to_owned());
    kafka::blocking(move || time_at(&source, &topic, partition, Offset::Beginning)).await
}

async fn is_compacted(site: &Site, topic: &str) -> Result<bool> {
    let doing = || Error::kafka(format!("reading the cleanup.policy of topic {topic}"));
    let admin: AdminClient<DefaultClientContext> =
        kafka::client_config(&site.config.sink_kafka.kafka, &[]).create().map_err(doing())?;
    let options = AdminOptions::new().request_timeout(Some(kafka::CALL_TIMEOUT));
    let answers = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await.map_err(doing())?;
    let found = answers.into_iter().next().and_then(|answer| answer.ok());
    let policy = found.and_then(|found| found.get("cleanup.policy")?.value.clone());
    policy.map(|policy| policy.contains("compact")).ok_or_else(|| Error::Away { what: "no answer".into() })
}

/// How long the markers of a transaction that has just ended may take.
const MARKERS_WITHIN: Duration = Duration::from_secs(10);

/// Where a transaction is open: what lies behind its first record no `read_committed` reader sees. Waits for the markers
/// of one that has just ended.
pub async fn open_transaction(site: &Site, topic: &str) -> Result<Option<String>> {
    let (reader, config, topic) = (site.reader.clone(), site.config.clone(), topic.to_owned());
    kafka::blocking(move || {
        let owned = [("isolation.level", "read_uncommitted"), ("enable.auto.commit", "false")];
        let all: BaseConsumer =
            kafka::client_config(&config.source.kafka, &owned).create().map_err(Error::kafka("creating a consumer"))?;
        let doing = || Error::kafka(format!("reading the last offsets of {topic}"));
        let deadline = Instant::now() + MARKERS_WITHIN;
        for partition in 0..kafka::partition_count(reader.client(), &topic)? {
            // The end as each kind of reader sees it.
            loop {
                let (_, end) = all.fetch_watermarks(&topic, partition, kafka::CALL_TIMEOUT).map_err(doing())?;
                let (_, stable) = reader.fetch_watermarks(&topic, partition, kafka::CALL_TIMEOUT).map_err(doing())?;
                if stable >= end {
                    break;
                }
                if Instant::now() > deadline {
                    return Ok(Some(format!("{topic}[{partition}] at offset {stable}, of {end}")));
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        Ok(None)
    })
    .await
}

fn reader(source: &Source) -> Result<BaseConsumer> {
    // librdkafka assigns nothing without a group's name; the job's own is the one that it has a right to. Nothing is joined.
    let owned = [
        ("group.id", source.group_id.as_str()),
        ("enable.auto.commit", "false"),
        ("enable.partition.eof", "true"),
        ("auto.offset.reset", "earliest"),
        ("isolation.level", "read_committed"),
    ];
    kafka::client_config(&source.kafka, &owned).create().map_err(Error::kafka("creating a consumer"))
}

/// Hands out every committed record of a topic. Blocks.
///
/// # Errors
/// What `each` says; [`Error::Kafka`].
pub fn read(source: &Source, topic: &str, each: impl FnMut(&BorrowedMessage<'_>) -> Result<()>) -> Result<()> {
    let consumer = reader(source)?;
    let count = kafka::partition_count(consumer.client(), topic)?;
    let starts: Vec<(i32, Offset)> = (0..count).map(|partition| (partition, Offset::Beginning)).collect();
    read_from(&consumer, topic, &starts, each)
}

/// Hands out the records of one partition from an offset on, until `each` says that it is enough.
pub fn read_partition(
    source: &Source,
    topic: &str,
    partition: i32,
    from: i64,
    to: i64,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<()> {
    let consumer = reader(source)?;
    read_from(&consumer, topic, &[(partition, Offset::Offset(from))], |message| {
        if message.offset() < to {
            each(message);
        }
        Ok(())
    })
}

fn read_from(
    consumer: &BaseConsumer,
    topic: &str,
    starts: &[(i32, Offset)],
    mut each: impl FnMut(&BorrowedMessage<'_>) -> Result<()>,
) -> Result<()> {
    let doing = || Error::kafka(format!("reading topic {topic}"));
    let mut assignment = TopicPartitionList::new();
    for (partition, offset) in starts {
        assignment.add_partition_offset(topic, *partition, *offset).map_err(doing())?;
    }
    consumer.assign(&assignment).map_err(doing())?;
    let mut open: BTreeSet<i32> = starts.iter().map(|start| start.0).collect();
    let mut heard = Instant::now();
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => each(&message)?,
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => return Err(doing()(error)),
            None if heard.elapsed() < SILENCE => continue,
            None => return Err(Error::Away { what: format!("reading topic {topic}: no answer from Kafka") }),
        }
        heard = Instant::now();
    }
    Ok(())
}

/// The time of the first record at or after an offset, in milliseconds. Blocks; `None` where there is none.
pub fn time_at(source: &Source, topic: &str, partition: i32, offset: Offset) -> Result<Option<i64>> {
    let consumer = reader(source)?;
    let doing = || Error::kafka(format!("reading topic {topic}"));
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, partition, offset).map_err(doing())?;
    consumer.assign(&assignment).map_err(doing())?;
    match consumer.poll(kafka::CALL_TIMEOUT) {
        Some(Ok(message)) => Ok(message.timestamp().to_millis()),
        Some(Err(KafkaError::PartitionEOF(_))) => Ok(None),
        Some(Err(error)) => Err(doing()(error)),
        None => Err(Error::Away { what: format!("reading topic {topic}: no answer from Kafka") }),
    }
}
