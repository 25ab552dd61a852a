//! The null job: the triggers of a workload, encoded beforehand, through tokio-postgres and the job's own Kafka producers
//! into both sinks in the job's transactions, while the input topic is read and thrown away. It decodes, joins and encodes
//! nothing, prepares its statements, sends them without waiting wherever their order allows, and never holds the input back:
//! what the job could be at its best.
//!
//! It prints `ready` once it is a member of the group, connected to all, and has read as far ahead as the job has when it is
//! ready: of a backlog the first commit's messages, and as many more as librdkafka's queue holds. Then it prints a line for each
//! commit, the seconds of its [`STAGES`]. It stays when all is sent until it is killed.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dinnerbell::kafka::GroupMetadata;
use dinnerbell::ledger::store::{Ledger, Step};
use dinnerbell::sink::kafka::{OffsetCommit, Producer, Record};
use futures::SinkExt;
use futures::future::try_join_all;
use rdkafka::bindings as ffi;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::message::Message;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Statement};
use uuid::Uuid;

/// What a commit is timed by, as the job's metric `dinnerbell_batch_seconds` names it: rows to Postgres and rows to Kafka, side
/// by side, and then the end of either transaction.
pub const STAGES: [&str; 4] = ["postgres", "kafka", "postgres_commit", "kafka_commit"];

/// From and to, in the file of encoded rows.
pub type Span = (usize, usize);

/// All that the null job knows.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    pub url: String,
    pub schema: String,
    pub cluster_id: String,
    pub group: String,
    pub topic: String,
    pub topic_id: String,
    pub partitions: i32,
    pub output_topic: String,
    pub copy: String,
    pub consumer: BTreeMap<String, String>,
    pub producer: BTreeMap<String, String>,
    pub transactional_ids: [String; 2],
    pub epoch: i64,
    /// The messages are all in the topic before it starts.
    pub is_backlog: bool,
    pub data: PathBuf,
    pub commits: Vec<Commit>,
}

/// What one commit sends, once its messages have come in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Commit {
    /// The offset after its last message, by partition.
    pub to: Vec<i64>,
    pub rows: i64,
    pub stretches: Vec<Stretch>,
}

/// The rows of one COPY with its header and trailer, and the same as JSON end to end with the end of each (u32), and as stored
/// chunks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stretch {
    pub rows: i64,
    pub copy: Vec<Span>,
    pub json: Span,
    pub ends: Span,
    pub stored: Vec<Span>,
}

pub fn run(spec: &Path) {
    let spec: Spec = serde_json::from_slice(&std::fs::read(spec).expect("the spec")).expect("a spec");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a tokio runtime");
    runtime.block_on(job(spec));
}

