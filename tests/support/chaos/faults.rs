//! What goes wrong beside the deaths of replicas. A new fault is a line in [`Fault::ALL`] and an arm in [`Faults::inject`].

use std::collections::BTreeMap;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::checker::Examination;
use super::super::proxy::{self, Match, Network, Proxy, api};
use super::super::stack::Stack;
use super::super::{Shutdown, campaigns};
use super::feeder::Feeder;
use super::replica::Slots;
use super::report::Tally;
use super::{Options, Servers};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// An administrator ends sessions of the job.
    SessionsEnded,
    /// Subscriptions change, of restaurants that have no campaigns: the lookup table is another one, what comes out is not.
    LookupChanged,
    /// Nothing but bad messages for a while.
    Flood,
    /// One replica more than usual, which goes again.
    ReplicaJoins,
    PostgresCrash,
    PostgresRestart,
    PostgresLocked,
    BrokerFrozen,
    BrokerCrash,
    /// The network of the first replica, see [`super::super::proxy`].
    ConnectionsReset,
    BlackHole,
    ReplyLost,
    RequestDelayed,
}

/// Requests whose reply is lost, or which come late: every one that the protocol's outcome hangs on.
const REQUESTS: [(&str, Request); 11] = [
    ("EndTxn", Request::Kafka(api::END_TXN)),
    ("TxnOffsetCommit", Request::Kafka(api::TXN_OFFSET_COMMIT)),
    ("AddOffsetsToTxn", Request::Kafka(api::ADD_OFFSETS_TO_TXN)),
    ("AddPartitionsToTxn", Request::Kafka(api::ADD_PARTITIONS_TO_TXN)),
    ("Produce", Request::Kafka(api::PRODUCE)),
    ("InitProducerId", Request::Kafka(api::INIT_PRODUCER_ID)),
    ("OffsetFetch", Request::Kafka(api::OFFSET_FETCH)),
    ("JoinGroup", Request::Kafka(api::JOIN_GROUP)),
    ("advance and COMMIT", Request::Postgres("; COMMIT")),
    ("a rehearsal", Request::Postgres("; ROLLBACK")),
    ("the claim's COMMIT", Request::Postgres("COMMIT")),
];

#[derive(Debug, Clone, Copy)]
enum Request {
    Kafka(i16),
    Postgres(&'static str),
}

impl Fault {
    /// With how often each comes, relative to the others.
    const ALL: [(Fault, f64); 13] = [
        (Fault::SessionsEnded, 6.0),
        (Fault::LookupChanged, 4.0),
        (Fault::Flood, 2.0),
        (Fault::ReplicaJoins, 1.5),
        (Fault::PostgresCrash, 1.0),
        (Fault::PostgresRestart, 0.7),
        (Fault::PostgresLocked, 1.0),
        (Fault::BrokerFrozen, 1.0),
        (Fault::BrokerCrash, 0.7),
        (Fault::ConnectionsReset, 2.0),
        (Fault::BlackHole, 1.0),
        (Fault::ReplyLost, 6.0),
        (Fault::RequestDelayed, 3.0),
    ];

    fn name(self) -> &'static str {
        match self {
            Fault::SessionsEnded => "sessions ended by pg_terminate_backend",
            Fault::LookupChanged => "subscriptions of other restaurants changed",
            Fault::Flood => "flood of 200 bad messages",
            Fault::ReplicaJoins => "replica added, and taken away again",
            Fault::PostgresCrash => "Postgres shut down at once, and recovered",
            Fault::PostgresRestart => "Postgres restarted in order",
            Fault::PostgresLocked => "sink table locked for up to 2 s",
            Fault::BrokerFrozen => "broker stopped for up to 5 s (SIGSTOP)",
            Fault::BrokerCrash => "broker killed (kill -9), and started again",
            Fault::ConnectionsReset => "network: all connections to one server reset",
            Fault::BlackHole => "network: nothing passes for up to 13 s",
            Fault::ReplyLost => "network: reply to be lost",
            Fault::RequestDelayed => "network: request to be delayed for up to 8 s",
        }
    }
}

pub struct Faults {
    random: fastrand::Rng,
    every: f64,
    next: Instant,
    servers: Servers,
    /// A fault that lasts, and whether anything met it; no other one meanwhile.
    lasting: Option<(Fault, JoinHandle<bool>)>,
    counts: BTreeMap<Fault, u64>,
    /// Faults that wait for their request, or have met it.
    armed: Vec<(String, proxy::Fault)>,
    changes: usize,
}

