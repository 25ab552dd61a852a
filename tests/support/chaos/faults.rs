//! What goes wrong beside the deaths of replicas. A new fault is a line in [`Fault::ALL`] and an arm in [`Faults::inject`].

use std::collections::BTreeMap;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::checker::Examination;
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
}

impl Fault {
    /// With how often each comes, relative to the others.
    const ALL: [(Fault, f64); 9] = [
        (Fault::SessionsEnded, 6.0),
        (Fault::LookupChanged, 4.0),
        (Fault::Flood, 2.0),
        (Fault::ReplicaJoins, 1.5),
        (Fault::PostgresCrash, 1.0),
        (Fault::PostgresRestart, 0.7),
        (Fault::PostgresLocked, 1.0),
        (Fault::BrokerFrozen, 1.0),
        (Fault::BrokerCrash, 0.7),
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
        }
    }
}

pub struct Faults {
    random: fastrand::Rng,
    every: f64,
    next: Instant,
    servers: Servers,
    /// A fault that lasts; no other one meanwhile.
    lasting: Option<JoinHandle<()>>,
    counts: BTreeMap<Fault, u64>,
    changes: usize,
}

impl Faults {
    pub fn new(options: &Options, random: fastrand::Rng, servers: Servers) -> Faults {
        let next = Instant::now() + Duration::from_secs(5);
        let every = options.fault_every;
        Faults { random, every, next, servers, lasting: None, counts: BTreeMap::new(), changes: 0 }
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

    /// Whether it really happened.
    fn inject(&mut self, fault: Fault, stack: &Stack, slots: &mut Slots<'_>, feeder: &Feeder) -> bool {
        let pause = Duration::from_millis(self.random.u64(0..3_000));
        match fault {
            Fault::SessionsEnded => return self.end_sessions(stack),
            Fault::LookupChanged => self.change_subscriptions(stack),
            Fault::Flood => feeder.flood(200),
            Fault::ReplicaJoins => return slots.join(self.random.u64(6..20)),
            Fault::PostgresCrash => self.postgres(Shutdown::Immediate, pause),
            Fault::PostgresRestart => self.postgres(Shutdown::Fast, pause),
            Fault::PostgresLocked => self.lock_table(stack),
            Fault::BrokerFrozen => {
                let long = Duration::from_millis(self.random.u64(200..5_000));
                self.last(move |servers| {
                    let kafka = servers.kafka.lock().expect("no panic");
                    kafka.freeze();
                    std::thread::sleep(long);
                    kafka.thaw();
                });
            }
            Fault::BrokerCrash => self.last(move |servers| {
                let mut kafka = servers.kafka.lock().expect("no panic");
                kafka.kill9();
                std::thread::sleep(pause);
                kafka.resume();
            }),
        }
        true
    }

    fn last(&mut self, fault: impl FnOnce(Servers) + Send + 'static) {
        let servers = self.servers.clone();
        self.lasting = Some(std::thread::spawn(move || fault(servers)));
    }

    fn postgres(&mut self, shutdown: Shutdown, pause: Duration) {
        self.last(move |servers| {
            let mut postgres = servers.postgres.lock().expect("no panic");
            postgres.stop(shutdown);
            std::thread::sleep(pause);
            postgres.resume();
        });
    }

    /// Some or all of them.
    fn end_sessions(&mut self, stack: &Stack) -> bool {
        let some = self.random.u32(1..8);
        let ended = stack.number(&format!(
            "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name LIKE 'dinnerbell%' ORDER BY random() LIMIT {some}) AS s"
        ));
        ended > 0
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

    /// As a migration does it, between two commits or in the middle of them.
    fn lock_table(&mut self, stack: &Stack) {
        let url = stack.url.clone();
        let seconds = self.random.f64() * 2.0;
        self.last(move |_| {
            super::super::block_on(async move {
                let client = super::super::connect(&url).await;
                let sql = format!(
                    "BEGIN; LOCK TABLE subscribers_feedback IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep({seconds}); COMMIT"
                );
                client.batch_execute(&sql).await.expect("nothing else goes wrong meanwhile");
            });
        });
    }

    fn is_quiet(&mut self, to: &mut Examination) -> bool {
        if self.lasting.as_ref().is_some_and(|fault| !fault.is_finished()) {
            return false;
        }
        self.join(to);
        true
    }

    fn join(&mut self, to: &mut Examination) {
        if self.lasting.take().is_some_and(|fault| fault.join().is_err()) {
            to.find("harness", "a fault that lasts has panicked: a server did not come back, or answered strangely");
        }
    }

    /// The last one is over, and all servers run.
    pub fn end(&mut self, to: &mut Examination) {
        self.join(to);
    }

    pub fn account(&self, tally: &mut Tally) {
        for (fault, _) in Fault::ALL {
            tally.fact(format!("fault: {}", fault.name()), self.counts.get(&fault).copied().unwrap_or_default());
        }
    }
}
