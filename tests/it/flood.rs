//! A flood of malformed messages: each becomes one dead letter, whole, in bounded memory.

use std::time::{Duration, Instant};

use crate::support::{
    Campaign, Job, Message, Record, Stack, Witness, client, consume_each, restaurant, stop, wait_until,
};

const PARTITIONS: usize = 3;
/// One message in so many is a good one.
const GOOD: usize = 1_000;

/// How many messages: DINNERBELL_FLOOD, or what a small machine has time for.
fn flood() -> usize {
    let asked = std::env::var("DINNERBELL_FLOOD").ok().filter(|text| !text.is_empty());
    asked.map_or(300_000, |text| text.parse().expect("DINNERBELL_FLOOD is a number of messages"))
}

/// The value of message `n`, and the path and a part of the reason that its letter gives; `None` for a good one.
fn message(n: usize) -> (Vec<u8>, Option<(&'static str, &'static str)>) {
    if n.is_multiple_of(GOOD) {
        return (Campaign::new(n, restaurant(1)).json().into_bytes(), None);
    }
    let (value, path, reason) = match n % 7 {
        0 => (format!("noise {n}"), "$", "expected one JSON object"),
        1 => (format!("{{\"restaurant_id\":{n}}}"), "$.restaurant_id", "expected a string"),
        2 => (format!("{{\"n\":{n}}}"), "$.restaurant_id", "the field is missing"),
        3 => (format!("[{n}]"), "$", "expected a JSON object, found an array"),
        4 => (format!("{{\"n\":{n},\"n\":{n}}}"), "$.n", "found this one again"),
        5 => (format!("{{\"restaurant_id\":\"{n}"), "$", "expected one JSON object"),
        _ => (
            Campaign::new(n, restaurant(1)).json().replace("1659203516", "\"soon\""),
            "$.adv_campaign_datetime_start",
            "found the string",
        ),
    };
    (value.into_bytes(), Some((path, reason)))
}

/// Message `n` is the one at this place.
fn number(partition: usize, offset: usize) -> usize {
    offset * PARTITIONS + partition
}

/// What both a letter and its message must say.
fn check(stack: &Stack, letter: &Record) -> usize {
    let header = |name: &str| letter.header(name).unwrap_or_else(|| panic!("no header {name}: {letter:?}"));
    let place = |name: &str| header(name).parse::<usize>().expect("a number");
    let n = number(place("dinnerbell.partition"), place("dinnerbell.offset"));
    let (value, bad) = message(n);
    let (path, reason) = bad.unwrap_or_else(|| panic!("message {n} is good: {letter:?}"));
    assert_eq!(letter.value.as_deref(), Some(value.as_slice()));
    assert_eq!(letter.key.as_deref(), Some(n.to_string().as_bytes()));
    assert_eq!((header("dinnerbell.topic"), header("dinnerbell.stage")), (stack.campaigns.as_str(), "decode"));
    assert_eq!(header("dinnerbell.path"), path);
    assert!(header("dinnerbell.reason").contains(reason), "{letter:?}");
    assert_eq!(header("dinnerbell.sql_hash").len(), 64);
    assert!(header("dinnerbell.timestamp").parse::<i64>().is_ok());
    assert_eq!(letter.header("trace"), Some("flood"), "their own headers stay");
    assert_eq!(letter.headers.len(), 9);
    n
}

/// The most memory that the process has had at once, in MiB.
fn peak(job: &Job) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", job.id())).expect("the job runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

#[test]
fn each_of_a_flood_of_malformed_messages_is_one_dead_letter() {
    let count = flood();
    let patience = Duration::from_secs(120 + count as u64 / 2_000);
    let stack = Stack::new("flood");
    stack.subscribe([(client(1), restaurant(1))]);
    let began = Instant::now();
    stack.produce((0..count).map(|n| {
        let message = Message::of(message(n).0).partition((n % PARTITIONS) as i32);
        message.key(n.to_string()).header("trace", b"flood")
    }));
    println!("{count} messages produced in {:.1?}", began.elapsed());
    let mut job = Job::spawn(&stack, &["run"]);
    let began = Instant::now();
    wait_until("all messages are taken", patience, || {
        assert!(job.is_running(), "the job has ended: {}", job.stderr());
        job.get("/metrics").is_some() && job.metric("dinnerbell_messages_in_total", "") as usize >= count
    });
    let (took, most) = (began.elapsed(), peak(&job));
    let rate = count as f64 / took.as_secs_f64();
    println!("{count} messages in {took:.1?}: {rate:.0} a second, {most} MiB at most");
    let good = count.div_ceil(GOOD);
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="triggered""#) as usize, good);
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="dead_letter""#) as usize, count - good);
    stop(job);
    // 300,000 of these letters are 150 MB; the job's memory is that of a batch, however many there are.
    assert!(most < 700, "the job held {most} MiB");

    let mut seen = vec![false; count];
    consume_each(&stack.bootstrap, &stack.dead_letters, true, |letter| {
        let n = check(&stack, &letter);
        assert!(!std::mem::replace(&mut seen[n], true), "message {n} has two letters");
    });
    let missing = (0..count).filter(|n| !seen[*n] && !n.is_multiple_of(GOOD)).count();
    assert_eq!(missing, 0, "messages without a letter");
    assert_eq!(Witness::DOCUMENTED.rows(&stack).len(), good);
}
