//! Campaigns to look at: lines of a file, or the newest messages of the live topic. Chunks are bounded as the job's
//! batches are.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::cli::Preview;
use crate::config::{Batch, Config};
use crate::error::{Error, Result};
use crate::kafka;
use crate::messages::{Messages, MessagesBuilder};

/// Where one message stands: partition and offset, or in a file 0 and the line.
pub type Place = (i32, i64);

/// Messages by row, with their places.
pub struct Chunk {
    pub messages: Messages,
    pub places: Vec<Place>,
}

/// All that was asked for, chunk by chunk.
pub enum Input {
    File { lines: Lines, limits: Batch },
    Kafka { messages: std::vec::IntoIter<Found>, limits: Batch },
}

impl Input {
    pub async fn open(config: &Config, asked: &Preview) -> Result<Input> {
        let limits = config.batch;
        if let Some(file) = &asked.file {
            return Ok(Input::File { lines: Lines::open(file)?, limits });
        }
        let wanted = asked.from_kafka.map_or(0, std::num::NonZeroUsize::get);
        let config = config.clone();
        let messages = kafka::blocking(move || newest(&config, wanted)).await?.into_iter();
        Ok(Input::Kafka { messages, limits })
    }

    pub fn next(&mut self) -> Result<Option<Chunk>> {
        let mut builder = MessagesBuilder::default();
        let mut places = Vec::new();
        let full = |builder: &MessagesBuilder, limits: &Batch| {
            builder.len() >= limits.max_messages || builder.bytes() >= limits.max_bytes
        };
        match self {
            Input::File { lines, limits } => {
                while !full(&builder, limits) {
                    let Some((number, line)) = lines.next()? else { break };
                    builder.push(number, None, None, Some(line), Vec::new());
                    places.push((0, number));
                }
            }
            Input::Kafka { messages, limits } => {
                while !full(&builder, limits) {
                    let Some(found) = messages.next() else { break };
                    builder.push(found.place.1, found.timestamp, None, found.value.as_deref(), Vec::new());
                    places.push(found.place);
                }
            }
        }
        Ok((!builder.is_empty()).then(|| Chunk { messages: builder.finish(), places }))
    }
}

/// The lines of a file that are not blank, numbered from 1.
pub struct Lines {
    reader: Box<dyn BufRead + Send>,
    name: String,
    number: i64,
    line: Vec<u8>,
}

impl Lines {
    fn open(file: &Path) -> Result<Lines> {
        let name = file.display().to_string();
        let reader: Box<dyn BufRead + Send> = match name.as_str() {
            "-" => Box::new(BufReader::new(std::io::stdin())),
            _ => Box::new(BufReader::new(File::open(file).map_err(|error| unreadable(&name, &error))?)),
        };
        Ok(Lines { reader, name, number: 0, line: Vec::new() })
    }

    fn next(&mut self) -> Result<Option<(i64, &[u8])>> {
        loop {
            self.line.clear();
            let read = self.reader.read_until(b'\n', &mut self.line).map_err(|error| unreadable(&self.name, &error))?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if !self.line.trim_ascii().is_empty() {
                return Ok(Some((self.number, self.line.trim_ascii())));
            }
        }
    }
}

fn unreadable(name: &str, error: &std::io::Error) -> Error {
    Error::Setting {
        key: "FILE".into(),
        problem: format!("cannot read {name}: {error}"),
        remedy: "name a readable file of campaigns, one JSON object a line, or - for standard input".into(),
    }
}

/// A message of the topic.
pub struct Found {
    place: Place,
    timestamp: Option<i64>,
    value: Option<Vec<u8>>,
}

/// The newest `wanted` messages of the source topic by their timestamps, oldest first. Partitions are assigned by hand:
/// no group is joined, and nothing is committed.
fn newest(config: &Config, wanted: usize) -> Result<Vec<Found>> {
    let topic = &config.source.topic;
    let probe = kafka::probe(&config.source.kafka)?;
    let count = kafka::partition_count(probe.client(), topic)?;
    let marks = |partition| {
        probe
            .fetch_watermarks(topic, partition, kafka::CALL_TIMEOUT)
            .map_err(Error::kafka(format!("reading the first and last offset of {topic}[{partition}]")))
    };
    let marks: Vec<(i64, i64)> = (0..count).map(marks).collect::<Result<_>>()?;
    let mut window = wanted as i64;
    loop {
        // Offsets have gaps (transaction markers, compaction), so that the last N of them may hold fewer messages.
        let starts: Vec<i64> = marks.iter().map(|&(low, high)| low.max(high.saturating_sub(window))).collect();
        let is_all = starts.iter().zip(&marks).all(|(start, (low, _))| start == low);
        let mut found = read(config, &starts, &marks)?;
        if found.len() < wanted && !is_all {
            window = window.saturating_mul(4);
            continue;
        }
        found.sort_by_key(|found| (found.timestamp, found.place));
        found.drain(..found.len().saturating_sub(wanted));
        return Ok(found);
    }
}

/// Everything committed from `starts` to the ends as they are now.
fn read(config: &Config, starts: &[i64], marks: &[(i64, i64)]) -> Result<Vec<Found>> {
    let topic = &config.source.topic;
    let doing = || Error::kafka(format!("reading {topic}"));
    // librdkafka assigns nothing without a group's name; the job's own is the one that it may have a right to.
    let owned = [
        ("group.id", config.source.group_id.as_str()),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("enable.partition.eof", "true"),
        ("isolation.level", "read_committed"),
        ("auto.offset.reset", "error"),
    ];
    let consumer: BaseConsumer = kafka::client_config(&config.source.kafka, &owned)
        .create()
        .map_err(Error::kafka("creating a consumer from [kafka] and [source.kafka]"))?;
    let mut assignment = TopicPartitionList::new();
    let mut open = std::collections::BTreeSet::new();
    for (partition, (start, (_, high))) in (0..).zip(starts.iter().zip(marks)) {
        if start < high {
            assignment.add_partition_offset(topic, partition, Offset::Offset(*start)).map_err(doing())?;
            open.insert(partition);
        }
    }
    consumer.assign(&assignment).map_err(doing())?;
    let mut found = Vec::new();
    let mut heard = Instant::now();
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let (partition, offset) = (message.partition(), message.offset());
                let end = marks.get(partition as usize).map_or(0, |(_, high)| *high);
                if offset < end {
                    found.push(Found {
                        place: (partition, offset),
                        timestamp: message.timestamp().to_millis(),
                        value: message.payload().map(<[u8]>::to_vec),
                    });
                }
                if offset + 1 >= end {
                    open.remove(&partition);
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => return Err(doing()(error)),
            None if heard.elapsed() > kafka::CALL_TIMEOUT => {
                return Err(Error::Away { what: format!("reading {topic}: no message for {:?}", kafka::CALL_TIMEOUT) });
            }
            None => continue,
        }
        heard = Instant::now();
    }
    Ok(found)
}
