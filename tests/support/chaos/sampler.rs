//! Looks at Kafka's offsets and the ledger's while everything goes on: I4, and how far the job has come.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio_postgres::{Client, NoTls};

use super::super::checker::Examination;
use super::super::stack::Stack;
use super::report::Tally;

/// The last that was seen of the ledger.
#[derive(Debug, Default)]
pub struct Seen {
    next: Mutex<BTreeMap<i32, i64>>,
    unconfirmed: AtomicI64,
    ended: AtomicBool,
    /// The place of a replica that waits for messages without output, plus one.
    quiet: AtomicUsize,
}

impl Seen {
    /// The replica at this place is to have nothing but messages without output for a while.
    pub fn want_quiet(&self, place: usize) {
        self.quiet.store(place + 1, Ordering::SeqCst);
    }

    /// The place that was asked for since the last time.
    pub fn take_quiet(&self) -> Option<usize> {
        self.quiet.swap(0, Ordering::SeqCst).checked_sub(1)
    }

    pub fn next(&self, partition: i32) -> i64 {
        self.next.lock().expect("no panic").get(&partition).copied().unwrap_or_default()
    }

    /// Stored parts.
    pub fn unconfirmed(&self) -> i64 {
        self.unconfirmed.load(Ordering::SeqCst)
    }
}

/// What the thread comes to.
#[derive(Default)]
struct Sampled {
    samples: u64,
    away: u64,
    ahead: Vec<String>,
}

pub struct Sampler {
    seen: Arc<Seen>,
    thread: JoinHandle<Sampled>,
}

impl Sampler {
    pub fn start(stack: &Stack) -> Sampler {
        let seen = Arc::new(Seen::default());
        let (shared, probe) = (seen.clone(), Probe::of(stack));
        Sampler { seen, thread: std::thread::spawn(move || probe.run(&shared)) }
    }

    pub fn shared(&self) -> Arc<Seen> {
        self.seen.clone()
    }

    pub fn end(self, tally: &mut Tally, to: &mut Examination) {
        self.seen.ended.store(true, Ordering::SeqCst);
        let Sampled { samples, away, ahead } = self.thread.join().expect("the sampler does not panic");
        tally.fact("samples of both offsets", samples);
        tally.fact("samples while a server was away", away);
        if let Some(first) = ahead.first() {
            to.find(
                "I4",
                format!("Kafka's offset was ahead of the ledger's {} times; the first: {first}", ahead.len()),
            );
        }
    }
}

struct Probe {
    url: String,
    topic: String,
    group: String,
    partitions: i32,
    consumer: BaseConsumer,
    runtime: tokio::runtime::Runtime,
}

impl Probe {
    fn of(stack: &Stack) -> Probe {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &stack.bootstrap).set("group.id", &stack.group).set("log_level", "0");
        // Not the stable offset, for which the broker makes us wait, but what is committed right now.
        config.set("enable.auto.commit", "false").set("isolation.level", "read_uncommitted");
        config.set("reconnect.backoff.max.ms", "200");
        let consumer: BaseConsumer = config.create().expect("the settings are valid");
        let metadata = consumer.fetch_metadata(Some(&stack.campaigns), Duration::from_secs(30)).expect("it answers");
        Probe {
            url: stack.url.clone(),
            topic: stack.campaigns.clone(),
            group: stack.group.clone(),
            partitions: metadata.topics()[0].partitions().len() as i32,
            consumer,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime"),
        }
    }

    fn run(self, seen: &Seen) -> Sampled {
        let mut sampled = Sampled::default();
        let mut client = None;
        while !seen.ended.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(100));
            // Kafka first: the ledger only grows, so an offset beyond what it has afterwards was ahead before.
            let kafka = self.kafka();
            let Some(ledger) = self.ledger(&mut client, seen) else {
                sampled.away += 1;
                continue;
            };
            let Some(kafka) = kafka else {
                sampled.away += 1;
                continue;
            };
            sampled.samples += 1;
            for (partition, offset) in kafka {
                let next = ledger.get(&partition).copied();
                if next.is_none_or(|next| offset > next) {
                    sampled.ahead.push(format!("partition {partition}: Kafka {offset}, ledger {next:?}"));
                }
            }
        }
        sampled
    }

    fn kafka(&self) -> Option<Vec<(i32, i64)>> {
        let mut asked = TopicPartitionList::new();
        for partition in 0..self.partitions {
            asked.add_partition(&self.topic, partition);
        }
        let found = self.consumer.committed_offsets(asked, Duration::from_secs(2)).ok()?;
        let offset = |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), offset)),
            _ => None,
        };
        Some(found.elements().iter().filter_map(offset).collect())
    }

    /// Asks on one connection for as long as it holds.
    fn ledger(&self, client: &mut Option<Client>, seen: &Seen) -> Option<BTreeMap<i32, i64>> {
        let found = self.runtime.block_on(async {
            if client.is_none() {
                let (new, connection) = tokio_postgres::connect(&self.url, NoTls).await.ok()?;
                tokio::spawn(connection);
                *client = Some(new);
            }
            let asking = self.ask(client.as_ref()?);
            tokio::time::timeout(Duration::from_secs(5), asking).await.ok()?.ok()
        });
        let Some((next, unconfirmed)) = found else {
            *client = None;
            return None;
        };
        seen.next.lock().expect("no panic").clone_from(&next);
        seen.unconfirmed.store(unconfirmed, Ordering::SeqCst);
        Some(next)
    }

    async fn ask(&self, client: &Client) -> Result<(BTreeMap<i32, i64>, i64), tokio_postgres::Error> {
        let progress = "SELECT partition, next_offset FROM dinnerbell.progress WHERE group_id = $1";
        let rows = client.query(progress, &[&self.group]).await?;
        let parts = client.query_one("SELECT count(*) FROM dinnerbell.parts", &[]).await?;
        Ok((rows.iter().map(|row| (row.get(0), row.get(1))).collect(), parts.get(0)))
    }
}
