//! The consumer and the one thread that polls it.
//!
//! The thread polls all the time, but while it makes a cycle, so that rebalances are answered and the member stays alive
//! however long a commit takes. Messages do not pass through that poll: each partition has a queue of its own, read only
//! when the lane asks for a cycle, and bounded by librdkafka (`queued.max.messages.kbytes`). So a slow sink slows the
//! fetching, and nothing else.
//!
//! A new assignment is accepted empty; reading starts when the lane has claimed the partitions in the ledger and says
//! from which offsets. Offsets never come from the group.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use serde::Deserialize;
use tokio::sync::mpsc as async_mpsc;

use super::arenas::Arenas;
use super::assembly::{Limits, Reading};
use super::queue::Queue;
use crate::config::Config;
use crate::decode::{Decoder, Work};
use crate::error::{Action, Error, Result};
use crate::kafka::{self, GroupMetadata};

/// How long a revoked partition waits for the commit in flight. The group waits with it, so it is well below
/// `max.poll.interval.ms` and the session timeout.
pub const REVOKE_WAIT: Duration = Duration::from_secs(5);

/// The longest wait between two polls of the consumer: how late a rebalance may be noticed without a wake-up. Each wake-up of
/// this thread in an idle process costs some tenths of a millisecond, its caches being cold.
const TICK: Duration = Duration::from_millis(500);

/// What the polling thread tells the lane.
#[derive(Debug)]
pub enum Event {
    /// These partitions are ours since now; reading waits for [`Source::start`].
    Assigned {
        session: u64,
        partitions: Vec<i32>,
        group: Option<GroupMetadata>,
    },
    /// All partitions go away. The thread waits for `done` (or its end) at most [`REVOKE_WAIT`] and a bit.
    Revoked {
        lost: bool,
        done: mpsc::Sender<()>,
    },
    /// The answer to [`Source::fetch`].
    Cycle(Cycle),
    Failed(Error),
}

/// The decoded micro-batches of one poll cycle and the membership under which they were read.
#[derive(Debug)]
pub struct Cycle {
    /// Which [`Source::start`] it belongs to: one assembled before the last start is stale.
    pub reading: u64,
    pub works: Vec<Work>,
    /// How long that took.
    pub decoding: Duration,
    /// The limits ended it, not the lack of messages: the next one is there already.
    pub full: bool,
    /// `None` when the member lost its place while the cycle was assembled: such a cycle must not be committed.
    pub group: Option<GroupMetadata>,
}

enum Command {
    Start { session: u64, reading: u64, positions: Vec<(i32, i64)>, decoder: Decoder },
    Fetch,
    Close,
    Wake,
}

/// The lane's handle of its consumer.
pub struct Source {
    commands: mpsc::Sender<Command>,
    events: async_mpsc::UnboundedReceiver<Event>,
    consumer: Arc<BaseConsumer<Watcher>>,
    thread: std::thread::JoinHandle<()>,
    readings: u64,
    partitions: i32,
    /// Events that came while only urgent ones were wanted.
    deferred: VecDeque<Event>,
}

impl Source {
    /// Joins the group, as the process's member number `lane`, and starts polling. `partitions` is how many the topic has.
    ///
    /// # Errors
    /// [`Error::Kafka`] where librdkafka refuses a property.
    pub fn open(config: &Config, lane: usize, partitions: i32) -> Result<Source> {
        let (to_lane, events) = async_mpsc::unbounded_channel();
        let (commands, inbox) = mpsc::channel();
        let consumer = Arc::new(create(config, lane, partitions, to_lane.clone(), commands.clone())?);
        consumer
            .subscribe(&[&config.source.topic])
            .map_err(Error::kafka(format!("subscribing to {}", config.source.topic)))?;
        let polled = Polled {
            consumer: consumer.clone(),
            topic: config.source.topic.clone(),
            limits: Limits { messages: config.batch.max_messages, bytes: config.batch.max_bytes },
            // One cycle is committed while the next one is made.
            arenas: Arenas::new(2 * config.batch.max_bytes),
            to_lane,
        };
        let thread = std::thread::Builder::new()
            .name("kafka-poll".into())
            .spawn(move || polled.run_to_its_end(inbox))
            .map_err(Error::io("starting the polling thread"))?;
        Ok(Source { commands, events, consumer, thread, readings: 0, partitions, deferred: VecDeque::new() })
    }

