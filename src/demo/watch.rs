//! Reads back what stands in the three topics, as any other consumer would, without a group.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientConfig, Message};
use tokio::sync::mpsc;

use super::stage::{PARTITIONS, Stage};
use crate::error::{Error, Result};

/// Records that were read and not yet looked at; the reader waits beyond.
const AHEAD: usize = 1_024;

/// One record.
#[derive(Debug, Clone)]
pub struct Record {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since the epoch.
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, String)>,
}

impl Record {
    /// The last header of that name: a letter may have been a letter before.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().rev().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// A thread that reads. It ends when this is dropped.
pub struct Watch {
    pub records: mpsc::Receiver<Record>,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    /// Reads all three topics from their beginnings on.
    pub fn start(stage: &Stage) -> Result<Watch> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", stage.bootstrap()).set("isolation.level", "read_committed");
        // librdkafka wants a group's name even of a reader that joins none.
        config
            .set("group.id", "dinnerbell-demo-reader")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "10");
        let consumer: BaseConsumer = config.create().map_err(Error::kafka("creating the demo's reader"))?;
        let mut all = TopicPartitionList::new();
        let topics = [&stage.config.source.topic, &stage.config.sink_kafka.topic, &stage.config.dead_letters.topic];
        for (topic, partitions) in topics.into_iter().zip([PARTITIONS, PARTITIONS, 1]) {
            for partition in 0..partitions {
                all.add_partition_offset(topic, partition, Offset::Beginning)
                    .map_err(Error::kafka(format!("reading {topic}")))?;
            }
        }
        consumer.assign(&all).map_err(Error::kafka("reading back the demo's topics"))?;
        let (sender, records) = mpsc::channel(AHEAD);
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let thread = std::thread::Builder::new().name("demo-reader".into()).spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50))
                    && sender.blocking_send(owned(&message)).is_err()
                {
                    return;
                }
            }
        });
        let thread = thread.map_err(Error::io("starting the demo's reader"))?;
        Ok(Watch { records, over, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.records.close();
        // It holds a connection to the broker, which must not go first.
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn owned(message: &impl Message) -> Record {
    let header = |header: rdkafka::message::Header<'_, &[u8]>| {
        (header.key.to_owned(), String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned())
    };
    let headers = message.headers().map(|headers| headers.iter().map(header).collect());
    Record {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        timestamp: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
    }
}
