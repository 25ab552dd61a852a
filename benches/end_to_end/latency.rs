//! Latency of single small campaigns, and what an idle job costs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use tokio_postgres::NoTls;

use crate::Options;
use crate::encoded::{Encoded, runtime};
use crate::null_job::STAGES;
use crate::process::Usage;
use crate::race::{Program, Stages, by_turns, fresh, verify};
use crate::report::{Bar, Report, percentile};
use crate::support::{Message, Stack};
use crate::workload::{Subscribers, UUID_CLIENTS, message};

/// A restaurant's regulars.
const SUBSCRIBERS: usize = 10;
const RESTAURANTS: usize = 1_000;
const EVERY: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_secs(20);

/// Per campaign: milliseconds until it was visible.
struct Latencies {
    postgres: Vec<f64>,
    kafka: Vec<f64>,
    /// Milliseconds of a commit's stages, on average.
    stages: Stages,
    /// Percent of a core.
    idle: f64,
    idle_rss: f64,
}

pub fn trickle(options: &Options, report: &mut Report) {
    let campaigns = ((100.0 * options.scale) as usize).max(20);
    let mut stack = Stack::new("trickle");
    Subscribers::Each { restaurants: RESTAURANTS, subscribers: SUBSCRIBERS }.insert(&stack, UUID_CLIENTS);
    let messages: Vec<Message> = (0..campaigns).map(|n| message(n, n % RESTAURANTS, true)).collect();
    let encoded = Encoded::new(&stack, &messages, 1);
    let (jobs, nulls) = by_turns(options.runs, |n, is_job| one(&mut stack, n, is_job, &encoded, &messages));
    tell(report, &jobs, &nulls);
}