    /// Another member in the place of this one.
    ///
    /// # Errors
    /// As for [`Source::open`].
    pub fn again(&self, config: &Config, lane: usize) -> Result<Source> {
        Source::open(config, lane, self.partitions)
    }

    /// The next event; never ends before [`Source::close`].
    pub async fn next(&mut self) -> Event {
        match self.deferred.pop_front() {
            Some(event) => event,
            None => self.receive().await,
        }
    }

    /// The next revocation, or error that needs a person. Other events meanwhile are kept for [`Source::next`].
    pub async fn next_urgent(&mut self) -> Event {
        loop {
            match self.receive().await {
                event @ Event::Revoked { .. } => return event,
                Event::Failed(error) if error.action() == Action::Halt => return Event::Failed(error),
                event => self.deferred.push_back(event),
            }
        }
    }

    async fn receive(&mut self) -> Event {
        self.events.recv().await.unwrap_or_else(ended)
    }

    /// Starts reading at these offsets, decoding, and says under which number its cycles come. Ignored if the assignment of
    /// `session` is gone by then.
    pub fn start(&mut self, session: u64, positions: Vec<(i32, i64)>, decoder: Decoder) -> u64 {
        self.readings += 1;
        // Cycles and failures of what was read before mean nothing to the new reading.
        self.deferred.retain(|event| matches!(event, Event::Assigned { .. }));
        let _ = self.commands.send(Command::Start { session, reading: self.readings, positions, decoder });
        self.readings
    }

    /// Asks for one cycle, handed out as soon as any message is there.
    pub fn fetch(&self) {
        let _ = self.commands.send(Command::Fetch);
    }

    /// For questions beside the reading, such as the group's committed offsets.
    pub fn consumer(&self) -> Arc<BaseConsumer<Watcher>> {
        self.consumer.clone()
    }

    /// Leaves the group and ends the thread. Blocks while the consumer says goodbye to its brokers.
    pub fn close(self) {
        let Source { commands, events, consumer, thread, .. } = self;
        consumer.context().closing.store(true, Ordering::SeqCst);
        drop(events);
        drop(consumer);
        let _ = commands.send(Command::Close);
        let _ = thread.join();
    }
}

fn create(
    config: &Config,
    lane: usize,
    partitions: i32,
    to_lane: async_mpsc::UnboundedSender<Event>,
    commands: mpsc::Sender<Command>,
) -> Result<BaseConsumer<Watcher>> {
    // 64 MiB in all for up to 64 partitions: librdkafka counts each partition's queue for itself, and its default is 64 MB for
    // each. A quarter of it saves a backlog 100 MiB and costs it a tenth of its speed.
    let queued = (65_536 / partitions.max(1)).max(1_024).to_string();
    let session_timeout = kafka::SESSION_TIMEOUT.as_millis().to_string();
    let mut owned = vec![
        ("group.id", config.source.group_id.as_str()),
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("isolation.level", "read_committed"),
        ("auto.offset.reset", "error"),
        ("partition.assignment.strategy", "range"),
        ("group.protocol", "classic"),
    ];
    // Each lane is a member of its own.
    let instance = config.job.instance.as_ref().map(|instance| format!("{instance}.{lane}"));
    if let Some(instance) = &instance {
        owned.push(("group.instance.id", instance));
    }
    let mut user: BTreeMap<String, String> = BTreeMap::clone(&config.source.kafka);
    for (key, value) in [
        ("session.timeout.ms", session_timeout.as_str()),
        ("queued.max.messages.kbytes", &queued),
        // Once a partition's queue is full, librdkafka looks at it again after so long. Its default of a second is longer
        // than it takes to empty one. The price: so often it looks while a sink is away, too.
        ("fetch.queue.backoff.ms", "10"),
        ("statistics.interval.ms", "5000"),
    ] {
        user.entry(key.into()).or_insert_with(|| value.into());
    }
    let waker = Waker { commands, pending: Arc::new(AtomicBool::new(false)) };
    let context = Watcher {
        to_lane: Mutex::new(to_lane),
        session: AtomicU64::new(0),
        assigned: AtomicBool::new(false),
        closing: AtomicBool::new(false),
        ends: Mutex::new(BTreeMap::new()),
        refused_since: Mutex::new(None),
        heard: AtomicU64::new(0),
        down: AtomicBool::new(false),
        waker: waker.clone(),
    };
    let mut consumer: BaseConsumer<Watcher> = kafka::client_config(&user, &owned)
        .create_with_context(context)
        .map_err(Error::kafka("creating the consumer from [kafka] and [source.kafka]"))?;
    consumer.set_nonempty_callback(move || waker.wake());
    Ok(consumer)
}

