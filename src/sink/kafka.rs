//! The Kafka sink: transactional producers, and the thread that turns rows into records.
//!
//! Every call blocks; async callers go through [`kafka::blocking`]. A producer that is dropped in the middle of a
//! transaction leaves it open: the next `init_transactions` of the same transactional id aborts it at once.

mod batch;
mod pace;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::bindings as ffi;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header as RecordHeader, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::util::Timeout;

pub use batch::Record;
use pace::Pace;

use crate::dead_letter::Letter;
use crate::error::{Action, Error, Result};
use crate::kafka;

/// Where librdkafka's queue is full, it is looked at again after so long: of its 64 MiB the broker takes a fraction in
/// that time.
const ROOM_PAUSE: Duration = Duration::from_millis(5);

/// How long one wait for all acknowledgements lasts before it is asked whether to go on, and failed records are looked at.
const FLUSH_STEP: Duration = Duration::from_millis(20);

/// `linger.ms`: how long records wait for a full batch, at most. Whatever ends a transaction flushes, which ends lingering, and
/// so does [`Pace`] before. Where records older than this wait behind a batch of their partition that is on its way, librdkafka's
/// thread does not sleep until that one is acknowledged (`rd_kafka_toppar_producer_serve` asks to be called again at once), and
/// takes a core from the servers: so this is longer than any broker but a very slow one takes for a full queue.
const LINGER: &str = "10000";

/// The same where the user has made librdkafka's queue smaller, which may be full before any batch is, or has records time out
/// sooner than in [`LONG_ENOUGH`] milliseconds.
const SHORT_LINGER: &str = "5";
const LONG_ENOUGH: u64 = 30_000;

/// For so long records without a key go to one partition. Of itself it would be twice [`LINGER`].
const STICKY: &str = "500";

/// Where none was acknowledged for so long, those that wait for a full batch are sent as they are.
const NO_NEWS: Duration = Duration::from_millis(250);

/// The same once nothing comes that could fill a batch.
const NO_NEWS_AT_THE_END: Duration = Duration::from_millis(50);

/// Fewer records than this may be nothing but batches that are not full, and do not leave by themselves.
const MANY: i32 = 10_000;

/// What the queue holds where the user says nothing, and below which it is small.
const QUEUE_MESSAGES: u64 = 1_000_000;

/// The same in KiB, where no record is larger: a full batch, a million bytes, for each of 64 partitions.
pub const QUEUE_KBYTES: u64 = 65_536;

/// The longest that one try of an abort or an init lasts, and the first try of an abort.
const LONGEST_TRY: Duration = Duration::from_millis(100);
const FIRST_ABORT: Duration = Duration::from_millis(1);

/// The first try of an init: about as long as a connection takes.
const FIRST_INIT: Duration = Duration::from_millis(10);

/// How long a claim may wait for what only saves time later.
const ASIDE: Duration = Duration::from_secs(1);

/// Serving callbacks takes microseconds; what takes longer is something else, and not worth a hanging lane.
const SERVE_LIMIT: Duration = Duration::from_secs(1);

/// What a record costs beside key, value and headers, at most: batch header 61, record header with varints 21 or less.
const RECORD_OVERHEAD: usize = 128;

/// A transactional producer whose `init_transactions` has succeeded.
pub struct Producer {
    producer: BaseProducer<Failures>,
    given_up: AtomicBool,
    /// Whether a transaction was begun since the producer was opened.
    begun: AtomicBool,
    pace: Mutex<Pace>,
    pub transactional_id: String,
}

/// One offset to commit, with the metadata string that names the commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetCommit {
    pub partition: i32,
    pub offset: i64,
    pub metadata: String,
}

impl Producer {
    /// Creates the producer and fences all earlier ones of this transactional id; what they left open is aborted.
    ///
    /// # Errors
    /// [`Error::Kafka`] where the broker refuses or does not answer in time.
    pub fn open(user: &BTreeMap<String, String>, transactional_id: &str) -> Result<Producer> {
        let timeout = kafka::TRANSACTION_TIMEOUT.as_millis().to_string();
        let mut user = user.clone();
        let messages = QUEUE_MESSAGES.to_string();
        for (key, value) in
            [("linger.ms", linger(&user)), ("queue.buffering.max.messages", &messages), ("compression.type", "lz4")]
        {
            user.entry(key.into()).or_insert_with(|| value.into());
        }
        if user["linger.ms"] == LINGER {
            user.entry("sticky.partitioning.linger.ms".into()).or_insert_with(|| STICKY.into());
        }
        let owned = [
            ("transactional.id", transactional_id),
            ("transaction.timeout.ms", &timeout),
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("delivery.report.only.error", "true"),
            // A producer's default is to have every topic made that it asks for, where the broker does so.
            ("allow.auto.create.topics", "false"),
            kafka::NO_STATISTICS,
        ];
        let doing = format!("opening the transactional producer {transactional_id}");
        let mut config = kafka::client_config(&user, &owned);
        // Connections that break are told in the log of this level and kind alone, see `Failures::log`.
        let debug = user.get("debug").map_or_else(|| "broker".into(), |wanted| format!("{wanted},broker"));
        config.set("debug", debug).set_log_level(RDKafkaLogLevel::Debug);
        let producer: BaseProducer<Failures> = config
            .create_with_context(Failures::default())
            .map_err(Error::kafka("creating the producer from [kafka] and [sink.kafka]"))?;
        init_transactions(&producer).map_err(Error::kafka(doing))?;
        let [given_up, begun] = [(); 2].map(|()| AtomicBool::new(false));
        let pace = Mutex::new(Pace::new(Instant::now()));
        Ok(Producer { producer, given_up, begun, pace, transactional_id: transactional_id.into() })
    }