async fn job(spec: Spec) {
    let path = spec.data.clone();
    let data = tokio::task::spawn_blocking(move || map(&path));
    let blocking = tokio::task::spawn_blocking::<_, Producer>;
    let [a, b] = [0, 1].map(|k| {
        let (properties, id) = (spec.producer.clone(), spec.transactional_ids[k].clone());
        let topic = spec.output_topic.clone();
        blocking(move || {
            let producer = Producer::open(&properties, &id).expect("a producer");
            producer.get_to_know(&topic);
            producer
        })
    });
    let (properties, topic) = (spec.consumer.clone(), spec.topic.clone());
    let joined = tokio::task::spawn_blocking(move || join(&properties, &topic));
    let (sink, a, b, joined, data) = tokio::join!(Sink::connect(&spec), a, b, joined, data);
    let data = data.expect("the encoded rows");
    let producers = [a, b].map(|producer| Arc::new(producer.expect("a producer")));
    let consumer = joined.expect("a member of the group");
    let group = Arc::new(GroupMetadata::capture(&consumer).expect("a member of the group"));
    let (to, mut reads) = watch::channel(vec![0i64; spec.partitions as usize]);
    assign(&consumer, &spec);
    let (ready, is_ready) = oneshot::channel();
    let backlog = spec.is_backlog.then(|| (spec.commits[0].to.clone(), ready));
    std::thread::spawn(move || read(&consumer, &to, backlog));
    if spec.is_backlog {
        is_ready.await.expect("the reader runs");
    }
    println!("ready");

    let (mut done, mut confirmed, mut turn) = (vec![0i64; spec.partitions as usize], None, 0);
    for commit in &spec.commits {
        let all_read = |read: &Vec<i64>| read.iter().zip(&commit.to).all(|(read, to)| read >= to);
        drop(reads.wait_for(all_read).await.expect("the reader runs"));
        let id = Uuid::new_v4();
        let producer = producers[turn % 2].clone();
        turn += 1;
        let (sending, topic) = (producer.clone(), spec.output_topic.clone());
        let records: Vec<(Bytes, Bytes)> =
            commit.stretches.iter().map(|rows| (cut(&data, rows.json), cut(&data, rows.ends))).collect();
        let began = Instant::now();
        let produced = tokio::task::spawn_blocking(move || produce(&sending, &topic, &records));
        sink.write(commit, &data, id, &done, confirmed).await;
        let written = began.elapsed();
        let produced = produced.await.expect("Kafka takes the rows");
        let (steps, began) = (sink.steps(id, &done, &commit.to), Instant::now());
        sink.ledger.advance_and_commit(&sink.client, &steps).await.expect("Postgres commits");
        let (committed, began) = (began.elapsed(), Instant::now());
        let (topic, group) = (spec.topic.clone(), group.clone());
        tokio::task::spawn_blocking(move || finish(&producer, &topic, &steps, &group)).await.expect("Kafka commits");
        (confirmed, done) = (Some(id), commit.to.clone());
        let stages = [written, produced, committed, began.elapsed()].map(|stage| stage.as_secs_f64().to_string());
        println!("{}", stages.join(" "));
    }
    std::future::pending().await
}

/// Postgres, with everything prepared.
struct Sink {
    client: Client,
    ledger: Ledger,
    copy: Statement,
    chunk: Statement,
    part: Statement,
    forget: [Statement; 2],
    epoch: i64,
    output_topic: String,
}

impl Sink {
    async fn connect(spec: &Spec) -> Sink {
        let (client, connection) = tokio_postgres::connect(&spec.url, NoTls).await.expect("Postgres");
        tokio::spawn(connection);
        let Spec { schema, cluster_id, group, topic, topic_id, .. } = spec;
        let ledger = Ledger::open(&client, schema, cluster_id, group, topic, topic_id).await.expect("the ledger");
        let chunk = format!(
            "INSERT INTO {schema}.chunks (commit_id, partition, number, kind, body) VALUES ($1, $2, $3, 'rows', $4)"
        );
        let part = format!(
            "INSERT INTO {schema}.parts (commit_id, cluster_id, group_id, topic_id, partition, from_offset, to_offset, \
               format, previous_metadata, rows, letters, outcomes, triggered_at, sql_hash, sink_table, output_topic, \
               output_key, letter_topic) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, 1, $8, $9, 0, '{{}}', now(), '', '', $10, NULL, '')"
        );
        let forget = |table: &str| format!("DELETE FROM {schema}.{table} WHERE commit_id = $1");
        let [chunks, parts] = [forget("chunks"), forget("parts")];
        let prepare = async |sql: &str| client.prepare(sql).await.expect("a statement");
        let copy = prepare(&spec.copy).await;
        let (chunk, part) = (prepare(&chunk).await, prepare(&part).await);
        let forget = [prepare(&chunks).await, prepare(&parts).await];
        let (epoch, output_topic) = (spec.epoch, spec.output_topic.clone());
        Sink { client, ledger, copy, chunk, part, forget, epoch, output_topic }
    }

