//! The input of a chaos run: as much as the replicas take, and a bounded backlog on top.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::super::campaigns::{Campaign, client, restaurant};
use super::super::model::Model;
use super::super::stack::Stack;
use super::sampler::Seen;
use super::{Options, REFUSED};

/// Messages waiting in a partition, some 10,000 rows: no replica runs dry between two looks at the ledger.
const BACKLOG: i64 = 80;

/// Restaurants: (how many, least and most subscribers, the share of campaigns that is theirs).
const KINDS: [(usize, usize, usize, f64); 4] =
    [(48, 1, 16, 0.70), (12, 30, 120, 0.20), (3, 400, 600, 0.08), (1, 3_000, 3_000, 0.02)];

/// A message without rows counts as so many: it costs something as well.
const COST_OF_NONE: u64 = 10;

/// How long one replica's partitions get nothing but messages without output, and how long nothing like that happens.
const QUIET: Duration = Duration::from_secs(9);
const LOUD: Duration = Duration::from_secs(12);

/// The clients of each restaurant. Restaurants above 1,000 have none here.
pub fn subscriptions(seed: u64) -> BTreeMap<String, BTreeSet<String>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut all = BTreeMap::new();
    for (restaurants, least, most, _) in KINDS {
        for _ in 0..restaurants {
            let first = random.usize(0..5_000);
            let count = random.usize(least..=most);
            all.insert(restaurant(all.len()), (first..first + count).map(client).collect());
        }
    }
    all
}

#[derive(Default)]
struct Shared {
    rows: AtomicU64,
    /// Messages of the flood that are still to come.
    flood: AtomicU64,
    /// Floods that have come to their end.
    floods: AtomicU64,
    ended: AtomicBool,
}

pub struct Feeder {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Feeder {
    pub fn start(stack: &Stack, model: &Model, options: &Options, random: fastrand::Rng, seen: Arc<Seen>) -> Feeder {
        let shared = Arc::new(Shared::default());
        let hand = Hand {
            topic: stack.campaigns.clone(),
            producer: producer(&stack.bootstrap),
            fan_out: model.subscriptions.values().map(|clients| clients.len() as u64).collect(),
            malformed: options.malformed,
            rate: options.rate,
            partitions: options.partitions.max(3),
            replicas: options.replicas,
            produced: BTreeMap::new(),
            number: 0,
            random,
        };
        let theirs = shared.clone();
        Feeder { shared, thread: std::thread::spawn(move || hand.run(&theirs, &seen)) }
    }

    /// Rows that the input makes so far.
    pub fn rows(&self) -> u64 {
        self.shared.rows.load(Ordering::SeqCst)
    }

    /// The next so many messages are all bad.
    pub fn flood(&self, messages: u64) {
        self.shared.flood.store(messages, Ordering::SeqCst);
    }

    /// Ends the input; all of it is in the topic then. How many rows it makes, and how many floods have come whole.
    pub fn end(self) -> (u64, u64) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.thread.join().expect("the feeder does not panic");
        (self.shared.rows.load(Ordering::SeqCst), self.shared.floods.load(Ordering::SeqCst))
    }
}

fn producer(bootstrap: &str) -> BaseProducer {
    let mut config = ClientConfig::new();
    // Whatever the broker suffers, every message arrives, once.
    config.set("bootstrap.servers", bootstrap).set("enable.idempotence", "true").set("message.timeout.ms", "0");
    config.set("linger.ms", "5").set("reconnect.backoff.max.ms", "500").set("log_level", "0");
    config.create().expect("the settings are valid")
}

/// What a message may carry: a name twice, no value, and a name that dead letters are labelled with.
fn headers(key: &str) -> OwnedHeaders {
    let headers = [("trace", Some(key)), ("trace", None), ("dinnerbell.offset", Some("77")), ("", Some(""))];
    headers.into_iter().fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value }))
}

struct Hand {
    topic: String,
    producer: BaseProducer,
    /// Subscribers by restaurant.
    fan_out: Vec<u64>,
    malformed: f64,
    rate: u64,
    partitions: usize,
    replicas: usize,
    produced: BTreeMap<usize, i64>,
    number: usize,
    random: fastrand::Rng,
}