impl Faults {
    pub fn new(options: &Options, random: fastrand::Rng, servers: Servers) -> Faults {
        let next = Instant::now() + Duration::from_secs(5);
        let every = options.fault_every;
        Faults { random, every, next, servers, lasting: None, counts: BTreeMap::new(), armed: Vec::new(), changes: 0 }
    }

    pub fn tick(&mut self, stack: &Stack, slots: &mut Slots<'_>, feeder: &Feeder, to: &mut Examination) {
        if self.every == 0.0 || !self.is_quiet(to) || Instant::now() < self.next {
            return;
        }
        // Exponential: they come in bursts and leave gaps, as in life.
        let pause = -self.every * (1.0 - self.random.f64()).ln();
        self.next = Instant::now() + Duration::from_secs_f64(pause.min(self.every * 5.0));
        let fault = self.draw();
        if self.inject(fault, stack, slots, feeder) {
            *self.counts.entry(fault).or_default() += 1;
        }
    }

    fn draw(&mut self) -> Fault {
        let all: f64 = Fault::ALL.iter().map(|(_, weight)| weight).sum();
        let mut at = self.random.f64() * all;
        let chosen = Fault::ALL.iter().find(|(_, weight)| {
            at -= weight;
            at < 0.0
        });
        chosen.map_or(Fault::SessionsEnded, |(fault, _)| *fault)
    }

    /// Whether it really happened; of those that last, [`Faults::join`] learns it, of floods the feeder.
    fn inject(&mut self, fault: Fault, stack: &Stack, slots: &mut Slots<'_>, feeder: &Feeder) -> bool {
        let pause = Duration::from_millis(self.random.u64(0..3_000));
        match fault {
            Fault::SessionsEnded => return self.end_sessions(stack),
            Fault::LookupChanged => self.change_subscriptions(stack),
            Fault::Flood => {
                feeder.flood(200);
                return false;
            }
            Fault::ReplicaJoins => return slots.join(self.random.u64(6..20)),
            Fault::PostgresCrash => {
                return self.last(fault, move |servers| postgres(servers, Shutdown::Immediate, pause));
            }
            Fault::PostgresRestart => return self.last(fault, move |servers| postgres(servers, Shutdown::Fast, pause)),
            Fault::PostgresLocked => {
                let (url, seconds) = (stack.url.clone(), self.random.f64() * 2.0);
                return self.last(fault, move |_| lock_table(url, seconds));
            }
            Fault::BrokerFrozen => {
                let long = Duration::from_millis(self.random.u64(200..5_000));
                return self.last(fault, move |servers| freeze(servers, long));
            }
            Fault::BrokerCrash => return self.last(fault, move |servers| crash(servers, pause)),
            Fault::ConnectionsReset => {
                let Network { kafka, postgres } = &*self.servers.network;
                return if self.random.bool() { kafka.cut_all() > 0 } else { postgres.cut_all() > 0 };
            }
            Fault::BlackHole => {
                let is_kafka = self.random.bool();
                let long = Duration::from_millis(self.random.u64(200..13_000));
                return self.last(fault, move |servers| {
                    let Network { kafka, postgres } = &*servers.network;
                    black_hole(if is_kafka { kafka } else { postgres }, long)
                });
            }
            Fault::ReplyLost => self.arm("reply lost", Proxy::lose_reply),
            Fault::RequestDelayed => {
                let long = Duration::from_millis(self.random.u64(100..8_000));
                self.arm("delayed", move |proxy, which| proxy.delay(which, long));
            }
        }
        true
    }

    /// Strikes one of the next such requests; whether it did is only known in the end.
    fn arm(&mut self, what: &str, how: impl FnOnce(&Proxy, Match) -> proxy::Fault) {
        let (name, request) = REQUESTS[self.random.usize(0..REQUESTS.len())];
        let nth = self.random.u32(1..4);
        let Network { kafka, postgres } = &*self.servers.network;
        let fault = match request {
            Request::Kafka(key) => how(kafka, Match::kafka(key).nth(nth)),
            Request::Postgres(text) => how(postgres, Match::postgres(text).nth(nth)),
        };
        self.armed.push((format!("{what}: {name}"), fault));
    }

