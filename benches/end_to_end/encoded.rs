//! The triggers of a workload, encoded before the clock starts: what the null job sends. Decoded, joined and encoded by the
//! job's own code, so that both send the same bytes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use bytes::BytesMut;
use chrono::Utc;
use dinnerbell::config::Config;
use dinnerbell::encode::copy::{self, CopyEncoder};
use dinnerbell::encode::{chunk, json::JsonRows};
use dinnerbell::job::setup::{self, Mission, Topics};
use dinnerbell::ledger::store::{self, Ledger};
use dinnerbell::messages::MessagesBuilder;
use dinnerbell::sink::postgres::{SLICE_ROWS, WAITING_CHUNKS};
use futures::TryStreamExt;

use crate::null_job::{Commit, Span, Spec, Stretch};
use crate::support::{Message, Stack};

/// Encoded output: its file and what stands where in it.
pub struct Encoded {
    pub data: PathBuf,
    pub commits: Vec<Commit>,
    /// The COPY statement that the rows are for.
    copy: String,
}

impl Encoded {
    pub fn rows(&self) -> u64 {
        self.commits.iter().map(|commit| commit.rows as u64).sum()
    }

    /// Makes the output of `messages`, with `at_once` of them in each commit.
    pub fn new(stack: &Stack, messages: &[Message], at_once: usize) -> Encoded {
        let config = Arc::new(Config::load(Some(&stack.config())).expect("the stack's settings"));
        let data = stack.directory.join("encoded");
        let (copy, commits) = runtime().block_on(encode(&config, messages, at_once, &data));
        Encoded { data, commits, copy }
    }

    /// Registers the stack's group in the ledger and writes all that a null job needs; the file to start it with. `is_backlog`:
    /// the messages are in the topic already.
    pub fn spec(&self, stack: &Stack, is_backlog: bool) -> PathBuf {
        let config = Arc::new(Config::load(Some(&stack.config())).expect("the stack's settings"));
        let spec = runtime().block_on(spec(&config, &stack.url, self, is_backlog));
        let file = stack.directory.join("null-job.json");
        std::fs::write(&file, serde_json::to_vec(&spec).expect("plain data")).expect("the directory is ours");
        file
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a tokio runtime")
}

async fn encode(config: &Arc<Config>, messages: &[Message], at_once: usize, data: &Path) -> (String, Vec<Commit>) {
    let mission = Mission::load(config).expect("the SQL");
    let postgres = store::connect(&config.postgres).await.expect("Postgres");
    let topics = setup::inspect_topics(config, setup::brokers(config).await.expect("Kafka")).await.expect("topics");
    let shape = setup::describe_table(config, &postgres).await.expect("the sink table");
    let keys = setup::lookup_keys(config, &mission, &postgres).await.expect("what the SQL joins by");
    let lookups = setup::load_lookups(&mission, &postgres, keys).await.expect("the lookup tables");
    let engine = setup::compile(config, &mission, &lookups, &shape, &topics).await.expect("the SQL");
    let mut out = Out::create(data);
    let mut commits = Vec::new();
    let mut to = vec![0i64; topics.partitions as usize];
    for messages in messages.chunks(at_once) {
        for message in messages {
            to[message.partition.expect("a partition of its own") as usize] += 1;
        }
        let mut builder = MessagesBuilder::default();
        for (offset, message) in messages.iter().enumerate() {
            builder.push(offset as i64, None, message.key.as_deref(), message.value.as_deref(), Vec::new());
        }
        let decoded = engine.decoder.decode(&builder.finish()).expect("campaigns");
        assert!(decoded.rejects.is_empty(), "campaigns are as they should be");
        let rows = engine.transform.run(decoded.batch, Utc::now(), &lookups).await.expect("the SQL runs");
        let mut rows = std::pin::pin!(rows);
        let mut cutter = Cutter::new(&engine.copy.schema, &engine.copy.types);
        while let Some(batch) = rows.try_next().await.expect("the SQL runs") {
            let width = batch.num_columns() - usize::from(engine.transform.carries_rows());
            let batch = batch.project(&(0..width).collect::<Vec<_>>()).expect("columns");
            cutter.add(engine.conform.apply(&batch).expect("a batch").expect("rows that fit the table"), &mut out);
        }
        cutter.end_stretch(&mut out);
        let rows = cutter.stretches.iter().map(|stretch| stretch.rows).sum();
        commits.push(Commit { to: to.clone(), rows, stretches: cutter.stretches });
    }
    out.file.flush().expect("writing the encoded rows");
    (engine.copy.statement, commits)
}

/// Cuts and encodes one commit's rows as the job does.
struct Cutter {
    copy: CopyEncoder,
    json: JsonRows,
    /// The rows of the COPY under way, and those of them that are in no chunk yet.
    batches: Vec<RecordBatch>,
    slice: Vec<RecordBatch>,
    slice_rows: usize,
    stored: Vec<Span>,
    stretches: Vec<Stretch>,
}

impl Cutter {
    fn new(schema: &arrow::datatypes::SchemaRef, types: &[tokio_postgres::types::Type]) -> Cutter {
        let copy = CopyEncoder::new(schema, types).expect("a conformed schema");
        let json = JsonRows::new(schema).expect("a conformed schema");
        let (batches, slice, stored, stretches) = Default::default();
        Cutter { copy, json, batches, slice, slice_rows: 0, stored, stretches }
    }