    /// Asks for the topic's partitions, so that the first record need not wait for them. That one also meets what is wrong
    /// with the topic.
    pub fn get_to_know(&self, topic: &str) {
        let _ = self.producer.client().fetch_metadata(Some(topic), ASIDE);
    }

    /// Gives the open transaction up: records are dropped from here on, nobody waits for acknowledgements, and only an
    /// abort can follow. Heard by a thread that waits in [`Producer::produce`] or [`Producer::acknowledged`].
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::SeqCst);
    }

    fn has_given_up(&self) -> bool {
        self.given_up.load(Ordering::SeqCst)
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// [`Error::Claim`] where the connections were in trouble since this producer's first transaction began: librdkafka then
    /// repeats an EndTxn by itself, and a late first one would end the next transaction half way. Only a producer opened
    /// anew may go on.
    pub fn begin(&self) -> Result<()> {
        self.serve();
        if !self.begun.swap(true, Ordering::SeqCst) {
            self.producer.context().forget();
        } else if self.producer.context().tainted.load(Ordering::SeqCst) {
            return Err(Error::Claim { what: "the connection to Kafka was in trouble".into() });
        }
        self.producer.context().open.store(true, Ordering::SeqCst);
        self.producer.begin_transaction().map_err(Error::kafka("beginning a Kafka transaction"))
    }

    /// Hands one record to librdkafka, waiting where its queue is full.
    ///
    /// # Errors
    /// What librdkafka says of the record, or of an earlier one.
    pub fn produce(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: Option<OwnedHeaders>,
    ) -> Result<()> {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic);
        record.key = key;
        record.payload = value;
        record.headers = headers;
        while !self.has_given_up() {
            match self.producer.send(record) {
                Ok(()) => {
                    self.keep_moving(1, NO_NEWS);
                    return Ok(());
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned)) => {
                    record = returned;
                    self.wait_for_room(topic, 0)?;
                }
                Err((error, _)) => {
                    return Err(self.producer.context().explain(format!("producing to {topic}"), error));
                }
            }
        }
        Ok(())
    }

    /// Lets a moment pass in which records are sent; `handed` of them were taken before there was no more room.
    ///
    /// # Errors
    /// The first record's that failed.
    fn wait_for_room(&self, topic: &str, handed: usize) -> Result<()> {
        self.read_reports();
        self.producer.context().check(topic)?;
        self.keep_moving(handed, NO_NEWS);
        std::thread::sleep(ROOM_PAUSE);
        Ok(())
    }

    /// To be called with the number of records that were just handed over: where none was acknowledged for as long as
    /// `no_news`, sends what lingers.
    fn keep_moving(&self, handed: usize, no_news: Duration) {
        let (handed, waiting) = (handed as u64, self.producer.in_flight_count().max(0) as u64);
        let pace = self.pace.lock();
        if pace.is_ok_and(|mut pace| pace.stood_still(handed, waiting, no_news, Instant::now())) {
            self.flush();
        }
    }

    /// Reads the reports that are there. Waiting for them is for librdkafka's own calls or a sleep: the wrapper's poll asks
    /// for what is left of its time in whole milliseconds, and spins through the last one.
    fn read_reports(&self) {
        kafka::serve(&self.producer.context().heard, || self.producer.poll(Duration::ZERO));
    }

    /// Waits until Kafka has acknowledged every record of the transaction; false at the deadline, or once it is given up.
    ///
    /// # Errors
    /// The first record's that failed.
    pub fn acknowledged(&self, deadline: Instant) -> Result<bool> {
        let mut all = self.flush();
        loop {
            // A record that failed counts as on its way until its report is read.
            self.read_reports();
            self.producer.context().check("the transaction")?;
            if self.has_given_up() || (!all && Instant::now() >= deadline) {
                return Ok(false);
            }
            if all {
                return Ok(true);
            }
            // A flush is a linger of nothing, so librdkafka's thread does not sleep meanwhile: where most leave by themselves, it
            // is for those that do not.
            if self.producer.in_flight_count() < MANY {
                all = self.flush();
            } else {
                self.keep_moving(0, NO_NEWS_AT_THE_END);
                std::thread::sleep(ROOM_PAUSE);
            }
        }
    }

    /// Ends all lingering for [`FLUSH_STEP`]; whether every record was acknowledged within it, with which it returns. The
    /// wrapper's own flush asks for no wait at all, so what lingers goes on lingering, and polls every 100 ms.
    fn flush(&self) -> bool {
        // SAFETY: the client is alive for the whole call.
        let left = unsafe { ffi::rd_kafka_flush(self.producer.client().native_ptr(), FLUSH_STEP.as_millis() as i32) };
        left == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
    }

    /// Adds offsets to the transaction under a membership captured by the polling thread.
    pub fn send_offsets(&self, topic: &str, offsets: &[OffsetCommit], group: &ConsumerGroupMetadata) -> Result<()> {
        let mut list = TopicPartitionList::new();
        for commit in offsets {
            let mut element = list.add_partition(topic, commit.partition);
            element.set_offset(Offset::Offset(commit.offset)).map_err(Error::kafka(format!(
                "committing offset {} of {topic}[{}]",
                commit.offset, commit.partition
            )))?;
            element.set_metadata(&commit.metadata);
        }
        self.producer
            .send_offsets_to_transaction(&list, group, Timeout::After(kafka::CALL_TIMEOUT))
            .map_err(Error::kafka("adding offsets to the Kafka transaction"))
    }

    /// Ends the transaction. Without a time limit: past this call only the broker knows the outcome, and an abort after
    /// it would be a guess.
    pub fn commit(&self) -> Result<()> {
        if self.has_given_up() {
            return Err(Error::Claim { what: "a Kafka transaction that was given up must not be committed".into() });
        }
        self.producer.commit_transaction(Timeout::Never).map_err(|error| Error::Claim {
            what: format!("committing the Kafka transaction of {}: {error}", self.transactional_id),
        })?;
        self.closed();
        Ok(())
    }

    /// Aborts a transaction whose commit was never attempted.
    pub fn abort(&self) -> Result<()> {
        // librdkafka throws away what it has not sent yet, reports each such record, and waits until all reports are read: by
        // our polls, so one long wait would never end. It also numbers the next records on, as if those had never been: a
        // purge of our own beforehand would leave a gap in their numbers, for which the broker refuses the next transaction.
        let mut step = FIRST_ABORT;
        let outcome = loop {
            match self.producer.abort_transaction(step) {
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut) => {}
                outcome => break outcome,
            }
            self.read_reports();
            step = (step * 2).min(LONGEST_TRY);
        };
        self.producer.context().clear();
        outcome.map_err(Error::kafka("aborting a Kafka transaction"))?;
        self.closed();
        Ok(())
    }

    /// Serves the callbacks that tell of trouble: all that wait, where one poll serves one. Only between transactions, where
    /// what counts as in flight is nothing but them.
    fn serve(&self) {
        let began = Instant::now();
        while self.producer.in_flight_count() > 0 && began.elapsed() < SERVE_LIMIT {
            self.producer.poll(Duration::ZERO);
        }
    }

    /// The transaction has ended. What its connections have had to say was said before its end.
    fn closed(&self) {
        self.serve();
        self.given_up.store(false, Ordering::SeqCst);
        self.producer.context().open.store(false, Ordering::SeqCst);
    }
}