    /// One commit up to its `advance`. Statements follow one another on the connection without waiting for answers.
    async fn write(&self, commit: &Commit, data: &Bytes, id: Uuid, from: &[i64], old: Option<Uuid>) {
        let client = &self.client;
        let partition = (0..from.len()).find(|&p| commit.to[p] > from[p]).unwrap_or_default();
        let begin = client.batch_execute("BEGIN");
        let forget = async {
            let Some(old) = &old else { return Ok(()) };
            let parameters: [&(dyn ToSql + Sync); 1] = [old];
            let [chunks, parts] = &self.forget;
            tokio::try_join!(client.execute(chunks, &parameters), client.execute(parts, &parameters)).map(drop)
        };
        let copy_in = || client.copy_in::<_, Bytes>(&self.copy);
        let ((), (), first) = tokio::try_join!(begin, forget, copy_in()).expect("a transaction and its COPY");
        let (mut copying, mut numbers) = (Some(first), 0i32..);
        for (k, rows) in commit.stretches.iter().enumerate() {
            let mut sink = std::pin::pin!(copying.take().expect("a COPY for each stretch"));
            for &span in &rows.copy {
                sink.feed(cut(data, span)).await.expect("COPY takes rows");
            }
            let is_last = k + 1 == commit.stretches.len();
            let bodies = rows.stored.iter().map(|&(from, to)| &data[from..to]);
            let chunks: Vec<(&[u8], i32)> = bodies.zip(numbers.by_ref()).collect();
            let stored = try_join_all(chunks.iter().map(async |(body, number)| {
                let parameters: [&(dyn ToSql + Sync); 4] = [&id, &(partition as i32), number, body];
                client.execute(&self.chunk, &parameters).await
            }));
            let next = async {
                match is_last {
                    true => self.part(commit, id, partition, from).await.map(|_| None),
                    false => copy_in().await.map(Some),
                }
            };
            let (copied, _, next) = tokio::try_join!(sink.as_mut().finish(), stored, next).expect("COPY ends");
            assert_eq!(copied, rows.rows as u64);
            copying = next;
        }
    }

    /// The stored part: one for all partitions, where the job has one for each.
    async fn part(
        &self,
        commit: &Commit,
        id: Uuid,
        partition: usize,
        from: &[i64],
    ) -> Result<u64, tokio_postgres::Error> {
        let Ledger { cluster_id, group_id, topic_id, .. } = &self.ledger;
        let metadata = self.ledger.metadata(self.epoch, Uuid::nil());
        let parameters: [&(dyn ToSql + Sync); 10] = [
            &id,
            cluster_id,
            group_id,
            topic_id,
            &(partition as i32),
            &from[partition],
            &commit.to[partition],
            &metadata,
            &commit.rows,
            &self.output_topic,
        ];
        self.client.execute(&self.part, &parameters).await
    }

    fn steps(&self, id: Uuid, from: &[i64], to: &[i64]) -> Vec<Step> {
        let metadata = self.ledger.metadata(self.epoch, id);
        (0..from.len())
            .filter(|&partition| to[partition] > from[partition])
            .map(|partition| Step {
                partition: partition as i32,
                epoch: self.epoch,
                from: from[partition],
                to: to[partition],
                has_output: true,
                metadata: metadata.clone(),
            })
            .collect()
    }
}

fn client(properties: &BTreeMap<String, String>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("reconnect.backoff.ms", "20");
    for (key, value) in properties {
        config.set(key, value);
    }
    config
}

/// How long that takes, to the last acknowledgement.
fn produce(producer: &Producer, topic: &str, records: &[(Bytes, Bytes)]) -> Duration {
    producer.begin().expect("a transaction");
    let began = Instant::now();
    for (json, ends) in records {
        let ends = ends.chunks_exact(4).map(|end| u32::from_le_bytes(end.try_into().expect("4 bytes")) as usize);
        let starts = std::iter::once(0).chain(ends.clone());
        let records = starts.zip(ends).map(|(start, end)| -> Record<'_> { (None, &json[start..end]) });
        producer.produce_all(topic, records).expect("Kafka takes the rows");
    }
    let patience = Instant::now() + Duration::from_secs(600);
    assert!(producer.acknowledged(patience).expect("Kafka takes the rows"), "not within ten minutes");
    began.elapsed()
}

fn finish(producer: &Producer, topic: &str, steps: &[Step], group: &GroupMetadata) {
    let commit = |step: &Step| {
        let metadata = step.metadata.clone();
        OffsetCommit { partition: step.partition, offset: step.to, metadata }
    };
    let offsets: Vec<OffsetCommit> = steps.iter().map(commit).collect();
    producer.send_offsets(topic, &offsets, group.get()).expect("offsets");
    producer.commit().expect("a commit");
}

/// Accepts an assignment empty, as the job does, which reads only what it has claimed.
#[derive(Default)]
struct Member {
    assigned: std::sync::atomic::AtomicBool,
}

impl ClientContext for Member {}

impl ConsumerContext for Member {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, _: &mut TopicPartitionList) {
        if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            consumer.assign(&TopicPartitionList::new()).expect("an assignment");
            self.assigned.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }
}