    fn add(&mut self, batch: RecordBatch, out: &mut Out) {
        self.slice_rows += batch.num_rows();
        self.batches.push(batch.clone());
        self.slice.push(batch);
        if self.slice_rows >= SLICE_ROWS {
            self.end_slice(out);
        }
        if self.stored.iter().map(|(from, to)| to - from).sum::<usize>() >= WAITING_CHUNKS {
            self.end_stretch(out);
        }
    }

    fn end_slice(&mut self, out: &mut Out) {
        self.slice_rows = 0;
        let slice = std::mem::take(&mut self.slice);
        if !slice.is_empty() {
            self.stored.push(out.write(&chunk::pack_all(&slice).expect("conformed rows")));
        }
    }

    fn end_stretch(&mut self, out: &mut Out) {
        self.end_slice(out);
        let batches = std::mem::take(&mut self.batches);
        if batches.is_empty() {
            return;
        }
        let (mut buffer, mut spans) = (BytesMut::new(), Vec::new());
        copy::header(&mut buffer);
        for batch in &batches {
            for chunk in self.copy.chunks(batch, &mut buffer).expect("conformed rows") {
                spans.push(out.write(&chunk.expect("conformed rows")));
            }
        }
        copy::trailer(&mut buffer);
        spans.push(out.write(&buffer));
        let (mut json, mut ends) = (Vec::new(), Vec::new());
        for batch in &batches {
            for row in self.json.encode(batch).expect("conformed rows").rows() {
                json.extend_from_slice(row);
                ends.extend(u32::try_from(json.len()).expect("less than 4 GiB of JSON").to_le_bytes());
            }
        }
        self.stretches.push(Stretch {
            rows: batches.iter().map(|batch| batch.num_rows() as i64).sum(),
            copy: spans,
            json: out.write(&json),
            ends: out.write(&ends),
            stored: std::mem::take(&mut self.stored),
        });
    }
}

struct Out {
    file: BufWriter<File>,
    at: usize,
}

impl Out {
    fn create(path: &Path) -> Out {
        Out { file: BufWriter::new(File::create(path).expect("the directory is ours")), at: 0 }
    }

    fn write(&mut self, bytes: &[u8]) -> Span {
        self.file.write_all(bytes).expect("writing the encoded rows");
        let from = self.at;
        self.at += bytes.len();
        (from, self.at)
    }
}

async fn spec(config: &Arc<Config>, url: &str, encoded: &Encoded, is_backlog: bool) -> Spec {
    let postgres = store::connect(&config.postgres).await.expect("Postgres");
    let topics = setup::inspect_topics(config, setup::brokers(config).await.expect("Kafka")).await.expect("topics");
    let Topics { cluster_id, topic_id, .. } = &topics;
    let (group, topic) = (&config.source.group_id, &config.source.topic);
    store::create(&postgres, &config.ledger_schema).await.expect("the ledger");
    let ledger =
        Ledger::open(&postgres, &config.ledger_schema, cluster_id, group, topic, topic_id).await.expect("the ledger");
    let partitions: Vec<i32> = (0..topics.partitions).collect();
    let starts: Vec<(i32, i64)> = partitions.iter().map(|&partition| (partition, 0)).collect();
    ledger.register(&postgres, &starts).await.expect("the ledger");
    let transactional_ids = [0, 1].map(|k| format!("{group}.null.{k}"));
    let claimed = ledger.take(&postgres, &partitions, &transactional_ids).await.expect("the ledger");
    let mut producer = setup::producer_properties(config, &topics);
    // It has all records at once, and keeps the queue full: what lingers behind a batch would make librdkafka's thread spin.
    for (key, value) in [("linger.ms", "60000"), ("queue.buffering.max.kbytes", "16384")] {
        producer.insert(key.into(), value.into());
    }
    let mut consumer = std::collections::BTreeMap::clone(&config.source.kafka);
    let queued = (65_536 / topics.partitions).to_string();
    for (key, value) in [
        ("group.id", group.as_str()),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("isolation.level", "read_committed"),
        ("auto.offset.reset", "error"),
        ("partition.assignment.strategy", "range"),
        ("session.timeout.ms", "10000"),
        ("queued.max.messages.kbytes", &queued),
        ("fetch.queue.backoff.ms", "10"),
    ] {
        consumer.insert(key.into(), value.into());
    }
    Spec {
        url: url.to_owned(),
        schema: config.ledger_schema.clone(),
        cluster_id: cluster_id.clone(),
        group: group.clone(),
        topic: topic.clone(),
        topic_id: topic_id.clone(),
        partitions: topics.partitions,
        output_topic: config.sink_kafka.topic.clone(),
        copy: encoded.copy.clone(),
        consumer,
        producer,
        transactional_ids,
        epoch: claimed[0].progress.epoch,
        is_backlog,
        data: encoded.data.clone(),
        commits: encoded.commits.clone(),
    }
}