    fn last(&mut self, fault: Fault, carry_out: impl FnOnce(&Servers) -> bool + Send + 'static) -> bool {
        let servers = self.servers.clone();
        self.lasting = Some((fault, std::thread::spawn(move || carry_out(&servers))));
        false
    }

    /// Some or all of them.
    fn end_sessions(&mut self, stack: &Stack) -> bool {
        let ours = "datname = current_database() AND application_name LIKE 'dinnerbell%'";
        let found = stack.query(&format!("SELECT pid FROM pg_stat_activity WHERE {ours} ORDER BY backend_start, pid"));
        let mut sessions: Vec<i32> = found.iter().map(|row| row.get(0)).collect();
        // However many there are: the next faults are the seed's.
        let mut random = self.random.fork();
        random.shuffle(&mut sessions);
        sessions.truncate(random.usize(1..8));
        let ended = |pid: &i32| stack.number(&format!("SELECT pg_terminate_backend({pid})::int::int8")) == 1;
        sessions.iter().filter(|pid| ended(pid)).count() > 0
    }

    fn change_subscriptions(&mut self, stack: &Stack) {
        self.changes += 1;
        let other = campaigns::restaurant(10_000 + self.changes % 50);
        let client = campaigns::client(self.random.usize(0..5_000));
        stack.execute(&format!(
            "DELETE FROM subscribers_restaurants WHERE restaurant_id = '{other}'; \
             INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('{client}', '{other}'), ('{client}', '{other}')"
        ));
    }

    fn is_quiet(&mut self, to: &mut Examination) -> bool {
        if self.lasting.as_ref().is_some_and(|(_, thread)| !thread.is_finished()) {
            return false;
        }
        self.join(to);
        true
    }

    fn join(&mut self, to: &mut Examination) {
        let Some((fault, thread)) = self.lasting.take() else { return };
        match thread.join() {
            Ok(happened) => *self.counts.entry(fault).or_default() += u64::from(happened),
            Err(_) => {
                let name = fault.name();
                to.find("harness", format!("{name}: panicked; a server did not come back, or answered strangely"));
            }
        }
    }

    /// The last one is over, and all servers run.
    pub fn end(&mut self, to: &mut Examination) {
        self.join(to);
        self.armed.iter().for_each(|(_, fault)| fault.release());
    }

    pub fn account(&self, floods: u64, tally: &mut Tally) {
        for (fault, _) in Fault::ALL {
            let count = if fault == Fault::Flood { Some(&floods) } else { self.counts.get(&fault) };
            tally.fact(format!("fault: {}", fault.name()), count.copied().unwrap_or_default());
        }
        let mut met: BTreeMap<String, u64> = BTreeMap::new();
        for (name, fault) in &self.armed {
            *met.entry(format!("network: {name}")).or_default() += fault.injected();
        }
        met.into_iter().for_each(|(name, count)| tally.fact(name, count));
    }
}

fn postgres(servers: &Servers, shutdown: Shutdown, pause: Duration) -> bool {
    let mut postgres = servers.postgres.lock().expect("no panic");
    postgres.stop(shutdown);
    std::thread::sleep(pause);
    postgres.resume();
    true
}

/// As a migration does it, between two commits or in the middle of them.
fn lock_table(url: String, seconds: f64) -> bool {
    super::super::block_on(async move {
        let client = super::super::connect(&url).await;
        let sql = format!(
            "BEGIN; LOCK TABLE subscribers_feedback IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep({seconds}); COMMIT"
        );
        client.batch_execute(&sql).await.expect("nothing else goes wrong meanwhile");
    });
    true
}

fn freeze(servers: &Servers, long: Duration) -> bool {
    let kafka = servers.kafka.lock().expect("no panic");
    kafka.freeze();
    std::thread::sleep(long);
    kafka.thaw();
    true
}

fn crash(servers: &Servers, pause: Duration) -> bool {
    let mut kafka = servers.kafka.lock().expect("no panic");
    kafka.kill9();
    std::thread::sleep(pause);
    kafka.resume();
    true
}

/// Only one that has caught something has happened.
fn black_hole(proxy: &Proxy, long: Duration) -> bool {
    let before = proxy.caught();
    proxy.black_hole();
    std::thread::sleep(long);
    proxy.restore();
    proxy.caught() > before
}