/// The default of `linger.ms` beside what the user has set.
fn linger(user: &BTreeMap<String, String>) -> &'static str {
    // 0 is no limit, of messages and of time.
    let is_below = |name, large| {
        user.get(name).and_then(|size| size.parse::<u64>().ok()).is_some_and(|size| (1..large).contains(&size))
    };
    let is_short = is_below("queue.buffering.max.messages", QUEUE_MESSAGES)
        || is_below("queue.buffering.max.kbytes", QUEUE_KBYTES)
        || is_below("delivery.timeout.ms", LONG_ENOUGH);
    if is_short { SHORT_LINGER } else { LINGER }
}

/// By itself librdkafka looks for a broker that is up, and asks again who coordinates the id, only every half second:
/// longer than all the rest of a claim. Each new call, which takes up what the last one began, makes it look at once.
fn init_transactions(producer: &BaseProducer<Failures>) -> Result<(), KafkaError> {
    let deadline = Instant::now() + kafka::CALL_TIMEOUT;
    let mut step = FIRST_INIT;
    loop {
        match producer.init_transactions(step) {
            Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {
                step = (step * 2).min(LONGEST_TRY);
            }
            outcome => return outcome,
        }
    }
}

/// What Kafka said of records that it did not take, the first one kept.
#[derive(Default)]
struct Failures {
    /// Records that failed, errors and lines of the log so far, see [`kafka::serve`].
    heard: AtomicU64,
    record: Mutex<Option<KafkaError>>,
    client: Mutex<Option<KafkaError>>,
    /// A transaction is open, or its end not confirmed.
    open: AtomicBool,
    tainted: AtomicBool,
}