fn one(stack: &mut Stack, n: usize, is_job: bool, encoded: &Encoded, messages: &[Message]) -> Latencies {
    // The null job counts messages from the topic's beginning: each run has a topic of its own.
    let topic = format!("{}.{n}.{is_job}", stack.directory.file_name().expect("a name").display());
    crate::support::create_topic(&stack.bootstrap, &topic, 3, &[]);
    stack.set("source", "topic", topic.as_str());
    fresh(stack, n);
    let spec = encoded.spec(stack, false);
    if is_job {
        stack.execute("TRUNCATE dinnerbell.progress");
    }
    let program = if is_job { Program::job(stack) } else { Program::null(&spec) };
    let stop = Arc::new(AtomicBool::new(false));
    let (postgres, kafka) = (watch_postgres(stack, stop.clone()), watch_kafka(stack, stop.clone()));
    let sent = send(stack, &topic, messages);
    let count = messages.len();
    // Whoever is slower than this is not in the race.
    let deadline = Instant::now() + Duration::from_secs(30);
    while stack.number("SELECT count(*) FROM public.subscribers_feedback") < (count * SUBSCRIBERS) as i64 {
        assert!(Instant::now() < deadline, "not all campaigns came out");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(Duration::from_millis(500));
    stop.store(true, Ordering::SeqCst);
    let latencies = |seen: BTreeMap<String, Instant>| -> Vec<f64> {
        assert_eq!(seen.len(), count, "campaigns seen");
        sent.iter().map(|(id, at)| (seen[id] - *at).as_secs_f64() * 1e3).collect()
    };
    let (postgres, kafka) = (latencies(postgres.join().expect("rows")), latencies(kafka.join().expect("records")));
    let stages = program.stages(count).map(|seconds| seconds * 1e3);
    let before = Usage::of(program.pid());
    std::thread::sleep(IDLE);
    let after = Usage::of(program.pid());
    drop(program);
    verify(stack, (count * SUBSCRIBERS) as u64);
    Latencies { postgres, kafka, stages, idle: after.since(&before) / IDLE.as_secs_f64() * 100.0, idle_rss: after.rss }
}

/// Produces one message every 100 ms; the id of each and when it was given its timestamp.
fn send(stack: &Stack, topic: &str, messages: &[Message]) -> Vec<(String, Instant)> {
    let mut config = ClientConfig::new();
    let producer: BaseProducer =
        config.set("bootstrap.servers", &stack.bootstrap).set("linger.ms", "0").create().expect("a producer");
    producer.client().fetch_metadata(Some(topic), Duration::from_secs(10)).expect("metadata");
    let begin = Instant::now();
    let mut sent = Vec::with_capacity(messages.len());
    for (n, message) in messages.iter().enumerate() {
        let due = begin + EVERY * n as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let value = message.value.as_deref().expect("a campaign");
        sent.push((campaign_id(value), Instant::now()));
        let record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(topic).partition(message.partition.unwrap_or_default()).payload(value);
        producer.send(record).map_err(|(error, _)| error).expect("room for one message");
        producer.poll(Duration::ZERO);
    }
    producer.flush(Duration::from_secs(10)).expect("Kafka takes them");
    sent
}

fn campaign_id(value: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(value).expect("JSON");
    value["adv_campaign_id"].as_str().expect("an id").to_owned()
}

/// The slowest campaigns of all runs, by their number: the first ones have more to wait for.
fn slowest<'a>(runs: impl Iterator<Item = &'a Vec<f64>>) -> String {
    let mut all: Vec<(usize, f64)> = runs.flat_map(|run| run.iter().copied().enumerate()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    let told = all.iter().take(5).map(|(number, millis)| format!("campaign {number} {millis:.0} ms"));
    told.collect::<Vec<_>>().join(", ")
}

type Watching = JoinHandle<BTreeMap<String, Instant>>;

/// Notes when the first row of each campaign can be read.
fn watch_postgres(stack: &Stack, stop: Arc<AtomicBool>) -> Watching {
    let url = stack.url.clone();
    let runtime = runtime();
    let client = runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("Postgres");
        tokio::spawn(connection);
        client
    });
    let sql = "SELECT id, adv_campaign_id FROM public.subscribers_feedback WHERE id > $1 ORDER BY id";
    let statement = runtime.block_on(client.prepare(sql)).expect("a statement");
    std::thread::spawn(move || {
        let (mut seen, mut last) = (BTreeMap::new(), 0i32);
        while !stop.load(Ordering::SeqCst) {
            let rows = runtime.block_on(client.query(&statement, &[&last])).expect("rows");
            let now = Instant::now();
            for row in &rows {
                last = row.get(0);
                seen.entry(row.get(1)).or_insert(now);
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        seen
    })
}

/// Notes when the first record of each campaign comes to a reader of what is committed.
fn watch_kafka(stack: &Stack, stop: Arc<AtomicBool>) -> Watching {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &stack.bootstrap).set("group.id", "unused").set("enable.auto.commit", "false");
    config.set("isolation.level", "read_committed").set("fetch.wait.max.ms", "100");
    config.set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create().expect("a consumer");
    let mut all = TopicPartitionList::new();
    for partition in 0..3 {
        all.add_partition_offset(&stack.triggers, partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&all).expect("an assignment");
    // It stands at the end of every partition before anything is sent: its own start is nobody's latency.
    let mut ends = BTreeSet::new();
    while ends.len() < 3 {
        match consumer.poll(Duration::from_secs(10)).expect("the end of an empty partition") {
            Err(KafkaError::PartitionEOF(partition)) => ends.insert(partition),
            other => panic!("nothing is there yet: {other:?}"),
        };
    }
    std::thread::spawn(move || {
        let mut seen = BTreeMap::new();
        while !stop.load(Ordering::SeqCst) {
            let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
            let now = Instant::now();
            let message = match message {
                Err(KafkaError::PartitionEOF(_)) => continue,
                message => message.expect("a record"),
            };
            seen.entry(campaign_id(message.payload().expect("a value"))).or_insert(now);
        }
        seen
    })
}

/// Quantiles of the campaigns of all runs together.
fn tell(report: &mut Report, jobs: &[Latencies], nulls: &[Latencies]) {
    let of = |runs: &[Latencies], sink: fn(&Latencies) -> &Vec<f64>, share: f64| {
        percentile(runs.iter().flat_map(|run| sink(run).iter().copied()), share)
    };
    type Sink = fn(&Latencies) -> &Vec<f64>;
    let sinks: [(&str, Sink, [f64; 2]); 2] =
        [("Kafka", |run| &run.kafka, [80.0, 114.0]), ("Postgres", |run| &run.postgres, [20.0, 39.0])];
    for (name, sink, limits) in sinks {
        for ((quantile, share, ratio), limit) in [("p50", 0.5, 1.3), ("p99", 0.99, 2.0)].into_iter().zip(limits) {
            let (job, null) = (of(jobs, sink, share), of(nulls, sink, share));
            report.figure(&format!("trickle: {quantile} in {name}: {job:.1} ms, null job {null:.1} ms"));
            report.bar(
                &format!("trickle: {quantile} in {name} against the null job"),
                Bar::AtMost(ratio),
                job / null,
                "",
            );
            report.bar(&format!("trickle: {quantile} in {name}"), Bar::AtMost(limit), job, " ms");
        }
        for (program, runs) in [("job", jobs), ("null job", nulls)] {
            report.figure(&format!("trickle: slowest in {name}, {program}: {}", slowest(runs.iter().map(sink))));
        }
    }
    for (program, runs) in [("job", jobs), ("null job", nulls)] {
        let middle = |stage: usize| percentile(runs.iter().map(|run| run.stages[stage]), 0.5);
        let stages = STAGES.iter().enumerate().map(|(stage, name)| format!("{name} {:.1} ms", middle(stage)));
        report.figure(&format!("trickle: stages of a commit, {program}: {}", stages.collect::<Vec<_>>().join(", ")));
    }
    let idle = percentile(jobs.iter().map(|run| run.idle), 0.5);
    report.bar("idle: CPU over 20 s, of a core", Bar::AtMost(1.0), idle, " %");
    let rss = percentile(jobs.iter().map(|run| run.idle_rss), 0.5);
    report.figure(&format!("idle: resident with a lookup of 10,000 rows: {rss:.0} MB"));
}
