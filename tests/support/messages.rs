//! Messages into topics, and whole topics out of them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};

/// What goes in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub partition: Option<i32>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Message {
    pub fn of(value: impl Into<Vec<u8>>) -> Message {
        Message { value: Some(value.into()), ..Message::default() }
    }

    pub fn key(self, key: impl Into<Vec<u8>>) -> Message {
        Message { key: Some(key.into()), ..self }
    }

    pub fn partition(self, partition: i32) -> Message {
        Message { partition: Some(partition), ..self }
    }

    pub fn header(mut self, name: &str, value: &[u8]) -> Message {
        self.headers.push((name.to_owned(), Some(value.to_owned())));
        self
    }
}

/// What comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since the epoch.
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    /// The value as text; panics where it is null or no UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.value.as_deref().expect("a value")).expect("UTF-8")
    }

    /// The first header of that name, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(header, _)| header == name)?;
        Some(std::str::from_utf8(value.as_deref()?).expect("UTF-8"))
    }
}

/// A flush also succeeds where messages were given up, so every report is looked at.
struct EveryReport;

impl ClientContext for EveryReport {}

impl ProducerContext for EveryReport {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _opaque: ()) {
        if let Err((error, message)) = result {
            FAILED.with_borrow_mut(|failed| failed.push(format!("{}: {error}", message.topic())));
        }
    }
}

// Reports come on the thread that polls, which is the one that produces.
thread_local! {
    static FAILED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Writes all messages and waits until the broker has acknowledged them, in their order within a partition.
pub fn produce(bootstrap: &str, topic: &str, messages: impl IntoIterator<Item = Message>) {
    produce_compressed(bootstrap, topic, "none", messages);
}

/// As [`produce`], in batches of this `compression.type`.
pub fn produce_compressed(
    bootstrap: &str,
    topic: &str,
    compression: &str,
    messages: impl IntoIterator<Item = Message>,
) {
    let producer: BaseProducer<EveryReport> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .set("compression.type", compression)
        .set("delivery.timeout.ms", "60000")
        // The broker says what is too large.
        .set("message.max.bytes", "20000000")
        .create_with_context(EveryReport)
        .expect("the settings are valid");
    for message in messages {
        let mut headers = OwnedHeaders::new();
        for (key, value) in &message.headers {
            headers = headers.insert(Header { key, value: value.as_deref() });
        }
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).headers(headers);
        record.partition = message.partition;
        record.key = message.key.as_deref();
        record.payload = message.value.as_deref();
        while let Err((error, refused)) = producer.send(record) {
            let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            assert!(full, "producing to {topic}: {error}");
            producer.poll(Duration::from_millis(10));
            record = refused;
        }
        producer.poll(Duration::ZERO);
    }
    producer.flush(Duration::from_secs(60)).unwrap_or_else(|error| panic!("producing to {topic}: {error}"));
    let failed = FAILED.take();
    assert!(failed.is_empty(), "{} messages were not delivered, the first: {}", failed.len(), failed[0]);
}

/// Everything in `topic` from its beginning to the end as it is now, in offset order per partition. Reading committed,
/// the end is the last stable offset: what an open transaction holds back is not in the answer.
pub fn consume_all(bootstrap: &str, topic: &str, read_committed: bool) -> Vec<Record> {
    let mut records = Vec::new();
    consume_each(bootstrap, topic, read_committed, |record| records.push(record));
    records.sort_by_key(|record: &Record| (record.partition, record.offset));
    records
}

/// As [`consume_all`], handing out one record after the other: for topics that are better not held in memory.
pub fn consume_each(bootstrap: &str, topic: &str, read_committed: bool, mut each: impl FnMut(Record)) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "unused: nothing is committed")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .set("check.crcs", "true")
        .set("isolation.level", if read_committed { "read_committed" } else { "read_uncommitted" })
        .create()
        .expect("the settings are valid");
    let partitions = partitions(&consumer, topic);
    let mut assignment = TopicPartitionList::new();
    for partition in &partitions {
        assignment.add_partition_offset(topic, *partition, Offset::Beginning).expect("a valid offset");
    }
    consumer.assign(&assignment).expect("a valid assignment");
    let mut open = partitions;
    let mut last_heard = Instant::now();
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => each(record(&message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => panic!("reading {topic}: {error}"),
            None => {
                assert!(last_heard.elapsed() < Duration::from_secs(30), "no end of {topic} in partitions {open:?}");
                continue;
            }
        }
        last_heard = Instant::now();
    }
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> BTreeSet<i32> {
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30)).expect("the broker answers");
    let found = metadata.topics().first().map(|topic| topic.partitions()).unwrap_or_default();
    assert!(!found.is_empty(), "no topic {topic}");
    found.iter().map(|partition| partition.id()).collect()
}

fn record(message: &rdkafka::message::BorrowedMessage<'_>) -> Record {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    Record {
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec))).collect(),
    }
}
