//! A million triggers: both sinks whole, in bounded memory.

use std::time::{Duration, Instant};

use openssl::sha::sha256;

use crate::support::{
    Campaign, Job, Message, Stack, Witness, block_on, client, connect, consume_each, restaurant, stop, wait_until,
};

const ROWS: usize = 1_000_000;

/// An unoptimised build on two cores that other tests share.
const PATIENCE: Duration = Duration::from_secs(240);

/// What a row is told by, in 16 bytes: a million whole rows would not be a small test.
type Digest = [u8; 16];

fn digest(text: &[u8]) -> Digest {
    sha256(text)[..16].try_into().expect("16 of 32 bytes")
}

/// A row's digests: as it is, and without the time of its making.
fn digests(row: &[u8]) -> (Digest, Digest) {
    let mark = br#","trigger_datetime_created":"#;
    // The mark and ten digits and the brace stand at the end.
    let cut = row.len().checked_sub(mark.len() + 11).expect("a row is longer than its end");
    assert!(row[cut..].starts_with(mark), "{}", String::from_utf8_lossy(row));
    (digest(row), digest(&row[..cut]))
}

/// The most memory that the process has had at once, in MiB.
fn peak(job: &Job) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", job.id())).expect("the job runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

/// Sorted digests of all rows in the sink table, by Postgres's own JSON writer.
fn in_postgres(stack: &Stack) -> Vec<Digest> {
    let (url, query) = (stack.url.clone(), Witness::DOCUMENTED.query());
    let mut rows: Vec<Digest> = block_on(async move {
        use futures::TryStreamExt;
        let client = connect(&url).await;
        let none: [&str; 0] = [];
        let rows = client.query_raw(&query, none).await.expect("a query");
        let digest_of = async |mut all: Vec<Digest>, row: tokio_postgres::Row| {
            all.push(digest(row.get::<_, &str>(0).as_bytes()));
            Ok(all)
        };
        rows.try_fold(Vec::with_capacity(ROWS), digest_of).await.expect("all rows")
    });
    rows.sort_unstable();
    rows
}

/// Sorted digests of all committed records: whole, and without their time.
fn in_kafka(stack: &Stack) -> (Vec<Digest>, Vec<Digest>) {
    let (mut whole, mut timeless) = (Vec::with_capacity(ROWS), Vec::with_capacity(ROWS));
    consume_each(&stack.bootstrap, &stack.triggers, true, |record| {
        let digests = digests(record.value.as_deref().expect("a value"));
        whole.push(digests.0);
        timeless.push(digests.1);
    });
    whole.sort_unstable();
    timeless.sort_unstable();
    (whole, timeless)
}

/// What must come out, computed without the job: each campaign once for each of its clients.
fn expected(campaigns: &[Campaign], clients: impl Fn(usize) -> Vec<String>) -> Vec<Digest> {
    let mut all = Vec::with_capacity(ROWS);
    for (n, campaign) in campaigns.iter().enumerate() {
        let row = campaign.trigger("@@", 1_700_000_000);
        let (before, after) = row.split_once("@@").expect("the client's place");
        let end = after.find(r#","trigger_datetime_created""#).expect("the time's place");
        let rows = clients(n).into_iter().map(|client| [before, &client, &after[..end]].concat());
        all.extend(rows.map(|row| digest(row.as_bytes())));
    }
    all.sort_unstable();
    all
}

/// Starts the job, lets it take `messages`, and stops it: MiB before the first and at the most, and the rows a second.
fn ring(stack: &Stack, messages: Vec<Message>) -> (u64, u64) {
    let count = messages.len() as f64;
    let mut job = Job::spawn(stack, &["run"]);
    wait_until("ready", PATIENCE, || job.is_ready());
    let before = peak(&job);
    let began = Instant::now();
    stack.produce(messages);
    wait_until("a million triggers", PATIENCE, || {
        assert!(job.is_running(), "the job has ended: {}", job.stderr());
        job.metric("dinnerbell_messages_in_total", "") == count
    });
    let took = began.elapsed();
    let most = peak(&job);
    let rate = ROWS as f64 / took.as_secs_f64();
    println!("{ROWS} rows in {took:.1?}: {rate:.0} rows/s; {before} MiB before, {most} MiB at most");
    assert_eq!(job.metric("dinnerbell_rows_total", r#"sink="postgres""#), ROWS as f64);
    stop(job);
    (before, most)
}

/// Compares digest lists without printing a million of them.
#[track_caller]
fn same(what: &str, one: &[Digest], other: &[Digest]) {
    assert_eq!(one.len(), other.len(), "{what}: the number of rows");
    let differing = one.iter().zip(other).filter(|(one, other)| one != other).count();
    assert_eq!(differing, 0, "{what}: rows that differ");
}

#[track_caller]
fn both_sinks_hold(stack: &Stack, expected: &[Digest]) {
    let (whole, timeless) = in_kafka(stack);
    same("Kafka and what it should be", &timeless, expected);
    same("Postgres and Kafka", &in_postgres(stack), &whole);
}

#[test]
fn a_million_triggers_from_a_thousand_campaigns() {
    let stack = Stack::new("million");
    stack.write_sql(
        "lookups/subscribers_restaurants.sql",
        "SELECT lpad(to_hex(r), 8, '0') || '-e89b-12d3-a456-426614174000' AS restaurant_id,
                lpad(to_hex(r * 1000 + c), 8, '0') || '-0000-4000-8000-426614174000' AS client_id
         FROM generate_series(0, 999) r, generate_series(0, 999) c",
    );
    let campaigns: Vec<Campaign> = (0..1000).map(|n| Campaign::new(n, restaurant(n))).collect();
    let messages = campaigns.iter().map(|campaign| Message::of(campaign.json())).collect();
    let (_, most) = ring(&stack, messages);
    assert!(most < 600, "the job held {most} MiB");
    let clients = |n: usize| (0..1000).map(|c| client(n * 1000 + c)).collect();
    both_sinks_hold(&stack, &expected(&campaigns, clients));
}

/// The rows of a single campaign stream too: what the job takes on top of the lookup table is not their size.
#[test]
fn one_campaign_for_a_million_subscribers() {
    let stack = Stack::new("one_million");
    stack.write_sql(
        "lookups/subscribers_restaurants.sql",
        "SELECT lpad('1', 8, '0') || '-e89b-12d3-a456-426614174000' AS restaurant_id,
                lpad(to_hex(c), 8, '0') || '-0000-4000-8000-426614174000' AS client_id
         FROM generate_series(0, 999999) c",
    );
    let campaigns = [Campaign::new(1, restaurant(1))];
    let (before, most) = ring(&stack, vec![Message::of(campaigns[0].json())]);
    assert!(most < 600, "the job held {most} MiB");
    // A million rows are 500 MB as JSON and as much again as Arrow.
    assert!(most - before < 300, "the job held {most} MiB, {before} of them before the campaign came");
    both_sinks_hold(&stack, &expected(&campaigns, |_| (0..ROWS).map(client).collect()));
}
