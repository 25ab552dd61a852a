//! The chaos run: replicas of the built binary on a real Kafka and a real Postgres, killed again and again while everything
//! else goes wrong as well, and the checker over what they leave.
//!
//! Replicas die and are started again independently of each other: at a step of the protocol (a failpoint, armed before the
//! start), at a random moment (kill -9), or by SIGTERM. Every decision is drawn from the seed; the moment at which it meets
//! the processes is the machine's, so a seed repeats the plan of a run and not its every instruction.

pub mod audit;
mod faults;
mod feeder;
mod plan;
mod replica;
pub mod report;
mod sampler;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::checker::{Examination, examine, last_stable_and_end, of_stack};
use super::kafka::{Kafka, KafkaOptions, add_partitions};
use super::model::Model;
use super::postgres::Postgres;
use super::proxy::{Network, Proxy};
use super::run::wait_until;
use super::stack::Stack;

use faults::Faults;
use feeder::Feeder;
pub use replica::Death;
use replica::Slots;
use report::Tally;
use sampler::Sampler;

/// What a run is to be.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// All random decisions come from it
    #[arg(long)]
    pub seed: Option<u64>,
    /// Least duration of the faults, in minutes
    #[arg(long, default_value_t = 0.0)]
    pub minutes: f64,
    /// Number of deaths by SIGKILL to reach
    #[arg(long, default_value_t = 0)]
    pub cycles: u64,
    /// Rows to deliver at the least
    #[arg(long, default_value_t = 0)]
    pub rows: u64,
    /// How often each step of the protocol has to be hit
    #[arg(long, default_value_t = 0)]
    pub per_step: u64,
    /// Where the goals are not reached by then, the run fails, in minutes
    #[arg(long, default_value_t = 120.0)]
    pub at_most: f64,
    #[arg(long, default_value_t = 3)]
    pub replicas: usize,
    #[arg(long, default_value_t = 12)]
    pub partitions: usize,
    /// Share of messages that are bad
    #[arg(long, default_value_t = 0.01)]
    pub malformed: f64,
    /// Rows a second that the input makes at the most
    #[arg(long, default_value_t = 6_000)]
    pub rate: u64,
    /// Share of starts without `[job] instance`, whose death costs the group a session timeout
    #[arg(long, default_value_t = 0.02)]
    pub dynamic: f64,
    /// How many commits a replica lives to see: 1 for some five at the most, 3 for three times as many
    #[arg(long, default_value_t = 1)]
    pub life: u32,
    /// Seconds between two faults beside the kills, on average; 0 for none
    #[arg(long, default_value_t = 4.0)]
    pub fault_every: f64,
    /// The most memory that a replica may have had, in MiB
    #[arg(long, default_value_t = 400)]
    pub memory: u64,
    /// Keeps the logs also where nothing was found
    #[arg(long)]
    pub keep_logs: bool,
    /// The output column that becomes the record's key; without it records have none
    #[arg(long)]
    pub key: Option<String>,
    /// How long the job may take to catch up when the faults have stopped, in seconds
    #[arg(long, default_value_t = 120)]
    pub catch_up: u64,
}

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    pub tally: Tally,
    pub examination: Examination,
    /// The replicas' output and the servers' logs; kept where something was found.
    pub logs: PathBuf,
}

/// A message that Postgres refuses: the sink table has a constraint against it.
const REFUSED: &str = "rude";

/// How much of everything the kills and faults did.
type Goals = Options;

/// Runs it all. Panics where the harness itself fails.
pub fn run(options: &Options, seed: u64) -> Outcome {
    let began = Instant::now();
    let logs = fresh_logs(seed);
    let servers = Servers::start();
    let (stack, model) = prepare(options, seed, &servers);
    let mut random = fastrand::Rng::with_seed(seed);
    let sampler = Sampler::start(&stack);
    let mut slots = Slots::new(&stack, &logs, options, random.fork(), sampler.shared(), servers.network.clone());
    let feeder = Feeder::start(&stack, &model, options, random.fork(), sampler.shared());
    let mut faults = Faults::new(options, random.fork(), servers.clone());
    let mut tally = Tally::new(options, seed);
    let mut examination = Examination::default();
    while !reached(options, began, &slots, &feeder) && examination.findings.is_empty() {
        if began.elapsed() > minutes(options.at_most) {
            examination.find("goals", format!("not reached in {} minutes: {}", options.at_most, slots.hits()));
        }
        slots.tick(&mut examination);
        faults.tick(&stack, &mut slots, &feeder, &mut examination);
        std::thread::sleep(Duration::from_millis(20));
    }
    faults.end(&mut examination);
    slots.end_kills(&mut examination);
    tally.fact("seconds of faults", began.elapsed().as_secs());
    let (rows, floods) = feeder.end();
    tally.fact("rows put in", rows);
    if !examination.breaks("harness") {
        catch_up(&stack, &mut slots, &sampler, options, &mut tally, &mut examination);
    }
    slots.stop(&mut examination);
    sampler.end(&mut tally, &mut examination);
    slots.account(&mut tally, options.memory, &mut examination);
    faults.account(floods, &mut tally);
    let examination = judge(&stack, &model, &slots, &mut tally, examination);
    tally.finish(&stack, began.elapsed(), &examination);
    servers.keep_logs(&logs);
    if examination.findings.is_empty() && !options.keep_logs {
        let _ = fs::remove_dir_all(&logs);
    }
    Outcome { tally, examination, logs }
}

