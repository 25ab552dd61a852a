//! Stops, crashes and outages in mid-load: nothing lost, nothing twice, and the job goes on by itself.

use std::time::{Duration, Instant};

use crate::support::{
    Job, Kafka, KafkaOptions, LONG_PATIENCE as PATIENCE, Load, Postgres, Shutdown, Stack, wait_until,
};

const LOAD: Load = Load { restaurants: 20, subscribers: 25 };

/// A stack whose commits are small, so that a load is many of them.
fn small_batches(mut stack: Stack) -> Stack {
    stack.set("batch", "max_messages", 5);
    LOAD.subscribe(&stack);
    stack
}

fn drained(job: &mut Job) {
    job.term();
    let status = job.wait(Duration::from_secs(12));
    assert_eq!(status.code(), Some(0), "{}", job.stderr());
}

fn rows(stack: &Stack) -> i64 {
    stack.number("SELECT count(*) FROM subscribers_feedback")
}

#[test]
fn sigterm_in_mid_load_drains_and_a_restart_goes_on() {
    let stack = small_batches(Stack::new("sigterm"));
    LOAD.produce(&stack, 0..400);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("some rows", PATIENCE, || rows(&stack) > 0);
    drained(&mut job);
    let before = rows(&stack);
    assert!(before < 400 * 25, "the stop came after the load, not in its middle");
    assert_eq!(stack.number("SELECT count(*) FROM dinnerbell.progress WHERE transactional_ids IS NOT NULL"), 0);
    let mut job = Job::spawn(&stack, &["run"]);
    LOAD.arrives(&stack, 400);
    drained(&mut job);
    LOAD.verify(&stack, 400);
}

/// Nobody polls any more, so nothing would ever come: the job must not stand there in silence, and as a member of the group.
#[test]
fn a_polling_thread_that_panics_ends_the_job() {
    let stack = small_batches(Stack::new("panic"));
    LOAD.produce(&stack, 0..100);
    let mut job = Job::spawn_with(&stack, &["run"], &[("FAILPOINTS", "S0=3*off->panic")]);
    let code = job.wait(PATIENCE).code();
    assert_eq!(code, Some(1), "{}", job.stderr());
    let told = job.stderr();
    assert!(told.contains("the polling thread has ended"), "{told}");
    let mut job = Job::spawn(&stack, &["run"]);
    LOAD.arrives(&stack, 100);
    drained(&mut job);
    LOAD.verify(&stack, 100);
}

#[test]
fn kill_9_ten_times_in_mid_load() {
    let stack = small_batches(Stack::new("kill9"));
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut produced = 0;
    for round in 0..10 {
        LOAD.produce(&stack, produced..produced + 60);
        produced += 60;
        let before = rows(&stack);
        let mut job = Job::spawn(&stack, &["run"]);
        // A random amount of work, then a random moment within a commit.
        let wanted = before + random.i64(1..20 * 25);
        wait_until("some more rows", PATIENCE, || rows(&stack) >= wanted || LOAD.is_in_postgres(&stack, produced));
        std::thread::sleep(Duration::from_micros(random.u64(0..30_000)));
        job.kill9();
        println!("round {round}: killed with {} rows", rows(&stack));
    }
    let mut job = Job::spawn(&stack, &["run"]);
    LOAD.arrives(&stack, produced);
    drained(&mut job);
    LOAD.verify(&stack, produced);
}

#[test]
fn replicas_join_and_leave_in_mid_load() {
    let stack = small_batches(Stack::new("replicas"));
    LOAD.produce(&stack, 0..300);
    let mut first = Job::spawn(&stack, &["run"]);
    wait_until("some rows", PATIENCE, || rows(&stack) > 0);
    let mut second = Job::spawn(&stack, &["run"]);
    wait_until("the second has partitions", PATIENCE, || second.stderr().contains("partitions assigned"));
    LOAD.produce(&stack, 300..500);
    wait_until("more rows", PATIENCE, || rows(&stack) > 350 * 25);
    drained(&mut first);
    LOAD.produce(&stack, 500..600);
    let mut third = Job::spawn(&stack, &["run"]);
    wait_until("the third has partitions", PATIENCE, || third.stderr().contains("partitions assigned"));
    second.kill9();
    LOAD.arrives(&stack, 600);
    drained(&mut third);
    LOAD.verify(&stack, 600);
}