impl Hand {
    fn run(mut self, shared: &Shared, seen: &Seen) {
        let began = Instant::now();
        let (mut spent, mut quiet, mut change) = (0, BTreeSet::new(), Instant::now() + LOUD);
        while !shared.ended.load(Ordering::SeqCst) {
            if let Some(place) = seen.take_quiet() {
                quiet = self.share(place);
                change = Instant::now() + QUIET;
            } else if Instant::now() >= change {
                let place = self.random.usize(0..self.replicas);
                quiet = if quiet.is_empty() { self.share(place) } else { BTreeSet::new() };
                change = Instant::now() + if quiet.is_empty() { LOUD } else { QUIET };
            }
            for partition in 0..self.partitions {
                let allowed = began.elapsed().as_millis() as u64 * self.rate / 1_000;
                let waiting = self.produced.get(&partition).copied().unwrap_or_default() - seen.next(partition as i32);
                if waiting < BACKLOG && spent < allowed {
                    for _ in 0..10 {
                        spent += self.put(partition, quiet.contains(&partition), shared);
                    }
                }
            }
            // An outage must not be followed by a flood of all that was not produced meanwhile.
            let allowed = began.elapsed().as_millis() as u64 * self.rate / 1_000;
            spent = spent.max(allowed.saturating_sub(self.rate * 2));
            self.producer.poll(Duration::from_millis(20));
        }
        self.producer.flush(Duration::from_secs(120)).expect("the input is acknowledged");
    }

    /// The partitions that `range` gives to the member at this place, while all the named ones are there.
    fn share(&self, place: usize) -> BTreeSet<usize> {
        let (each, more) = (self.partitions / self.replicas, self.partitions % self.replicas);
        let first = place * each + place.min(more);
        (first..(first + each + usize::from(place < more)).min(self.partitions)).collect()
    }

    /// What it costs.
    fn put(&mut self, partition: usize, quiet: bool, shared: &Shared) -> u64 {
        let left = shared.flood.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        shared.floods.fetch_add(u64::from(left == Ok(1)), Ordering::SeqCst);
        let flood = left.is_ok();
        let (value, rows) = self.message(quiet, flood);
        self.number += 1;
        let key = format!("key-{}", self.number % 97);
        let mut record = BaseRecord::<str, [u8]>::to(&self.topic).partition(partition as i32);
        record.payload = value.as_deref();
        record.key = (!self.number.is_multiple_of(5)).then_some(key.as_str());
        if self.number.is_multiple_of(3) {
            record.headers = Some(headers(&key));
        }
        while let Err((_, refused)) = self.producer.send(record) {
            // The queue is full: the broker is away.
            self.producer.poll(Duration::from_millis(50));
            record = refused;
        }
        *self.produced.entry(partition).or_default() += 1;
        shared.rows.fetch_add(rows, Ordering::SeqCst);
        rows.max(COST_OF_NONE)
    }

    /// The next message, and how many rows come of it.
    fn message(&mut self, quiet: bool, flood: bool) -> (Option<Vec<u8>>, u64) {
        let restaurant_number = self.restaurant();
        let mut campaign = Campaign::new(self.number, restaurant(restaurant_number));
        if self.random.f64() < 0.05 {
            campaign.content = format!("\"crème\" \\ {}\n\t☕ for 1/2", self.number);
        }
        if flood || (!quiet && self.random.f64() < self.malformed) {
            return (self.bad(campaign), 0);
        }
        match self.random.u32(0..100) {
            0..88 if !quiet => (Some(campaign.json().into_bytes()), self.fan_out[restaurant_number]),
            share if share % 3 == 0 => (Some(campaign.expired().json().into_bytes()), 0),
            share if share % 3 == 1 => (Some(campaign.not_started().json().into_bytes()), 0),
            _ => {
                let nobodys = Campaign { restaurant_id: restaurant(1_000 + restaurant_number), ..campaign };
                (Some(nobodys.json().into_bytes()), 0)
            }
        }
    }

    fn restaurant(&mut self) -> usize {
        let (mut share, mut first) = (self.random.f64(), 0);
        for (restaurants, _, _, theirs) in KINDS {
            if share < theirs {
                return first + self.random.usize(0..restaurants);
            }
            (share, first) = (share - theirs, first + restaurants);
        }
        0
    }

    /// A message that becomes a dead letter, for one reason or another.
    fn bad(&mut self, campaign: Campaign) -> Option<Vec<u8>> {
        let good = campaign.json();
        let bad = match self.random.u32(0..13) {
            0 => format!("hello {}", self.number),
            1 => return Some(good.as_bytes()[..self.random.usize(1..good.len())].to_vec()),
            2 => good.replace("1659203516", "\"1659203516\""),
            3 => good.replace("\"adv_campaign_owner\":", "\"owner\":"),
            4 => good.replacen('{', "{\"adv_campaign_id\":\"twice\",", 1),
            5 => return None,
            6 => return Some([&good.as_bytes()[..40], b"\xff\xfe", &good.as_bytes()[40..]].concat()),
            7 => format!("[{good}]"),
            8 => good.replace("1659131516", "null"),
            9 => good.replace("\"iiivanov@restaurant.ru\"", "42"),
            10 => String::new(),
            11 => Campaign { content: "nul \0".into(), ..campaign }.json(),
            _ => Campaign { content: REFUSED.into(), ..campaign }.json(),
        };
        Some(bad.into_bytes())
    }
}