fn join(properties: &BTreeMap<String, String>, topic: &str) -> BaseConsumer<Member> {
    let consumer: BaseConsumer<Member> = client(properties).create_with_context(Member::default()).expect("a consumer");
    consumer.subscribe(&[topic]).expect("a subscription");
    while !consumer.context().assigned.load(std::sync::atomic::Ordering::SeqCst) {
        assert!(consumer.poll(Duration::from_millis(10)).is_none(), "nothing is assigned yet");
    }
    consumer
}

fn assign(consumer: &BaseConsumer<Member>, spec: &Spec) {
    let mut all = TopicPartitionList::new();
    for partition in 0..spec.partitions {
        all.add_partition_offset(&spec.topic, partition, Offset::Offset(0)).expect("an offset");
    }
    consumer.assign(&all).expect("an assignment");
}

/// Reads the topic for ever, in whole batches, and throws it away. Says that it is `ready` once it has read `backlog`, the first
/// commit's, and librdkafka's queue is full.
fn read(
    consumer: &BaseConsumer<Member>,
    to: &watch::Sender<Vec<i64>>,
    mut backlog: Option<(Vec<i64>, oneshot::Sender<()>)>,
) {
    // SAFETY: the client outlives the queue, which lives as long as the process.
    let queue = unsafe { ffi::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
    let mut batch = vec![std::ptr::null_mut(); 10_000];
    loop {
        // The first of a batch is waited for; the rest is what has come with it.
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.expect("a message");
        let mut seen = to.borrow().clone();
        seen[message.partition() as usize] = message.offset() + 1;
        loop {
            // SAFETY: as many places as are asked for; each message is read and given back once.
            let count = unsafe { ffi::rd_kafka_consume_batch_queue(queue, 0, batch.as_mut_ptr(), batch.len()) };
            for &message in &batch[..count.max(0) as usize] {
                unsafe {
                    assert_eq!((*message).err, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
                    seen[(*message).partition as usize] = (*message).offset + 1;
                    ffi::rd_kafka_message_destroy(message);
                }
            }
            to.send_replace(seen.clone());
            if backlog.as_ref().is_some_and(|(to, _)| seen.iter().zip(to).all(|(seen, to)| seen >= to))
                && let Some((_, ready)) = backlog.take()
            {
                wait_until_full(queue);
                ready.send(()).expect("the job waits for it");
            }
            if count < batch.len() as isize {
                break;
            }
        }
    }
}

/// Until nothing more comes into the queue, which nobody reads meanwhile.
fn wait_until_full(queue: *mut ffi::rd_kafka_queue_t) {
    // SAFETY: the queue is alive.
    let length = || unsafe { ffi::rd_kafka_queue_length(queue) };
    let mut before = length();
    loop {
        std::thread::sleep(Duration::from_millis(10));
        let now = length();
        if now == before {
            return;
        }
        before = now;
    }
}

fn cut(data: &Bytes, (from, to): Span) -> Bytes {
    data.slice(from..to)
}

/// The file as it lies in the page cache: reading it costs nobody a copy.
struct Mapped(*const u8, usize);

// SAFETY: nobody writes to it.
unsafe impl Send for Mapped {}
unsafe impl Sync for Mapped {}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: mapped for as long as the process lives.
        unsafe { std::slice::from_raw_parts(self.0, self.1) }
    }
}

fn map(path: &Path) -> Bytes {
    let file = File::open(path).expect("the encoded rows");
    let length = file.metadata().expect("the encoded rows").len() as usize;
    if length == 0 {
        return Bytes::new();
    }
    // With all its pages at once: faults would be paid for while it runs.
    let flags = libc::MAP_PRIVATE | libc::MAP_POPULATE;
    // SAFETY: a private mapping of a file that nobody changes.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
    assert_ne!(at, libc::MAP_FAILED, "mapping the encoded rows: {}", std::io::Error::last_os_error());
    Bytes::from_owner(Mapped(at.cast(), length))
}
