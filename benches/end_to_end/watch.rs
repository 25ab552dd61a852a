//! When is the last row visible in both sinks? Asked of the servers, so that job and null job are judged alike, and cheaply,
//! so that the asking does not slow them: progress and rows become visible in Postgres by the same commit, the group's
//! offsets and rows in Kafka by the same transaction.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls, Statement};

use crate::encoded::runtime;
use crate::support::Stack;

/// Between two questions: below what the figures show.
const PAUSE: Duration = Duration::from_millis(5);

/// No workload takes this long.
const PATIENCE: Duration = Duration::from_secs(1_800);

pub struct Watch {
    runtime: tokio::runtime::Runtime,
    client: Client,
    /// How far the ledger is; planned once it is there, so that asking again costs Postgres little.
    progress: OnceCell<Statement>,
    committed: BaseConsumer,
    uncommitted: BaseConsumer,
    group: String,
    topic: String,
    output: String,
    partitions: i32,
}

impl Watch {
    /// Connects, which takes its time: before the clock starts.
    pub fn new(stack: &Stack) -> Watch {
        let runtime = runtime();
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&stack.url, NoTls).await.expect("Postgres");
            tokio::spawn(connection);
            client
        });
        let consumer = |isolation: &str| -> BaseConsumer {
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", &stack.bootstrap).set("group.id", &stack.group);
            // Offsets of a transaction that is about to end are asked for again within the call, by default 100 ms later.
            config.set("retry.backoff.ms", "1").set("retry.backoff.max.ms", "5");
            config.set("isolation.level", isolation).create().expect("a consumer")
        };
        let watch = Watch {
            runtime,
            client,
            progress: OnceCell::new(),
            committed: consumer("read_committed"),
            uncommitted: consumer("read_uncommitted"),
            group: stack.group.clone(),
            topic: stack.campaigns.clone(),
            output: stack.triggers.clone(),
            partitions: 3,
        };
        watch.ends(&watch.uncommitted);
        watch.ends(&watch.committed);
        watch
    }

    /// Waits until all `messages` have taken effect in both sinks; `alive` is asked now and then.
    pub fn wait(&self, messages: u64, mut alive: impl FnMut() -> bool) -> Instant {
        let end = Instant::now() + PATIENCE;
        let mut until = |reached: &dyn Fn() -> bool| {
            while !reached() {
                assert!(alive(), "the program has ended");
                assert!(Instant::now() < end, "not within {PATIENCE:?}");
                std::thread::sleep(PAUSE);
            }
        };
        until(&|| self.in_postgres() >= messages as i64);
        until(&|| self.in_kafka() >= messages as i64);
        until(&|| self.ends(&self.committed) == self.ends(&self.uncommitted));
        Instant::now()
    }

    fn in_postgres(&self) -> i64 {
        let sql = "SELECT coalesce(sum(next_offset), 0)::int8 FROM dinnerbell.progress WHERE group_id = $1";
        let answer = self.runtime.block_on(async {
            let progress = self.progress.get_or_try_init(|| self.client.prepare(sql)).await?;
            self.client.query_one(progress, &[&self.group]).await
        });
        answer.expect("the ledger").get(0)
    }

    fn in_kafka(&self) -> i64 {
        let mut asked = TopicPartitionList::new();
        for partition in 0..self.partitions {
            asked.add_partition(&self.topic, partition);
        }
        let found = self.committed.committed_offsets(asked, Duration::from_secs(30)).expect("offsets");
        let offset = |offset: Offset| if let Offset::Offset(offset) = offset { offset } else { 0 };
        found.elements().iter().map(|element| offset(element.offset())).sum()
    }

    /// The ends of the output's partitions: of what is committed they are the last stable offsets.
    fn ends(&self, consumer: &BaseConsumer) -> Vec<i64> {
        let limit = Duration::from_secs(30);
        (0..self.partitions)
            .map(|partition| consumer.fetch_watermarks(&self.output, partition, limit).expect("watermarks").1)
            .collect()
    }
}