/// Wakes the polling thread out of its wait, once per wait.
#[derive(Clone)]
pub(super) struct Waker {
    commands: mpsc::Sender<Command>,
    pending: Arc<AtomicBool>,
}

impl Waker {
    pub(super) fn wake(&self) {
        if !self.pending.swap(true, Ordering::SeqCst) {
            let _ = self.commands.send(Command::Wake);
        }
    }
}

/// Serves librdkafka's callbacks. Rebalances run on the polling thread, inside its poll.
pub struct Watcher {
    to_lane: Mutex<async_mpsc::UnboundedSender<Event>>,
    /// Counts assignments, so that an answer to an old one is told from an answer to the present one.
    session: AtomicU64,
    assigned: AtomicBool,
    closing: AtomicBool,
    /// The end of each partition as a `read_committed` reader sees it, from librdkafka's statistics.
    ends: Mutex<BTreeMap<i32, i64>>,
    refused_since: Mutex<Option<Instant>>,
    /// Events that came by callback so far, see [`kafka::serve`].
    heard: AtomicU64,
    /// All brokers are down and the lane knows.
    down: AtomicBool,
    waker: Waker,
}

/// What is read of librdkafka's statistics; the rest, nearly all, is skipped.
#[derive(Deserialize)]
struct Statistics {
    topics: BTreeMap<String, TopicStatistics>,
}

#[derive(Deserialize)]
struct TopicStatistics {
    partitions: BTreeMap<String, PartitionStatistics>,
}

#[derive(Deserialize)]
struct PartitionStatistics {
    partition: i32,
    ls_offset: i64,
}

/// A broker that dies in the middle of a handshake looks like one that refuses the credentials: a member that has worked
/// before believes it only after so long.
const REFUSED_FOR_GOOD: Duration = Duration::from_secs(30);

impl Watcher {
    fn is_refused_for_good(&self) -> bool {
        if self.session.load(Ordering::SeqCst) == 0 {
            return true;
        }
        let Ok(mut since) = self.refused_since.lock() else { return true };
        since.get_or_insert_with(Instant::now).elapsed() >= REFUSED_FOR_GOOD
    }

    /// The brokers answer: whatever was wrong before is not any more.
    fn works(&self) {
        self.down.store(false, Ordering::SeqCst);
        if let Ok(mut since) = self.refused_since.lock() {
            *since = None;
        }
    }

    fn tell(&self, event: Event) {
        if let Ok(to_lane) = self.to_lane.lock() {
            let _ = to_lane.send(event);
        }
    }

