//! Lookup tables that take their time to load: what the job does meanwhile, and what it leaves alone.

use std::time::{Duration, Instant};

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
        Gate::guard(&stack, "(SELECT pg_advisory_lock_shared(7)::text) IS NOT NULL");
        stack
    }

    fn guard(stack: &Stack, gate: &str) {
        let query = format!("SELECT client_id, restaurant_id FROM subscribers_restaurants WHERE {gate}");
        stack.write_sql("lookups/subscribers_restaurants.sql", &query);
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

/// What /readyz says of the lookup tables, and of the first lane; `None` when ready.
fn unready(job: &Job) -> Option<(String, String)> {
    let (code, said) = job.get("/readyz")?;
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
    (code == 503).then(|| (text(&said["lookups"]["reason"]), text(&said["lanes"][0]["reason"])))
}

/// Its partitions are claimed, and it says what it waits for.
fn loads(job: &Job) -> bool {
    unready(job).is_some_and(|(lookups, lane)| {
        lookups == "the lookup tables are loading" && lane == "waiting for the lookup tables"
    })
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
    let mut stack = Gate::stack("replica_loading");
    // A member hears of a newcomer with its next heartbeat.
    stack.set("source.kafka", "heartbeat.interval.ms", "100");
    let mut first = Job::spawn(&stack, &["run"]);
    LOAD.produce(&stack, 0..10);
    taken(&mut first, 10);
    let gate = Gate::hold(&stack);
    let second = Job::spawn(&stack, &["run"]);
    wait_until("the second loads and lets the first be", PATIENCE, || {
        waits(&stack) && second.stderr().contains("joins the group once its lookup tables are there")
    });
    let (lookups, _) = unready(&second).expect("it has no tables");
    assert_eq!(lookups, "the lookup tables are loading");
    // For ten heartbeats.
    let (began, mut messages) = (Instant::now(), 10);
    while began.elapsed() < Duration::from_secs(1) {
        LOAD.produce(&stack, messages..messages + 1);
        messages += 1;
        taken(&mut first, messages);
    }
    assert!(claims(&stack) == 3 && !second.stderr().contains("partitions assigned"), "{}", second.stderr());
    assert!(first.is_ready() && !second.is_ready());
    gate.open();
    wait_until("the second works", PATIENCE, || second.is_ready() && first.is_ready() && claims(&stack) > 3);
    LOAD.produce(&stack, messages..messages + 20);
    LOAD.arrives(&stack, messages + 20);
    stop(first);
    LOAD.ends(second, &stack, messages + 20);
}

/// With more lanes than partitions: a lane that stands by needs no tables, and none of the load's troubles stays with it.
#[test]
fn a_load_that_fails_is_told_and_tried_again() {
    let mut stack = Gate::stack("load_again");
    stack.set("job", "lanes", 4);
    let gate = Gate::hold(&stack);
    LOAD.produce(&stack, 0..20);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("three lanes have claimed, one stands by", PATIENCE, || {
        let lanes = job.get("/readyz").map_or_else(String::new, |(_, said)| said);
        waits(&stack)
            && lanes.matches("waiting for the lookup tables").count() == 3
            && lanes.matches("working").count() == 1
    });
    let ends = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE datname = current_database() AND wait_event = 'advisory'";
    assert_eq!(stack.number(ends), 1);
    wait_until("it says what the load waits for", PATIENCE, || {
        unready(&job).is_some_and(|(lookups, _)| lookups.contains("terminating connection"))
    });
    assert_eq!(job.get("/healthz").map(|(code, _)| code), Some(200));
    gate.open();
    taken(&mut job, 20);
    wait_until("every lane is ready", PATIENCE, || job.is_ready());
    LOAD.ends(job, &stack, 20);
}

/// What no waiting can mend shows only as the query runs, when partitions are held already.
#[test]
fn a_load_that_halts_gives_the_partitions_back() {
    let stack = Gate::stack("load_halts");
    Gate::guard(&stack, "1 / length(pg_advisory_lock_shared(7)::text) = 1");
    let gate = Gate::hold(&stack);
    LOAD.produce(&stack, 0..20);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("it has claimed", PATIENCE, || loads(&job));
    gate.open();
    assert_eq!(job.wait(PATIENCE).code(), Some(1));
    let told = job.stderr();
    assert!(told.contains("division by zero") && told.contains("subscribers_restaurants.sql"), "{told}");
    assert!(told.contains("correct the query, or the values that it stumbles over"), "{told}");
    assert!(told.contains("partitions released"), "{told}");
    assert_eq!(stack.number("SELECT sum(next_offset) FROM dinnerbell.progress"), 0);
    Gate::guard(&stack, "true");
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 20);
    LOAD.ends(job, &stack, 20);
}
