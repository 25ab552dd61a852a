//! Lookup tables that take their time to load: what the job does meanwhile, and what it leaves alone.

use tokio_postgres::Client;

use crate::support::{Job, LONG_PATIENCE as PATIENCE, Load, Stack, block_on, connect, stop, taken, wait_until};

const LOAD: Load = Load { restaurants: 5, subscribers: 4 };

/// While one is held, no lookup query gets any further.
struct Gate(Client);

impl Gate {
    /// A stack with subscriptions that are behind a gate, which is open.
    fn stack(name: &str) -> Stack {
        let stack = Stack::new(name);
        LOAD.subscribe(&stack);
        stack.write_sql(
            "lookups/subscribers_restaurants.sql",
            "SELECT client_id, restaurant_id FROM subscribers_restaurants \
             WHERE (SELECT pg_advisory_lock_shared(7)::text) IS NOT NULL",
        );
        stack
    }

    fn hold(stack: &Stack) -> Gate {
        let url = stack.url.clone();
        Gate(block_on(async move {
            let client = connect(&url).await;
            client.batch_execute("SELECT pg_advisory_lock(7)").await.expect("nobody else holds it");
            client
        }))
    }

    /// The lock goes with its session.
    fn open(self) {
        drop(self.0);
    }
}

/// A job at the gate waits for Postgres.
fn waits(stack: &Stack) -> bool {
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'";
    stack.number(waiting) > 0
}

/// Its partitions are claimed, and it says what it waits for.
fn loads(job: &Job) -> bool {
    job.get("/readyz").is_some_and(|(code, said)| code == 503 && said.contains("tables are loading"))
}

/// How often the partitions were claimed, in all.
fn claims(stack: &Stack) -> i64 {
    stack.number("SELECT sum(epoch) FROM dinnerbell.progress")
}

/// Alone in its group, the job is at the first message when the tables are there, and rings for none before.
#[test]
fn partitions_are_claimed_meanwhile_and_nothing_is_rung() {
    let stack = Gate::stack("meanwhile");
    let gate = Gate::hold(&stack);
    LOAD.produce(&stack, 0..20);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("it is at work and says what it waits for", PATIENCE, || loads(&job));
    assert!(waits(&stack) && claims(&stack) == 3);
    assert_eq!(stack.number("SELECT count(*) FROM subscribers_feedback") + stack.read_triggers().len() as i64, 0);
    assert_eq!(stack.number("SELECT sum(next_offset) FROM dinnerbell.progress"), 0);
    gate.open();
    taken(&mut job, 20);
    LOAD.arrives(&stack, 20);
    assert!(job.is_ready() && claims(&stack) == 3, "one claim is enough");
    LOAD.ends(job, &stack, 20);
}

#[test]
fn a_stop_meanwhile_gives_the_partitions_back() {
    let stack = Gate::stack("stopped_loading");
    let gate = Gate::hold(&stack);
    LOAD.produce(&stack, 0..20);
    let job = Job::spawn(&stack, &["run"]);
    wait_until("it has claimed", PATIENCE, || loads(&job));
    assert!(waits(&stack) && claims(&stack) == 3);
    let told = stop(job);
    assert!(told.contains("partitions released"), "{told}");
    assert_eq!(stack.number("SELECT sum(next_offset) FROM dinnerbell.progress"), 0);
    gate.open();
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 20);
    LOAD.ends(job, &stack, 20);
}

/// A replica takes partitions from others when it can work, and not while it loads.
#[test]
fn who_is_at_work_keeps_the_partitions_until_the_next_can_work() {
    let stack = Gate::stack("replica_loading");
    let mut first = Job::spawn(&stack, &["run"]);
    LOAD.produce(&stack, 0..10);
    taken(&mut first, 10);
    let gate = Gate::hold(&stack);
    let second = Job::spawn(&stack, &["run"]);
    wait_until("the second loads", PATIENCE, || waits(&stack));
    LOAD.produce(&stack, 10..40);
    taken(&mut first, 40);
    assert!(claims(&stack) == 3 && !second.stderr().contains("partitions assigned"), "{}", second.stderr());
    assert!(first.is_ready() && !second.is_ready());
    gate.open();
    wait_until("the second works", PATIENCE, || second.is_ready() && first.is_ready() && claims(&stack) > 3);
    LOAD.produce(&stack, 40..60);
    LOAD.arrives(&stack, 60);
    stop(first);
    LOAD.ends(second, &stack, 60);
}
