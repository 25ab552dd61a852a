//! What a job at work says of itself: at the admin port, and on a terminal.

use std::collections::BTreeMap;

use crate::support::{Campaign, Job, Message, PATIENCE, Stack, Terminal, client, restaurant, taken, wait_until};

/// Messages by outcome, as /metrics has them.
fn outcomes(job: &Job) -> BTreeMap<String, u64> {
    let (_, text) = job.get("/metrics").expect("the admin port answers");
    let outcome = |line: &str| {
        let (name, count) = line.strip_prefix("dinnerbell_messages_total{outcome=\"")?.split_once("\"} ")?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    text.lines().filter_map(outcome).collect()
}

#[test]
fn what_goes_in_is_the_sum_of_what_comes_out() {
    let stack = Stack::new("telemetry");
    stack.subscribe([(client(1), restaurant(1)), (client(2), restaurant(1)), (client(3), restaurant(1))]);
    stack.subscribe([(client(1), restaurant(2))]);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("ready", PATIENCE, || job.is_ready());
    assert_eq!(job.get("/healthz").map(|(status, _)| status), Some(200));
    assert_eq!(job.get("/nowhere").map(|(status, _)| status), Some(404));
    let names = ["dead_letter", "expired", "no_match:subscribers_restaurants", "not_started", "triggered"];
    assert_eq!(outcomes(&job), names.map(|name| (name.to_owned(), 0)).into(), "all outcomes show before the first");

    let ring = |n, r| Campaign::new(n, restaurant(r));
    let good = [ring(1, 1), ring(2, 2)].into_iter();
    let not_started = (10..13).map(|n| ring(n, 1).not_started());
    // One that nobody would have heard of anyway has expired, too: the first reason counts.
    let expired = (20..24).map(|n| ring(n, n % 2 * 9).expired());
    let unheard = (30..35).map(|n| ring(n, 9));
    let campaigns = good.chain(not_started).chain(expired).chain(unheard);
    let messages = campaigns.map(|campaign| Message::of(campaign.json())).chain((0..6).map(|_| Message::of("{}")));
    stack.produce(messages.enumerate().map(|(n, message)| message.partition(n as i32 % 3)));
    taken(&mut job, 20);

    let seen = outcomes(&job);
    let expected = [6, 4, 5, 3, 2];
    assert_eq!(seen, names.into_iter().map(str::to_owned).zip(expected).collect());
    assert_eq!(seen.values().sum::<u64>() as f64, job.metric("dinnerbell_messages_in_total", ""));
    assert_eq!(job.metric("dinnerbell_rows_total", r#"sink="postgres""#), 4.0);
    assert_eq!(job.metric("dinnerbell_rows_total", r#"sink="kafka""#), 4.0);
    assert_eq!(job.metric("dinnerbell_dead_letters_total", r#"stage="decode""#), 6.0);
    assert_eq!(job.metric("dinnerbell_dead_letters_total", ""), 6.0);
    assert_eq!(job.metric("dinnerbell_lookup_rows", ""), 4.0);
    assert!(job.metric("dinnerbell_commits_total", "") >= 1.0);
    assert_eq!(job.metric("dinnerbell_reconnects_total", ""), 0.0);
    assert!(job.metric("dinnerbell_batch_seconds_count", r#"stage="total""#) >= 1.0);
    wait_until("the lag of each partition is known and none", PATIENCE, || {
        let (_, text) = job.get("/metrics").expect("the admin port answers");
        (0..3).all(|n| text.contains(&format!("dinnerbell_consumer_lag{{partition=\"{n}\"}} 0\n")))
    });

    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    assert_eq!(job.get("/healthz"), None, "the port is closed");
    // Nothing waits to be confirmed once the job has drained.
    assert_eq!(stack.number("SELECT count(*) FROM dinnerbell.parts"), 0);
    assert_eq!(stack.number("SELECT sum(next_offset) FROM dinnerbell.progress"), 20);
}

#[test]
fn a_job_goes_on_without_its_terminal() {
    let stack = Stack::new("terminal");
    stack.subscribe([(client(1), restaurant(1))]);
    let (terminal, stderr) = Terminal::open();
    let mut job = Job::spawn_on(&stack, &["run"], &[("RUST_LOG", "debug")], stderr);
    wait_until("ready", PATIENCE, || job.is_ready());
    assert!(terminal.go_away() > 0, "it had logs to show");
    // Each of them has lines in the log.
    stack.produce((0..3).map(|n| Message::of(Campaign::new(n, restaurant(1)).json())));
    taken(&mut job, 3);
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0));
    assert_eq!(stack.number("SELECT count(*) FROM subscribers_feedback"), 3);
    assert_eq!(stack.read_triggers().len(), 3);
}