    /// The last known end of each partition (last stable offset).
    pub fn ends(&self) -> BTreeMap<i32, i64> {
        self.ends.lock().map(|ends| ends.clone()).unwrap_or_default()
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl ClientContext for Watcher {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        kafka::log_librdkafka(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(target: "librdkafka", %error, reason, "consumer");
        let all_down = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown);
        let refused = Error::kafka("")(error.clone()).action() == Action::Halt;
        let news = all_down && !self.down.swap(true, Ordering::SeqCst);
        if news || (refused && self.is_refused_for_good()) {
            self.tell(Event::Failed(Error::kafka(format!("consuming: {reason}"))(error)));
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        let Ok(statistics) = serde_json::from_slice::<Statistics>(statistics) else {
            return tracing::warn!("librdkafka's statistics cannot be read: consumer_lag stands still");
        };
        let Ok(mut ends) = self.ends.lock() else { return };
        for partition in statistics.topics.values().flat_map(|topic| topic.partitions.values()) {
            if partition.partition >= 0 && partition.ls_offset >= 0 {
                ends.insert(partition.partition, partition.ls_offset);
            }
        }
    }
}

impl ConsumerContext for Watcher {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        if err == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            // Accepted empty: the lane claims the partitions and says where to start.
            let accepted = consumer.assign(&TopicPartitionList::new());
            let session = self.session.fetch_add(1, Ordering::SeqCst) + 1;
            self.assigned.store(true, Ordering::SeqCst);
            let partitions = partitions.elements().iter().map(|element| element.partition()).collect();
            match accepted {
                Ok(()) => self.tell(Event::Assigned { session, partitions, group: GroupMetadata::capture(consumer) }),
                Err(error) => self.tell(Event::Failed(Error::kafka("accepting an assignment")(error))),
            }
            return;
        }
        if self.assigned.swap(false, Ordering::SeqCst) && !self.closing.load(Ordering::SeqCst) {
            let (done, wait) = mpsc::channel();
            self.tell(Event::Revoked { lost: consumer.assignment_lost(), done });
            // Past this the group goes on without us; the lane's commit then meets an old generation and is refused.
            let _ = wait.recv_timeout(REVOKE_WAIT + Duration::from_secs(1));
        }
        if let Err(error) = consumer.unassign() {
            tracing::debug!(target: "librdkafka", %error, "unassign");
        }
    }
}

/// Without the thread nothing would ever be heard again.
fn ended() -> Event {
    Event::Failed(Error::Halt { what: "the polling thread has ended".into(), remedy: "please report it".into() })
}

/// The polling thread's own state.
struct Polled {
    consumer: Arc<BaseConsumer<Watcher>>,
    topic: String,
    limits: Limits,
    arenas: Arenas,
    to_lane: async_mpsc::UnboundedSender<Event>,
}

impl Polled {
    /// The lane hears of a panic: the consumer's own sender keeps the channel open.
    fn run_to_its_end(self, inbox: mpsc::Receiver<Command>) {
        let to_lane = self.to_lane.clone();
        if std::panic::catch_unwind(AssertUnwindSafe(|| self.run(inbox))).is_err() {
            let _ = to_lane.send(ended());
        }
    }

    fn run(self, inbox: mpsc::Receiver<Command>) {
        // Polls nothing until it is closed, as if librdkafka had nothing to say any more.
        fail::fail_point!("deaf", |_| while !matches!(inbox.recv(), Ok(Command::Close) | Err(_)) {});
        let mut reading: Option<Reading> = None;
        let mut wanted = false;
        loop {
            // What is left of many events must not wait for the next one.
            let pause = if self.serve() { TICK } else { Duration::ZERO };
            if reading.as_ref().is_some_and(|reading| !self.is_current(reading.session)) {
                reading = None;
                wanted = false;
            }
            if wanted && self.hand_out(&mut reading) {
                wanted = false;
            }
            let command = match inbox.recv_timeout(pause) {
                Ok(command) => command,
                Err(mpsc::RecvTimeoutError::Timeout) => continue,
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            };
            match command {
                Command::Wake => self.consumer.context().waker.pending.store(false, Ordering::SeqCst),
                Command::Fetch => wanted = true,
                Command::Start { session, reading: number, positions, decoder } if self.is_current(session) => {
                    // First, because its queues are the new reading's: dropped later, they would take its wake-ups along.
                    reading = None;
                    wanted = false;
                    match self.start(Reading::new(session, number, decoder, self.arenas.clone()), &positions) {
                        Ok(started) => reading = Some(started),
                        Err(error) => self.tell(Event::Failed(error)),
                    }
                }
                Command::Start { .. } => {}
                Command::Close => return,
            }
        }
    }

