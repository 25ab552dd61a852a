//! Networks that fail between the job and its servers, in mid-load. Replies lost step by step are in `steps`.

use std::time::Duration;

use crate::support::{Job, Load, Match, Network, Stack, api, random, wait_until};

const PATIENCE: Duration = Duration::from_secs(90);
const LOAD: Load = Load { restaurants: 20, subscribers: 25 };

fn small_batches(name: &str) -> (Stack, Network) {
    let (mut stack, network) = Stack::behind_proxies(name);
    stack.set("batch", "max_messages", 5);
    LOAD.subscribe(&stack);
    (stack, network)
}

fn rows(stack: &Stack) -> i64 {
    stack.number("SELECT count(*) FROM subscribers_feedback")
}

fn ends(mut job: Job, stack: &Stack, campaigns: usize) {
    job.term();
    assert_eq!(job.wait(Duration::from_secs(12)).code(), Some(0), "{}", job.stderr());
    LOAD.verify(stack, campaigns);
}

#[test]
fn all_connections_reset_again_and_again_in_mid_load() {
    let (stack, network) = small_batches("resets");
    LOAD.produce(&stack, 0..600);
    let mut job = Job::spawn(&stack, &["run"]);
    let mut random = random();
    for round in 0..8 {
        let wanted = rows(&stack) + random.i64(1..40 * 25);
        wait_until("some more rows", PATIENCE, || rows(&stack) >= wanted || LOAD.is_in_postgres(&stack, 600));
        assert!(!LOAD.is_in_postgres(&stack, 600), "the load was over before round {round}");
        let proxies = [&network.kafka, &network.postgres];
        wait_until("it is connected", PATIENCE, || proxies.iter().all(|proxy| proxy.connections() > 0));
        let which = random.usize(0..3);
        let cut = match which {
            0 => network.kafka.cut_all(),
            1 => network.postgres.cut_all(),
            _ => network.kafka.cut_all() + network.postgres.cut_all(),
        };
        println!("round {round}: {cut} connections cut");
        assert!(cut > 0);
    }
    LOAD.arrives(&stack, 600);
    assert!(job.is_running());
    ends(job, &stack, 600);
}

/// Nothing is refused and nothing answers, for longer than the group waits for a member.
#[test]
fn servers_that_fall_silent_in_mid_load() {
    let (stack, network) = small_batches("silence");
    let mut job = Job::spawn(&stack, &["run"]);
    let mut produced = 0;
    let (kafka, postgres) = (&network.kafka, &network.postgres);
    for (proxies, seconds) in [(vec![postgres], 18), (vec![kafka], 18), (vec![kafka, postgres], 60)] {
        LOAD.produce(&stack, produced..produced + 150);
        produced += 150;
        let wanted = rows(&stack) + 20 * 25;
        wait_until("some more rows", PATIENCE, || rows(&stack) >= wanted);
        let before: u64 = proxies.iter().map(|proxy| proxy.caught()).sum();
        proxies.iter().for_each(|proxy| proxy.black_hole());
        // The time itself is what is tested: the session timeout is 10 s, and so is that of an idle transaction.
        std::thread::sleep(Duration::from_secs(seconds));
        assert!(!LOAD.is_in_postgres(&stack, produced), "the silence came after the load");
        assert!(proxies.iter().map(|proxy| proxy.caught()).sum::<u64>() > before);
        // What was held comes late, as after a partition that heals.
        proxies.iter().for_each(|proxy| proxy.restore());
        LOAD.arrives(&stack, produced);
        assert!(job.is_running(), "{}", job.stderr());
    }
    ends(job, &stack, produced);
}

/// An EndTxn whose connection dies is sent again by librdkafka; the first one is still on its way and reaches the broker
/// in the middle of that producer's next transaction: its rows without its offsets would be committed.
#[test]
fn a_late_end_of_a_transaction_does_not_end_the_next_one() {
    let (mut stack, network) = small_batches("late_end");
    stack.set("job", "instance", "late");
    let mut job = Job::spawn(&stack, &["run"]);
    // Each partition has had a commit, so that a claim has nothing to write.
    for n in 0..3 {
        stack.produce([LOAD.message(n).partition(n as i32)]);
        LOAD.arrives(&stack, n + 1);
    }
    let late = network.kafka.hold(Match::kafka(api::END_TXN));
    LOAD.produce(&stack, 3..4);
    wait_until("an EndTxn is held", PATIENCE, || late.injected() == 1);
    late.cut();
    LOAD.arrives(&stack, 4);
    // The other producer's turn; then it is that one's again, stopped between its rows and its offsets.
    LOAD.produce(&stack, 4..5);
    LOAD.arrives(&stack, 5);
    assert!(job.is_running());
    let offsets = network.kafka.hold(Match::kafka(api::ADD_OFFSETS_TO_TXN));
    LOAD.produce(&stack, 5..6);
    wait_until("the next transaction is open", PATIENCE, || offsets.injected() == 1);
    assert!(LOAD.is_in_postgres(&stack, 6), "Postgres goes first");
    late.release();
    wait_until("the late one is answered", PATIENCE, || late.late_replies().len() == 1);
    // Size, correlation id, throttle time, error.
    let error = i16::from_be_bytes(late.late_replies()[0][12..14].try_into().expect("a whole reply"));
    println!("the late EndTxn is answered with error {error}");
    // A crash now: whoever comes next goes by what Kafka holds.
    job.kill9();
    offsets.release();
    let job = Job::spawn(&stack, &["run"]);
    wait_until("the stored batch is confirmed", PATIENCE, || {
        stack.number("SELECT count(*) FROM dinnerbell.parts") == 0
    });
    LOAD.arrives(&stack, 6);
    ends(job, &stack, 6);
    assert_ne!(error, 0, "the late EndTxn ended a transaction");
}
