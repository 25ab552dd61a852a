//! Stops, crashes and outages in mid-load: nothing lost, nothing twice, and the job goes on by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::support::{
    Job, Kafka, KafkaOptions, LONG_PATIENCE as PATIENCE, Load, Postgres, Shutdown, Stack, random, wait_until,
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

/// What happens after the load proves nothing.
#[track_caller]
fn in_mid_load(stack: &Stack, campaigns: usize) {
    assert!(!LOAD.is_in_postgres(stack, campaigns), "it came after the load, not in its middle");
}

/// A load that goes on for as long as it lives: campaigns from 0 on, more of them whenever few are left to do.
struct Feed<'scope> {
    stack: &'scope Stack,
    shared: Arc<(AtomicUsize, AtomicBool)>,
    thread: Option<ScopedJoinHandle<'scope, ()>>,
}

impl<'scope> Feed<'scope> {
    fn start(scope: &'scope Scope<'scope, '_>, stack: &'scope Stack) -> Feed<'scope> {
        let shared = Arc::new((AtomicUsize::new(0), AtomicBool::new(false)));
        let ours = shared.clone();
        let thread = scope.spawn(move || {
            let (produced, ended) = &*ours;
            let mut from = 0_usize;
            while !ended.load(Ordering::SeqCst) {
                if LOAD.is_in_postgres(stack, from.saturating_sub(100)) {
                    LOAD.produce(stack, from..from + 200);
                    from += 200;
                    produced.store(from, Ordering::SeqCst);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Feed { stack, shared, thread: Some(thread) }
    }

    /// Until campaigns are in the input whose rows are not in the table.
    #[track_caller]
    fn until_work_waits(&self) {
        wait_until("work waits", PATIENCE, || !LOAD.is_in_postgres(self.stack, self.shared.0.load(Ordering::SeqCst)));
    }

    /// How many campaigns it has come to.
    fn end(mut self) -> usize {
        self.shared.1.store(true, Ordering::SeqCst);
        let thread = self.thread.take().expect("it has not ended");
        thread.join().expect("producing does not fail");
        self.shared.0.load(Ordering::SeqCst)
    }
}

/// A test that fails must not wait for it for ever.
impl Drop for Feed<'_> {
    fn drop(&mut self) {
        self.shared.1.store(true, Ordering::SeqCst);
    }
}

#[test]
fn sigterm_in_mid_load_drains_and_a_restart_goes_on() {
    let stack = small_batches(Stack::new("sigterm"));
    LOAD.produce(&stack, 0..400);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("some rows", PATIENCE, || rows(&stack) > 0);
    drained(&mut job);
    in_mid_load(&stack, 400);
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
    let mut random = random();
    let mut produced = 0;
    for round in 0..10 {
        LOAD.produce(&stack, produced..produced + 120);
        produced += 120;
        let before = rows(&stack);
        let mut job = Job::spawn(&stack, &["run"]);
        // A random amount of work, then a random moment within a commit.
        let wanted = before + random.i64(1..20 * 25);
        wait_until("some more rows", PATIENCE, || rows(&stack) >= wanted);
        std::thread::sleep(Duration::from_micros(random.u64(0..30_000)));
        job.kill9();
        println!("round {round}: killed with {} of {} rows", rows(&stack), produced * 25);
        in_mid_load(&stack, produced);
    }
    let mut job = Job::spawn(&stack, &["run"]);
    LOAD.arrives(&stack, produced);
    drained(&mut job);
    LOAD.verify(&stack, produced);
}

#[test]
fn replicas_join_and_leave_in_mid_load() {
    let stack = small_batches(Stack::new("replicas"));
    std::thread::scope(|scope| {
        let feed = Feed::start(scope, &stack);
        let mut first = Job::spawn(&stack, &["run"]);
        wait_until("some rows", PATIENCE, || rows(&stack) > 0);
        let mut second = Job::spawn(&stack, &["run"]);
        wait_until("the second has partitions", PATIENCE, || second.stderr().contains("partitions assigned"));
        feed.until_work_waits();
        drained(&mut first);
        let mut third = Job::spawn(&stack, &["run"]);
        wait_until("the third has partitions", PATIENCE, || third.stderr().contains("partitions assigned"));
        feed.until_work_waits();
        second.kill9();
        let before = rows(&stack);
        wait_until("the third goes on", PATIENCE, || rows(&stack) > before);
        let campaigns = feed.end();
        LOAD.arrives(&stack, campaigns);
        drained(&mut third);
        LOAD.verify(&stack, campaigns);
    });
}

#[test]
fn servers_restart_in_mid_load() {
    let (mut kafka, mut postgres) = (Kafka::start(KafkaOptions::default()), Postgres::start(Default::default()));
    let stack = small_batches(Stack::private("restarts", &kafka, &postgres));
    LOAD.produce(&stack, 0..200);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("some rows", PATIENCE, || rows(&stack) > 0);

    in_mid_load(&stack, 200);
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
    in_mid_load(&stack, 400);
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

    LOAD.produce(&stack, 400..600);
    wait_until("some more rows", PATIENCE, || rows(&stack) > 405 * 25);
    in_mid_load(&stack, 600);
    postgres.stop(Shutdown::Fast);
    kafka.stop();
    kafka.resume();
    postgres.resume();
    LOAD.arrives(&stack, 600);
    drained(&mut job);
    LOAD.verify(&stack, 600);
}

#[test]
fn a_backend_killed_in_mid_load_is_claimed_anew() {
    let stack = small_batches(Stack::new("backend"));
    LOAD.produce(&stack, 0..300);
    let mut job = Job::spawn(&stack, &["run"]);
    for milestone in [1, 3_000] {
        wait_until("some rows", PATIENCE, || rows(&stack) >= milestone);
        in_mid_load(&stack, 300);
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