impl Failures {
    fn check(&self, topic: &str) -> Result<()> {
        match self.record.lock().ok().and_then(|mut failure| failure.take()) {
            Some(error) => Err(self.explain(format!("producing to {topic}"), error)),
            None => Ok(()),
        }
    }

    fn clear(&self) {
        if let Ok(mut failure) = self.record.lock() {
            *failure = None;
        }
    }

    /// What happened before the first transaction is over.
    fn forget(&self) {
        self.tainted.store(false, Ordering::SeqCst);
        if let Ok(mut cause) = self.client.lock() {
            *cause = None;
        }
    }

    /// The client's own trouble, such as refused credentials, says more than the time-out that follows from it.
    fn explain(&self, doing: String, error: KafkaError) -> Error {
        let cause = self.client.lock().ok().and_then(|mut cause| cause.take());
        match cause {
            Some(cause) if Error::kafka("")(cause.clone()).action() == Action::Halt => Error::kafka(doing)(cause),
            _ => Error::kafka(doing)(error),
        }
    }
}

impl ClientContext for Failures {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        // A single connection that breaks raises no error (only the loss of all brokers does), yet requests that were on
        // their way in it are sent again. One that closes while nothing is open had none; and librdkafka closes some by
        // itself, with other codes than these.
        let broke = facility == "FAIL" && ["(_TRANSPORT)", "(_TIMED_OUT)"].iter().any(|code| message.contains(code));
        if broke && self.open.load(Ordering::SeqCst) {
            self.tainted.store(true, Ordering::SeqCst);
        }
        kafka::log_librdkafka(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(target: "librdkafka", %error, reason, "producer");
        self.tainted.store(true, Ordering::SeqCst);
        if let Ok(mut cause) = self.client.lock() {
            *cause = Some(error);
        }
    }
}

impl ProducerContext for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        if let (Err((error, _)), Ok(mut failure)) = (result, self.record.lock()) {
            failure.get_or_insert_with(|| error.clone());
        }
    }
}

/// Where a part's records go, and how large one may be there.
#[derive(Debug, Clone)]
pub struct Destination {
    pub topic: Arc<str>,
    /// The topic's `max.message.bytes`.
    pub max_record_bytes: usize,
}

impl Destination {
    /// Whether a record of these parts is sure to fit, uncompressed and alone in its batch.
    pub fn fits(&self, key: Option<&[u8]>, value: Option<&[u8]>, headers: usize) -> bool {
        let size = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len) + headers + RECORD_OVERHEAD;
        size <= self.max_record_bytes
    }

    pub fn fits_letter(&self, letter: &Letter) -> bool {
        // A header costs its name, its value and two varints.
        let headers =
            letter.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len) + 10).sum();
        self.fits(letter.key.as_deref(), letter.value.as_deref(), headers)
    }
}

/// Produces a dead letter, whose headers are the original's and then ours.
pub fn produce_letter(producer: &Producer, topic: &str, letter: &Letter) -> Result<()> {
    let headers = &letter.headers;
    let mut owned = OwnedHeaders::new_with_capacity(headers.len());
    for (name, value) in headers {
        owned = owned.insert(RecordHeader { key: name, value: value.as_deref() });
    }
    producer.produce(topic, letter.key.as_deref(), letter.value.as_deref(), Some(owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_linger_where_the_user_leaves_room_and_time_for_it() {
        let with = |name: &str, value: &str| linger(&BTreeMap::from([(name.into(), value.into())]));
        let (messages, kbytes, timeout) =
            ("queue.buffering.max.messages", "queue.buffering.max.kbytes", "delivery.timeout.ms");
        for (name, value) in
            [(messages, "1000000"), (messages, "0"), (kbytes, "65536"), (timeout, "0"), (timeout, "30000")]
        {
            assert_eq!(with(name, value), LINGER, "{name} {value}");
        }
        for (name, value) in
            [(messages, "999999"), (messages, "1"), (kbytes, "65535"), (kbytes, "1"), (timeout, "29999")]
        {
            assert_eq!(with(name, value), SHORT_LINGER, "{name} {value}");
        }
        assert_eq!(linger(&BTreeMap::new()), LINGER);
    }
}
