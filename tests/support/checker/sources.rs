//! The evidence of a [`Stack`]: topics and tables, read by other means than the job's.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::TryStreamExt;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::super::chaos::audit;
use super::super::messages::{Record, consume_each};
use super::super::model::Model;
use super::super::postgres::connect;
use super::super::run::block_on;
use super::super::stack::Stack;
use super::super::witness::Witness;
use super::offsets::{GroupOffset, decode};
use super::{Evidence, Stream, Told};

/// What stands in the stack's topics and tables now. The audit tables must have been there since before the first start.
pub fn of_stack<'a>(
    stack: &'a Stack,
    model: &'a Model,
    sent_again: Vec<(i32, i64, i64)>,
    told: Vec<Told>,
) -> Evidence<'a> {
    Evidence {
        model,
        source: &stack.campaigns,
        input: topic(stack, &stack.campaigns, true),
        table: Box::new(|each| table(stack, each)),
        committed: topic(stack, &stack.triggers, true),
        uncommitted: topic(stack, &stack.triggers, false),
        letters: topic(stack, &stack.dead_letters, true),
        uncommitted_letters: topic(stack, &stack.dead_letters, false),
        history: audit::read(stack),
        offsets: group_offsets(stack),
        sent_again,
        told,
    }
}

fn topic<'a>(stack: &'a Stack, name: &'a str, committed: bool) -> Stream<'a, Record> {
    Box::new(move |each| consume_each(&stack.bootstrap, name, committed, each))
}

/// Row by row, in a thread that asks and this one that takes: the table may be larger than the memory.
fn table(stack: &Stack, each: &mut dyn FnMut(String)) {
    let (url, query) = (stack.url.clone(), Witness::DOCUMENTED.query());
    let (send, rows) = std::sync::mpsc::sync_channel::<Vec<String>>(8);
    let reading = std::thread::spawn(move || {
        block_on(async move {
            let client = connect(&url).await;
            let none: [&str; 0] = [];
            let rows = client.query_raw(&query, none).await.expect("a query");
            let mut chunks = std::pin::pin!(rows.try_chunks(1_000));
            while let Some(chunk) = chunks.try_next().await.expect("all rows") {
                send.send(chunk.iter().map(|row| row.get(0)).collect()).expect("the reader waits");
            }
        });
    });
    rows.into_iter().flatten().for_each(each);
    reading.join().expect("the table is read");
}

/// All that the group has committed, from the log of offsets itself. Aborted transactions are left out.
fn group_offsets(stack: &Stack) -> Vec<GroupOffset> {
    let mut found = Vec::new();
    consume_each(&stack.bootstrap, "__consumer_offsets", true, |record| {
        let key = record.key.as_deref().unwrap_or_default();
        let decoded = decode(&stack.group, &stack.campaigns, key, record.value.as_deref());
        found.extend(decoded.map(|(partition, offset, metadata)| GroupOffset {
            partition,
            offset,
            metadata,
            at: record.timestamp.unwrap_or_default(),
        }));
    });
    found
}

/// For each partition of a topic: the last stable offset, which an open transaction holds back, and the end of the log.
pub fn last_stable_and_end(bootstrap: &str, topic: &str) -> BTreeMap<i32, (i64, i64)> {
    let ends = |isolation: &str| -> BTreeMap<i32, i64> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("isolation.level", isolation).set("group.id", "unused");
        let consumer: BaseConsumer = config.create().expect("the settings are valid");
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(30)).expect("the broker answers");
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        let end = |partition: i32| {
            consumer.fetch_watermarks(topic, partition, Duration::from_secs(30)).expect("the broker answers").1
        };
        partitions.map(|partition| (partition.id(), end(partition.id()))).collect()
    };
    let stable = ends("read_committed");
    let all = ends("read_uncommitted");
    all.into_iter().map(|(partition, end)| (partition, (stable[&partition], end))).collect()
}