#[test]
fn servers_restart_in_mid_load() {
    let (mut kafka, mut postgres) = (Kafka::start(KafkaOptions::default()), Postgres::start(Default::default()));
    let stack = small_batches(Stack::private("restarts", &kafka, &postgres));
    LOAD.produce(&stack, 0..200);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("some rows", PATIENCE, || rows(&stack) > 0);

    postgres.stop(Shutdown::Immediate);
    wait_until("the job notices", PATIENCE, || job.stderr().contains("paused: "));
    assert!(!job.is_ready());
    postgres.resume();
    LOAD.arrives(&stack, 200);
    wait_until("the job is ready again", PATIENCE, || job.is_ready());
    let told = job.stderr().matches("paused: ").count();
    assert_eq!(told, 1, "an outage is told once: {}", job.stderr());

    LOAD.produce(&stack, 200..400);
    wait_until("some more rows", PATIENCE, || rows(&stack) > 205 * 25);
    kafka.kill9();
    wait_until("the job notices", PATIENCE, || job.stderr().matches("paused: ").count() == 2);
    // Longer than the session timeout, so that the group and its partitions are lost as well.
    std::thread::sleep(Duration::from_secs(15));
    let warnings = job.stderr().matches("WARN").count();
    assert!(warnings <= 4, "an outage floods the log: {}", job.stderr());
    kafka.resume();
    LOAD.arrives(&stack, 400);
    wait_until("the job is ready again", PATIENCE, || job.is_ready());
    assert_eq!(job.stderr().matches("resumed").count(), 2, "{}", job.stderr());
    assert_eq!(job.metric("dinnerbell_reconnects_total", "{server=\"postgres\"}"), 1.0);
    assert_eq!(job.metric("dinnerbell_reconnects_total", "{server=\"kafka\"}"), 1.0);

    postgres.stop(Shutdown::Fast);
    kafka.stop();
    kafka.resume();
    postgres.resume();
    LOAD.produce(&stack, 400..500);
    LOAD.arrives(&stack, 500);
    drained(&mut job);
    LOAD.verify(&stack, 500);
}

#[test]
fn a_backend_killed_in_mid_load_is_claimed_anew() {
    let stack = small_batches(Stack::new("backend"));
    LOAD.produce(&stack, 0..300);
    let mut job = Job::spawn(&stack, &["run"]);
    for milestone in [1, 3_000] {
        wait_until("some rows", PATIENCE, || rows(&stack) >= milestone);
        assert!(stack.kill_sessions() > 0);
    }
    LOAD.arrives(&stack, 300);
    drained(&mut job);
    LOAD.verify(&stack, 300);
}

#[test]
fn lanes_share_the_partitions_and_a_named_instance_keeps_them() {
    let mut stack = small_batches(Stack::new("lanes"));
    stack.set("job", "lanes", 3);
    stack.set("job", "instance", "bell");
    LOAD.produce(&stack, 0..200);
    let mut job = Job::spawn(&stack, &["run"]);
    LOAD.arrives(&stack, 200);
    let owners = "SELECT count(DISTINCT transactional_ids) FROM dinnerbell.progress";
    wait_until("each lane has a partition", PATIENCE, || stack.number(owners) == 3);
    job.kill9();

    // A restart under the same name gets the partitions without waiting for the session timeout of the dead member.
    let mut job = Job::spawn(&stack, &["run"]);
    LOAD.produce(&stack, 200..300);
    wait_until("it goes on at once", Duration::from_secs(9), || LOAD.is_in_postgres(&stack, 300));

    // A second process of that name takes over; the first one is told, and halts.
    let mut second = Job::spawn(&stack, &["run"]);
    let status = job.wait(PATIENCE);
    assert_eq!(status.code(), Some(1), "{}", job.stderr());
    assert!(job.stderr().contains("[job] instance"), "{}", job.stderr());
    LOAD.produce(&stack, 300..350);
    LOAD.arrives(&stack, 350);
    drained(&mut second);
    LOAD.verify(&stack, 350);
}

#[test]
fn a_steady_trickle_never_stalls() {
    let stack = small_batches(Stack::new("trickle"));
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("the job is ready", PATIENCE, || job.is_ready());
    // Longer than two of the intervals at which progress is written: every one of them meets a batch on its way.
    let began = Instant::now();
    let mut produced = 0;
    while began.elapsed() < Duration::from_secs(12) {
        LOAD.produce(&stack, produced..produced + 1);
        produced += 1;
    }
    LOAD.arrives(&stack, produced);
    drained(&mut job);
    LOAD.verify(&stack, produced);
}

#[cfg(feature = "failpoints")]
#[test]
fn a_consumer_that_hears_nothing_any_more_is_replaced() {
    let stack = small_batches(Stack::new("deaf"));
    LOAD.produce(&stack, 0..20);
    let deaf = [("FAILPOINTS", "deaf=1*return;deaf_after=return(2000)")];
    let mut job = Job::spawn_with(&stack, &["run"], &deaf);
    LOAD.arrives(&stack, 20);
    assert_eq!(job.stderr().matches("joining it anew").count(), 1, "{}", job.stderr());
    drained(&mut job);
    LOAD.verify(&stack, 20);
}