    fn tell(&self, event: Event) {
        let _ = self.to_lane.send(event);
    }

    fn is_current(&self, session: u64) -> bool {
        let context = self.consumer.context();
        context.assigned.load(Ordering::SeqCst) && context.session.load(Ordering::SeqCst) == session
    }

    /// Serves rebalances and client events. Messages have queues of their own and never come this way.
    /// False where more of them may be left.
    fn serve(&self) -> bool {
        kafka::serve(&self.consumer.context().heard, || match self.consumer.poll(Duration::ZERO) {
            Some(Err(error)) => self.report(error),
            Some(Ok(message)) => {
                let what = format!("{} came outside its partition's queue", describe(&message));
                self.tell(Event::Failed(Error::Claim { what }));
            }
            None => {}
        })
    }

    /// Called after a claim, for which the brokers have answered.
    fn start(&self, mut reading: Reading, positions: &[(i32, i64)]) -> Result<Reading> {
        self.consumer.context().works();
        let mut assignment = TopicPartitionList::new();
        for &(partition, offset) in positions {
            let doing = || format!("reading {}[{partition}] from offset {offset}", self.topic);
            assignment
                .add_partition_offset(&self.topic, partition, Offset::Offset(offset))
                .map_err(Error::kafka(doing()))?;
            let queue = Queue::split(&self.consumer, &self.topic, partition, self.consumer.context().waker())
                .ok_or_else(|| Error::kafka(doing())(KafkaError::Subscription("no queue for the partition".into())))?;
            reading.add(partition, offset, queue);
        }
        self.consumer.assign(&assignment).map_err(Error::kafka(format!("reading {}", self.topic)))?;
        Ok(reading)
    }

    /// Assembles a cycle if anything is there. True once the lane has its answer.
    fn hand_out(&self, reading: &mut Option<Reading>) -> bool {
        let Some(current) = reading else { return false };
        match current.assemble(&self.limits) {
            Ok((batches, _)) if batches.is_empty() => false,
            Ok((batches, full)) => {
                crate::step!("S0");
                let group = GroupMetadata::capture(&self.consumer);
                self.consumer.context().works();
                let (number, began) = (current.number, Instant::now());
                match current.decode(batches) {
                    Ok(works) => {
                        let decoding = began.elapsed();
                        self.tell(Event::Cycle(Cycle { reading: number, works, decoding, full, group }));
                    }
                    Err(error) => {
                        *reading = None;
                        self.tell(Event::Failed(error));
                    }
                }
                true
            }
            Err((partition, position, error)) => {
                // What was taken before the error is gone from the queues: reading on would leave a hole.
                *reading = None;
                self.tell(Event::Failed(self.explain(partition, position, error)));
                true
            }
        }
    }

    fn explain(&self, partition: i32, position: i64, error: KafkaError) -> Error {
        let place = format!("{}[{partition}] at offset {position}", self.topic);
        match error.rdkafka_error_code() {
            // Retention, or a topic made anew: the claim looks at both and says which, and what to do.
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                Error::Claim { what: format!("reading {place}: Kafka does not hold that offset ({error})") }
            }
            _ => Error::kafka(format!("reading {place}"))(error),
        }
    }

    fn report(&self, error: KafkaError) {
        let error = Error::kafka(format!("consuming {}", self.topic))(error);
        match error.action() {
            // librdkafka reconnects and rejoins by itself.
            Action::Retry => tracing::debug!(target: "librdkafka", "{error}"),
            _ => self.tell(Event::Failed(error)),
        }
    }
}

fn describe(message: &BorrowedMessage<'_>) -> String {
    format!("{}[{}] at offset {}", message.topic(), message.partition(), message.offset())
}