/// The job by itself again: it reaches the end of every partition and has nothing unconfirmed.
fn catch_up(
    stack: &Stack,
    slots: &mut Slots<'_>,
    sampler: &Sampler,
    options: &Goals,
    tally: &mut Tally,
    to: &mut Examination,
) {
    let began = Instant::now();
    let ends = last_stable_and_end(&stack.bootstrap, &stack.campaigns);
    let limit = Duration::from_secs(options.catch_up);
    let behind = |shared: &sampler::Seen| -> i64 {
        ends.iter().map(|(partition, (_, end))| end - shared.next(*partition)).sum::<i64>() + shared.unconfirmed()
    };
    let shared = sampler.shared();
    tally.fact("messages behind when the faults stopped", behind(&shared).max(0) as u64);
    while behind(&shared) != 0 {
        if began.elapsed() > limit {
            let left = behind(&shared);
            to.find("I8", format!("{left} messages and stored parts are left {limit:?} after the faults have stopped"));
            break;
        }
        slots.tick(to);
        std::thread::sleep(Duration::from_millis(50));
    }
    tally.fact("milliseconds to catch up", began.elapsed().as_millis() as u64);
}

/// The checker's verdict on top of what the harness has seen itself.
fn judge(stack: &Stack, model: &Model, slots: &Slots<'_>, tally: &mut Tally, mut seen: Examination) -> Examination {
    for topic in [&stack.triggers, &stack.dead_letters] {
        for (partition, (stable, end)) in last_stable_and_end(&stack.bootstrap, topic) {
            if stable != end {
                seen.find(
                    "I1",
                    format!("{topic}[{partition}]: a transaction is left open at {stable}, the end is {end}"),
                );
            }
        }
    }
    let began = Instant::now();
    let (sent_again, told) = (slots.sent_again(&mut seen), slots.told(&mut seen));
    let examination = examine(&of_stack(stack, model, sent_again, told));
    tally.fact("seconds of checking", began.elapsed().as_secs());
    seen.facts.extend(examination.facts);
    seen.findings.extend(examination.findings);
    seen
}

fn reached(goals: &Goals, began: Instant, slots: &Slots<'_>, feeder: &Feeder) -> bool {
    began.elapsed() >= minutes(goals.minutes)
        && slots.deaths() >= goals.cycles
        && feeder.rows() >= goals.rows
        && slots.least_hits() >= goals.per_step
}

fn minutes(minutes: f64) -> Duration {
    Duration::from_secs_f64(minutes * 60.0)
}

/// The servers of one run: no other test's, for they crash.
#[derive(Clone)]
pub struct Servers {
    kafka: Arc<Mutex<Kafka>>,
    postgres: Arc<Mutex<Postgres>>,
    /// Of the first replica alone: the other ones need no proxy to be slow.
    network: Arc<Network>,
}

impl Servers {
    fn start() -> Servers {
        let kafka = std::thread::spawn(|| Kafka::start(KafkaOptions { proxied: 1, ..KafkaOptions::default() }));
        let postgres = Postgres::start(Default::default());
        let kafka = kafka.join().expect("Kafka starts");
        let network = Network { kafka: Proxy::kafka(&kafka), postgres: Proxy::postgres(&postgres.url("postgres")) };
        Servers {
            kafka: Arc::new(Mutex::new(kafka)),
            postgres: Arc::new(Mutex::new(postgres)),
            network: Arc::new(network),
        }
    }

    fn keep_logs(&self, to: &Path) {
        let (kafka, postgres) = (self.kafka.lock().expect("no panic"), self.postgres.lock().expect("no panic"));
        let _ = fs::copy(kafka.log(), to.join("kafka.log"));
        let _ = fs::write(to.join("postgres.log"), postgres.log_tail());
    }
}

/// Topics, tables, subscriptions, the ledger and the triggers on it; and what must come out.
fn prepare(options: &Options, seed: u64, servers: &Servers) -> (Stack, Model) {
    let mut stack = {
        let (kafka, postgres) = (servers.kafka.lock().expect("no panic"), servers.postgres.lock().expect("no panic"));
        Stack::private("chaos", &kafka, &postgres)
    };
    if options.partitions > 3 {
        add_partitions(&stack.bootstrap, &stack.campaigns, options.partitions);
    }
    // Some 500 rows: many commits in a short life.
    // Each replica may have addresses of its own.
    stack.set("kafka", "bootstrap.servers", format!("${{DINNERBELL_TEST_KAFKA:-{}}}", stack.bootstrap));
    stack.set("postgres", "url", format!("${{DINNERBELL_TEST_POSTGRES:-{}}}", stack.url));
    stack.set("batch", "max_messages", 10);
    stack.set("lookup", "refresh", "2s");
    stack.set("job", "instance", "${DINNERBELL_TEST_INSTANCE:-}");
    if let Some(key) = &options.key {
        stack.set("sink.kafka", "key", key.as_str());
    }
    stack.execute(&format!("ALTER TABLE subscribers_feedback ADD CHECK (adv_campaign_content <> '{REFUSED}')"));
    let subscriptions = feeder::subscriptions(seed);
    let pairs = || {
        subscriptions
            .iter()
            .flat_map(|(restaurant, clients)| clients.iter().map(move |client| (client.clone(), restaurant.clone())))
    };
    stack.subscribe(pairs());
    // The same subscription under several ids, as in real life.
    stack.subscribe(pairs().step_by(7));
    super::job::Job::run(&stack, &["init"]);
    audit::install(&stack);
    let (refused_content, key) = (Some(REFUSED.into()), options.key.clone());
    let model = Model { subscriptions, refused_content, key, now: super::witness::now() };
    (stack, model)
}

/// Outside the tests' own directory, which goes when they end.
fn fresh_logs(seed: u64) -> PathBuf {
    let path = std::env::temp_dir().join(format!("dinnerbell-chaos-{seed}-{}", std::process::id()));
    fs::create_dir_all(&path).unwrap_or_else(|error| panic!("creating {}: {error}", path.display()));
    path
}
